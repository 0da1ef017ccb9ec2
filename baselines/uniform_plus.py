from collections.abc import Mapping

from rpbench import LayerTable, shape_scheme, spread


@shape_scheme
def uniform_plus(table: LayerTable, density: float) -> Mapping[str, float]:
    """First layer dense, one density for all others, the classifier never below 0.2. https://arxiv.org/abs/1902.09574

    Where the common density falls below 0.2 the classifier gets 0.2 and the others share what is left, so that the
    budget is met (the code released with Liu et al. misses it here: 0.0933 for 0.1 on ResNet-50).
    """
    first, last = table.first.name, table.last.name
    if first != last and density < 1.0:
        classifier = (density * table.prunable - table.first.numel) / (table.prunable - table.first.numel)
        if classifier < 0.2:
            return spread(table, lambda layer: 1.0, density, fixed={first: 1.0, last: 0.2})
    return spread(table, lambda layer: 1.0, density, fixed={first: 1.0})
