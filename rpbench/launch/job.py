"""What runs inside a SLURM job: a few cells, until they have ended or SLURM wants the machine back.

SIGTERM is the only word: SLURM says it before a time limit (`--signal`), at preemption, at a requeue and at a cancel.
The cells keep checkpoints and the job ends. Whether it comes back is SLURM's decision where it has made one; where
the job is still meant to run (a time limit that is near, a grace period), submitit requeues it.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rpbench.errors import Interrupted, RpbenchError
from rpbench.launch import notes
from rpbench.signals import noted_signals

if TYPE_CHECKING:
    from rpbench.pack import Asked, End

STOPPED = 75  # EX_TEMPFAIL: exit code of a job that has kept its checkpoints and has more to do


@dataclass(frozen=True)
class CellsJob:
    """Cells to be trained at once; submitit pickles it, calls it on a node, and calls it again after a requeue.

    All that it would have to remember lies in the store, so what is requeued is what was submitted.
    """

    job: notes.Job
    asked: tuple[Asked, ...]
    wish: dict[str, Any]  # of a Wish: that one's module imports torch, and submitit would not hear signals meanwhile

    def __call__(self) -> None:
        # submitit's handler acts at once, and even on a job that was cancelled: here checkpoints come first
        requeue: Any = signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with noted_signals() as caught:
            import rpbench.run  # noqa: F401 - takes seconds, in which a signal may come

            stopped = bool(caught)
            if not stopped:
                try:
                    self._run()
                except Interrupted:
                    stopped = True
            if stopped and _state() == "RUNNING":
                requeue(signal.SIGTERM, None)  # does not return; signals that come meanwhile are still only noted
            if stopped:
                raise SystemExit(STOPPED)  # no result for submitit: it would count as the end

    def checkpoint(self) -> Any:
        """What submitit is to requeue."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _run(self) -> None:
        from rpbench.pack import run_packed
        from rpbench.run import Wish

        watch = _Teller(self.job)
        again = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        wish = Wish(**self.wish | {"force": self.wish["force"] and not again})  # or each requeue would begin anew
        cores = int(os.environ.get("SLURM_CPUS_PER_TASK") or 1)
        try:
            run_packed(self.asked, wish, len(self.asked), watch, apart=len(self.asked) > 1, cores=cores)
        except Interrupted:
            raise
        except RpbenchError as error:
            watch.refuse(range(len(self.asked)), " ".join(str(error).split()))
        watch.refuse_rest()


class _Teller:
    """Notes the ends of cells. One without a record may be an interruption: it is kept back until that is known."""

    def __init__(self, job: notes.Job) -> None:
        self.job = job
        self.refused: dict[int, str] = {}

    def at(self, index: int, done: float) -> None: ...

    def said(self, index: int, text: str) -> None:
        print(f"{self.job.cells[index]}: {text}", flush=True)

    def ended(self, index: int, end: End) -> None:
        self.said(index, end.word)
        if end.outcome is None:
            self.refused[index] = end.refused
        else:
            outcome = end.outcome
            notes.tell(self.job, notes.Ended(self.job.cells[index], outcome.folder.name, outcome.found))

    def refuse(self, indices: Sequence[int], why: str) -> None:
        self.refused |= dict.fromkeys(indices, why)

    def refuse_rest(self) -> None:
        """The cells that have no record will have none."""
        for index, why in self.refused.items():
            notes.tell(self.job, notes.Ended(self.job.cells[index], "", refused=why))


def _state() -> str:
    """What SLURM takes this job's state to be; RUNNING is one that it has not decided to end."""
    asked = ["squeue", "--noheader", "--format=%T", f"--jobs={os.environ.get('SLURM_JOB_ID', '')}"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, timeout=15).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return "UNKNOWN"
