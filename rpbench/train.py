"""The training loop: masked SGD, one step at a time, resumable at any step.

A step is a function of the state (weights, momentum, masks) and of (seed, epoch, step): nothing in it depends on how
the process got there.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional

from rpbench import streams
from rpbench.data.opened import Training
from rpbench.data.order import Order
from rpbench.errors import RpbenchError
from rpbench.masks import Bound
from rpbench.task import Recipe

CHECK_EVERY = 50  # steps between looks at the loss: a look waits for the device
AGREE_EVERY = 10  # steps between agreements of several processes on stopping and saving
SAVE = 1  # what is agreed on: 0 nothing, SAVE a checkpoint, else the number of a signal to stop for


class Diverged(RpbenchError):
    """The loss is not finite any more."""


class Interrupted(RpbenchError):
    """A signal asked the run to stop; everything up to here is in the checkpoint."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(f"stopped by {signal.Signals(number).name}; the same command goes on from here")


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
class Machine:
    """The processes and the device: how gradients meet, how work is agreed on."""

    device: torch.device
    world: int
    precision: str
    wrapped: nn.Module  # the net, inside DistributedDataParallel where there are several processes
    agree: Callable[[int], int]  # the largest of all processes' numbers


@dataclass
class Fit:
    """Everything that one training needs. `resume` continues at the state's epoch and step."""

    net: nn.Module
    bound: Bound
    training: Training
    order: Order
    recipe: Recipe
    machine: Machine
    validate: Callable[[], tuple[float, float]]
    keeper: Keeper
    watcher: Watcher
    optimizer: torch.optim.Optimizer
    micro_batch: int | None = None
    track_flow: bool = False
    save_seconds: float = 120.0


def make_optimizer(net: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """SGD with the recipe's momentum; `decay = "weights"` keeps biases and norms (one-dimensional) out of decay."""
    everything = [p for p in net.parameters() if p.requires_grad]
    groups = [{"params": everything, "weight_decay": recipe.weight_decay}]
    if recipe.decay == "weights":
        groups = [
            {"params": [p for p in everything if p.dim() > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in everything if p.dim() <= 1], "weight_decay": 0.0},
        ]
    return torch.optim.SGD(
        [g for g in groups if g["params"]],
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        foreach=True,
    )


def rate(recipe: Recipe, epoch: int, step: int, steps: int) -> float:
    """The learning rate of a step: linear warm-up, then `factor` for every drop that has been passed."""
    done, total = epoch * steps + step, recipe.epochs * steps
    warm = recipe.warmup * total
    if done < warm:
        return recipe.lr * (done + 1) / math.ceil(warm)
    return recipe.lr * recipe.factor ** sum(done >= drop * total - 1e-6 for drop in recipe.drops)


def fit(work: Fit, state: State, sums: torch.Tensor, track: list[torch.Tensor]) -> None:
    """Train to the recipe's last epoch. `sums` are (loss, correct) over the images of an epoch begun before.

    Raises Diverged, Interrupted (after a checkpoint), or what the machine raises.
    """
    with _signals() as caught:
        saved = started = time.monotonic()
        total_before = state.total_seconds

        def save() -> None:
            nonlocal saved
            state.total_seconds = total_before + time.monotonic() - started
            work.keeper.save(state, _all_sums(work, sums), track)
            saved = time.monotonic()

        while state.epoch < work.recipe.epochs:
            for loss in _steps(work, state, sums, track):
                # several processes see different losses: they look together, at the end of the epoch
                if loss is not None and work.machine.world == 1 and not math.isfinite(loss):
                    raise Diverged(f"the loss is {loss} at epoch {state.epoch + 1}, step {state.step}")
                due = time.monotonic() - saved > work.save_seconds
                wanted = _agreed(work, caught[-1] if caught else SAVE * due, state.step)
                if wanted:
                    save()
                if wanted > SAVE:
                    raise Interrupted(wanted)
            _end_epoch(work, state, sums)
            save()
            if stop := work.machine.agree(caught[-1] if caught else 0):
                raise Interrupted(stop)


def _steps(work: Fit, state: State, sums: torch.Tensor, track: list[torch.Tensor]) -> Iterator[float | None]:
    """Take the remaining steps of the epoch, yielding the running loss where it was looked at."""
    order, recipe = work.order, work.recipe
    work.machine.wrapped.train()
    mark = time.perf_counter()
    for x, y in work.training.batches(order, state.epoch, state.step):
        for group in work.optimizer.param_groups:
            group["lr"] = rate(recipe, state.epoch, state.step, order.steps)
        torch.manual_seed(streams.torch_seed("step", order.seed, state.epoch, state.step, order.rank))
        told, flow = train_step(work, x, y, order.size(state.step))
        sums += told
        if flow is not None:
            track.append(torch.cat([torch.tensor([state.epoch + 1.0, state.step + 1.0], dtype=torch.float64), flow]))
        state.trained += order.size(state.step)
        state.step += 1
        look = state.step % CHECK_EVERY == 0 or state.step == order.steps
        loss = float(sums[0]) / max(1, _seen(order, state.step)) if look else None
        now = time.perf_counter()
        state.train_seconds += now - mark  # images' way to the device included; saving and validation are not
        work.watcher.step(state, order.steps, loss)
        yield loss
        mark = time.perf_counter()


def train_step(work: Fit, x: torch.Tensor, y: torch.Tensor, batch: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One update on this process' part (x, y) of a global batch of `batch` images.

    Gradients are those of the mean loss over the global batch, whatever the shares of the processes. Returns
    (sum of losses, correct) over this part, float64 on the device, and the gradient's norms where they are tracked.
    """
    machine = work.machine
    # a batch smaller than the number of processes leaves some without an image: they take part with weight 0
    idle = len(y) == 0
    if idle:
        x = torch.zeros(2, *x.shape[1:], dtype=x.dtype, device=x.device)
        y = torch.zeros(2, dtype=torch.int64, device=x.device)
    size = min(work.micro_batch or len(y), len(y))
    pieces = list(zip(torch.split(x, size), torch.split(y, size), strict=True))
    told = torch.zeros(2, dtype=torch.float64, device=x.device)
    work.optimizer.zero_grad(set_to_none=True)
    for i, (images, classes) in enumerate(pieces):
        no_sync = getattr(machine.wrapped, "no_sync", None)
        with no_sync() if no_sync is not None and i < len(pieces) - 1 else contextlib.nullcontext():
            with torch.autocast(machine.device.type, torch.bfloat16, enabled=machine.precision == "bf16"):
                logits = machine.wrapped(images)
            logits = logits.float()
            loss = functional.cross_entropy(
                logits, classes, label_smoothing=work.recipe.label_smoothing, reduction="sum"
            )
            # DistributedDataParallel averages over processes: the factor makes that a mean over images
            torch.autograd.backward(loss * (0.0 if idle else machine.world / batch))
        if not idle:
            told[0] += loss.detach()
            told[1] += (logits.detach().argmax(1) == classes).sum()
    flow = gradient_flow(work.bound) if work.track_flow else None  # before the step, which may write into gradients
    work.optimizer.step()
    work.bound.apply()
    return told, flow


def gradient_flow(bound: Bound) -> torch.Tensor:
    """Norms of the gradient over kept weights (Tessera et al. 2021): global L2, mean of the layers' L2, mean |g|."""
    gradients = bound.mask_gradients()
    norms = torch.stack([g.norm() for g in gradients])
    total = torch.stack([g.abs().sum() for g in gradients]).sum()
    return torch.stack([norms.square().sum().sqrt(), norms.mean(), total / max(1, bound.kept)]).detach().cpu().double()


def _end_epoch(work: Fit, state: State, sums: torch.Tensor) -> None:
    """Validate, note the epoch, keep its weights if they are the first strict maximum."""
    top1, loss = work.validate()
    whole = _all_sums(work, sums)
    row = {
        "epoch": state.epoch + 1,
        "lr": rate(work.recipe, state.epoch, work.order.steps - 1, work.order.steps),
        "train_loss": whole[0] / work.order.n,
        "train_top1": whole[1] / work.order.n,
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
    sums.zero_()
    work.watcher.epoch(row, state)


def _all_sums(work: Fit, sums: torch.Tensor) -> list[float]:
    if work.machine.world == 1:
        return [float(v) for v in sums]
    total = sums.clone()
    torch.distributed.all_reduce(total)
    return [float(v) for v in total]


def _seen(order: Order, step: int) -> int:
    """Images of this process in the first `step` batches of an epoch."""
    return sum((part := order.local(s)).stop - part.start for s in range(step))


def _agreed(work: Fit, wanted: int, step: int) -> int:
    """What to do after a step: the largest wish of all processes, so that none is left waiting for another."""
    if step == work.order.steps:  # the epoch's end saves anyway
        return 0
    if work.machine.world == 1:
        return wanted
    return work.machine.agree(wanted) if step % AGREE_EVERY == 0 else 0


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """SIGTERM and SIGINT are noted instead of killing; a second SIGINT interrupts at once."""
    caught: list[int] = []

    def note(number: int, _: Any) -> None:
        if number == signal.SIGINT and caught:
            raise KeyboardInterrupt
        caught.append(number)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: signals are the caller's business
        yield caught
        return
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
