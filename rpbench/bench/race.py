"""Loops timed against each other: interleaved rounds, a ratio per round, and a word where the machine is too noisy."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Turn = Callable[[float], float]  # run for about so many seconds; images per second
SETTLE = 0.2  # seconds between turns: workers of one loop finish what they have begun
NOISE = 0.1  # the reference runs twice in every round: its two rates differ by less in half of the rounds
DRIFT = 1.6  # fastest over slowest turn of the reference


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of several rounds."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def as_json(self) -> dict[str, float]:
        return {"median": self.median, "min": self.min, "max": self.max}


@dataclass
class Race:
    """Images per second of every mode in every round; the first mode is the reference, and runs twice a round."""

    reference: str
    rates: dict[str, list[float]] = field(default_factory=dict)
    again: list[float] = field(default_factory=list)

    @property
    def noise(self) -> float:
        """The median difference between two turns of the reference in one round, as a fraction."""
        return statistics.median(abs(a / b - 1) for a, b in zip(self.rates[self.reference], self.again, strict=True))

    @property
    def drift(self) -> float:
        """The reference's fastest turn over its slowest."""
        everything = self.rates[self.reference] + self.again
        return max(everything) / min(everything)

    @property
    def too_noisy(self) -> str | None:
        """Why no ratio can be given, where that is so."""
        if self.noise > NOISE:
            return f"the same loop differs by {self.noise:.0%} between two turns (at most {NOISE:.0%})"
        if self.drift > DRIFT:
            return f"the same loop was {self.drift:.1f} times as fast in one turn as in another (at most {DRIFT})"
        return None

    def ratios(self) -> dict[str, Spread]:
        """How many times as fast as the reference, round by round; empty where the machine is too noisy."""
        if self.too_noisy:
            return {}
        base = [(a + b) / 2 for a, b in zip(self.rates[self.reference], self.again, strict=True)]
        return {
            name: Spread.of([rate / b for rate, b in zip(rates, base, strict=True)])
            for name, rates in self.rates.items()
            if name != self.reference
        }

    def as_json(self) -> dict[str, Any]:
        return {
            "reference": self.reference,
            "images_per_s": {name: Spread.of(rates).as_json() for name, rates in self.rates.items()},
            "ratios": {name: spread.as_json() for name, spread in self.ratios().items()},
            "noise": self.noise,
            "too_noisy": self.too_noisy,
        }


def race(turns: Mapping[str, Turn], rounds: int, seconds: float, say: Callable[[str], None]) -> Race:
    """Every mode in turn, `rounds` times, after a warm-up; the first is the reference."""
    first, *others = turns
    found = Race(first, {name: [] for name in turns})
    for i, name in enumerate(turns):
        say(f"warm-up {i + 1}/{len(turns)}: {name}")
        turns[name](seconds / 2)
    for number in range(rounds):
        # forwards and backwards, so that a drift of the machine meets all modes alike
        order = others if number % 2 == 0 else others[::-1]
        say(f"round {number + 1}/{rounds}")
        for name in [first, *order]:
            found.rates[name].append(_settled(turns[name], seconds))
        found.again.append(_settled(turns[first], seconds))
    return found


def _settled(turn: Turn, seconds: float) -> float:
    time.sleep(SETTLE)
    return turn(seconds)


def repeated(step: Callable[[], int], finish: Callable[[], None] = lambda: None, lead: int = 0) -> Turn:
    """A turn made of steps that return how many images they did; `finish` waits for a device. The first `lead` steps
    are not timed: their images were loaded while others had their turn."""

    def turn(seconds: float) -> float:
        for _ in range(lead):
            step()
        finish()
        images, start = 0, time.perf_counter()
        while True:
            images += step()
            if time.perf_counter() - start >= seconds:
                finish()
                return images / (time.perf_counter() - start)

    return turn


def stepping(steps: Iterator[int], finish: Callable[[], None] = lambda: None, lead: int = 0) -> Turn:
    """A turn made of an endless iterator over the images of each step."""
    return repeated(lambda: next(steps), finish, lead)


def machine_facts() -> dict[str, Any]:
    """What a timing depends on."""
    import platform
    from importlib.metadata import version

    import torch

    from rpbench.machine import processor

    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": [round(x, 2) for x in os.getloadavg()],
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts
