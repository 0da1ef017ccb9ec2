from collections.abc import Mapping

from rpbench import InfeasibleBudget, LayerTable, root, shape_scheme


@shape_scheme
def pyramid(table: LayerTable, density: float) -> Mapping[str, float]:
    """Layer l of the table keeps q^l of its weights: fewer the deeper. https://arxiv.org/abs/2210.02412

    Where that leaves the classifier less than one weight per output it gets that much, and q is solved again for the
    rest.
    """
    floor, last = table.last.shape[0] / table.last.numel, len(table) - 1
    q = _solve([layer.numel for layer in table], density * table.prunable)
    if q ** (last + 1) >= floor or last == 0:
        return {layer.name: q ** (l + 1) for l, layer in enumerate(table)}  # noqa: E741
    rest = density * table.prunable - floor * table.last.numel
    if rest < -1e-9 * table.prunable:
        least = table.last.shape[0] / table.prunable
        raise InfeasibleBudget(density, least, why="one weight per output of the classifier")
    q = _solve([layer.numel for layer in table[:-1]], max(0.0, rest))
    return {layer.name: floor if l == last else q ** (l + 1) for l, layer in enumerate(table)}  # noqa: E741


def _solve(numels: list[int], target: float) -> float:
    """The q in (0, 1] with sum of N_l q^l = target."""
    return root(lambda q: sum(n * q ** (l + 1) for l, n in enumerate(numels)) - target, 0.0, 1.0)  # noqa: E741
