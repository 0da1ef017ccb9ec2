"""Large images: decoded in worker processes as they are needed, RandomResizedCrop for training, a centre crop else."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from rpbench import streams
from rpbench.data import embedded
from rpbench.data.crop import Box, centre_crop, crop_box, resized_crop, to_pixels
from rpbench.data.encoded import Encoded, canonical_order, decoded, fingerprint, open_encoded
from rpbench.data.order import Order
from rpbench.data.resident import Batch, normalisation, normalise
from rpbench.data.sources import Located
from rpbench.errors import DataError
from rpbench.task import Augment, Data, ImageSet

Labels = NDArray[np.int64]
STAY = 20  # seconds: less than the 30 between SLURM's SIGTERM and SIGKILL


@dataclass(frozen=True)
class StreamedImages:
    """Images on disk in canonical order (by name); `generator` adds noise to them or replaces them."""

    encoded: Encoded
    indices: NDArray[np.int64]
    fingerprint: str
    origin: str
    size: int
    channels: int
    resize: int
    workers: int = 0
    generator: ImageSet | None = None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labels(self) -> Labels:
        return self.encoded.labels[self.indices]

    def take(self, indices: NDArray[np.int64]) -> StreamedImages:
        return replace(self, indices=self.indices[indices])

    def image(self, index: int) -> Image.Image:
        return decoded(self.encoded, int(self.indices[index]), "L" if self.channels == 1 else "RGB")

    def evaluated(self, index: int) -> NDArray[np.uint8]:
        """Shorter side to `resize`, centre crop of `size`: (size, size, c) uint8."""
        array = to_pixels(centre_crop(self.image(index), self.resize, self.size), self.channels)
        return array if self.generator is None else embedded.generated(self.generator, index, array)

    def batches(self, parts: Sequence[NDArray[np.int64]], device: torch.device) -> Iterator[torch.Tensor]:
        """uint8 (b, h, w, c) on the device for each part, a list of indices."""
        for pixels in _loaded(_Evaluated(self), [part.tolist() for part in parts], self.workers):
            yield pixels.to(device, non_blocking=True)


def load(located: Located, size: int, channels: int, resize: int, workers: int) -> StreamedImages:
    """The images of a split; raises DataError for unreadable files and wrong columns."""
    encoded = open_encoded(located)
    order = canonical_order(encoded)
    print_ = fingerprint(encoded, order)
    return StreamedImages(encoded, order, print_, located.origin, size, channels, resize, workers)


def generate(image_set: ImageSet, base: StreamedImages) -> StreamedImages:
    """A generated set with as many images as `base`."""
    return replace(base, generator=image_set, fingerprint=f"{image_set.name}({base.fingerprint})", origin="generated")


class StreamedTraining:
    """Training images through decode workers; a batch is a pure function of (seed, epoch, step)."""

    def __init__(self, images: StreamedImages, data: Data, augment: Augment, seed: int, device: torch.device) -> None:
        self.images, self.data, self.augment, self.seed, self.device = images, data, augment, seed, device
        self.labels = images.labels
        self.scale, self.shift = normalisation(data, device)

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, order: Order, epoch: int, first: int) -> Iterator[Batch]:
        """This process' part of every batch of an epoch from step `first` on: normalised (b, c, h, w) and classes."""
        indices = order.permutation(epoch)
        parts = [indices[order.local(step)] for step in range(first, order.steps)]
        crops = _Cropped(self.images, self.augment, self.seed, epoch)
        loader = _loaded(crops, [part.tolist() for part in parts], self.images.workers)
        for part, pixels in zip(parts, loader, strict=True):
            x = normalise(pixels.to(self.device, non_blocking=True), self.scale, self.shift)
            yield x, torch.from_numpy(self.labels[part]).to(self.device)

    def plain(self, indices: NDArray[np.int64]) -> Batch:
        """Images without augmentation, normalised: what data-driven schemes are shown."""
        pixels = next(iter(self.images.batches([indices], self.device)))
        return normalise(pixels, self.scale, self.shift), torch.from_numpy(self.labels[indices]).to(self.device)


class _Batches(Dataset[torch.Tensor]):
    """Batches of images of one size; an unreadable image is handed over as its DataError, not raised in a worker."""

    images: StreamedImages

    def __getitems__(self, indices: list[int]) -> torch.Tensor | DataError:
        try:
            size = self.images.size
            return (
                torch.stack([self[i] for i in indices])
                if indices
                else torch.empty(0, size, size, self.images.channels, dtype=torch.uint8)
            )
        except DataError as error:
            return error


class _Evaluated(_Batches):
    def __init__(self, images: StreamedImages) -> None:
        self.images = images

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.images.evaluated(index))


class _Cropped(_Batches):
    def __init__(self, images: StreamedImages, augment: Augment, seed: int, epoch: int) -> None:
        self.images, self.augment, self.seed, self.epoch = images, augment, seed, epoch

    def __getitem__(self, index: int) -> torch.Tensor:
        draws = streams.uniform(streams.key("crop", self.seed, self.epoch, index), 23)

        def box_of(width: int, height: int) -> Box:
            return crop_box(width, height, self.augment.scale, self.augment.ratio, draws)

        images = self.images
        pixels = resized_crop(images.encoded, int(images.indices[index]), box_of, images.size, images.channels)
        return pixels.flip(1) if self.augment.flip and draws[22] < 0.5 else pixels


def default_workers(world: int) -> int:
    """Decode processes for each of `world` training processes on this machine."""
    return max(1, min(16, (os.cpu_count() or 1) // max(1, world)))


def _loaded(dataset: _Batches, parts: list[list[int]], workers: int) -> Iterator[torch.Tensor]:
    workers = min(workers, len(parts))
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=parts,
        collate_fn=_as_it_is,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=2 if workers else None,
        worker_init_fn=_stay,
    )
    for batch in loader:
        if isinstance(batch, DataError):
            raise batch
        yield batch


def _stay(_: int) -> None:
    """A request to stop may reach every process of a job: the training needs images up to the step after which it keeps
    its checkpoint, so a worker goes on for a while."""
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(STAY))


def _as_it_is(batch: Any) -> Any:
    return batch
