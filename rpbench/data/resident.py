"""Small images: decoded once into one uint8 array, in an order of their own, kept on the disk and on the device."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from rpbench import streams
from rpbench.data import embedded
from rpbench.data.encoded import Encoded, decoded, open_encoded
from rpbench.data.order import Order
from rpbench.data.sources import Located, cache_folder
from rpbench.errors import DataError
from rpbench.task import Augment, Data, ImageSet

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]
Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class ResidentImages:
    """Decoded images: `pixels` (n, h, w, c) uint8 and `labels` (n,) in canonical order, as hashed."""

    pixels: Pixels
    labels: Labels
    fingerprint: str
    origin: str
    _there: dict[torch.device, torch.Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[np.int64]) -> ResidentImages:
        return replace(self, pixels=self.pixels[indices], labels=self.labels[indices])

    def batches(self, parts: Sequence[NDArray[np.int64]], device: torch.device) -> Iterator[torch.Tensor]:
        """uint8 (b, h, w, c) on the device for each part, a list of indices. A GPU keeps the images: a validation set
        is looked at after every epoch."""
        for part in parts:
            if device.type == "cpu":
                yield torch.from_numpy(self.pixels[part])
                continue
            if device not in self._there:
                self._there[device] = torch.from_numpy(np.array(self.pixels)).to(device)
            yield self._there[device].index_select(0, torch.from_numpy(part).to(device))


def load(located: Located, size: int, channels: int) -> ResidentImages:
    """The images of a split at `size` x `size`, from the cache of decoded images where they have been decoded before.

    Raises DataError for files that cannot be read.
    """
    if located.layout == "embedded":
        pixels, labels = canonical(*embedded.EMBEDDED[located.image_set.name]())
        start = 0
        for name, split in located.image_set.splits.items():
            if name == located.split:
                pixels, labels = pixels[start : start + split.n], labels[start : start + split.n]
            start += split.n
        return ResidentImages(pixels, labels, fingerprint(pixels, labels), located.origin)
    folder = cache_folder() / "images" / _cache_key(located, size, channels)
    if (cached := _read_cache(folder)) is not None:
        pixels, labels, print_ = cached
        return ResidentImages(pixels, labels, print_, located.origin)
    if located.layout == "pickles":
        pixels, labels = _read_pickles(located)
        pixels = _resized(pixels, size, channels)
    else:
        pixels, labels = _decode(open_encoded(located), size, channels)
    pixels, labels = canonical(pixels, labels)
    print_ = fingerprint(pixels, labels)
    _write_cache(folder, pixels, labels, print_)
    return ResidentImages(pixels, labels, print_, located.origin)


def generate(image_set: ImageSet, base: ResidentImages) -> ResidentImages:
    """A generated set with as many images as `base`, and of their shape."""
    pixels = np.stack([embedded.generated(image_set, i, image) for i, image in enumerate(base.pixels)])
    labels = np.full(len(base), -1, dtype=np.int64)
    return ResidentImages(pixels, labels, fingerprint(pixels, labels), "generated")


def canonical(pixels: Pixels, labels: Labels) -> tuple[Pixels, Labels]:
    """Images sorted by the hash of their pixels, then label: the same order from every source."""
    hashes = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in pixels]
    order = sorted(range(len(hashes)), key=lambda i: (hashes[i], labels[i]))
    return pixels[order], labels[order]


def fingerprint(pixels: Pixels, labels: Labels) -> str:
    """sha256 over shape, pixels and labels."""
    total = hashlib.sha256(json.dumps(pixels.shape).encode())
    total.update(np.ascontiguousarray(pixels).data)
    total.update(labels.astype("<i8").tobytes())
    return total.hexdigest()


class ResidentTraining:
    """Training images on the device; a batch is a pure function of (seed, epoch, step).

    Crops and flips are gathered from padded images by index arithmetic: one vectorised operation a batch.
    """

    def __init__(self, images: ResidentImages, data: Data, augment: Augment, seed: int, device: torch.device) -> None:
        self.images, self.augment, self.seed, self.device = images, augment, seed, device
        pixels = torch.from_numpy(np.array(images.pixels)).to(device)
        if augment.pad:
            nchw = pixels.permute(0, 3, 1, 2).float()
            padded = torch.nn.functional.pad(nchw, (augment.pad,) * 4, mode=augment.pad_mode)
            pixels = padded.permute(0, 2, 3, 1).to(torch.uint8).contiguous()
        self.pixels, self.labels = pixels, torch.from_numpy(images.labels).to(device)
        self.y_axis, self.x_axis = (torch.arange(length, device=device) for length in images.pixels.shape[1:3])
        self.scale, self.shift = normalisation(data, device)

    def __len__(self) -> int:
        return len(self.images)

    def draws(self, order: Order, epoch: int) -> torch.Tensor:
        """What an epoch is: (4, n) int64 on the CPU, for every place in the order the image, its crop's first row and
        column, and whether it is flipped."""
        n, shifts = len(self), 2 * self.augment.pad + 1
        indices = order.permutation(epoch)
        rows, columns = (streams.integers(streams.key(word, self.seed, epoch), n, shifts) for word in ("row", "column"))
        flips = streams.integers(streams.key("flip", self.seed, epoch), n, 2) * self.augment.flip
        return torch.from_numpy(np.stack([indices, rows[indices], columns[indices], flips[indices]]))

    def at(self, draws: torch.Tensor) -> Batch:
        """The batch of some draws (4, b) on the device: normalised (b, c, h, w) and classes."""
        images, rows, columns, flips = draws
        ys = rows[:, None] + self.y_axis
        xs = torch.where(flips[:, None] > 0, self.x_axis.flip(0), self.x_axis) + columns[:, None]
        height, width = self.pixels.shape[1:3]
        places = (images[:, None, None] * height + ys[:, :, None]) * width + xs[:, None, :]
        # one selection of whole pixels: indexing by three tensors takes three times as long on a CPU
        crops = self.pixels.flatten(0, 2).index_select(0, places.flatten()).view(*places.shape, self.pixels.shape[-1])
        return normalise(crops, self.scale, self.shift), self.labels.index_select(0, images)

    def batches(self, order: Order, epoch: int, first: int) -> Iterator[Batch]:
        """This process' part of every batch of an epoch from step `first` on: normalised (b, c, h, w) and classes."""
        draws = self.draws(order, epoch).to(self.device)
        for step in range(first, order.steps):
            yield self.at(draws[:, order.local(step)])

    def plain(self, indices: NDArray[np.int64]) -> Batch:
        """Images without augmentation, normalised: what data-driven schemes are shown."""
        pixels = torch.from_numpy(self.images.pixels[indices]).to(self.device)
        return normalise(pixels, self.scale, self.shift), torch.from_numpy(self.images.labels[indices]).to(self.device)


def normalisation(data: Data, device: torch.device) -> Batch:
    """(scale, shift) with x * scale + shift = (x / 255 - mean) / std for x in 0..255."""
    mean, std = torch.tensor(data.mean, dtype=torch.float64), torch.tensor(data.std, dtype=torch.float64)
    return (1 / (255 * std)).float().to(device), (-mean / std).float().to(device)


def normalise(pixels: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """uint8 (b, h, w, c) -> float32 (b, c, h, w), channels last in memory."""
    b, h, w, c = pixels.shape
    x = pixels.reshape(b, h, w * c).float()
    # in place, and a row at a time: over single pixels it takes several times as long on a CPU
    return torch.addcmul(shift.repeat(w), x, scale.repeat(w), out=x).view(b, h, w, c).permute(0, 3, 1, 2)


def to_array(image: Image.Image, size: int, channels: int) -> Pixels:
    """(size, size, channels) uint8; images of another size are resized (bilinear)."""
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8).reshape(size, size, channels)


def _decode(encoded: Encoded, size: int, channels: int) -> tuple[Pixels, Labels]:
    pixels = np.empty((len(encoded), size, size, channels), dtype=np.uint8)

    def one(index: int) -> None:
        pixels[index] = to_array(decoded(encoded, index, "L" if channels == 1 else "RGB"), size, channels)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(one, range(len(encoded))):
            pass
    return pixels, encoded.labels


def _resized(pixels: Pixels, size: int, channels: int) -> Pixels:
    if pixels.shape[1:] == (size, size, channels):
        return pixels
    return np.stack([to_array(Image.fromarray(image), size, channels) for image in pixels])


ARRAY_MODULES = {"numpy", *(f"numpy.{core}.{part}" for core in ("core", "_core") for part in ("multiarray", "numeric"))}


class _ArraysOnly(pickle.Unpickler):
    """Reads the pickles of CIFAR, which hold dicts of bytes, lists and arrays, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module in ARRAY_MODULES and name in ("_reconstruct", "ndarray", "dtype", "scalar")) or (
            module == "_codecs" and name == "encode"
        ):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds a {module}.{name}")


def _read_pickles(located: Located) -> tuple[Pixels, Labels]:
    """CIFAR as torchvision keeps it on disk: cifar-10-batches-py or cifar-100-python."""
    folder = located.folder
    assert folder is not None
    ten = (folder / "batches.meta").is_file()
    train = sorted(folder.glob("data_batch_*")) if ten else [folder / "train"]
    files = train if located.split == "train" else [folder / ("test_batch" if ten else "test")]
    images, labels = [], []
    for file in files:
        try:
            content = _ArraysOnly(io.BytesIO(file.read_bytes()), encoding="bytes").load()
            images.append(np.asarray(content[b"data"], dtype=np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            labels.append(np.asarray(content[b"labels" if ten else b"fine_labels"], dtype=np.int64))
            if len(images[-1]) != len(labels[-1]):
                raise ValueError(f"{len(images[-1])} images and {len(labels[-1])} labels")
        except Exception as error:  # a damaged pickle raises whatever its bytes happen to say
            raise DataError(f"'{file}' is not a CIFAR batch: {error}") from None
    if not images:
        raise DataError(f"'{folder}' has no {located.split} batches")
    return np.concatenate(images), np.concatenate(labels)


def _cache_key(located: Located, size: int, channels: int) -> str:
    files = located.files
    if not files and located.folder is not None:
        files = tuple(p for p in sorted(located.folder.rglob("*")) if p.is_file())
    stats = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    columns = located.image_set.columns.model_dump()
    told = [1, located.layout, located.split, located.image_set.labels, columns, size, channels, stats]
    return f"{located.image_set.name}-{located.split}-{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]}"


def _read_cache(folder: Path) -> tuple[Pixels, Labels, str] | None:
    try:
        told = json.loads((folder / "meta.json").read_text())
        pixels = np.load(folder / "pixels.npy", mmap_mode="r")
        return pixels, np.load(folder / "labels.npy"), str(told["fingerprint"])
    except (OSError, ValueError, KeyError, EOFError):
        return None


def _write_cache(folder: Path, pixels: Pixels, labels: Labels, print_: str) -> None:
    """The folder appears whole, by rename; a cache that cannot be written is done without."""
    with contextlib.suppress(OSError):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".decoding-"))
        try:
            np.save(temporary / "pixels.npy", pixels)
            np.save(temporary / "labels.npy", labels)
            (temporary / "meta.json").write_text(json.dumps({"fingerprint": print_}))
            shutil.rmtree(folder, ignore_errors=True)  # a damaged one
            os.replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
