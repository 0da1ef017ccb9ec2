"""Effective density against nets spelled out as graphs of units, whose paths networkx follows."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import networkx
import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

from rpbench.connectivity import Paths, paths
from rpbench.layers import LayerTable, layer_table
from rpbench.machine import peak_memory_mb
from rpbench.models.cifar import Block, ResNet

Masks = dict[str, torch.Tensor]
Shape = tuple[int, ...]
Units = np.ndarray[Any, np.dtype[np.object_]]  # nodes of the graph, shaped (c, h, w) or (features,)


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


class Mean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


class Graph:
    """A masked net with one node per unit, one edge per kept connection; edges know their weight."""

    def __init__(self, model: nn.Module, masks: Masks, input_shape: Shape) -> None:
        self.edges = networkx.DiGraph()
        self.counter = itertools.count()
        self.masks = masks
        self.names = {id(module): name for name, module in model.named_modules()}
        entrance = self.new(input_shape)
        for unit in entrance.flat:
            self.edges.add_edge("in", unit)
        self.outputs = self.through(model, entrance)
        for unit in self.outputs.flat:
            self.edges.add_edge(unit, "out")

    def new(self, shape: Shape) -> Units:
        units = np.empty(shape, dtype=object)
        units.flat = [next(self.counter) for _ in range(units.size)]
        self.edges.add_nodes_from(units.flat)
        return units

    def paths(self) -> Paths:
        from_input = networkx.descendants(self.edges, "in")
        to_output = networkx.ancestors(self.edges, "out")
        alive = {
            weight
            for a, b, weight in self.edges.edges(data="weight")
            if weight is not None and a in from_input and b in to_output
        }
        prunable = sum(mask.numel() for mask in self.masks.values())
        return Paths(len(alive) / prunable, sum(unit not in from_input for unit in self.outputs.flat))

    def through(self, module: nn.Module, x: Units) -> Units:
        match module:
            case nn.Sequential():
                for child in module:
                    x = self.through(child, x)
                return x
            case nn.Linear():
                return self.linear(module, x)
            case nn.Conv2d():
                return self.convolution(module, x)
            case nn.MaxPool2d() | nn.AvgPool2d():
                return self.pool(x, int(module.kernel_size), int(module.stride), int(module.padding), module.ceil_mode)
            case nn.Flatten():
                return x.ravel()
            case Mean():
                return self.pool(x, x.shape[1], x.shape[1], 0).ravel()
            case Residual():
                return self.add(x, self.through(module.inner, x))
            case Block():
                inner = self.through(module.conv2, self.through(module.conv1, x))
                return self.add(self.through(module.shortcut, x), inner)
            case ResNet():
                x = self.through(module.blocks, self.through(module.conv, x))
                return self.linear(module.fc, self.through(Mean(), x))
        return x  # activations, norms

    def linear(self, module: nn.Linear, x: Units) -> Units:
        name = f"{self.names[id(module)]}.weight"
        y = self.new((module.out_features,))
        for o, i in self.masks[name].nonzero().tolist():
            self.edges.add_edge(x[i], y[o], weight=(name, o, i))
        return y

    def convolution(self, module: nn.Conv2d, x: Units) -> Units:
        name = f"{self.names[id(module)]}.weight"
        k, stride, pad = module.kernel_size[0], module.stride[0], int(module.padding[0])
        outside, inside = module.out_channels // module.groups, module.in_channels // module.groups
        side = (x.shape[1] + 2 * pad - k) // stride + 1
        y = self.new((module.out_channels, side, side))
        for o, i, dr, dc in self.masks[name].nonzero().tolist():
            channel = o // outside * inside + i
            for r, c in itertools.product(range(side), repeat=2):
                row, column = r * stride + dr - pad, c * stride + dc - pad
                if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
                    self.edges.add_edge(x[channel, row, column], y[o, r, c], weight=(name, o, i, dr, dc))
        return y

    def pool(self, x: Units, k: int, stride: int, pad: int, ceil: bool = False) -> Units:
        side = (x.shape[1] + 2 * pad - k + (stride - 1) * ceil) // stride + 1
        y = self.new((x.shape[0], side, side))
        for channel, r, c, dr, dc in itertools.product(range(x.shape[0]), *[range(side)] * 2, *[range(k)] * 2):
            row, column = r * stride + dr - pad, c * stride + dc - pad
            if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
                self.edges.add_edge(x[channel, row, column], y[channel, r, c])
        return y

    def add(self, a: Units, b: Units) -> Units:
        y = self.new(a.shape)
        for source in (a, b):
            self.edges.add_edges_from(zip(source.flat, y.flat, strict=True))
        return y


def conv(inside: int, outside: int, k: int = 3, stride: int = 1, groups: int = 1) -> nn.Module:
    return nn.Conv2d(inside, outside, k, stride, padding=k // 2, groups=groups)


def normed(*layers: nn.Module) -> list[nn.Module]:
    return [m for layer in layers for m in (layer, nn.BatchNorm2d(layer.get_parameter("weight").shape[0]), nn.ReLU())]


NETS: dict[str, tuple[Callable[[], nn.Module], Shape]] = {
    "one_layer": (lambda: nn.Sequential(nn.Linear(6, 4)), (6,)),
    "mlp": (lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), (5,)),
    "sigmoid_mlp": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 3)), (4,)),
    "deep_mlp": (lambda: nn.Sequential(*(nn.Linear(5, 5) for _ in range(8))), (5,)),
    "conv": (lambda: nn.Sequential(*normed(conv(2, 3), conv(3, 2)), nn.Flatten(), nn.Linear(18, 3)), (2, 3, 3)),
    "strided": (lambda: nn.Sequential(conv(1, 3, stride=2), conv(3, 3, stride=2), Mean(), nn.Linear(3, 4)), (1, 6, 6)),
    "gaps": (lambda: nn.Sequential(conv(1, 2, 1, 2), nn.ReLU(), conv(2, 2, 3, 3), Mean(), nn.Linear(2, 2)), (1, 5, 5)),
    "grouped": (lambda: nn.Sequential(conv(4, 6, groups=2), conv(6, 6, groups=6), Mean(), nn.Linear(6, 2)), (4, 3, 3)),
    "max_pool": (
        lambda: nn.Sequential(*normed(conv(1, 2)), nn.MaxPool2d(2), *normed(conv(2, 2)), nn.Flatten(), nn.Linear(8, 3)),
        (1, 4, 4),
    ),
    "overlapping_pool": (
        lambda: nn.Sequential(conv(1, 2), nn.MaxPool2d(3, 2, 1), conv(2, 2), nn.AvgPool2d(2), Mean(), nn.Linear(2, 2)),
        (1, 4, 4),
    ),
    "ceiled_pool": (lambda: nn.Sequential(conv(1, 2), nn.MaxPool2d(2, ceil_mode=True), nn.Conv2d(2, 3, 2)), (1, 3, 3)),
    "residual": (
        lambda: nn.Sequential(conv(1, 3), Residual(nn.Sequential(*normed(conv(3, 3), conv(3, 3)))), nn.Conv2d(3, 3, 3)),
        (1, 3, 3),
    ),
    "residual_mlp": (
        lambda: nn.Sequential(Residual(nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 4))), nn.Linear(4, 3)),
        (4,),
    ),
    "only_padding": (lambda: nn.Sequential(conv(2, 3), nn.ReLU(), conv(3, 3), Mean(), nn.Linear(3, 2)), (2, 1, 1)),
    "wide_kernel": (lambda: nn.Sequential(conv(1, 2, 7), conv(2, 2, 5), Mean(), nn.Linear(2, 2)), (1, 2, 2)),
    "resnet8": (lambda: ResNet(8, 2, 3, 1), (1, 4, 4)),
    "resnet14": (lambda: ResNet(14, 1, 2, 1), (1, 4, 4)),
}
ON_TINY_IMAGES = {"only_padding", "wide_kernel", "gaps", "resnet8", "resnet14"}  # parts of kernels see padding only


def deep_wide() -> nn.Module:
    with torch.device("meta"):
        model = ResNet(110, 56, 10, 3)
    return model.to_empty(device="cpu")


def random_masks(table: LayerTable, density: float, seed: int) -> Masks:
    g = torch.Generator().manual_seed(seed)
    return {layer.name: torch.rand(layer.shape, generator=g) < density for layer in table}


def dense_masks(table: LayerTable) -> Masks:
    return random_masks(table, 1.1, 0)


def effective(model: nn.Module, input_shape: Shape, **removed: Any) -> Paths | None:
    """Paths of a net whose masks are dense but for the weights named: name=index, with __ for dots."""
    table = layer_table(model)
    masks = dense_masks(table)
    for name, index in removed.items():
        masks[name.replace("__", ".")][index] = False
    return paths(model, table, masks, input_shape)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("density", [0.05, 0.15, 0.3, 0.5, 0.8, 1.1])
@pytest.mark.parametrize("name", NETS)
def test_effective_density_follows_the_graph_of_units(name: str, density: float, seed: int) -> None:
    make, shape = NETS[name]
    model = make()
    table = layer_table(model)
    masks = random_masks(table, density, seed)
    found = paths(model, table, masks, shape)
    expected = Graph(model, masks, shape).paths()
    assert found is not None
    assert found.effective == pytest.approx(expected.effective, abs=1e-12)
    assert found.unreached == expected.unreached


@pytest.mark.parametrize("seed", range(10))
def test_effective_density_of_an_mlp_by_every_path(seed: int) -> None:
    """All 4 * 5 * 4 * 3 paths, one by one."""
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    table = layer_table(model)
    masks = random_masks(table, 0.35, seed)
    alive, reached = set(), set()
    for path in itertools.product(range(4), range(5), range(4), range(3)):
        steps = [(name, b, a) for name, (a, b) in zip(table.names, itertools.pairwise(path), strict=True)]
        if all(masks[name][b, a] for name, b, a in steps):
            alive |= set(steps)
            reached.add(path[-1])
    assert paths(model, table, masks, (4,)) == Paths(len(alive) / table.prunable, 3 - len(reached))


@pytest.mark.parametrize("name", sorted(NETS.keys() - ON_TINY_IMAGES))
def test_every_weight_of_a_dense_net_counts(name: str) -> None:
    make, shape = NETS[name]
    assert effective(make(), shape) == Paths(1.0, 0)


def test_kernels_on_one_pixel_use_their_centre_only() -> None:
    """3x3 on 1x1 with padding: 2 * 3 and 3 * 3 centres, and the classifier, of 9 times as many."""
    make, shape = NETS["only_padding"]
    assert effective(make(), shape) == Paths((6 + 9 + 6) / (54 + 81 + 6), 0)


@pytest.mark.parametrize(
    ("removed", "expected"),
    [
        ({}, Paths(1.0, 0)),
        ({"0__weight": 0}, Paths((2 + 2) / 8, 0)),  # hidden unit 0 sees nothing: its two outgoing weights are dead
        ({"2__weight": (slice(None), 0)}, Paths((2 + 2) / 8, 0)),  # it goes nowhere: its two incoming ones are
        ({"2__weight": 0}, Paths((4 + 2) / 8, 1)),
        ({"2__weight": slice(None)}, Paths(0.0, 2)),
        ({"0__weight": slice(None)}, Paths(0.0, 2)),
        ({"0__weight": 0, "2__weight": (slice(None), 1)}, Paths(0.0, 2)),
    ],
)
def test_effective_density_by_hand(removed: dict[str, Any], expected: Paths) -> None:
    assert effective(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), (2,), **removed) == expected


def test_a_dead_residual_branch_leaves_the_shortcut() -> None:
    """One of three layers of 4 x 4 is empty, the branch's other one sees no way out; the classifier stays alive."""
    model = nn.Sequential(Residual(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))), nn.Linear(4, 4))
    assert effective(model, (4,), **{"0__inner__2__weight": slice(None)}) == Paths(1 / 3, 0)


@pytest.mark.parametrize("outputs", [[], [0], [3, 7], list(range(10))])
def test_outputs_that_no_path_reaches_are_counted(outputs: list[int]) -> None:
    found = effective(ResNet(8, 4, 10, 3), (3, 8, 8), fc__weight=outputs)
    assert found is not None
    assert found.unreached == len(outputs)


@pytest.mark.parametrize(("block", "dead", "unused"), [(3, "conv1", "conv2"), (50, "conv2", "conv1")])
def test_a_deep_wide_net_does_not_overflow(block: int, dead: str, unused: str) -> None:
    """Counting paths, instead of asking whether there is one, overflows float64 on this net even at 8x8 pixels.

    Half a block is removed: its other half is dead too, and everything else alive by way of the shortcut.
    """
    model = deep_wide()
    table = layer_table(model)
    masks = dense_masks(table)
    masks[f"blocks.{block}.{dead}.weight"][:] = False
    gone = masks[f"blocks.{block}.{dead}.weight"].numel() + masks[f"blocks.{block}.{unused}.weight"].numel()
    assert paths(model, table, masks, (3, 8, 8)) == Paths((table.prunable - gone) / table.prunable, 0)


def test_a_deep_chain_does_not_underflow() -> None:
    model = nn.Sequential(*(m for _ in range(40) for m in (nn.AvgPool2d(3, 1, 1), conv(2, 2))), Mean(), nn.Linear(2, 2))
    assert effective(model, (2, 6, 6)) == Paths(1.0, 0)


@pytest.mark.parametrize("name", ["mobilenet_v2", "shufflenet_v2_x0_5", "squeezenet1_1", "mobilenet_v3_small"])
def test_torchvision_nets_are_connected_when_dense(name: str) -> None:
    """At 96 pixels the last maps are 3x3, and every weight of a 5x5 kernel sees some image."""
    model = torchvision.models.get_model(name, num_classes=5)
    assert effective(model, (3, 96, 96)) == Paths(1.0, 0)


def test_the_net_is_not_modified() -> None:
    model = ResNet(8, 4, 10, 3).train()
    model(torch.randn(4, 3, 8, 8)).sum().backward()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    gradients = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
    table = layer_table(model)
    masks = random_masks(table, 0.3, 0)
    kept = {k: v.clone() for k, v in masks.items()}
    assert paths(model, table, masks, (3, 8, 8)) == paths(model, table, masks, (3, 8, 8))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(p.grad, gradients[k]) for k, p in model.named_parameters() if p.grad is not None)
    assert all(torch.equal(v, kept[k]) for k, v in masks.items())
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert isinstance(model.bn, nn.BatchNorm2d)


@pytest.mark.parametrize(
    "change", [nn.Module.double, nn.Module.half, nn.Module.eval, lambda model: model.requires_grad_(False)]
)
def test_precision_and_modes_do_not_matter(change: Callable[[nn.Module], nn.Module]) -> None:
    model = ResNet(8, 4, 10, 3)
    table = layer_table(model)
    masks = random_masks(table, 0.2, 0)
    assert paths(change(ResNet(8, 4, 10, 3)), table, masks, (3, 8, 8)) == paths(model, table, masks, (3, 8, 8))


def test_weights_and_biases_do_not_matter() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    table = layer_table(model)
    masks = random_masks(table, 0.4, 1)
    expected = Graph(model, masks, (3,)).paths()
    for value in (0.0, -5.0, float("nan")):
        for parameter in model.parameters():
            nn.init.constant_(parameter, value)
        assert paths(model, table, masks, (3,)) == expected


class Attentive(nn.Module):
    """Attention by nn.MultiheadAttention, by torch's function, or by hand."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True) if kind == "module" else nn.Linear(4, 12)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if isinstance(self.attention, nn.MultiheadAttention):
            return self.head(self.attention(x, x, x)[0].mean(1))
        q, k, v = self.attention(x).chunk(3, -1)
        if self.kind == "function":
            return self.head(functional.scaled_dot_product_attention(q, k, v).mean(1))
        return self.head((torch.softmax(q @ k.mT, -1) @ v).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0][:, -1])


@pytest.mark.parametrize("kind", ["module", "function", "by_hand"])
def test_attention_has_no_paths_to_follow(kind: str) -> None:
    assert effective(Attentive(kind), (3, 4)) is None


def test_recurrence_and_transformers_have_no_paths_to_follow() -> None:
    assert effective(Recurrent(), (3, 4)) is None
    assert effective(torchvision.models.VisionTransformer(8, 4, 1, 2, 8, 16, num_classes=3), (3, 8, 8)) is None


class Tied(nn.Module):
    """Two linear layers with one weight, x -> A(relu(A x)), then a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.b.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.b(torch.relu(self.a(x))))


class Scaled(nn.Module):
    """A residual branch with a learnt factor (layer scale, ReZero)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc, self.scale = nn.Linear(4, 4), nn.Linear(4, 2), nn.Parameter(torch.full((4,), 1e-6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x + self.scale * self.a(x))


class FunctionalPool(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 2, 3, padding=1), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(functional.max_pool2d(torch.relu(self.conv(x)), 2).flatten(1))


def twice(shared: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), shared, nn.Linear(4, 4), shared, nn.Linear(4, 2))


def twice_pooled() -> nn.Module:
    pool = nn.MaxPool2d(2)
    return nn.Sequential(conv(1, 2), pool, conv(2, 2), pool, nn.Flatten(), nn.Linear(2, 2))


def used_twice() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(4, 2))


def pooled(pool: nn.Module) -> nn.Module:
    """3x3 on 2x2: only all four positions together use all nine weights of a kernel."""
    return nn.Sequential(conv(1, 2), nn.ReLU(), pool, nn.Flatten(), nn.Linear(2, 2))


def instance_normed() -> nn.Module:
    return nn.Sequential(conv(1, 2), nn.InstanceNorm2d(2), nn.ReLU(), Mean(), nn.Linear(2, 2))


def pooled_1d() -> nn.Module:
    return nn.Sequential(nn.Conv1d(1, 2, 3, padding=1), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(2, 2))


UNFORESEEN: dict[str, tuple[Callable[[], nn.Module], Shape]] = {
    "tied weights": (Tied, (4,)),
    "a layer used twice": (used_twice, (4,)),
    "layer scale": (Scaled, (4,)),
    "a norm used twice": (lambda: twice(nn.BatchNorm1d(4)), (4,)),
    "a pool used twice": (twice_pooled, (1, 4, 4)),
    "RMSNorm": (lambda: twice(nn.RMSNorm(4)), (4,)),
    "InstanceNorm": (instance_normed, (1, 4, 4)),
    "functional max pool": (FunctionalPool, (1, 2, 2)),
    "AdaptiveMaxPool2d": (lambda: pooled(nn.AdaptiveMaxPool2d(1)), (1, 2, 2)),
    "MaxPool1d": (pooled_1d, (1, 2)),
    "Hardtanh": (lambda: twice(nn.Hardtanh()), (4,)),
    "PReLU": (lambda: twice(nn.PReLU()), (4,)),
}


@pytest.mark.parametrize("name", UNFORESEEN)
def test_unforeseen_nets_are_right_or_none_never_a_guess(name: str) -> None:
    """Every weight of these is used when dense."""
    make, shape = UNFORESEEN[name]
    assert effective(make(), shape) in (None, Paths(1.0, 0))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("activation", [nn.Sigmoid(), nn.Softplus(), nn.Hardsigmoid(), nn.Softmax(-1)], ids=str)
def test_activations_make_no_paths_from_nothing(activation: nn.Module, shared: bool) -> None:
    """sigmoid(0) and softplus(0) are positive: a unit that sees no input must not look alive for that."""
    other = activation if shared else copy.deepcopy(activation)
    model = nn.Sequential(nn.Linear(4, 4), activation, nn.Linear(4, 4), other, nn.Linear(4, 2))
    for layer in ("0__weight", "2__weight"):
        assert effective(model, (4,), **{layer: slice(None)}) in (None, Paths(0.0, 2))


def test_peak_memory_is_in_megabytes() -> None:
    held = np.ones(2**24)  # 128 MB
    assert 128 < peak_memory_mb(torch.device("cpu")) < 2**17
    assert held.sum() == 2**24
