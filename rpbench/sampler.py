"""Samplers: which weights of a layer are kept, given how many.

A sampler is a function (table, counts, key, scores) -> {layer name: bool array of the weight's shape}, checked against
the counts; one that is `wired` is given as a fifth argument how the net joins its layers. Layers are keyed by their
position in the table, so that renaming them changes no mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from rpbench import options, streams
from rpbench.budget import Counts
from rpbench.errors import SchemeError, UsageError
from rpbench.layers import LayerTable
from rpbench.outline import Outline
from rpbench.scheme import call, source_hash

if TYPE_CHECKING:
    import torch

    from rpbench.wiring import Wiring

Key = Callable[[int], int]
Function = Callable[..., Mapping[str, Any]]


@dataclass(frozen=True)
class MaskKey:
    """The Philox keys of a mask seed, by the layers' places in the table."""

    seed: int

    def __call__(self, layer: int) -> int:
        return streams.key("mask", self.seed, layer)


@dataclass(frozen=True)
class Sampler:
    """A sampler: a name and its function. `exact` says that it keeps the counts to the weight; else each weight is
    drawn on its own, and the total must lie within four standard deviations of its binomial. `scored` ones need a
    scheme's scores, `wired` ones the net's wiring."""

    name: str
    function: Function
    exact: bool = True
    scored: bool = False
    wired: bool = False
    outline: Outline | None = None  # as a scheme's

    @property
    def summary(self) -> str:
        return options.first_sentence(self.function.__doc__)

    @property
    def url(self) -> str:
        return options.first_url(self.function.__doc__)

    @property
    def source_hash(self) -> str:
        return self.outline.source_hash if self.outline else source_hash(self.function)

    def draw(
        self,
        table: LayerTable,
        counts: Counts,
        seed: int,
        scores: Mapping[str, torch.Tensor] | None = None,
        args: Mapping[str, Any] | None = None,
        wire: Callable[[], Wiring] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Masks as bool tensors on the CPU, checked: SchemeError where the sampler kept other counts.

        `wire` gives the net's wiring; it is called for samplers that look at it alone. UsageError where the sampler
        needs scores or a wiring, and there are none.
        """
        import torch

        if self.scored and scores is None:
            raise UsageError(f"sampler '{self.name}' keeps a scheme's best-scored weights: use a scheme with scores")
        if self.wired and wire is None:
            raise UsageError(
                f"sampler '{self.name}' follows the net from layer to layer: plan it with "
                "input_shape=(channels, height, width)"
            )
        given = (table, counts, MaskKey(seed), scores, *([wire()] if self.wired and wire else []))
        drawn = call(f"sampler '{self.name}'", self.function, *given, **(args or {}))
        if unknown := [str(name) for name in drawn if name not in counts]:
            raise SchemeError(f"sampler '{self.name}' gave masks of unknown layers {', '.join(unknown)}")
        masks: dict[str, torch.Tensor] = {}
        for layer in table:
            if layer.name not in drawn:
                raise SchemeError(f"sampler '{self.name}' gave no mask for '{layer.name}'")
            mask = torch.as_tensor(drawn[layer.name])
            if mask.dtype is not torch.bool or tuple(mask.shape) != layer.shape:
                raise SchemeError(
                    f"sampler '{self.name}' gave '{layer.name}' a mask of {mask.dtype} {tuple(mask.shape)}, "
                    f"not bool {layer.shape}"
                )
            masks[layer.name] = mask
        self._check(table, counts, masks)
        return masks

    def _check(self, table: LayerTable, counts: Counts, masks: Mapping[str, torch.Tensor]) -> None:
        kept = {layer.name: int(masks[layer.name].sum()) for layer in table}
        if self.exact:
            for name, n in kept.items():
                if n != counts[name]:
                    raise SchemeError(f"sampler '{self.name}' kept {n:,} weights of '{name}', not {counts[name]:,}")
            return
        variance = sum(counts[layer.name] * (1 - counts[layer.name] / layer.numel) for layer in table)
        off = sum(kept.values()) - sum(counts.values())
        if abs(off) > 4 * math.sqrt(variance) + 1:
            raise SchemeError(
                f"sampler '{self.name}' kept {off:+,} weights against its expectation, "
                f"more than four standard deviations ({math.sqrt(variance):.1f} each)"
            )


@overload
def mask_sampler(function: Function) -> Sampler: ...
@overload
def mask_sampler(*, exact: bool = True, scored: bool = False, wired: bool = False) -> Callable[[Function], Sampler]: ...
def mask_sampler(
    function: Function | None = None, *, exact: bool = True, scored: bool = False, wired: bool = False
) -> Any:
    """A sampler from a function (table, counts, key, scores, *, options) -> {layer name: bool array}.

    `key(i)` is the Philox key of layer i (`rpbench.streams.raw(key(i), n)`); `scores` are the scheme's, or None.
    `@mask_sampler(wired=True)` takes (table, counts, key, scores, wiring): see `rpbench.wiring.Wiring`.
    """

    def decorate(function: Function) -> Sampler:
        return Sampler(function.__name__, function, exact, scored, wired)

    return decorate if function is None else decorate(function)


def smallest(draws: streams.Raw, k: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """True at the k smallest draws, shape (n,); equal draws at the edge go to the first positions."""
    if k == 0:
        return np.zeros(draws.size, dtype=bool)
    edge = np.partition(draws, k - 1)[k - 1]
    keep = np.asarray(draws <= edge)
    surplus = int(keep.sum()) - k
    if surplus:
        keep[np.flatnonzero(draws == edge)[-surplus:]] = False
    return keep
