"""What the wheel ships equals the tree, and works from somewhere else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = {".py", ".toml", ".typed", ".json", ".html", ".css", ".js"}
RECORDS = {".jsonl", ".json", ".py", ".md", ".html"}
SHELVES = {"tasks": "rpbench/tasks", "baselines": "rpbench/baselines", "rpbench": "rpbench"}


@pytest.mark.slow
def test_wheel_ships_the_shelves(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv", "build", "*.egg-info", "runs"))
    own = tree / "leaderboard" / "submissions" / "mine-12345678"  # of a merged submission
    own.mkdir(parents=True)
    for name in ("mine.py", "digits.json"):
        (own / name).write_text("{}")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(tmp_path), str(tree)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if ".dist-info/" not in name}
        archive.extractall(tmp_path / "site")
    wanted = {
        f"{inside}/{path.relative_to(ROOT / outside).as_posix()}"
        for outside, inside in SHELVES.items()
        for path in (ROOT / outside).rglob("*")
        if path.suffix in SHIPPED and "__pycache__" not in path.parts
    }
    assert wanted <= shipped
    published = [p.relative_to(tree).as_posix() for p in (tree / "leaderboard").rglob("*") if p.suffix in RECORDS]
    assert {f"rpbench/{name}" for name in published} <= shipped
    assert f"rpbench/{own.relative_to(tree).as_posix()}/mine.py" in shipped
    assert {name for name in shipped if "leaderboard" not in name and not name.endswith(".md")} <= wanted
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import rpbench\nassert rpbench.__file__.startswith(sys.argv[1])\n"
        "from rpbench.catalog import find_sampler, scheme_names\n"
        "from rpbench.task import load_task\n"
        "from rpbench.report.reported import reported\n"
        "assert reported()\n"
        "assert find_sampler('exact')[0].name == 'exact'\n"
        "assert 'erk' in scheme_names() and load_task('digits').name == 'digits'\n"
        "print(rpbench.plan(__import__('torch').nn.Linear(20, 10), 'erk', 0.3).kept)\n"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, str(tmp_path / "site")],
        cwd=tmp_path, capture_output=True, text=True, check=False, env={"PYTHONPATH": _site_packages()},
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, "60"), done.stderr


def _site_packages() -> str:
    import numpy

    return str(Path(numpy.__file__).parent.parent)
