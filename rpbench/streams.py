"""Counter-based random streams: the same numbers on every device, machine, process count and library release.

NumPy promises the raw 64-bit stream of its bit generators, but not what its distributions make of it, and torch
promises neither: so everything here is arithmetic on raw Philox draws. A stream's key is a hash of what it is for.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Raw = NDArray[np.uint64]


@dataclass(frozen=True)
class Seeds:
    """The seeds of a run: its own, and those of its three streams (equal to it unless set apart)."""

    run: int
    init: int
    mask: int
    order: int


def key(*parts: object) -> int:
    """A 128-bit Philox key from what the stream is for, e.g. key("mask", seed, layer index)."""
    text = "rpbench/1|" + "|".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")


def torch_seed(*parts: object) -> int:
    """A 63-bit seed for torch's own generators (initial weights, dropout)."""
    return key("torch", *parts) & (2**63 - 1)


def raw(stream: int, n: int) -> Raw:
    """The first n raw 64-bit draws of a stream, shape (n,)."""
    return np.random.Philox(key=stream).random_raw(n)


def uniform(stream: int, n: int) -> NDArray[np.float64]:
    """n numbers in [0, 1) with 53 random bits each."""
    return np.asarray((raw(stream, n) >> np.uint64(11)) * 2.0**-53, dtype=np.float64)


def integers(stream: int, n: int, high: int) -> NDArray[np.int64]:
    """n integers in [0, high); the bias of the multiply-shift is below high / 2**32."""
    return (((raw(stream, n) >> np.uint64(32)) * np.uint64(high)) >> np.uint64(32)).astype(np.int64)


def normal(stream: int, n: int) -> NDArray[np.float64]:
    """n standard normal numbers (inverse CDF; equal everywhere to about 1e-15)."""
    from scipy.special import ndtri

    return np.asarray(ndtri((raw(stream, n) >> np.uint64(11)) * 2.0**-53 + 2.0**-54))


def permutation(stream: int, n: int) -> NDArray[np.int64]:
    """A random order of 0..n-1: the ranks of n raw draws."""
    return np.argsort(raw(stream, n), kind="stable")
