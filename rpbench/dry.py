"""Plans of cells: what `rpbench plan` shows, without training."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from rpbench.cell import Cell
from rpbench.data import opened
from rpbench.data.opened import Limits
from rpbench.data.sources import Roots
from rpbench.data.streamed import default_workers
from rpbench.errors import UsageError
from rpbench.layers import layer_table
from rpbench.machine import best_device
from rpbench.models import build
from rpbench.planning import Plan, plan_table
from rpbench.run import initial_net, probe_of


def plan_cell(cell: Cell, data: Iterable[str] = (), workers: int | None = None) -> tuple[Plan, list[str]]:
    """The plan of a cell, and what its images have other than their definition says. Shape schemes need neither
    weights nor images; score schemes get both, as in a run."""
    shape = (cell.task.data.channels, cell.task.data.size, cell.task.data.size)
    if cell.scheme.kind == "shape":
        return plan_table(layer_table(_shapes_of(cell), shape), cell.scheme, cell.density, None, cell.scheme_args), []
    workers = default_workers(1) if workers is None else workers
    train, _, notes = opened.open_training(cell.task, Roots.read(data), Limits(cell.limit), workers)
    net = initial_net(cell)
    table = layer_table(net, shape)
    probe = probe_of(cell, net, table, train, best_device())
    return plan_table(table, cell.scheme, cell.density, probe, cell.scheme_args), notes


def _shapes_of(cell: Cell) -> nn.Module:
    """The net on the meta device, at once however large; for real where it reads values while it is made."""
    data = cell.task.data
    try:
        with torch.device("meta"):
            return build(cell.model, data.classes, data.channels, data.size)
    except (UsageError, RuntimeError, NotImplementedError):
        return initial_net(cell)
