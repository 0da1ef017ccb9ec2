"""What papers report of cells, as shipped in `leaderboard/reported/*.jsonl`: values with their place and tolerance, and
how their protocol differs from the task's."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from rpbench.catalog import shelf

Cell = tuple[str, str, str, float, str]  # task, model, scheme, density, metric


@dataclass(frozen=True)
class Reported:
    """One published value. Rates are in [0, 1]; `tolerance` is half the width within which the value was read (printed:
    the rounding), `half_width` that of the shaded band around it where there is one, `runs` None where not stated."""

    source: str
    place: str
    how: Literal["printed", "digitised"]
    task: str
    model: str
    scheme: str
    density: float
    metric: str
    value: float
    tolerance: float
    half_width: float | None
    runs: int | None
    differences: tuple[str, ...]

    @property
    def cell(self) -> Cell:
        return self.task, self.model, self.scheme, self.density, self.metric


def reported() -> list[Reported]:
    """Every value on the shelf, in the order of its files."""
    found = []
    for path in sorted((shelf("leaderboard") / "reported").glob("*.jsonl")):
        found += [_read(json.loads(line)) for line in path.read_text().splitlines()]
    return found


def best(values: Iterable[Reported]) -> dict[Cell, Reported]:
    """One value per cell: the one with the smallest tolerance (printed before digitised)."""
    found: dict[Cell, Reported] = {}
    for value in values:
        known = found.setdefault(value.cell, value)
        if value.tolerance < known.tolerance:
            found[value.cell] = value
    return found


def _read(row: dict[str, Any]) -> Reported:
    return Reported(**{**row, "differences": tuple(row["differences"])})
