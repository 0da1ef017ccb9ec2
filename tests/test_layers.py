"""The layer table: which tensors are prunable, and their multiply-adds against torch's FlopCounterMode."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune
from torch.utils.flop_counter import FlopCounterMode

import rpbench
from rpbench.layers import Layer, LayerTable, layer_table, output_shape
from rpbench.models import build, resolve

Shape = tuple[int, ...]
PRODUCTS = ("addmm", "mm", "convolution")  # attention's own q @ k and attn @ v are bmm or fused, and no layers


class Functional(nn.Module):
    """Layers whose weights are handed to torch's functions, as torchvision's Swin does with its qkv."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.conv2d(x, self.conv.weight, self.conv.bias, padding=1)
        return functional.linear(x.mean((2, 3)), self.fc.weight)


class Tied(nn.Module):
    """One tensor in two layers: the table names it once, both applications cost."""

    def __init__(self, first: str = "a") -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        if first == "a":
            self.b.weight = self.a.weight
        else:
            self.a.weight = self.b.weight
        self.fc = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.b(self.a(x)))


class Attending(nn.Module):
    """One attention layer called in one of the ways that its signature allows."""

    def __init__(self, call: str, **options: Any) -> None:
        super().__init__()
        self.call = call
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)
        self.context = nn.Linear(8, options.get("kdim", 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        other = self.context(x[:, :3])
        calls: dict[str, Callable[[], Any]] = {
            "self": lambda: self.attention(x, x, x),
            "cross": lambda: self.attention(x, other, other),
            "keywords": lambda: self.attention(query=x, key=other, value=other),
            "mixed": lambda: self.attention(x, key=other, value=other),
            "mixed_value": lambda: self.attention(x, other, value=other),
            "no_weights": lambda: self.attention(x, other, other, need_weights=False),
        }
        return self.head(calls[self.call]()[0].mean(1))


class MakesTensors(nn.Module):
    """Adds a tensor of its own on the CPU, which fails on the meta device, and remembers how often it ran."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 3))
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.net(x + torch.arange(6.0, device="cpu"))


class Words(nn.Module):
    """An embedding, a recurrence and a classifier; images of 0 and 1 are its words."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.rnn, self.fc = nn.Embedding(2, 5), nn.LSTM(5, 7, batch_first=True), nn.Linear(7, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.rnn(self.embedding(x.long()))[0][:, -1])


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Flatten(), nn.Linear(40, 2))


def shared_module() -> nn.Module:
    layer = nn.Linear(6, 6)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(6, 2))


def pathways() -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 6, 5, 2, padding=2, groups=2), nn.ConvTranspose1d(6, 4, 4, 2), nn.Conv1d(4, 1, 1))


def upscaling() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, dilation=2), nn.ConvTranspose2d(8, 6, 3, stride=2, groups=2), nn.Conv2d(6, 2, 1)
    )


def padded() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 4, padding="same"),
        nn.Conv2d(4, 6, (3, 1), padding=(1, 0), padding_mode="circular", groups=2),
        nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1, groups=2, dilation=2),
    )


class Renormalised(nn.Module):
    """Writes into its weight with every pass."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.fc.weight.div_(self.fc.weight.norm())
        return self.fc(x)


def volume() -> nn.Module:
    return nn.Sequential(nn.Conv3d(1, 4, 3), nn.ConvTranspose3d(4, 2, 2), nn.Flatten(), nn.Linear(250, 3))


CIFAR = (3, 32, 32)
IMAGENET = (3, 224, 224)
NETS: dict[str, tuple[Callable[[], nn.Module], Shape]] = {
    "resnet20": (lambda: build(resolve("resnet20", "cifar"), 10, 3, 32), CIFAR),
    "vgg16": (lambda: build(resolve("vgg16", "cifar"), 10, 3, 32), CIFAR),
    "resnet50": (torchvision.models.resnet50, IMAGENET),
    "mobilenet_v2": (torchvision.models.mobilenet_v2, IMAGENET),
    "convnext_tiny": (torchvision.models.convnext_tiny, IMAGENET),
    "vit_b_16": (torchvision.models.vit_b_16, IMAGENET),
    "swin_t": (torchvision.models.swin_t, IMAGENET),
    "mlp": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 30), nn.ReLU(), nn.Linear(30, 7, bias=False)), (3, 4, 4)),
    "one_layer": (lambda: nn.Linear(9, 4), (9,)),
    "on_tokens": (lambda: nn.Sequential(nn.Linear(6, 8), nn.Flatten(), nn.Linear(40, 3)), (5, 6)),
    "1d": (pathways, (2, 20)),
    "transposed": (upscaling, (3, 15, 15)),
    "padded": (padded, (3, 7, 9)),
    "3d": (volume, (1, 6, 6, 6)),
    "encoder": (encoder, (5, 8)),
    "tied": (Tied, (6,)),
    "tied_to_a_later_one": (functools.partial(Tied, "b"), (6,)),
    "shared_module": (shared_module, (6,)),
    "functional": (Functional, (3, 7, 7)),
    "self_attention": (functools.partial(Attending, "self"), (5, 8)),
    "cross_attention": (functools.partial(Attending, "cross"), (5, 8)),
    "attention_by_keywords": (functools.partial(Attending, "keywords"), (5, 8)),
    "attention_by_some_keywords": (functools.partial(Attending, "mixed"), (5, 8)),
    "attention_by_one_keyword": (functools.partial(Attending, "mixed_value"), (5, 8)),
    "attention_without_weights": (functools.partial(Attending, "no_weights"), (5, 8)),
    "attention_of_other_widths": (functools.partial(Attending, "cross", kdim=6, vdim=6), (5, 8)),
    "cpu_tensors": (MakesTensors, (1, 6, 6)),
    "renormalised": (Renormalised, (6,)),
}


def on(device: str, name: str) -> tuple[nn.Module, Shape]:
    make, shape = NETS[name]
    with torch.device(device):
        return make(), shape


def device_of(name: str) -> str:
    return "cpu" if name == "cpu_tensors" else "meta"


def counted(model: nn.Module, input_shape: Shape) -> dict[str, int]:
    """torch's multiply-adds of one example by module name ("Global" is the whole net), in layers only."""
    device = next(model.parameters()).device
    with torch.no_grad(), FlopCounterMode(display=False) as mode:
        model.eval()(torch.zeros(1, *input_shape, device=device))
    root = type(model).__name__
    return {
        name.removeprefix(f"{root}."): sum(n for op, n in ops.items() if any(f".{p}" in str(op) for p in PRODUCTS)) // 2
        for name, ops in mode.get_flop_counts().items()
    }


@pytest.mark.parametrize("name", NETS)
def test_multiply_adds_are_torchs(name: str) -> None:
    model, shape = on(device_of(name), name)
    table = layer_table(model, shape)
    assert sum(layer.macs or 0 for layer in table) == counted(model, shape)["Global"]
    assert not any("never used" in note for note in table.notes)


@pytest.mark.parametrize("name", [name for name in NETS if name not in ("vgg16", "resnet50", "convnext_tiny")])
def test_multiply_adds_do_not_depend_on_the_device(name: str) -> None:
    """Nets with weights are counted as those on the meta device are."""
    model, shape = on("cpu", name)
    ghost, _ = on(device_of(name), name)
    assert layer_table(model, shape) == layer_table(ghost, shape)


@pytest.mark.parametrize("name", ["resnet20", "vgg16", "resnet50", "mobilenet_v2", "convnext_tiny", "mlp", "1d", "3d"])
def test_multiply_adds_of_every_layer_are_torchs(name: str) -> None:
    model, shape = on("meta", name)
    expected = counted(model, shape)
    for layer in layer_table(model, shape):
        assert layer.macs == expected[layer.name.removesuffix(".weight")], layer.name


def test_attentions_projections_are_torchs_per_module() -> None:
    model, shape = on("meta", "vit_b_16")
    expected = counted(model, shape)
    macs = {layer.name: layer.macs or 0 for layer in layer_table(model, shape)}
    projections = [name for name in macs if name.endswith("self_attention.in_proj_weight")]
    assert len(projections) == 12
    for name in projections:
        path = name.removesuffix(".in_proj_weight")
        assert macs[name] + macs[f"{path}.out_proj.weight"] == expected[path]
        assert macs[name] == 197 * 768 * 3 * 768


@pytest.mark.parametrize(
    ("name", "prunable"),
    [
        ("vit_b_16", 86_567_656 - 768 - 197 * 768 - 25 * 2 * 768 - 768 - 12 * (3 + 1 + 4 + 1) * 768 - 1000),
        ("mobilenet_v2", 3_504_872 - 34_112 - 1000),
        ("1d", 6 * 1 * 5 + 6 * 4 * 4 + 4),
        ("transposed", 3 * 8 * 9 + 8 * 3 * 9 + 12),
        ("encoder", 2 * (4 * 64 + 2 * 128) + 80),
        ("tied", 36 + 12),
        ("tied_to_a_later_one", 36 + 12),
        ("shared_module", 36 + 12),
    ],
)
def test_prunable_weights_are_all_but_biases_norms_and_embeddings(name: str, prunable: int) -> None:
    """ViT: without class token, positions, 25 norms and the biases; MobileNet: 34,112 of norms and a bias."""
    model, _ = on("meta", name)
    assert layer_table(model).prunable == prunable


@pytest.mark.parametrize("name", NETS)
def test_every_layer_is_a_weight_in_registration_order(name: str) -> None:
    model, _ = on("meta", name)
    table = layer_table(model)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for layer in table:
        assert tuple(parameters[layer.name].shape) == layer.shape
        assert parameters[layer.name].numel() == layer.numel
        assert layer.kind == ("linear" if len(layer.shape) == 2 else "conv")
        assert layer.macs is None
    assert len({id(parameters[name]) for name in table.names}) == len(table)
    order = list(parameters)
    assert sorted(table.names, key=order.index) == list(table.names)


def test_groups_are_in_the_table() -> None:
    model, _ = on("meta", "mobilenet_v2")
    table = layer_table(model)
    depthwise = [layer for layer in table if layer.groups > 1]
    assert len(depthwise) == 17
    assert all(layer.shape == (layer.groups, 1, 3, 3) for layer in depthwise)


@pytest.mark.parametrize("first", ["a", "b"])
def test_a_shared_weight_is_counted_once_and_costs_twice(first: str) -> None:
    table = layer_table(Tied(first), (6,))
    assert [(layer.name, layer.numel, layer.macs) for layer in table] == [("a.weight", 36, 72), ("fc.weight", 12, 12)]


def test_embeddings_and_recurrences_are_outside() -> None:
    table = layer_table(Words(), (9,))
    assert table.names == ("fc.weight",)
    assert table[0].macs == 28
    assert any("rnn.weight_ih_l0" in note and "rnn.weight_hh_l0" in note for note in table.notes)


def test_an_embedding_tied_to_the_classifier_is_its_weight() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(10, 4), "fc": nn.Linear(4, 10)})
    model["fc"].weight = model["embedding"].weight
    table = layer_table(model)
    assert table.names == ("fc.weight",)
    assert table.notes == ()


def test_layers_never_used_are_noted() -> None:
    with torch.device("meta"):
        model = torchvision.models.googlenet(aux_logits=True, init_weights=False)
    table = layer_table(model, IMAGENET)
    idle = [layer.name for layer in table if layer.macs == 0]
    assert idle
    assert all(name.startswith(("aux1.", "aux2.")) for name in idle)
    assert any("never used" in note and idle[0] in note for note in table.notes)


def test_a_convolution_as_last_layer_is_noted() -> None:
    model, shape = on("meta", "transposed")
    table = layer_table(model, shape)
    assert any("'2.weight' is a convolution" in note for note in table.notes)
    assert table.last.name == "2.weight"


PARAMETRIZED: dict[str, Callable[[nn.Linear], Any]] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5),
    "random_prune": lambda layer: prune.random_unstructured(layer, "weight", amount=3),
}


@pytest.mark.parametrize("kind", PARAMETRIZED)
@pytest.mark.parametrize("shape", [None, (6,)])
def test_weights_that_are_not_plain_parameters_raise(kind: str, shape: Shape | None) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    PARAMETRIZED[kind](model[2])  # type: ignore[arg-type]
    with pytest.raises(rpbench.ModelError, match=r"'2\.weight' is not a plain parameter.*remove that first"):
        layer_table(model, shape)


@pytest.mark.parametrize("kind", ["prune", "parametrize"])
def test_attentions_fused_projection_that_is_no_plain_parameter_raises(kind: str) -> None:
    model = nn.MultiheadAttention(8, 2)
    if kind == "prune":
        prune.l1_unstructured(model, "in_proj_weight", amount=0.5)
    else:
        parametrizations.orthogonal(model, "in_proj_weight")
    with pytest.raises(rpbench.ModelError, match="in_proj_weight"):
        layer_table(model)


def test_once_the_pruning_is_removed_the_net_has_a_table() -> None:
    model = nn.Linear(6, 4)
    prune.l1_unstructured(model, "weight", amount=0.5)
    prune.remove(model, "weight")
    assert layer_table(model).prunable == 24


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()), "no convolution or linear weight"),
        (nn.Embedding(4, 5), "no convolution or linear weight"),
        (nn.LSTM(3, 4), "no convolution or linear weight"),
        (nn.Sequential(nn.LazyLinear(4)), "no shape yet"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
def test_nets_without_prunable_weights_raise(model: nn.Module, said: str) -> None:
    with pytest.raises(rpbench.ModelError, match=said):
        layer_table(model)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("shape", [(1, 32, 32), (32, 32), (3,), (), (0, 32, 32), (3, -1, 32), (3, 32.0, 32)])
def test_a_wrong_input_shape_raises_in_one_sentence(shape: Any, device: str) -> None:
    with torch.device(device):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(3600, 2))
    with pytest.raises(rpbench.ModelError) as caught:
        layer_table(model, shape)
    assert str(shape) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_size_raises() -> None:
    with pytest.raises(rpbench.ModelError, match=r"cannot take an input of shape \(3, 8, 8\)"):
        layer_table(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(3600, 2)), (3, 8, 8))


@pytest.mark.parametrize("name", ["resnet20", "encoder", "cpu_tensors", "tied", "renormalised"])
@pytest.mark.parametrize("train", [True, False])
def test_the_net_is_left_as_it_was(name: str, train: bool) -> None:
    model, shape = on("cpu", name)
    modes = {path: train if i % 3 else not train for i, (path, _) in enumerate(model.named_modules())}
    for path, module in model.named_modules():
        module.training = modes[path]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    pointers = [p.data_ptr() for p in model.parameters()]
    generator = torch.get_rng_state()
    layer_table(model, shape)
    assert {path: module.training for path, module in model.named_modules()} == modes
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [p.data_ptr() for p in model.parameters()] == pointers
    assert all(p.requires_grad and p.grad is None and p.device.type == "cpu" for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("shape", [IMAGENET, (1, 9, 9)])
def test_a_net_on_the_meta_device_is_left_as_it_was(shape: Shape) -> None:
    """Also where the pass fails."""
    with torch.device("meta"):
        model = torchvision.models.resnet18().train()
    if shape == IMAGENET:
        layer_table(model, shape)
    else:
        with pytest.raises(rpbench.ModelError):
            layer_table(model, shape)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["mlp", "resnet20"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_multiply_adds_do_not_depend_on_the_dtype(name: str, dtype: torch.dtype) -> None:
    model, shape = on("cpu", name)
    expected = layer_table(model, shape)
    assert layer_table(model.to(dtype), shape) == expected


@pytest.mark.parametrize(
    ("name", "out"), [("resnet20", (2, 10)), ("transposed", (2, 2, 13, 13)), ("cpu_tensors", (2, 3))]
)
def test_output_shape_is_of_two_examples(name: str, out: Shape) -> None:
    model, shape = on("cpu", name)
    assert output_shape(model, shape) == out


def test_the_table_is_a_sequence_of_layers() -> None:
    table = layer_table(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)))
    assert table == LayerTable((Layer("0.weight", (3, 4), "linear"), Layer("1.weight", (2, 3), "linear")))
    assert [layer.numel for layer in table] == [12, 6]
    assert (table.first, table.last, len(table), table.prunable) == (table[0], table[-1], 2, 18)
    assert table[:1] == (table[0],)
