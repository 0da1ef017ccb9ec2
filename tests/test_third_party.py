"""A package of somebody else's: its scheme and sampler are found by name, tried, swept and reported like any other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import Result

from rpbench.contract import sampler_checks, scheme_checks, verdicts

Invoke = Callable[..., Result]
ROOT = Path(__file__).resolve().parent.parent

SCHEME = '''"""Ratios."""
from rpbench import shape_scheme, spread


@shape_scheme
def taper(table, density, *, power=0.5):
    """Densities fall with a power of a layer's size. https://example.org/taper"""
    return spread(table, lambda layer: layer.numel**-power, density)
'''
SAMPLER = '''"""Positions."""
from rpbench import mask_sampler, streams


@mask_sampler
def shuffle(table, counts, key, scores):
    """Each layer's count, the first of a shuffled order. https://example.org/shuffle"""
    masks = {}
    for i, layer in enumerate(table):
        order = streams.permutation(key(i), layer.numel)
        masks[layer.name] = (order < counts[layer.name]).reshape(layer.shape)
    return masks
'''
ENTRIES = {
    "rpbench.schemes": {
        "taper": "sparse_pack.ratios:taper",
        "lost": "sparse_pack.lost:lost",
        "garbled": "sparse_pack.garbled:garbled",
    },
    "rpbench.samplers": {"shuffle": "sparse_pack.positions:shuffle"},
}
LOST = "import a_module_that_nobody_has\n" + SCHEME.replace("taper", "lost")
TEST = """import pytest
from rpbench.contract import sampler_checks, scheme_checks


@pytest.mark.parametrize("check", [*scheme_checks("taper"), *sampler_checks("shuffle")], ids=str)
def test_contract(check):
    check()
"""
PYPROJECT = """[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "sparse-pack"
version = "0.3"

[tool.setuptools]
packages = ["sparse_pack"]

"""
BOARD = """name = "ours"
version = 1
summary = "a scheme and a sampler of a package"
url = "x"
seeds = [0]
[[grids]]
task = "tiny.toml"
models = ["resnet8"]
densities = [0.1]
schemes = ["taper", "erk"]
samplers = ["exact", "shuffle"]
"""


def write_modules(folder: Path) -> None:
    files = {"__init__": "", "ratios": SCHEME, "positions": SAMPLER, "lost": LOST, "garbled": "def garbled(:\n"}
    (folder / "sparse_pack").mkdir(parents=True)
    for name, text in files.items():
        (folder / "sparse_pack" / f"{name}.py").write_text(text)


def write_board(folder: Path) -> Path:
    task = (ROOT / "tasks" / "digits.toml").read_text().replace('name = "digits"', 'name = "tiny"')
    (folder / "tiny.toml").write_text(task.replace("epochs = 30", "epochs = 1"))
    (folder / "ours.toml").write_text(BOARD)
    return folder / "ours.toml"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package as an installer leaves it, without the seconds that an installer takes."""
    site = tmp_path / "site"
    write_modules(site)
    facts = site / "sparse_pack-0.3.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: sparse-pack\nVersion: 0.3\n")
    sections = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in e.items()) for group, e in ENTRIES.items()]
    (facts / "entry_points.txt").write_text("\n".join(sections))
    monkeypatch.syspath_prepend(str(site))
    yield site
    for name in [name for name in sys.modules if name.partition(".")[0] == "sparse_pack"]:
        del sys.modules[name]


def test_it_is_listed_with_where_it_comes_from(installed: Path, invoke: Invoke) -> None:
    shown = " ".join(invoke("list", "schemes").stdout.split())
    assert "taper Densities fall with a power of a layer's size [power=0.5] (from sparse-pack 0.3)" in shown
    assert "erk Erdos-Renyi-Kernel" in shown
    rows = {row["name"]: row for row in json.loads(invoke("list", "samplers", "--format", "json").stdout)}
    assert rows["shuffle"]["summary"] == "Each layer's count, the first of a shuffled order"
    assert rows["shuffle"]["package"] == "sparse-pack 0.3"
    assert "package" not in rows["exact"]


def test_modules_that_do_not_load_harm_no_other(installed: Path, invoke: Invoke) -> None:
    listed = invoke("list", "schemes")
    assert listed.exit_code == 0
    rows = {row["name"]: row for row in json.loads(invoke("list", "schemes", "--format", "json").stdout)}
    assert {"taper", "lost", "garbled", "erk"} <= rows.keys()
    assert "does not load: SyntaxError" in rows["garbled"]["summary"]
    assert invoke("plan", "--scheme", "taper").exit_code == 0
    for name in ("lost", "garbled"):
        refused = invoke("plan", "--scheme", name)
        assert refused.exit_code in (1, 2)
        assert "Traceback" not in refused.stderr


def test_it_keeps_the_contract_and_is_tried_by_name(installed: Path, invoke: Invoke) -> None:
    found = verdicts([*scheme_checks("taper"), *sampler_checks("shuffle")])
    assert {v.state for v in found} == {"passed"}
    assert invoke("try", "taper:power=1", "--no-train").stdout.startswith("taper:power=1.0: a scheme of layer shapes")


def test_its_cells_are_on_a_board(installed: Path, tmp_path: Path, invoke: Invoke) -> None:
    found = invoke("sweep", str(write_board(tmp_path)), "--dry-run", "--format", "json")
    cells = [(cell["scheme"], cell["sampler"]) for cell in json.loads(found.stdout)["cells"]]
    own = [("taper", "exact"), ("erk", "exact"), ("taper", "shuffle"), ("erk", "shuffle")]
    assert cells == [("dense", "exact"), *own]


@pytest.mark.slow
def test_installed_by_pip(tmp_path: Path) -> None:
    """The same by setuptools and pip, and through to a report; the package's own tests pass."""
    source, site, store = tmp_path / "source", tmp_path / "site", tmp_path / "runs"
    write_modules(source)
    tables = [f'[project.entry-points."{g}"]\n' + "".join(f'{k} = "{v}"\n' for k, v in e.items())
              for g, e in ENTRIES.items()]  # fmt: skip
    (source / "pyproject.toml").write_text(PYPROJECT + "\n".join(tables))
    (source / "test_pack.py").write_text(TEST)
    able = any(find_spec(name) for name in ("wheel", "setuptools.command.bdist_wheel"))
    here = ["--no-build-isolation"] if able else []  # an old setuptools cannot make wheels: pip fetches a new one
    pip = ["-m", "pip", "install", "-q", "--no-deps", *here, "--target", str(site), str(source)]
    env = os.environ | {"PYTHONPATH": str(site), "RPBENCH_STORE": str(store)}
    board = str(write_board(tmp_path))

    def call(*args: str) -> str:
        done = subprocess.run([sys.executable, *args], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, (args, done.stdout, done.stderr)
        return done.stdout

    call(*pip)
    assert "(from sparse-pack 0.3)" in " ".join(call("-m", "rpbench", "list", "schemes").split())
    assert "shuffle" in call("-m", "rpbench", "list", "samplers")
    assert "checks passed" in call("-m", "rpbench", "try", "taper", "--no-train")
    assert "ours: 5 of 5 cells have a result" in call("-m", "rpbench", "sweep", board)
    assert "taper + shuffle" in call("-m", "rpbench", "report", board)
    assert " passed" in call("-m", "pytest", "-q", "-c", os.devnull, str(source / "test_pack.py"))
