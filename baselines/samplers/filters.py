from collections.abc import Mapping
from typing import Any

import numpy as np

from rpbench import Layer, LayerTable, mask_sampler, streams
from rpbench.budget import Counts
from rpbench.sampler import Key, smallest


@mask_sampler
def filters(table: LayerTable, counts: Counts, key: Key, scores: object) -> Mapping[str, Any]:
    """Whole filters at random: all weights of an output channel (a row of a linear layer), or none of them.

    What a count has over whole filters goes to random weights of one more. The table's last layer is drawn weight by
    weight, as `exact` draws it: its rows are classes, and one without weights sees no image. Masks of one seed
    are nested over densities. The paper prunes "weights or filters" at random. https://arxiv.org/abs/2202.02643
    """
    masks = {}
    for i, layer in enumerate(table):
        if layer is table.last:
            kept = smallest(streams.raw(key(i), layer.numel), counts[layer.name])
        else:
            kept = _whole(layer, counts[layer.name], key(i))
        masks[layer.name] = kept.reshape(layer.shape)
    return masks


def _whole(layer: Layer, count: int, stream: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(out, weights of a filter): the first rows of a random order, and `rest` weights of the next one."""
    out, size = layer.shape[0], layer.numel // layer.shape[0]
    draws = streams.raw(stream, out + size)
    order = np.argsort(draws[:out], kind="stable")
    whole, rest = divmod(count, size)
    kept = np.zeros((out, size), dtype=bool)
    kept[order[:whole]] = True
    if rest:
        kept[order[whole]] = smallest(draws[out:], rest)
    return kept
