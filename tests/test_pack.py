"""Cells at once: the same records as alone, and what happens when one dies, is refused, or all are stopped."""

from __future__ import annotations

import json
import os
import signal
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import forked
import pytest
import torch
from click.testing import Result
from forked import Forked
from tape import TapeGraphs

from rpbench.cell import ask
from rpbench.errors import Interrupted
from rpbench.machine import Processes
from rpbench.pack import End, Team, _Worker, run_lanes, run_packed, run_processes
from rpbench.progress import Quiet
from rpbench.run import Outcome, Wish, run_cell, turns
from rpbench.store import CellFolder

Invoke = Callable[..., Result]
SHORT = ("recipe.epochs=2",)


def asked(seed: int, **more: Any) -> dict[str, Any]:
    return {"task": "digits", "seed": seed, "overrides": SHORT, "limit": 500, "limit_test": 60} | more


@dataclass
class Notes:
    """Remembers what it was shown."""

    done: dict[int, list[float]] = field(default_factory=dict)
    ends: dict[int, End] = field(default_factory=dict)

    def at(self, index: int, done: float) -> None:
        self.done.setdefault(index, []).append(done)

    def said(self, index: int, text: str) -> None: ...

    def ended(self, index: int, end: End) -> None:
        assert index not in self.ends
        self.ends[index] = end


def told(outcome: Outcome | None) -> dict[str, Any]:
    """Everything of a cell's result that is not a time."""
    assert outcome is not None
    folder, record = outcome.folder, outcome.record
    files = {p.name: p.read_bytes() for p in folder.glob("*.safetensors")} | {
        "curve": (folder / "curve.jsonl").read_bytes()
    }
    return {"metrics": record.metrics, "last": record.last, "masks": record.masks, "data": record.data} | files


def alone(tmp_path: Path, **cell: Any) -> dict[str, Any]:
    return told(run_cell(ask(**cell), Wish(store=tmp_path / "alone"), Quiet(), Processes()))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.usefixtures("one_thread")
def test_a_cell_is_the_same_alone_in_turns_and_in_a_process(tmp_path: Path, precision: str) -> None:
    cells = [asked(0, precision=precision), asked(1, scheme="snip"), asked(2, model="./drop.py:make")]
    net = tmp_path / "drop.py"
    net.write_text(
        "from torch import nn\n\ndef make(classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, classes))\n"
    )
    cells[2]["model"] = f"{net}:make"
    expected = [alone(tmp_path, **cell) for cell in cells]
    notes = Notes()
    lanes = run_lanes([ask(**c) for c in cells], Wish(store=tmp_path / "turns"), 2, notes, Processes())
    assert [told(end.outcome) for end in lanes] == expected
    assert sorted(notes.ends) == [0, 1, 2]
    assert all(steps == sorted(steps) and steps[-1] == 1.0 for steps in notes.done.values())
    if precision == "fp32":
        ends = run_processes(cells, Wish(store=tmp_path / "processes", packed=2), Team(2), Notes())
        assert [told(end.outcome) for end in ends] == expected
        assert ends[0].outcome is not None
        env = ends[0].outcome.record.env
        assert (env["packed"], env["threads"], env["engine"]) == (2, 1, "eager")


def test_a_recorded_cell_is_the_same_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = alone(tmp_path, **asked(0))
    graphs = TapeGraphs()
    monkeypatch.setattr("rpbench.run.graphs_of", lambda _: graphs)
    outcome = run_cell(ask(**asked(0)), Wish(store=tmp_path / "graph", engine="graph"), Quiet(), Processes())
    assert told(outcome) == expected
    assert outcome.record.env["engine"] == "graph"
    assert graphs.replayed > 2
    first, second = (json.loads(line) for line in (outcome.folder / "curve.jsonl").read_text().splitlines())
    assert second["train_loss"] < first["train_loss"]  # each of its own epoch
    assert second["train_top1"] <= 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="cells share a GPU otherwise")
def test_cells_share_the_threads_and_the_decode_workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: list[Any] = []
    monkeypatch.setattr("rpbench.pack.run_processes", lambda *args: given.append(args))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    cells = [asked(seed) for seed in range(3)]
    for slots in (2, None):
        run_packed(cells, Wish(store=tmp_path), slots, Notes())
    assert [(wish.packed, team) for _, wish, team, _ in given] == [(2, Team(2, 4)), (3, Team(3, 2))]
    shared: list[int] = []
    monkeypatch.setattr("rpbench.run.default_workers", lambda n: shared.append(n) or 1)
    next(turns(ask(**asked(0)), given[1][1], Quiet(), Processes(), []))
    assert shared == [3]


@pytest.fixture
def bad(tmp_path: Path) -> str:
    """A scheme that is refused."""
    path = tmp_path / "bad.py"
    path.write_text(
        "from rpbench import shape_scheme\n\n@shape_scheme\ndef bad(table, density):\n"
        '    """Nothing. https://example.org"""\n    return {}\n'
    )
    return str(path)


def assert_only_the_first_is_refused(ends: list[End]) -> None:
    assert ends[0].outcome is None
    assert ends[0].refused.startswith("no density for conv.weight")
    assert "\n" not in ends[0].refused
    assert ends[1].outcome is not None
    assert ends[1].outcome.record.status == "ok"


def test_a_cell_that_is_refused_takes_no_other_with_it(tmp_path: Path, bad: str) -> None:
    """In turns; in processes: below."""
    cells = [ask(**asked(0, scheme=bad)), ask(**asked(1))]
    assert_only_the_first_is_refused(run_lanes(cells, Wish(store=tmp_path / "runs"), 2, Notes(), Processes()))


def test_a_process_that_dies_takes_one_cell_with_it(tmp_path: Path, bad: str) -> None:
    """Also one with processes of its own, as those that decode images, which outlive it and hold its pipe."""
    deadly = tmp_path / "deadly.py"
    deadly.write_text(
        "import os, signal, time\nfrom multiprocessing import get_context\n\n\ndef make():\n"
        '    get_context("fork").Process(target=time.sleep, args=(60,)).start()\n'
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    start = time.monotonic()
    cells = [asked(0, model=f"{deadly}:make"), asked(0, scheme=bad), asked(1)]
    ends = run_processes(cells, Wish(store=tmp_path / "runs"), Team(1), Notes())
    assert (ends[0].outcome, ends[0].refused) == (None, "its process died (SIGKILL)")
    assert_only_the_first_is_refused(ends[1:])
    assert time.monotonic() - start < 60


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_processes_that_run_packs_end_in_the_same_records(tmp_path: Path) -> None:
    """As on a machine of several GPUs: a process for each, some cells in turns in each."""
    cells = [asked(seed) for seed in range(3)]
    expected = [alone(tmp_path, **cell) for cell in cells]
    notes = Notes()
    ends = run_processes(cells, Wish(store=tmp_path / "packs", packed=2), Team(2, lanes=2), notes)
    assert [told(end.outcome) for end in ends] == expected
    assert sorted(notes.ends) == [0, 1, 2]


def test_every_gpu_has_a_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: list[Any] = []
    monkeypatch.setattr("rpbench.pack.run_processes", lambda *args: given.append(args))
    monkeypatch.setattr(
        "rpbench.machine.Processes", lambda: SimpleNamespace(world=1, device=SimpleNamespace(type="cuda"))
    )
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    cells = [asked(seed) for seed in range(5)]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    run_packed(cells, Wish(store=tmp_path), None, Notes())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,7")
    run_packed(cells, Wish(store=tmp_path), 2, Notes())
    assert [(wish.packed, team) for _, wish, team, _ in given] == [
        (3, Team(2, 4, 3, ("0", "1"))), (2, Team(2, 4, 2, ("3", "5")))
    ]  # fmt: skip


def test_a_process_that_dies_while_it_speaks() -> None:
    here, there = get_context("spawn").Pipe()
    worker = _Worker.__new__(_Worker)
    worker.open, worker.stopped, worker.connection = [3], False, here
    gone = SimpleNamespace(is_alive=lambda: False, join=lambda: None, exitcode=-9)
    worker.process = gone  # type: ignore[assignment]
    there.send(("at", 3, 0.5))
    os.write(there.fileno(), struct.pack("!i", 100) + b"the beginning of a hundred bytes")
    there.close()
    notes = Notes()
    assert list(worker.told(notes)) == [(3, End(None, "its process died (SIGKILL)"))]
    assert notes.done == {3: [0.5]}


def test_what_a_process_says_last_is_heard_though_it_has_gone() -> None:
    here, there = get_context("spawn").Pipe()
    worker = _Worker.__new__(_Worker)
    worker.open, worker.stopped, worker.connection = [3], False, here
    gone = SimpleNamespace(is_alive=lambda: False, join=lambda: None, exitcode=1)
    worker.process = gone  # type: ignore[assignment]
    there.send(("at", 3, 1.0))
    there.send(("ended", 3, End(None, "refused")))
    there.close()
    assert list(worker.told(Notes())) == [(3, End(None, "refused"))]


def test_a_lane_that_breaks_takes_no_other_with_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def turns(cell: Any, wish: Wish, progress: Quiet, *_: Any) -> Any:
        yield
        if cell == "broken":
            raise OSError("no space left\non device")
        return "outcome"

    monkeypatch.setattr("rpbench.run.turns", turns)
    cells: list[Any] = ["broken", "whole"]
    ends = run_lanes(cells, Wish(store=tmp_path), 2, Notes(), Processes())
    assert [(end.outcome, end.refused) for end in ends] == [(None, "OSError: no space left on device"), ("outcome", "")]


def test_a_cell_is_not_trained_twice_by_one_process(tmp_path: Path) -> None:
    cell = CellFolder(tmp_path, "cell")
    cell.create()
    for _ in range(2):
        with cell.lock() as first, CellFolder(tmp_path, "cell").lock() as second:
            assert (first, second) == (True, False)


@pytest.mark.usefixtures("one_thread")
def test_lanes_stop_at_a_signal_with_checkpoints(tmp_path: Path) -> None:
    class Stopping(Notes):
        def at(self, index: int, done: float) -> None:
            super().at(index, done)
            if index == 1 and done > 0.3 and len(self.done[1]) < 100:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)

    cells = [ask(**asked(seed)) for seed in (0, 1, 2)]
    wish = Wish(store=tmp_path / "runs")
    stopping = Stopping()
    with pytest.raises(Interrupted, match="SIGTERM"):
        run_lanes(cells, wish, 2, stopping, Processes())
    assert sorted(stopping.ends) == [0, 1]  # the third was not begun
    assert len(list((tmp_path / "runs").glob("*/checkpoint.safetensors"))) == 2
    ends = run_lanes(cells, wish, 3, Notes(), Processes())
    assert [told(end.outcome) for end in ends] == [alone(tmp_path, **asked(seed)) for seed in (0, 1, 2)]


def test_several_cells_on_the_command_line(tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    schemes = ("--scheme", "erk", "--scheme", "dense", "--density", "0.1", "--density", "0.3")
    few = ("--limit", "500", "--limit-test", "50", "--set", "recipe.epochs=2", "--slots", "1")
    words = ("run", *schemes, *few, "--store", str(tmp_path))
    done = invoke(*words)
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["scheme", "density", "seed", "status", "top-1", "ECE", "time"]
    assert [line.split()[:4] for line in lines[2:5]] == [
        ["erk", "0.1", "0", "ok"], ["erk", "0.3", "0", "ok"], ["dense", "1", "0", "ok"],
    ]  # fmt: skip
    assert max(map(len, lines[:-1])) <= 80  # the last one names the store

    def here(cells: Any, wish: Wish, team: Team, watch: Any) -> list[End]:
        return run_lanes([ask(**c) for c in cells], wish, 1, watch, Processes())

    monkeypatch.setattr("rpbench.pack.run_processes", here)  # nothing is left to run
    again = invoke(*words, "--format", "json")
    assert [record["density"]["requested"] for record in json.loads(again.stdout)] == [0.1, 0.3, 1.0]
    assert again.stderr.count("finished before") == 3


THREE = (
    "--seed", "0", "--seed", "1", "--seed", "2", "--slots", "2", "--limit-test", "50", "--set", "recipe.epochs=400"
)  # fmt: skip


def wait_for_checkpoints(running: Forked, store: Path) -> None:
    """Until two of the three cells have one."""
    deadline = time.monotonic() + 120
    while len(list(store.glob("*/checkpoint.safetensors"))) < 2:
        assert time.monotonic() < deadline
        assert running.poll() is None, running.communicate()
        time.sleep(0.1)


@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGINT])
def test_a_stopped_command_goes_on(tmp_path: Path, number: int) -> None:
    running = forked.run(*THREE, "--store", str(tmp_path))
    wait_for_checkpoints(running, tmp_path)
    running.send_signal(number)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 128 + number, said
    assert said.count("the same command goes on from here") == 3  # both cells, and the command
    assert not list(tmp_path.glob("*/record.json"))
    assert len(list(tmp_path.iterdir())) == 2  # the third was not begun


def test_processes_end_with_checkpoints_when_the_command_dies(tmp_path: Path) -> None:
    running = forked.run(*THREE, "--store", str(tmp_path))
    wait_for_checkpoints(running, tmp_path)
    running.kill()
    running.communicate(timeout=60)
    deadline = time.monotonic() + 60
    for folder in tmp_path.iterdir():
        free = False
        while not free and time.monotonic() < deadline:
            time.sleep(0.05)
            with CellFolder(tmp_path, folder.name).lock() as free:
                pass
        assert free
    assert len(list(tmp_path.glob("*/checkpoint.safetensors"))) == 2
    assert not list(tmp_path.glob("*/record.json"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--density", "0.1", "--sparsity", "0.9"), "not both"),
        (("--scheme", "erk", "--scheme", "nothing"), "nothing"),
        (("--seed", "0", "--seed", "-1"), "whole numbers from 0"),
        (("--slots", "0", "--seed", "0", "--seed", "1"), "--slots"),
    ],
)
def test_bad_grids_are_refused_before_anything_runs(
    tmp_path: Path, words: tuple[str, ...], told: str, invoke: Invoke
) -> None:
    done = invoke("run", *words, "--store", str(tmp_path / "runs"))
    assert done.exit_code == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()
