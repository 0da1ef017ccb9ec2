"""What a scheme would do to a net, before any training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from rpbench.budget import check_density, counts_from_densities
from rpbench.catalog import find_sampler, find_scheme
from rpbench.errors import UsageError
from rpbench.layers import LayerTable, layer_table
from rpbench.options import bind
from rpbench.scheme import Batch, Probe, Scheme, check_batch

if TYPE_CHECKING:
    import torch
    from torch import nn

    from rpbench.sampler import Sampler
    from rpbench.wiring import Wiring


@dataclass(frozen=True)
class PlannedLayer:
    """One row of a plan: `density` before rounding to whole weights, `kept` after, `macs` of the dense layer."""

    name: str
    shape: tuple[int, ...]
    numel: int
    density: float
    kept: int
    macs: int | None


@dataclass(frozen=True)
class Plan:
    """Densities and counts of a scheme on a net. `macs` are multiply-adds per example, None without an input size.

    `requested` is the density asked for, `allocated` what the scheme's densities add up to before rounding; `kept`
    counts weights of `prunable`. `batches_used` is how many labelled batches the scheme looked at.
    """

    scheme: str
    requested: float
    allocated: float
    kept: int
    prunable: int
    dense_macs: int | None
    sparse_macs: float | None
    layers: tuple[PlannedLayer, ...]
    warnings: tuple[str, ...]
    batches_used: int = 0
    images_used: int = 0
    table: LayerTable = field(repr=False, default=LayerTable(()))
    scores: Mapping[str, torch.Tensor] | None = field(repr=False, compare=False, default=None)
    wire: Callable[[], Wiring] | None = field(repr=False, compare=False, default=None)

    @property
    def counts(self) -> dict[str, int]:
        return {layer.name: layer.kept for layer in self.layers}

    def draw(self, seed: int = 0, sampler: str | Sampler = "exact", **args: Any) -> dict[str, torch.Tensor]:
        """Masks {layer name: bool tensor of the weight's shape} at random positions; the same on every machine.

        `sampler` names who draws: "exact", "filters", "scored" (needs a scheme with scores), "mica" (needs the input
        shape), any other of the shelf, a file, or a Sampler.
        """
        found, given = find_sampler(sampler)
        arguments = bind(found.name, found.function, {**given, **args})
        return found.draw(self.table, self.counts, seed, self.scores, arguments, self.wire)

    def as_json(self, model: str) -> dict[str, Any]:
        """The plan as plain values, as `rpbench plan --format json` prints it."""
        return {
            "model": model,
            "scheme": self.scheme,
            "requested": self.requested,
            "allocated": self.allocated,
            "kept": self.kept,
            "prunable": self.prunable,
            "dense_macs": self.dense_macs,
            "sparse_macs": self.sparse_macs,
            "warnings": list(self.warnings),
            "layers": [
                {
                    "name": layer.name,
                    "shape": list(layer.shape),
                    "numel": layer.numel,
                    "density": layer.density,
                    "kept": layer.kept,
                    "macs": layer.macs,
                }
                for layer in self.layers
            ],
        }


def plan(
    model: nn.Module,
    scheme: str | Scheme,
    density: float,
    *,
    input_shape: tuple[int, ...] | None = None,
    batches: Iterable[Batch] | None = None,
    seed: int = 0,
    **options: Any,
) -> Plan:
    """Plan `scheme` at `density` on any net: per-layer densities and counts that meet the budget exactly.

    `batches` are labelled training batches [(images, classes), ...] for schemes that look at data; others ignore them.
    `input_shape` is (channels, height, width) of one example, for multiply-adds (taken from the batches where absent).
    `seed` decides what a scheme draws at random (SNIP's `reinit=xavier`); `options` are the scheme's own.

    Raises InfeasibleBudget, SchemeError, ModelError or UsageError, each with one sentence.
    """
    found, given = find_scheme(scheme)
    args = bind(found.name, found.function, {**given, **options})
    density = check_density(density)
    if batches is not None:
        batches, shape = _peek(batches)
        input_shape = input_shape if input_shape is not None else shape
    table = layer_table(model, input_shape)
    planned = plan_table(table, found, density, Probe(model, table, density, batches, seed=seed), args)
    if input_shape is None:
        return planned
    shape = tuple(input_shape)

    def wire() -> Wiring:
        from rpbench.tracing import wire

        return wire(model, table, shape)

    return replace(planned, wire=wire)


def _peek(batches: Iterable[Batch]) -> tuple[Iterable[Batch], tuple[int, ...] | None]:
    """The batches, and the shape of one image (None for whole-number inputs); takes one batch and puts it back."""
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        return iterator, None
    x, _ = check_batch(first)
    return chain([first], iterator), tuple(x.shape[1:]) if x.is_floating_point() else None


def plan_table(table: LayerTable, scheme: Scheme, density: float, probe: Probe | None, args: Mapping[str, Any]) -> Plan:
    """The plan of a scheme on a layer table; `probe` may be None for shape schemes."""
    if not len(table):
        raise UsageError("an empty layer table: nothing to prune")
    densities, scores = scheme.allocate(table, density, probe, args)
    counts = counts_from_densities(table, densities, density)
    rows = tuple(
        PlannedLayer(x.name, x.shape, x.numel, float(densities[x.name]), counts[x.name], x.macs) for x in table
    )
    counted = all(layer.macs is not None for layer in table)
    return Plan(
        scheme=scheme.name,
        requested=density,
        allocated=sum(row.density * row.numel for row in rows) / table.prunable,
        kept=sum(counts.values()),
        prunable=table.prunable,
        dense_macs=sum(row.macs or 0 for row in rows) if counted else None,
        sparse_macs=sum((row.macs or 0) * row.kept / row.numel for row in rows) if counted else None,
        layers=rows,
        warnings=tuple(_warnings(table, counts)),
        batches_used=probe.batches_used if probe else 0,
        images_used=probe.images_used if probe else 0,
        table=table,
        scores=scores,
    )


def _warnings(table: LayerTable, counts: Mapping[str, int]) -> Iterable[str]:
    yield from table.notes
    empty = [layer.name for layer in table if counts[layer.name] == 0]
    if empty:
        yield f"{len(empty)} of {len(table)} layers keep no weight: {', '.join(empty)}"
    last = table.last
    if 0 < counts[last.name] < last.shape[0]:
        yield (
            f"the classifier '{last.name}' keeps {counts[last.name]} weights for {last.shape[0]} outputs: "
            "some outputs see nothing"
        )
