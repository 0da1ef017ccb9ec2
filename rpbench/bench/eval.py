"""Evaluation against the usual loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from rpbench.bench.engine import Subject
from rpbench.bench.race import Turn, repeated, stepping

if TYPE_CHECKING:
    from rpbench.evaluation import Passes

# how far our logits may be from those of a plain fp32 pass, as a fraction of their length
AWAY = {"fp32": 1e-5, "bf16": 0.03}


def passes_of(subject: Subject, precision: str) -> Passes:
    """How rpbench evaluates."""
    from rpbench.evaluation import Passes
    from rpbench.machine import best_device

    task = subject.declared()
    return Passes(best_device(), task.data, task.evaluation.batch, precision=precision)


def turns(subject: Subject) -> dict[str, Turn]:
    """The turn of the usual loop, and of ours at both precisions: from images to top-1 and loss."""
    import torch

    from rpbench.bench import usual
    from rpbench.machine import best_device

    device = best_device()
    task, images = subject.declared(), subject.images()
    net, _ = subject.net()
    pictures = usual.Pictures(images.pixels, images.labels, usual.evaluation_transform(task))
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    modes = {"usual": stepping(usual.evaluation_steps(net, pictures, device), wait, usual.AHEAD)}
    for precision in ("fp32", "bf16"):
        modes[precision] = repeated(_ours(subject, precision), wait)
    return modes


def _ours(subject: Subject, precision: str) -> Callable[[], int]:
    import torch

    passes, images = passes_of(subject, precision), subject.images()
    net, _ = subject.net()
    net = net.to(passes.device).to(memory_format=torch.channels_last)

    def once() -> int:
        passes.accuracy_and_loss(net, images)
        return len(images)

    return once


def gate(subject: Subject) -> list[str]:
    """What is wrong with our logits, in sentences."""
    import torch

    net, _ = subject.net()
    images = subject.images().take(np.arange(500))
    ours = {precision: passes_of(subject, precision) for precision in ("fp32", "bf16")}
    device = ours["fp32"].device
    net = net.to(device).eval()
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (ours["fp32"].data.mean, ours["fp32"].data.std))
    with torch.no_grad():
        x = torch.from_numpy(np.array(images.pixels)).to(device).permute(0, 3, 1, 2).float().div(255)
        plain = net(((x - mean) / std).contiguous()).cpu().numpy()
    net = net.to(memory_format=torch.channels_last)
    wrong = []
    for precision, passes in ours.items():
        off = float(np.linalg.norm(passes.logits(net, images) - plain) / np.linalg.norm(plain))
        if not off <= AWAY[precision]:
            wrong.append(f"our {precision} logits are off a plain pass' by {off:.1e} (at most {AWAY[precision]:g})")
    return wrong
