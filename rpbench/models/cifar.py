"""CIFAR ResNet-A-W and VGG, as in Liu et al. 2022 and the code they build on (open_lth)."""

from __future__ import annotations

import torch
from torch import nn

from rpbench.models.names import cifar_resnet

VGG_PLANS = {
    "vgg11": (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512),
    "vgg13": (64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512),
    "vgg16": (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512),
    "vgg19": (64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M", 512, 512, 512, 512, "M", 512, 512, 512, 512),
}


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; option B: a strided 1x1 convolution where the shape changes."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.shortcut = nn.Sequential()
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return torch.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """ResNet-A-W: three stages of n = (A - 2) / 6 blocks at widths W, 2W, 4W; images (b, c, h, w) -> logits (b, k)."""

    def __init__(self, depth: int, width: int, classes: int, channels: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        blocks, inside = [], width
        for stage in range(3):
            for i in range((depth - 2) // 6):
                outside = width * 2**stage
                blocks.append(Block(inside, outside, 2 if stage and i == 0 else 1))
                inside = outside
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(inside, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)  # fan_in

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.relu(self.bn(self.conv(x)))
        logits: torch.Tensor = self.fc(self.blocks(out).mean((2, 3)))
        return logits


class VGG(nn.Module):
    """conv-BN-ReLU with four 2x2 max-pools, one average pool and one linear layer; images (b, c, h, w) -> (b, k)."""

    def __init__(self, plan: tuple[int | str, ...], classes: int, channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inside = channels
        for step in plan:
            if isinstance(step, str):
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(inside, step, 3, padding=1, bias=False), nn.BatchNorm2d(step), nn.ReLU()]
                inside = step
        self.feature = nn.Sequential(*layers)
        self.classifier = nn.Linear(inside, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.classifier.weight, 0, 0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.feature(x).mean((2, 3)))
        return logits


def build(name: str, classes: int, channels: int) -> nn.Module:
    """`resnetA`, `resnetA-W`, `resnetA-xF` or `vggA`."""
    if name in VGG_PLANS:
        return VGG(VGG_PLANS[name], classes, channels)
    shape = cifar_resnet(name)
    assert shape is not None, name
    return ResNet(*shape, classes, channels)
