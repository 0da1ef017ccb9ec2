from collections.abc import Mapping

from rpbench import LayerTable, shape_scheme


@shape_scheme(density=1.0)
def dense(table: LayerTable, density: float) -> Mapping[str, float]:
    """Every weight is kept: the reference row of every board. https://arxiv.org/abs/2202.02643"""
    return dict.fromkeys(table.names, density)
