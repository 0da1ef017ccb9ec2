"""A hash of crops of all sizes: what every processor must agree on. Imports little, for processes of its own."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from rpbench import streams
from rpbench.bench.data import Held
from rpbench.data.crop import crop_box, resized_crop


def random_box(key: int) -> Any:
    """A function from (width, height) to a box of RandomResizedCrop."""
    draws = streams.uniform(streams.key("test box", key), 22)
    return lambda width, height: crop_box(width, height, (0.08, 1.0), (0.75, 4 / 3), draws)


def digest(folder: str) -> str:
    total, encoded = hashlib.sha256(), Held([path.read_bytes() for path in sorted(Path(folder).glob("*.jpg"))])
    for i in range(len(encoded)):
        total.update(resized_crop(encoded, i, random_box(i), 224, 3).contiguous().numpy().tobytes())
    return total.hexdigest()
