"""ImageNet nets: torchvision's architectures and initial weights."""

from __future__ import annotations

import torchvision.models
from torch import nn

from rpbench.errors import ModelError


def build(name: str, classes: int, channels: int) -> nn.Module:
    """torchvision's `name` with its own initialisation, no pretrained weights."""
    if channels != 3:
        raise ModelError(f"torchvision's {name} takes 3 channels, this task has {channels}")
    model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes)
    return model
