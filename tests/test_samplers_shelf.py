"""What is particular to each sampler of the shelf; the contract of all of them is tested elsewhere."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import rpbench
from rpbench.catalog import find_sampler, sampler_names, shelf
from rpbench.masks import digest
from rpbench.models import build, resolve

Masks = dict[str, torch.Tensor]


def net(name: str) -> nn.Module:
    with torch.device("meta"):
        family = "imagenet" if name in ("resnet18", "resnet50") else "cifar"
        return build(resolve(name, family), 10, 3, 32)  # type: ignore[arg-type]


def test_a_file_is_a_name() -> None:
    files = sorted(path.stem for path in shelf("baselines.samplers").glob("*.py") if path.stem != "__init__")
    assert sampler_names() == files
    for name in files:
        found, _ = find_sampler(name)
        assert found.name == name
        assert found.summary
        assert found.url


# --- filters --------------------------------------------------------------------------------------------------------


def rows_of(mask: torch.Tensor) -> np.ndarray[Any, Any]:
    """Weights kept of every filter."""
    return mask.flatten(1).sum(1).numpy()


@pytest.mark.parametrize("name", ["resnet20", "vgg16", "resnet18"])
@pytest.mark.parametrize("density", [0.003, 0.1, 0.37, 0.9])
def test_filters_are_whole_but_for_one(name: str, density: float) -> None:
    plan = rpbench.plan(net(name), "erk", density)
    masks = plan.draw(3, "filters")
    for layer in plan.table[:-1]:
        size = layer.numel // layer.shape[0]
        kept = sorted(rows_of(masks[layer.name]), reverse=True)
        whole, rest = divmod(plan.counts[layer.name], size)
        assert kept[: whole + 1] == [*[size] * whole, rest][: layer.shape[0]]
        assert not any(kept[whole + 1 :])
    last = plan.table.last.name
    assert torch.equal(masks[last], plan.draw(3, "exact")[last])


@pytest.mark.parametrize("density", [0.05, 0.25, 0.5, 0.8])
def test_filters_keep_as_many_channels_as_torch_does(density: float) -> None:
    """torch.nn.utils.prune.random_structured removes round(amount * channels) of them; here the count decides."""
    plan = rpbench.plan(net("resnet20"), "uniform", density)
    masks = plan.draw(0, "filters")
    for layer in plan.table[:-1]:
        module = nn.Conv2d(layer.shape[1], layer.shape[0], layer.shape[2:], bias=False)
        prune.random_structured(module, "weight", amount=1 - density, dim=0)
        theirs = int((rows_of(module.weight_mask) > 0).sum())  # type: ignore[arg-type]
        whole = int((rows_of(masks[layer.name]) == layer.numel // layer.shape[0]).sum())
        assert whole <= theirs <= whole + 1 or abs(theirs - density * layer.shape[0]) == 0.5


def test_filters_leave_fewer_channels_than_exact() -> None:
    """A 3x3 convolution of 16 channels at 5 %: exact leaves a filter empty with probability 0.95^144 (hypergeometric,
    so about it), filters leave 1 whole one and the rest of the count in another."""
    model = nn.Sequential(nn.Conv2d(16, 32, 3), nn.Flatten(), nn.Linear(32, 2))
    plan = rpbench.plan(model, "uniform", 0.05)
    alive = {
        s: [int((rows_of(plan.draw(i, s)["0.weight"]) > 0).sum()) for i in range(50)] for s in ("exact", "filters")
    }
    assert set(alive["filters"]) == {math.ceil(plan.counts["0.weight"] / 144)} == {2}
    assert np.mean(alive["exact"]) == pytest.approx(32 * (1 - 0.95**144), abs=0.1)


def test_every_filter_is_kept_equally_often() -> None:
    """Chi-square over 400 seeds within five standard deviations; nested over densities."""
    model = nn.Sequential(nn.Conv2d(4, 20, 3), nn.Flatten(), nn.Linear(20, 2))
    plan = rpbench.plan(model, "uniform", 0.25)
    times = sum((rows_of(plan.draw(seed, "filters")["0.weight"]) == 36).astype(float) for seed in range(400))
    chi2 = ((times - 100) ** 2 / (400 * 0.25 * 0.75)).sum()  # type: ignore[operator]
    assert abs(chi2 - 20) < 5 * math.sqrt(2 * 20)
    sparse, dense = plan.draw(1, "filters"), rpbench.plan(model, "uniform", 0.6).draw(1, "filters")
    assert all(bool((~sparse[k] | dense[k]).all()) for k in sparse)


def test_filters_of_depthwise_and_linear_layers() -> None:
    model = nn.Sequential(nn.Conv2d(6, 6, 3, groups=6), nn.Flatten(), nn.Linear(6, 8), nn.Linear(8, 3))
    masks = rpbench.plan(model, "uniform", 0.5).draw(0, "filters")
    assert sorted(rows_of(masks["0.weight"])) == [0, 0, 0, 9, 9, 9]
    assert sorted(rows_of(masks["2.weight"])) == [0, 0, 0, 0, 6, 6, 6, 6]
    assert int(masks["3.weight"].sum()) == 12


PINNED = {
    "filters": "1680611d3b12572201a6625bfee068c8000b503e8c7b14f79ebd7b653db4df1a",
}


@pytest.mark.parametrize("sampler", PINNED)
def test_masks_of_the_shelf_never_change(sampler: str) -> None:
    assert digest(rpbench.plan(net("resnet20"), "erk", 0.1).draw(0, sampler)) == PINNED[sampler]
