"""Plans of cells: what `rpbench plan` shows, without training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.nn import init
from torch.overrides import TorchFunctionMode

from rpbench.cell import Cell
from rpbench.data import opened
from rpbench.data.opened import Limits
from rpbench.data.sources import Roots
from rpbench.data.streamed import default_workers
from rpbench.isolated import Limits as SchemeLimits
from rpbench.isolated import limited
from rpbench.layers import layer_table
from rpbench.machine import best_device
from rpbench.planning import Plan, plan_table
from rpbench.run import initial_net, probe_of


def plan_cell(
    cell: Cell, data: Iterable[str] = (), workers: int | None = None, limits: SchemeLimits | None = None
) -> tuple[Plan, list[str]]:
    """The plan of a cell, and what its images have other than their definition says. Shape schemes need neither
    weights nor images; score schemes get both, as in a run. `limits` are of a scheme that is not rpbench's own."""
    scheme = limited(cell.scheme, limits or SchemeLimits())
    shape = (cell.task.data.channels, cell.task.data.size, cell.task.data.size)
    if cell.scheme.kind == "shape":
        with _Undrawn():
            net = initial_net(cell)
        return plan_table(layer_table(net, shape), scheme, cell.density, None, cell.scheme_args), []
    workers = default_workers(1) if workers is None else workers
    train, _, notes = opened.open_training(cell.task, Roots.read(data), Limits(cell.limit), workers)
    net = initial_net(cell)
    table = layer_table(net, shape)
    probe = probe_of(cell, net, table, train, best_device())
    return plan_table(table, scheme, cell.density, probe, cell.scheme_args), notes


_DRAWS: Any = {
    torch.Tensor.normal_, torch.Tensor.uniform_,
    init.normal_, init.uniform_, init.kaiming_normal_, init.kaiming_uniform_,
}  # fmt: skip


class _Undrawn(TorchFunctionMode):
    """Initial weights are not drawn: shapes are all that is asked for."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in _DRAWS:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)
