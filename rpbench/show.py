"""Values as text for a terminal of 80 columns. No torch."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from rpbench.catalog import Row
from rpbench.errors import RpbenchError
from rpbench.record import RunRecord
from rpbench.shelves import rows as list_rows
from rpbench.store import default_store, find_cell

if TYPE_CHECKING:
    from rpbench.cell import Cell
    from rpbench.planning import Plan

__all__ = [
    "cells_text", "list_rows", "list_text", "metric_rows", "plan_table_text", "record_text", "score_text", "show_text",
]  # fmt: skip


def record_text(record: RunRecord) -> str:
    """The five axes of a record as a short table."""
    density = record.density
    if not record.metrics:
        return f"{record.run_id}: {record.status}"
    rows = metric_rows(record.metrics)
    kept = f"{density.kept:,} of {density.prunable:,} weights" if density.kept is not None else "-"
    rows += _cost_rows(kept, record.density.effective, record.cost.model_dump())
    if record.cost.seconds is not None:
        rows.append(("", "time", _duration(record.cost.seconds)))
    epoch, last = record.metrics["epoch"], record.last
    head = f"{record.task.name}@{record.task.version} {record.model.name} {record.scheme.name} {density.requested:g}"
    head += f" seed {record.seeds.run}, epoch {epoch} (best on validation)"
    if last and last.get("epoch") != epoch:
        rows.insert(1, ("", f"top-1, epoch {last['epoch']} (last)", _percent(last["top1"])))
    tail = "" if record.protocol.on else "\noff protocol: no board ranks this record"
    return f"{head}\n{_table(rows)}{tail}"


def cells_text(records: list[RunRecord]) -> str:
    """One line for each of several records."""
    rows = [
        (
            record.scheme.name,
            f"{record.density.requested:g}",
            str(record.seeds.run),
            record.status,
            _percent(record.metrics["top1"]) if record.metrics else "-",
            f"{record.metrics['ece']:.4f}" if record.metrics else "-",
            _duration(record.cost.seconds) if record.cost.seconds else "-",
        )
        for record in records
    ]
    return tabulate(
        rows, headers=["scheme", "density", "seed", "status", "top-1", "ECE", "time"], disable_numparse=True,
        colalign=("left", "right", "right", "left", "right", "right", "right"),
    )  # fmt: skip


def score_text(found: dict[str, Any]) -> str:
    """The five axes of a net trained elsewhere."""
    density, cost = found["density"], found["cost"]
    kept = f"{density['kept']:,} of {density['prunable']:,} weights"
    return _table([*metric_rows(found["metrics"]), *_cost_rows(kept, density["effective"], cost)])


def plan_table_text(plan: Plan, cell: Cell) -> str:
    """The per-layer table of a plan."""
    rows = [
        (
            layer.name.removesuffix(".weight"),
            "x".join(map(str, layer.shape)),
            f"{layer.numel:,}",
            f"{layer.density:.4f}",
            f"{layer.kept:,}",
            "-" if layer.macs is None else f"{layer.macs / 1e6:,.2f}",
        )
        for layer in plan.layers
    ]
    text = tabulate(
        rows,
        headers=["layer", "shape", "weights", "density", "kept", "M MACs"],
        disable_numparse=True,
        colalign=("left", "left", "right", "right", "right", "right"),
    )
    macs = ""
    if plan.dense_macs and plan.sparse_macs is not None:
        macs = (
            f"\nMACs {plan.sparse_macs / 1e6:,.2f} M of {plan.dense_macs / 1e6:,.2f} M "
            f"({plan.sparse_macs / plan.dense_macs:.3f}); FLOPs = 2 MACs"
        )
    return (
        f"{cell.model.name} on {cell.task.name}, {plan.scheme} at density {plan.requested:g}\n{text}\n"
        f"kept {plan.kept:,} of {plan.prunable:,} weights (allocated {plan.allocated:.6g} before rounding){macs}"
    )


def list_text(rows: list[Row]) -> str:
    """Rows as a table: the name, and what fits beside it."""
    if not rows:
        return "nothing here yet"
    if "summary" in rows[0]:
        width = max(len(str(row["name"])) for row in rows)
        lines = []
        for row in rows:
            text = str(row["summary"])
            if options := row.get("options"):
                shown = ", ".join(f"{k}={_option(v)}" for k, v in options.items())
                text += f" [{shown}]"
            if package := row.get("package"):
                text += f" (from {package})"
            first, *rest = textwrap.wrap(text, max(30, 78 - width)) or [""]
            lines.append(f"{row['name']:<{width}}  {first}")
            lines += [f"{'':<{width}}  {line}" for line in rest]
        return "\n".join(lines)
    cells = [[_cell(key, value) for key, value in row.items()] for row in rows]
    return tabulate(
        cells, headers=list(rows[0]), disable_numparse=True, maxcolwidths=[None] * (len(rows[0]) - 1) + [48]
    )


def show_text(name: str, store: Path | None, form: str) -> str:
    """A cell, else a task, scheme, image set, ... of that name."""
    for what in ("tasks", "boards", "schemes", "samplers", "sets", "attacks", "models"):
        for row in list_rows(what) if form != "curve" else []:
            if row["name"] == name:
                return json.dumps(row, indent=1) if form == "json" else _facts(what, row)
    folder = find_cell(store or default_store(), name)
    if form == "curve":
        try:
            return (folder.folder / "curve.jsonl").read_text().rstrip()
        except OSError as error:
            raise RpbenchError(f"no curve in '{folder.folder}': {error.strerror}") from None
    record = folder.record()
    assert record is not None
    if form == "json":
        return json.dumps(record.as_json(), indent=1)
    return f"{record_text(record)}\nagain: {record.command}"


def _facts(what: str, row: Row) -> str:
    rows = [(key, value if isinstance(value, str) else json.dumps(value)) for key, value in row.items()]
    return f"{what}: {row['name']}\n" + tabulate(rows, tablefmt="plain", disable_numparse=True, maxcolwidths=[None, 64])


def metric_rows(metrics: dict[str, int | float]) -> list[tuple[str, str, str]]:
    """(axis, metric, value) of a record's metrics, an axis named once."""
    rows = [("accuracy", "top-1", _percent(metrics["top1"]))]
    if "top5" in metrics:
        rows.append(("", "top-5", _percent(metrics["top5"])))
    rows += [
        ("calibration", "ECE", f"{metrics['ece']:.4f}"),
        ("", "NLL", f"{metrics['nll']:.4f}"),
        ("", "Brier", f"{metrics['brier']:.4f}"),
    ]
    label = "out of distribution"
    for key, value in metrics.items():
        if key.startswith("auroc/"):
            name = key.removeprefix("auroc/")
            rows.append((label, f"ROC-AUC {name}", f"{value:.4f} (energy {metrics[f'auroc_energy/{name}']:.4f})"))
            label = ""
    label = "robustness"
    for key, value in metrics.items():
        if key.startswith("robust/"):
            rows.append((label, f"top-1 under {key.removeprefix('robust/')}", _percent(value)))
            label = ""
    return rows


def _cost_rows(kept: str, effective: float | None, cost: dict[str, Any]) -> list[tuple[str, str, str]]:
    rows = [("cost", "kept", kept)]
    if effective is not None:
        rows.append(("", "effective density", f"{effective:.4f}"))
    if cost.get("dense_macs"):
        dense, sparse = cost["dense_macs"], cost["sparse_macs"]
        rows.append(("", "MACs (theoretical)", f"{sparse / 1e6:,.2f} M of {dense / 1e6:,.2f} M"))
    for key, word in (("train_images_per_s", "training"), ("eval_images_per_s", "evaluation")):
        if cost.get(key):
            rows.append(("", f"{word}, measured", f"{cost[key]:,.0f} images/s"))
    return rows


def _table(rows: list[tuple[str, str, str]]) -> str:
    return tabulate(rows, headers=["axis", "metric", "value"], disable_numparse=True)


def _percent(value: float) -> str:
    return f"{value:.2%}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _option(value: Any) -> str:
    return "..." if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key == "fingerprint":
        return str(value)[:12]
    return f"{value:,}" if isinstance(value, int) else str(value)
