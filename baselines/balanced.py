from collections.abc import Mapping

from rpbench import LayerTable, shape_scheme, spread


@shape_scheme
def balanced(table: LayerTable, density: float) -> Mapping[str, float]:
    """The same number of weights in every layer; layers that fill up pass the rest on. https://arxiv.org/abs/2210.02412

    The code published with it clips without passing on and undershoots (0.5 becomes 0.266 on ResNet-18).
    """
    return spread(table, lambda layer: 1.0 / layer.numel, density)
