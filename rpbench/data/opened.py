"""All images that a task needs, opened: training, held-out validation, test, and the out-of-distribution sets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from rpbench import streams
from rpbench.catalog import names
from rpbench.data import resident, streamed
from rpbench.data.resident import ResidentImages, ResidentTraining
from rpbench.data.sources import Located, Roots, locate
from rpbench.data.streamed import StreamedImages, StreamedTraining
from rpbench.errors import DataError, MissingData, UnknownName, UsageError
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
    """Where every image set of a task is ("train", "test", and OoD sets by name), and which of those are skipped;
    nothing is opened.

    Raises MissingData for the first set that is not there (an OoD set only where it may not be skipped).
    """
    own = _own_set(task, roots)
    found = {"test": locate(own, task.data.test, roots)}
    if training:
        found["train"] = locate(own, task.data.train, roots)
    skipped: list[str] = []
    for image_set in map(load_set, task.evaluation.ood):
        split = "validation" if "test" not in image_set.splits and "validation" in image_set.splits else "test"
        try:
            found[image_set.name] = locate(image_set, split, roots)
        except MissingData as error:
            if not skip_missing:
                raise MissingData(f"{error}; or leave it out with --skip-missing") from None
            skipped.append(image_set.name)
    return found, skipped


def open_all(task: Task, found: dict[str, Located], skipped: list[str], limits: Limits, workers: int) -> TaskImages:
    """Open what `find_all` found. Raises DataError for unreadable images and labels outside the task's classes."""
    test = _open(task, found["test"], workers)
    result = TaskImages(test=test, ood={}, skipped=tuple(skipped), facts={})
    if "train" in found:
        result.train, result.validation = _split(
            task, found["train"], _open(task, found["train"], workers), limits, result
        )
    result.test = _noted(found["test"], test, limits, result)
    for name, located in found.items():
        if name not in ("train", "test"):
            generated = located.layout == "generated"
            images = _generate(located.image_set, result.test) if generated else _open(task, located, workers)
            result.ood[name] = _noted(located, images, limits, result)
    return result


def open_training(task: Task, roots: Roots, limits: Limits, workers: int) -> tuple[Images, Images, list[str]]:
    """Training and validation images alone, and what they have other than their definition says."""
    located = locate(_own_set(task, roots), task.data.train, roots)
    images = _open(task, located, workers)
    result = TaskImages(images, {}, (), {})
    train, validation = _split(task, located, images, limits, result)
    return train, validation, result.notes


def training_set(images: Images, task: Task, seed: int, device: torch.device) -> Training:
    """Training batches of these images on `device`."""
    if isinstance(images, ResidentImages):
        return ResidentTraining(images, task.data, task.augment, seed, device)
    return StreamedTraining(images, task.data, task.augment, seed, device)


def _own_set(task: Task, roots: Roots) -> ImageSet:
    """The set that a task trains and tests on; UsageError for one without labels, UnknownName for --data of no set."""
    own = load_set(task.data.set)
    if own.source == "generated" or not own.labels:
        raise UsageError(f"task '{task.name}' cannot train on image set '{own.name}': it has no labels")
    known = {*names("tasks.images", ".toml"), *(load_set(name).name for name in task.set_names)}
    for name, _ in roots.named:
        if name not in known:
            raise UnknownName("image set", name, known)
    return own


def _noted(located: Located, images: Images, limits: Limits, result: TaskImages) -> Images:
    """An evaluated set with its facts noted, cut to the limit at random (a folder is sorted by class)."""
    name = located.image_set.name
    _note_difference(located, images, result)
    if limits.test is not None and limits.test < len(images):
        images = images.take(np.sort(streams.permutation(streams.key("limit", name), len(images))[: limits.test]))
    result.facts[name] = {"fingerprint": images.fingerprint, "n": len(images), "source": images.origin}
    return images


def _split(task: Task, located: Located, images: Images, limits: Limits, result: TaskImages) -> tuple[Images, Images]:
    """(training, validation): the same for every source, as the order is canonical and the draw is a stream."""
    _note_difference(located, images, result)
    n, wanted = len(images), task.data.validation
    if located.declared and n != located.declared:
        wanted = max(1, round(wanted * n / located.declared))  # a folder of another size: the same fraction
    if wanted >= n:
        raise DataError(f"{wanted} of {n} training images held out for validation leaves none to train on")
    order = streams.permutation(streams.key("validation", located.image_set.name), n)
    held, rest = order[:wanted][: limits.test], order[wanted:][: limits.train]
    result.facts[f"{located.image_set.name}/{located.split}"] = {
        "fingerprint": images.fingerprint,
        "n": n,
        "source": images.origin,
        "trained_on": len(rest),
        "validation": len(held),
    }
    return images.take(np.sort(rest)), images.take(np.sort(held))


def _open(task: Task, located: Located, workers: int) -> Images:
    images: Images
    if task.data.pipeline == "resident":
        images = resident.load(located, task.data.size, task.data.channels)
    else:
        images = streamed.load(located, task.data.size, task.data.channels, task.augment.resize, workers)
    if located.image_set.name == load_set(task.data.set).name:
        _check_labels(task, located, images)
    return images


def _generate(image_set: ImageSet, base: Images) -> Images:
    if isinstance(base, ResidentImages):
        return resident.generate(image_set, base)
    return streamed.generate(image_set, base)


def _note_difference(located: Located, images: Images, result: TaskImages) -> None:
    """Note what a set on this machine has other than its definition says: its number of images, or its fingerprint."""
    declared = located.image_set.splits.get(located.split)
    if declared is None:
        return
    key, name = f"{located.image_set.name}/{located.split}", f"{located.image_set.name} ({located.split})"
    if declared.n != len(images):
        result.differences[key] = len(images)
        result.notes.append(f"{name} has {len(images):,} images, its definition says {declared.n:,}")
    elif declared.fingerprint and declared.fingerprint != images.fingerprint:
        result.differences[key] = images.fingerprint[:12]
        result.notes.append(f"{name} holds other images than its definition's (fingerprint {images.fingerprint[:12]})")


def _check_labels(task: Task, located: Located, images: Images) -> None:
    if not len(images):
        raise DataError(f"{located.origin} holds no images of {located.image_set.name} ({located.split})")
    low, high = int(images.labels.min()), int(images.labels.max())
    if low < 0 or high >= task.data.classes:
        raise DataError(
            f"{located.image_set.name} ({located.split}) has labels {low}..{high}, "
            f"task '{task.name}' has classes 0..{task.data.classes - 1}"
        )
