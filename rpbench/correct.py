"""Which test images a net got right, as text: what a published line keeps of the outputs per example."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LARGEST = 2**20  # characters: six million images


def marks(outputs: Mapping[str, NDArray[Any]]) -> str:
    """One bit for each test image, 1 where the prediction is its label: base64 of bytes, little end first; '' for
    outputs that do not tell."""
    import numpy as np

    labels, logits = outputs.get("labels"), outputs.get("logits")
    guess = outputs.get("prediction") if logits is None else logits.argmax(axis=1)
    if labels is None or guess is None or labels.shape != guess.shape:
        return ""
    return base64.b64encode(np.packbits(labels == guess, bitorder="little").tobytes()).decode()


def marks_of(folder: Path) -> str:
    """Those of the selected epoch of a cell in a store; '' where its outputs are not there."""
    import numpy as np

    try:
        with np.load(folder / "outputs" / "selected" / "test.npz", allow_pickle=False) as file:
            return marks(dict(file))
    except (OSError, ValueError, KeyError, EOFError):
        return ""


def right(text: str, n: int) -> NDArray[np.bool_]:
    """Whether each of n images was got right, (n,). ValueError for a text that is not of n images."""
    import numpy as np

    if len(text) > LARGEST:
        raise ValueError(f"has {len(text):,} characters")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("is no base64") from None
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little").astype(bool)
    if not n <= len(bits) < n + 8 or bits[n:].any():
        raise ValueError(f"has {len(bits):,} bits for {n:,} images")
    return bits[:n]
