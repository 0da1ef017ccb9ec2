from collections.abc import Mapping

from rpbench import LayerTable, shape_scheme, spread


@shape_scheme
def erk(table: LayerTable, density: float) -> Mapping[str, float]:
    """Erdos-Renyi-Kernel: densities proportional to (in + out + kh + kw) / weights. https://arxiv.org/abs/1911.11134"""
    return spread(table, lambda layer: sum(layer.shape) / layer.numel, density)
