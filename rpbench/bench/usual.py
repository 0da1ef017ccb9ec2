"""Training and evaluation written the usual way: what rpbench is timed against.

Worker processes that load, augment and collate images one by one, masks multiplied one tensor at a time, the loss read
back at every step: the habits of the released code of Liu et al. 2022 and of nearly every loop like it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from rpbench.masks import Masks
from rpbench.task import Task

WORKERS = min(8, os.cpu_count() or 1)
AHEAD = 2 * WORKERS  # batches that lie ready when a turn begins: torch's default prefetching


class Pictures(Dataset[tuple[torch.Tensor, int]]):
    """Images in memory, handed out one by one through Pillow, as torchvision's data sets do."""

    def __init__(self, pixels: NDArray[np.uint8], labels: NDArray[np.int64], transform: Callable[..., Any]) -> None:
        self.pixels, self.labels, self.transform = pixels, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        pixels = self.pixels[index]
        image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        return self.transform(image), int(self.labels[index])


def training_transform(task: Task) -> Callable[..., Any]:
    """The task's augmentation as torchvision's transforms of single images."""
    data, augment = task.data, task.augment
    steps: list[Any] = []
    if augment.pad:
        steps.append(transforms.RandomCrop(data.size, augment.pad, padding_mode=augment.pad_mode))
    if augment.flip:
        steps.append(transforms.RandomHorizontalFlip())
    composed: Callable[..., Any] = transforms.Compose([*steps, *_normalised(task)])
    return composed


def evaluation_transform(task: Task) -> Callable[..., Any]:
    """Normalisation alone."""
    composed: Callable[..., Any] = transforms.Compose(_normalised(task))
    return composed


def _normalised(task: Task) -> list[Any]:
    return [transforms.ToTensor(), transforms.Normalize(task.data.mean, task.data.std)]


def training_steps(task: Task, net: nn.Module, masks: Masks, pictures: Pictures, device: torch.device) -> Iterator[int]:
    """An endless training: the images of each step."""
    recipe = task.recipe
    net = net.to(device).train()
    kept = {name: mask.float().to(device) for name, mask in masks.items()}
    optimizer = torch.optim.SGD(
        net.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.nesterov
    )
    loader = DataLoader(
        pictures, recipe.batch, shuffle=True, num_workers=WORKERS, pin_memory=device.type == "cuda",
        persistent_workers=True,
    )  # fmt: skip
    total, correct = 0.0, 0
    while True:
        for x, y in loader:
            x, y = x.to(device), y.to(device)
            optimizer.zero_grad()
            logits = net(x)
            loss = functional.cross_entropy(logits, y, label_smoothing=recipe.label_smoothing)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            for name, weight in net.named_parameters():
                if name in kept:
                    weight.data = weight.data * kept[name]
            total += loss.item()
            correct += int(logits.argmax(1).eq(y).sum().item())
            yield len(y)


def evaluation_steps(net: nn.Module, pictures: Pictures, device: torch.device, batch: int = 128) -> Iterator[int]:
    """An endless evaluation: the images of each batch."""
    net = net.to(device).eval()
    loader = DataLoader(
        pictures, batch, num_workers=WORKERS, pin_memory=device.type == "cuda", persistent_workers=True
    )  # fmt: skip
    total, correct = 0.0, 0
    while True:
        for x, y in loader:
            with torch.no_grad():
                x, y = x.to(device), y.to(device)
                logits = net(x)
                total += functional.cross_entropy(logits, y, reduction="sum").item()
                correct += int(logits.argmax(1).eq(y).sum().item())
            yield len(y)
