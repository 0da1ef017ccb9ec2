"""The training loop: epochs of masked SGD, resumable at any step.

A step is a function of the state (weights, momentum, masks) and of (seed, epoch, step): nothing in it depends on how
the process got there, on the engine that takes it, or on other trainings that this one takes turns with.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch

from rpbench.data.order import Order
from rpbench.engine import Engine
from rpbench.errors import Interrupted, RpbenchError
from rpbench.step import Learner, rate

LOOK_EVERY = {"cpu": 50, "cuda": 500}  # steps between looks at the loss: a look waits for the device
AGREE_EVERY = 10  # steps between agreements of several processes on stopping and saving
SAVE = 1  # what is agreed on: 0 nothing, SAVE a checkpoint, else the number of a signal to stop for


class Diverged(RpbenchError):
    """The loss is not finite any more."""


@dataclass
class State:
    """Where a run is, beside its tensors: enough to go on as if it had never stopped."""

    epoch: int = 0
    step: int = 0
    curve: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = -1
    best_top1: float = -1.0
    train_seconds: float = 0.0
    trained: int = 0
    total_seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Keeper(Protocol):
    """Keeps checkpoints; the first process writes, the others do nothing."""

    def best(self, epoch: int) -> None:
        """Keep the weights of an epoch that is the best so far."""
        ...

    def save(self, state: State, sums: list[float], track: list[torch.Tensor]) -> None:
        """Keep everything that is needed to go on from `state`."""
        ...


class Watcher(Protocol):
    """Shown how the work goes on."""

    def step(self, state: State, steps: int, loss: float | None) -> None: ...

    def epoch(self, row: Mapping[str, Any], state: State) -> None: ...


@dataclass
class Fit:
    """Everything that one training needs. It continues at the state's epoch and step."""

    learner: Learner
    engine: Engine
    validate: Callable[[], tuple[float, float]]
    keeper: Keeper
    watcher: Watcher
    save_seconds: float = 120.0


def training(work: Fit, state: State, caught: list[int]) -> Iterator[None]:
    """Train to the recipe's last epoch, a step each time the iterator is advanced, so that several trainings can take
    turns. `caught` are the signals that have come meanwhile.

    Raises Diverged, Interrupted (after a checkpoint), or what the machine raises.
    """
    learner, machine = work.learner, work.learner.machine
    order = learner.order
    look_every = LOOK_EVERY.get(machine.device.type, 50)
    saved = started = time.monotonic()
    total_before = state.total_seconds

    def save() -> None:
        nonlocal saved
        state.total_seconds = total_before + time.monotonic() - started
        work.keeper.save(state, _all_sums(learner), learner.track)
        saved = time.monotonic()

    while state.epoch < learner.recipe.epochs:
        mark = time.perf_counter()
        for _ in work.engine.steps(state.epoch, state.step):
            state.trained += order.size(state.step)
            state.step += 1
            look = state.step % look_every == 0 or state.step == order.steps
            loss = float(learner.sums[0]) / max(1, _seen(order, state.step)) if look else None
            now = time.perf_counter()
            state.train_seconds += now - mark  # images' way to the device included; saving and validation are not
            work.watcher.step(state, order.steps, loss)
            # several processes see different losses: they look together, at the end of the epoch
            if loss is not None and machine.world == 1 and not math.isfinite(loss):
                raise Diverged(f"the loss is {loss} at epoch {state.epoch + 1}, step {state.step}")
            due = time.monotonic() - saved > work.save_seconds
            wanted = _agreed(work, caught[-1] if caught else SAVE * due, state.step)
            if wanted:
                save()
            if wanted > SAVE:
                raise Interrupted(wanted)
            yield
            mark = time.perf_counter()
        _end_epoch(work, state)
        save()
        if stop := machine.agree(caught[-1] if caught else 0):
            raise Interrupted(stop)


def _end_epoch(work: Fit, state: State) -> None:
    """Validate, note the epoch, keep its weights if they are the first strict maximum."""
    learner, order = work.learner, work.learner.order
    top1, loss = work.validate()
    whole = _all_sums(learner)
    row = {
        "epoch": state.epoch + 1,
        "lr": rate(learner.recipe, state.epoch, order.steps - 1, order.steps),
        "train_loss": whole[0] / order.n,
        "train_top1": whole[1] / order.n,
        "val_loss": loss,
        "val_top1": top1,
    }
    if not all(math.isfinite(value) for value in row.values()):
        raise Diverged(f"the loss is not finite after epoch {state.epoch + 1}")
    state.curve.append(row)
    if top1 > state.best_top1:
        state.best_epoch, state.best_top1 = state.epoch, top1
        work.keeper.best(state.epoch)
    state.epoch, state.step = state.epoch + 1, 0
    learner.sums.zero_()
    work.watcher.epoch(row, state)


def _all_sums(learner: Learner) -> list[float]:
    if learner.machine.world == 1:
        return learner.sums.tolist()
    total = learner.sums.clone()
    torch.distributed.all_reduce(total)
    return total.tolist()


def _seen(order: Order, step: int) -> int:
    """Images of this process in the first `step` batches of an epoch."""
    return sum((part := order.local(s)).stop - part.start for s in range(step))


def _agreed(work: Fit, wanted: int, step: int) -> int:
    """What to do after a step: the largest wish of all processes, so that none is left waiting for another."""
    learner = work.learner
    if step == learner.order.steps:  # the epoch's end saves anyway
        return 0
    if learner.machine.world == 1:
        return wanted
    return learner.machine.agree(wanted) if step % AGREE_EVERY == 0 else 0
