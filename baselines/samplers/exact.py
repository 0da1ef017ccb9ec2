from collections.abc import Mapping
from typing import Any

from rpbench import LayerTable, mask_sampler, streams
from rpbench.budget import Counts
from rpbench.sampler import Key, smallest


@mask_sampler
def exact(table: LayerTable, counts: Counts, key: Key, scores: object) -> Mapping[str, Any]:
    """Exactly the layer's count at uniformly random positions; masks of one seed are nested over densities.

    Every weight gets one raw 64-bit draw and the smallest are kept. https://arxiv.org/abs/2009.11094
    """
    return {
        layer.name: smallest(streams.raw(key(i), layer.numel), counts[layer.name]).reshape(layer.shape)
        for i, layer in enumerate(table)
    }
