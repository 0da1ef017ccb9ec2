"""What can go wrong, by who can mend it.

RpbenchError
├── UsageError            what was asked cannot be done as asked; nothing was written (exit code 2)
│   ├── UnknownName       no such task, model, scheme, ...: the message lists what exists
│   ├── BadDefinition     a TOML file or a --set key is wrong; every fault is listed
│   ├── DataError         images are missing, unreadable, or not what the image set says
│   ├── StoreError        the store or a checkpoint cannot be used
│   ├── BundleError       a bundle that is not read: `fault` is the kind in a word, the message names the file in it
│   ├── HubError          the Hugging Face hub cannot be reached, or does not give or take a leaderboard
│   └── ModelError        a net that cannot be planned or does not fit what it is given
├── SchemeError           a scheme or sampler broke its contract (off budget, NaN, unknown layers)
│   └── ScoreError        its scores rank nothing: not finite, or all equal
├── InfeasibleBudget      the scheme cannot meet this budget; the message names the densities that it can meet
├── MaskError             a pruned weight is not zero, or two processes disagree on a mask
└── Interrupted           a signal asked a run to stop, and it has stopped (exit code 128 + its number)
"""

from __future__ import annotations

import difflib
import math
import os
import signal
from collections.abc import Iterable


def sentence(text: str, most: int = 2000) -> str:
    """A text as one line of at most `most` characters without control characters, which could move a terminal's cursor
    or paint: parts of an error may be a stranger's."""
    line = " ".join(text.split())
    line = line if len(line) <= most else f"{line[: most - 3]}..."
    return "".join(c if c.isprintable() else "?" for c in line)


class RpbenchError(Exception):
    """Base of everything that rpbench raises on purpose; its text is one sentence for a person."""


class UsageError(RpbenchError):
    """What was asked cannot be done as asked."""


class UnknownName(UsageError):
    """A name that is on no shelf."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name.lower(), names, n=9, cutoff=0.5)
        nearest = max(near, key=lambda other: _likeness(name.lower(), other), default=None)
        guess = f": did you mean '{nearest}'?" if nearest else ";"
        super().__init__(f"no {kind} '{name}'{guess} there is {', '.join(names)}")
        self._parts = (kind, name, tuple(names))

    def __reduce__(self) -> tuple[type[UnknownName], tuple[str, str, tuple[str, ...]]]:
        return type(self), self._parts


class BadDefinition(UsageError):
    """A definition (or an override of one) with faults, all of them listed."""


class DataError(UsageError):
    """Images that are missing, unreadable or not what their set declares."""


class MissingData(DataError):
    """An image set that is nowhere on this machine."""


class StoreError(UsageError):
    """A store, record or checkpoint that cannot be used."""


class BundleError(UsageError):
    """A bundle, or a file in one, that is not read. `fault`: missing, archive, path, grammar, link, device, duplicate,
    overlap, encrypted, compression, bomb, size, crc, json, text, npz, pickle, foreign (something else lies there)."""

    def __init__(self, fault: str, text: str) -> None:
        self.fault = fault
        super().__init__(text)

    def __reduce__(self) -> tuple[type[BundleError], tuple[str, str]]:
        return type(self), (self.fault, str(self))


class HubError(UsageError):
    """A leaderboard that the Hugging Face hub does not give or take."""


class ModelError(UsageError):
    """A net that cannot be planned, or weights that do not fit it."""


class SchemeError(RpbenchError):
    """A scheme or sampler that broke its contract."""


class ScoreError(SchemeError):
    """Scores that rank nothing."""


class InfeasibleBudget(RpbenchError):
    """A density that the scheme cannot reach on this net; `least` and `most` bound what it can."""

    def __init__(self, density: float, least: float, most: float = 1.0, why: str = "") -> None:
        self.density, self.least, self.most, self.why = density, least, most, why
        # the printed bounds must themselves work: round inwards
        low, high = _round_up(least), _round_down(most)
        because = f" ({why})" if why else ""
        super().__init__(
            f"density {density:g} cannot be met{because}: the least density that works is {low:g}"
            if most >= 1.0
            else f"density {density:g} cannot be met{because}: densities from {low:g} to {high:g} work"
        )

    def __reduce__(self) -> tuple[type[InfeasibleBudget], tuple[float, float, float, str]]:
        return type(self), (self.density, self.least, self.most, self.why)


class MaskError(RpbenchError):
    """A pruned weight that is not zero, or masks that differ between processes."""


def _likeness(a: str, b: str) -> tuple[float, int]:
    """difflib's ratio; among equals the longer common beginning (resnet21 is nearer to resnet20 than to resnet32)."""
    return round(difflib.SequenceMatcher(None, a, b).ratio(), 3), len(os.path.commonprefix([a, b]))


def _round_up(x: float) -> float:
    return min(1.0, math.ceil(x * 1e6) / 1e6)


def _round_down(x: float) -> float:
    return math.floor(x * 1e6) / 1e6


class Interrupted(RpbenchError):
    """A signal asked the run to stop; everything up to here is in the checkpoint."""

    def __init__(self, number: int, text: str = "") -> None:
        self.number = number
        super().__init__(text or f"stopped by {signal.Signals(number).name}; the same command goes on from here")
