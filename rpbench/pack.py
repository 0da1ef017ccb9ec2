"""Several cells at once on one machine: processes of one thread each on a CPU, streams of one process on a GPU.

Small nets leave most of a machine idle when they are trained one by one. Each cell is the same training, and ends in
the same record, that it is and has alone on as many threads.
"""

from __future__ import annotations

import contextlib
import os
import signal
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, Protocol

from rpbench.errors import Interrupted, RpbenchError, UsageError
from rpbench.progress import Quiet
from rpbench.signals import noted_signals

if TYPE_CHECKING:
    from rpbench.cell import Cell
    from rpbench.machine import Processes
    from rpbench.run import Outcome, Turns, Wish
    from rpbench.train import State

LANES = 4  # cells at once on a GPU unless told otherwise
MOST_LANES = 16  # torch hands out 32 streams, a lane takes two
Asked = dict[str, Any]  # the arguments of `rpbench.cell.ask`


@dataclass(frozen=True)
class End:
    """How a cell ended: with an outcome, or refused for a reason before there was one."""

    outcome: Outcome | None
    refused: str = ""

    @property
    def word(self) -> str:
        """How it ended, in a few words."""
        if self.outcome is None:
            return self.refused
        record = self.outcome.record
        if record.status != "ok":
            return f"{record.status}: {record.error}"
        return f"top-1 {record.metrics['top1']:.2%}" + (", finished before" if self.outcome.found else "")


class Watch(Protocol):
    """Shown how the cells go on; cells are known by their place in the list."""

    def at(self, index: int, done: float) -> None:
        """So much of a cell's training is done, in [0, 1]."""
        ...

    def said(self, index: int, text: str) -> None:
        """A cell has something to say."""
        ...

    def ended(self, index: int, end: End) -> None:
        """A cell has ended."""
        ...


def run_packed(asked: Sequence[Asked], wish: Wish, slots: int | None, watch: Watch) -> list[End]:
    """Run cells `slots` at a time in the way of this machine: lanes on a GPU, else processes that divide the threads.

    Raises UsageError for a cell that cannot be asked for before any is run; Interrupted after a signal.
    """
    from rpbench.cell import ask
    from rpbench.machine import Processes

    cells = [ask(**each) for each in asked]
    processes = Processes()
    if processes.world > 1:
        raise UsageError(f"{len(cells)} cells are run at once by one process, not by {processes.world}: no launcher")
    if processes.device.type == "cuda":
        slots = min(len(cells), slots or LANES, MOST_LANES)
        return run_lanes(cells, replace(wish, packed=slots), slots, watch, processes)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    slots = min(len(cells), slots or cores)
    return run_processes(asked, replace(wish, packed=slots), slots, watch, max(1, cores // slots))


def run_lanes(cells: Sequence[Cell], wish: Wish, slots: int, watch: Watch, processes: Processes) -> list[End]:
    """Run cells in this process, `slots` at a time, a step of each in turn; on a GPU each has a stream of its own.

    Raises Interrupted after a signal, when every cell that was being trained has its checkpoint.
    """
    ends: list[End] = [End(None, "not begun")] * len(cells)
    waiting = deque(enumerate(cells))
    lanes: deque[_Lane] = deque()
    with noted_signals() as caught:
        while lanes or (waiting and not caught):
            while waiting and len(lanes) < slots and not caught:
                index, cell = waiting.popleft()
                lanes.append(_Lane(index, cell, wish, watch, processes, caught))
            lane = lanes.popleft()
            end = lane.advance()
            if end is None:
                lanes.append(lane)
            else:
                ends[lane.index] = end
                watch.ended(lane.index, end)
    if caught and any(end.outcome is None for end in ends):
        raise Interrupted(caught[-1])
    return ends


class _Lane:
    """A cell that takes turns with others."""

    def __init__(
        self, index: int, cell: Cell, wish: Wish, watch: Watch, processes: Processes, caught: list[int]
    ) -> None:
        import torch

        from rpbench.run import turns

        self.index = index
        self.running: Turns[Outcome] = turns(cell, wish, _Passed(index, watch), processes, caught)
        self.stream: Any = None
        if processes.device.type == "cuda":
            self.stream = torch.cuda.Stream(processes.device)  # type: ignore[no-untyped-call]

    def advance(self) -> End | None:
        """Up to the next training step; how the cell ended, if it has."""
        try:
            with self._on_stream():
                next(self.running)
            return None
        except StopIteration as ended:
            return End(ended.value)
        except Interrupted as error:
            return End(None, str(error))
        except RpbenchError as error:
            return End(None, " ".join(str(error).split()))
        except Exception as error:  # as where a process dies: the other cells go on
            traceback.print_exc()
            return End(None, f"{type(error).__name__}: {' '.join(str(error).split())}")

    def _on_stream(self) -> contextlib.AbstractContextManager[Any]:
        if self.stream is None:
            return contextlib.nullcontext()
        import torch

        return torch.cuda.stream(self.stream)


class _Passed(Quiet):
    """Passes on how far a cell is."""

    def __init__(self, index: int, watch: Watch) -> None:
        self.index, self.watch = index, watch

    def start(self, epochs: int, steps: int, batch: int, state: State) -> None:
        self.steps_in_all = max(1, epochs * steps)

    def say(self, text: str) -> None:
        self.watch.said(self.index, text)

    def step(self, state: State, steps: int, loss: float | None) -> None:
        self.watch.at(self.index, (state.epoch * steps + state.step) / self.steps_in_all)


def run_processes(asked: Sequence[Asked], wish: Wish, slots: int, watch: Watch, threads: int = 1) -> list[End]:
    """Run cells in `slots` processes of `threads` threads each. A process that dies takes one cell with it.

    Raises Interrupted after a signal, when every cell that was being trained has its checkpoint.
    """
    ends: list[End] = [End(None, "not begun")] * len(asked)
    waiting = deque(range(len(asked)))
    workers: list[_Worker] = []
    try:
        with noted_signals() as caught:
            for _ in range(min(slots, len(asked))):
                workers.append(_Worker(wish, threads))
                workers[-1].give(waiting, asked)
            while busy := [w for w in workers if w.index is not None]:
                wait([c for w in busy for c in (w.connection, w.process.sentinel)], timeout=0.5)
                for worker in busy:
                    if caught:
                        waiting.clear()
                        worker.stop()
                    for index, end in worker.told(watch):
                        ends[index] = end
                        watch.ended(index, end)
                        if waiting and not worker.process.is_alive():
                            worker.start()
                        worker.give(waiting, asked)
    finally:
        for worker in workers:
            worker.close()
    if caught and any(end.outcome is None for end in ends):
        raise Interrupted(caught[-1])
    return ends


class _Worker:
    """A process that runs one cell after another."""

    def __init__(self, wish: Wish, threads: int) -> None:
        self.wish, self.threads = wish, threads
        self.index: int | None = None
        self.stopped = False
        self.start()

    def start(self) -> None:
        context = get_context("spawn")
        self.connection, other = context.Pipe()
        # no daemon: those may not have processes of their own, which decode large images
        self.process = context.Process(target=_work, args=(other, self.wish, self.threads))
        resource_tracker.ensure_running()  # starting it ends the blocking of signals
        # until it can ignore it: a terminal's Ctrl-C would end an import with a traceback
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        other.close()

    def give(self, waiting: deque[int], asked: Sequence[Asked]) -> None:
        """The next cell, if there is one."""
        self.index = waiting.popleft() if waiting else None
        if self.index is not None:
            with contextlib.suppress(BrokenPipeError):  # it has died: told() will say so
                self.connection.send(asked[self.index])

    def stop(self) -> None:
        """Let it keep a checkpoint and end."""
        if not self.stopped:
            self.process.terminate()
        self.stopped = True

    def told(self, watch: Watch) -> Iterator[tuple[int, End]]:
        """Pass on what it has said since; how its cell has ended, if it has."""
        assert self.index is not None
        dead = not self.process.is_alive()  # asked first: what it said last is still to be read
        try:
            while self.connection.poll():
                kind, value = self.connection.recv()
                if kind == "at":
                    watch.at(self.index, value)
                elif kind == "said":
                    watch.said(self.index, value)
                else:
                    yield self.index, value
                    return
        except (EOFError, OSError):  # nobody is left at the other end, or not for the whole of a message
            dead = True
        if dead:  # its decode processes may hold the other end open for some seconds yet
            self.process.join()
            code = self.process.exitcode or 0
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            why = "stopped; the same command goes on from here" if self.stopped else f"its process died ({how})"
            yield self.index, End(None, why)

    def close(self) -> None:
        """End it: at once, as it has nothing left to do."""
        self.connection.close()
        if self.process.is_alive():
            self.process.kill()
        self.process.join()


def _work(connection: Connection, wish: Wish, threads: int) -> None:
    """A worker's life: cells in, ends out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop: a terminal would say it twice
    os.environ["OMP_NUM_THREADS"] = str(threads)  # before torch is imported
    import torch

    from rpbench.cell import ask
    from rpbench.machine import Processes
    from rpbench.run import run_cell

    torch.set_num_threads(threads)
    processes = Processes()
    pipe = _Pipe(connection)
    while True:
        try:
            asked = connection.recv()
        except EOFError:  # the parent has gone
            return
        try:
            end = End(run_cell(ask(**asked), wish, _Passed(0, pipe), processes))
        except Interrupted as error:
            end = End(None, str(error))
        except RpbenchError as error:
            end = End(None, " ".join(str(error).split()))
        pipe.ended(0, end)


class _Pipe:
    """Tells the parent. Without a parent there is nobody to work for: a checkpoint is kept, and that is the end."""

    def __init__(self, connection: Connection) -> None:
        self.connection, self.last = connection, -1.0

    def at(self, index: int, done: float) -> None:
        if done - self.last >= 0.002 or done < self.last:
            self.last = done
            self._tell("at", done)

    def said(self, index: int, text: str) -> None:
        self._tell("said", text)

    def ended(self, index: int, end: End) -> None:
        self._tell("ended", end)

    def _tell(self, kind: str, value: Any) -> None:
        try:
            self.connection.send((kind, value))
        except (BrokenPipeError, ConnectionResetError):
            os.kill(os.getpid(), signal.SIGTERM)
