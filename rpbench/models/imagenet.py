"""ImageNet ResNets: torchvision's, layer by layer and draw by draw, without its second of imports."""

from __future__ import annotations

import torch
from torch import nn

from rpbench.errors import ModelError


class Basic(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, inside: int, planes: int, stride: int, factor: int) -> None:
        super().__init__()
        downsample = _shortcut(inside, planes, stride)  # drawn first, registered last
        self.conv1 = nn.Conv2d(inside, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.downsample(x)
        activated: torch.Tensor = self.relu(out)
        return activated


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolution, and a shortcut; `factor` widens the 3x3."""

    expansion = 4

    def __init__(self, inside: int, planes: int, stride: int, factor: int) -> None:
        super().__init__()
        width, outside = planes * factor, planes * self.expansion
        downsample = _shortcut(inside, outside, stride)  # drawn first, registered last
        self.conv1 = nn.Conv2d(inside, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outside, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outside)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += self.downsample(x)
        activated: torch.Tensor = self.relu(out)
        return activated


def _shortcut(inside: int, outside: int, stride: int) -> nn.Sequential:
    """A strided 1x1 convolution where the shape changes, else nothing."""
    if stride == 1 and inside == outside:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))


PLANS: dict[str, tuple[type[Basic | Bottleneck], tuple[int, int, int, int], int]] = {
    "resnet18": (Basic, (2, 2, 2, 2), 1),
    "resnet34": (Basic, (3, 4, 6, 3), 1),
    "resnet50": (Bottleneck, (3, 4, 6, 3), 1),
    "resnet101": (Bottleneck, (3, 4, 23, 3), 1),
    "wrn50": (Bottleneck, (3, 4, 6, 3), 2),
}


class ResNet(nn.Module):
    """Four stages of blocks with 64 to 512 planes after a 7x7 convolution and a max-pool; images (b, 3, h, w) ->
    logits (b, k). Names of weights are torchvision's."""

    def __init__(
        self, block: type[Basic | Bottleneck], depths: tuple[int, int, int, int], factor: int, classes: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inside, stages = 64, []
        for stage, depth in enumerate(depths):
            blocks = []
            for i in range(depth):
                blocks.append(block(inside, 64 * 2**stage, 2 if stage and i == 0 else 1, factor))
                inside = 64 * 2**stage * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(inside, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        logits: torch.Tensor = self.fc(self.avgpool(out).flatten(1))
        return logits


def build(name: str, classes: int, channels: int) -> nn.Module:
    """A net by its name in `PLANS`."""
    if channels != 3:
        raise ModelError(f"torchvision's {name} takes 3 channels, this task has {channels}")
    return ResNet(*PLANS[name], classes)
