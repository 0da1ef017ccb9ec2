"""The contract of every scheme on the shelf, on nets that were and were not planned for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

import rpbench
from rpbench.budget import counts_from_densities, densities_from_scores
from rpbench.catalog import find_scheme, list_schemes, sampler_names, scheme_names
from rpbench.contract import Check, sampler_checks, scheme_checks
from rpbench.models import build, resolve

SHAPES = [n for n in scheme_names() if n not in ("dense", "given") and find_scheme(n)[0].kind == "shape"]
SCORES = [n for n in scheme_names() if find_scheme(n)[0].kind == "score"]
DENSITIES = [0.001, 0.01, 0.05, 0.1, 0.3, 0.5, 0.9]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 30), nn.ReLU(), nn.Linear(30, 7))


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 5, 1), nn.Flatten())


CONTRACTS = [
    pytest.param(check, id=f"{name}-{check}")
    for checks, names in ((scheme_checks, [*SHAPES, *SCORES, "dense"]), (sampler_checks, sampler_names()))
    for name in names
    for check in checks(name)
]


@pytest.mark.parametrize("check", CONTRACTS)
def test_contract(check: Check) -> None:
    """What `rpbench try` and other packages check of their own, on everything that is on the shelf."""
    check()


@pytest.mark.parametrize("scheme", SCORES)
def test_score_schemes_keep_the_dtype(scheme: str) -> None:
    model = build(resolve("resnet8", "cifar"), 10, 1, 8).double()
    batch = (torch.randn(128, 1, 8, 8), torch.arange(128) % 10)
    plan = rpbench.plan(model, scheme, 0.1, batches=[batch])
    assert plan.scores is not None
    assert all(score.dtype is torch.float64 for score in plan.scores.values())


@pytest.mark.parametrize("net", ["mobilenet_v2", "vit_b_16"])
def test_snip_on_nets_nobody_planned_for(net: str) -> None:
    torch.manual_seed(0)
    if net == "mobilenet_v2":
        model: nn.Module = torchvision.models.mobilenet_v2(num_classes=10)
    else:
        model = torchvision.models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=10)
    batch = (torch.randn(16, 3, 32, 32), torch.arange(16) % 10)
    if net == "vit_b_16":  # torchvision's head starts at zero and lets no gradient through
        with pytest.raises(rpbench.ScoreError, match="all .* scores are equal"):
            rpbench.plan(model, "snip", 0.1, batches=[batch])
        nn.init.normal_(model.heads.head.weight)  # type: ignore[union-attr, arg-type]
    plan = rpbench.plan(model, "snip", 0.1, batches=[batch])
    assert plan.kept == round(0.1 * plan.prunable)


@pytest.mark.slow
@pytest.mark.parametrize("net", ["resnet20", "vgg16", "resnet50", "wrn50"])
@pytest.mark.parametrize("scheme", SCORES)
def test_score_schemes_on_the_paper_s_nets(scheme: str, net: str) -> None:
    torch.manual_seed(0)
    model = build(resolve(net, "imagenet"), 10, 3, 32)
    batch = (torch.randn(20, 3, 32, 32), torch.arange(20) % 10)
    options = {"samples_per_class": 2} if scheme == "grasp" else {}
    plan = rpbench.plan(model, scheme, 0.1, batches=[batch], **options)
    assert plan.scores is not None
    scores = {name: score.numpy() for name, score in plan.scores.items()}
    for density in DENSITIES:
        counts = counts_from_densities(plan.table, densities_from_scores(plan.table, scores, density), density)
        assert sum(counts.values()) == round(density * plan.prunable)


def test_snip_by_hand() -> None:
    """|w g| of a linear net with one output pair, worked out: d NLL / d logits = p - onehot."""
    net = nn.Linear(3, 2, bias=False).double()
    x, y = torch.tensor([[1.0, 2.0, -1.0]]).double(), torch.tensor([1])
    p = torch.softmax(net(x), 1)[0].detach()
    expected = (net.weight.detach() * torch.outer(p - torch.tensor([0.0, 1.0]), x[0])).abs()
    plan = rpbench.plan(net, "snip", 0.5, batches=[(x, y)])
    assert plan.scores is not None
    torch.testing.assert_close(plan.scores["weight"], expected)


def test_grasp_by_hand() -> None:
    """w * Hg with an explicit Hessian, on a net small enough to have one."""
    torch.manual_seed(0)
    net = nn.Linear(4, 3, bias=False).double()
    x, y = torch.randn(6, 4).double(), torch.arange(6) % 3

    def loss(flat: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(x @ flat.view(3, 4).T / 200, y)

    w = net.weight.detach().flatten()
    g = torch.autograd.functional.jacobian(loss, w)
    h = torch.autograd.functional.hessian(loss, w)
    plan = rpbench.plan(net, "grasp", 0.5, batches=[(x, y)], samples_per_class=2)
    assert plan.scores is not None
    torch.testing.assert_close(plan.scores["weight"].flatten(), w * (h @ g))


def test_grasp_says_which_class_is_short() -> None:
    model = build(resolve("resnet8", "cifar"), 10, 1, 8)
    batch = (torch.randn(40, 1, 8, 8), torch.arange(40) % 8)
    with pytest.raises(rpbench.UsageError, match="class 8 has 0 images"):
        rpbench.plan(model, "grasp", 0.1, batches=[batch], samples_per_class=2)


def test_a_malformed_batch_is_not_told_as_a_short_class() -> None:
    model = build(resolve("resnet8", "cifar"), 10, 1, 8)
    batches = [(torch.randn(8, 1, 8, 8), torch.arange(8)), {"x": 1}]
    with pytest.raises(rpbench.UsageError, match="pairs of tensors"):
        rpbench.plan(model, "grasp", 0.1, batches=batches, samples_per_class=1)  # type: ignore[arg-type]


def test_dense_is_density_one() -> None:
    with pytest.raises(rpbench.UsageError, match="density 1 by definition"):
        rpbench.plan(mlp(), "dense", 0.5)
    assert rpbench.plan(mlp(), "dense", 1.0).kept == 48 * 30 + 30 * 7


@pytest.mark.parametrize("kind", ["names", "list", "plan", "record"])
def test_given_reads_every_kind_of_file(tmp_path: Path, kind: str) -> None:
    plan = rpbench.plan(mlp(), "erk", 0.25)
    contents: dict[str, Any] = {
        "names": {layer.name: layer.density for layer in plan.layers},
        "list": [layer.density for layer in plan.layers],
        "plan": plan.as_json("mlp"),
        "record": {"density": {"kept_per_layer": [layer.kept for layer in plan.layers]}},
    }
    file = tmp_path / "densities.json"
    file.write_text(json.dumps(contents[kind]))
    assert rpbench.plan(mlp(), "given", 0.25, file=file).counts == plan.counts
    with pytest.raises(rpbench.SchemeError, match="off budget"):
        rpbench.plan(mlp(), "given", 0.5, file=file)


def test_pyramid_is_geometric() -> None:
    plan = rpbench.plan(build(resolve("resnet20", "cifar"), 10, 3, 32), "pyramid", 0.3)
    ratios = [b.density / a.density for a, b in zip(plan.layers[:-2], plan.layers[1:-1], strict=True)]
    assert max(ratios) - min(ratios) < 1e-9
    assert plan.layers[-1].kept >= 10


def test_igq_never_saturates() -> None:
    plan = rpbench.plan(build(resolve("vgg16", "cifar"), 10, 3, 32), "igq", 0.9)
    assert max(layer.density for layer in plan.layers) < 1
    f = [(1 / layer.density - 1) / layer.numel for layer in plan.layers]
    assert max(f) == pytest.approx(min(f), rel=1e-6)


def test_balanced_passes_surplus_on() -> None:
    plan = rpbench.plan(build(resolve("resnet20", "cifar"), 10, 3, 32), "balanced", 0.1)
    free = {layer.kept for layer in plan.layers if layer.kept < layer.numel}
    assert max(free) - min(free) <= 1


@pytest.mark.parametrize("row", list_schemes(), ids=lambda row: row["name"])
def test_every_scheme_says_what_it_is(row: dict[str, Any]) -> None:
    assert 20 < len(row["summary"]) < 120
    assert row["source"].startswith("https://")
    found, _ = find_scheme(row["name"])
    assert found.name == row["name"]
    assert found.summary == row["summary"]
    assert len(found.source_hash) == 64


class Odd(nn.Module):
    """Dropout, a layer that is never used, and a choice of what comes out."""

    def __init__(self, out: str = "logits") -> None:
        super().__init__()
        self.a, self.idle, self.b = nn.Linear(64, 20), nn.Linear(20, 20), nn.Linear(20, 10)
        self.drop, self.out = nn.Dropout(0.5), out

    def forward(self, x: torch.Tensor) -> Any:
        logits = self.b(self.drop(torch.relu(self.a(x.flatten(1)))))
        return {"logits": logits, "tuple": (logits,), "flat": logits.sum(1)}[self.out]


BATCH = (torch.randn(30, 1, 8, 8), torch.arange(30) % 10)


@pytest.mark.parametrize("scheme", SCORES)
def test_scores_follow_from_the_seed_alone(scheme: str) -> None:
    options: dict[str, Any] = {"samples_per_class": 3} if scheme == "grasp" else {}
    torch.manual_seed(0)
    net = Odd()
    state = torch.get_rng_state()
    plans = [rpbench.plan(net, scheme, 0.3, batches=iter([BATCH]), **options) for _ in range(2)]
    assert plans[0].counts == plans[1].counts
    assert torch.equal(state, torch.get_rng_state())
    assert any("never used" in warning for warning in plans[0].warnings)


@pytest.mark.parametrize(
    ("net", "batches", "says"),
    [
        (Odd("tuple"), [BATCH], "the net gives a tuple, not logits"),
        (Odd("flat"), [BATCH], r"the net gives \(30,\), not logits"),
        (Odd(), BATCH, "pairs of tensors"),
        (Odd(), [{"x": 1}], "pairs of tensors"),
        (Odd(), [(BATCH[0], BATCH[1][:3])], "one for each image"),
        (Odd(), [(BATCH[0], BATCH[1].float())], "whole numbers"),
        (Odd(), [], "more labelled batches than the 0"),
        (Odd(), None, "give batches="),
    ],
)
def test_batches_and_nets_that_do_not_fit(net: nn.Module, batches: Any, says: str) -> None:
    with pytest.raises(rpbench.UsageError, match=says):
        rpbench.plan(net, "snip", 0.3, batches=batches)


@pytest.mark.parametrize("labels", [torch.int32, torch.uint8, torch.int64])
def test_labels_of_any_whole_type(labels: torch.dtype) -> None:
    assert rpbench.plan(Odd(), "snip", 0.3, batches=[(BATCH[0], BATCH[1].to(labels))]).kept


def test_unused_batches_are_not_consumed() -> None:
    def endless() -> Any:
        while True:
            yield BATCH

    assert rpbench.plan(Odd(), "erk", 0.3, batches=endless()).dense_macs == 64 * 20 + 200


def test_scores_may_be_numpy_arrays() -> None:
    @rpbench.score_scheme
    def plain(probe: rpbench.Probe) -> Any:
        return {layer.name: np.random.default_rng(0).random(layer.shape) for layer in probe.table}

    @rpbench.score_scheme
    def words(probe: rpbench.Probe) -> Any:
        return dict.fromkeys(probe.table.names, "x")

    batch = (torch.randn(30, 3, 4, 4), BATCH[1])
    assert rpbench.plan(mlp(), plain, 0.3, batches=[batch]).kept
    with pytest.raises(rpbench.SchemeError, match="scored '1.weight' with a str"):
        rpbench.plan(mlp(), words, 0.3, batches=[batch])


@pytest.mark.parametrize("density", [np.float32(0.3), np.float64(0.3), 1, np.int64(1)])
def test_densities_of_any_number_type(density: Any) -> None:
    assert rpbench.plan(mlp(), "erk", density, input_shape=tuple(np.array([3, 4, 4]))).kept
