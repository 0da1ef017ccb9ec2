from collections.abc import Mapping

from rpbench import LayerTable, shape_scheme, spread


@shape_scheme
def erk_plus(table: LayerTable, density: float, *, classifier: float = 1.0) -> Mapping[str, float]:
    """ERK with the classifier's density set beforehand (dense), same total. https://arxiv.org/abs/2202.02643

    `classifier` is the last layer's density, for the sweep of the paper's Figure 14.
    """
    return spread(table, lambda layer: sum(layer.shape) / layer.numel, density, fixed={table.last.name: classifier})
