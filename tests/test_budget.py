"""Budgets: exact counts, shared remainders, clear refusals."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from scipy.optimize import brentq

from rpbench import InfeasibleBudget, SchemeError, ScoreError, UsageError
from rpbench.budget import budget, check_density, counts_from_densities, densities_from_scores, root, spread
from rpbench.layers import Layer, LayerTable


def table(*shapes: tuple[int, ...]) -> LayerTable:
    return LayerTable(tuple(Layer(f"l{i}", s, "conv" if len(s) > 2 else "linear") for i, s in enumerate(shapes)))


NET = table((16, 3, 3, 3), (32, 16, 3, 3), (32, 32, 1, 1), (64, 32, 3, 3), (10, 64))


@pytest.mark.parametrize("seed", range(40))
def test_spread_equals_a_root_finder(seed: int) -> None:
    """min(1, e * w) with e from scipy's brentq on the monotone total."""
    draw = random.Random(seed)
    weights = {layer.name: draw.uniform(1e-4, 1) ** 3 for layer in NET}
    fixed = {"l4": draw.random()} if draw.random() < 0.5 else {}
    held = sum(fixed.get(layer.name, 0) * layer.numel for layer in NET)
    room = sum(layer.numel for layer in NET if layer.name not in fixed)
    density = (held + draw.uniform(0.01, 0.99) * room) / NET.prunable

    def total(log_e: float) -> float:
        e = math.exp(log_e)
        return sum(fixed.get(x.name, min(1, e * weights[x.name])) * x.numel for x in NET) - density * NET.prunable

    e = math.exp(brentq(total, -60, 60, xtol=1e-14))
    found = spread(NET, lambda layer: weights[layer.name], density, fixed)
    for layer in NET:
        assert found[layer.name] == pytest.approx(fixed.get(layer.name, min(1, e * weights[layer.name])), rel=1e-9)


def test_spread_refuses_what_the_fixed_layers_exceed() -> None:
    with pytest.raises(InfeasibleBudget) as raised:
        spread(NET, lambda layer: 1.0, 0.01, fixed={"l3": 1.0})
    assert raised.value.least == pytest.approx(64 * 32 * 9 / NET.prunable)
    with pytest.raises(InfeasibleBudget, match="densities from"):
        spread(NET, lambda layer: 1.0, 0.99, fixed={"l3": 0.1})


@pytest.mark.parametrize("density", [0, -0.1, 1.0001, float("nan"), float("inf"), "half", True, None])
def test_density_must_be_a_fraction(density: object) -> None:
    with pytest.raises(UsageError, match="density"):
        check_density(density)  # type: ignore[arg-type]


def test_budget_rounds_as_python_does() -> None:
    assert budget(0.5, 5) == round(2.5)
    assert budget(0.1, 270_896) == 27_090
    with pytest.raises(InfeasibleBudget, match="keeps none of 10 weights"):
        budget(0.01, 10)


@pytest.mark.parametrize("seed", range(50))
def test_counts_meet_the_budget_and_stay_within_a_weight(seed: int) -> None:
    draw = np.random.default_rng(seed)
    density = float(draw.uniform(0.01, 0.9))
    found = spread(NET, lambda layer: float(layer.numel) ** -0.5, density)
    counts = counts_from_densities(NET, found, density)
    assert sum(counts.values()) == round(density * NET.prunable)
    assert all(abs(counts[x.name] - found[x.name] * x.numel) < 1 + 1e-9 for x in NET)
    assert all(counts[x.name] == x.numel for x in NET if found[x.name] == 1.0)


def test_largest_remainder_by_hand() -> None:
    small = table((1, 10), (1, 10), (1, 10))
    counts = counts_from_densities(small, {"l0": 0.14, "l1": 0.17, "l2": 0.19}, 0.5 / 3)
    assert list(counts.values()) == [1, 2, 2]


@pytest.mark.parametrize(
    ("densities", "says"),
    [
        ({"l0": 0.5}, "no density for l1"),
        ({"l0": 0.5, "l1": 0.5, "l9": 0.5}, "unknown layers l9"),
        ({"l0": float("nan"), "l1": 0.5}, "density of layer 'l0' is nan"),
        ({"l0": 1.5, "l1": 0.5}, "density of layer 'l0' is 1.5"),
        ({"l0": 0.5, "l1": "x"}, "density of layer 'l1' is x"),
        ({"l0": 0.9, "l1": 0.9}, "off budget: 0.5 of 2,000 weights is 1,000, allocated 1,800"),
    ],
)
def test_broken_contracts_are_named(densities: dict[str, float], says: str) -> None:
    with pytest.raises(SchemeError, match=says):
        counts_from_densities(table((10, 100), (10, 100)), densities, 0.5)


def test_densities_from_scores_counts_the_highest() -> None:
    draw = np.random.default_rng(0)
    scores = {layer.name: draw.normal(size=layer.shape) for layer in NET}
    found = densities_from_scores(NET, scores, 0.2)
    flat = np.sort(np.concatenate([s.ravel() for s in scores.values()]))
    edge = flat[-round(0.2 * NET.prunable)]
    for layer in NET:
        assert round(found[layer.name] * layer.numel) == int((scores[layer.name] >= edge).sum())


def test_ties_at_the_threshold_are_shared_fairly() -> None:
    two = table((10, 10), (10, 30))
    scores = {"l0": np.zeros((10, 10)), "l1": np.zeros((10, 30))}
    scores["l0"][0, 0] = 1.0
    found = densities_from_scores(two, scores, 0.5)
    assert found["l0"] * 100 == pytest.approx(1 + 99 * 199 / 399)
    assert found["l1"] * 300 == pytest.approx(300 * 199 / 399)


@pytest.mark.parametrize(("value", "says"), [(0.0, "all 37,370 scores are equal"), (float("nan"), "not finite")])
def test_scores_that_rank_nothing(value: float, says: str) -> None:
    total = NET.prunable
    with pytest.raises(ScoreError, match=says.replace("37,370", f"{total:,}")):
        densities_from_scores(NET, {x.name: np.full(x.shape, value) for x in NET}, 0.2)


def test_root_is_found_to_the_last_bit() -> None:
    assert root(lambda x: x * x - 2, 0, 2) == pytest.approx(math.sqrt(2), abs=1e-15)
