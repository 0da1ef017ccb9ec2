"""Accurate BatchNorm against torch's in float64, and left alone where it is not meant."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from rpbench.batchnorm import WORTH, AccurateBatchNorm, statistics

CL = torch.channels_last


def images(n: int = 64, c: int = 16, size: int = 32, mean: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(n, c, size, size, generator=generator) * 0.5 + mean).to(memory_format=CL)


def through(layer: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Output, gradients and running statistics of one training pass."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_(True)
    out = layer.train()(x)
    weights = torch.linspace(-1, 1, out.numel()).to(out.dtype).view(out.shape).to(memory_format=CL)
    (out * weights).sum().backward()
    assert x.grad is not None
    found = {"out": out.detach(), "x": x.grad, **{k: v.clone() for k, v in layer.state_dict().items()}}
    return found | {f"d{k}": p.grad for k, p in layer.named_parameters() if p.grad is not None}


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30))


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "not affine": {"affine": False},
    "no running statistics": {"track_running_stats": False},
    "other numbers": {"eps": 1e-2, "momentum": 0.3},
    "cumulative average": {"momentum": None},
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("shape", [(64, 16, 32), (65, 3, 33), (128, 64, 14)])
def test_everything_is_closer_to_float64_than_torchs_own(option: str, shape: tuple[int, int, int]) -> None:
    x = images(*shape)
    exact = through(nn.BatchNorm2d(shape[1], dtype=torch.float64, **OPTIONS[option]), x.double())
    torchs = through(nn.BatchNorm2d(shape[1], **OPTIONS[option]), x)
    with AccurateBatchNorm():
        ours = through(nn.BatchNorm2d(shape[1], **OPTIONS[option]), x)
    assert ours.keys() == exact.keys()
    assert ours["out"].is_contiguous(memory_format=CL)
    assert relative(ours["out"], exact["out"]) < 2e-7
    assert relative(ours["out"], exact["out"]) < relative(torchs["out"], exact["out"])
    for key in ours:
        assert relative(ours[key], exact[key]) < max(1e-6, 2 * relative(torchs[key], exact[key])), key


def test_statistics_of_a_mean_far_from_zero() -> None:
    x = images(mean=100.0)
    mean, var = statistics(x)
    assert relative(mean, x.double().mean((0, 2, 3))) < 1e-7
    assert relative(var, x.double().var((0, 2, 3), correction=0)) < 1e-5


LEFT_ALONE: dict[str, Any] = {
    "evaluation": lambda: (nn.BatchNorm2d(16).eval(), images()),
    "bf16": lambda: (nn.BatchNorm2d(16), images().bfloat16()),
    "float64": lambda: (nn.BatchNorm2d(16).double(), images().double()),
    "other layout": lambda: (nn.BatchNorm2d(16), images().contiguous()),
    "few positions": lambda: (nn.BatchNorm2d(16), images(size=8, n=WORTH // 64 - 1)),
    "vectors": lambda: (nn.BatchNorm1d(16), torch.randn(50_000, 16)),
}


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_what_is_not_meant_is_torchs_own(case: str) -> None:
    layer, x = LEFT_ALONE[case]()
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    expected = layer(x)
    layer.load_state_dict(before)
    with AccurateBatchNorm():
        assert torch.equal(layer(x), expected)


def test_a_call_by_keywords() -> None:
    x = images()
    exact = functional.batch_norm(x.double(), None, None, training=True)
    with AccurateBatchNorm():
        ours = functional.batch_norm(input=x, running_mean=None, running_var=None, training=True)
    assert relative(ours, exact) < 2e-7


@pytest.mark.slow
def test_a_nets_gradient_is_as_far_from_float64_as_in_torchs_default_layout() -> None:
    from rpbench.bench.engine import Subject, gate_of_the_step

    assert gate_of_the_step(Subject("cifar10", "resnet20", 0.1)) == []


@pytest.mark.slow
def test_the_gate_notices_torchs_own_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    import contextlib

    from rpbench import step
    from rpbench.bench.engine import Subject, gate_of_the_step

    monkeypatch.setattr(step, "AccurateBatchNorm", contextlib.nullcontext)
    (sentence,) = gate_of_the_step(Subject("cifar10", "resnet20", 0.1))
    assert sentence.startswith("our gradients are")
