"""`rpbench new` writes files that run as they are; `rpbench try` checks and compares what is in them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import Result

from rpbench.contract import examine
from rpbench.record import RunRecord
from rpbench.trial import next_commands, table, trial

Invoke = Callable[..., Result]
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def published(scheme: str) -> Iterator[RunRecord]:
    """Published records of the cells that a comparison trains."""
    for line in (ROOT / "leaderboard" / "digits" / f"{scheme}.jsonl").read_text().splitlines():
        record = RunRecord.model_validate_json(json.loads(line)["record"])
        if record.density.requested in (0.1, 1.0):
            yield record


class Outcome(NamedTuple):
    record: RunRecord


class End(NamedTuple):
    """As `rpbench.pack.End`."""

    outcome: Outcome | None
    refused: str = ""


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Cells end in published records instead of being trained; what was asked for."""
    asked: list[dict[str, Any]] = []

    def run(cells: list[dict[str, Any]], *_: Any) -> list[End]:
        asked.extend(cells)
        known = {name: list(published(name)) for name in ("erk", "uniform", "snip")}
        return [End(Outcome(known.get(cell["scheme"], known["snip"])[cell["seed"]])) for cell in cells]

    monkeypatch.setattr("rpbench.pack.run_packed", run)
    return asked


@pytest.mark.parametrize(
    ("args", "file", "says"),
    [
        (("scheme", "mine"), "mine.py", "mine: a scheme of layer shapes"),
        (("scheme", "mine", "--score"), "mine.py", "mine: a scheme that scores weights"),
        (("sampler", "mine"), "mine.py", "mine: a sampler"),
    ],
)
def test_what_new_writes_passes_try(args: tuple[str, ...], file: str, says: str, here: Path, invoke: Invoke) -> None:
    written = invoke("new", *args)
    assert written.exit_code == 0
    assert written.stdout.startswith(f"wrote {file}\nnext: rpbench try ./{file}\n")
    assert len((here / file).read_text().splitlines()) <= 13
    tried = invoke("try", f"./{file}", "--no-train")
    assert tried.exit_code == 0, tried.stdout
    assert tried.stdout.startswith(says)
    assert "checks passed" in tried.stdout
    assert all(len(line) <= 80 for line in tried.stdout.splitlines())


def test_a_new_task_runs(here: Path, invoke: Invoke) -> None:
    (here / "tasks").mkdir()
    assert invoke("new", "task", "mine", "--to", "tasks").exit_code == 0
    done = invoke(
        "run", "--task", "tasks/mine.toml", "--set", "recipe.epochs=1", "--limit", "100", "--limit-test", "50"
    )
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("mine@1 resnet8 erk 0.2")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("scheme", "my-scheme"), "'my-scheme' cannot be a function's name: letters, digits and '_'"),
        (("scheme", "2nd"), "cannot be a function's name"),
        (("sampler", "größe"), "cannot be a function's name"),
        (("scheme", "lambda"), "'lambda' is a word of Python"),
        (("scheme", "match"), "'match' is a word of Python"),
        (("scheme", "erk"), "there is a scheme 'erk' on the shelf"),
        (("sampler", "exact"), "there is a sampler 'exact' on the shelf"),
        (("task", "digits"), "there is a task 'digits' on the shelf"),
        (("task", "My Task"), "'My Task' cannot be a task's name"),
        (("scheme", "torch"), "would hide the module 'torch'"),
        (("scheme", "random"), "would hide the module 'random'"),
        (("scheme", "there"), "'there.py' is there already"),
        (("scheme", "mine", "--to", "nowhere"), "there is no folder 'nowhere'"),
        (("sampler", "mine", "--score"), "--score is for schemes"),
        (("board", "mine"), "'board' is not one of 'scheme', 'sampler', 'task'"),
    ],
)
def test_names_that_cannot_be(args: tuple[str, ...], says: str, here: Path, invoke: Invoke) -> None:
    (here / "there.py").write_text("# work of many nights\n")
    result = invoke("new", *args)
    assert result.exit_code == 2
    assert says in result.stderr.splitlines()[-1]
    assert [p.name for p in here.iterdir()] == ["there.py"]
    assert (here / "there.py").read_text() == "# work of many nights\n"


def test_try_compares_with_known_schemes(here: Path, invoke: Invoke, no_training: list[dict[str, Any]]) -> None:
    invoke("new", "scheme", "mine")
    done = invoke("try", "./mine.py:power=0.7", "--seeds", "2")
    assert done.exit_code == 0, done.stderr
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if "--store" not in line)
    assert "digits, density 0.1, 30 epochs, 2 seeds: a smoke test, not a result" in done.stdout
    head = next(line for line in done.stdout.splitlines() if "uniform" in line)
    assert head.split() == ["mine:power=0.7", "uniform", "erk"]
    for row in ("top-1  ", "top-1, each seed", "ECE", "ROC-AUC photos", "top-1 under fgsm-8", "weights kept", "MACs"):
        assert f"\n{row}" in done.stdout
    assert done.stdout.splitlines()[-3:] == [
        "next: rpbench sweep digits --scheme ./mine.py:power=0.7",
        f"      rpbench compare mine:power=0.7 erk --leaderboard --store {here / 'runs'}",
        "      rpbench submit ./mine.py:power=0.7 --board digits --card card.toml",
    ]
    schemes = ["./mine.py:power=0.7", "uniform", "erk"]
    assert [cell["scheme"] for cell in no_training] == [*schemes, *schemes]
    assert {(cell["density"], cell["overrides"], cell["sampler"]) for cell in no_training} == {(0.1, (), "exact")}


def test_try_says_what_is_wrong_and_trains_nothing(
    here: Path, invoke: Invoke, no_training: list[dict[str, Any]]
) -> None:
    file = here / "mine.py"
    file.write_text(
        "from rpbench import shape_scheme\n\n\n@shape_scheme\ndef mine(table, density, power=2):\n"
        '    """Twice too much. https://example.org"""\n'
        "    return dict.fromkeys(table.names, min(1, power * density))\n"
    )
    done = invoke("try", str(file))
    assert done.exit_code == 1
    assert "  budget      FAILED  off budget: 0.001 of 270,896 weights is 271, allocated 542" in done.stdout
    assert "  options     FAILED  'power' cannot be set by name: put a * before it" in done.stdout
    assert "2 checks of 11 failed\n" in done.stdout
    assert "fc.weight" in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    assert not no_training
    assert invoke("try", str(file), "--anyway").exit_code == 1
    assert len(no_training) == 3
    told = json.loads(invoke("try", str(file), "--format", "json").stdout)
    assert {v["check"] for v in told["checks"] if v["state"] == "failed"} == {"budget", "options"}
    assert "comparison" not in told


def test_try_as_json(here: Path, invoke: Invoke, no_training: list[dict[str, Any]]) -> None:
    invoke("new", "scheme", "mine")
    told = json.loads(invoke("try", "./mine.py", "--quick", "--format", "json").stdout)
    assert (
        told["comparison"]["what"]
        == "digits, density 0.1, 5 epochs of 30 (off protocol), 1 seed: a smoke test, not a result"
    )
    assert {cell["overrides"] for cell in no_training} == {("recipe.epochs=5",)}
    assert [cell["label"] for cell in told["comparison"]["cells"]] == ["mine", "uniform", "erk"]
    assert told["example"]["where"] == "resnet8 at density 0.1"


def test_what_is_tried_runs_in_a_process_of_its_own(
    here: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "mine.py").write_text(
        "import os\nfrom rpbench import shape_scheme\n\nHOME = os.getpid()\n\n\n@shape_scheme\n"
        f'def mine(table, density):\n    """All layers alike. https://example.org"""\n    if HOME == {os.getpid()}:\n'
        "        raise ValueError('in the parent')\n    return dict.fromkeys(table.names, density)\n"
    )
    confined = invoke("try", "./mine.py", "--no-train")
    assert confined.exit_code == 0
    assert "it runs in a process of its own" in confined.stdout
    assert "it runs" not in invoke("try", "uniform", "--no-train").stdout
    monkeypatch.setenv("RPBENCH_ISOLATION", "off")
    loose = invoke("try", "./mine.py", "--no-train")
    assert loose.exit_code == 1
    assert "it runs unprotected, in this process" in loose.stdout
    assert "raised ValueError: in the parent (mine.py, line 11)" in " ".join(loose.stdout.split())


@pytest.mark.parametrize(
    ("mine", "says"),
    [
        ("./nowhere.py", "scheme file 'nowhere.py' does not exist"),
        ("erkk", "no scheme or sampler 'erkk': did you mean 'erk'?"),
        ("./mine.py:powr=1", "did you mean 'power'?"),
        ("./broken.py", "does not load: SyntaxError"),
        ("./empty.py", "must define one scheme"),
        ("given", "'given' needs given:file=..."),
    ],
)
def test_try_of_what_is_not_there(mine: str, says: str, here: Path, invoke: Invoke) -> None:
    invoke("new", "scheme", "mine")
    (here / "broken.py").write_text("def broken(:\n")
    (here / "empty.py").write_text("x = 1\n")
    result = invoke("try", mine, "--no-train")
    assert result.exit_code == 2
    assert says in result.stderr.splitlines()[-1]
    assert result.stdout == ""


def test_names_on_the_shelf_and_samplers_are_tried_too(here: Path) -> None:
    """A scheme is not its own rival; a sampler draws for one scheme beside `exact`; `dense` has its own density."""
    tried = {name: trial(examine(name), name, 1, False) for name in ("erk", "dense", "bernoulli", "scored")}
    pairs = {n: [(c["scheme"], c["sampler"], c["density"]) for c in t.asked] for n, t in tried.items()}
    assert pairs == {
        "erk": [("erk", "exact", 0.1), ("uniform", "exact", 0.1)],
        "dense": [("dense", "exact", 1.0), ("uniform", "exact", 0.1), ("erk", "exact", 0.1)],
        "bernoulli": [("erk", "bernoulli", 0.1), ("erk", "exact", 0.1)],
        "scored": [("snip", "scored", 0.1), ("snip", "exact", 0.1)],
    }
    assert tried["erk"].words == "digits, density 0.1, 30 epochs, 1 seed: a smoke test, not a result"
    assert tried["scored"].words.startswith("digits, snip, density 0.1")
    assert next_commands(examine("scored"), "scored", Path("kept")) == [
        "rpbench sweep digits --sampler scored --scheme snip --store kept",
        "rpbench compare 'snip + scored' snip --leaderboard --store kept",
        "rpbench submit snip --sampler scored --board digits --card card.toml --store kept",
    ]


def test_the_comparison_is_of_means_and_says_what_failed() -> None:
    """By hand from published records: the mean over two seeds, and a cell without a result as a sentence."""
    what = trial(examine("erk"), "erk", 2, False)
    one, two = list(published("erk"))[:2]
    failed = one.model_copy(update={"status": "failed", "metrics": {}, "error": "ScoreError: all are equal"})
    text = table(what, {"erk": [one, two], "uniform": [failed]})
    mean = (one.metrics["top1"] + two.metrics["top1"]) / 2
    rows = {line[:18].strip(): line[18:].split() for line in text.splitlines()}
    assert rows["top-1"] == [f"{mean:.2%}", "-"]
    assert rows["weights kept"] == ["7,707", "-"]
    assert text.splitlines()[-1] == "uniform: failed: ScoreError: all are equal"


@pytest.mark.slow
def test_try_trains(tmp_path: Path, rpbench_command: Callable[..., Any]) -> None:
    store = tmp_path / "kept"
    rpbench_command("new", "sampler", "mine", "--to", str(tmp_path))
    done = rpbench_command("try", str(tmp_path / "mine.py"), "--quick", "--store", str(store))
    assert done.returncode == 0, done.stderr
    assert f"records: {store}" in done.stdout
    assert len(list(store.glob("*/record.json"))) == 2
