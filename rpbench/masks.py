"""Masks on weights: the only file that touches weights because of a mask.

The mask is fixed. Multiplying the weights by it after each optimiser step equals training with masked gradients
exactly, under SGD with momentum, Nesterov and weight decay (not under clipping by the global norm).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from rpbench.errors import MaskError, ModelError

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import nn

Masks = Mapping[str, "torch.Tensor"]


class Bound:
    """Masks bound to the weights of one net, on the weights' device and in their memory layout."""

    def __init__(self, model: nn.Module, masks: Masks) -> None:
        import torch

        parameters = dict(model.named_parameters(remove_duplicate=False))
        self.names = list(masks)
        self.kept = sum(int(mask.sum()) for mask in masks.values())
        self.weights: list[torch.Tensor] = []
        self._keep: list[torch.Tensor] = []
        for name, mask in masks.items():
            weight = parameters.get(name)
            if weight is None:
                raise ModelError(f"a mask is for '{name}', which {type(model).__name__} does not have")
            if weight.shape != mask.shape or mask.dtype is not torch.bool:
                raise ModelError(
                    f"the mask of '{name}' is {mask.dtype} {tuple(mask.shape)}, its weight {tuple(weight.shape)}"
                )
            self.weights.append(weight)
            # multiplying wants the weight's own layout and dtype: no conversion in the step
            self._keep.append(torch.empty_like(weight, requires_grad=False).copy_(mask))

    def apply(self) -> None:
        """Set pruned weights to zero."""
        import torch

        with torch.no_grad():
            torch._foreach_mul_(self.weights, self._keep)

    def mask_gradients(self) -> list[torch.Tensor]:
        """The gradients of kept weights, zero elsewhere (new tensors, for looking at)."""
        import torch

        gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in self.weights]
        return list(torch._foreach_mul(gradients, self._keep))

    def masks(self) -> dict[str, torch.Tensor]:
        """The masks as they are held now, bool on the CPU."""
        return {name: keep.bool().cpu() for name, keep in zip(self.names, self._keep, strict=True)}

    def verify(self) -> None:
        """MaskError unless every pruned weight is exactly zero."""
        for name, weight, keep in zip(self.names, self.weights, self._keep, strict=True):
            wrong = int(((weight.detach() != 0) & (keep == 0)).sum())
            if wrong:
                raise MaskError(f"{wrong:,} pruned weights of '{name}' are not zero")


def prune(model: nn.Module, masks: Masks, optimizer: Any = None) -> Bound:
    """Zero the pruned weights of `model` now and, with an optimizer, after each of its steps.

    Returns the bound masks: `.verify()` raises if a pruned weight is not zero, `.apply()` is for loops without an
    optimizer hook. Raises ModelError where the masks do not fit the net.
    """
    bound = Bound(model, masks)
    bound.apply()
    if optimizer is not None:
        inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps optimizers
        inner.register_step_post_hook(lambda *_: bound.apply())
    return bound


def digest(masks: Masks) -> str:
    """sha256 over shapes and bits in table order: names do not count, so a renamed net has the same digest."""
    total = hashlib.sha256()
    for mask in masks.values():
        total.update(json.dumps(list(mask.shape)).encode())
        total.update(np.packbits(mask.cpu().contiguous().numpy().ravel(), bitorder="little").tobytes())
    return total.hexdigest()


def kept(masks: Masks) -> list[int]:
    """Weights kept per layer, in table order."""
    return [int(mask.sum()) for mask in masks.values()]


def save(masks: Masks, path: Path) -> None:
    """Write masks as bool tensors to a safetensors file, atomically."""
    from safetensors.torch import save as serialise

    from rpbench.files import write_bytes

    write_bytes(path, serialise({name: mask.contiguous() for name, mask in masks.items()}))
