"""A quick look at a scheme or sampler of one's own: a few real cells beside known ones. No torch here."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from tabulate import tabulate

from rpbench.contract import Examination
from rpbench.record import RunRecord
from rpbench.sampler import Sampler
from rpbench.scheme import Scheme
from rpbench.show import metric_rows
from rpbench.store import default_store
from rpbench.task import load_task

TASK, DENSITY = "digits", 0.1
RIVALS = ("uniform", "erk")  # a scheme is seen beside these
UNDER, SCORED, DRAWN = "erk", "snip", "exact"  # a sampler draws for the first (or needs scores), beside that sampler
QUICK = 5  # epochs with --quick


@dataclass(frozen=True)
class Column:
    """One column of the comparison: a label, and how to ask for its cells, seed by seed."""

    label: str
    asked: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Trial:
    """Columns of cells, the one that is tried first, and what they are trained on."""

    columns: tuple[Column, ...]
    epochs: int
    seeds: int
    quick: bool
    under: str = ""  # the scheme that a sampler draws for

    @property
    def asked(self) -> list[dict[str, Any]]:
        """Every cell, seed by seed: a stopped comparison has whole seeds."""
        return [column.asked[i] for i in range(self.seeds) for column in self.columns]

    @property
    def words(self) -> str:
        """What this is, and that it is no more than that."""
        of = f" of {load_task(TASK).recipe.epochs} (off protocol)" if self.quick else ""
        seeds = "1 seed" if self.seeds == 1 else f"{self.seeds} seeds"
        what = f"{TASK}, {self.under}" if self.under else TASK
        return f"{what}, density {DENSITY:g}, {self.epochs} epochs{of}, {seeds}: a smoke test, not a result"


def trial(exam: Examination, given: str, seeds: int, quick: bool) -> Trial:
    """The cells that show `given` beside what is known."""
    epochs = QUICK if quick else load_task(TASK).recipe.epochs
    overrides = (f"recipe.epochs={QUICK}",) if quick else ()
    columns = []
    for label, scheme, sampler in _pairs(exam, given):
        density = exam.thing.density if scheme == given and isinstance(exam.thing, Scheme) else None
        cell = {"task": TASK, "scheme": scheme, "sampler": sampler, "density": density or DENSITY}
        cells = tuple(cell | {"seed": seed, "overrides": overrides} for seed in range(seeds))
        columns.append(Column(label, cells))
    return Trial(tuple(columns), epochs, seeds, quick, "" if isinstance(exam.thing, Scheme) else _under(exam.thing))


def _pairs(exam: Examination, given: str) -> list[tuple[str, str, str]]:
    """(label, scheme, sampler) of every column."""
    if isinstance(exam.thing, Scheme):
        return [(exam.label, given, DRAWN), *((name, name, DRAWN) for name in RIVALS if name != exam.label)]
    under = _under(exam.thing)
    rivals = [] if exam.label == DRAWN else [(DRAWN, under, DRAWN)]
    return [(exam.label, under, given), *rivals]


def _under(sampler: Sampler) -> str:
    return SCORED if sampler.scored else UNDER


def table(trial: Trial, records: Mapping[str, Sequence[RunRecord]]) -> str:
    """Five axes side by side: means over seeds, and top-1 seed by seed where there are several."""
    columns = [(c.label, _values([r for r in records[c.label] if r.status == "ok"])) for c in trial.columns]
    names = list(dict.fromkeys(name for _, values in columns for name in values))
    rows = [(name, *(values.get(name, "-") for _, values in columns)) for name in names]
    headers = ["", *(label if len(label) <= 18 else f"{label[:15]}..." for label, _ in columns)]
    text = tabulate(rows, headers=headers, disable_numparse=True, colalign=("left", *("right" for _ in columns)))
    faults = [
        f"{label}: {record.status}: {record.error}"
        for label, found in records.items()
        for record in found
        if record.status != "ok"
    ]
    return "\n".join([text, *faults])


def _values(records: Sequence[RunRecord]) -> dict[str, str]:
    """Labels and values of one column; none where no cell has a result."""
    if not records:
        return {}
    keys = [key for key in records[0].metrics if all(key in r.metrics for r in records)]
    means: dict[str, int | float] = {key: mean(r.metrics[key] for r in records) for key in keys}
    found = {name: value.partition(" (")[0] for _, name, value in metric_rows(means)}
    if len(records) > 1:
        each = " ".join(f"{100 * r.metrics['top1']:.1f}" for r in records)
        found = {"top-1": found.pop("top-1"), "top-1, each seed": each} | found
    cost, density = records[0].cost, records[0].density
    found["weights kept"] = "-" if density.kept is None else f"{density.kept:,}"
    if cost.dense_macs and cost.sparse_macs is not None:
        found["MACs"] = f"{mean(r.cost.sparse_macs or 0 for r in records) / cost.dense_macs:.1%} of dense"
    return found


def next_commands(exam: Examination, given: str, store: Path | None) -> list[str]:
    """What to type after a look: the whole board, whether a difference is real, and how to hand it in."""
    mine, place = shlex.quote(given), shlex.quote(str(store or default_store()))
    kept = f" --store {place}" if store else ""
    if isinstance(exam.thing, Scheme):
        label, under, row, more = exam.label, UNDER, mine, ""
    else:
        under = _under(exam.thing)
        label, row, more = f"{under} + {exam.label}", f"{under} --sampler {mine}", f" --scheme {under}"
    return [
        f"rpbench sweep {TASK} --{exam.kind} {mine}{more}{kept}",
        f"rpbench compare {shlex.quote(label)} {under} --leaderboard --store {place}",
        f"rpbench submit {row} --board {TASK} --card card.toml{kept}",
    ]
