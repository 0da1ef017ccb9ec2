"""BatchNorm on CPUs with the statistics that fp32 can have.

torch sums a channel of a channels-last batch one number after another in fp32: over 100,000 positions the statistics
are off by 1e-5, a hundred times as far as in the other layout. A ReLU behind it then cuts elsewhere, and the gradient
of a ResNet-20 is 4e-3 from float64's instead of 4e-4. Here statistics come from `torch.sum`, which adds in a tree. bf16
keeps torch's own: it rounds further than that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

PIECES = 256  # sums for each channel: torch sums many short columns faster than one long one
WORTH = 64 * PIECES  # positions from which on it matters


class AccurateBatchNorm(TorchFunctionMode):
    """While this is entered, training-mode BatchNorm of fp32 channels-last images on a CPU has accurate statistics."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is functional.batch_norm and not kwargs.keys() - _NAMES:
            given = dict(zip(_NAMES, args, strict=False)) | kwargs
            if given.get("training") and _is_meant(given["input"]):
                return _batch_norm(**given)
        return function(*args, **kwargs)


_NAMES = dict.fromkeys(("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")).keys()


def _is_meant(x: torch.Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype is torch.float32
        and x.dim() == 4
        and x.shape[1] > 1
        and x.numel() // x.shape[1] >= WORTH
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def _batch_norm(
    input: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    """`torch.nn.functional.batch_norm` in training mode."""
    mean, var = statistics(input.detach())
    if running_mean is not None and running_var is not None:
        n = input.numel() // input.shape[1]
        with torch.no_grad():
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(var * (n / (n - 1)), momentum)
    out: torch.Tensor = _Normalised.apply(input, weight, bias, mean, var, eps)
    return out


def statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean, biased variance) of every channel of channels-last images, each (c,)."""
    rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])  # a view
    mean = _sums(rows) / len(rows)
    centred = rows - mean
    return mean, _sums(centred.mul_(centred)) / len(rows)


def _sums(rows: torch.Tensor) -> torch.Tensor:
    whole = len(rows) - len(rows) % PIECES
    total = rows[:whole].view(PIECES, -1, rows.shape[1]).sum(1).sum(0)
    return total + rows[whole:].sum(0) if whole < len(rows) else total


class _Normalised(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        mean: torch.Tensor,
        var: torch.Tensor,
        eps: float,
    ) -> torch.Tensor:
        ctx.eps = eps
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt())
        return functional.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        x, weight, mean, inverse = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        found = torch.ops.aten.native_batch_norm_backward(
            gradients[0], x, weight, None, None, mean, inverse, True, ctx.eps, wanted
        )
        return *found, None, None, None
