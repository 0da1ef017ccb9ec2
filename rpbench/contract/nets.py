"""Nets that the contract is checked on: some that were planned for, and some that were not.

Those without weights (on the meta device) are for what looks at shapes; the small ones have weights and labelled
batches. Each is made once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from rpbench.layers import LayerTable, layer_table

if TYPE_CHECKING:
    import torch
    from torch import nn

    from rpbench.wiring import Wiring

BATCH, BATCHES = 64, 32
LARGEST = "mobilenet_v2-0.25"  # of those that are scored: asked at one density


@dataclass(frozen=True)
class Net:
    """How a net is made; `shape` is that of one example, and of what multiply-adds are counted for."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    classes: int


def table(name: str, renamed: bool = False) -> LayerTable:
    """The layer table of a net; `renamed` gives layers names that say nothing and sort backwards."""
    found = _tables(name)
    if not renamed:
        return found
    n = len(found)
    return LayerTable(tuple(replace(layer, name=f"x{n - i:03d}.weight") for i, layer in enumerate(found)), found.notes)


@cache
def _tables(name: str) -> LayerTable:
    import torch

    net = NETS[name]
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return layer_table(net.make(), net.shape)


def wiring(name: str, renamed: bool = False) -> Wiring:
    """How the layers of a net are joined; under the names of `table(name, renamed)`."""
    found = _wirings(name)
    if not renamed:
        return found
    names = dict(zip(table(name).names, table(name, renamed=True).names, strict=True))

    def on_path(masks: Mapping[str, Any]) -> dict[str, Any]:
        told = found.on_path({plain: masks[other] for plain, other in names.items()})
        return {other: told[plain] for plain, other in names.items()}

    return replace(found, on_path=on_path)


@cache
def _wirings(name: str) -> Wiring:
    import torch

    from rpbench.tracing import wire

    net = NETS[name]
    with torch.random.fork_rng(devices=[]):
        return wire(net.make(), table(name), net.shape)


@cache
def weighted(name: str, renamed: bool = False) -> nn.Module:
    """A net with weights: not to be changed. A renamed one must be a sequence of modules."""
    import torch
    from torch import nn

    if renamed:
        inner = weighted(name)
        assert isinstance(inner, nn.Sequential)
        n = len(inner)
        return nn.Sequential(OrderedDict((f"x{n - i:03d}", module) for i, module in enumerate(inner)))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return NETS[name].make()


@cache
def weighted_table(name: str, renamed: bool = False) -> LayerTable:
    return layer_table(weighted(name, renamed), NETS[name].shape)


def batches(name: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Labelled batches of random images for a net, the same each time; every class in turn."""
    import torch

    net = NETS[name]
    generator = torch.Generator().manual_seed(0)
    for i in range(BATCHES):
        labels = (torch.arange(BATCH) + i * BATCH) % net.classes
        yield torch.randn(BATCH, *net.shape, generator=generator), labels


def _named(model: str, classes: int, channels: int = 3) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from rpbench.models import build, resolve

        family = "cifar" if classes == 10 else "imagenet"
        return build(resolve(model, family), classes, channels, 32)  # type: ignore[arg-type]

    return make


def _torchvision(name: str, **settings: object) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import torchvision

        net: nn.Module = getattr(torchvision.models, name)(**settings)
        return net

    return make


def _mlp() -> nn.Module:
    from torch import nn

    named = {"flatten": nn.Flatten(), "fc1": nn.Linear(48, 30), "relu": nn.ReLU(), "fc": nn.Linear(30, 7)}
    return nn.Sequential(OrderedDict(named))


def _grouped() -> nn.Module:
    """Ends in a convolution, has one in groups, and no linear layer."""
    from torch import nn

    named = {"conv1": nn.Conv2d(3, 8, 3), "bn1": nn.BatchNorm2d(8), "relu": nn.ReLU()}
    named |= {"depthwise": nn.Conv2d(8, 8, 3, groups=8), "head": nn.Conv2d(8, 5, 1), "flatten": nn.Flatten()}
    return nn.Sequential(OrderedDict(named))


def _one_layer() -> nn.Module:
    from torch import nn

    return nn.Linear(20, 10)


NETS = {
    "resnet20": Net(_named("resnet20", 10), (3, 32, 32), 10),
    "vgg16": Net(_named("vgg16", 10), (3, 32, 32), 10),
    "resnet50": Net(_named("resnet50", 1000), (3, 224, 224), 1000),
    "wrn50": Net(_named("wrn50", 1000), (3, 224, 224), 1000),
    "mobilenet_v2": Net(_torchvision("mobilenet_v2"), (3, 224, 224), 1000),
    "vit_b_16": Net(_torchvision("vit_b_16"), (3, 224, 224), 1000),
    "mlp": Net(_mlp, (3, 4, 4), 7),
    "grouped": Net(_grouped, (3, 5, 5), 5),
    "one_layer": Net(_one_layer, (20,), 10),
    "resnet8": Net(_named("resnet8", 10, 1), (1, 8, 8), 10),
    LARGEST: Net(_torchvision("mobilenet_v2", num_classes=10, width_mult=0.25), (3, 16, 16), 10),
}
SHAPED = ("resnet20", "vgg16", "resnet50", "wrn50", "mobilenet_v2", "vit_b_16", "mlp", "grouped", "one_layer")
SCORED = ("resnet8", "mlp", "grouped", "one_layer", LARGEST)
TRAINED = ("resnet8", "mlp")
