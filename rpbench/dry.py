"""Plans of cells: what `rpbench plan` shows, without training."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from rpbench.cell import Cell
from rpbench.data import opened
from rpbench.data.opened import Limits
from rpbench.data.sources import Roots
from rpbench.data.streamed import default_workers
from rpbench.layers import layer_table
from rpbench.models import build
from rpbench.planning import Plan, plan_table
from rpbench.run import initial_net, probe_batches
from rpbench.scheme import Probe


def plan_cell(cell: Cell, data: Iterable[str] = (), workers: int | None = None) -> Plan:
    """The plan of a cell. Shape schemes need neither weights nor images; score schemes get both, as in a run."""
    shape = (cell.task.data.channels, cell.task.data.size, cell.task.data.size)
    if cell.scheme.kind == "shape":
        with torch.device("meta"):
            net = build(cell.model, cell.task.data.classes, *shape[:2])
        return plan_table(layer_table(net, shape), cell.scheme, cell.density, None, cell.scheme_args)
    net = initial_net(cell)
    table = layer_table(net, shape)
    found, skipped = opened.find_all(cell.task, Roots.read(data), training=True, skip_missing=True)
    own = {key: located for key, located in found.items() if key in ("train", "test")}
    images = opened.open_all(cell.task, own, skipped, Limits(), default_workers(1) if workers is None else workers)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    probe = Probe(
        net, table, cell.density, probe_batches(images.train, cell, device), seed=cell.seeds.init,
        chunk=cell.micro_batch, classes=cell.task.data.classes, device=device,
    )  # fmt: skip
    return plan_table(table, cell.scheme, cell.density, probe, cell.scheme_args)
