"""One training step of masked SGD: a function of weights, momentum, masks and a batch, whoever drives it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional

from rpbench.batchnorm import AccurateBatchNorm
from rpbench.data.opened import Training
from rpbench.data.order import Order
from rpbench.masks import Bound
from rpbench.task import Recipe


@dataclass
class Machine:
    """The processes and the device: how gradients meet, how work is agreed on."""

    device: torch.device
    world: int
    precision: str
    wrapped: nn.Module  # the net, inside DistributedDataParallel where there are several processes
    agree: Callable[[int], int]  # the largest of all processes' numbers


@dataclass
class Learner:
    """A masked net, its optimizer and its training images.

    `sums` are (sum of losses, correct) over this process' images of the epoch so far, float64 on the device; `track`
    holds a row (epoch, step, norms of the gradient) of every step where gradients are tracked.
    """

    net: nn.Module
    bound: Bound
    training: Training
    order: Order
    recipe: Recipe
    machine: Machine
    optimizer: torch.optim.Optimizer
    sums: torch.Tensor
    track: list[torch.Tensor] = field(default_factory=list)
    micro_batch: int | None = None
    track_flow: bool = False

    def set_rate(self, rate: float | torch.Tensor) -> None:
        """The learning rate of the steps to come; a tensor is read on its device when a step is taken."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def step(self, x: torch.Tensor, y: torch.Tensor, batch: int) -> torch.Tensor | None:
        """One update on this process' part (x, y) of a global batch of `batch` images.

        Gradients are those of the mean loss over the global batch, whatever the shares of the processes. Adds to
        `sums`; returns the gradient's norms where they are tracked. Nothing in here waits for the device.
        """
        machine = self.machine
        # a batch smaller than the number of processes leaves some without an image: they take part with weight 0
        idle = len(y) == 0
        if idle:
            x = x.new_zeros(2, *x.shape[1:]).to(memory_format=torch.channels_last)
            y = torch.zeros(2, dtype=torch.int64, device=x.device)
        assert x.is_contiguous(memory_format=torch.channels_last), x.stride()  # views lose it silently, and the speed
        size = min(self.micro_batch or len(y), len(y))
        pieces = list(zip(torch.split(x, size), torch.split(y, size), strict=True))
        self.optimizer.zero_grad(set_to_none=True)
        for i, (images, classes) in enumerate(pieces):
            no_sync = getattr(machine.wrapped, "no_sync", None)
            with no_sync() if no_sync is not None and i < len(pieces) - 1 else contextlib.nullcontext():
                with autocast(machine.device, machine.precision), AccurateBatchNorm():
                    logits = machine.wrapped(images)
                logits = logits.float()
                loss = functional.cross_entropy(
                    logits, classes, label_smoothing=self.recipe.label_smoothing, reduction="sum"
                )
                # DistributedDataParallel averages over processes: the factor makes that a mean over images
                torch.autograd.backward(loss * (0.0 if idle else machine.world / batch))
            if not idle:
                self.sums[0] += loss.detach()
                self.sums[1] += (logits.detach().argmax(1) == classes).sum()
        flow = gradient_flow(self.bound) if self.track_flow else None  # the optimizer may write into gradients
        self.optimizer.step()
        self.bound.apply()
        return flow


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """The context in which a net computes at `precision`: convolutions and matrices in bf16, or all in fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def make_optimizer(net: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """SGD with the recipe's momentum, one kernel over all parameters; `decay = "weights"` keeps biases and norms
    (one-dimensional) out of decay."""
    everything = [p for p in net.parameters() if p.requires_grad]
    groups = [{"params": everything, "weight_decay": recipe.weight_decay}]
    if recipe.decay == "weights":
        groups = [
            {"params": [p for p in everything if p.dim() > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in everything if p.dim() <= 1], "weight_decay": 0.0},
        ]
    optimizer = torch.optim.SGD(
        [g for g in groups if g["params"]],
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        fused=True,
    )
    if recipe.momentum:
        # from zero, the first step is the same as torch's own, and the buffers stay where they are
        for p in everything:
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p, requires_grad=False)
    return optimizer


def rate(recipe: Recipe, epoch: int, step: int, steps: int) -> float:
    """The learning rate of a step: linear warm-up, then `factor` for every drop that has been passed."""
    done, total = epoch * steps + step, recipe.epochs * steps
    warm = recipe.warmup * total
    if done < warm:
        return recipe.lr * (done + 1) / math.ceil(warm)
    return recipe.lr * recipe.factor ** sum(done >= drop * total - 1e-6 for drop in recipe.drops)


def gradient_flow(bound: Bound) -> torch.Tensor:
    """Norms of the gradient over kept weights (Tessera et al. 2021): global L2, mean of the layers' L2, mean |g|;
    float64, on the device."""
    gradients = bound.mask_gradients()
    norms = torch.stack([g.norm() for g in gradients])
    total = torch.stack([g.abs().sum() for g in gradients]).sum()
    return torch.stack([norms.square().sum().sqrt(), norms.mean(), total / max(1, bound.kept)]).detach().double()
