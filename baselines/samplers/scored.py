from collections.abc import Mapping
from typing import Any

import numpy as np

from rpbench import LayerTable, mask_sampler
from rpbench.budget import Counts
from rpbench.sampler import Key


@mask_sampler(scored=True)
def scored(table: LayerTable, counts: Counts, key: Key, scores: Mapping[str, Any]) -> Mapping[str, Any]:
    """The highest scores of each layer: the original SNIP and GraSP masks, not re-drawn at random.

    https://arxiv.org/abs/1810.02340
    """
    masks = {}
    for layer in table:
        values = scores[layer.name].double().numpy().ravel()
        keep = np.zeros(layer.numel, dtype=bool)
        keep[np.argsort(-values, kind="stable")[: counts[layer.name]]] = True
        masks[layer.name] = keep.reshape(layer.shape)
    return masks
