"""A scored board as plain JSON values: what the page shows, and what `--format json` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rpbench.board import Context, board_hash
from rpbench.entries import Entry
from rpbench.rows import Block, Cell, Metric, Net, Row, Sheet, metric_of, ood_sets, value_of
from rpbench.stats import Crossing, Estimate, Pooled

SCHEMA = "rpbench.report/1"
Sets = Mapping[Net, tuple[str, ...] | None]  # the OoD sets that a net's reference was scored on
DIGITS = 6  # of every number: the same records give the same bytes on every machine


def sheet_json(sheet: Sheet) -> dict[str, Any]:
    """Everything that a report shows. Values are scaled as their metric is shown: rates in percent, gaps in points."""
    board, keys = sheet.plan.board, _keys(sheet)
    sets = {cell.context[:2]: ood_sets(cell.entries) for cell in sheet.reference}
    return {
        "schema": SCHEMA,
        "board": {
            "name": board.name, "version": board.version, "hash": board_hash(board), "summary": board.summary,
            "url": board.url, "precision": board.precision, "seeds": list(board.seeds), "margin": board.margin,
            "reference": board.reference, "pairing": board.pairing,
        },
        "tasks": {
            t.name: {"version": t.version, "spec": sheet.plan.specs[t.name], "summary": t.summary,
                     "epochs": t.recipe.epochs}
            for t in sheet.plan.tasks.values()
        },
        "metric": metric_json(sheet.metric),
        "metrics": {key: metric_json(metric_of(key)) for key in keys},
        "axes": list(sheet.axes),
        "order": sheet.order,
        "contexts": [context_json(c) for c in sheet.plan.contexts],
        "reference": [cell_json(c, keys, sets) for c in sheet.reference],
        "ranked": block_json(sheet.ranked),
        "common": block_json(sheet.common) if sheet.common else None,
        "rows": [row_json(row, keys, sets) for row in sheet.rows],
        "incomplete": [{"label": row.label, "lacks": list(row.lacks)} for row in sheet.incomplete],
        "not_run": list(sheet.not_run),
        "left_out": [{"record": fault.place, "why": fault.why} for fault in sheet.left_out],
        "notes": list(sheet.notes),
    }  # fmt: skip


def _keys(sheet: Sheet) -> list[str]:
    """Every metric that a record of the board has, the board's first."""
    cells = [*sheet.reference, *(cell for row in sheet.rows for cell in row.cells)]
    found = {k for cell in cells for e in cell.entries for k in e.metrics} - {"epoch", "val_top1"}
    if any(k.startswith("auroc/") for k in found):
        found.add("ood")
    return [sheet.metric.key, *sorted(found - {sheet.metric.key})]


def metric_json(metric: Metric) -> dict[str, Any]:
    return {"key": metric.key, "title": metric.title, "unit": metric.unit, "higher_is_better": metric.sign > 0}


def context_json(context: Context) -> dict[str, Any]:
    return {"task": context.task, "model": context.model, "density": context.density}


def block_json(block: Block) -> dict[str, Any]:
    return {
        "title": block.title,
        "contexts": [context_json(c) for c in block.contexts],
        "rows": [
            {"label": row.label, "score": estimate_json(row.score), "p": number(row.p), "marks": list(row.marks),
             "rank": list(row.rank) if row.rank else None,
             "axes": {key: estimate_json(e) for key, e in row.axes.items()}}
            for row in block.rows
        ],
        "pooled": pooled_json(block.pooled),
        "steps": [
            {"step": estimate_json(step), "separated": apart}
            for step, apart in zip(block.steps, block.apart, strict=True)
        ],
    }  # fmt: skip


def row_json(row: Row, keys: list[str], sets: Sets) -> dict[str, Any]:
    return {
        "label": row.label,
        "scheme": row.who.scheme,
        "args": row.who.args,
        "sampler": row.who.sampler,
        "sampler_args": row.who.sampler_args,
        "level": row.level,
        "marks": list(row.marks),
        "lacks": list(row.lacks),
        "flops": number(row.mean("flops")),
        "realised": number(row.mean("realised")),
        "effective": number(row.mean("effective")),
        "scheme_seconds": number(row.cost("scheme_seconds")),
        "batches": number(row.cost("batches")),
        "seconds": number(row.cost("seconds")),
        "matching": [
            {"task": task, "model": model} | crossing_json(found) for (task, model), found in row.matching.items()
        ],
        "luck": {
            stream: {"sd": number(v.var**0.5), "low": number(v.low**0.5), "high": number(v.high**0.5), "df": v.df}
            for stream, v in row.luck.items()
            if v is not None
        },
        "cells": [cell_json(cell, keys, sets) for cell in row.cells],
    }


def cell_json(cell: Cell, keys: list[str], sets: Sets) -> dict[str, Any]:
    return context_json(cell.context) | {
        "state": cell.state,
        "reason": cell.reason,
        "missing": [s.run for s in cell.missing],
        "n": len(cell.values),
        "mean": number(cell.group.mean) if cell.group else None,
        "sd": number(cell.group.var**0.5) if cell.group and cell.group.var is not None else None,
        "gap": estimate_json(cell.gap),
        "flops": number(cell.flops),
        "realised": number(cell.realised),
        "effective": number(cell.effective),
        "layers": list(cell.entries[0].layers) if cell.entries else [],
        "runs": [_run(e, keys, sets.get(cell.context[:2])) for e in cell.entries],
    }


def _run(e: Entry, keys: list[str], sets: tuple[str, ...] | None) -> dict[str, Any]:
    values = {key: number(value_of(e, metric_of(key), sets)) for key in keys}
    return {
        "seed": e.seed,
        "streams": {"init": e.init_seed, "mask": e.mask_seed, "order": e.order_seed},
        "record": e.run_id,
        "values": values,
        "epoch": e.metrics.get("epoch"),
        "last_top1": number(e.last.get("top1", 0.0) * 100),
        "params": e.params,
        "prunable": e.prunable,
        "kept": e.kept,
        "dense_macs": e.dense_macs,
        "sparse_macs": number(e.sparse_macs),
        "seconds": number(e.seconds),
        "images_per_s": number(e.train_images_per_s),
        "device": e.device,
        "warnings": list(e.warnings),
        "level": e.level,
        "command": e.command,
    }


def estimate_json(e: Estimate | None) -> dict[str, Any] | None:
    if e is None:
        return None
    interval = e.interval()
    low, high = interval if interval else (None, None)
    return {"value": number(e.value), "low": number(low), "high": number(high), "df": number(e.df)}


def pooled_json(pooled: Pooled | None) -> dict[str, Any] | None:
    if pooled is None:
        return None
    return {"sd": number(pooled.var**0.5), "df": pooled.df, "p": number(pooled.p), "homogeneous": pooled.homogeneous}


def crossing_json(found: Crossing) -> dict[str, Any]:
    return {"sparsity": number(found.value), "low": number(found.low), "high": number(found.high),
            "censored": found.censored}  # fmt: skip


def number(value: float | None) -> float | int | None:
    """A number to six significant digits; None for what is not one."""
    if value is None or value != value or value in (float("inf"), float("-inf")):
        return None
    return value if isinstance(value, int) else float(f"{value:.{DIGITS}g}")
