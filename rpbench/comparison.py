"""Two rows of a board against each other, in words."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from rpbench.board import Context
from rpbench.entries import Entry
from rpbench.errors import UnknownName, UsageError
from rpbench.ranking import difference, to_reference
from rpbench.report.words import counted
from rpbench.rows import Row, Sheet, metric_of
from rpbench.stats import Estimate, McNemar, Pooled, example_se, mcnemar, seeds_needed


@dataclass(frozen=True)
class Comparison:
    """Row a less row b, by a metric as it is shown: higher is better in `better`, whatever the metric."""

    board: str
    metric: str
    a: str
    b: str
    difference: Estimate | None
    contexts: tuple[Context, ...]
    contexts_of_board: int
    pooled: Pooled | None
    seeds: int
    examples: float | None  # standard error that the draw of test images adds, in the metric's unit
    pairs: int = 0  # of the rows that the board ranks, where both are among them
    tied: bool | None = None  # whether the board's places show the two as not separated; None where they do not tell
    images: McNemar | None = None  # of two single runs: images that only the first has right, only the second, p

    @property
    def better(self) -> float | None:
        return None if self.difference is None else metric_of(self.metric).sign * self.difference.value

    @property
    def separated(self) -> bool:
        """Whether the 95 % interval leaves 0 out."""
        interval = self.difference.interval() if self.difference else None
        return interval is not None and not interval[0] <= 0 <= interval[1]

    @property
    def needed(self) -> int | None:
        """Seeds per row with which a difference as large as this one is found four times in five."""
        if self.difference is None or self.pooled is None or not self.contexts or self.difference.value == 0:
            return None
        return seeds_needed(self.difference.value, math.sqrt(self.pooled.var), len(self.contexts))


def compare(sheet: Sheet, a: str, b: str, store: Path | None = None) -> Comparison:
    """The difference of two rows over the cells that both have, their seed noise pooled over the two alone.

    UsageError for a row against itself, UnknownName for one that the board has no record of.
    """
    if a == b:
        raise UsageError(f"'{a}' against itself: name two rows")
    if sheet.plan.board.reference in (a, b):
        return _to_reference(sheet, a, b)
    first, second = _row(sheet, a), _row(sheet, b)
    found, contexts, pooled = difference(sheet, first, second)
    seeds = min((len(c.values) for r in (first, second) for c in r.cells if c.context in contexts), default=0)
    noise, images = None, None
    if store and sheet.metric.key == "top1":
        noise = _examples(sheet, first, second, contexts, store)
        images = _images(first, second, contexts, store)
    board, cells = sheet.plan.board.name, len(sheet.plan.contexts)
    pairs, tied = _among(sheet, first, second)
    return Comparison(board, sheet.metric.key, a, b, found, contexts, cells, pooled, seeds, noise, pairs, tied, images)


def _to_reference(sheet: Sheet, a: str, b: str) -> Comparison:
    """A row against the reference: the row's own gap."""
    board = sheet.plan.board
    turned = a == board.reference
    row = _row(sheet, b if turned else a)
    found, contexts, pooled = to_reference(sheet, row)
    if found is not None and turned:
        found = Estimate(-found.value, found.se, found.df)
    seeds = min((len(c.values) for c in row.cells if c.context in contexts), default=0)
    return Comparison(
        board.name, sheet.metric.key, a, b, found, contexts, len(sheet.plan.contexts), pooled, seeds, None, 0, None
    )


def _among(sheet: Sheet, a: Row, b: Row) -> tuple[int, bool | None]:
    """How many pairs the board ranks at once, and whether their places show these two as not separated: no row is
    above the lower one, or none below the upper one."""
    ranked = {row.label: row.rank for row in sheet.ranked.rows}
    places = [place for row in (a, b) if (place := ranked.get(row.label)) is not None]
    if len(places) < 2:
        return 0, None
    n = len(ranked)
    low, high = max(p.low for p in places), min(p.high for p in places)
    return n * (n - 1) // 2, True if low == 1 or high == n else False if high < low else None


def _row(sheet: Sheet, label: str) -> Row:
    known = {row.label: row for row in sheet.rows}
    if label not in known:
        raise UnknownName("row", label, sorted(known))
    return known[label]


def _examples(sheet: Sheet, a: Row, b: Row, contexts: Sequence[Context], store: Path) -> float | None:
    """The standard error of the difference that comes from the draw of test images, from the stored outputs.

    Cells of one task share their test images, so outcomes are averaged over cells first; tasks are independent. None
    where outputs are missing, or cells have different numbers of seeds (a mean over all would weigh them unequally).
    """
    parts = []
    for task in dict.fromkeys(c.task for c in contexts):
        mine = [c for c in contexts if c.task == task]
        sides = []
        for row in (a, b):
            told = [_outcomes(e, store) for c in mine for e in _entries(row, c)]
            known = [t for t in told if t is not None]
            if len(known) < len(told) or len({len(t) for t in known}) != 1:
                return None
            if len({len(_entries(row, c)) for c in mine}) > 1:
                return None
            sides.append(known)
        if len(sides[0][0]) != len(sides[1][0]):
            return None
        se = example_se(*sides)
        if se is None:
            return None
        parts.append((len(mine) / len(contexts) * se) ** 2)
    return math.sqrt(sum(parts)) * sheet.metric.scale if parts else None


def _images(a: Row, b: Row, contexts: Sequence[Context], store: Path) -> McNemar | None:
    """McNemar's test on the test images, where one run stands against one: seeds tell nothing of noise there."""
    runs = [[e for c in contexts for e in _entries(row, c)] for row in (a, b)]
    if [len(side) for side in runs] != [1, 1]:
        return None
    first, second = (_outcomes(side[0], store) for side in runs)
    return None if first is None or second is None or len(first) != len(second) else mcnemar(first, second)


def _entries(row: Row, context: Context) -> tuple[Entry, ...]:
    return next(c.entries for c in row.cells if c.context == context)


def _outcomes(e: Entry, store: Path) -> Any:
    """(examples,) of bool: which test images a run classified rightly; None without its outputs."""
    import numpy as np

    try:
        path = store / e.place / "outputs" / "selected" / "test.npz"
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            predicted = kept["logits"].argmax(1) if "logits" in kept else kept["prediction"]
            return predicted == kept["labels"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, BadZipFile, zlib.error):
        return None


def words(c: Comparison) -> str:
    """The comparison as a person would say it."""
    metric = metric_of(c.metric)
    unit = f"points of {metric.title}" if metric.unit else metric.title
    where = f"on {counted(len(c.contexts), 'cell')} of {c.board}"
    if len(c.contexts) < c.contexts_of_board:
        where += f" (of {c.contexts_of_board}: the ones that both have)"
    if c.difference is None:
        return f"{c.a} and {c.b} have no cell of {c.board} in common"
    half, d = c.difference.half(), 2 if metric.scale == 100 else 3
    value = abs(c.difference.value)
    if half is None:
        text = f"{c.a} and {c.b} differ by {value:.{d}f} {unit} {where}; one seed tells nothing about noise"
        if c.images is None:
            return text
        return (
            f"{text} (test images that only one has right: {c.images.b} and {c.images.c}, McNemar p = {c.images.p:.2g})"
        )
    if not c.separated:
        text = f"{c.a} and {c.b} cannot be separated {where}: {c.difference.value:+.{d}f} ± {half:.{d}f} {unit}"
        more = f"; {c.needed} seeds would separate {value:.2g}" if c.needed else ""
        return f"{text}, {counted(c.seeds, 'seed')}{more}"
    word = "better than" if metric.sign < 0 else "above"
    upper, lower = (c.a, c.b) if (c.better or 0) > 0 else (c.b, c.a)
    return f"{upper} is {word} {lower} by {value:.{d}f} ± {half:.{d}f} {unit} {where}, {counted(c.seeds, 'seed')}"


def beside(c: Comparison) -> str:
    """What a separated pair is worth on its board, where it is one of many; '' where there is nothing to say."""
    if not c.separated or c.pairs < 2 or c.tied is False:
        return ""
    told = f"this pair alone; rpbench report judges {c.pairs} pairs at once (Holm)"
    return f"{told}, and does not separate it" if c.tied else told


def comparison_json(c: Comparison) -> dict[str, Any]:
    from rpbench.report.plain import context_json, estimate_json, number, pooled_json

    return {
        "board": c.board, "metric": c.metric, "a": c.a, "b": c.b, "difference": estimate_json(c.difference),
        "separated": c.separated, "pairs": c.pairs, "tied": c.tied, "cells": [context_json(x) for x in c.contexts],
        "seeds": c.seeds, "seeds_needed": c.needed, "pooled": pooled_json(c.pooled), "examples_se": number(c.examples),
        "mcnemar": None if c.images is None else {"a": c.images.b, "b": c.images.c, "p": number(c.images.p)},
        "words": words(c),
    }  # fmt: skip
