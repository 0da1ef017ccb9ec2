"""One pass of logits per image set with the net in eval mode; metrics come from the logits alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from rpbench import metrics
from rpbench.data.opened import Images, TaskImages
from rpbench.data.order import shares
from rpbench.data.resident import ResidentImages, normalisation, normalise
from rpbench.folding import WORTH, folded
from rpbench.step import autocast
from rpbench.task import Attack, Data, Task

Logits = NDArray[np.float32]
Gather = Callable[[torch.Tensor], torch.Tensor]
Say = Callable[[str], None]
CROWD = 4096  # images that threads share out among them
PIECE = 64  # images: what lies between two layers stays in a processor's caches
FULL_LOGITS = 100  # up to this many classes the outputs keep whole logits


@dataclass(frozen=True)
class Passes:
    """How to run a net over images: on which device, in which batches, as which of how many processes.

    `gather` concatenates equally long tensors of all processes, in rank order. `precision` is the net's on clean
    images; attacks are always made and answered in fp32.
    """

    device: torch.device
    data: Data
    batch: int
    rank: int = 0
    world: int = 1
    gather: Gather = lambda tensor: tensor
    precision: str = "fp32"

    def logits(self, model: nn.Module, images: Images, attack: Attack | None = None) -> Logits:
        """Logits (n, k) float32 of every image, in order, on every process; of attacked images with `attack`."""
        scale, shift = normalisation(self.data, self.device)
        mean = torch.tensor(self.data.mean, device=self.device)[:, None, None]
        std = torch.tensor(self.data.std, device=self.device)[:, None, None]
        n = len(images)
        crowd = attack is None and n >= WORTH and self.device.type == "cpu" and isinstance(images, ResidentImages)
        # threads that share out a batch wait for each other at its end: small images come in large ones
        parts = shares(n, max(self.batch, CROWD) if crowd else self.batch, self.rank, self.world)
        labels = torch.from_numpy(np.array(images.labels))
        found: list[torch.Tensor] = []
        model.eval()
        ready = model
        for part, pixels in zip(parts, images.batches(parts, self.device), strict=True):
            if attack is None:
                x = normalise(pixels, scale, shift)
                if not found and n >= WORTH:
                    ready = folded(model, x[:8])
                found.append(self._through(ready, x, crowd and ready is not model))
                continue
            x = pixels.permute(0, 3, 1, 2).float().div(255)
            wrapped = _PixelSpace(model, mean, std)
            adversarial = fgsm(wrapped, x, labels[part].to(self.device), attack.eps)
            with torch.inference_mode():
                found.append(wrapped(adversarial).float())
        return self._whole(found, n)

    def _through(self, net: nn.Module, x: torch.Tensor, crowded: bool) -> torch.Tensor:
        """Logits of one batch. `crowded`: pieces of it by threads that do not wait for each other, the same numbers."""

        def logits(piece: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode(), autocast(self.device, self.precision):
                out: torch.Tensor = net(piece).float()
                return out

        threads = torch.get_num_threads()
        if not crowded or threads == 1:
            return torch.cat([logits(piece) for piece in torch.split(x, self.batch)])
        try:
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as crowd:
                return torch.cat(list(crowd.map(logits, torch.split(x, PIECE))))
        finally:
            torch.set_num_threads(threads)

    def accuracy_and_loss(self, model: nn.Module, images: Images) -> tuple[float, float]:
        """(top-1, mean NLL) on labelled images."""
        logits, labels = self.logits(model, images), np.asarray(images.labels)
        return metrics.top_k(logits, labels), metrics.nll(logits, labels)

    def _whole(self, found: list[torch.Tensor], n: int) -> Logits:
        if self.world == 1:
            return torch.cat(found).cpu().numpy()
        length = -(-n // self.world)
        classes = torch.tensor([found[0].shape[1] if found else 0], device=self.device)
        width = int(self.gather(classes).max())  # a process without a share does not know the classes
        mine = torch.zeros((length, width), device=self.device)
        if found:
            rows = torch.cat(found)
            mine[: len(rows)] = rows
        return self.gather(mine)[:n].cpu().numpy()


class _PixelSpace(nn.Module):
    """A net on images in [0, 1]: the normalisation is inside."""

    def __init__(self, model: nn.Module, mean: torch.Tensor, std: torch.Tensor) -> None:
        super().__init__()
        self.model, self.mean, self.std = model, mean, std

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model((x - self.mean) / self.std)
        return logits


def fgsm(model: nn.Module, x: torch.Tensor, labels: torch.Tensor, eps: float) -> torch.Tensor:
    """Adversarial images x + eps * sign(dL/dx), clamped to [0, 1] (Goodfellow et al. 2014, section 4).

    `model` maps images in [0, 1] to logits and must be in eval mode; L is the summed cross-entropy.
    """
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        loss = functional.cross_entropy(model(x), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
    return (x.detach() + eps * gradient.sign()).clamp(0, 1)


@dataclass(frozen=True)
class Scored:
    """The metrics of one net, and what each is computed from: {image set or attack: arrays per example}."""

    metrics: dict[str, float]
    outputs: dict[str, dict[str, NDArray[Any]]]
    images_per_s: float


def score_net(
    model: nn.Module, task: Task, images: TaskImages, attacks: Mapping[str, Attack], passes: Passes, say: Say
) -> Scored:
    """All metrics of `model` on a task's test images, its OoD sets and attacks. Raises ValueError on NaN scores."""
    say(f"testing on {len(images.test):,} images")
    labels = np.asarray(images.test.labels)
    start = time.perf_counter()
    inside = passes.logits(model, images.test)
    rate = len(labels) / max(1e-9, time.perf_counter() - start)
    if not np.isfinite(inside).all():
        raise ValueError("the net's logits on the test images are not finite")
    found = metrics.classification(inside, labels, task.evaluation.top5)
    outputs = {"test": per_example(inside, labels)}
    for name, outside_images in images.ood.items():
        say(f"out of distribution: {name}")
        outside = passes.logits(model, outside_images)
        by_confidence = metrics.detection(metrics.confidence(inside), metrics.confidence(outside))
        found |= {f"{key}/{name}": value for key, value in by_confidence.items()}
        by_energy = metrics.detection(metrics.energy(inside), metrics.energy(outside))
        found |= {f"{key}_energy/{name}": value for key, value in by_energy.items()}
        outputs[name] = per_example(outside, None)
    for name, attack in attacks.items():
        say(f"attack: {name}")
        attacked = passes.logits(model, images.test, attack)
        found[f"robust/{name}"] = metrics.top_k(attacked, labels)
        outputs[name] = per_example(attacked, labels)
    return Scored(found, outputs, rate)


def per_example(logits: Logits, labels: NDArray[np.int64] | None) -> dict[str, NDArray[Any]]:
    """What the store keeps of a pass: logits for up to 100 classes, else prediction, confidence, energy (and loss)."""
    kept: dict[str, NDArray[Any]] = {} if labels is None else {"labels": labels}
    if logits.shape[1] <= FULL_LOGITS:
        return kept | {"logits": logits}
    kept |= {
        "prediction": logits.argmax(axis=1),
        "confidence": metrics.confidence(logits),
        "energy": metrics.energy(logits),
    }
    if labels is not None:
        kept["loss"] = metrics.loss(logits, labels)
        own = logits[np.arange(len(labels)), labels][:, None]
        kept["rank"] = (logits >= own).sum(axis=1).astype(np.int32)
        p = np.exp(metrics.log_softmax(logits))
        p[np.arange(len(labels)), labels] -= 1.0
        kept["brier"] = (p**2).sum(axis=1)
    return kept
