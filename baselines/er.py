from collections.abc import Mapping

from rpbench import LayerTable, shape_scheme, spread


@shape_scheme
def er(table: LayerTable, density: float) -> Mapping[str, float]:
    """Erdos-Renyi: densities proportional to (in + out) / (in * out), kernels ignored. https://arxiv.org/abs/1707.04780"""
    return spread(table, lambda layer: sum(layer.shape[:2]) / (layer.shape[0] * layer.shape[1]), density)
