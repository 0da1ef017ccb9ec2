"""The statistics of a board: pure functions of plain numbers, which know nothing of records.

Seeds are few, so what they tell is pooled: groups (the results of one cell over its seeds) give means, their pooled
variance gives one measure of noise, and every comparison is a contrast (a linear combination of group means) with
Student's t. All sums are exactly rounded (math.fsum): results do not depend on the order of the seeds.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rpbench import streams
from rpbench.errors import UsageError

Array = NDArray[np.float64]
Interval = tuple[float, float]
Run = tuple[Hashable, Hashable, int, float]  # cell, what is held fixed, the seed that varies, the result
HOMOGENEOUS = 0.05  # the least p value of groups of one variance; why: see `pool`


@dataclass(frozen=True)
class Group:
    """Results of one cell over its seeds: their mean, sample variance (n - 1; None for one value) and number."""

    mean: float
    var: float | None
    n: int


@dataclass(frozen=True)
class Pooled:
    """The seed variance pooled over groups, its degrees of freedom, and whether the groups are of one variance.

    `p` is the p value of that check (see `pool`), None where there is nothing to compare.
    """

    var: float
    df: int
    p: float | None
    homogeneous: bool


def group(values: Sequence[float]) -> Group:
    """Mean and sample variance; equal values have a variance of exactly 0. UsageError for none, or not finite."""
    xs = _finite(values, "results")
    if not xs:
        raise UsageError("a group has no results: it needs at least one")
    n = len(xs)
    mean = xs[0] if min(xs) == max(xs) else math.fsum(xs) / n
    return Group(mean, math.fsum((x - mean) * (x - mean) for x in xs) / (n - 1) if n > 1 else None, n)


def pool(groups: Iterable[Group]) -> Pooled | None:
    """The variance pooled over groups by degrees of freedom; None where no group has two values.

    Homogeneity: U = sum of df * (variance / pooled variance)^2, large where variances differ, against its exact null
    distribution for these degrees of freedom (10,000 draws of a fixed Philox stream). Its size at 5 %, measured with
    10,000 boards each: 5.0 % with 2 groups of 3 values, 5.0 with 216 of 3, 5.0 with 216 of 2, 5.1 with 216 of 5. The
    usual checks fail here: Brown-Forsythe at 3 values a group (0 %); Bartlett's chi-square with many groups (3.3 % with
    216 of 3, 1.1 with 216 of 2); Bartlett's M even with its exact distribution, as it has no bound where seeds agree:
    accuracies in steps of a tenth of the spread (0.01 points, 10,000 images) make it 21 %, of half of it 99, U 5.
    "Homogeneous" means p >= 0.05: with 12 equal schemes, 4 cells, 3 seeds and one scheme of twice the spread, boards
    with false separations (5 % promised) are 7.7 % without the check, 6.3 with p >= 0.01, 5.5 with p >= 0.05.
    """
    known = sorted((g.n - 1, g.var) for g in groups if g.var is not None)
    if not known:
        return None
    dfs = tuple(df for df, _ in known)
    total = sum(dfs)
    var = math.fsum(df * v for df, v in known) / total
    if len(known) == 1 or var == 0:
        return Pooled(var, total, None, True)
    null = _null_unevenness(dfs)
    uneven = math.fsum(df * (v / var) ** 2 for df, v in known) * (1 - 1e-12)  # rounding puts no tie above its draw
    p = (1 + len(null) - int(np.searchsorted(null, uneven))) / (1 + len(null))
    return Pooled(var, total, p, p >= HOMOGENEOUS)


@lru_cache(maxsize=256)
def _null_unevenness(dfs: tuple[int, ...]) -> Array:
    """U of groups that share one variance: draws in ascending order. Fewer draws for thousands of groups."""
    draws = min(10_000, max(1_000, 4_000_000 // len(dfs)))
    total, square = np.zeros(draws), np.zeros(draws)
    for df in sorted(set(dfs)):
        shape = (draws, dfs.count(df))
        raw = streams.raw(streams.key("homogeneity", df), shape[0] * shape[1])
        chi2 = _chi2_quantiles(df)[raw >> np.uint64(48)].reshape(shape)
        total += chi2.sum(axis=1)
        square += (chi2**2).sum(axis=1) / df
    return np.sort(square / (total / sum(dfs)) ** 2)


@lru_cache(maxsize=64)
def _chi2_quantiles(df: int) -> Array:
    """2^16 equally likely values of chi-square: drawing one is a look-up."""
    from scipy.special import gammaincinv

    return np.asarray(2 * gammaincinv(df / 2, (np.arange(2**16) + 0.5) / 2**16))


@dataclass(frozen=True)
class Estimate:
    """A value with its standard error and degrees of freedom (None where the data tell nothing of its noise)."""

    value: float
    se: float | None
    df: float | None

    def half(self, level: float = 0.95) -> float | None:
        """Half the width of the t-interval."""
        return None if self.se is None or self.df is None else _t(level, self.df) * self.se

    def interval(self, level: float = 0.95) -> Interval | None:
        """Student's t-interval."""
        half = self.half(level)
        return None if half is None else (self.value - half, self.value + half)

    @property
    def p(self) -> float | None:
        """Two-sided p value against 0. Without any spread: 1 if the value is 0, else 0."""
        from scipy.special import stdtr

        if self.se is None or self.df is None:
            return None
        if self.se == 0:
            return float(self.value == 0)
        return min(1.0, 2 * float(stdtr(self.df, -abs(self.value) / self.se)))


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval | None:
    """Student's t-interval of a mean; None for one value. Raises what `group` raises."""
    return paired_contrast([values], [1.0]).interval(level)


def contrast(groups: Sequence[Group], weights: Sequence[float], pooled: Pooled | None) -> Estimate:
    """sum of weight * mean over groups that share no run (one that stands in several cells: once, weights summed).

    Homogeneous: the pooled variance and its degrees of freedom. Else, or with nothing pooled, every group's own
    variance and Welch-Satterthwaite degrees of freedom (Welch 1947): 3.7 to 5.6 % false positives at 5 % for two cells
    of 3 seeds whose spreads are equal to 10 times apart, less for sums of many; groups of one value, and groups without
    any spread where no other has one, take the pooled variance.
    UsageError where weights and groups differ in number.
    """
    _weigh(groups, weights)
    used = [(g, w) for g, w in zip(groups, weights, strict=True) if w != 0]
    value = _combined(w * g.mean for g, w in used)
    if pooled is not None and pooled.homogeneous:
        return Estimate(value, math.sqrt(pooled.var * math.fsum(w * w / g.n for g, w in used)), pooled.df)
    single = [g for g, _ in used if g.var is None]
    if single and pooled is None:
        return Estimate(value, None, None)
    flat = not any(g.var for g, _ in used)
    parts = []  # (variance of the weighted mean, its degrees of freedom)
    for g, w in used:
        if pooled is not None and (g.var is None or flat):
            parts.append((w * w * pooled.var / g.n, pooled.df))
        elif g.var is not None:
            parts.append((w * w * g.var / g.n, g.n - 1))
    total = math.fsum(v for v, _ in parts)
    below = math.fsum((v / total) ** 2 / df for v, df in parts) if total > 0 else 0.0
    return Estimate(value, math.sqrt(total), 1 / below if below > 0 else sum(df for _, df in parts) or math.inf)


def paired_contrast(rows: Sequence[Sequence[float]], weights: Sequence[float]) -> Estimate:
    """sum of weight * mean over rows of values that are aligned by seed, (groups, seeds): t on the seeds' own sums.

    It has seeds - 1 degrees of freedom, so it beats `contrast` only where seeds correlate above 0.58 or so: declare
    it beforehand. UsageError for rows of different lengths.
    """
    _weigh(rows, weights)
    if len({len(row) for row in rows}) > 1:
        raise UsageError(f"rows of {', '.join(str(len(row)) for row in rows)} seeds cannot be paired: align them first")
    by_seed = zip(*(_finite(row, "results") for row in rows), strict=True)
    sums = group([_combined(w * x for w, x in zip(weights, xs, strict=True)) for xs in by_seed])
    if sums.var is None:
        return Estimate(sums.mean, None, None)
    return Estimate(sums.mean, math.sqrt(sums.var / sums.n), sums.n - 1)


class Rank(NamedTuple):
    """A row's place: 1 + rows that are significantly above it, and the first and last place that the data allow."""

    rank: int
    low: int
    high: int


def holm(ps: Sequence[float]) -> list[float]:
    """Adjusted p values (Holm 1979), in the order given: reject where they are at most the level of the family."""
    ps = _finite(ps, "p values")
    if bad := [p for p in ps if not 0 <= p <= 1]:
        raise UsageError(f"p value {bad[0]} is outside [0, 1]")
    adjusted, least = [0.0] * len(ps), 0.0
    for place, i in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        least = max(least, min(1.0, (len(ps) - place) * ps[i]))
        adjusted[i] = least
    return adjusted


def separated(differences: Mapping[tuple[int, int], Estimate], alpha: float = 0.05) -> dict[tuple[int, int], int]:
    """+1 where i is above j, -1 where it is below, 0 where they cannot be told apart: Holm over the whole mapping.

    `differences` holds i's score less j's at (i, j). Those without a standard error are no part of the family.
    """
    ps = {pair: e.p for pair, e in differences.items()}
    tested = {pair: p for pair, p in ps.items() if p is not None}
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    return {
        pair: int(np.sign(e.value)) if adjusted.get(pair, math.inf) <= alpha else 0 for pair, e in differences.items()
    }


def ranks(rows: int, differences: Mapping[tuple[int, int], Estimate], alpha: float = 0.05) -> list[Rank]:
    """Shared ranks with rank intervals: low = 1 + rows significantly above, high = rows - rows significantly below.

    All intervals hold together with probability 1 - alpha (Al Mohamad et al. 2022). Pairs that are missing count as
    not separated; the scores' order decides nothing by itself. UsageError for a pair outside the rows or given twice.
    """
    above, below = [0] * rows, [0] * rows
    for (i, j), sign in separated(differences, alpha).items():
        if i == j or not (0 <= i < rows and 0 <= j < rows) or ((j, i) in differences):
            raise UsageError(f"pair ({i}, {j}) of {rows} rows: give every pair of different rows once")
        if sign:
            upper, lower = (i, j) if sign > 0 else (j, i)
            above[lower] += 1
            below[upper] += 1
    return [Rank(1 + a, 1 + a, rows - b) for a, b in zip(above, below, strict=True)]


def seeds_needed(
    difference: float, sd: float, cells: int, level: float = 0.05, power: float = 0.8, rows: int = 2
) -> int:
    """Seeds per row after which `difference` between two rows is found with this power, at least 2.

    Both rows have `cells` cells of seed standard deviation `sd` (in the difference's unit). Exact for a two-sided t
    test at `level` (divide it by the comparisons of a family) with the variance pooled over `rows` rows.
    UsageError for a difference of 0.
    """
    gap, sd, level, power = _finite([abs(difference), sd, level, power], "what seeds are counted from")
    if gap == 0 or sd < 0 or cells < 1 or rows < 2 or not 0 < level < 1 or not 0 < power < 1:
        raise UsageError(
            f"no number of seeds follows from difference {difference:g}, sd {sd:g}, {cells} cells, {rows} rows, "
            f"level {level:g}, power {power:g}: the difference must not be 0, level and power lie within (0, 1)"
        )
    enough = 2
    while _power(gap, sd, cells, enough, level, rows) < power:
        enough *= 2
    few = enough // 2
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if _power(gap, sd, cells, middle, level, rows) >= power else (middle, enough)
    return max(2, enough)


def _power(gap: float, sd: float, cells: int, seeds: int, level: float, rows: int) -> float:
    from scipy.special import nctdtr, ndtr

    if sd == 0:
        return 1.0
    shift = gap / (sd * math.sqrt(2 / (seeds * cells)))
    df = float(rows * cells * (seeds - 1))
    bar = _t(1 - level, df)
    if df > 1e6:  # the noncentral t is normal here to 1e-6, and slow
        return float(ndtr(shift - bar) + ndtr(-shift - bar))
    return float(1 - nctdtr(df, shift, bar) + nctdtr(df, shift, -bar))


@dataclass(frozen=True)
class Crossing:
    """The largest sparsity at which a scheme keeps within the margin of dense, and its interval.

    `value` is None where it is censored: no measured sparsity matches, or all do. `low` is 0 where the interval
    reaches below the first measured sparsity; `high` is None where it has no end among the measured ones. `low` is
    None (and so is `high`) where no standard errors are known.
    """

    value: float | None
    low: float | None
    high: float | None
    censored: Literal["none matching", "beyond the last"] | None


def crossing(
    x: Sequence[float],
    gaps: Sequence[float],
    ses: Sequence[float] | None,
    margin: float = 0.5,
    *,
    shared: float = 0.0,
    df: float = math.inf,
    level: float = 0.95,
) -> Crossing:
    """Where the gap to dense falls below -margin, on a monotone curve through the gaps at sparsities x (ascending).

    The estimate: the non-increasing weighted least-squares fit (isotonic, weights 1 / se^2, at most 0 since the gap
    is 0 at sparsity 0: that is the dense net itself), linear between points. The interval: sparsities at which the
    gap, interpolated between its two neighbours, may be -margin by Student's t. That is Fieller's (1954) argument: at
    the true crossing the statistic has a t distribution whatever the curve, so the interval covers at least at its
    level (measured: 95 to 99 %). A simulation around the fit is narrower but covers 81 to 93 % where a flat curve ends
    in a cliff or lies at the margin, as the fit is biased downwards there.

    `ses` are the standard errors of the gaps with dense's part included, `shared` is that part (the standard error of
    the dense mean, common to all gaps), `df` the degrees of freedom of all of them (the least, where they differ).
    UsageError for lists of different lengths, x not ascending from above 0, or a negative margin or error.
    """
    from scipy.optimize import isotonic_regression

    xs, ys = _finite(x, "sparsities"), _finite(gaps, "gaps")
    errors = _finite([0.0] * len(xs) if ses is None else ses, "standard errors")
    if not len(xs) == len(ys) == len(errors) or not xs:
        raise UsageError(f"{len(xs)} sparsities, {len(ys)} gaps, {len(errors)} errors: give one of each per point")
    if xs[0] <= 0 or any(b <= a for a, b in pairwise(xs)):
        raise UsageError(f"sparsities {', '.join(f'{v:g}' for v in xs)} must ascend from above 0")
    if not margin >= 0 or not 0 <= shared * (1 - 1e-9) <= min(errors):
        raise UsageError(
            f"margin {margin:g}, least error {min(errors):g}, shared error {shared:g}: "
            "the margin must not be negative, and no gap has less error than dense alone"
        )
    own = np.array([max(0.0, e * e - shared * shared) for e in errors])
    scale = own.max() or 1.0
    fit = isotonic_regression(ys, weights=1 / np.maximum(own / scale, 1e-9), increasing=False).x
    curve = [0.0, *(min(0.0, float(v)) for v in fit)]
    knots = [0.0, *xs]
    end = next((k for k, v in enumerate(curve) if v < -margin), None)
    value, censored = _estimated(knots, curve, margin, end)
    if ses is None:
        return Crossing(value, None, None, censored)
    low, high = _band(knots, [0.0, *ys], [0.0, *errors], shared, margin, _t(level, df))
    if value is not None:
        low, high = min(low, value), None if high is None else max(high, value)
    return Crossing(value, low, high, censored)


def _estimated(
    xs: list[float], ys: list[float], margin: float, end: int | None
) -> tuple[float | None, Literal["none matching", "beyond the last"] | None]:
    """The crossing on a falling curve whose first knot below -margin is number `end`."""
    if end is None:
        return None, "beyond the last"
    if end == 1:
        return None, "none matching"
    part = (ys[end - 1] + margin) / (ys[end - 1] - ys[end])
    return xs[end - 1] + part * (xs[end] - xs[end - 1]), None


def _band(
    xs: list[float], ys: list[float], errors: list[float], shared: float, margin: float, t: float
) -> tuple[float, float | None]:
    """Where the lower end of the pointwise band first falls below -margin, and where the upper end does for good.

    Between knots the error is a norm, so convex: the lower end is concave, the upper one convex, and each has one
    root between knots of different sides.
    """
    from scipy.optimize import brentq

    def edge(k: int, part: float, side: float) -> float:
        a, b = (1 - part) * errors[k], part * errors[k + 1]
        both = 2 * (1 - part) * part * shared**2 if k > 0 else 0.0  # knot 0 is dense less itself: no error
        return (1 - part) * ys[k] + part * ys[k + 1] + margin + side * t * math.sqrt(a * a + b * b + both)

    def root(k: int, side: float) -> float:
        return xs[k] + float(brentq(lambda part: edge(k, part, side), 0.0, 1.0)) * (xs[k + 1] - xs[k])

    knots = range(1, len(xs))
    first = next((k for k in knots if ys[k] + margin < t * errors[k]), None)
    last = max((k for k in knots if ys[k] + margin >= -t * errors[k]), default=0)
    low = xs[-1] if first is None else 0.0 if first == 1 else root(first - 1, -1.0)
    high = None if last == len(xs) - 1 else xs[1] if last == 0 else root(last, 1.0)
    return low, high


@dataclass(frozen=True)
class StreamVariance:
    """A variance with its degrees of freedom and the ends of its chi-square interval."""

    var: float
    df: int
    low: float
    high: float


def stream_variances(
    values: Sequence[float],
    mask: Sequence[int],
    init: Sequence[int],
    order: Sequence[int],
    cells: Sequence[Hashable] | None = None,
    level: float = 0.95,
) -> dict[str, StreamVariance | None]:
    """The variance that comes from each stream alone ("mask", "init", "order"), and from all together ("total").

    One entry per run: its result, its three seeds, and its cell (all one cell when left out). A stream's variance is
    that of runs of one cell which differ in this stream's seed only, pooled by degrees of freedom; "total" is that of
    runs whose three seeds are one number. Where the same seeds come back beside other seeds of the other streams (a
    crossed design), they are counted once in the degrees of freedom. None where no such runs are.
    The three alone add up to more than the total where streams interact.
    UsageError for lists of different lengths, or two runs of one cell with the same three seeds.
    """
    xs = _finite(values, "results")
    labels: Sequence[Hashable] = [None] * len(xs) if cells is None else cells
    if len({len(xs), len(mask), len(init), len(order), len(labels)}) > 1:
        raise UsageError(
            f"{len(xs)} results with {len(mask)} mask, {len(init)} init, {len(order)} order seeds and "
            f"{len(labels)} cells: give one of each per run"
        )
    runs = list(zip(labels, mask, init, order, xs, strict=True))
    if len({run[:4] for run in runs}) < len(runs):
        raise UsageError("two runs of one cell have the same three seeds: leave one out")
    alone: dict[str, list[Run]] = {
        "mask": [(c, (i, o), m, v) for c, m, i, o, v in runs],
        "init": [(c, (m, o), i, v) for c, m, i, o, v in runs],
        "order": [(c, (m, i), o, v) for c, m, i, o, v in runs],
        "total": [(c, (), m, v) for c, m, i, o, v in runs if m == i == o],
    }
    return {name: _variance_within(told, level) for name, told in alone.items()}


def _variance_within(runs: list[Run], level: float) -> StreamVariance | None:
    """The variance over seeds among runs that are equal in cell and in what is held fixed."""
    from scipy.special import gammaincinv

    alike: dict[Hashable, dict[Hashable, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for cell, fixed, seed, value in runs:
        alike[cell][fixed][seed] = value
    squares, known, independent = [], 0, 0
    for sets in alike.values():
        told = [by_seed for by_seed in sets.values() if len(by_seed) > 1]
        if told:
            many = sum(len(by_seed) - 1 for by_seed in told)
            known += many
            independent += min(many, len(set().union(*told)) - 1)
            squares += [(len(by_seed) - 1) * (group(list(by_seed.values())).var or 0.0) for by_seed in told]
    if not known:
        return None
    var = math.fsum(squares) / known
    low, high = (2 * float(gammaincinv(independent / 2, q)) for q in ((1 + level) / 2, (1 - level) / 2))
    return StreamVariance(var, independent, var * independent / low, var * independent / high)


class McNemar(NamedTuple):
    """Examples that only the first gets right (b), only the second (c), and the exact two-sided binomial p value."""

    b: int
    c: int
    p: float


def mcnemar(correct_a: ArrayLike, correct_b: ArrayLike) -> McNemar:
    """McNemar's exact test on two nets' outcomes (right or wrong) on the same examples, (n,) each; p = 1 if b + c = 0.

    UsageError for shapes that differ, no examples, or anything but 0 and 1.
    """
    from scipy.special import bdtr

    a, other = _outcomes(correct_a, correct_b)
    if a.ndim != 1:
        raise UsageError(f"outcomes of shape {a.shape}: McNemar's test is for two nets, (examples,) each")
    b, c = int((a > other).sum()), int((a < other).sum())
    return McNemar(b, c, min(1.0, 2 * float(bdtr(min(b, c), b + c, 0.5))) if b + c else 1.0)


def example_se(correct_a: ArrayLike, correct_b: ArrayLike) -> float | None:
    """The standard error of a difference of accuracies (fractions) that comes from the draw of test examples.

    Outcomes are (examples,) or (seeds, examples), of the same examples; seeds are averaged first, and their number
    may differ. It is the limit of a bootstrap over examples, the difference being a mean. None for one example.
    Raises what `mcnemar` raises.
    """
    a, b = _outcomes(correct_a, correct_b)
    return _mean_error(a.reshape(-1, a.shape[-1]).mean(axis=0) - b.reshape(-1, b.shape[-1]).mean(axis=0))


def _mean_error(values: Array) -> float | None:
    return None if len(values) < 2 else float(values.std(ddof=1) / math.sqrt(len(values)))


def _outcomes(correct_a: ArrayLike, correct_b: ArrayLike) -> tuple[Array, Array]:
    a, b = (np.asarray(x, dtype=np.float64) for x in (correct_a, correct_b))
    if min(a.ndim, b.ndim) < 1 or a.shape[-1:] != b.shape[-1:] or not a.size or not b.size:
        raise UsageError(f"outcomes of shapes {a.shape} and {b.shape}: the last axis must be the same examples")
    if not (np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all()):
        raise UsageError("outcomes must be 1 (right) or 0 (wrong) per example")
    return a, b


def _t(level: float, df: float) -> float:
    """How many standard errors a two-sided interval of this level reaches on either side."""
    from scipy.special import ndtri, stdtrit

    if not 0 < level < 1:
        raise UsageError(f"level {level:g} is not between 0 and 1: 0.95 is usual")
    q = (1 - level) / 2
    return -float(ndtri(q) if math.isinf(df) else stdtrit(df, q))


def _finite(values: Iterable[Any], what: str) -> list[float]:
    xs = [float(v) for v in values]
    if bad := [x for x in xs if not abs(x) < 1e100]:  # beyond it squares overflow
        raise UsageError(f"{len(bad)} of {len(xs)} {what} are no usable numbers ({bad[0]}): leave them out")
    return xs


def _combined(terms: Iterable[float]) -> float:
    """Their sum; 0 where only rounding of weights like 1/18 is left: without spread it would be a sure difference."""
    xs = list(terms)
    total = math.fsum(xs)
    return 0.0 if abs(total) <= 1e-13 * math.fsum(map(abs, xs)) else total


def _weigh(groups: Sequence[object], weights: Sequence[float]) -> None:
    if len(groups) != len(weights):
        raise UsageError(f"{len(groups)} groups with {len(weights)} weights: give one weight per group")
    _finite(weights, "weights")
