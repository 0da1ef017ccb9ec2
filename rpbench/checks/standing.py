"""Which cells stand out among those they are compared with, and how far two trainings of one cell may differ."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rpbench import streams
from rpbench.entries import Entry
from rpbench.stats import Group, group, pool

Array = NDArray[np.float64]
Row = tuple[Hashable, ...]
ENOUGH = 10  # degrees of freedom below which a relation says nothing
FLOOR = 1e-3  # of a mean: the least spread that seeds are believed to have


@dataclass(frozen=True)
class Relation:
    """What top-1 is beside the other numbers of a record: c0 + c1 Brier + c2 ECE + c3 top-1 and c4 Brier of the last
    epoch, fitted over all records of a net with residuals whose spread is `sd` * sqrt(Brier).

    On the digits board (225 records) the spread is 0.3 points at 98 % and 0.9 at 80 %, a third of what seeds scatter:
    a top-1 that was raised by itself stands out.
    """

    coefficients: Array
    sd: float
    df: int

    def surplus(self, e: Entry) -> float:
        """top-1 less what is expected beside the other numbers; NaN where they are not there."""
        x = _features(e)
        return math.nan if x is None else e.metrics["top1"] - float(x @ self.coefficients)

    def spread(self, e: Entry) -> float:
        """The standard deviation of `surplus` for a record like this."""
        return self.sd * _scale(e)


def _features(e: Entry) -> Array | None:
    try:
        return np.array([1.0, e.metrics["brier"], e.metrics["ece"], e.last["top1"], e.last["brier"]])
    except KeyError:
        return None


def _scale(e: Entry) -> float:
    return math.sqrt(max(e.metrics["brier"], 1e-3))


def relate(entries: Sequence[Entry]) -> tuple[Relation | None, dict[str, float]]:
    """The relation over records of one net, and each one's p value of being part of it (its residual, studentised
    without itself); None and {} where there are too few."""
    known = [(e, x) for e in entries if e.status == "ok" and (x := _features(e)) is not None]
    if len(known) < 5 + ENOUGH:
        return None, {}
    weight = np.array([1 / _scale(e) for e, _ in known])
    a = np.stack([x for _, x in known]) * weight[:, None]
    y = np.array([e.metrics["top1"] for e, _ in known]) * weight
    coefficients, *_, rank, _ = np.linalg.lstsq(a, y, rcond=None)
    df = len(known) - int(rank)
    rest = y - a @ coefficients
    variance = float((rest**2).sum()) / df
    if variance <= 0:
        return None, {}
    basis, _ = np.linalg.qr(a)
    leverage = np.minimum((basis**2).sum(axis=1), 1 - 1e-9)
    inner = rest / np.sqrt(variance * (1 - leverage))
    outer = inner * np.sqrt((df - 1) / np.maximum(df - inner**2, 1e-9))
    ps = {e.run_id: _p(float(t), df - 1) for (e, _), t in zip(known, outer, strict=True)}
    return Relation(coefficients, math.sqrt(variance), df), ps


def among_seeds(values: Mapping[str, float]) -> dict[str, float]:
    """Each run's p value of being one more seed of the others: Student's t of its distance from their mean."""
    found = {}
    for name, value in values.items():
        others = group([v for other, v in values.items() if other != name]) if len(values) > 2 else None
        if others is None or others.var is None:
            continue
        sd = max(math.sqrt(others.var), FLOOR * abs(others.mean), 1e-12)
        found[name] = _p((value - others.mean) / (sd * math.sqrt(1 + 1 / others.n)), others.n - 1)
    return found


def choose(ps: Mapping[str, float], names: Sequence[str], n: int, seed: int) -> tuple[list[str], list[str]]:
    """(those that stand out most, others at random): n cells of `names` in all, the first half rounded up.

    `ps` are p values, 1 for those that have none. The same seed gives the same cells.
    """
    n = min(n, len(names))
    out = sorted(names, key=lambda name: (ps.get(name, 1.0), name))[: -(-n // 2)]
    rest = sorted(set(names) - set(out))
    order = streams.permutation(streams.key("rerun", seed), len(rest))
    return out, [rest[i] for i in order[: n - len(out)]]


@dataclass(frozen=True)
class Tolerance:
    """How far two trainings of a cell may differ: half the width, the seeds' standard deviation and its degrees of
    freedom, and over how many rows it was pooled."""

    half: float
    sd: float
    df: int
    rows: int


def tolerance(groups: Mapping[Row, Sequence[float]], own: Row, alpha: float, least: float) -> Tolerance | None:
    """What two runs may differ by, that differ in no more than two seeds do: t at 1 - alpha/2, times sqrt(2), times
    the standard deviation of seeds, pooled over the rows of a context that scatter as the cell's own does.

    Machines differ in rounding, and training carries that as far as another seed would at most. Rows scatter unequally
    (those near chance ten times as much): rows whose variance is farthest from the cell's own are left out until
    `stats.pool` finds no difference among the rest. `own` may have no variance of its own (one seed): then the
    largest are left out. None where no row has two seeds. `least` is the smallest tolerance (one test image).
    """
    found = {row: group(values) for row, values in groups.items() if len(values) > 1}
    if not found:
        return None
    kept = peers(found, own)
    pooled = pool(kept.values())
    assert pooled is not None
    sd = math.sqrt(pooled.var)
    return Tolerance(max(least, limit(alpha, pooled.df) * math.sqrt(2) * sd), sd, pooled.df, len(kept))


def peers(found: Mapping[Row, Group], own: Row) -> dict[Row, Group]:
    """The rows that share one variance with `own`, itself among them."""
    kept = dict(found)
    while len(kept) > 1 and (pooled := pool(kept.values())) is not None and not pooled.homogeneous:
        rest = [row for row in kept if row != own]
        if own in found:
            away = max(rest, key=lambda row: (abs(_log(found[row]) - _log(found[own])), str(row)))
        else:
            away = max(rest, key=lambda row: (_log(found[row]), str(row)))
        del kept[away]
    return kept


def _log(g: Group) -> float:
    return math.log((g.var or 0.0) + (FLOOR * abs(g.mean)) ** 2 + 1e-24)


def limit(alpha: float, df: float) -> float:
    """Student's t that is exceeded in absolute value with probability alpha."""
    from scipy.special import stdtrit

    return float(stdtrit(df, 1 - alpha / 2))


def _p(t: float, df: int) -> float:
    from scipy.special import stdtr

    return 2 * float(stdtr(df, -abs(t)))
