"""The statistics of a board against scipy, brute force, hand-worked cases and simulation."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression

from rpbench import stats
from rpbench.errors import UsageError
from rpbench.stats import Estimate, Group, Pooled, group

Array = NDArray[np.float64]
SD = 0.2  # points: the seed spread of a ResNet on CIFAR-10


def rng(key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=key))


def groups_of(values: Array) -> list[Group]:
    """(groups, seeds) -> groups."""
    return [group(row) for row in values.tolist()]


# --- groups, pooling


def test_a_group_is_mean_variance_and_number() -> None:
    assert group([1.0, 2.0, 6.0]) == Group(3.0, 7.0, 3)
    assert group([5.0]) == Group(5.0, None, 1)
    assert group([0.1] * 6) == Group(0.1, 0.0, 6)  # exactly, though 6 * 0.1 / 6 is not 0.1 in floats
    values = rng(1).standard_normal(50).tolist()
    assert group(values) == group(values[::-1])
    assert group(values).var == pytest.approx(np.var(values, ddof=1), rel=1e-14)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e200])
def test_numbers_that_are_none_are_refused(bad: float) -> None:
    calls: list[Callable[[], object]] = [
        lambda: group([1.0, bad]),
        lambda: stats.t_interval([1.0, bad]),
        lambda: stats.contrast([Group(0, 1, 2)], [bad], None),
        lambda: stats.paired_contrast([[1.0, bad]], [1.0]),
        lambda: stats.holm([0.1, bad]),
        lambda: stats.seeds_needed(bad, 1.0, 1),
        lambda: stats.crossing([0.5], [bad], [0.1]),
        lambda: stats.stream_variances([bad], [0], [0], [0]),
    ]
    for call in calls:
        with pytest.raises(UsageError, match="no usable numbers"):
            call()


def test_empty_input() -> None:
    with pytest.raises(UsageError, match="at least one"):
        group([])
    with pytest.raises(UsageError, match="at least one"):
        stats.t_interval([])
    with pytest.raises(UsageError, match="one of each per point"):
        stats.crossing([], [], [])
    with pytest.raises(UsageError, match="last axis"):
        stats.mcnemar([], [])
    assert stats.pool([]) is None
    assert stats.holm([]) == []
    assert stats.ranks(0, {}) == []
    assert stats.contrast([], [], None) == Estimate(0.0, 0.0, math.inf)
    assert set(stats.stream_variances([], [], [], []).values()) == {None}


def test_pooling_weighs_by_degrees_of_freedom() -> None:
    pooled = stats.pool([Group(0, 4.0, 3), Group(9, 1.0, 2), Group(5, None, 1)])
    assert pooled is not None
    assert (pooled.var, pooled.df) == (3.0, 3)
    assert stats.pool([Group(5, None, 1)]) is None
    assert stats.pool([Group(5, 2.0, 4), Group(5, None, 1)]) == Pooled(2.0, 3, None, True)
    assert stats.pool([Group(5, 0.0, 4), Group(1, 0.0, 2)]) == Pooled(0.0, 4, None, True)


def test_the_check_of_two_groups_is_the_f_test() -> None:
    """With two groups of equal size the statistic is a function of the larger variance over the smaller one."""
    for ratio in (1.0, 3.0, 8.0, 30.0):
        pooled = stats.pool([Group(0, 1.0, 5), Group(0, ratio, 5)])
        assert pooled is not None
        assert pooled.p == pytest.approx(min(1.0, 2 * scipy.stats.f.sf(ratio, 4, 4)), abs=0.012)


def test_the_check_does_not_depend_on_unit_or_order() -> None:
    values = rng(2).standard_normal((30, 3)) * np.linspace(1, 2, 30)[:, None]
    told = {stats.pool(groups_of(v)).p for v in (values, values[::-1], values * 2**20, values / 2**20)}  # type: ignore[union-attr]
    assert len(told) == 1


@pytest.mark.parametrize(("groups", "n"), [(2, 3), (20, 3), (200, 3), (52, 5)])
def test_the_check_has_its_size(groups: int, n: int) -> None:
    variances = rng(3).chisquare(n - 1, (1000, groups)) / (n - 1)
    ps = np.array([stats.pool([Group(0, v, n) for v in row]).p for row in variances.tolist()])  # type: ignore[union-attr]
    for level in (0.01, 0.05, 0.2):
        assert abs((ps <= level).mean() - level) < 3 * math.sqrt(level * (1 - level) / len(ps)) + 0.004


def test_the_check_stands_rounded_results() -> None:
    """Accuracies come in steps of one image: 0.01 points of 10,000, half a seed spread or more on small sets."""
    for step in (0.05, 0.5, 1.0):
        noise = rng(4).standard_normal((400, 100, 3)) + rng(5).random((400, 100, 1))
        rounded = np.round(noise / step) * step
        failed = [not stats.pool(groups_of(board)).homogeneous for board in rounded]  # type: ignore[union-attr]
        assert np.mean(failed) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


def test_the_check_finds_spreads_that_differ() -> None:
    sd = np.repeat([1.0, 3.0], 36)[:, None]
    found = [not stats.pool(groups_of(b * sd)).homogeneous for b in rng(6).standard_normal((100, 72, 3))]  # type: ignore[union-attr]
    assert np.mean(found) > 0.95


# --- contrasts


@pytest.mark.parametrize("sizes", [(3, 3), (2, 7), (10, 4)])
def test_a_contrast_of_two_groups_is_the_t_test(sizes: tuple[int, int]) -> None:
    generator = rng(7)
    a, b = (generator.normal(i, 1 + i, n).tolist() for i, n in enumerate(sizes))
    both = [group(a), group(b)]
    for equal in (True, False):
        told = scipy.stats.ttest_ind(a, b, equal_var=equal)
        pooled = stats.pool(both)
        assert pooled is not None
        mine = stats.contrast(both, [1, -1], Pooled(pooled.var, pooled.df, None, True) if equal else None)
        assert mine.p == pytest.approx(told.pvalue, rel=1e-10)
        assert mine.df == pytest.approx(told.df, rel=1e-12)
        assert mine.interval(0.9) == pytest.approx(tuple(told.confidence_interval(0.9)), rel=1e-10)


def test_a_contrast_of_equal_groups_is_the_anova_contrast() -> None:
    """Least squares with one column per group gives the same standard error."""
    y = rng(8).normal(size=(4, 3))
    design = np.kron(np.eye(4), np.ones((3, 1)))
    weights = np.array([0.5, 0.5, -0.25, -0.75])
    beta, rest, *_ = np.linalg.lstsq(design, y.ravel())
    se = math.sqrt(rest[0] / 8 * weights @ np.linalg.inv(design.T @ design) @ weights)
    pooled = stats.pool(groups_of(y))
    assert pooled is not None
    mine = stats.contrast(groups_of(y), weights.tolist(), Pooled(pooled.var, pooled.df, None, True))
    assert (mine.value, mine.se, mine.df) == (pytest.approx(weights @ beta), pytest.approx(se), 8)


def test_welch_satterthwaite_by_hand() -> None:
    told = stats.contrast([Group(1, 3.0, 3), Group(2, 8.0, 2)], [1.0, 0.5], None)
    assert told.value == 2.0
    assert told.se == pytest.approx(math.sqrt(1 + 1))
    assert told.df == pytest.approx(2**2 / (1 / 2 + 1 / 1))


def test_a_single_value_takes_the_pooled_variance() -> None:
    groups = [Group(5.0, None, 1), Group(4.0, 0.3, 3)]
    assert stats.contrast(groups, [1, -1], None) == Estimate(1.0, None, None)
    assert stats.contrast(groups, [1, -1], None).p is None
    assert stats.contrast(groups, [1, -1], None).interval() is None
    even = stats.contrast(groups, [1, -1], Pooled(0.3, 20, 0.5, True))
    assert (even.se, even.df) == (pytest.approx(math.sqrt(0.3 * 4 / 3)), 20)
    uneven = stats.contrast(groups, [1, -1], Pooled(0.5, 20, 0.001, False))
    assert uneven.se == pytest.approx(math.sqrt(0.5 + 0.1))
    assert uneven.df == pytest.approx(0.6**2 / (0.5**2 / 20 + 0.1**2 / 2))
    assert stats.contrast(groups, [0, 1], None).se is not None  # a weight of 0 asks nothing of its group


def test_no_spread_at_all() -> None:
    full, none = Group(100.0, 0.0, 3), Group(0.0, 0.0, 3)
    for pooled in (None, stats.pool([full, none])):
        apart = stats.contrast([full, none], [1, -1], pooled)
        assert (apart.value, apart.se, apart.p, apart.interval()) == (100.0, 0.0, 0.0, (100.0, 100.0))
        assert stats.contrast([full, full], [1, -1], pooled).p == 1.0
    # where other groups vary, seeds that agree are luck: the pooled variance stands in
    assert stats.contrast([full, none], [1, -1], Pooled(0.3, 8, 0.001, False)).se == pytest.approx(math.sqrt(0.2))


def test_rounded_weights_make_no_difference() -> None:
    flat = [Group(99.7, 0.0, 3)] * 24
    told = stats.contrast(flat, [-3 / 18] * 6 + [1 / 18] * 18, stats.pool(flat))
    assert (told.value, told.p) == (0.0, 1.0)
    told = stats.paired_contrast([[99.7] * 3] * 24, [-3 / 18] * 6 + [1 / 18] * 18)
    assert (told.value, told.p) == (0.0, 1.0)


def test_intervals_are_scipys() -> None:
    values = [3.1, 2.7, 3.9, 3.3]
    told = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.99)
    assert stats.t_interval(values, 0.99) == pytest.approx(tuple(told))
    assert stats.t_interval([3.1]) is None
    assert stats.t_interval([3.1, 3.1]) == (3.1, 3.1)
    assert Estimate(1.0, 2.0, math.inf).half() == pytest.approx(3.919928)
    with pytest.raises(UsageError, match="level 95"):
        stats.t_interval(values, 95)


def test_a_paired_contrast_is_the_paired_t_test() -> None:
    a, b = rng(9).normal(size=(2, 6))
    told = scipy.stats.ttest_rel(a, b)
    mine = stats.paired_contrast([a.tolist(), b.tolist()], [1, -1])
    assert (mine.p, mine.df) == (pytest.approx(told.pvalue), 5)
    assert stats.paired_contrast([[1.0], [3.0]], [1, -1]) == Estimate(-2.0, None, None)
    with pytest.raises(UsageError, match="3, 2 seeds|2, 3 seeds"):
        stats.paired_contrast([[1.0, 2.0, 3.0], [1.0, 2.0]], [1, -1])
    with pytest.raises(UsageError, match="one weight per group"):
        stats.paired_contrast([[1.0, 2.0]], [1, -1])


# --- families, ranks


@pytest.mark.parametrize(
    ("ps", "adjusted"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),  # 3 * 0.01; 2 * 0.03; 0.04 not below its predecessor
        ([0.01, 0.02, 0.03, 0.005], [0.03, 0.04, 0.04, 0.02]),
        ([0.5, 0.6], [1.0, 1.0]),
        ([0.02, 0.02], [0.04, 0.04]),
        ([0.0, 1.0], [0.0, 1.0]),
        ([0.7], [0.7]),
    ],
)
def test_holm_by_hand(ps: list[float], adjusted: list[float]) -> None:
    assert stats.holm(ps) == pytest.approx(adjusted)


def test_holm_is_the_closed_bonferroni_test() -> None:
    """Adjusted p = the largest Bonferroni p over all subsets that hold the hypothesis."""
    ps = rng(10).random(7).tolist()
    subsets = [s for k in range(1, 8) for s in itertools.combinations(range(7), k)]
    for i, mine in enumerate(stats.holm(ps)):
        assert mine == pytest.approx(max(min(1, len(s) * min(ps[j] for j in s)) for s in subsets if i in s))


def test_p_values_outside_their_range_are_refused() -> None:
    with pytest.raises(UsageError, match="1.5 is outside"):
        stats.holm([0.5, 1.5])


def all_pairs(scores: list[float], se: float | None = 0.1) -> dict[tuple[int, int], Estimate]:
    df = None if se is None else 60.0
    return {(i, j): Estimate(scores[i] - scores[j], se, df) for i, j in itertools.combinations(range(len(scores)), 2)}


def test_ranks_are_shared_where_nothing_separates() -> None:
    assert stats.ranks(3, all_pairs([3, 1, 2])) == [(1, 1, 1), (3, 3, 3), (2, 2, 2)]
    assert stats.ranks(3, all_pairs([2.0, 2.05, 1.0])) == [(1, 1, 2), (1, 1, 2), (3, 3, 3)]
    # a chain: neighbours tie, the ends do not
    assert stats.ranks(3, all_pairs([2.0, 1.8, 1.6])) == [(1, 1, 2), (1, 1, 3), (2, 2, 3)]
    assert stats.ranks(2, all_pairs([9, 1], se=None)) == [(1, 1, 2), (1, 1, 2)]
    assert stats.ranks(1, {}) == [(1, 1, 1)]
    assert stats.ranks(2, {(1, 0): Estimate(5.0, 0.1, 60.0)}) == [(2, 2, 2), (1, 1, 1)]
    assert stats.separated(all_pairs([3, 1, 1])) == {(0, 1): 1, (0, 2): 1, (1, 2): 0}


def test_a_pair_counts_once() -> None:
    one = Estimate(1.0, 0.1, 9)
    for wrong in ({(0, 0): one}, {(0, 2): one}, {(0, 1): one, (1, 0): one}, {(-1, 0): one}):
        with pytest.raises(UsageError, match="every pair of different rows once"):
            stats.ranks(2, wrong)


def test_holm_is_over_the_whole_family() -> None:
    e = Estimate(2.2, 1.0, 1e6)  # p = 0.028
    assert stats.separated({(0, 1): e}) == {(0, 1): 1}
    assert stats.separated({(0, 1): e, (0, 2): Estimate(0.1, 1.0, 1e6)}) == {(0, 1): 0, (0, 2): 0}
    assert stats.separated({(0, 1): e, (0, 2): Estimate(0.1, None, None)}) == {(0, 1): 1, (0, 2): 0}


@pytest.mark.parametrize(
    ("difference", "sd", "cells", "level", "power"),
    [(0.5, 0.2, 1, 0.05, 0.8), (0.3, 0.2, 18, 0.05 / 66, 0.8), (0.05, 0.2, 1, 0.05, 0.9), (1.0, 0.9, 3, 0.01, 0.95)],
)
def test_seeds_needed_is_the_least_number_with_the_power(
    difference: float, sd: float, cells: int, level: float, power: float
) -> None:
    def has(n: int) -> float:
        df, shift = 2 * cells * (n - 1), difference / (sd * math.sqrt(2 / (n * cells)))
        bar = scipy.stats.t.isf(level / 2, df)
        return scipy.stats.ncf.sf(bar**2, 1, df, shift**2)

    n = stats.seeds_needed(difference, sd, cells, level, power)
    assert has(n) >= power
    assert n == 2 or has(n - 1) < power
    assert n == stats.seeds_needed(-difference, sd, cells, level, power)


def test_seeds_needed_has_the_power_in_simulation() -> None:
    n = stats.seeds_needed(0.5, 0.2, 1)
    a, b = rng(11).normal(0, 0.2, (2, 20_000, n))
    for seeds, enough in ((n, True), (n - 1, False)):
        found = scipy.stats.ttest_ind(a[:, :seeds] + 0.5, b[:, :seeds], axis=1).pvalue <= 0.05
        assert (found.mean() >= 0.8 - 0.008) == enough


def test_seeds_needed_at_the_edges() -> None:
    assert stats.seeds_needed(0.5, 0.0, 1) == 2
    assert stats.seeds_needed(5.0, 0.1, 18) == 2
    assert stats.seeds_needed(0.3, 0.2, 1, rows=12) < stats.seeds_needed(0.3, 0.2, 1)
    assert stats.seeds_needed(1e-6, 0.2, 1) == pytest.approx(2 * (0.2e6 * (1.959964 + 0.841621)) ** 2, rel=1e-5)
    with pytest.raises(UsageError, match="must not be 0"):
        stats.seeds_needed(0.0, 0.2, 1)


# --- the largest matching sparsity

X = [0.5, 0.8, 0.9, 0.95, 0.98]


def test_a_crossing_by_hand() -> None:
    told = stats.crossing([0.5, 0.9], [-0.1, -0.9], [0.1, 0.1], 0.5)
    assert told.value == pytest.approx(0.7)
    assert told.censored is None
    # independent errors: at 0.7 the interpolated gap has a standard error of 0.1 / sqrt(2)
    root = lambda x, side: (  # noqa: E731
        -0.1 - 2 * (x - 0.5) + 0.5 + side * 1.959964 * 0.1 * math.hypot((0.9 - x) / 0.4, (x - 0.5) / 0.4)
    )
    assert told.low is not None
    assert told.high is not None
    assert root(told.low, -1) == pytest.approx(0, abs=1e-6)
    assert root(told.high, +1) == pytest.approx(0, abs=1e-6)
    assert 0.5 < told.low < 0.7 < told.high < 0.9


def test_dense_is_the_point_at_sparsity_0() -> None:
    told = stats.crossing([0.5, 0.9], [0.3, -1.0], [0.1, 0.1], 0.5)
    assert told.value == pytest.approx(0.7)  # from 0 at 0.5, not from +0.3: the curve falls from 0 on


def test_censored_crossings() -> None:
    beyond = stats.crossing(X, [0.0, 0.1, -0.1, 0.0, -0.2], [0.1] * 5, 0.5)
    assert (beyond.value, beyond.low, beyond.high, beyond.censored) == (None, 0.98, None, "beyond the last")
    unsure = stats.crossing(X, [0.0, 0.1, -0.1, 0.0, -0.4], [0.1] * 5, 0.5)
    assert (unsure.value, unsure.high, unsure.censored) == (None, None, "beyond the last")
    assert unsure.low is not None
    assert 0.95 < unsure.low < 0.98
    never = stats.crossing(X, [-2.0, -3.0, -4.0, -5.0, -6.0], [0.1] * 5, 0.5)
    assert (never.value, never.low, never.high, never.censored) == (None, 0.0, 0.5, "none matching")
    hardly = stats.crossing(X, [-0.6, -3.0, -4.0, -5.0, -6.0], [0.1] * 5, 0.5)
    assert (hardly.value, hardly.low, hardly.censored) == (None, 0.0, "none matching")
    assert hardly.high is not None
    assert 0.5 < hardly.high < 0.8


def test_one_noisy_point_does_not_end_the_match() -> None:
    """0.9 lies below the margin by chance; the points around it say that it matches."""
    dip = [0.0, -0.1, -0.6, -0.1, -3.0]
    told = stats.crossing(X, dip, [0.2] * 5, 0.5)
    assert told.value is not None
    assert 0.95 < told.value < 0.98
    assert told.low is not None
    assert told.low < 0.9  # but the interval knows that it might


def test_the_estimate_is_on_the_isotonic_fit() -> None:
    generator = rng(12)
    for _ in range(200):
        gaps = np.minimum(-0.8 * np.arange(5) + generator.normal(0, 0.5, 5), 3)
        ses = generator.uniform(0.1, 0.6, 5)
        model = IsotonicRegression(increasing=False, y_max=0.0).fit(X, gaps, sample_weight=1 / ses**2)
        fine = np.linspace(0, 0.98, 9801)
        curve = np.interp(fine, [0.0, *X], [0.0, *model.predict(X)])
        told = stats.crossing(X, gaps.tolist(), ses.tolist(), 0.5)
        if told.value is not None:
            assert told.value == pytest.approx(fine[curve >= -0.5].max(), abs=2e-4)
            assert told.low is not None
            assert told.low <= told.value <= (told.high or 1)
        else:
            matches = model.predict(X) >= -0.5
            assert matches.all() if told.censored == "beyond the last" else not matches[0]


def test_the_band_is_the_set_that_is_not_rejected() -> None:
    """Ends against a fine grid of the t statistic of the interpolated gap, its errors correlated through dense."""
    generator, shared, t = rng(13), 0.1, scipy.stats.t.isf(0.025, 24)
    fine = np.linspace(0, 0.98, 9801)
    weights = np.array([np.interp(fine, [0.0, *X], np.eye(6)[k]) for k in range(1, 6)]).T  # (grid, points)
    for _ in range(200):
        gaps, own = -0.7 * np.arange(5) + generator.normal(0, 0.3, 5), generator.uniform(0.05, 0.3, 5)
        ses = np.sqrt(own**2 + shared**2)
        cov = np.diag(own**2) + shared**2
        spread = np.sqrt(np.einsum("gi,ij,gj->g", weights, cov, weights))
        # below the first point dense itself is the other end: no shared error to halve
        middle = weights @ gaps
        told = stats.crossing(X, gaps.tolist(), ses.tolist(), 0.5, shared=shared, df=24)
        low, high = fine[middle + 0.5 < t * spread], fine[middle + 0.5 >= -t * spread]
        assert told.low is not None
        expected = 0.98 if not len(low) else 0.0 if low.min() < 0.5 else low.min()
        assert told.low == pytest.approx(min(expected, told.value or 1), abs=2e-4)
        if told.high is None:
            assert high.max() == pytest.approx(0.98)
        else:
            assert told.high == pytest.approx(max(high.max(), 0.5, told.value or 0), abs=2e-4)


def test_crossings_without_noise_or_without_knowledge_of_it() -> None:
    sure = stats.crossing([0.5, 0.9], [-0.1, -0.9], [0.0, 0.0], 0.5)
    assert sure.value == sure.low == sure.high == pytest.approx(0.7)
    unknown = stats.crossing([0.5, 0.9], [-0.1, -0.9], None, 0.5)
    assert (unknown.low, unknown.high, unknown.censored) == (None, None, None)
    assert unknown.value == pytest.approx(0.7)
    mixed = stats.crossing([0.5, 0.9], [-0.1, -0.9], [0.0, 0.1], 0.5)
    assert mixed.value == pytest.approx(0.7)
    exact = stats.crossing([0.5, 0.9], [-0.5, -0.9], [0.0, 0.0], 0.5)
    assert exact.value == 0.5


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: stats.crossing([0.5, 0.5], [0, 0], [1, 1]), "must ascend"),
        (lambda: stats.crossing([0.0, 0.5], [0, 0], [1, 1]), "from above 0"),
        (lambda: stats.crossing([0.5], [0, 0], [1, 1]), "1 sparsities, 2 gaps"),
        (lambda: stats.crossing([0.5], [0], [1], -0.5), "margin -0.5"),
        (lambda: stats.crossing([0.5], [0], [-1]), "least error -1"),
        (lambda: stats.crossing([0.5], [0], [1], shared=2), "shared error 2"),
    ],
)
def test_crossings_that_make_no_sense(call: Callable[[], object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        call()


# --- where luck comes from, examples


def star(seeds: int, cells: int) -> tuple[Array, Array]:
    """One run per seed, and runs that differ from seed 0's in one stream: (runs, 3) seeds, and cells (runs,)."""
    triples = [(s, s, s) for s in range(seeds)]
    triples += [tuple(s if k == stream else 0 for k in range(3)) for stream in range(3) for s in range(1, seeds)]  # type: ignore[misc]
    return np.tile(np.array(triples, dtype=float), (cells, 1)), np.repeat(np.arange(cells), len(triples))


def test_stream_variances_by_hand() -> None:
    told = stats.stream_variances(
        [1, 3, 5, 1.5, 2.0, 9.0],
        mask=[0, 1, 2, 0, 0, 1],
        init=[0, 0, 0, 1, 0, 1],
        order=[0, 0, 0, 0, 1, 1],
    )
    mask, init, order, total = (told[name] for name in ("mask", "init", "order", "total"))
    assert mask is not None
    assert init is not None
    assert order is not None
    assert total is not None
    assert (mask.var, mask.df) == (4.0, 2)
    assert (mask.low, mask.high) == (
        pytest.approx(8 / scipy.stats.chi2.ppf(0.975, 2)),
        pytest.approx(8 / scipy.stats.chi2.ppf(0.025, 2)),
    )
    assert (init.var, init.df) == (0.125, 1)
    assert (order.var, order.df) == (0.5, 1)
    assert (total.var, total.df) == (32.0, 1)


def test_streams_are_compared_within_a_cell_only() -> None:
    told = stats.stream_variances([1, 9, 2, 4], [0, 1, 0, 1], [0] * 4, [0] * 4, cells=["a", "b", "c", "c"])
    assert told["mask"] is not None
    assert (told["mask"].var, told["mask"].df) == (2.0, 1)
    assert told["init"] is told["order"] is told["total"] is None


def test_the_same_masks_beside_other_inits_count_once() -> None:
    told = stats.stream_variances([1, 3, 2, 6], [0, 1, 0, 1], [0, 0, 1, 1], [0] * 4)
    assert told["mask"] is not None
    assert (told["mask"].var, told["mask"].df) == (5.0, 1)
    again = stats.stream_variances([1, 3, 2, 6], [0, 1, 2, 3], [0, 0, 1, 1], [0] * 4)
    assert again["mask"] is not None
    assert again["mask"].df == 2


def test_runs_that_are_one_are_refused() -> None:
    with pytest.raises(UsageError, match="same three seeds"):
        stats.stream_variances([1, 2], [0, 0], [0, 0], [0, 0])
    with pytest.raises(UsageError, match="one of each per run"):
        stats.stream_variances([1, 2], [0, 0], [0], [0, 0])


def test_mcnemar_is_the_binomial_test() -> None:
    a, b = rng(14).random((2, 300)) < np.array([[0.9], [0.8]])
    told = stats.mcnemar(a, b)
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    assert told == (only_a, only_b, pytest.approx(scipy.stats.binomtest(only_a, only_a + only_b).pvalue))
    assert stats.mcnemar([1, 0, 1], [1, 0, 1]) == (0, 0, 1.0)
    assert stats.mcnemar([1, 1, 0, 0], [0, 0, 1, 1]) == (2, 2, 1.0)


def test_example_noise_is_the_bootstraps() -> None:
    generator = rng(15)
    a, b = (generator.random((3, 400)) < 0.9), (generator.random((2, 400)) < 0.85)
    said = stats.example_se(a, b)
    gap = a.mean(axis=0) - b.mean(axis=0)
    draws = gap[generator.integers(0, 400, (4000, 400))].mean(axis=1)
    assert said == pytest.approx(draws.std(), rel=0.05)
    assert stats.example_se([1], [0]) is None
    assert stats.example_se([1, 0], [1, 0]) == 0.0
    # one net: b + c discordant of n
    assert stats.example_se([1, 1, 0, 1], [0, 1, 0, 1]) == pytest.approx(math.sqrt((1 - 1 / 4) / 3 / 4))


def test_outcomes_are_of_the_same_examples() -> None:
    with pytest.raises(UsageError, match="same examples"):
        stats.mcnemar([1, 0], [1, 0, 1])
    with pytest.raises(UsageError, match="1 .right. or 0"):
        stats.mcnemar([0.5, 1.0], [1.0, 0.0])
    with pytest.raises(UsageError, match="1 .right. or 0"):
        stats.example_se([math.nan, 1.0], [1.0, 0.0])
    with pytest.raises(UsageError, match="for two nets"):
        stats.mcnemar([[1, 0]], [[1, 0]])


def test_importing_is_cheap() -> None:
    """scipy is imported when a number is asked for."""
    told = "import sys, rpbench.stats; print([m for m in ('scipy', 'torch', 'pandas') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stdout == "[]\n"


# --- simulation: what the numbers promise


def rate(hits: list[bool]) -> float:
    return sum(hits) / len(hits)


def slack(p: float, draws: int) -> float:
    """Three standard errors of a simulated rate."""
    return 3 * math.sqrt(p * (1 - p) / draws)


def holds(interval: tuple[float, float] | None, truth: float) -> bool:
    assert interval is not None
    return interval[0] <= truth <= interval[1]


def spreads(kind: str, schemes: int, cells: int) -> Array:
    """Seed standard deviations, (schemes, cells)."""
    one = np.ones((schemes, cells))
    return (
        SD
        * {
            "equal": one,
            "by cell, 10 times": one * np.geomspace(0.3, 3, cells),
            "by scheme, 10 times": one * np.geomspace(0.3, 3, schemes)[:, None],
            "one scheme, 2 times": one * np.where(np.arange(schemes) == 0, 2, 1)[:, None],
            "one scheme, 10 times": one * np.where(np.arange(schemes) == 0, 10, 1)[:, None],
            "half the schemes, 1.5 times": one * np.where(np.arange(schemes) < schemes // 2, 1.5, 1)[:, None],
            "every group its own": np.exp(rng(16).normal(0, 0.7, (schemes, cells))),
        }[kind]
    )


def board_differences(results: Array) -> dict[tuple[int, int], Estimate]:
    """Differences of board scores from results (schemes, cells, seeds)."""
    schemes, cells, _ = results.shape
    groups = [groups_of(row) for row in results]
    pooled = stats.pool(itertools.chain.from_iterable(groups))
    weights = [1 / cells] * cells + [-1 / cells] * cells
    return {
        (i, j): stats.contrast(groups[i] + groups[j], weights, pooled)
        for i, j in itertools.combinations(range(schemes), 2)
    }


def separations(kind: str, seeds: int, cells: int, boards: int, gap: float = 0.0, schemes: int = 12) -> list[list[int]]:
    """Per board: the sign of every pair, of which those of scheme 0 have a true gap."""
    generator, sd = rng(17), spreads(kind, schemes, cells)[:, :, None]
    shift = np.where(np.arange(schemes) == 0, gap, 0.0)[:, None, None]
    drawn = (generator.standard_normal((schemes, cells, seeds)) * sd + shift for _ in range(boards))
    return [list(stats.separated(board_differences(results)).values()) for results in drawn]


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_cell_intervals_cover(seeds: int) -> None:
    draws = rng(18).normal(94.0, SD, (6000, seeds)).tolist()
    assert 0.93 < rate([holds(stats.t_interval(xs), 94.0) for xs in draws]) < 0.97


def score_coverage(seeds: int, boards: int, *, robust: bool = False) -> float:
    """How often the interval of a row's score covers: 18 cells (3 densities of 6 models), one dense group a model."""
    generator, hits = rng(19), []
    for _ in range(boards):
        drawn = generator.normal(0, SD, (6 + 18 * 4, seeds))  # four rows share a board
        groups = groups_of(drawn)
        told = stats.contrast(groups[:24], [-3 / 18] * 6 + [1 / 18] * 18, None if robust else stats.pool(groups))
        hits.append(holds(told.interval(), 0.0))
    return rate(hits)


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_score_intervals_cover(seeds: int) -> None:
    assert 0.93 < score_coverage(seeds, 1500) < 0.97


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_paired_intervals_cover(seeds: int) -> None:
    """Seeds in common (correlation 0.8), spreads that differ: pairing does not care."""
    generator = rng(20)
    common = generator.normal(0, 0.4, (3000, 1, seeds))
    rows = common + generator.normal(0, SD, (3000, 4, seeds)) * np.array([1, 2, 1, 1])[:, None]
    weights = [0.5, 0.5, -0.5, -0.5]
    assert 0.93 < rate([holds(stats.paired_contrast(r, weights).interval(), 0.0) for r in rows.tolist()]) < 0.97


@pytest.mark.parametrize("kind", ["equal", "by cell, 10 times"])
def test_equal_schemes_are_seldom_separated(kind: str) -> None:
    boards = 400
    assert rate([any(signs) for signs in separations(kind, 3, 18, boards)]) <= 0.05 + slack(0.05, boards)


@pytest.mark.parametrize("kind", ["equal", "by cell, 10 times"])
def test_half_a_point_is_found(kind: str) -> None:
    """18 cells, 3 seeds, 12 schemes: scheme 0 is separated from each of the 11 others."""
    found = [all(s > 0 for s in signs[:11]) for signs in separations(kind, 3, 18, 60, gap=0.5)]
    assert rate(found) >= 0.95


@pytest.mark.parametrize("ratio", [10**0.5, 10])
@pytest.mark.parametrize("seeds", [3, 5])
def test_the_robust_contrast_holds_its_level(ratio: float, seeds: int) -> None:
    """One pair of cells whose variances (or spreads) differ 10 times."""
    generator, draws = rng(21), 4000
    a, b = generator.normal(0, ratio, (draws, seeds)).tolist(), generator.normal(0, 1, (draws, seeds)).tolist()
    ps = [stats.contrast([group(x), group(y)], [1, -1], None).p or 0.0 for x, y in zip(a, b, strict=True)]
    assert rate([p <= 0.05 for p in ps]) <= 0.065


CURVES = {
    "steep": [-0.02, -0.2, -0.6, -1.5, -4.0],
    "gentle": [-0.1, -0.25, -0.4, -0.6, -0.8],
    "at a point": [-0.05, -0.2, -0.5, -1.2, -3.0],
    "cliff": [0.0, 0.0, 0.0, 0.0, -5.0],
    "flat at the margin": [-0.3, -0.45, -0.5, -0.55, -0.8],
}


def crossings(truth: list[float], boards: int, seeds: int = 3) -> tuple[float, float, float]:
    """Rates: the interval covers the true crossing; "beyond the last"; and the mean of |error| of the estimates."""
    generator, df = rng(22), 12 * (seeds - 1)
    true = stats.crossing(X, truth, None)
    goal = true.value if true.value is not None else (1.0 if true.censored == "beyond the last" else 0.0)
    covered, beyond, errors = [], [], []
    for _ in range(boards):
        means, dense = generator.normal(truth, SD / math.sqrt(seeds)), generator.normal(0, SD / math.sqrt(seeds))
        sd = SD * math.sqrt(generator.chisquare(df) / df)
        told = stats.crossing(
            X, (means - dense).tolist(), [sd * math.sqrt(2 / seeds)] * 5, shared=sd / math.sqrt(seeds), df=df
        )
        assert told.low is not None
        covered.append(told.low <= goal <= (1.0 if told.high is None else told.high))
        beyond.append(told.censored == "beyond the last")
        errors += [abs(told.value - goal)] if told.value is not None else []
    return rate(covered), rate(beyond), float(np.mean(errors)) if errors else 0.0


@pytest.mark.parametrize("name", CURVES)
def test_crossings_are_covered(name: str) -> None:
    covered, _, error = crossings(CURVES[name], 800)
    assert covered >= 0.95 - slack(0.05, 800)
    assert error < 0.1


def test_a_scheme_that_equals_dense_passes() -> None:
    covered, beyond, _ = crossings([0.0] * 5, 800)
    assert beyond > 0.99
    assert covered > 0.96


def test_stream_variances_recover_what_was_put_in() -> None:
    """mask 0.3, init 0.2, order 0.1 points, 4 cells of 5 seeds."""
    generator, truth = rng(23), np.array([0.3, 0.2, 0.1])
    seeds, cells = star(5, 4)
    mask, init, order = seeds.astype(int).T.tolist()
    found, covered = [], []
    for _ in range(300):
        effects = generator.normal(0, 1, (4, 3, 5)) * truth[:, None]
        values = sum(effects[cells, k, seeds[:, k].astype(int)] for k in range(3))
        told = stats.stream_variances(np.asarray(values).tolist(), mask, init, order, cells.tolist())
        goal = [*(truth**2), float((truth**2).sum())]
        parts = [told[name] for name in ("mask", "init", "order", "total")]
        assert all(part is not None and part.df == 16 for part in parts)
        found.append([part.var for part in parts if part])
        covered += [part.low <= g <= part.high for part, g in zip(parts, goal, strict=True) if part]
    assert np.mean(found, axis=0) == pytest.approx([0.09, 0.04, 0.01, 0.14], rel=0.1)
    assert 0.93 < rate(covered) < 0.97


# The same with many repetitions.


@pytest.mark.slow
@pytest.mark.parametrize("cells", [4, 18])
@pytest.mark.parametrize(
    "kind",
    [
        "equal",
        "by cell, 10 times",
        "by scheme, 10 times",
        "one scheme, 2 times",
        "one scheme, 10 times",
        "half the schemes, 1.5 times",
        "every group its own",
    ],
)
def test_equal_schemes_are_seldom_separated_on_many_boards(kind: str, cells: int) -> None:
    boards = 3000
    assert rate([any(signs) for signs in separations(kind, 3, cells, boards)]) <= 0.05 + slack(0.05, boards)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_score_intervals_cover_on_many_boards(seeds: int) -> None:
    assert 0.94 < score_coverage(seeds, 10_000) < 0.96
    assert 0.94 < score_coverage(seeds, 10_000, robust=True) < 0.98


@pytest.mark.slow
@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_crossings_are_covered_on_many_boards(name: str, seeds: int) -> None:
    covered, _, _ = crossings(CURVES[name], 10_000, seeds)
    assert covered >= 0.95 - slack(0.05, 10_000)
