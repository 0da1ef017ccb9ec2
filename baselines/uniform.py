from collections.abc import Mapping

from rpbench import LayerTable, shape_scheme


@shape_scheme
def uniform(table: LayerTable, density: float) -> Mapping[str, float]:
    """The same density in every layer, the first one and the classifier included. https://arxiv.org/abs/2202.02643

    RigL's and Gale et al.'s "uniform" keep the first convolution dense: that is `uniform_plus`' half.
    """
    return dict.fromkeys(table.names, density)
