"""Ratios and counts against the numbers of other implementations."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import rpbench
from rpbench.budget import counts_from_densities, densities_from_scores
from rpbench.models import build, resolve

NETS = {
    "cifar_resnet_20": ("resnet20", "cifar", 10),
    "vgg16": ("vgg16", "cifar", 10),
    "resnet50": ("resnet50", "imagenet", 1000),
}
SCHEMES = {"ER": "er", "ERK": "erk", "ERK_plus": "erk_plus", "uniform": "uniform"}


def net(name: str, on: str = "meta") -> nn.Module:
    model, family, classes = NETS[name]
    with torch.device(on):
        return build(resolve(model, family), classes, 3, 32)  # type: ignore[arg-type]


def off_by(plan: rpbench.Plan, rows: list[dict[str, Any]]) -> float:
    assert [layer.shape for layer in plan.layers] == [tuple(row["shape"]) for row in rows]
    return max(abs(layer.density - row["density"]) for layer, row in zip(plan.layers, rows, strict=True))


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_ratios_of_the_released_code(golden: Path, name: str, scheme: str) -> None:
    published = json.loads((golden / "ratio_densities.json").read_text())[name][scheme]
    for density, rows in published.items():
        if density == "total_density":
            continue
        if min(row["density"] for row in rows) < 0:  # the released code goes negative where no budget is feasible
            with pytest.raises(rpbench.InfeasibleBudget, match=r"0\.0803"):
                rpbench.plan(net(name), SCHEMES[scheme], float(density))
            continue
        assert off_by(rpbench.plan(net(name), SCHEMES[scheme], float(density)), rows) < 1e-9


@pytest.mark.parametrize("name", NETS)
def test_uniform_plus_meets_its_budget(golden: Path, name: str) -> None:
    for density, rows in json.loads((golden / "uniform_plus_densities.json").read_text())[name].items():
        assert off_by(rpbench.plan(net(name), "uniform_plus", float(density)), rows) < 1e-9


@pytest.mark.parametrize(
    ("variant", "weights", "scheme", "batch", "options"),
    [
        ("snip_cifar", "resnet20_snip_xavier.pt", "snip", "batch128.pt", {}),
        pytest.param(  # the variant above on other weights
            "snip_imagenet_noreinit", "resnet20_init.pt", "snip", "batch128.pt", {}, marks=pytest.mark.slow
        ),
        pytest.param(  # the variant below in more images
            "grasp_cifar", "resnet20_init.pt", "grasp", "grasp250.pt", {"samples_per_class": 25, "halves": True},
            marks=pytest.mark.slow,
        ),
        (
            "grasp_cifar_batch128_10perclass", "resnet20_init.pt", "grasp", "batch128.pt",
            {"samples_per_class": 10, "halves": True},
        ),
    ],
)  # fmt: skip
def test_data_driven_counts(
    golden: Path,
    variant: str,
    weights: str,
    scheme: str,
    batch: str,
    options: dict[str, Any],
    set_threads: Callable[[int], None],
) -> None:
    """float64 reproduces every count; the files' budget is int(), ours round(): two weights in all."""
    set_threads(2)  # large enough to be worth it
    model = net("cifar_resnet_20", "cpu")
    model.load_state_dict(torch.load(golden / weights, weights_only=True))
    data = torch.load(golden / batch, weights_only=True)
    published = json.loads((golden / "snip_grasp_densities.json").read_text())[variant]["float64"]
    plan = rpbench.plan(model.double(), scheme, 0.1, batches=[(data["x"], data["y"])], **options)
    assert plan.scores is not None
    scores = {name: score.numpy() for name, score in plan.scores.items()}
    for density in (0.1, 0.2):
        counts = counts_from_densities(plan.table, densities_from_scores(plan.table, scores, density), density)
        off = [
            counts[layer.name] - row["kept"]
            for layer, row in zip(plan.table, published[str(density)]["layers"], strict=True)
        ]
        assert sum(map(abs, off)) <= 2


@pytest.mark.parametrize(("sparsity", "ratio"), [(0.8, 0.414), (0.9, 0.242), (0.95, 0.122), (0.965, 0.085)])
def test_erk_flops_of_resnet50(sparsity: float, ratio: float) -> None:
    """RigL's README: .42/.24/.12/.09 of the dense FLOPs."""
    plan = rpbench.plan(net("resnet50"), "erk", round(1 - sparsity, 6), input_shape=(3, 224, 224))
    assert plan.dense_macs == 4_089_184_256
    assert plan.sparse_macs is not None
    assert plan.sparse_macs / plan.dense_macs == pytest.approx(ratio, abs=5e-4)


@pytest.mark.parametrize(
    ("density", "classifier"), [(0.05, 0.076), (0.1, 0.153), (0.2, 0.318), (0.3, 0.496), (0.5, 1.0)]
)
def test_classifier_of_wrn50_under_erk(density: float, classifier: float) -> None:
    with torch.device("meta"):
        model = build(resolve("wrn50", "imagenet"), 1000, 3, 224)
    plan = rpbench.plan(model, "erk", density)
    assert plan.layers[-1].density == pytest.approx(classifier, abs=5e-4)


@pytest.mark.parametrize(("model", "least"), [("resnet50", 0.0803), ("resnet18", 0.0438), ("wrn50", 0.0298)])
def test_least_density_of_erk_plus(model: str, least: float) -> None:
    with torch.device("meta"):
        deep = build(resolve(model, "imagenet"), 1000, 3, 224)
    with pytest.raises(rpbench.InfeasibleBudget) as raised:
        rpbench.plan(deep, "erk_plus", 0.01)
    assert raised.value.least == pytest.approx(least, abs=5e-5)
    assert rpbench.plan(deep, "erk_plus", raised.value.least + 1e-6).kept


def test_smart_ratios_name_their_interval() -> None:
    """REFERENCE: every linear layer keeps 0.3, so torchvision's vgg16_bn has a narrow window; 1.0 never works."""
    import torchvision

    with torch.device("meta"):
        vgg = torchvision.models.vgg16_bn()
    for density in (0.2, 0.5, 1.0):
        with pytest.raises(rpbench.InfeasibleBudget, match="densities from") as raised:
            rpbench.plan(vgg, "smart", density)
    assert raised.value.least == pytest.approx(0.267, abs=2e-3)
    assert raised.value.most == pytest.approx(0.377, abs=4e-3)
    inside = rpbench.plan(vgg, "smart", 0.3)
    assert inside.kept == round(0.3 * inside.prunable)
