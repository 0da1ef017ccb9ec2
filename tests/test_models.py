"""The nets of the papers: names, sizes, initial weights; and nets of one's own."""

from __future__ import annotations

import functools
import hashlib
import math
from pathlib import Path

import pytest
import torch
import torchvision
from scipy.stats import kstest
from torch import nn

import rpbench
from rpbench.errors import UnknownName
from rpbench.layers import LayerTable, layer_table
from rpbench.models import Family, build, imagenet, list_models, resolve
from rpbench.models.cifar import VGG, Block, ResNet
from rpbench.models.names import cifar_resnet

PUBLISHED: list[tuple[str, int, int, int]] = [  # name, layers, prunable, parameters; 10 classes
    ("resnet20", 22, 270_896, 272_474),
    ("resnet32", 34, 464_432, 466_906),
    ("resnet44", 46, 657_968, 661_338),
    ("resnet56", 58, 851_504, 855_770),
    ("resnet110", 112, 1_722_416, 1_730_714),
    ("resnet20-8", 22, 67_992, 68_786),
    ("resnet20-24", 22, 608_712, 611_074),
    ("resnet20-32", 22, 1_081_440, 1_084_586),
    ("resnet20-40", 22, 1_689_080, 1_693_010),
    ("resnet20-56", 22, 3_309_096, 3_314_594),
    ("vgg11", 9, 9_222_848, 9_228_362),
    ("vgg13", 11, 9_407_168, 9_413_066),
    ("vgg16", 14, 14_715_584, 14_724_042),
    ("vgg19", 17, 20_024_000, 20_035_018),
]
PUBLISHED_IMAGENET: list[tuple[str, int, int]] = [  # name, prunable, parameters; 1000 classes
    ("resnet18", 11_678_912, 11_689_512),
    ("resnet34", 21_779_648, 21_797_672),
    ("resnet50", 25_502_912, 25_557_032),
    ("resnet101", 44_442_816, 44_549_160),
    ("wrn50", 68_814_016, 68_883_240),
]


@functools.cache
def made(name: str, family: Family, classes: int, channels: int = 3) -> nn.Module:
    with torch.device("meta"):
        return build(resolve(name, family), classes, channels, 32 if family == "cifar" else 224)


@functools.cache
def drawn(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build(resolve(name, "cifar"), 10, 3, 32)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def macs(table: LayerTable) -> int:
    return sum(layer.macs or 0 for layer in table)


@pytest.mark.parametrize(("name", "layers", "prunable", "params"), PUBLISHED)
def test_cifar_nets_have_the_published_sizes(name: str, layers: int, prunable: int, params: int) -> None:
    model = made(name, "cifar", 10)
    table = layer_table(model)
    assert (len(table), table.prunable, parameters(model)) == (layers, prunable, params)


@pytest.mark.parametrize(("name", "prunable", "params"), PUBLISHED_IMAGENET)
def test_imagenet_nets_have_the_published_sizes(name: str, prunable: int, params: int) -> None:
    model = made(name, "imagenet", 1000)
    assert (layer_table(model).prunable, parameters(model)) == (prunable, params)


@pytest.mark.parametrize(
    ("name", "family", "classes", "size", "expected"),
    [
        ("resnet20", "cifar", 10, 32, "40.81 M"),
        ("resnet56", "cifar", 10, 32, "125.7 M"),
        ("resnet110", "cifar", 10, 32, "253.1 M"),
        ("vgg16", "cifar", 10, 32, "313.2 M"),
        ("resnet18", "imagenet", 1000, 224, "1.814 G"),
        ("resnet50", "imagenet", 1000, 224, "4.089 G"),
        ("wrn50", "imagenet", 1000, 224, "11.40 G"),
    ],
)
def test_dense_multiply_adds_are_the_published_ones(
    name: str, family: Family, classes: int, size: int, expected: str
) -> None:
    number, unit = expected.split()
    found = macs(layer_table(made(name, family, classes), (3, size, size))) / {"M": 1e6, "G": 1e9}[unit]
    assert f"{found:.{len(number.partition('.')[2])}f}" == number


def test_resnet50_to_the_last_multiply_add() -> None:
    assert macs(layer_table(made("resnet50", "imagenet", 1000), (3, 224, 224))) == 4_089_184_256


@pytest.mark.parametrize(("classes", "params"), [(10, 272_474), (100, 278_324)])
def test_the_number_of_classes_changes_the_classifier_only(classes: int, params: int) -> None:
    assert parameters(made("resnet20", "cifar", classes)) == params


@pytest.mark.parametrize("name", ["resnet20", "vgg11"])
def test_one_channel_changes_the_first_layer_only(name: str) -> None:
    grey, color = layer_table(made(name, "cifar", 10, 1)), layer_table(made(name, "cifar", 10, 3))
    assert [a.shape == b.shape for a, b in zip(grey, color, strict=True)] == [False] + [True] * (len(color) - 1)
    assert grey.first.shape[1] == 1


@pytest.mark.parametrize("name", ["resnet8", "resnet14-x0.25", "resnet20-56", "resnet44", "vgg11", "vgg19"])
@pytest.mark.parametrize(("classes", "channels"), [(10, 3), (7, 1)])
def test_images_become_one_logit_per_class(name: str, classes: int, channels: int) -> None:
    out = made(name, "cifar", classes, channels)(torch.zeros(2, channels, 32, 32, device="meta"))
    assert out.shape == (2, classes)


@pytest.mark.parametrize("size", [8, 32, 64])
def test_nets_run_for_real_in_train_and_eval_mode(size: int) -> None:
    model = build(resolve("resnet8", "cifar"), 10, 3, size)
    for _ in range(2):
        out = model(torch.rand(2, 3, size, size))
        assert out.shape == (2, 10)
        assert out.isfinite().all()
        model.eval()


@pytest.mark.parametrize(
    ("name", "depth", "width"),
    [
        ("resnet20", 20, 16),
        ("resnet20-56", 20, 56),
        ("resnet32-x1.5", 32, 24),
        ("resnet20-x2", 20, 32),
        ("resnet20-x0.5", 20, 8),
        ("resnet8", 8, 16),
        ("resnet1202", 1202, 16),
        ("resnet50", 50, 16),
    ],
)
def test_names_of_cifar_resnets(name: str, depth: int, width: int) -> None:
    assert cifar_resnet(name) == (depth, width)
    assert resolve(name, "cifar").family == "cifar"


@pytest.mark.parametrize("factor", [(1.5, 24), (0.5, 8), (2.5, 40), (3.5, 56)])
def test_a_factor_is_its_width(factor: tuple[float, int]) -> None:
    by_factor, by_width = (layer_table(made(f"resnet20-{w}", "cifar", 10)) for w in (f"x{factor[0]:g}", f"{factor[1]}"))
    assert by_factor == by_width


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet21", "resnet2", "resnet", "resnet20-", "resnet20-0", "resnet20-x", "resnet20-x0",
             "resnet20-x1.5-8", "resnet-20", "resnet20 ", "xresnet20", "resnet20-1.5", "vgg16"],
)  # fmt: skip
def test_what_is_no_cifar_resnet(name: str) -> None:
    assert cifar_resnet(name) is None


@pytest.mark.parametrize(
    ("name", "family", "kind"),
    [
        ("resnet50", "cifar", ResNet),
        ("resnet50", "imagenet", imagenet.ResNet),
        ("resnet18", "cifar", imagenet.ResNet),
        ("resnet18", "imagenet", imagenet.ResNet),
        ("wrn50", "cifar", imagenet.ResNet),
        ("resnet20", "imagenet", ResNet),
        ("vgg16", "imagenet", VGG),
    ],
)
def test_a_name_means_what_its_task_means(name: str, family: Family, kind: type[nn.Module]) -> None:
    assert type(made(name, family, 10)) is kind


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in ("resnet101", "wrn50") else n for n in imagenet.PLANS]
)
def test_imagenet_nets_are_torchvisions_to_the_last_bit(name: str) -> None:
    """The same names, initial weights and draws, outputs and gradients."""
    torch.manual_seed(5)
    ours = build(resolve(name, "imagenet"), 7, 3, 64)
    drawn_by_ours = torch.get_rng_state()
    torch.manual_seed(5)
    theirs = torchvision.models.get_model("wide_resnet50_2" if name == "wrn50" else name, num_classes=7)
    assert torch.equal(torch.get_rng_state(), drawn_by_ours)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))
    x = torch.rand(2, 3, 32, 32)
    outs = ours(x), theirs(x)
    assert torch.equal(*outs)
    for out in outs:
        out.square().sum().backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert all(map(torch.equal, ours.buffers(), theirs.buffers()))


@pytest.mark.parametrize("family", ["cifar", "imagenet"])
@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("resnet21", "resnet20"),
        ("resnet-20", "resnet20"),
        ("ResNet20", "resnet20"),
        ("vgg-16", "vgg16"),
        ("VGG19", "vgg19"),
        ("wrn-50", "wrn50"),
        ("resnet102", "resnet101"),
    ],
)
def test_an_unknown_name_raises_with_the_nearest(name: str, near: str, family: Family) -> None:
    with pytest.raises(UnknownName, match=f"no model '{name}'") as caught:
        resolve(name, family)
    said = str(caught.value)
    assert f"did you mean '{near}'" in said
    assert all(row["name"] in said for row in list_models())


def test_a_name_like_no_other_lists_what_there_is() -> None:
    with pytest.raises(UnknownName, match=r"no model 'qqq'; there is .*resnet20.*vgg16.*wrn50") as caught:
        resolve("qqq", "cifar")
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize("row", list_models(), ids=lambda row: str(row["name"]))
def test_every_listed_name_resolves(row: dict[str, str]) -> None:
    assert resolve(row["name"], row["family"]).family == row["family"]  # type: ignore[arg-type]
    assert row["source"].startswith("https://arxiv.org/abs/")
    assert row["summary"]


@pytest.mark.parametrize("name", ["resnet18", "wrn50"])
def test_imagenet_nets_of_one_channel_raise(name: str) -> None:
    with pytest.raises(rpbench.ModelError, match="takes 3 channels, this task has 1"):
        build(resolve(name, "imagenet"), 10, 1, 224)


def standardised(weight: torch.Tensor, variance: float) -> torch.Tensor:
    return weight.detach().flatten().double() / math.sqrt(variance)


def check_normal(values: torch.Tensor) -> None:
    """Mean 0, variance 1 within 5 standard errors, and the shape of a Gaussian (Kolmogorov-Smirnov)."""
    n = len(values)
    assert abs(values.mean().item()) < 5 / math.sqrt(n)
    assert abs(values.var().item() - 1) < 5 * math.sqrt(2 / n)
    some = values[torch.randperm(n, generator=torch.Generator().manual_seed(1))[:20_000]]
    assert kstest(some.numpy(), "norm").pvalue > 1e-4


@pytest.mark.parametrize("name", ["resnet20", "resnet8-32"])
def test_resnets_start_kaiming_normal_by_fan_in(name: str) -> None:
    """Variance 2 / fan_in for convolutions and the classifier; each layer by itself, and all together."""
    model = drawn(name)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    values = [standardised(m.weight, 2 / m.weight[0].numel()) for m in layers]
    for each in values:
        assert abs(each.var().item() - 1) < 5 * math.sqrt(2 / len(each))
    check_normal(torch.cat(values))
    classifier = layers[-1]
    assert isinstance(classifier, nn.Linear)
    assert classifier.bias is not None


@pytest.mark.parametrize("name", ["vgg11", "vgg16"])
def test_vggs_start_kaiming_normal_by_fan_out(name: str) -> None:
    """Variance 2 / (out * 9); the classifier is N(0, 0.01^2), its bias 0."""
    model = drawn(name)
    assert isinstance(model, VGG)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    values = [standardised(m.weight, 2 / (m.out_channels * 9)) for m in layers]
    for each in values:
        assert abs(each.var().item() - 1) < 5 * math.sqrt(2 / len(each))
    check_normal(torch.cat(values))
    check_normal(standardised(model.classifier.weight, 1e-4))
    assert not model.classifier.bias.any()


@pytest.mark.parametrize("name", ["resnet20", "vgg16"])
def test_norms_start_at_one_and_zero_and_convolutions_have_no_bias(name: str) -> None:
    model = drawn(name)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(norms) == len(convolutions)
    assert all((m.weight == 1).all() and (m.bias == 0).all() for m in norms)
    assert all(m.bias is None for m in convolutions)


def test_initial_weights_follow_torchs_seed() -> None:
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(build(resolve("resnet8", "cifar"), 10, 3, 32).state_dict())
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())
    assert not torch.equal(states[0]["conv.weight"], states[2]["conv.weight"])


@pytest.mark.parametrize(("depth", "width"), [(8, 16), (20, 16), (20, 24), (56, 8)])
def test_shortcuts_are_option_b(depth: int, width: int) -> None:
    """A strided 1x1 convolution with BatchNorm at the two stage changes, nothing elsewhere."""
    model = made(f"resnet{depth}-{width}", "cifar", 10)
    blocks = [m for m in model.modules() if isinstance(m, Block)]
    assert len(blocks) == 3 * (depth - 2) // 6
    changes = [i for i, block in enumerate(blocks) if len(block.shortcut)]
    assert changes == [len(blocks) // 3, 2 * len(blocks) // 3]
    for i, outside in zip(changes, (2 * width, 4 * width), strict=True):
        convolution, norm = blocks[i].shortcut
        assert isinstance(convolution, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        assert convolution.weight.shape == (outside, outside // 2, 1, 1)
        assert convolution.stride == (2, 2)
        assert convolution.bias is None


def test_a_shortcut_is_the_identity_where_the_shape_stays() -> None:
    """With its second norm at zero a block passes what is positive unchanged: post-activation."""
    block = Block(4, 4, 1).eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(block(x), torch.relu(x))


@pytest.mark.parametrize(("name", "pools"), [("vgg11", 4), ("vgg13", 4), ("vgg16", 4), ("vgg19", 4)])
def test_vggs_have_four_max_pools_and_end_at_two_pixels(name: str, pools: int) -> None:
    model = made(name, "cifar", 10)
    assert isinstance(model, VGG)
    found = [m for m in model.modules() if isinstance(m, nn.MaxPool2d)]
    assert len(found) == pools
    assert model.feature(torch.zeros(1, 3, 32, 32, device="meta")).shape == (1, 512, 2, 2)
    assert model.classifier.in_features == 512


HEAD = """
import functools
import torch
from torch import nn

def net(classes=10, channels=3, size=32):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size * size, classes))
"""
OWN: dict[str, str] = {
    "nothing": "def make(): return net(5, 1, 8)",
    "classes": "def make(classes): return net(classes, 1, 8)",
    "keyword_only": "def make(*, classes, channels): return net(classes, channels, 8)",
    "all": "def make(classes, channels, size): return net(classes, channels, size)",
    "other_order": "def make(size, classes, channels): return net(classes, channels, size)",
    "defaults": "def make(classes=3, width=7, channels=9): return net(classes, channels, 8)",
    "anything": "def make(**given): return net(**given)",
    "some_and_anything": "def make(classes, **given): return net(classes, given['channels'], given['size'])",
    "class": "class make(nn.Module):\n    def __init__(self, classes):\n        super().__init__()\n"
    "        self.fc = nn.Linear(64, classes)\n    def forward(self, x): return self.fc(x.flatten(1))",
    "partial": "make = functools.partial(net, channels=1, size=8)",
    "lambda": "make = lambda classes: net(classes, 1, 8)",
}


def write(folder: Path, code: str) -> Path:
    path = folder / "net.py"
    path.write_text(HEAD + code + "\n")
    return path


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize("function", ["", ":make"])
def test_ones_own_net(tmp_path: Path, kind: str, function: str) -> None:
    """Its function is given what it asks for of classes, channels and size."""
    path = write(tmp_path, OWN[kind])
    name = resolve(f"{path}{function}", "cifar")
    assert name.family is None
    assert name.source == hashlib.sha256(path.read_bytes()).hexdigest()
    assert build(name, 5, 1, 8)(torch.zeros(2, 1, 8, 8)).shape == (2, 5)


def test_ones_own_net_by_a_relative_path_and_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "def tiny(classes): return net(classes, 1, 8)")
    monkeypatch.chdir(tmp_path)
    assert isinstance(build(resolve("./net.py:tiny", "imagenet"), 4, 1, 8), nn.Sequential)


def test_ones_own_net_is_read_anew_when_its_file_changes(tmp_path: Path) -> None:
    sources = set()
    for width in (3, 4):
        path = write(tmp_path, f"def make(): return nn.Linear(2, {width})")
        name = resolve(str(path), "cifar")
        sources.add(name.source)
        assert build(name, 10, 3, 32)(torch.zeros(1, 2)).shape == (1, width)
    assert len(sources) == 2


@pytest.mark.parametrize(
    ("code", "asked", "said"),
    [
        ("def make(): return 3", "", "gave a int, not a torch.nn.Module"),
        ("def make(): return None", "", "gave a NoneType"),
        ("def make(classes): raise RuntimeError('no luck')", "", "RuntimeError: no luck"),
        ("def make(heads): return net()", "", "cannot be made: TypeError: .*heads"),
        ("def make(): return net()", ":other", "no function 'other'"),
        ("other = 3", "", "no function 'make'"),
        ("make = 3", "", "no function 'make'"),
        ("import no_such_package", "", "does not load: ModuleNotFoundError"),
        ("def make(:", "", "does not load: SyntaxError"),
    ],
)
def test_a_file_without_a_net_raises(tmp_path: Path, code: str, asked: str, said: str) -> None:
    path = write(tmp_path, code)
    with pytest.raises(rpbench.UsageError, match=said):
        build(resolve(f"{path}{asked}", "cifar"), 10, 3, 32)


@pytest.mark.parametrize("given", ["{}/none.py", "{}/none.py:make", "{}"])
def test_a_file_that_is_not_there_raises(tmp_path: Path, given: str) -> None:
    with pytest.raises(rpbench.UsageError):
        resolve(given.format(tmp_path), "cifar")
