"""How the layers of a net are joined, as plain values: what a sampler looks at that connects them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Feed:
    """Output channels of one layer that arrive at input channels of another: `outputs[i]` at `inputs[i]`.

    `source` and `target` are positions in the layer table; None are the images and the net's outputs. What stands
    between the two passes channels on without mixing them: norms, activations, pooling, sums, concatenations, padding
    and slices, flattening (one output channel then arrives at many inputs).
    """

    source: int | None
    target: int | None
    outputs: Integers
    inputs: Integers


@dataclass(frozen=True)
class Wiring:
    """The layers of a net in the order in which it calls them, and every feed between them.

    Several feeds of one input channel are a sum (a residual stream): it carries what any of them carries.
    `on_path(masks)` tells, for every weight of every layer, whether it would lie on a path from the images to the
    outputs if it were kept, all others being kept as `masks` say: {layer name: bool array of the weight's shape},
    true to the pixel.
    """

    order: tuple[int, ...]
    feeds: tuple[Feed, ...]
    on_path: Callable[[Mapping[str, Any]], dict[str, Bools]] = field(repr=False, compare=False)

    def into(self, layer: int | None) -> tuple[Feed, ...]:
        """What arrives at a layer (None: at the net's outputs)."""
        return tuple(feed for feed in self.feeds if feed.target == layer)
