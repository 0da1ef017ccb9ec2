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
STOPPED = "stopped; the same command goes on from here"
MOST_LANES = 16  # torch hands out 32 streams, a lane takes two
Asked = dict[str, Any]  # the arguments of `rpbench.cell.ask`


@dataclass(frozen=True)
class End:
    """How a cell ended: with an outcome, or refused for a reason before there was one."""

    outcome: Outcome | None
    refused: str = ""

    @property
    def failed(self) -> bool:
        """Whether it ended without a result for a reason of its own: not for being stopped."""
        if self.outcome is None:
            return not self.refused.startswith("stopped")
        return self.outcome.record.status in ("failed", "diverged")

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


def run_packed(
    asked: Sequence[Asked],
    wish: Wish,
    slots: int | None,
    watch: Watch,
    apart: bool = False,
    cores: int | None = None,
) -> list[End]:
    """Run cells in the way of this machine: `slots` lanes on each GPU, else `slots` processes that divide the cores
    (those that this process may use, unless told how many).

    Several GPUs have a process each; `apart` gives one to a single GPU too, so that a crash takes no other cell.
    Raises UsageError for a cell that cannot be asked for before any is run; Interrupted after a signal.
    """
    from rpbench.cell import ask
    from rpbench.machine import Processes

    cells = [ask(**each) for each in asked]
    processes = Processes()
    if processes.world > 1:
        raise UsageError(f"{len(cells)} cells are run at once by one process, not by {processes.world}: no launcher")
    cores = cores or own_cores()
    if processes.device.type == "cuda":
        import torch

        gpus = min(torch.cuda.device_count(), len(cells))
        lanes = min(-(-len(cells) // gpus), slots or LANES, MOST_LANES)
        if gpus > 1 or apart:
            each = Team(gpus, max(1, cores // gpus), lanes, _visible(gpus))
            return run_processes(asked, replace(wish, packed=lanes), each, watch)
        return run_lanes(cells, replace(wish, packed=lanes), lanes, watch, processes)
    slots = min(len(cells), slots or cores)
    return run_processes(asked, replace(wish, packed=slots), Team(slots, max(1, cores // slots)), watch)


def own_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _visible(gpus: int) -> tuple[str, ...]:
    """The GPUs of this process, as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return tuple(given.split(",")[:gpus] if given else map(str, range(gpus)))


@dataclass(frozen=True)
class Team:
    """Processes that run cells: how many, how many threads each has, how many cells it runs at once, on which GPU."""

    processes: int
    threads: int = 1
    lanes: int = 1
    gpus: tuple[str, ...] = ()


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


def run_processes(asked: Sequence[Asked], wish: Wish, team: Team, watch: Watch) -> list[End]:
    """Run cells in the processes of a team. One that dies takes with it what it was working on: a cell, or a lane each.

    Raises Interrupted after a signal, when every cell that was being trained has its checkpoint.
    """
    ends: list[End] = [End(None, "not begun")] * len(asked)
    waiting = deque(range(len(asked)))
    workers: list[_Worker] = []
    try:
        with noted_signals() as caught:
            for place in range(min(team.processes, len(asked))):
                workers.append(_Worker(wish, team, place))
                workers[-1].give(waiting, asked)
            while busy := [w for w in workers if w.open]:
                wait([c for w in busy for c in (w.connection, w.process.sentinel)], timeout=0.5)
                for worker in busy:
                    if caught:
                        waiting.clear()
                        worker.stop()
                    for index, end in worker.told(watch):
                        ends[index] = end
                        watch.ended(index, end)
                    if not worker.open:
                        if waiting and not worker.process.is_alive():
                            worker.start()
                        worker.give(waiting, asked)
    finally:
        for worker in workers:
            worker.connection.close()  # who waits for cells ends by himself, and leaves nothing behind
        for worker in workers:
            worker.close()
    if caught and any(end.outcome is None for end in ends):
        raise Interrupted(caught[-1])
    return ends


class _Worker:
    """A process that runs one cell after another, or one pack of them. `open` are those that have not ended."""

    def __init__(self, wish: Wish, team: Team, place: int) -> None:
        self.wish, self.team, self.place = wish, team, place
        self.open: list[int] = []
        self.stopped = False
        self.start()

    def start(self) -> None:
        context = get_context("spawn")
        self.connection, other = context.Pipe()
        # no daemon: those may not have processes of their own, which decode large images
        self.process = context.Process(target=_work, args=(other, self.wish, self.team, self.place))
        resource_tracker.ensure_running()  # starting it ends the blocking of signals
        # until it can ignore it: a terminal's Ctrl-C would end an import with a traceback
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        other.close()

    def give(self, waiting: deque[int], asked: Sequence[Asked]) -> None:
        """The next cells, as many as it runs at once, if there are any."""
        self.open = [waiting.popleft() for _ in range(min(self.team.lanes, len(waiting)))]
        if self.open:
            with contextlib.suppress(BrokenPipeError):  # it has died: told() will say so
                self.connection.send([(index, asked[index]) for index in self.open])

    def stop(self) -> None:
        """Let it keep a checkpoint and end."""
        if not self.stopped:
            self.process.terminate()
        self.stopped = True

    def told(self, watch: Watch) -> Iterator[tuple[int, End]]:
        """Pass on what it has said since; how its cells have ended, if they have."""
        dead = not self.process.is_alive()  # asked first: what it said last is still to be read
        try:
            while self.open and self.connection.poll():
                kind, index, value = self.connection.recv()
                if kind == "at":
                    watch.at(index, value)
                elif kind == "said":
                    watch.said(index, value)
                else:
                    self.open.remove(index)
                    yield index, value
        except (EOFError, OSError):  # nobody is left at the other end, or not for the whole of a message
            dead = True
        if dead and self.open:  # its decode processes may hold the other end open for some seconds yet
            self.process.join()
            code = self.process.exitcode or 0
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            why = STOPPED if self.stopped else f"its process died ({how})"
            lost, self.open = self.open, []
            yield from ((index, End(None, why)) for index in lost)

    def close(self) -> None:
        """End it: it has nothing left to do."""
        self.connection.close()
        self.process.join(timeout=0 if self.open else 5)
        if self.process.is_alive():
            self.process.kill()
        self.process.join()


def _work(connection: Connection, wish: Wish, team: Team, place: int) -> None:
    """A worker's life: cells in, ends out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop: a terminal would say it twice
    os.environ["OMP_NUM_THREADS"] = str(team.threads)  # before torch is imported
    if team.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = team.gpus[place]
    import torch

    from rpbench.cell import ask
    from rpbench.machine import Processes
    from rpbench.run import run_cell

    torch.set_num_threads(team.threads)
    processes = Processes()
    while True:
        try:
            given = connection.recv()
        except EOFError:  # the parent has gone
            return
        pipe = _Pipe(connection, [index for index, _ in given])
        if len(given) > 1:
            with contextlib.suppress(Interrupted):  # every end has been told
                run_lanes([ask(**asked) for _, asked in given], wish, len(given), pipe, processes)
            continue
        try:
            end = End(run_cell(ask(**given[0][1]), wish, _Passed(0, pipe), processes))
        except Interrupted:  # by the parent's SIGTERM, whatever it was told itself
            end = End(None, STOPPED)
        except RpbenchError as error:
            end = End(None, " ".join(str(error).split()))
        pipe.ended(0, end)


class _Pipe:
    """Tells the parent. Without a parent there is nobody to work for: a checkpoint is kept, and that is the end.

    A worker counts its cells from 0; `indices` are the parent's.
    """

    def __init__(self, connection: Connection, indices: Sequence[int]) -> None:
        self.connection, self.indices, self.last = connection, indices, dict.fromkeys(range(len(indices)), -1.0)

    def at(self, index: int, done: float) -> None:
        if done - self.last[index] >= 0.002 or done < self.last[index]:
            self.last[index] = done
            self._tell("at", index, done)

    def said(self, index: int, text: str) -> None:
        self._tell("said", index, text)

    def ended(self, index: int, end: End) -> None:
        self._tell("ended", index, end)

    def _tell(self, kind: str, index: int, value: Any) -> None:
        try:
            self.connection.send((kind, self.indices[index], value))
        except (BrokenPipeError, ConnectionResetError):
            os.kill(os.getpid(), signal.SIGTERM)
