"""The SLURM launcher without a SLURM: commands that answer from files stand in. tests/test_slurm.py has a real one."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rpbench.cell import ask
from rpbench.errors import Interrupted, UsageError
from rpbench.launch import job as job_module
from rpbench.launch import notes
from rpbench.launch.job import STOPPED, CellsJob
from rpbench.launch.queue import Queued, parse_queue
from rpbench.launch.slurm import SlurmOptions, in_jobs, read_extra, run_slurm
from rpbench.machine import Processes
from rpbench.pack import End
from rpbench.progress import Quiet
from rpbench.run import Outcome, Wish, run_cell

FAST = SlurmOptions(poll=0.01)


def asked(seed: int) -> dict[str, Any]:
    return {"task": "digits", "seed": seed, "overrides": ("recipe.epochs=1",), "limit": 64, "limit_test": 20}


def name(seed: int) -> str:
    return ask(**asked(seed)).run_id({})


@dataclass
class Notes:
    """Remembers what it was shown, and does something when it is told so."""

    told: Callable[[str], None] = lambda text: None
    lines: list[str] = field(default_factory=list)
    done: list[tuple[int, float]] = field(default_factory=list)
    ends: dict[int, End] = field(default_factory=dict)

    def at(self, index: int, done: float) -> None:
        self.done.append((index, done))

    def said(self, index: int, text: str) -> None:
        self.lines.append(text)
        self.told(text)

    def ended(self, index: int, end: End) -> None:
        assert index not in self.ends
        self.ends[index] = end


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What squeue says: a file for each of its calls, the last one again and again. sbatch keeps scripts."""
    place = tmp_path / "bin"
    place.mkdir()
    said = tmp_path / "queue"
    said.mkdir()
    scripts = {
        "squeue": f'cd {said}; n=$(cat n 2>/dev/null || echo 0); echo $((n + 1)) > n\n'
        'while [ ! -f "$n" ]; do n=$((n - 1)); [ "$n" -ge 0 ] || exit 0; done; cat "$n"',
        "sbatch": f'cp "$1" {tmp_path}/script; echo Submitted batch job 12',
        "srun": "exit 1",
    }  # fmt: skip
    for program, script in scripts.items():
        (place / program).write_text(f"#!/bin/sh\n{script}\n")
        (place / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")
    return said


def noted(store: Path, *groups: list[str]) -> list[notes.Job]:
    return notes.new_array(notes.folder_of(store), groups)


def says(queue: Path, *looks: str) -> None:
    for n, text in enumerate(looks):
        (queue / str(n)).write_text(text)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"minutes": 0}, "minutes 0 is less than 1"),
        ({"pack": -1}, "pack -1 is less than 1"),
        ({"gpus": 2}, "2 gpus for a job of 1 cells"),
        ({"memory": 0.0}, "memory of 0 GB"),
        ({"extra": {"time": "5"}}, "'time' has an option of its own: minutes"),
        ({"extra": {"cpus-per-task": "5"}}, "has an option of its own: cpus"),
        ({"extra": {"signal": "USR2"}}, "'signal' is set by rpbench"),
    ],
)
def test_options_that_cannot_be(given: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        SlurmOptions(**given)


def test_further_options_are_read() -> None:
    read = read_extra(["account=me", "--mail-user=a@b=c", "exclusive"])
    assert read == {"account": "me", "mail_user": "a@b=c", "exclusive": True}
    for wrong in ("", "=3", "a b=3"):
        with pytest.raises(UsageError, match="is not KEY=VALUE"):
            read_extra([wrong])


def test_lines_of_squeue() -> None:
    text = (
        "12_0|rpbench-a|RUNNING|None\n12_10|rpbench-a|PENDING|Resources\n13|rpbench-b|CANCELLED|a|b\n14_[2-3]|c|X|\n\n"
    )
    assert parse_queue(text) == {
        ("rpbench-a", 0): Queued("12_0", "RUNNING", "None"),
        ("rpbench-a", 10): Queued("12_10", "PENDING", "Resources"),
        ("rpbench-b", 0): Queued("13", "CANCELLED", "a|b"),
    }


def test_a_machine_without_slurm_or_submitit(tmp_path: Path, queue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wish = Wish(store=tmp_path / "runs")
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UsageError, match=r"pip install 'rpbench\[slurm\]'"):
        run_slurm([asked(0)], wish, FAST, Notes())
    assert not notes.all_jobs(notes.folder_of(wish.store))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="no 'sbatch' on PATH"):
        run_slurm([asked(0)], wish, FAST, Notes())


def test_what_is_submitted(tmp_path: Path, queue: Path) -> None:
    pytest.importorskip("submitit")
    options = SlurmOptions(
        partition="short", minutes=30, cpus=4, gpus=1, memory=7.5, parallelism=2, pack=2, poll=0.01,
        extra=read_extra(["account=me", "exclusive"]),
    )  # fmt: skip
    said: list[str] = []
    ends = run_slurm([asked(seed) for seed in range(5)], Wish(store=tmp_path / "runs"), options, Notes(), said.append)
    assert [end.refused.split(":")[0] for end in ends] == ["its SLURM job ended without a result"] * 5
    assert said == ["SLURM job 12: 3 jobs for 5 cells (scancel 12 ends them)"]
    script = (tmp_path / "script").read_text().splitlines()
    (array,) = (tmp_path / "runs" / ".slurm").glob("rpbench-*")
    for line in (
        "array=0-2%2", "partition=short", "time=30", "cpus-per-task=4", "gpus-per-node=1", "mem=7680MB", "requeue",
        "signal=TERM@90", f"job-name={array.name}", "account=me", "exclusive",
    ):  # fmt: skip
        assert f"#SBATCH --{line}" in script
    assert "export OMP_NUM_THREADS=4" in script
    assert "--cpus-per-task=4" in script[-1]
    assert json.loads((array / "cells.json").read_text()) == [[name(0), name(1)], [name(2), name(3)], [name(4)]]
    assert len(list(array.glob("12_*_submitted.pkl"))) == 3


def test_jobs_in_the_queue_are_watched_and_finished_cells_shown(tmp_path: Path, queue: Path) -> None:
    """Cell 0 is finished, 1 and 2 are in a job that runs; sbatch would give itself away by a new note."""
    store = tmp_path / "runs"
    first = run_cell(ask(**asked(0)), Wish(store=store), Quiet(), Processes())
    over, job = noted(store, [name(1)]), noted(store, [name(9)], [name(1), name(2)])[1]
    (store / name(1)).mkdir()
    (store / name(1) / "alive.json").write_text(
        json.dumps({"done": 0.25, "time": 0.0, "since": 0.0, "host": "n1", "pid": 1, "cell": {}})
    )
    running = f"7_0|{over[0].array.name}|FAILED|\n8_0|{job.array.name}|RUNNING|\n8_1|{job.array.name}|"
    says(
        queue,
        running + "RUNNING|",
        running + "RUNNING|",
        running + "RUNNING|",
        running + "PENDING|BeginTime",
        running + "RUNNING|",
    )

    def go_on(text: str) -> None:
        if text.startswith("note"):
            notes.tell(job, notes.Ended(name(1), "", refused="it was\nrefused"))
            job.ended.write_text(job.ended.read_text() + '{"cell": "half of a li')
            notes.tell(job, notes.Ended(name(2), first.folder.name))

    watch = Notes(go_on)
    cells = [asked(seed) for seed in range(4)]
    assert in_jobs(cells, store) == [False, True, True, False]
    assert in_jobs(cells, tmp_path) == [False] * 4
    ends = run_slurm(cells[:3], Wish(store=store), FAST, watch)
    assert ends[0] == End(Outcome(first.record, first.folder.resolve(), found=True))
    assert ends[1] == End(None, "it was\nrefused")
    assert ends[2] == End(Outcome(first.record, first.folder.resolve()))
    assert watch.ends == dict(enumerate(ends))
    assert (
        watch.lines
        == ["job 8_1 is running"] * 2 + ["note: job 8_1 was stopped and waits to go on from its checkpoint"] * 2
    )
    assert set(watch.done) == {(1, 0.25)}
    assert len(list((store / ".slurm").glob("rpbench-*"))) == 2


@pytest.mark.parametrize(
    ("state", "log", "told"),
    [
        ("CANCELLED", "", "SLURM job 5 was cancelled; the same command goes on from its checkpoint"),
        ("TIMEOUT", "", "SLURM job 5 was ended at its time limit"),
        ("OUT_OF_MEMORY", "", "SLURM job 5 used more memory than it was given"),
        ("PREEMPTED", "", "SLURM job 5 was preempted and not requeued"),
        ("NODE_FAIL", "", "the node of SLURM job 5 failed"),
        ("FAILED", "", "SLURM job 5 ended without a result: failed ("),
        (
            "FAILED",
            "Traceback\nValueError: no\nsrun: error: vm\n",
            "SLURM job 5 ended without a result: ValueError: no (",
        ),
        (None, "ValueError: no\n", "SLURM job 5 ended without a result: ValueError: no ("),
    ],
)
def test_jobs_that_do_not_tell(tmp_path: Path, queue: Path, state: str | None, log: str, told: str) -> None:
    store = tmp_path / "runs"
    (job,) = noted(store, [name(0)])
    (job.array / "5_0_log.err").write_text(log)
    running = f"5|{job.array.name}|RUNNING|None"
    says(queue, running, running, running.replace("RUNNING", state) if state else "")
    ends = run_slurm([asked(0)], Wish(store=store), FAST, Notes())
    assert ends[0].refused.startswith(told)


def test_a_held_job_is_pointed_out(tmp_path: Path, queue: Path) -> None:
    store = tmp_path / "runs"
    (job,) = noted(store, [name(0)])
    held = f"5|{job.array.name}|PENDING|launch failed requeued held"
    says(queue, held, held, held, held.replace("PENDING", "CANCELLED"))
    watch = Notes()
    run_slurm([asked(0)], Wish(store=store), FAST, watch)
    assert watch.lines == [
        "note: job 5 is held (launch failed requeued held): 'scontrol release 5' lets it go on"
    ]  # fmt: skip


def test_a_signal_ends_the_watching_and_says_how_to_end_the_jobs(tmp_path: Path, queue: Path) -> None:
    store = tmp_path / "runs"
    (job,) = noted(store, [name(0)])
    says(queue, f"5|{job.array.name}|RUNNING|None")
    watch = Notes(lambda text: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted, match="goes on with job 5: the same command watches again, 'scancel 5' ends it"):
        run_slurm([asked(0)], Wish(store=store), FAST, watch)


class Gone(Exception):
    """What submitit's handler does: it does not come back."""


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a job of two cells with another `run_packed`, in a SLURM that thinks it is in some state."""

    def handler(number: int, frame: Any) -> None:
        raise Gone

    def call(run_packed: Callable[..., Any], state: str = "RUNNING", **wish: Any) -> notes.Job:
        (job,) = noted(tmp_path / "runs", ["a", "b"])
        monkeypatch.setattr("rpbench.pack.run_packed", run_packed)
        monkeypatch.setattr(job_module, "_state", lambda: state)
        before = signal.signal(signal.SIGTERM, handler)
        try:
            CellsJob(job, (asked(0), asked(1)), vars(Wish(store=tmp_path / "runs", **wish)))()
        finally:
            signal.signal(signal.SIGTERM, before)
        return job

    return call


def test_a_job_tells_how_its_cells_ended(inside: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "6")
    given: list[Any] = []

    def run_packed(cells: Any, wish: Wish, slots: int, watch: Any, apart: bool, cores: int) -> None:
        assert apart
        given.extend([len(cells), slots, cores, wish.force])
        record: Any = type("Record", (), {"status": "failed", "error": "no"})
        watch.ended(1, End(Outcome(record, tmp_path / "folder")))
        watch.ended(0, End(None, "refused"))

    job = inside(run_packed, force=True)
    assert given == [2, 2, 6, True]
    assert notes.told(job) == {"b": notes.Ended("b", "folder"), "a": notes.Ended("a", "", refused="refused")}
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")  # --force is for the first time only
    inside(run_packed, force=True)
    assert given[-1] is False


def test_a_job_that_cannot_be_is_told_for_every_cell(inside: Any) -> None:
    def run_packed(*_: Any, **__: Any) -> None:
        raise UsageError("nothing\nhere")

    assert {ended.refused for ended in notes.told(inside(run_packed)).values()} == {"nothing here"}


@pytest.mark.parametrize(("state", "gone"), [("RUNNING", Gone), ("COMPLETING", SystemExit), ("", SystemExit)])
def test_a_stopped_job_is_requeued_unless_slurm_has_decided(inside: Any, state: str, gone: type[BaseException]) -> None:
    """A job that is being cancelled must not bring itself back."""
    kept: list[Any] = []

    def run_packed(cells: Any, wish: Wish, slots: int, watch: Any, apart: bool, cores: int) -> None:
        watch.ended(0, End(None, "stopped by SIGTERM; the same command goes on from here"))
        kept.append(watch)
        raise Interrupted(signal.SIGTERM)

    with pytest.raises(gone) as ended:
        inside(run_packed, state)
    if gone is SystemExit:
        assert ended.value.code == STOPPED  # type: ignore[attr-defined]
    assert not notes.told(kept[0].job)  # a cell that was stopped has not ended
