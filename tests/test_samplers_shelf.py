"""What is particular to each sampler of the shelf; the contract of all of them is tested elsewhere."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from click.testing import Result
from torch import nn
from torch.nn.utils import prune

import rpbench
from rpbench.catalog import find_sampler, sampler_names, shelf
from rpbench.connectivity import paths
from rpbench.layers import layer_table
from rpbench.masks import digest
from rpbench.models import build, resolve
from rpbench.published import read_board
from rpbench.tracing import wire

Masks = dict[str, torch.Tensor]


def net(name: str, channels: int = 3) -> nn.Module:
    with torch.device("meta"):
        family = "imagenet" if name in ("resnet18", "resnet50") else "cifar"
        return build(resolve(name, family), 10, channels, 32)  # type: ignore[arg-type]


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


@pytest.mark.parametrize("name", ["resnet8", "resnet20", "resnet20-64"])
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


# --- mica -----------------------------------------------------------------------------------------------------------

MICA, EXACT = find_sampler("mica")[0], find_sampler("exact")[0]


def alive(model: nn.Module, masks: Masks, shape: tuple[int, ...]) -> dict[str, int]:
    """Weights of every layer on a path, by real convolutions: with the masks for weights, nothing subtracted or
    cancelled, a weight is on a path where the gradient of the outputs' sum at it is not zero."""
    model = copy.deepcopy(model).double().eval()
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.MaxPool2d):
                setattr(module, name, nn.AvgPool2d(child.kernel_size, child.stride, child.padding))
            elif isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        parameter.data = masks[name].double() if name in masks else torch.zeros_like(parameter)
    model(torch.ones(1, *shape, dtype=torch.float64)).sum().backward()
    return {name: int((mask & (parameters[name].grad != 0)).sum()) for name, mask in masks.items()}  # type: ignore[operator]


def cut_off(model: nn.Module, plan: rpbench.Plan, shape: tuple[int, ...]) -> int:
    """Weights that no choice of positions connects: those of layers that are on no path when every layer that keeps
    any weight is dense."""
    dense = {layer.name: torch.full(layer.shape, layer.kept > 0) for layer in plan.layers}
    there = alive(model, dense, shape)
    return sum(layer.kept for layer in plan.layers if not there[layer.name])


NETS = {
    "resnet8": ("cifar", 1, 8),
    "resnet20": ("cifar", 3, 32),
    "resnet20-64": ("cifar", 3, 32),
    "vgg16": ("cifar", 3, 32),
    "resnet18": ("imagenet", 3, 64),
    "resnet50": ("imagenet", 3, 64),
}
SCHEMES = ["erk", "er", "igq", "uniform"]
DENSITIES = [0.1, 0.01, 0.001, 0.0001]
FEW = [("resnet8", s) for s in SCHEMES] + [("resnet20", "erk"), ("resnet20", "uniform"), ("vgg16", "erk")]
MANY = [(n, s) for n in NETS for s in SCHEMES if (n, s) not in FEW]


def assured(name: str, scheme: str, densities: list[float]) -> None:
    """Every weight that can be connected is, and exact loses most of them where it matters."""
    family, channels, size = NETS[name]
    shape, model = (channels, size, size), build(resolve(name, family), 10, channels, size)  # type: ignore[arg-type]
    wiring = wire(model, layer_table(model), shape)
    for density in densities:
        plan = rpbench.plan(model, scheme, density)
        masks, drawn = MICA.draw(plan.table, plan.counts, 0, None, {"inputs": "max"}, lambda: wiring), plan.draw(0)
        there = sum(alive(model, masks, shape).values())
        assert there == plan.kept - cut_off(model, plan, shape), (name, scheme, density)
        assert there >= sum(alive(model, drawn, shape).values())
        found = paths(model, plan.table, masks, shape)
        assert found is not None
        assert round(found.effective * plan.prunable) == there


@pytest.mark.parametrize(("name", "scheme"), FEW)
def test_mica_leaves_no_weight_without_a_path(name: str, scheme: str) -> None:
    assured(name, scheme, DENSITIES if name != "vgg16" else [0.0001])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "scheme"), MANY)
def test_mica_leaves_no_weight_without_a_path_anywhere(name: str, scheme: str) -> None:
    assured(name, scheme, DENSITIES)


def test_effective_densities_of_mica_and_exact() -> None:
    """ResNet-20, ERK, 271 weights: all of them on a path, against less than a tenth."""
    model, shape = build(resolve("resnet20", "cifar"), 10, 3, 32), (3, 32, 32)
    plan = rpbench.plan(model, "erk", 0.001, input_shape=shape)
    for seed in range(3):
        found = [paths(model, plan.table, plan.draw(seed, sampler), shape) for sampler in ("mica", "exact")]
        assert [f is not None for f in found] == [True, True]
        assert found[0].effective == plan.kept / plan.prunable  # type: ignore[union-attr]
        assert found[1].effective < 0.1 * plan.kept / plan.prunable  # type: ignore[union-attr]


class Concatenated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 2, 3), nn.Conv2d(8, 4, 1, groups=2)
        self.fc = nn.Linear(4 * 9, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.a(x).relu(), self.b(x).relu()], 1)
        return self.fc(nn.functional.max_pool2d(self.c(x), 2).flatten(1))


class Padded(nn.Module):
    """A shortcut without weights (option A): every second pixel, zeros for the new channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.fc = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, 2, padding=1), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        short = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return self.fc((self.conv(x) + short).mean((2, 3)))


def feeds_of(model: nn.Module, shape: tuple[int, ...]) -> dict[tuple[int | None, int | None], list[tuple[int, int]]]:
    found = wire(model, layer_table(model), shape)
    return {(f.source, f.target): list(zip(f.outputs.tolist(), f.inputs.tolist(), strict=True)) for f in found.feeds}


def test_wiring_by_hand() -> None:
    def same(n: int) -> list[tuple[int, int]]:
        return [(i, i) for i in range(n)]

    assert feeds_of(Padded(), (1, 6, 6)) == {
        (None, 0): same(1), (0, 1): same(4), (0, 2): [(0, 2), (1, 3), (2, 4), (3, 5)], (1, 2): same(8),
        (2, None): same(3),
    }  # fmt: skip
    assert feeds_of(Concatenated(), (3, 8, 8)) == {
        (None, 0): same(3), (None, 1): same(3), (0, 2): same(6), (1, 2): [(0, 6), (1, 7)],
        (2, 3): [(i // 9, i) for i in range(36)], (3, None): same(5),
    }  # fmt: skip
    resnet = feeds_of(build(resolve("resnet8", "cifar"), 10, 1, 8), (1, 8, 8))
    # stem, conv1, conv2 | conv1, conv2, shortcut | conv1, conv2, shortcut | classifier
    assert set(resnet) == {
        (None, 0), (0, 1), (1, 2), (0, 3), (2, 3), (3, 4), (0, 5), (2, 5), (4, 6), (5, 6), (6, 7), (4, 8), (5, 8),
        (7, 9), (8, 9), (9, None),
    }  # fmt: skip
    assert resnet[2, 5] == same(16)


@pytest.mark.parametrize("density", [0.6, 0.3, 0.15])
@pytest.mark.parametrize("make", [Concatenated, Padded])
def test_mica_on_concatenations_groups_and_padded_shortcuts(make: type[nn.Module], density: float) -> None:
    model, shape = make(), (3 if make is Concatenated else 1, 8, 8)
    plan = rpbench.plan(model, "balanced", density, input_shape=shape)
    for seed, inputs in enumerate(["max", "min", "rand"]):
        masks = plan.draw(seed, f"mica:inputs={inputs}")
        found = paths(model, plan.table, masks, shape)
        assert found is not None
        assert round(found.effective * plan.prunable) == plan.kept


@pytest.mark.parametrize("name", ["mobilenet_v2", "squeezenet1_1"])
def test_mica_on_nets_of_others(name: str) -> None:
    """Depthwise convolutions; concatenations."""
    with torch.device("meta"):
        model = torchvision.models.get_model(name, num_classes=5)
    plan = rpbench.plan(model, "erk", 0.01, input_shape=(3, 64, 64))
    assert plan.wire is not None
    wiring, masks = plan.wire(), plan.draw(0, "mica")
    there = wiring.on_path(masks)
    assert all(there[name][mask.numpy()].all() for name, mask in masks.items())


def test_mica_keeps_as_many_as_any_choice_does() -> None:
    """Every pair of counts on a net of 2 x 3 and 3 x 2 weights, against the best of all 4096 pairs of masks."""
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False))
    table = layer_table(model)
    wiring = wire(model, table, (2,))
    every = np.array(list(itertools.product([False, True], repeat=6)))
    best: dict[tuple[int, int], int] = {}
    for a, b in itertools.product(every.reshape(-1, 3, 2), every.reshape(-1, 2, 3)):
        through = a.any(1) & b.any(0)
        kept = (int(a.sum()), int(b.sum()))
        best[kept] = max(best.get(kept, 0), int(a[through].sum() + b[:, through].sum()))
    for (a, b), most in best.items():
        counts = dict(zip(table.names, (a, b), strict=True))
        for seed, inputs in enumerate(["max", "min", "rand"]):
            masks = MICA.draw(table, counts, seed, None, {"inputs": inputs}, lambda: wiring)
            assert sum(alive(model, masks, (2,)).values()) == most, (counts, inputs)


@pytest.mark.parametrize(
    ("outputs", "count", "most", "fewest"),
    [
        (32, 360, 40, 12),  # 360 // 9 give every kernel position a weight, 360 / 32 hold the count
        (32, 36, 4, 2),
        (32, 9000, 64, 64),  # there are no more
        (8, 360, 45, 45),  # fewer than 360 / 8 would not hold the count with one weight of a kernel each
    ],
)
def test_how_many_inputs_are_wanted(outputs: int, count: int, most: int, fewest: int) -> None:
    model = nn.Sequential(
        nn.Conv2d(64, 64, 1), nn.Conv2d(64, outputs, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(outputs, 10)
    )
    table = layer_table(model)
    wiring = wire(model, table, (64, 8, 8))
    counts = dict(zip(table.names, (64, count, 10 * outputs), strict=True))
    used = {}
    for inputs in ("max", "min", "rand"):
        masks = MICA.draw(table, counts, 0, None, {"inputs": inputs}, lambda: wiring)
        used[inputs] = int(masks["1.weight"].any(0).any(-1).any(-1).sum())
        assert used[inputs] == int((rows_of(masks["0.weight"]) > 0).sum())
    assert (used["max"], used["min"]) == (most, fewest)
    assert fewest <= used["rand"] <= most


def test_masks_of_mica_follow_from_net_counts_and_seed() -> None:
    model = build(resolve("resnet8", "cifar"), 10, 1, 8)
    plan = rpbench.plan(model, "erk", 0.05, input_shape=(1, 8, 8))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    torch.manual_seed(3)
    drawn = [digest(plan.draw(seed, "mica")) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    on_meta = rpbench.plan(net("resnet8", 1), "erk", 0.05, input_shape=(1, 8, 8)).draw(0, "mica")
    assert digest(on_meta) == drawn[0]


@pytest.mark.parametrize("share", [0, 1])
def test_mica_keeps_nothing_and_everything(share: int) -> None:
    plan = rpbench.plan(net("resnet8", 1), "erk", 0.05, input_shape=(1, 8, 8))
    counts = {layer.name: share * layer.numel for layer in plan.table}
    masks = MICA.draw(plan.table, counts, 0, None, {"inputs": "max"}, plan.wire)
    assert all(bool(mask.all() if share else not mask.any()) for mask in masks.values())


def test_mica_spreads_over_a_layer_that_has_room() -> None:
    """At a density where nothing needs assurance, every position is kept about equally often, as by exact."""
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.Flatten(), nn.Linear(20, 3))
    plan = rpbench.plan(model, "uniform", 0.5, input_shape=(4, 6, 6))
    assert plan.wire is not None
    wiring = plan.wire()
    draws = [MICA.draw(plan.table, plan.counts, s, None, {"inputs": "max"}, lambda: wiring) for s in range(150)]
    times = sum(masks["0.weight"].double() for masks in draws).numpy()  # type: ignore[union-attr]
    assert abs(times - 75).max() < 5 * math.sqrt(150 / 4)


class Attentive(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x[:, 0]
        return self.head(self.attention(rows, rows, rows)[0].mean(1))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.a(x) * self.b(x).sigmoid())


class Mixed(nn.Module):
    """Running sums over channels: no input comes from one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.a(x).cumsum(-1))


class Twice(nn.Module):
    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        if shared:
            self.b.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.b(self.b(self.a(x))))


@pytest.mark.parametrize(
    ("model", "shape", "why"),
    [
        (Attentive(3), (1, 8, 8), "attention or recurrence"),
        (Gated(), (4,), "'fc.weight' sees more than sums"),
        (Mixed(), (4,), "'fc.weight' sees more than sums"),
        (Twice(shared=False), (4,), "'b.weight' is called twice"),
        (Twice(shared=True), (4,), "'b.weight' is another layer's weight too"),
        (nn.Sequential(nn.ConvTranspose2d(1, 2, 3), nn.Flatten(), nn.Linear(50, 2)), (1, 3, 3), "transposed"),
    ],
    ids=["attention", "gate", "mixture", "twice", "tied", "transposed"],
)
def test_nets_that_cannot_be_followed_are_refused(model: nn.Module, shape: tuple[int, ...], why: str) -> None:
    with pytest.raises(rpbench.UsageError, match=f"the channels of .* cannot be followed.*: .*{why}"):
        rpbench.plan(model, "uniform", 0.5, input_shape=shape).draw(0, "mica")


def test_mica_asks_for_the_size_of_an_input() -> None:
    with pytest.raises(rpbench.UsageError, match=r"'mica' follows the net.*input_shape=\(channels, height, width\)"):
        rpbench.plan(net("resnet20"), "erk", 0.1).draw(0, "mica")


def test_a_run_with_mica(tmp_path: Path, invoke: Callable[..., Result]) -> None:
    """Effective equals realised density in the record; what cannot be drawn is said before anything is written."""
    asked = ("run", "--density", "0.005", "--sampler", "mica", "--set", "recipe.epochs=1", "--format", "json")
    record = json.loads(invoke(*asked).stdout)
    assert record["density"]["effective"] == record["density"]["realised"] == 385 / 77072
    plan = rpbench.plan(build(resolve("resnet8", "cifar"), 10, 1, 8), "erk", 0.005, input_shape=(1, 8, 8))
    assert record["masks"]["digest_end"] == digest(plan.draw(0, "mica"))
    file = tmp_path / "net.py"
    file.write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 10)\n"
        "    def forward(self, x):\n"
        "        x = x[:, 0]\n"
        "        return self.head(self.attention(x, x, x)[0].mean(1))\n"
        "def make(): return Net()\n"
    )
    refused = invoke("run", "--model", f"{file}:make", "--sampler", "mica", "--store", str(tmp_path / "other"))
    assert refused.exit_code == 2
    assert "the channels of Net cannot be followed" in refused.stderr
    assert not list((tmp_path / "other").glob("*/record.json"))


def test_what_the_published_board_shows() -> None:
    """The numbers that the README and the board's file name; no published weight of mica is without a path."""
    found = [e for e in read_board("digits-samplers").entries if e.scheme == "erk"]
    assert all(e.effective == e.realised for e in found if e.sampler == "mica")
    sparse = {name: [e for e in found if (e.sampler, e.density) == (name, 0.005)] for name in sampler_names()}
    top1 = {name: np.mean([e.metrics["top1"] for e in some]) for name, some in sparse.items() if some}
    assert {name: round(100 * mean) for name, mean in top1.items()} == {"mica": 69, "exact": 32, "filters": 18}
    assert 0.35 < np.mean([e.effective / e.realised for e in sparse["exact"] if e.effective and e.realised]) < 0.45


# Whatever device, machine or release; at 77 weights mica moves some to a path.
PINNED = {
    ("filters", "resnet20", "erk", 0.1): "1680611d3b12572201a6625bfee068c8000b503e8c7b14f79ebd7b653db4df1a",
    ("mica", "resnet20", "erk", 0.1): "7a112d427a5b6e6083c7193a002714828d73f9dc3b10b60f02e6777bc9fccbe1",
    ("mica", "resnet8", "er", 0.001): "024ba2bd62c1652de8e190c280dbafcd7cb21131983dc1bc79c0d8e863219b6d",
}


@pytest.mark.parametrize("asked", PINNED, ids=str)
def test_masks_of_the_shelf_never_change(asked: tuple[str, str, str, float]) -> None:
    sampler, name, scheme, density = asked
    _, channels, size = NETS[name]
    plan = rpbench.plan(net(name, channels), scheme, density, input_shape=(channels, size, size))
    assert digest(plan.draw(0, sampler)) == PINNED[asked]
