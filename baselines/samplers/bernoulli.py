from collections.abc import Mapping
from typing import Any

from rpbench import LayerTable, mask_sampler, streams
from rpbench.budget import Counts
from rpbench.sampler import Key


@mask_sampler(exact=False)
def bernoulli(table: LayerTable, counts: Counts, key: Key, scores: object) -> Mapping[str, Any]:
    """Every weight on its own with the layer's density, as the code released with the paper draws them.

    The realised density wanders (parity only). https://github.com/VITA-Group/Random_Pruning
    """
    return {
        layer.name: (streams.uniform(key(i), layer.numel) < counts[layer.name] / layer.numel).reshape(layer.shape)
        for i, layer in enumerate(table)
    }
