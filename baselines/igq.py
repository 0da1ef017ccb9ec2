from collections.abc import Mapping

from rpbench import LayerTable, root, shape_scheme


@shape_scheme
def igq(table: LayerTable, density: float) -> Mapping[str, float]:
    """Ideal gas quotas: p = 1 / (1 + F * weights), one F for all layers; it never saturates. https://arxiv.org/abs/2107.02306"""
    n = [layer.numel for layer in table]
    if density == 1.0:
        return dict.fromkeys(table.names, 1.0)

    def surplus(log_f: float) -> float:
        return float(density * table.prunable - sum(m / (1.0 + m * 2.0**log_f) for m in n))

    f = 2.0 ** root(surplus, -200.0, 200.0)
    return {layer.name: 1.0 / (1.0 + f * layer.numel) for layer in table}
