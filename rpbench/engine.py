"""Who takes the steps of an epoch: the host, operation by operation, or the device, from graphs recorded once.

Both take the same steps. What a step depends on is the state and (seed, epoch, step), so a training may go on under
another engine than it began with.
"""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol

import numpy as np
import torch

from rpbench import streams
from rpbench.data.resident import ResidentTraining
from rpbench.errors import RpbenchError, UsageError
from rpbench.step import Learner, rate

EngineName = Literal["auto", "eager", "graph"]
WARM = 3  # steps before a recording: cuDNN chooses its algorithms, the allocator and autograd settle
AGREE = 0.01  # how far a replayed change may be from an eager one, of its length: GPUs add in any order


class CannotRecord(RpbenchError):
    """A step cannot be recorded; it can still be taken by the host."""


class Engine(Protocol):
    """Takes training steps."""

    name: str

    def steps(self, epoch: int, first: int) -> Iterator[None]:
        """Take the steps of an epoch from `first` on, one each time the iterator is advanced."""
        ...


class Eager:
    """The host launches every operation of a step."""

    name = "eager"

    def __init__(self, learner: Learner) -> None:
        self.learner = learner

    def steps(self, epoch: int, first: int) -> Iterator[None]:
        learner, order = self.learner, self.learner.order
        learner.machine.wrapped.train()
        for step, (x, y) in enumerate(learner.training.batches(order, epoch, first), first):
            learner.set_rate(rate(learner.recipe, epoch, step, order.steps))
            torch.manual_seed(streams.torch_seed("step", order.seed, epoch, step, order.rank))
            flow = learner.step(x, y, order.size(step))
            if flow is not None:
                when = torch.tensor([epoch + 1.0, step + 1.0], dtype=torch.float64)
                learner.track.append(torch.cat([when.to(flow.device, non_blocking=True), flow]))
            yield


class Graphs(Protocol):
    """The seam to the device: runs work, and records it to be run again without the host."""

    def run(self, work: Callable[[], None]) -> None:
        """Do the work now, where a recording would be made."""
        ...

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record the work's operations on their tensors; calling the result does them again."""
        ...


class CudaGraphs:
    """CUDA's graphs. They share one pool of memory, as they are never run at the same time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.pool = torch.cuda.graph_pool_handle()

    def run(self, work: Callable[[], None]) -> None:
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            work()
        current.wait_stream(self.stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                work()
        finally:
            torch.cuda.set_stream(current)  # torch before 2.15 stays on the recording's after one that failed
        return graph.replay


class Recorded:
    """One recorded graph per batch size: the host starts it and does nothing else.

    What changes from step to step lies on the device: the epoch's draws (who is seen, crops, flips), its learning
    rates, and the number of the step. Raises CannotRecord for a net that draws random numbers in its forward pass
    (a replay would not have the step's own), or whose replayed step is not the eager one.
    """

    name = "graph"

    def __init__(self, learner: Learner, graphs: Graphs) -> None:
        if reason := unrecordable(learner):
            raise CannotRecord(reason)
        assert isinstance(learner.training, ResidentTraining)
        self.learner, self.graphs, self.training = learner, graphs, learner.training
        order, device = learner.order, learner.machine.device
        self.draws = self.training.draws(order, 0).to(device)
        self.rates = torch.full((order.steps,), learner.recipe.lr, device=device)
        self.offsets = torch.arange(order.batch, device=device)
        self.number = torch.zeros(1, dtype=torch.int64, device=device)
        self.rate = torch.zeros((), device=device)
        learner.set_rate(self.rate)
        learner.machine.wrapped.train()
        sizes = dict.fromkeys((order.size(0), order.size(order.steps - 1)))
        self.replays = {size: self._recorded(size) for size in sizes}

    def steps(self, epoch: int, first: int) -> Iterator[None]:
        learner, order = self.learner, self.learner.order
        learner.machine.wrapped.train()
        rates = [rate(learner.recipe, epoch, step, order.steps) for step in range(order.steps)]
        self.draws.copy_(self.training.draws(order, epoch))
        self.rates.copy_(torch.tensor(rates))
        self.number.fill_(first)
        for step in range(first, order.steps):
            self.replays[order.size(step)]()
            yield

    def _take(self, size: int) -> None:
        """A step that asks nothing of the host: what is recorded."""
        learner = self.learner
        places = self.number * learner.order.batch + self.offsets[:size]
        x, y = self.training.at(self.draws.index_select(1, places))
        self.rate.copy_(self.rates.index_select(0, self.number)[0])
        learner.step(x, y, size)
        self.number += 1

    def _recorded(self, size: int) -> Callable[[], None]:
        """The recording of a step, trusted once it has changed everything as the eager step does."""
        kinds = self._changed()
        tensors = [tensor for kind in kinds.values() for tensor in kind]
        before = _copied(kinds)

        def restore() -> None:
            with torch.no_grad():
                torch._foreach_copy_(tensors, [tensor for kind in before.values() for tensor in kind])

        def take() -> None:
            self._take(size)

        drawn = _random_state(self.learner.machine.device)
        try:
            for _ in range(WARM):
                restore()
                self.graphs.run(take)
            eager = _copied(kinds)
            if _random_state(self.learner.machine.device) != drawn:
                raise CannotRecord("the net draws random numbers in its forward pass")
            restore()
            self.learner.optimizer.zero_grad(set_to_none=True)  # the recording's gradients lie in its own memory
            replay = self.graphs.record(take)
            restore()  # a recording does nothing yet, but a stand-in's may
            replay()
            replayed = _copied(kinds)
        finally:
            restore()
        # each kind by itself: the sum of losses changes by a hundred times as much as all weights together
        for kind, told in eager.items():
            off = _distance(told, replayed[kind]) / max(_distance(told, before[kind]), 1e-30)
            if not off <= AGREE:
                raise CannotRecord(f"a replayed step differs from an eager one by {off:.1%} of its length in {kind}")
        return replay

    def _changed(self) -> dict[str, list[torch.Tensor]]:
        """Everything that a step changes, by kind."""
        learner = self.learner
        buffers = list(learner.net.buffers())
        return {
            "weights": [p.detach() for p in learner.net.parameters()],
            "momentum": [s["momentum_buffer"] for s in learner.optimizer.state.values() if "momentum_buffer" in s],
            "statistics": [b.detach() for b in buffers if b.is_floating_point()],
            "counts": [*(b for b in buffers if not b.is_floating_point()), self.number],
            "sums": [learner.sums],
        }


def choose(name: EngineName, learner: Learner, graphs: Graphs | None) -> tuple[Engine, str | None]:
    """The engine of that name, and why `auto` could not record this net's steps on a device that can.

    `auto` records where the device has `graphs` and the steps can be recorded, else the host takes them. Raises
    UsageError where "graph" is asked for and cannot be.
    """
    if name == "eager" or (name == "auto" and (graphs is None or unrecordable(learner))):
        return Eager(learner), None
    try:
        if graphs is None:
            raise no_graphs(learner.machine.device)
        return Recorded(learner, graphs), None
    except (CannotRecord, RuntimeError) as error:  # RuntimeError: a net that asks the host something, or no memory
        learner.optimizer.zero_grad(set_to_none=True)
        if name == "graph" and isinstance(error, torch.OutOfMemoryError):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if name == "graph":
        raise UsageError(f"engine 'graph' is not to be had here: {reason}; leave --engine out")
    return Eager(learner), f"steps are not recorded as a graph: {reason}"


def no_graphs(device: torch.device) -> UsageError:
    """What is said where "graph" is asked for on a device that does not record."""
    return UsageError(
        f"engine 'graph' is not to be had here: only CUDA devices record, this is a {device.type}; leave --engine out"
    )


def graphs_of(device: torch.device) -> Graphs | None:
    """How this device records; None where it does not."""
    return CudaGraphs(device) if device.type == "cuda" else None


def unrecordable(learner: Learner) -> str | None:
    """Why steps of this kind cannot be recorded; None if they can."""
    if not isinstance(learner.training, ResidentTraining):
        return "images are decoded on the host while training"
    if learner.machine.world > 1:
        return "gradients of several processes meet in every step"
    if learner.track_flow:
        return "gradients are tracked at every step"
    return None


def _random_state(device: torch.device) -> list[object]:
    """Whatever a forward pass may draw from: a GPU's net may ask the host's generators, Python's and numpy's too."""
    states: list[object] = [torch.get_rng_state().tolist(), random.getstate(), pickle.dumps(np.random.get_state())]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device).tolist())
    return states


def _copied(kinds: dict[str, list[torch.Tensor]]) -> dict[str, list[torch.Tensor]]:
    return {kind: [tensor.clone() for tensor in tensors] for kind, tensors in kinds.items()}


def _distance(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    """Euclidean, over all tensors together."""
    apart = [(x.double() - y.double()).square().sum() for x, y in zip(a, b, strict=True)]
    return float(torch.stack(apart).sum().sqrt()) if apart else 0.0
