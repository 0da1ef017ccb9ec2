"""How many weights may stay, and where: arithmetic on layer tables, no model, no tensor.

N is the number of prunable weights, d the requested density, N_l and p_l a layer's weights and density.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import numpy as np

from rpbench.errors import InfeasibleBudget, SchemeError, ScoreError, UsageError
from rpbench.layers import Layer, LayerTable

Densities = Mapping[str, float]
Counts = Mapping[str, int]


def check_density(density: float) -> float:
    """`density` as a float in (0, 1], else UsageError."""
    if isinstance(density, bool | str) or not isinstance(density, Real):
        raise UsageError(f"density {density!r} is a {type(density).__name__}, not a number")
    if not 0.0 < density <= 1.0:
        raise UsageError(f"density {density} is not a fraction of weights kept: give a number above 0 and at most 1")
    return float(density)


def budget(density: float, prunable: int) -> int:
    """Weights kept in all: round(d * N). InfeasibleBudget where that keeps none."""
    kept = round(check_density(density) * prunable)
    if kept < 1:
        raise InfeasibleBudget(density, 1 / prunable, why=f"it keeps none of {prunable:,} weights")
    return kept


def spread(
    table: LayerTable,
    weight: Callable[[Layer], float],
    density: float,
    fixed: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Densities p_l = min(1, e * weight(l)) with the one e that meets the budget: sum of N_l p_l = d N.

    `fixed` holds the densities of layers that are set beforehand. Layers that saturate at 1 pass their surplus on
    ("make the largest offender dense, re-solve, repeat"); as the order in which layers saturate is that of their
    weights, one pass over the sorted layers finds e.

    Raises InfeasibleBudget where the fixed layers alone exceed the budget, or all others cannot use it up.
    """
    fixed = dict(fixed or {})
    free = [layer for layer in table if layer.name not in fixed]
    total = table.prunable
    spent = math.fsum(fixed[layer.name] * layer.numel for layer in table if layer.name in fixed)
    room = sum(layer.numel for layer in free)
    target = density * total - spent
    slack = 1e-9 * total
    if target < -slack or target > room + slack:
        held = ", ".join(f"{name} at {p:g}" for name, p in fixed.items())
        raise InfeasibleBudget(density, spent / total, (spent + room) / total, f"with {held}" if held else "")

    weights = {layer.name: float(weight(layer)) for layer in free}
    if any(not math.isfinite(w) or w <= 0 for w in weights.values()):
        bad = next(name for name, w in weights.items() if not math.isfinite(w) or w <= 0)
        raise SchemeError(f"the weight of layer '{bad}' is {weights[bad]}: it must be positive and finite")
    target = min(max(target, 0.0), float(room))
    densities = dict(fixed)
    by_weight = sorted(free, key=lambda layer: -weights[layer.name])
    mass = [weights[layer.name] * layer.numel for layer in by_weight]
    for i, layer in enumerate(by_weight):
        e = target / math.fsum(mass[i:])
        if e * weights[layer.name] < 1.0:
            densities.update((rest.name, e * weights[rest.name]) for rest in by_weight[i:])
            break
        densities[layer.name] = 1.0
        target -= layer.numel
    return {layer.name: densities[layer.name] for layer in table}


def root(function: Callable[[float], float], low: float, high: float) -> float:
    """The zero of a function that rises from <= 0 at `low` to >= 0 at `high`, to the last bit (bisection)."""
    while True:
        middle = 0.5 * (low + high)
        if not low < middle < high:
            return middle
        if function(middle) < 0:
            low = middle
        else:
            high = middle


def check_budget(table: LayerTable, densities: Densities, density: float) -> None:
    """SchemeError unless every layer has one density in [0, 1] and together they meet the budget up to rounding.

    A scheme may round every layer to whole weights: half a weight a layer is what it may be off in all.
    """
    missing = [name for name in table.names if name not in densities]
    unknown = [str(name) for name in densities if name not in set(table.names)]
    if missing or unknown:
        parts = [f"no density for {', '.join(missing)}"] if missing else []
        parts += [f"unknown layers {', '.join(unknown)}"] if unknown else []
        raise SchemeError("; ".join(parts))
    for layer in table:
        p = densities[layer.name]
        if not isinstance(p, int | float | np.number) or not math.isfinite(p) or not -1e-12 <= p <= 1 + 1e-12:
            raise SchemeError(f"density of layer '{layer.name}' is {p}: it must lie in [0, 1]")
    allocated = math.fsum(densities[layer.name] * layer.numel for layer in table)
    asked = density * table.prunable
    if abs(allocated - asked) > max(1.0, 0.5 * len(table)) + 1e-6:
        raise SchemeError(
            f"off budget: {density:g} of {table.prunable:,} weights is {asked:,.0f}, allocated {allocated:,.0f} "
            f"(density {allocated / table.prunable:.6g}, off by {allocated - asked:+,.0f})"
        )


def counts_from_densities(table: LayerTable, densities: Densities, density: float) -> dict[str, int]:
    """Weights kept per layer, in all exactly round(d * N): largest remainders of N_l p_l, ties in table order.

    Raises what `check_budget` and `budget` raise.
    """
    kept = budget(density, table.prunable)
    check_budget(table, densities, density)
    exact = {layer.name: min(1.0, max(0.0, float(densities[layer.name]))) * layer.numel for layer in table}
    # a share that misses a whole number by float noise is that number, on every machine
    exact = {name: float(round(x)) if abs(x - round(x)) < 1e-6 else x for name, x in exact.items()}
    counts = {name: math.floor(x) for name, x in exact.items()}
    room = {layer.name: layer.numel for layer in table}
    while (off := kept - sum(counts.values())) != 0:
        sign = 1 if off > 0 else -1
        able = [n for n in counts if (counts[n] < room[n] if sign > 0 else counts[n] > 0)]
        # layers that a scheme set to exactly 0 or 1 move last
        able.sort(key=lambda n: (exact[n] in (0.0, float(room[n])), -sign * round(exact[n] - counts[n], 9)))
        for name in able[: abs(off)]:
            counts[name] += sign
    return counts


def densities_from_scores(table: LayerTable, scores: Mapping[str, Any], density: float) -> dict[str, float]:
    """Each layer's share of the round(d * N) highest scores of the whole net.

    `scores` maps layer names to arrays of the weights' shapes (higher = keep). Weights that tie at the threshold are
    shared between layers in proportion to how many of them each holds, so that no order of layers matters.

    Raises ScoreError where scores are not finite or all equal: that ranks nothing. SchemeError for wrong shapes.
    """
    kept = budget(density, table.prunable)
    flat = [values.ravel() for values in check_scores(table, scores)]
    everything = np.concatenate(flat)
    if everything.min() == everything.max():
        raise ScoreError(
            f"all {everything.size:,} scores are equal ({everything[0]:g}): they rank nothing "
            "(a classifier that starts at zero lets no gradient through)"
        )
    threshold = np.partition(everything, everything.size - kept)[everything.size - kept]
    above = np.array([int((v > threshold).sum()) for v in flat], dtype=np.float64)
    ties = np.array([int((v == threshold).sum()) for v in flat], dtype=np.float64)
    shares = above + ties * ((kept - above.sum()) / ties.sum())
    return {layer.name: float(s) / layer.numel for layer, s in zip(table, shares, strict=True)}


def check_scores(table: LayerTable, scores: Mapping[str, Any]) -> list[Any]:
    """The scores as arrays in table order.

    Raises SchemeError where layers are missing or unknown, or an array has another shape than its weight or no real
    numbers; ScoreError where one is not finite.
    """
    missing = [name for name in table.names if name not in scores]
    if missing:
        raise SchemeError(f"no scores for {', '.join(missing)}")
    if unknown := [str(name) for name in scores if name not in set(table.names)]:
        raise SchemeError(f"scores of unknown layers {', '.join(unknown)}")
    found: list[Any] = []
    for layer in table:
        values = np.asarray(scores[layer.name])
        if tuple(values.shape) != layer.shape:
            raise SchemeError(f"scores of '{layer.name}' have shape {tuple(values.shape)}, its weight {layer.shape}")
        if values.dtype.kind not in "fiub":
            raise SchemeError(f"scores of '{layer.name}' are {values.dtype}: they must be real numbers")
        if not np.isfinite(values).all():
            raise ScoreError(f"scores of layer '{layer.name}' are not finite: they rank nothing")
        found.append(values)
    return found
