"""Waiting for the ends of cells that SLURM's jobs work on."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rpbench.errors import Interrupted, StoreError, UsageError
from rpbench.heartbeat import read_sign
from rpbench.launch import notes
from rpbench.launch.queue import Queued, read_queue
from rpbench.signals import noted_signals

if TYPE_CHECKING:
    from rpbench.pack import End, Watch


class Watching:
    """Waits for the ends of cells."""

    def __init__(self, cells: Sequence[str], store: Path, poll: float, watch: Watch) -> None:
        self.store, self.poll, self.watch = store, poll, watch
        self.ends: list[End | None] = [None] * len(cells)
        self.places: dict[str, list[int]] = {}
        for index, cell in enumerate(cells):
            self.places.setdefault(cell, []).append(index)
        self.jobs: list[notes.Job] = []
        self.seen: dict[tuple[str, int], Queued] = {}
        self.missed: Counter[tuple[str, int]] = Counter()

    @property
    def missing(self) -> list[str]:
        """Cells that have not ended."""
        return [cell for cell, places in self.places.items() if self.ends[places[0]] is None]

    def find_finished(self) -> None:
        """End the cells that have a record already."""
        from rpbench.store import FINISHED

        for cell in self.missing:
            with contextlib.suppress(StoreError):  # whoever works on the cell will say what is wrong with its record
                self._end_with_record(cell, cell, True, FINISHED)

    def to_the_end(self, jobs: list[notes.Job]) -> list[End]:
        self.jobs = jobs
        with noted_signals() as caught:
            while self.missing and not caught:
                self._look()
                wake = time.monotonic() + self.poll
                while self.missing and not caught and time.monotonic() < wake:
                    time.sleep(min(0.2, self.poll))
        ends = [end for end in self.ends if end is not None]
        if len(ends) < len(self.ends):
            raise Interrupted(caught[-1], self._left())
        return ends

    def _left(self) -> str:
        those = " ".join(sorted({self.seen[job.key].array for job in self.jobs if job.key in self.seen}))
        if not those:
            return "stopped watching; SLURM goes on with the jobs: the same command watches again"
        again = f"the same command watches again, 'scancel {those}' ends it"
        return f"stopped watching; SLURM goes on with job {those}: {again}"

    def _look(self) -> None:
        """One look at the queue and at what the jobs have told."""
        self.jobs = [job for job in self.jobs if self._open(job)]
        try:
            queue = read_queue({job.array.name for job in self.jobs})
        except UsageError:  # a controller that restarts: what the jobs tell is still heard
            queue = None
        for job in self.jobs:
            self._hear(job)
            if queue is None or not self._open(job):
                continue
            known = queue.get(job.key)
            if known and not known.over:
                self._goes_on(job, known)
            else:
                self._is_over(job, known)

    def _open(self, job: notes.Job) -> list[str]:
        """The cells of a job that have not ended."""
        return [cell for cell in job.cells if cell in self.places and self.ends[self.places[cell][0]] is None]

    def _hear(self, job: notes.Job) -> None:
        """End the cells that the job says have ended."""
        from rpbench.pack import End

        ended = notes.told(job)
        for cell in self._open(job):
            if cell in ended and ended[cell].refused:
                self._end(cell, End(None, ended[cell].refused))
            elif cell in ended:
                try:
                    self._end_with_record(cell, ended[cell].run_id, ended[cell].found)
                except StoreError as error:
                    self._end(cell, End(None, str(error)))

    def _goes_on(self, job: notes.Job, known: Queued) -> None:
        before = self.seen.get(job.key)
        self.seen[job.key], self.missed[job.key] = known, 0
        text = ""
        if known.state == "PENDING" and before is not None and before.state != "PENDING":
            text = f"note: job {known.number} was stopped and waits to go on from its checkpoint"
        elif known.state == "PENDING" and "held" in known.reason.lower() and (not before or before != known):
            text = f"note: job {known.number} is held ({known.reason}): 'scontrol release {known.number}' lets it go on"
        elif before is None or before.state != known.state:
            text = f"job {known.number} is {known.state.lower()}"
        for cell in self._open(job):
            sign = read_sign(self.store / cell)
            for index in self.places[cell]:
                if text:
                    self.watch.said(index, text)
                if sign is not None:
                    self.watch.at(index, sign.done)

    def _is_over(self, job: notes.Job, known: Queued | None) -> None:
        """A job has gone and has not told how its cells ended. It is asked once more: files may come late."""
        from rpbench.pack import End

        self.missed[job.key] += 1
        if self.missed[job.key] < 2:
            return
        last = known or self.seen.get(job.key) or Queued("", "")
        why = _why(job, last.number, known.state if known else "")
        for cell in self._open(job):
            self._end(cell, End(None, why))

    def _end_with_record(self, cell: str, run_id: str, found: bool, states: Sequence[str] | None = None) -> None:
        """End a cell whose record is in the folder `run_id`, if it is one of those states."""
        from rpbench.pack import End
        from rpbench.run import Outcome
        from rpbench.store import CellFolder

        place = CellFolder(self.store, run_id)
        record = place.record()
        if record is not None and (states is None or record.status in states):
            self._end(cell, End(Outcome(record, place.folder, found)))

    def _end(self, cell: str, end: End) -> None:
        for index in self.places[cell]:
            self.ends[index] = end
            self.watch.ended(index, end)


def _why(job: notes.Job, number: str, state: str) -> str:
    """Why a job has ended without telling."""
    name = f"SLURM job {number}" if number else "its SLURM job"
    if state == "CANCELLED":
        return f"{name} was cancelled; the same command goes on from its checkpoint"
    if state in ("TIMEOUT", "DEADLINE"):
        return f"{name} was ended at its time limit; the same command goes on from its checkpoint"
    if state == "PREEMPTED":
        return f"{name} was preempted and not requeued; the same command goes on from its checkpoint"
    if state == "OUT_OF_MEMORY":
        return f"{name} used more memory than it was given: ask for more"
    if state == "NODE_FAIL":
        return f"the node of {name} failed; the same command goes on from its checkpoint"
    log = job.array / f"{number}_0_log.err"
    return f"{name} ended without a result: {_last_line(log) or state.lower() or 'nothing in its log'} ({log})"


def _last_line(log: Path) -> str:
    """The last line of a job's own in its log."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    own = [line.strip() for line in lines if line.strip() and not line.startswith(("srun:", "slurmstepd"))]
    return own[-1] if own else ""
