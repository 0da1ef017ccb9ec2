"""Nets by name. Which family a name means first (resnet50!) is the task's to say; classes and channels come from it."""

from __future__ import annotations

import hashlib
import inspect
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rpbench.catalog import Row, find_model_function
from rpbench.errors import ModelError, UnknownName, UsageError

if TYPE_CHECKING:
    from torch import nn

Family = Literal["cifar", "imagenet"]

IMAGENET = {
    "resnet18": "torchvision ResNet-18",
    "resnet34": "torchvision ResNet-34",
    "resnet50": "torchvision ResNet-50 (stride in the 3x3)",
    "resnet101": "torchvision ResNet-101",
    "wrn50": "torchvision Wide ResNet-50-2",
}
VGG = ("vgg11", "vgg13", "vgg16", "vgg19")


@dataclass(frozen=True)
class ModelName:
    """A net's name, resolved: `source` is the hash of the file for nets given by path."""

    name: str
    family: Family | None
    source: str = ""

    @property
    def title(self) -> str:
        """The name without its folder."""
        return self.name.rpartition("/")[2]


def resolve(given: str, family: Family) -> ModelName:
    """What `given` means in a task of this family; UnknownName where it means nothing."""
    if ".py" in given or "/" in given:
        _, path = find_model_function(given)
        return ModelName(given, None, hashlib.sha256(path.read_bytes()).hexdigest())
    order: tuple[Family, Family] = ("cifar", "imagenet") if family == "cifar" else ("imagenet", "cifar")
    for choice in order:
        if _is_cifar(given) if choice == "cifar" else given in IMAGENET:
            return ModelName(given, choice)
    raise UnknownName("model", given, [*(row["name"] for row in list_models())])


def build(model: ModelName, classes: int, channels: int, size: int) -> nn.Module:
    """The net with freshly drawn weights (torch's global generator), on the current default device."""
    if model.family == "cifar":
        from rpbench.models import cifar

        return cifar.build(model.name, classes, channels)
    if model.family == "imagenet":
        from rpbench.models import imagenet

        return imagenet.build(model.name, classes, channels)
    return _build_from_file(model.name, {"classes": classes, "channels": channels, "size": size})


def list_models() -> list[Row]:
    """One row per model name (families of names by their smallest and widest examples)."""
    he = "https://arxiv.org/abs/1512.03385"
    rows: list[Row] = [
        {"name": f"resnet{a}", "summary": f"CIFAR ResNet-{a}, width 16 (also resnet{a}-WIDTH, resnet{a}-xFACTOR)"}
        | {"source": he, "family": "cifar"}
        for a in (8, 14, 20, 32, 44, 56, 110)
    ]
    rows += [
        {"name": n, "summary": f"CIFAR {n.upper()} with BatchNorm, one linear layer"}
        | {"source": "https://arxiv.org/abs/1409.1556", "family": "cifar"}
        for n in VGG
    ]
    rows += [
        {"name": n, "summary": text, "source": he if n != "wrn50" else "https://arxiv.org/abs/1605.07146"}
        | {"family": "imagenet"}
        for n, text in IMAGENET.items()
    ]
    return rows


def _is_cifar(name: str) -> bool:
    from rpbench.models.names import cifar_resnet

    return name in VGG or (bool(re.match(r"resnet\d", name)) and cifar_resnet(name) is not None)


def _build_from_file(given: str, offered: dict[str, int]) -> nn.Module:
    from torch import nn

    function, _ = find_model_function(given)
    parameters = inspect.signature(function).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    try:
        model = function(**{k: v for k, v in offered.items() if anything or k in parameters})
    except Exception as error:
        raise UsageError(f"model '{given}' cannot be made: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"model '{given}' gave a {type(model).__name__}, not a torch.nn.Module")
    return model
