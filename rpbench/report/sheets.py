"""A scored board as CSV: long (a line per training) and wide (a line per row of the board)."""

from __future__ import annotations

import csv
import io
from typing import Any

from rpbench.report.plain import number
from rpbench.report.words import csv_text
from rpbench.rows import Cell, Row, Sheet


def long_csv(sheet: Sheet) -> str:
    """A line per record that was compared, the reference's first; every metric as it is in the record."""
    entries = [(sheet.plan.board.reference, c, e) for c in sheet.reference for e in c.entries]
    entries += [(row.label, c, e) for row in sheet.rows for c in row.cells for e in c.entries]
    keys = sorted({k for _, _, e in entries for k in e.metrics})
    head = ["board", "row", "scheme", "sampler", "task", "model", "density", "seed", "init_seed", "mask_seed",
            "order_seed", "precision", *keys, "last_top1", "realised", "effective", "kept", "prunable", "params",
            "dense_macs", "sparse_macs", "scheme_seconds", "batches", "seconds", "device", "level",
            "record"]  # fmt: skip
    rows = []
    for label, cell, e in entries:
        rows.append([
            sheet.plan.board.name, label, e.scheme, e.sampler, cell.context.task, cell.context.model, e.density,
            e.seed, e.init_seed, e.mask_seed, e.order_seed, e.precision, *(e.metrics.get(k) for k in keys),
            e.last.get("top1"), e.realised, e.effective, e.kept, e.prunable, e.params, e.dense_macs, e.sparse_macs,
            e.scheme_seconds, e.batches, e.seconds, e.device, e.level, e.run_id,
        ])  # fmt: skip
    return _csv(head, rows)


def wide_csv(sheet: Sheet) -> str:
    """A line per row of the board, ranked first: its score with interval, axes, costs, and every cell."""
    contexts = sheet.plan.contexts
    unit = sheet.metric.key
    head = ["board", "rank", "rank_low", "rank_high", "row", "level", "marks", "gap", "gap_low", "gap_high", "p",
            *(f"gap_{key}" for key in sheet.axes), "flops", "realised", "effective", "scheme_seconds", "batches",
            *(f"{unit} {c.title} {what}" for c in contexts for what in ("mean", "sd", "n")), "lacks"]  # fmt: skip
    return _csv(head, [_wide(sheet, row) for row in sheet.rows])


def _wide(sheet: Sheet, row: Row) -> list[Any]:
    interval = row.score.interval() if row.score else None
    low, high = interval or (None, None)
    rank = row.rank or (None, None, None)
    axes = [number(e.value) if (e := row.axes.get(key)) else None for key in sheet.axes]
    return [
        sheet.plan.board.name, *rank, row.label, row.level, "; ".join(row.marks),
        number(row.score.value) if row.score else None, number(low), number(high), number(row.p), *axes,
        number(row.mean("flops")), number(row.mean("realised")),
        number(row.mean("effective")), number(row.cost("scheme_seconds")), number(row.cost("batches")),
        *(v for cell in row.cells for v in _cell(cell)), "; ".join(row.lacks),
    ]  # fmt: skip


def _cell(cell: Cell) -> tuple[Any, ...]:
    if cell.group is None:
        return None, None, 0
    sd = None if cell.group.var is None else number(cell.group.var**0.5)
    return number(cell.group.mean), sd, cell.group.n


def _csv(head: list[str], rows: list[list[Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([csv_text(h) for h in head])
    writer.writerows([[csv_text(v) if isinstance(v, str) else v for v in row] for row in rows])
    return out.getvalue()
