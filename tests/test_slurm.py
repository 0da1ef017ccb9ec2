"""Cells on a real SLURM: one of this machine, started for these tests (tests/slurm/cluster.sh says how to install it).

Every test compares with the same cells run here: whatever SLURM does to a job, the record is the same.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rpbench.errors import UsageError
from rpbench.launch.slurm import SlurmOptions, run_slurm
from rpbench.pack import End, Team, run_processes
from rpbench.run import Wish

MISSING = [
    p
    for p in ("munged", "slurmctld", "slurmd", "sbatch")
    if not shutil.which(p, path=os.environ["PATH"] + ":/usr/sbin")
]
MISSING += [] if importlib.util.find_spec("submitit") else ["submitit"]
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(MISSING), reason=f"not here: {', '.join(MISSING)} (see tests/slurm/cluster.sh)"),
]
CLUSTER = Path(__file__).with_name("slurm") / "cluster.sh"
LONG = 40  # epochs: some fifteen seconds


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    folder = tempfile.mkdtemp(prefix="rpbench-slurm-")  # not pytest's: munge wants its socket where all may go
    started = subprocess.run([CLUSTER, "start", folder], stdout=subprocess.PIPE, text=True)
    assert started.returncode == 0, "the cluster has not started"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", started.stdout.strip().partition("=")[2])
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
        subprocess.run([CLUSTER, "stop", folder], check=True)
        shutil.rmtree(folder, ignore_errors=True)


def asked(seed: int, epochs: int = 2, **more: Any) -> dict[str, Any]:
    return {"task": "digits", "seed": seed, "overrides": (f"recipe.epochs={epochs}",), "limit_test": 60} | more


@dataclass
class Notes:
    """Remembers what it was shown."""

    lines: list[str] = field(default_factory=list)
    ends: dict[int, End] = field(default_factory=dict)

    def at(self, index: int, done: float) -> None: ...

    def said(self, index: int, text: str) -> None:
        self.lines.append(text)

    def ended(self, index: int, end: End) -> None:
        assert index not in self.ends
        self.ends[index] = end


def told(end: End) -> dict[str, Any]:
    """Everything of a cell's result that is not a time."""
    assert end.outcome is not None, end.refused
    folder, record = end.outcome.folder, end.outcome.record
    files = {p.name: p.read_bytes() for p in folder.glob("*.safetensors")}
    curve = (folder / "curve.jsonl").read_bytes() if files else b""
    return files | {
        "run_id": record.run_id, "status": record.status, "error": record.error, "metrics": record.metrics,
        "last": record.last, "masks": record.masks, "data": record.data, "curve": curve,
        "threads": record.env["threads"],
    }  # fmt: skip


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A long cell that nothing happens to."""
    store = tmp_path_factory.mktemp("unbroken")
    return told(run_processes([asked(0, LONG)], Wish(store=store), Team(1), Notes())[0])


def options(**given: Any) -> SlurmOptions:
    return SlurmOptions(**{"minutes": 5, "poll": 0.5} | given)


def until(true: Callable[[], Any], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def epochs(store: Path) -> int:
    """Epochs that the store's one cell has behind it."""
    return sum(p.read_text().count("\n") for p in store.glob("*/curve.jsonl"))


def arrays(store: Path) -> list[Path]:
    return list((store / ".slurm").glob("rpbench-*"))


def number(store: Path) -> str:
    """SLURM's number of the store's newest array."""
    newest = max(arrays(store), key=lambda p: p.stat().st_ctime)
    (script,) = newest.glob("*_submission.sh")
    return script.name.partition("_")[0]


def log(store: Path) -> str:
    return "".join(p.read_text() for p in store.glob(".slurm/*/*_log.out"))


def slurm(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


class Watching(threading.Thread):
    """run_slurm in a thread of its own, so that things can be done to its jobs."""

    def __init__(self, store: Path, **given: Any) -> None:
        super().__init__(daemon=True)
        self.store, self.given = store, given
        self.notes, self.said, self.ends = Notes(), list[str](), list[End]()
        self.start()

    def run(self) -> None:
        wish = Wish(store=self.store)
        self.ends = run_slurm([asked(0, LONG)], wish, options(**self.given), self.notes, self.said.append)

    def end(self) -> End:
        self.join(150)
        assert not self.is_alive()
        return self.ends[0]


def test_cells_are_the_same_as_here_and_one_that_fails_takes_no_other_with_it(tmp_path: Path) -> None:
    """Two jobs of two cells: ok and data-driven; failed while it trains, and refused."""
    (tmp_path / "breaks.py").write_text(
        "import torch\nfrom torch import nn\n\nclass Breaks(nn.Module):\n    def __init__(self, classes):\n"
        "        super().__init__()\n        self.line = nn.Linear(64, classes)\n\n"
        "    def forward(self, x):\n        if len(x) > 2:\n            raise ValueError('no more than 2')\n"
        "        return self.line(x.flatten(1))\n\ndef make(classes):\n    return Breaks(classes)\n"
    )
    (tmp_path / "bad.py").write_text(
        "from rpbench import shape_scheme\n\n@shape_scheme\ndef bad(table, density):\n"
        '    """Nothing. https://example.org"""\n    return {}\n'
    )
    cells = [
        asked(0), asked(1, scheme="snip"), asked(0, model=f"{tmp_path / 'breaks.py'}:make"),
        asked(0, scheme=str(tmp_path / "bad.py")),
    ]  # fmt: skip
    said: list[str] = []
    notes = Notes()
    ends = run_slurm(cells, Wish(store=tmp_path / "slurm"), options(pack=2, cpus=2), notes, said.append)
    here = run_processes(cells, Wish(store=tmp_path / "here"), Team(2), Notes())
    assert [told(end) for end in ends[:3]] == [told(end) for end in here[:3]]
    assert [end.outcome.record.status for end in ends[:3] if end.outcome] == ["ok", "ok", "failed"]
    assert ends[3] == here[3]
    assert ends[3].refused.startswith("no density for")
    assert notes.ends == dict(enumerate(ends))
    job = number(tmp_path / "slurm")
    assert said == [f"SLURM job {job}: 2 jobs for 4 cells (scancel {job} ends them)"]
    assert f"job {job}_0 is running" in notes.lines


def test_a_preempted_and_requeued_cell_ends_as_an_unbroken_one(tmp_path: Path, unbroken: dict[str, Any]) -> None:
    """One without a grace period, where SLURM requeues; one with, where the job must; then an operator's requeue."""
    watching = [Watching(tmp_path / partition, partition=partition) for partition in ("low", "grace")]
    until(lambda: all(epochs(each.store) >= 3 for each in watching))
    slurm("sbatch", "--partition=high", "--cpus-per-task=2", f"--output={tmp_path}/urgent", "--wrap=squeue; sleep 1")
    until(lambda: all("going on from epoch" in log(each.store) for each in watching))
    low = watching[0].store
    mark = epochs(low)
    until(lambda: epochs(low) > mark + 1)
    slurm("scontrol", "requeue", number(low))
    assert [told(each.end()) for each in watching] == [unbroken, unbroken]
    assert [log(each.store).count("going on from epoch") for each in watching] == [2, 1]
    assert "Requeued job" in log(watching[1].store)  # submitit's word; in the other SLURM had requeued it already
    assert "Requeued job" not in log(low)
    stopped = f"note: job {number(low)} was stopped and waits to go on from its checkpoint"
    assert watching[0].notes.lines.count(stopped) == 2
    assert (tmp_path / "urgent").read_text().count("rpbench") == 2  # both were still there, behind the urgent one


def test_jobs_are_slurms_and_a_second_call_finds_them(tmp_path: Path, unbroken: dict[str, Any]) -> None:
    """Ctrl-C, SIGKILL, a third call that watches on; scancel; a fourth that submits anew and goes on."""
    script = tmp_path / "watch.py"
    script.write_text(
        "import json, sys\nfrom pathlib import Path\nfrom test_slurm import Notes, options\n"
        "from rpbench.launch.slurm import run_slurm\nfrom rpbench.run import Wish\n"
        "cells = json.loads(sys.argv[2])\n"
        "run_slurm(cells, Wish(store=Path(sys.argv[1])), options(), Notes(), lambda text: print(text, flush=True))\n"
    )
    store = tmp_path / "runs"
    command = [sys.executable, script, store, json.dumps([asked(0, LONG)])]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}

    def begun() -> tuple[subprocess.Popen[str], str]:
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
        assert running.stdout is not None
        return running, running.stdout.readline()

    first, said = begun()
    job = number(store)
    assert said == f"SLURM job {job}: 1 job for 1 cell (scancel {job} ends them)\n"
    until(lambda: epochs(store) >= 1)
    first.send_signal(signal.SIGINT)
    last = first.communicate(timeout=60)[1].splitlines()[-1]
    assert f"stopped watching; SLURM goes on with job {job}: " in last
    assert f"'scancel {job}' ends it" in last

    second, said = begun()
    assert said == "1 job of an earlier command still queued or running: watching, not submitting again\n"
    second.kill()
    second.communicate()
    third = Watching(store)
    until(lambda: third.notes.lines)
    assert third.notes.lines == [f"job {job} is running"]
    assert len(arrays(store)) == 1
    slurm("scancel", job)
    end = third.end()
    assert (end.outcome, end.refused) == (
        None, f"SLURM job {job} was cancelled; the same command goes on from its checkpoint"
    )  # fmt: skip
    fourth = Watching(store)
    assert told(fourth.end()) == unbroken
    assert len(arrays(store)) == 2
    assert "going on from epoch" in log(store)


def test_a_job_that_is_near_its_time_limit_is_requeued(tmp_path: Path) -> None:
    store = tmp_path / "runs"
    long = asked(0, 4000)
    ends: list[End] = []
    notes = Notes()
    watching = threading.Thread(
        target=lambda: ends.extend(run_slurm([long], Wish(store=store), options(minutes=1), notes)), daemon=True
    )
    watching.start()
    until(lambda: "going on from epoch" in log(store))
    assert "this job is timed-out" in log(store)
    slurm("scancel", number(store))
    watching.join(60)
    assert "was cancelled" in ends[0].refused


def test_a_job_that_dies_is_told_with_the_place_of_its_log(tmp_path: Path) -> None:
    deadly = tmp_path / "deadly.py"
    deadly.write_text(
        "import os, signal, sys\n\n\ndef make():\n"
        '    print("so this is the end", file=sys.stderr, flush=True)\n    for who in (os.getppid(), os.getpid()):\n'
        "        os.kill(who, signal.SIGKILL)\n"
    )
    store = tmp_path / "runs"
    ends = run_slurm([asked(0, model=f"{deadly}:make"), asked(1)], Wish(store=store), options(), Notes())
    assert ends[0].refused.startswith(f"SLURM job {number(store)}_0 ended without a result: so this is the end (")
    assert Path(ends[0].refused.rpartition("(")[2][:-1]).is_file()
    assert ends[1].word.startswith("top-1")


def test_what_slurm_refuses_is_one_sentence_and_leaves_no_note(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="SLURM takes no such jobs: .*invalid partition specified: nowhere"):
        run_slurm([asked(0)], Wish(store=tmp_path / "runs"), options(partition="nowhere"), Notes())
    with pytest.raises(UsageError, match="unrecognized option"):
        run_slurm([asked(0)], Wish(store=tmp_path / "runs"), options(extra={"colour": "red"}), Notes())
    assert not arrays(tmp_path / "runs")
