"""A folded net gives the net's logits, and leaves the net as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.fx
from torch import nn

from rpbench.folding import folded
from rpbench.models import build, resolve

SIZES = {"cifar": 32, "imagenet": 64}


def lived_in(net: nn.Module) -> nn.Module:
    """The net with running statistics and affine parameters that are not the initial ones."""
    torch.manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            if module.running_mean is not None and module.running_var is not None:
                module.running_mean.uniform_(-1, 1)
                module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
    return net.to(memory_format=torch.channels_last)


def images(size: int = 32) -> torch.Tensor:
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0)).to(
        memory_format=torch.channels_last
    )


def check(net: nn.Module, x: torch.Tensor) -> nn.Module:
    """Folded, with equal logits on other images than those of the check, at every batch size; the net unchanged."""
    before = {k: v.clone() for k, v in net.state_dict().items()}
    ready = folded(net, x)
    for batch in (x * 0.7 + 0.1, x[:1]):
        given = batch.clone(memory_format=torch.preserve_format)
        with torch.inference_mode():
            expected, found = net.eval()(batch), ready(batch)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
        assert torch.equal(batch, given)  # nothing is written into the images
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    return ready


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("resnet20", "cifar"),
        ("resnet8-32", "cifar"),
        ("vgg11", "cifar"),
        ("resnet18", "imagenet"),
        ("resnet50", "imagenet"),
    ],
)
def test_nets_of_the_shelf_are_folded(name: str, family: str) -> None:
    net = lived_in(build(resolve(name, family), 10, 3, SIZES[family]))  # type: ignore[arg-type]
    ready = check(net, images(SIZES[family]))
    assert isinstance(ready, torch.fx.GraphModule)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in ready.modules())


class Odd(nn.Module):
    """Convolutions that may not be folded, and tensors that may not be written over."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.n, self.m = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.bare = nn.BatchNorm2d(3, track_running_stats=False)
        self.drop = nn.Dropout(0.9)
        self.fc = nn.Linear(3, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(x)  # not over the images
        once = self.a(x)
        out = torch.relu(once) + self.n(once)  # read twice
        out = out + self.m(self.b(out)) + self.m(self.b(x))  # shared weights
        out = self.c(x[:, :, :1]) + out  # broadcast
        out = self.bare(self.c(out))
        out = torch.add(out, out)
        both = torch.relu(out) * torch.sigmoid(out)
        logits: torch.Tensor = self.fc(self.drop(both.mean((2, 3))))
        return logits


def test_what_must_not_be_folded() -> None:
    check(lived_in(Odd()), images())


def test_sums_of_several_shapes_and_second_readers() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3)
            self.n = nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            small = self.b(x).mean((2, 3), keepdim=True)
            whole = self.n(self.a(x))
            total = torch.relu(small + whole)
            return (total + whole).mean((2, 3))

    check(lived_in(Wide()), images())


def hooked() -> nn.Module:
    net = build(resolve("resnet8", "cifar"), 10, 3, 32)
    net.get_submodule("blocks.0").register_forward_hook(lambda *_: None)
    return net


class Deciding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.norm(self.conv(x))
        return (out if float(out.sum()) > 0 else -out).mean((2, 3))


@pytest.mark.parametrize("make", [hooked, Deciding], ids=["hooks", "decides by values"])
def test_nets_that_are_left_alone(make: Callable[[], nn.Module]) -> None:
    net = lived_in(make())
    assert folded(net, images()) is net


def test_a_net_whose_trace_is_another_net_is_left_alone() -> None:
    class Counting(nn.Module):
        calls = 0.0

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1.0
            return self.norm(self.conv(x)).mean((2, 3)) * self.calls

    net = Counting()
    assert folded(net, images()) is net


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_large_pass_gives_the_nets_logits_in_order(precision: str, set_threads: Callable[[int], None]) -> None:
    import numpy as np

    from rpbench.data.resident import ResidentImages
    from rpbench.evaluation import Passes
    from rpbench.folding import WORTH
    from rpbench.task import load_task

    pixels = np.random.default_rng(0).integers(0, 256, (WORTH + 30, 32, 32, 3), dtype=np.uint8)
    held = ResidentImages(pixels, np.zeros(len(pixels), dtype=np.int64), "", "")
    net = lived_in(build(resolve("resnet8", "cifar"), 10, 3, 32))
    passes = Passes(torch.device("cpu"), load_task("cifar10").data, 300, precision=precision)
    set_threads(2)
    found = passes.logits(net, held)
    assert torch.get_num_threads() == 2
    few = [held.take(np.arange(i, min(i + 300, len(held)))) for i in range(0, len(held), 300)]
    expected = np.concatenate([Passes(passes.device, passes.data, 300).logits(net, part) for part in few])
    assert found.shape == expected.shape
    away = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert away.max() < (1e-5 if precision == "fp32" else 0.05)
