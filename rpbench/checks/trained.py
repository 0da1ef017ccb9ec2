"""The check of the training itself, as far as its curve tells: as many epochs as the recipe has, its learning rates,
and the epoch that validation images select."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from rpbench.checks.known import Known
from rpbench.checks.told import Skipped, Told
from rpbench.data.order import Order
from rpbench.step import rate
from rpbench.task import Task
from rpbench.untrusted import shown, strict_json

KEYS = {"epoch", "lr", "train_loss", "train_top1", "val_loss", "val_top1"}


def curve(told: Told, known: Known) -> Iterator[str]:
    """One line per epoch of the recipe, in order, at its learning rate; the selected epoch is the first strict maximum
    of validation accuracy, and both ends of the record are those of the curve."""
    record, task = told.record, known.task(told.record)
    selected, last, epochs = record.metrics, record.last, task.recipe.epochs
    if last.get("epoch") != epochs:
        yield f"last.epoch is {last.get('epoch')}: the recipe has {epochs} epochs"
    if not 1 <= selected.get("epoch", 0) <= epochs:
        yield f"metrics.epoch is {selected.get('epoch')}: the recipe has {epochs} epochs"
    if selected.get("val_top1", 0) < last.get("val_top1", 0):
        yield f"metrics.val_top1 is {selected['val_top1']:g}, below the last epoch's {last['val_top1']:g}"
    for name, part in (("metrics", selected), ("last", last)):
        if not whole(part.get("val_top1", math.nan), task.data.validation):
            yield f"{name}.val_top1 is {part.get('val_top1')}: no whole number of {task.data.validation} images"
    if told.evidence.curve is None:
        if told.whole:
            yield "curve.jsonl is missing"
            return
        raise Skipped("published lines have no curve")
    rows = [strict_json(line, "curve.jsonl") for line in told.evidence.curve.splitlines()]
    faults = list(_row_faults(rows, task, known.sets(task).own.splits[task.data.train].n))
    yield from faults
    if faults:
        return
    best = max(range(len(rows)), key=lambda i: (rows[i]["val_top1"], -i))
    for name, part, row in (("metrics", selected, rows[best]), ("last", last, rows[-1])):
        for key in ("epoch", "val_top1"):
            if part.get(key) != row[key]:
                word = "first highest on validation images" if name == "metrics" else "last"
                yield f"{name}.{key} is {part.get(key)}: the {word} epoch of the curve has {row[key]}"


def _row_faults(rows: list[Any], task: Task, n: int) -> Iterator[str]:
    recipe, images = task.recipe, n - task.data.validation
    steps = Order(0, images, recipe.batch).steps
    if len(rows) != recipe.epochs:
        yield f"the curve has {len(rows)} epochs: the recipe has {recipe.epochs}"
        return
    for i, row in enumerate(rows):
        if not isinstance(row, dict) or set(row) != KEYS or any(_no_number(value) for value in row.values()):
            yield f"line {i + 1} of the curve is {shown(row)}: it must have the numbers {', '.join(sorted(KEYS))}"
            return
        right = rate(recipe, i, steps - 1, steps)
        if row["epoch"] != i + 1:
            yield f"line {i + 1} of the curve is of epoch {row['epoch']}"
        elif not math.isclose(row["lr"], right, rel_tol=1e-9):
            yield f"epoch {i + 1} ended at learning rate {row['lr']:g}: the recipe's is {right:g}"
        elif not whole(row["val_top1"], task.data.validation) or not whole(row["train_top1"], images):
            yield f"epoch {i + 1}: accuracies that are no whole number of images"


def _no_number(value: Any) -> bool:
    return isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value)


def whole(fraction: float, n: int) -> bool:
    """Whether a fraction is a whole number out of n."""
    return math.isfinite(fraction) and 0 <= fraction <= 1 and abs(fraction * n - round(fraction * n)) < 1e-6
