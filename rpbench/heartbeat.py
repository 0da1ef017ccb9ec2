"""A sign of life in a cell's folder: who works on it, since when, how far. Seen from every machine that sees the store.

Kernel locks keep two processes from one cell; they tell other machines nothing.
"""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rpbench.files import write_json

NAME = "alive.json"
EVERY = 15.0  # seconds between signs
SILENT = 90.0  # seconds without one, after which nobody is believed to work on a cell


class Sign(BaseModel):
    """The last sign of life: `done` is the part of the training that is done, times are seconds since 1970.

    `cell` says what was asked: the folder of an unfinished cell tells nothing else. `stopped` after an orderly end
    without a record, as at a signal.
    """

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    host: str
    pid: int
    since: float
    time: float
    done: Annotated[float, Field(ge=0, le=1)]
    cell: dict[str, Any]
    stopped: bool = False

    @property
    def word(self) -> Literal["running", "stopped", "stale"]:
        if self.stopped:
            return "stopped"
        if self.host == platform.node() and not _lives(self.pid):
            return "stale"
        return "running" if abs(time.time() - self.time) < SILENT else "stale"


def _lives(pid: int) -> bool:
    """Whether a process of this machine lives (one of somebody else's does, too; one that nobody waited for not)."""
    try:
        os.kill(pid, 0)
        with contextlib.suppress(OSError):  # Linux only
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


@contextlib.contextmanager
def alive(folder: Path, cell: dict[str, Any], done: Callable[[], float]) -> Iterator[None]:
    """Give signs of life while the block runs. A folder that cannot be written to ends no training."""
    over, since = threading.Event(), time.time()

    def sign(stopped: bool = False) -> None:
        told = Sign(host=platform.node(), pid=os.getpid(), since=since, time=time.time(), done=done(), cell=cell,
                    stopped=stopped)  # fmt: skip
        with contextlib.suppress(OSError):
            write_json(folder / NAME, told.model_dump())

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
        if (folder / "record.json").is_file():
            with contextlib.suppress(OSError):
                (folder / NAME).unlink(missing_ok=True)
        else:
            sign(stopped=True)


def signs(store: Path) -> Iterator[tuple[str, Sign]]:
    """(run id, last sign of life) of every cell of a store that is unfinished, or being worked on again."""
    for path in sorted(store.glob(f"*/{NAME}")):
        if sign := read_sign(path.parent):
            yield path.parent.name, sign


def read_sign(folder: Path) -> Sign | None:
    """The last sign of life in a cell's folder; None where there is none that can be read."""
    try:
        return Sign.model_validate_json((folder / NAME).read_text())
    except (OSError, UnicodeDecodeError, ValidationError):
        return None
