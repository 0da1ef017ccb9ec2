"""The README is true: its commands parse, its code runs, its table and output are not invented."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import Result

from rpbench.catalog import list_schemes
from rpbench.cli import main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
Invoke = Callable[..., Result]


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines if re.match(r"rpbench |accelerate launch", line)]
    return [line[line.index("rpbench") + 1 :] for line in words]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_parse(words: list[str]) -> None:
    command: click.Command = main
    while isinstance(command, click.Group):
        name, *words = words
        command = command.commands[name]
    with command.make_context(command.name, words) as context:
        assert context.params


def test_first_blocks_are_the_two_commands() -> None:
    first, second = blocks("sh")[:2]
    assert first.strip().endswith("pip install -e . && rpbench run")
    assert second.strip().endswith("pip install -e '.[test]' && pytest")


def test_scheme_table_is_the_shelf() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", README, re.M)
    assert rows == [(row["name"], row["summary"]) for row in list_schemes()]


def test_output_is_what_is_printed(invoke: Invoke) -> None:
    """Labels to the letter; numbers of another machine may differ in their last digits."""
    shown = blocks("text")[0].splitlines()
    printed = invoke("run").stdout.splitlines()
    assert [line[:44].rstrip() for line in shown[1:-1] if "last)" not in line] == [
        line[:44].rstrip() for line in printed[1:-1] if "last)" not in line
    ]
    top1 = [float(re.findall(r"top-1 +([\d.]+)%", "\n".join(lines))[0]) for lines in (shown, printed)]
    assert top1[0] == pytest.approx(top1[1], abs=3)
    assert min(top1) > 95


def test_table_is_the_published_one(invoke: Invoke) -> None:
    shown = blocks("text")[1]
    assert invoke("report", "digits", "--leaderboard").stdout.startswith(shown)


def test_own_loop_runs() -> None:
    code = blocks("python")[0]
    found: dict[str, object] = {}
    exec(code, found)
    assert found["bound"]


def test_own_scheme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invoke: Invoke) -> None:
    """What `new` writes is what the README shows, and what `try` prints of it before training."""
    monkeypatch.chdir(tmp_path)
    new, tried = next(block.splitlines()[:2] for block in blocks("sh") if "rpbench try ./mine.py" in block)
    assert invoke(*shlex.split(new, comments=True)[1:]).exit_code == 0
    assert (tmp_path / "mine.py").read_text() == blocks("python")[1]
    assert invoke("plan", "--scheme", "./mine.py:power=0.7").exit_code == 0
    assert invoke("run", "--scheme", "./mine.py", "--set", "recipe.epochs=1").exit_code == 0
    printed = invoke(*shlex.split(tried, comments=True)[1:], "--no-train").stdout
    assert blocks("text")[2].partition("  name ")[2] in printed  # what is said before depends on the platform


def test_links_lead_somewhere() -> None:
    for file in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", file.read_text()):
            assert target.startswith("http") or (file.parent / target).exists(), target
