"""A store: a folder of cells, each a folder with a content-derived name, in which files appear whole or not at all.

<store>/<run id>/record.json             the result, once there is one
                 curve.jsonl             one line per epoch
                 checkpoint.safetensors  while the cell is unfinished
                 selected.safetensors    weights of the selected epoch; last.safetensors of the last one
                 masks.safetensors       bool masks
                 outputs/<epoch>/<set>.npz   what every metric was computed from, per example
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from rpbench.errors import StoreError, UnknownName
from rpbench.files import write_bytes, write_json, write_text
from rpbench.record import RunRecord

if TYPE_CHECKING:
    import pandas

FINISHED = ("ok", "diverged", "infeasible")
_HELD: set[Path] = set()  # folders that this process has locked: a kernel lock does not tell its cells apart


def default_store() -> Path:
    """RPBENCH_STORE, else ./runs."""
    return Path(os.environ.get("RPBENCH_STORE") or "runs")


class CellFolder:
    """One cell's folder."""

    def __init__(self, store: Path, run_id: str) -> None:
        self.folder = store / run_id
        self.run_id = run_id

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    def create(self) -> None:
        """Make the folder; StoreError where that cannot be."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise StoreError(f"store '{self.folder.parent}' cannot be written: {error.strerror}") from None

    def record(self) -> RunRecord | None:
        """The record, None where there is none yet; StoreError for one that cannot be read."""
        return read_record(self.folder / "record.json")

    def write_record(self, record: RunRecord) -> None:
        write_json(self.folder / "record.json", record.as_json())

    def write_lines(self, name: str, rows: list[dict[str, Any]]) -> None:
        """A file of JSON lines."""
        write_text(self.folder / name, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))

    def write_outputs(self, epoch: str, outputs: Mapping[str, Mapping[str, Any]]) -> None:
        """Per-example arrays, one compressed .npz per image set or attack."""
        import numpy as np

        folder = self.folder / "outputs" / epoch
        folder.mkdir(parents=True, exist_ok=True)
        for name, arrays in outputs.items():
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **arrays)
            write_bytes(folder / f"{name}.npz", buffer.getvalue())

    def clean(self, *, everything: bool = False) -> None:
        """Remove leftovers of unfinished work, and on request whatever the cell has produced."""
        import shutil

        patterns = ["*.tmp", ".*.tmp", "best-*.safetensors", "checkpoint.safetensors", "error*.txt"]
        if everything:
            patterns += ["record.json", "curve.jsonl", "*.safetensors", "gradient_flow.jsonl"]
            shutil.rmtree(self.folder / "outputs", ignore_errors=True)
        for pattern in patterns:
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def lock(self) -> Iterator[bool]:
        """Whether this process has the cell for itself. A kernel lock: it dies with its process, whatever kills it.

        A record lock (lockf), which decode workers do not inherit: one that outlives its parent holds nothing.
        """
        import fcntl

        place = self.folder.resolve()
        if place in _HELD:
            yield False
            return
        with open(self.folder / "lock", "a") as handle:
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                yield False
                return
            except OSError as error:
                raise StoreError(f"store '{self.folder.parent}' is on a file system without locks: {error}") from None
            _HELD.add(place)
            try:
                yield True
            finally:
                _HELD.discard(place)


def read_record(path: Path) -> RunRecord | None:
    """The record in a file, None where there is no file. StoreError says what is wrong with one."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"record '{path}' cannot be read: {error}") from None
    try:
        return RunRecord.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(p) for p in first["loc"]) or "the file"
        raise StoreError(f"record '{path}' is not valid: {place}: {first['msg'].lower()}") from None


def records(store: Path) -> Iterator[RunRecord]:
    """Every readable record of a store, in the order of their names; the others are left out."""
    for path in sorted(store.glob("*/record.json")):
        with contextlib.suppress(StoreError):
            found = read_record(path)
            if found is not None:
                yield found


def find_cell(store: Path, name: str) -> CellFolder:
    """The cell whose run id starts or ends with `name`, or is the folder `name`."""
    path = Path(name)
    if (path / "record.json").is_file():
        return CellFolder(path.parent, path.name)
    ids = sorted(p.parent.name for p in store.glob("*/record.json"))
    matches = [i for i in ids if i == name] or [i for i in ids if i.startswith(name) or i.endswith(name)]
    if len(matches) == 1:
        return CellFolder(store, matches[0])
    if matches:
        raise StoreError(f"'{name}' fits {len(matches)} cells: {', '.join(matches)}")
    if not ids:
        raise StoreError(f"store '{store}' has no finished cells")
    raise UnknownName("cell", name, ids)


def load_records(store: str | Path | None = None) -> pandas.DataFrame:
    """All records of a store (default: RPBENCH_STORE or ./runs) as one DataFrame: a row each, nested keys joined by
    dots ("scheme.name", "metrics.top1")."""
    import pandas

    rows = [record.as_json() for record in records(Path(store) if store is not None else default_store())]
    return pandas.json_normalize(rows)
