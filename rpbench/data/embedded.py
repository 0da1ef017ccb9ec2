"""Image sets that need no file: shipped inside scikit-learn, or drawn from counter-based streams."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rpbench import streams
from rpbench.errors import DataError
from rpbench.task import ImageSet

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]


def digits() -> tuple[Pixels, Labels]:
    """The 1,797 digits of scikit-learn as (n, 8, 8, 1) uint8 (0..16 scaled to 0..255) and their classes."""
    table = np.loadtxt(_shipped("data/digits.csv.gz"), delimiter=",")  # 64 pixels and the class
    return np.rint(table[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1), table[:, 64].astype(np.int64)


def photos() -> tuple[Pixels, Labels]:
    """8x8 grey patches of scikit-learn's two photographs, (n, 8, 8, 1) uint8, all that fit without overlap."""
    patches = []
    for name in ("china.jpg", "flower.jpg"):
        with Image.open(_shipped(f"images/{name}")) as photo:
            pixels = np.asarray(photo)  # (427, 640, 3) uint8
        grey = pixels.astype(np.uint32).sum(axis=2) // 3
        h, w = grey.shape[0] // 8 * 8, grey.shape[1] // 8 * 8
        tiles = grey[:h, :w].reshape(h // 8, 8, w // 8, 8).swapaxes(1, 2).reshape(-1, 8, 8)
        patches.append(tiles.astype(np.uint8))
    everything = np.concatenate(patches)[..., None]
    return everything, np.zeros(len(everything), dtype=np.int64)


def _shipped(name: str) -> Path:
    """A file of scikit-learn's datasets. Importing scikit-learn to read it takes longer than training an epoch."""
    spec = importlib.util.find_spec("sklearn")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder, "datasets", name)
        if path.is_file():
            return path
    raise DataError(f"the installation is incomplete: scikit-learn's {name} is missing")


EMBEDDED: dict[str, Callable[[], tuple[Pixels, Labels]]] = {"digits": digits, "photos": photos}


def generated(image_set: ImageSet, index: int, base: Pixels) -> Pixels:
    """Image `index` of a generated set, of `base`'s shape (h, w, c), rounded to 8 bits like every other image.

    With `base = "test"` the noise is added to `base` (the task's test image), else to the set's mean.
    """
    noise = streams.normal(streams.key("images", image_set.name, index), base.size).reshape(base.shape)
    middle = base / 255.0 if image_set.base == "test" else image_set.mean
    return np.rint(np.clip(middle + image_set.sigma * noise, 0.0, 1.0) * 255.0).astype(np.uint8)
