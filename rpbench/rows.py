"""What a scored board consists of: metrics, cells, rows, blocks of rows that are ranked together. Plain values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rpbench.board import Context, Plan, Who
from rpbench.entries import LEVELS as LEVELS
from rpbench.entries import Entry, Fault
from rpbench.stats import Crossing, Estimate, Group, Pooled, Rank, StreamVariance
from rpbench.streams import Seeds

Order = Literal["params", "flops"]
State = Literal["ok", "partial", "missing", "infeasible", "failed"]
Net = tuple[str, str]  # task, model
SINGLE = "1 seed"  # the mark of rows that are placed by the board's first seed alone
LOWER_IS_BETTER = ("ece", "nll", "brier", "fpr95")


@dataclass(frozen=True)
class Metric:
    """How a metric is shown: rates in percent (gaps in points), others as they are."""

    key: str
    title: str
    unit: str
    scale: float
    sign: int  # -1 where less is better


def metric_of(key: str) -> Metric:
    """A metric by its key in a record, or "ood": ROC-AUC (maximum softmax), the mean over a task's sets."""
    kind, _, of = key.partition("/")
    titles = {"top1": "top-1", "top5": "top-5", "ece": "ECE", "nll": "NLL", "brier": "Brier", "auroc": "ROC-AUC",
              "aupr": "AUPR", "fpr95": "FPR95", "robust": "top-1 under", "ood": "ROC-AUC, OoD",
              "auroc_energy": "ROC-AUC (energy)", "aupr_energy": "AUPR (energy)",
              "fpr95_energy": "FPR95 (energy)"}  # fmt: skip
    title = f"{titles.get(kind, kind)} {of}".strip()
    rate = kind not in ("nll", "brier")
    sign = -1 if kind.split("_")[0] in LOWER_IS_BETTER else 1
    return Metric(key, title, "%" if rate else "", 100.0 if rate else 1.0, sign)


def value_of(e: Entry, metric: Metric, sets: Iterable[str] | None = None) -> float | None:
    """A record's value of a metric as it is shown; of "ood" over `sets` (those that the reference has)."""
    if metric.key != "ood":
        found = e.metrics.get(metric.key)
        return None if found is None else found * metric.scale
    names = [f"auroc/{s}" for s in sets] if sets is not None else [k for k in e.metrics if k.startswith("auroc/")]
    if not names or any(n not in e.metrics for n in names):
        return None
    return math.fsum(e.metrics[n] for n in names) / len(names) * metric.scale


def ood_sets(entries: Sequence[Entry]) -> tuple[str, ...] | None:
    """The OoD sets that all of these records were scored on."""
    if not entries:
        return None
    each = [{k.removeprefix("auroc/") for k in e.metrics if k.startswith("auroc/")} for e in entries]
    return tuple(sorted(set.intersection(*each)))


@dataclass(frozen=True)
class Cell:
    """One row in one context: its results over the seeds. Values are scaled as the metric is shown."""

    context: Context
    state: State
    seeds: tuple[Seeds, ...]
    missing: tuple[Seeds, ...]
    values: tuple[float, ...]
    group: Group | None
    gap: Estimate | None
    entries: tuple[Entry, ...]
    reason: str = ""

    @property
    def flops(self) -> float | None:
        """Sparse over dense FLOPs, as drawn."""
        return _mean(e.sparse_macs / e.dense_macs for e in self.entries if e.sparse_macs is not None and e.dense_macs)

    @property
    def effective(self) -> float | None:
        return _mean(e.effective for e in self.entries if e.effective is not None)

    @property
    def realised(self) -> float | None:
        return _mean(e.realised for e in self.entries if e.realised is not None)


@dataclass(frozen=True)
class Weights:
    """A row's score as a linear combination: of its own cells' means, and of the reference's."""

    own: dict[Context, float]
    reference: dict[Net, float]


@dataclass(frozen=True)
class Row:
    """One scheme (x sampler) on a board."""

    who: Who
    label: str
    cells: tuple[Cell, ...]
    score: Estimate | None = None  # mean gap to the reference, in the metric's unit
    p: float | None = None  # of that gap, Holm-adjusted over the rows of its block
    rank: Rank | None = None
    marks: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    axes: dict[str, Estimate | None] = field(default_factory=dict)
    matching: dict[Net, Crossing] = field(default_factory=dict)
    luck: dict[str, StreamVariance | None] = field(default_factory=dict)  # by stream of random numbers, where varied
    level: str = ""

    def cell(self, context: Context) -> Cell:
        return next(c for c in self.cells if c.context == context)

    def mean(self, name: str, contexts: Sequence[Context] | None = None) -> float | None:
        """The mean of a cost over the row's cells, or those in `contexts`: flops, effective, realised."""
        return _mean(v for cell in self._within(contexts) if (v := getattr(cell, name)) is not None)

    def cost(self, name: str, contexts: Sequence[Context] | None = None) -> float | None:
        """The mean over the row's records of what one of them took: scheme_seconds, batches, seconds, ..."""
        return _mean(v for c in self._within(contexts) for e in c.entries if (v := getattr(e, name)) is not None)

    def _within(self, contexts: Sequence[Context] | None) -> list[Cell]:
        return [cell for cell in self.cells if contexts is None or cell.context in contexts]


@dataclass(frozen=True)
class Block:
    """Rows that are ranked together, best first, on cells that all of them have."""

    title: str
    contexts: tuple[Context, ...]
    rows: tuple[Row, ...]
    pooled: Pooled | None
    steps: tuple[Estimate | None, ...]  # each row less the next one
    apart: tuple[bool, ...]  # whether that step is significant in the family of all pairs


@dataclass(frozen=True)
class Sheet:
    """A board, scored."""

    plan: Plan
    metric: Metric
    order: Order
    reference: tuple[Cell, ...]
    ranked: Block
    common: Block | None
    incomplete: tuple[Row, ...]
    not_run: tuple[str, ...]
    left_out: tuple[Fault, ...]
    axes: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def rows(self) -> tuple[Row, ...]:
        """Every row with a record, ranked ones first."""
        return (*self.ranked.rows, *self.incomplete)

    @property
    def seeded(self) -> tuple[Row, ...]:
        """Ranked rows that have every seed of the board."""
        return tuple(row for row in self.ranked.rows if SINGLE not in row.marks)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return math.fsum(known) / len(known) if known else None
