"""What a sparse net costs: which weights can matter at all, and how much memory a run took."""

from __future__ import annotations

import copy
import resource
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from rpbench.layers import LayerTable
from rpbench.masks import Masks


@dataclass(frozen=True)
class Paths:
    """Which part of a masked net is connected: the fraction of prunable weights on a path from input to output, and
    how many outputs no path reaches."""

    effective: float
    unreached: int


def paths(model: nn.Module, table: LayerTable, masks: Masks, input_shape: tuple[int, ...]) -> Paths | None:
    """Effective density (Vysogorets & Kempe 2021) of a masked net.

    One pass of ones through the masks, forward and backward, where every layer passes on only *whether* something
    arrives: a product over layers would overflow float64 on deep wide nets. None for nets whose paths cannot be
    followed this way (attention, recurrence), never a guess.
    """
    if any(isinstance(module, nn.MultiheadAttention | nn.RNNBase) for module in model.modules()):
        return None
    skeleton = _skeleton(model, masks)
    device = next(skeleton.parameters()).device
    weights = dict(skeleton.named_parameters(remove_duplicate=False))
    layers = [weights[name].requires_grad_(True) for name in table.names]
    try:
        out = skeleton(torch.ones(1, *input_shape, device=device))
        gradients = torch.autograd.grad(out.sum(), layers, allow_unused=True)
    except Exception:  # a net that cannot run on its own skeleton has no defined paths
        return None
    alive = sum(
        int(((gradient != 0) & masks[name].to(device)).sum())
        for name, gradient in zip(table.names, gradients, strict=True)
        if gradient is not None
    )
    return Paths(alive / table.prunable, int((out == 0).sum()))


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory in MB (2**20 bytes): the device's where it is a GPU, else this process'."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # macOS counts bytes, Linux KiB


class _Arrives(torch.autograd.Function):
    """1 where something positive arrives, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return (gradients[0] > 0).to(gradients[0].dtype)


class _AveragePool(nn.Module):
    """A max-pool's window with an average: every input of the window counts, not only the largest."""

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        self.args: Any = (pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel, stride, padding, ceil = self.args
        return functional.avg_pool2d(x, kernel, stride, padding, ceil)


def _skeleton(model: nn.Module, masks: Masks) -> nn.Module:
    """The net with its masks for weights: no biases, norms or activations, max-pools averaged."""
    skeleton = copy.deepcopy(model).float().eval()
    passing = (
        nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU,
        nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.ELU, nn.Softmax, nn.LogSoftmax,
        nn.modules.dropout._DropoutNd,
    )  # fmt: skip
    for parent in list(skeleton.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, passing):
                setattr(parent, name, nn.Identity())
            elif isinstance(child, nn.MaxPool2d):
                setattr(parent, name, _AveragePool(child))
    parameters = dict(skeleton.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.requires_grad_(False)
            parameter.copy_(masks[name] if name in masks else torch.zeros_like(parameter))
    for module in skeleton.modules():
        if isinstance(getattr(module, "weight", None), nn.Parameter):
            module.register_forward_hook(lambda _m, _i, out: _Arrives.apply(out))
    return skeleton
