"""What a store remembers of the jobs that work for it, in `<store>/.slurm`: a folder for each job array.

<store>/.slurm/<array>/cells.json       the cells of each job, written before anything is submitted
                       ended-3.jsonl    a line for each cell of job 3 that has ended
                       ...              submitit's own: the pickled jobs and their logs
                lock                    held by whoever is looking for jobs, or submitting some

The array's name is also the name of its jobs in SLURM, so that a note needs no number from there: a command that is
killed at any moment leaves either no jobs, or jobs that the next command finds.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rpbench.errors import StoreError
from rpbench.files import write_json


@dataclass(frozen=True)
class Job:
    """A job of an array: a few cells that are trained at once."""

    array: Path
    number: int
    cells: tuple[str, ...]  # their names in the store, were their images those of the definition

    @property
    def ended(self) -> Path:
        return self.array / f"ended-{self.number}.jsonl"

    @property
    def key(self) -> tuple[str, int]:
        return self.array.name, self.number


@dataclass(frozen=True)
class Ended:
    """How a cell of a job ended: with a record in the folder `run_id`, or refused before there was one."""

    cell: str
    run_id: str
    found: bool = False
    refused: str = ""


def folder_of(store: Path) -> Path:
    """The folder of a store's job arrays, made if need be."""
    folder = store.resolve() / ".slurm"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"store '{store}' cannot be written: {error.strerror}") from None
    return folder


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Nobody else looks for jobs or submits any; waits for those who do."""
    import fcntl

    with open(folder / "lock", "a") as handle:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX)
        except OSError as error:
            raise StoreError(f"store '{folder.parent}' is on a file system without locks: {error}") from None
        yield


def new_array(folder: Path, cells: Sequence[Sequence[str]]) -> list[Job]:
    """Note an array of one job for each group of cells."""
    array = folder / f"rpbench-{uuid.uuid4().hex[:10]}"
    array.mkdir()
    write_json(array / "cells.json", [list(group) for group in cells])
    return [Job(array, number, tuple(group)) for number, group in enumerate(cells)]


def all_jobs(folder: Path) -> list[Job]:
    """Every job that was ever noted, of the newest array first; notes that cannot be read are passed over."""
    found = []
    notes = sorted(folder.glob("rpbench-*/cells.json"), key=os.path.getmtime, reverse=True)
    for note in notes:
        with contextlib.suppress(OSError, ValueError, TypeError):
            groups = json.loads(note.read_text())
            found += [Job(note.parent, number, tuple(map(str, group))) for number, group in enumerate(groups)]
    return found


def tell(job: Job, ended: Ended) -> None:
    """Add a line on a cell that has ended."""
    with open(job.ended, "a") as file:
        file.write("\n" + json.dumps(vars(ended)) + "\n")  # what is before may be half a line, of a job that was killed
        file.flush()
        os.fsync(file.fileno())


def told(job: Job) -> dict[str, Ended]:
    """The cells of a job that have ended, by name. Lines that are not whole are passed over."""
    found: dict[str, Ended] = {}
    try:
        lines = job.ended.read_text().splitlines()
    except FileNotFoundError:
        return found
    for line in lines:
        with contextlib.suppress(ValueError, TypeError):
            ended = Ended(**json.loads(line))
            found.setdefault(ended.cell, ended)  # a job that is requeued finds what it had finished: the first counts
    return found
