"""A sign of life in a cell's folder: who works on it, since when, how far. Seen from every machine that sees the store.

Kernel locks keep two processes from one cell; they tell other machines nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rpbench.files import write_json

NAME = "alive.json"
EVERY = 15.0  # seconds between signs
SILENT = 90.0  # seconds without one, after which nobody is believed to work on a cell


@dataclass(frozen=True)
class Sign:
    """The last sign of life: `done` is the part of the training that is done, `time` in seconds since 1970."""

    host: str
    pid: int
    since: float
    time: float
    done: float

    @property
    def fresh(self) -> bool:
        return abs(time.time() - self.time) < SILENT


@contextlib.contextmanager
def alive(folder: Path, done: Callable[[], float]) -> Iterator[None]:
    """Give signs of life while the block runs. A folder that cannot be written to ends no training."""
    over, since = threading.Event(), time.time()

    def sign() -> None:
        values = {"host": platform.node(), "pid": os.getpid(), "since": since, "time": time.time(), "done": done()}
        with contextlib.suppress(OSError):
            write_json(folder / NAME, values)

    def beat() -> None:
        while not over.wait(EVERY):
            sign()

    sign()
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with contextlib.suppress(OSError):
            (folder / NAME).unlink(missing_ok=True)


def last_sign(folder: Path) -> Sign | None:
    """The last sign of life in a cell's folder; None where there is none that can be read."""
    try:
        found = json.loads((folder / NAME).read_text())
        return Sign(str(found["host"]), *(t(found[k]) for t, k in _NUMBERS))  # type: ignore[arg-type]
    except (OSError, ValueError, KeyError, TypeError):
        return None


_NUMBERS: tuple[tuple[type[int] | type[float], str], ...] = (
    (int, "pid"), (float, "since"), (float, "time"), (float, "done"),
)  # fmt: skip
