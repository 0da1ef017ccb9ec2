from collections.abc import Mapping
from typing import Literal

from rpbench import InfeasibleBudget, LayerTable, root, shape_scheme

LINEAR = 0.3


@shape_scheme
def smart(
    table: LayerTable, density: float, *, family: Literal["auto", "residual", "plain"] = "auto"
) -> Mapping[str, float]:
    """Smart ratios: (L-l+1)^2 + (L-l+1) for layer l of L, over l^2 in plain chains. https://arxiv.org/abs/2009.11094

    Scaled to the budget; what overflows a full convolution is poured into the next one; every linear layer keeps 0.3.
    `family=auto` means residual where the net has 1x1 convolutions.
    """
    convolutions = [layer for layer in table if layer.kind == "conv"]
    pointwise = any(set(layer.shape[2:]) == {1} for layer in convolutions)
    plain = family == "plain" or (family == "auto" and not pointwise)
    raw = {}
    for l, layer in enumerate(table, start=1):  # noqa: E741
        k = len(table) - l + 1
        raw[layer.name] = (k * k + k) / (l * l if plain else 1)

    linear = sum(LINEAR * layer.numel for layer in table if layer.kind == "linear")
    mass = sum(raw[layer.name] * layer.numel for layer in convolutions)

    def pour(weights: float) -> tuple[dict[str, float], float]:
        """Densities of the convolutions that share `weights`, and what is left over after the last one."""
        densities, carried = {}, 0.0
        for layer in convolutions:
            share = weights * raw[layer.name] * layer.numel / mass + carried
            densities[layer.name] = min(1.0, share / layer.numel)
            carried = max(0.0, share - layer.numel)
        return densities, carried

    total = table.prunable
    room = sum(layer.numel for layer in convolutions)
    most = linear
    if convolutions:
        most += root(lambda w: pour(w)[1] - 1e-10 * room, 0.0, float(room))
    if not linear - 1e-9 * total <= density * total <= most + 1e-9 * total:
        raise InfeasibleBudget(density, linear / total, most / total, why=f"every linear layer keeps {LINEAR}")
    densities, _ = pour(max(0.0, density * total - linear))
    return {layer.name: densities.get(layer.name, LINEAR) for layer in table}
