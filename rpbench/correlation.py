"""Correlation within groups, with a permutation p value: does more of x go with more of y, all else being equal?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import permutations
from typing import NamedTuple

import numpy as np

from rpbench import streams
from rpbench.errors import UsageError

LARGEST = 7  # points of a group: 7! orders are counted through
EXACT = 1_000_000  # orders of all groups that are counted through; beyond that they are drawn
DRAWS = 100_000


class Correlation(NamedTuple):
    """Pearson's r of what is left of x and y once each group's means are taken off, and one-sided p values.

    `above` is the probability, under no relation, of an r at least as high, `below` of one at least as low; `orders`
    how many orders they were counted from (`exact`) or drawn. `agree` of `groups` have a positive slope of their own.
    """

    r: float
    above: float
    below: float
    groups: int
    agree: int
    orders: int
    exact: bool


def within(groups: Sequence[Sequence[tuple[float, float]]]) -> Correlation | None:
    """The correlation of (x, y) within groups; groups of one point tell nothing. None where no order differs.

    Under no relation every order of a group's y is equally likely, whatever its distribution: all of them are counted
    through (a stratified permutation test), so p is exact and at least 1 / orders. Differences between groups, which
    may have causes of their own, play no part. UsageError for groups of more than 7 points or numbers that are none.
    """
    centred = [(_centred(x for x, _ in g), _centred(y for _, y in g)) for g in groups if len(g) > 1]
    if bad := [len(x) for x, _ in centred if len(x) > LARGEST]:
        raise UsageError(f"a group of {bad[0]} points: at most {LARGEST} can be counted through")
    size = math.sqrt(math.fsum(v * v for x, _ in centred for v in x) * math.fsum(v * v for _, y in centred for v in y))
    if not math.isfinite(size):
        raise UsageError("what is correlated has values that are no finite numbers: leave them out")
    if size == 0:
        return None
    own = [math.fsum(a * b for a, b in zip(x, y, strict=True)) / size for x, y in centred]
    r = math.fsum(own)
    every = [np.array([math.fsum(a * b for a, b in zip(x, o, strict=True)) / size for o in permutations(y)])
             for x, y in centred]  # fmt: skip
    orders = math.prod(len(e) for e in every)
    exact = orders <= EXACT
    total = np.zeros(1 if exact else DRAWS)
    for i, e in enumerate(every):
        if exact:
            total = np.add.outer(total, e).ravel()
        else:
            total = total + e[streams.integers(streams.key("correlation", i), DRAWS, len(e))]
    near = 1e-9  # sums of the same numbers in another order are the same r
    extra = 0 if exact else 1  # the order that was seen is one of those that are drawn
    p = [(extra + int(np.count_nonzero(hit))) / (extra + len(total)) for hit in (total >= r - near, total <= r + near)]
    return Correlation(r, p[0], p[1], len(own), sum(o > 0 for o in own), orders if exact else DRAWS, exact)


def _centred(values: Iterable[float]) -> list[float]:
    xs = list(values)
    mean = math.fsum(xs) / len(xs)
    return [x - mean for x in xs]
