"""All images that a task needs, opened: training, held-out validation, test, and the out-of-distribution sets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from rpbench import streams
from rpbench.data import resident, streamed
from rpbench.data.resident import ResidentImages, ResidentTraining
from rpbench.data.sources import Located, Roots, locate
from rpbench.data.streamed import StreamedImages, StreamedTraining
from rpbench.errors import DataError, MissingData
from rpbench.task import ImageSet, Task, load_set

Images = ResidentImages | StreamedImages
Training = ResidentTraining | StreamedTraining


@dataclass
class TaskImages:
    """A task's images. `facts` are what the record keeps of each set. `differences` are sets that are not what
    their definition says, with their size or fingerprint; `notes` say the same in words."""

    test: Images
    ood: dict[str, Images]
    skipped: tuple[str, ...]
    facts: dict[str, dict[str, Any]]
    train: Images | None = None
    validation: Images | None = None
    differences: dict[str, int | str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Limits:
    """At most this many training images, and images of every evaluated set; None means all."""

    train: int | None = None
    test: int | None = None


def find_all(task: Task, roots: Roots, training: bool, skip_missing: bool) -> tuple[dict[str, Located], list[str]]:
    """Where every image set of a task is, and which OoD sets are skipped; nothing is opened.

    Raises MissingData for the first set that is not there (an OoD set only where it may not be skipped).
    """
    own = load_set(task.data.set)
    found = {"test": locate(own, task.data.test, roots)}
    if training:
        found["train"] = locate(own, task.data.train, roots)
    skipped: list[str] = []
    for name in task.evaluation.ood:
        image_set = load_set(name)
        split = "validation" if "test" not in image_set.splits and "validation" in image_set.splits else "test"
        try:
            found[name] = locate(image_set, split, roots)
        except MissingData as error:
            if not skip_missing:
                raise MissingData(f"{error}; or leave it out with --skip-missing") from None
            skipped.append(name)
    return found, skipped


def open_all(task: Task, found: dict[str, Located], skipped: list[str], limits: Limits, workers: int) -> TaskImages:
    """Open what `find_all` found. Raises DataError for unreadable images and labels outside the task's classes."""
    differences: dict[str, int | str] = {}
    notes: list[str] = []
    opened: dict[str, Images] = {}
    facts: dict[str, dict[str, Any]] = {}
    for key in ("train", "test", *task.evaluation.ood):
        if key not in found:
            continue
        located = found[key]
        if located.layout == "generated":
            images = _generate(located.image_set, opened["test"])
        else:
            images = _open(task, located, workers)
            if key in ("train", "test"):
                _check_labels(task, located, images)
            if (told := _difference(located, images)) is not None:
                differences[f"{located.image_set.name}/{located.split}"], note = told
                notes.append(note)
        name = located.image_set.name if key != "train" else f"{located.image_set.name}/{located.split}"
        if key != "train" and limits.test is not None and limits.test < len(images):
            images = images.take(np.arange(limits.test))
        facts[name] = {"fingerprint": images.fingerprint, "n": len(images), "source": images.origin}
        opened[key] = images
    result = TaskImages(
        test=opened["test"],
        ood={name: opened[name] for name in task.evaluation.ood if name in opened},
        skipped=tuple(skipped),
        facts=facts,
        differences=differences,
        notes=notes,
    )
    if "train" in opened:
        _split(task, found["train"], opened["train"], limits, result)
    return result


def training_set(images: Images, task: Task, seed: int, device: torch.device) -> Training:
    """Training batches of these images on `device`."""
    if isinstance(images, ResidentImages):
        return ResidentTraining(images, task.data, task.augment, seed, device)
    return StreamedTraining(images, task.data, task.augment, seed, device)


def _split(task: Task, located: Located, images: Images, limits: Limits, result: TaskImages) -> None:
    """Hold out validation images: the same for every source, as the order is canonical and the draw is a stream."""
    n, wanted = len(images), task.data.validation
    if located.declared and n != located.declared:
        wanted = max(1, round(wanted * n / located.declared))  # a folder of another size: the same fraction
    if wanted >= n:
        raise DataError(f"{wanted} of {n} training images held out for validation leaves none to train on")
    order = streams.permutation(streams.key("validation", task.data.set), n)
    held, rest = np.sort(order[:wanted]), order[wanted:]
    if limits.train is not None:
        rest = rest[: limits.train]
    if limits.test is not None:
        held = held[: limits.test]
    result.train, result.validation = images.take(np.sort(rest)), images.take(held)
    fact = result.facts[f"{located.image_set.name}/{located.split}"]
    fact |= {"trained_on": len(result.train), "validation": len(result.validation)}


def _difference(located: Located, images: Images) -> tuple[int | str, str] | None:
    """What a set on this machine has other than its definition says: the number or fingerprint, and a sentence."""
    name = f"{located.image_set.name} ({located.split})"
    declared = located.image_set.splits[located.split]
    if declared.n != len(images):
        return len(images), f"{name} has {len(images):,} images, its definition says {declared.n:,}"
    if declared.fingerprint and declared.fingerprint != images.fingerprint:
        found = images.fingerprint[:12]
        return found, f"{name} holds other images than its definition's (fingerprint {found})"
    return None


def _open(task: Task, located: Located, workers: int) -> Images:
    if task.data.pipeline == "resident":
        return resident.load(located, task.data.size, task.data.channels)
    return streamed.load(located, task.data.size, task.data.channels, task.augment.resize, workers)


def _generate(image_set: ImageSet, base: Images) -> Images:
    if isinstance(base, ResidentImages):
        return resident.generate(image_set, base)
    return streamed.generate(image_set, base)


def _check_labels(task: Task, located: Located, images: Images) -> None:
    if not len(images):
        raise DataError(f"{located.origin} holds no images of {located.image_set.name} ({located.split})")
    low, high = int(images.labels.min()), int(images.labels.max())
    if low < 0 or high >= task.data.classes:
        raise DataError(
            f"{located.image_set.name} ({located.split}) has labels {low}..{high}, "
            f"task '{task.name}' has classes 0..{task.data.classes - 1}"
        )
