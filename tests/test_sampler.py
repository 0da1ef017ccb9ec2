"""Samplers and random streams: the same bits everywhere, the counts to the weight."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import rpbench
from rpbench import streams
from rpbench.catalog import find_sampler, sampler_names
from rpbench.masks import digest
from rpbench.models import build, resolve


def resnet20() -> torch.nn.Module:
    with torch.device("meta"):
        return build(resolve("resnet20", "cifar"), 10, 3, 32)


# Whatever device, process count, machine or release: a change here makes every published mask another one.
DIGESTS = {
    ("erk", 0.1, 0, "exact"): "145f2acef61f69eae9928d961a28d18b3265bf8b32198655b9aaf703af2c946d",
    ("erk", 0.5, 7, "exact"): "e54ee75f6c690e7d177c3921b479a905f392a4c23beb7b7f34ae55c308f2beb3",
    ("uniform", 0.05, 3, "bernoulli"): "ca049265afceb56fa3e15880d9dbaefd0c075647186cb94b896ae92fdead805d",
}


@pytest.mark.parametrize("asked", DIGESTS, ids=str)
def test_masks_never_change(asked: tuple[str, float, int, str]) -> None:
    scheme, density, seed, sampler = asked
    assert digest(rpbench.plan(resnet20(), scheme, density).draw(seed, sampler)) == DIGESTS[asked]


def test_raw_stream_is_numpys_philox() -> None:
    assert streams.raw(1, 3).tolist() == np.random.Philox(key=1).random_raw(3).tolist()
    assert streams.key("mask", 0, 1) != streams.key("mask", 1, 0)


@pytest.mark.parametrize("name", sampler_names())
def test_every_sampler_keeps_the_counts(name: str) -> None:
    model = build(resolve("resnet8", "cifar"), 10, 1, 8)
    batch = (torch.randn(64, 1, 8, 8), torch.arange(64) % 10)
    plan = rpbench.plan(model, "snip", 0.2, batches=[batch])
    masks = plan.draw(0, name)
    assert [tuple(m.shape) for m in masks.values()] == [layer.shape for layer in plan.layers]
    assert all(m.dtype is torch.bool for m in masks.values())
    kept = sum(int(m.sum()) for m in masks.values())
    if find_sampler(name)[0].exact:
        assert {n: int(m.sum()) for n, m in masks.items()} == plan.counts
    else:
        assert abs(kept - plan.kept) <= 4 * math.sqrt(plan.kept)
    assert digest(masks) == digest(plan.draw(0, name))
    assert (digest(masks) == digest(plan.draw(1, name))) is (name == "scored")


def test_masks_are_nested_over_densities() -> None:
    sparse, dense = (rpbench.plan(resnet20(), "uniform", d).draw(5) for d in (0.1, 0.3))
    assert all(bool((~sparse[name] | dense[name]).all()) for name in sparse)


def test_positions_are_uniform() -> None:
    """Every position of a layer is kept equally often over seeds: chi-square within five standard deviations."""
    plan = rpbench.plan(torch.nn.Linear(20, 10), "uniform", 0.3)
    times = sum(plan.draw(seed)["weight"].double() for seed in range(600)).numpy()  # type: ignore[union-attr]
    chi2 = ((times - 180) ** 2 / (600 * 0.3 * 0.7)).sum()
    assert abs(chi2 - 200) < 5 * math.sqrt(2 * 200)


def test_bernoulli_wanders_as_a_binomial() -> None:
    plan = rpbench.plan(torch.nn.Linear(100, 100), "uniform", 0.05)
    kept = np.array([int(plan.draw(seed, "bernoulli")["weight"].sum()) for seed in range(200)])
    assert abs(kept.mean() - 500) < 5 * math.sqrt(475 / 200)
    assert 0.8 < kept.std() / math.sqrt(475) < 1.2


def test_scored_keeps_the_highest_scores() -> None:
    model = build(resolve("resnet8", "cifar"), 10, 1, 8)
    plan = rpbench.plan(model, "snip", 0.2, batches=[(torch.randn(64, 1, 8, 8), torch.arange(64) % 10)])
    assert plan.scores is not None
    for name, mask in plan.draw(0, "scored").items():
        kept, pruned = plan.scores[name][mask], plan.scores[name][~mask]
        assert not len(kept) or not len(pruned) or kept.min() >= pruned.max()
    with pytest.raises(rpbench.UsageError, match="a scheme with scores"):
        rpbench.plan(model, "erk", 0.2).draw(0, "scored")


def test_a_sampler_that_miscounts_is_refused() -> None:
    @rpbench.mask_sampler
    def lazy(table, counts, key, scores):  # type: ignore[no-untyped-def]
        return {layer.name: np.ones(layer.shape, dtype=bool) for layer in table}

    with pytest.raises(rpbench.SchemeError, match="kept 200 weights of 'weight', not 60"):
        rpbench.plan(torch.nn.Linear(20, 10), "uniform", 0.3).draw(0, lazy)


def test_draws_are_in_range() -> None:
    key = streams.key("test")
    assert sorted(streams.permutation(key, 1000).tolist()) == list(range(1000))
    assert set(streams.integers(key, 2000, 9).tolist()) == set(range(9))
    u, z = streams.uniform(key, 10_000), streams.normal(key, 10_000)
    assert 0 <= u.min() < u.max() < 1
    assert abs(z.mean()) < 0.05
    assert abs(z.std() - 1) < 0.05
    assert np.isfinite(z).all()
