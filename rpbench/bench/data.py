"""How fast images become batches on one core: the usual way of torchvision, and ours.

Both begin at the encoded images, or at uint8 pixels, and end at normalised float32 batches (b, 3, size, size) of varied
training images. `gate` first: speed counts only where the pixels are right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from rpbench import streams
from rpbench.data.crop import crop_box, resized_crop
from rpbench.data.order import Order
from rpbench.data.resident import ResidentImages, ResidentTraining
from rpbench.data.streamed import StreamedImages, StreamedTraining
from rpbench.task import Augment, Data, load_task

# A piece of work, below a second: what comes back is how many images it did.
Chunk = Callable[[], int]
SHORTER = {"256": 256, "full": 375}
SCALE, RATIO = (0.08, 1.0), (0.75, 4 / 3)
CPU = torch.device("cpu")
# How far the mean pixel of our crops may be from Pillow's, of 255: both round, in different places. An image that is
# decoded at half its size or less is smoothed otherwise.
TOLERANCE, TOLERANCE_SMALLER = 0.25, 1.0


def modes(kind: str, images: list[bytes] | None = None) -> dict[str, Callable[[], Chunk]]:
    """RandomResizedCrop 224 and a flip from JPEGs of a kind: "256" or "full" is their shorter side, 256 or 375."""
    jpegs = images if images is not None else made(kind)
    data, augment = load_task("imagenet").data, Augment(flip=True, scale=SCALE, ratio=RATIO)
    return {
        "usual": lambda: _usual(jpegs, data),
        "rpbench": lambda: _ours(StreamedTraining(_held(jpegs), data, augment, 0, CPU)),
    }


def modes_small() -> dict[str, Callable[[], Chunk]]:
    """A 32-pixel crop of images padded by 4, and a flip, from 1,024 images of random pixels."""
    raw = streams.raw(streams.key("bench", "small"), 1024 * 384)
    pixels = raw.view(np.uint8).reshape(1024, 32, 32, 3)
    data, augment = load_task("cifar10").data, Augment(pad=4, flip=True)
    images = ResidentImages(pixels, np.zeros(len(pixels), dtype=np.int64), "", "")
    return {
        "usual": lambda: _usual_small(pixels, data),
        # several epochs, or a chunk would be too short to time
        "rpbench": lambda: _ours(ResidentTraining(images, data, augment, 0, CPU), batch=128, epochs=8),
    }


def gate(images: list[bytes] | None = None) -> list[str]:
    """What is wrong with our crops, in sentences: each is compared with torchvision's of the same box."""
    encoded = Held(images if images is not None else [*made("256")[:16], *made("full")[:16], *_photos(1500, 4)])
    return [sentence for i in range(len(encoded)) if (sentence := _difference(encoded, i))]


def made(kind: str) -> list[bytes]:
    """48 different JPEGs from the two photos inside scikit-learn; ValueError for a kind that is none of SHORTER."""
    if kind not in SHORTER:
        raise ValueError(f"no kind of image '{kind}': there is {', '.join(SHORTER)}")
    return _photos(SHORTER[kind], 48)


class Held:
    """Encoded images in memory, all of one class."""

    def __init__(self, images: list[bytes]) -> None:
        self.images = images
        self.keys: Sequence[str] = [f"{i:09d}" for i in range(len(images))]
        self.labels = np.zeros(len(images), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> bytes:
        return self.images[index]

    def open(self, index: int) -> Image.Image:
        return Image.open(BytesIO(self.images[index]))

    def place(self, index: int) -> str:
        return f"image {index}"


def _difference(encoded: Held, index: int) -> str | None:
    """A sentence where our crop of an image differs from torchvision's by more than the tolerance."""
    from torchvision.transforms.functional import resized_crop as theirs

    image = Image.open(BytesIO(encoded.images[index])).convert("RGB")
    draws = streams.uniform(streams.key("bench", "box", index), 22)
    left, top, w, h = box = crop_box(*image.size, SCALE, RATIO, draws)
    wanted = np.asarray(theirs(image, top, left, h, w, [224, 224]), dtype=np.float64)
    away = float(np.abs(resized_crop(encoded, index, lambda *_: box, 224, 3).numpy() - wanted).mean())
    allowed = TOLERANCE if min(w, h) < 4 * 224 else TOLERANCE_SMALLER
    if away <= allowed:
        return None
    return f"the crop {box} of image {index} is {away:.2f} of 255 away from torchvision's: at most {allowed} is right"


def _held(jpegs: list[bytes]) -> StreamedImages:
    return StreamedImages(Held(jpegs), np.arange(len(jpegs)), "", "", size=224, channels=3, resize=256, workers=0)


def _usual(jpegs: list[bytes], data: Data) -> Chunk:
    from torch.utils.data import default_collate
    from torchvision import transforms

    vary = transforms.Compose(
        [
            transforms.RandomResizedCrop(224, SCALE, RATIO),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(data.mean, data.std),
        ]
    )

    def chunk() -> int:
        return len(default_collate([vary(Image.open(BytesIO(content)).convert("RGB")) for content in jpegs]))

    return chunk


def _usual_small(pixels: NDArray[np.uint8], data: Data) -> Chunk:
    from torch.utils.data import default_collate
    from torchvision import transforms

    vary = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4, padding_mode="reflect"),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(data.mean, data.std),
        ]
    )
    images = [Image.fromarray(image) for image in pixels]

    def chunk() -> int:
        for first in range(0, len(images), 128):
            default_collate([vary(image) for image in images[first : first + 128]])
        return len(images)

    return chunk


def _ours(training: StreamedTraining | ResidentTraining, batch: int | None = None, epochs: int = 1) -> Chunk:
    """Whole epochs, in batches as training gets them."""
    number, order = count(), Order(0, len(training), batch or len(training))

    def chunk() -> int:
        return sum(len(x) for _ in range(epochs) for x, _ in training.batches(order, next(number), 0))

    return chunk


def _photos(shorter: int, n: int) -> list[bytes]:
    """JPEGs (4 : 3 or 3 : 4, quality 90) of different parts of the two photos."""
    from sklearn.datasets import load_sample_images

    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    longer, found = round(shorter * 4 / 3), []
    for i, (x, y) in enumerate(streams.uniform(streams.key("bench", "photos"), 2 * n).reshape(n, 2)):
        photo = photos[i % 2]
        w, h = (480, 360) if i % 4 < 2 else (300, 400)
        left, top = int(x * (photo.width - w)), int(y * (photo.height - h))
        size = (longer, shorter) if w > h else (shorter, longer)
        part = photo.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))
        buffer = BytesIO()
        part.save(buffer, "JPEG", quality=90)
        found.append(buffer.getvalue())
    return found
