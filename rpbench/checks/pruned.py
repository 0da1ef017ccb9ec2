"""Checks of what was pruned: counts follow from the scheme, masks from counts and seed, costs from the net."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch

from rpbench.checks.known import Known
from rpbench.checks.told import Skipped, Told
from rpbench.connectivity import paths
from rpbench.errors import InfeasibleBudget, RpbenchError
from rpbench.layers import LayerTable
from rpbench.masks import digest, kept
from rpbench.planning import Plan
from rpbench.tracing import wire
from rpbench.untrusted import shown

# Scores of data-driven schemes are sums of rounded products: with other threads, or on another machine, weights near
# the threshold change sides. Measured on the digits net with 1 and 2 threads: none. What may move is far below what
# would change a result.
FEW = 8
PART = 1e-4


def moved_at_most(prunable: int) -> int:
    """Weights that may stand in other layers (or at other positions) than a score scheme says on this machine."""
    return max(FEW, math.ceil(PART * prunable))


def counts(told: Told, known: Known) -> Iterator[str]:
    """Layers are the net's, and the scheme, called again, keeps as many of each; of data-driven ones a few may move."""
    d, table = told.record.density, known.net(told.record).table
    if list(d.layers) != list(table.names):
        yield f"density.layers are not those of '{told.record.model.name}'"
        return
    if list(d.numel_per_layer) != [layer.numel for layer in table]:
        yield f"density.numel_per_layer is not that of '{told.record.model.name}'"
        return
    try:
        plan = known.planned(told)
    except InfeasibleBudget as error:
        if told.record.status != "infeasible":
            yield f"status is {told.record.status}, but the scheme says: {error}"
        return
    if told.record.status == "infeasible":
        yield f"status is infeasible, but the scheme meets density {d.requested:g}"
    if not told.ok:
        return
    if not known.sampler(told.record.sampler.name, told.record.sampler.source).exact:
        return  # the counts of such masks are drawn: `masks` compares them
    yield from _count_faults(told, plan, table)


def _count_faults(told: Told, plan: Plan, table: LayerTable) -> Iterator[str]:
    d, right = told.record.density, list(plan.counts.values())
    moved = sum(abs(a - b) for a, b in zip(d.kept_per_layer, right, strict=True)) / 2
    most = moved_at_most(table.prunable) if plan.scores is not None else 0
    if len(d.kept_per_layer) != len(right) or moved > most:
        name, a, b = next((n, a, b) for n, a, b in zip(table.names, d.kept_per_layer, right, strict=True) if a != b)
        allowed = f" (a data-driven scheme may differ by {most:,})" if most else ""
        yield f"{moved:,.0f} weights are in other layers than the scheme puts them{allowed}: '{name}' {a:,}, not {b:,}"
    elif d.allocated is None or abs(d.allocated - plan.allocated) * table.prunable > most + 1e-6:
        yield f"density.allocated is {d.allocated}: the scheme's densities add up to {plan.allocated}"
    elif moved == 0 and [w for w in told.record.warnings if w not in plan.warnings and "no path" not in w]:
        yield f"warnings are {shown('; '.join(told.record.warnings))}: the plan has {shown('; '.join(plan.warnings))}"
    elif moved == 0 and (hidden := [w for w in plan.warnings if w not in told.record.warnings]):
        yield f"warnings lack: {shown(hidden[0])}"


def batches(told: Told, known: Known) -> Iterator[str]:
    """As many labelled batches and images as the scheme asks for when it is called again."""
    part = told.record.scheme
    if told.record.status == "infeasible":
        return
    plan = known.planned(told)
    for word, told_number, used in (
        ("batches", part.batches, plan.batches_used),
        ("images", part.images, plan.images_used),
    ):
        if told_number != used:
            yield f"scheme.{word} is {told_number}: the scheme looks at {used}"


def masks(told: Told, known: Known) -> Iterator[str]:
    """Masks drawn again from the recorded counts and the mask seed have the recorded digest, before training and after,
    and the recorded part of them lies on a path from input to output."""
    record, part = told.record, told.record.masks
    if part.digest_start != part.digest_end or not part.digest_start:
        yield f"masks.digest_end is {shown(part.digest_end)}: it must be digest_start, {shown(part.digest_start)}"
        return
    table = known.net(record).table
    sampler = known.sampler(record.sampler.name, record.sampler.source)
    given = dict(zip(table.names, record.density.kept_per_layer, strict=False))
    if len(given) != len(table) or any(not 0 <= given[x.name] <= x.numel for x in table):
        yield "density.kept_per_layer does not fit the net"
        return
    if sampler.scored:
        drawn = _bits(told, table)
        yield from _scored_faults(told, known, table, given, drawn)
    else:
        if not sampler.exact:
            given = known.planned(told).counts
        drawn = _drawn(told, known, table, given)
    if (found := digest(drawn)) != part.digest_start:
        yield f"masks.digest_start is {part.digest_start[:12]}...: counts and mask seed give {found[:12]}..."
        return
    if kept(drawn) != record.density.kept_per_layer:
        yield "density.kept_per_layer is not what the masks keep"
    data, effective = known.task(record).data, record.density.effective
    reached = paths(known.net(record).net, table, drawn, (data.channels, data.size, data.size))
    right = reached.effective if reached else None
    if (effective is None) != (right is None) or (effective and right and abs(effective - right) > 1e-12):
        yield f"density.effective is {effective}: the masks have {right}"
    lost = f"{reached.unreached} of {data.classes} outputs are reached by no path" if reached else ""
    if reached and (bool(reached.unreached) != any("no path" in w for w in record.warnings)):
        yield f"warnings are {shown('; '.join(record.warnings))}: {lost}"


def _drawn(
    told: Told,
    known: Known,
    table: LayerTable,
    given: Mapping[str, int],
    scores: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """The masks of the record's sampler for these counts, drawn here."""
    record, net, data = told.record, known.net(told.record).net, known.task(told.record).data
    sampler = known.sampler(record.sampler.name, record.sampler.source)
    shape = (data.channels, data.size, data.size)
    return sampler.draw(table, given, record.seeds.mask, scores, _args(told, known), lambda: wire(net, table, shape))


def _args(told: Told, known: Known) -> Mapping[str, object]:
    from rpbench.checks.known import bound

    part = told.record.sampler
    return bound(part.name, known.sampler(part.name, part.source).function, part.args)


def _bits(told: Told, table: LayerTable) -> dict[str, torch.Tensor]:
    """The masks that stand beside a record; Skipped where there are none."""
    if told.evidence.masks is None:
        raise Skipped("masks that follow from scores are not among published lines, and masks.npz is not here")
    packed = told.evidence.masks()
    if set(packed) != set(table.names):
        raise RpbenchError("masks.npz has other layers than the net")
    found = {}
    for layer in table:
        bits = np.unpackbits(packed[layer.name], bitorder="little")
        if len(bits) < layer.numel or bits[layer.numel :].any() or len(bits) >= layer.numel + 8:
            raise RpbenchError(f"masks.npz: '{layer.name}' has {len(bits)} bits, its weight {layer.numel:,}")
        found[layer.name] = torch.from_numpy(bits[: layer.numel].astype(bool).reshape(layer.shape))
    return found


def _scored_faults(
    told: Told, known: Known, table: LayerTable, given: Mapping[str, int], drawn: Mapping[str, torch.Tensor]
) -> Iterator[str]:
    """Where bits are not those that the sampler keeps of the scheme's scores, but for a few near the threshold."""
    again = _drawn(told, known, table, given, known.planned(told).scores)
    moved = sum(int((again[name] != drawn[name]).sum()) for name in table.names) / 2
    if moved > (most := moved_at_most(table.prunable)):
        yield f"{moved:,.0f} weights of the masks are not those of the highest scores: {most:,} may differ"


def flops(told: Told, known: Known) -> Iterator[str]:
    """Parameters and multiply-adds are those of the net and the counts."""
    record, net = told.record, known.net(told.record)
    cost = record.cost
    counted = all(layer.macs is not None for layer in net.table)
    dense = sum(layer.macs or 0 for layer in net.table) if counted else None
    pairs = zip(net.table, record.density.kept_per_layer, strict=False)
    sparse = sum((x.macs or 0) * k / x.numel for x, k in pairs) if counted else None
    for name, told_number, right in (
        ("model.params", record.model.params, net.params),
        ("cost.params", cost.params, net.params),
        ("cost.dense_macs", cost.dense_macs, dense),
        ("cost.sparse_macs", cost.sparse_macs, sparse),
    ):
        same = told_number == right or (told_number and right and math.isclose(told_number, right, rel_tol=1e-9))
        if not same:
            yield f"{name} is {told_number}: net and counts give {right}"
