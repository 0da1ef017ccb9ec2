"""Records as boards read them: checked one by one, flat, and kept in an index so that ten thousand are read at once.

What is wrong with a record is said in one line, and loses nothing else.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from operator import gt
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from rpbench.errors import sentence
from rpbench.files import write_text
from rpbench.record import DensityPart, RunRecord, canonical
from rpbench.streams import Seeds

INDEX = "index.json"
FORMAT = 2  # of the index: another number is read anew
LARGEST = 4 * 2**20  # bytes of a record: the largest nets take 50 KB
LARGEST_FILE = 64 * 2**20  # bytes of a file of JSON lines: ten thousand records of small nets
LEVELS = ("reported", "complete", "checked", "verified")  # how far records have been checked, the least first
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


@dataclass(frozen=True)
class Entry:
    """What a board needs of one record. Rates are in [0, 1]; `*_args` are canonical JSON of all options."""

    run_id: str
    place: str
    status: str
    task: str
    version: int
    spec: str
    model: str
    model_source: str
    params: int
    prunable: int
    scheme: str
    scheme_args: str
    scheme_source: str
    batches: int
    images: int
    sampler: str
    sampler_args: str
    sampler_source: str
    density: float
    realised: float | None
    effective: float | None
    kept: int | None
    seed: int
    init_seed: int
    mask_seed: int
    order_seed: int
    init: str
    source: str
    procedure: str
    precision: str
    micro_batch: int | None
    on_protocol: bool
    notes: tuple[str, ...]
    skipped: tuple[str, ...]
    warnings: tuple[str, ...]
    metrics: dict[str, float]
    last: dict[str, float]
    dense_macs: int | None
    sparse_macs: float | None
    seconds: float | None
    scheme_seconds: float | None
    train_images_per_s: float | None
    eval_images_per_s: float | None
    device: str
    world_size: int
    command: str
    error: str
    layers: tuple[float, ...] = ()  # density of each layer, in table order
    level: str = LEVELS[0]
    row: str = ""  # what its row is called: by a published line, else by who asked for it

    @property
    def seeds(self) -> Seeds:
        return Seeds(self.seed, init=self.init_seed, mask=self.mask_seed, order=self.order_seed)


class Fault(NamedTuple):
    """A record that cannot be used, and why."""

    place: str
    why: str


@dataclass
class Found:
    """What a store or leaderboard holds."""

    entries: list[Entry] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


def read_store(store: Path) -> Found:
    """Every record of a store, in the order of their names; those read before come from the store's index."""
    known = _index(store)
    seen: dict[str, dict[str, Any]] = {}
    found, changed = Found(), False
    for name, stamp in _stamps(store):
        row = known.get(name)
        usable = _use(row, name, found) if isinstance(row, dict) and row.get("stamp") == stamp else False
        if not usable:
            row, changed = {"stamp": stamp} | _read(store / name / "record.json", name), True
            _use(row, name, found)
        assert row is not None
        seen[name] = row
    if changed or len(seen) != len(known):
        _keep_index(store, seen)
    return found


def _use(row: dict[str, Any], name: str, found: Found) -> bool:
    """Add an index row to what was found; False for one that cannot be used, as an edited index may have."""
    try:
        if "why" in row:
            found.faults.append(Fault(name, str(row["why"])))
        else:
            found.entries.append(_entry(row["entry"]))
    except (KeyError, TypeError, IndexError):
        return False
    return True


class Line(NamedTuple):
    """A record as it stands, and as boards read it."""

    record: RunRecord
    entry: Entry
    correct: str = ""  # which test images it got right (`rpbench.correct`), of a published line that says so


def read_lines(path: Path) -> Found:
    """The records of a file of JSON lines: published rows, which hold one under "record" and say how far it has been
    checked, or records themselves."""
    found = Found()
    try:
        lines = list(_lines(path))
    except ValueError as error:
        return Found([], [Fault(path.name, str(error))])
    for one in lines:
        try:
            found.entries.append(_published(one, parse(one.text)))
        except ValueError as error:
            found.faults.append(Fault(one.place, str(error)))
    return found


def read_whole(path: Path) -> list[Line]:
    """Every usable record of a store, or of a file of JSON lines, with its entry; the others are left out."""
    found = []
    if path.is_dir():
        texts: Iterable[_Text] = (_Text(e.place, _text(path / e.place)) for e in read_store(path).entries)
    else:
        try:
            texts = list(_lines(path))
        except ValueError:
            return []
    for one in texts:
        try:
            record = parse(one.text)
            found.append(Line(record, _published(one, record), one.correct))
        except ValueError:
            continue
    return found


def _text(folder: Path) -> str:
    try:
        return (folder / "record.json").read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def record_texts(path: Path) -> Iterator[tuple[str, str]]:
    """(place, text of a record) of every line; what is no line of records is given as it stands, to be told so."""
    try:
        yield from (one[:2] for one in _lines(path))
    except ValueError as error:
        yield path.name, json.dumps({"unreadable": str(error)})


class _Text(NamedTuple):
    """The text of a record, where it stands, and what a published line says of it."""

    place: str
    text: str
    level: str = LEVELS[0]
    row: str = ""
    correct: str = ""


def _published(told: _Text, record: RunRecord) -> Entry:
    return replace(entry(record, told.place), level=told.level, row=told.row)


def text_of(path: Path) -> str:
    """What a file of JSON lines says. ValueError for one that cannot be read, is no plain file, or is too large."""
    try:
        told = path.stat()
        if not stat.S_ISREG(told.st_mode) or told.st_size > LARGEST_FILE:
            raise ValueError(f"is no file of at most {LARGEST_FILE // 2**20} MB")
        return path.read_text(errors="replace")
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None


def _lines(path: Path) -> Iterator[_Text]:
    """Every line; what is no line of records is given as it stands, to be told so. ValueError for a file that cannot be
    read."""
    for number, line in enumerate(text_of(path).split("\n"), start=1):
        if line.strip():
            yield _inner(f"{path.name}:{number}", line)


def _inner(place: str, line: str) -> _Text:
    """The record that a published line holds, or the line itself."""
    try:
        told = json.loads(line)
    except (ValueError, RecursionError):
        return _Text(place, line)
    if not isinstance(told, dict) or not isinstance(told.get("record"), str):
        return _Text(place, line)
    level = told.get("level")
    row, correct = (text if isinstance(text := told.get(key), str) else "" for key in ("row", "correct"))
    return _Text(place, told["record"], level if level in LEVELS else LEVELS[0], row, correct)


def parse(text: str) -> RunRecord:
    """A record from JSON text. ValueError says in one line what is wrong with it."""
    if len(text) > LARGEST:
        raise ValueError(f"is {len(text) / 2**20:.1f} MB large: records have at most {LARGEST // 2**20} MB")
    try:
        return RunRecord.model_validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = sentence(".".join(str(p) for p in first["loc"]), 80) or "the file"
        told = "" if first["type"] == "missing" else f" ({_short(first['input'])})"
        raise ValueError(f"{place}: {str(first['msg']).lower()}{told}") from None


def entry(record: RunRecord, place: str) -> Entry:
    """A record as a board reads it. ValueError where its numbers cannot be."""
    try:
        if why := impossible(record):
            raise ValueError(why)
        return _flat(record, place)
    except ArithmeticError as error:
        raise ValueError(f"has numbers that nothing can be worked out of: {error}") from None


def _flat(record: RunRecord, place: str) -> Entry:
    d, env = record.density, record.env
    return Entry(
        run_id=record.run_id,
        place=place,
        status=record.status,
        task=record.task.name,
        version=record.task.version,
        spec=record.task.spec,
        model=record.model.name,
        model_source=record.model.source,
        params=record.model.params,
        prunable=record.model.prunable,
        scheme=record.scheme.name,
        scheme_args=canonical(record.scheme.args),
        scheme_source=record.scheme.source,
        batches=record.scheme.batches,
        images=record.scheme.images,
        sampler=record.sampler.name,
        sampler_args=canonical(record.sampler.args),
        sampler_source=record.sampler.source,
        density=d.requested,
        realised=d.realised,
        effective=d.effective,
        kept=d.kept,
        seed=record.seeds.run,
        init_seed=record.seeds.init,
        mask_seed=record.seeds.mask,
        order_seed=record.seeds.order,
        init=record.init,
        source=record.source,
        procedure=record.procedure,
        precision=record.precision,
        micro_batch=record.micro_batch,
        on_protocol=record.protocol.on,
        notes=(*record.protocol.notes, *(f"{k}={v}" for k, v in record.protocol.overrides.items())),
        skipped=tuple(record.skipped),
        warnings=tuple(record.warnings),
        metrics=dict(record.metrics),
        last=dict(record.last),
        dense_macs=record.cost.dense_macs,
        sparse_macs=record.cost.sparse_macs,
        seconds=record.cost.seconds,
        scheme_seconds=record.cost.scheme_seconds,
        train_images_per_s=record.cost.train_images_per_s,
        eval_images_per_s=record.cost.eval_images_per_s,
        device=str(env.get("device_name") or env.get("device") or ""),
        world_size=env["world_size"] if isinstance(env.get("world_size"), int) else 1,
        command=record.command,
        error=record.error or "",
        row=_called(record),
        layers=tuple(round(k / n, 4) for k, n in zip(d.kept_per_layer, d.numel_per_layer, strict=False)),
    )


def _called(record: RunRecord) -> str:
    """What a record's row is called by who asked for it: scheme and sampler, with the options that were given.

    The record has every option with its value; which of them are defaults only the command tells.
    """
    try:
        words = shlex.split(record.command) if set(record.command) & set("'\"\\") else record.command.split(" ")
        given = dict(pairwise(words))
    except ValueError:
        return ""
    scheme, sampler = (
        f"{name}:{rest}" if (rest := given.get(flag, "").partition(":")[2]) else name
        for name, flag in ((record.scheme.name, "--scheme"), (record.sampler.name, "--sampler"))
    )
    label = scheme if sampler == "exact" else f"{scheme} + {sampler}"
    return label if len(label) <= 200 and label.isprintable() else ""


def impossible(record: RunRecord) -> str:
    """What cannot be in a record that a run has written; '' where nothing speaks against it."""
    d, p = record.density, record.protocol
    if not RUN_ID.fullmatch(record.run_id):
        return f"run_id {_short(record.run_id)}: not the name of a cell"
    if not 0 < d.requested <= 1:
        return f"density.requested {d.requested}: must be in (0, 1]"
    cost = record.cost
    for name, number in (
        *vars(record.seeds).items(), ("params", record.model.params), ("prunable", d.prunable),
        ("model.prunable", record.model.prunable), ("task.version", record.task.version), ("cost.params", cost.params),
        ("batches", record.scheme.batches), ("images", record.scheme.images), ("kept", d.kept),
        ("dense_macs", cost.dense_macs), ("sparse_macs", cost.sparse_macs), ("seconds", cost.seconds),
        ("scheme_seconds", cost.scheme_seconds), ("train_images_per_s", cost.train_images_per_s),
    ):  # fmt: skip
        if isinstance(number, int | float) and not 0 <= number < 2**63:
            return f"{name} is {_short(number)}: must be from 0, and below 2^63"
    if p.on and (p.overrides or p.limit is not None or p.limit_test is not None):
        return "protocol.on is true, but the record has overrides or limits"
    for name, value in (*record.metrics.items(), *record.last.items()):
        if why := _out_of_range(name, value):
            return why
    if why := _misfit(d):
        return why
    if record.status != "ok":
        return ""
    for part, name in ((record.metrics, "metrics"), (record.last, "last")):
        for key in ("top1", "nll", "ece", "epoch"):
            if key not in part:
                return f"{name}.{key} is missing"
    if d.prunable != record.model.prunable:
        return f"density.prunable is {_short(d.prunable)}, model.prunable {_short(record.model.prunable)}"
    if d.kept is None or d.realised is None or sum(d.kept_per_layer) != d.kept:
        return "density.kept and kept_per_layer do not agree"
    if d.prunable < 1 or not 0 <= d.kept <= d.prunable or abs(d.realised - d.kept / d.prunable) > 1e-9:
        return f"density.realised {_short(d.realised)} is not kept / prunable = {d.kept} / {d.prunable}"
    return ""


def _misfit(d: DensityPart) -> str:
    """What is wrong with the weights of the layers, of which a cell that was never drawn has kept none."""
    if min(d.kept_per_layer, default=0) < 0:
        return "density.kept_per_layer has a negative count"
    if not all(0 < n < 2**63 for n in d.numel_per_layer):
        return "density.numel_per_layer: every layer has from 1 weight, and fewer than 2^63"
    if not d.numel_per_layer or (d.kept is None and not d.kept_per_layer):
        return ""
    if len(d.numel_per_layer) != len(d.kept_per_layer) or any(map(gt, d.kept_per_layer, d.numel_per_layer)):
        return "density.kept_per_layer does not fit numel_per_layer"
    return ""


def _out_of_range(name: str, value: float) -> str:
    if name == "epoch":
        whole = 1 <= value < 10**6 and value == int(value)
        return "" if whole else f"metrics.epoch is {_short(value)}: not an epoch"
    most = 1.0
    if name == "brier":
        most = 2.0
    elif name == "nll":
        most = 1e6
    if not 0 <= value <= most:
        return f"metrics.{_short(name)} is {_short(value)}: must be in [0, {most:g}]"
    return ""


def _read(path: Path, name: str) -> dict[str, Any]:
    """An index row of a record's file: {"entry": ...} or {"why": ...}."""
    try:
        told = path.stat()
        size = told.st_size
        if not stat.S_ISREG(told.st_mode):
            return {"why": "is no file"}
        if size > LARGEST:
            return {"why": f"is {size / 2**20:.1f} MB large: records have at most {LARGEST // 2**20} MB"}
        found = entry(parse(path.read_text()), name)
    except (OSError, UnicodeDecodeError) as error:
        return {"why": f"cannot be read: {' '.join(str(error).split())}"}
    except ValueError as error:
        return {"why": str(error)}
    if found.run_id != name:
        return {"why": f"run_id {_short(found.run_id)} is not the name of its folder"}
    return {"entry": _values(found)}


def _stamps(store: Path) -> Iterator[tuple[str, list[int]]]:
    """(folder, [mtime in ns, size]) of every record, by name."""
    try:
        with os.scandir(store) as places:
            folders = sorted(place.name for place in places if not place.name.startswith("."))
    except OSError:
        return
    root = str(store)
    for name in folders:
        try:
            told = os.stat(f"{root}/{name}/record.json")
        except OSError:
            continue
        yield name, [told.st_mtime_ns, told.st_size]


def _index(store: Path) -> dict[str, dict[str, Any]]:
    try:
        found = json.loads((store / INDEX).read_text())
        rows: dict[str, dict[str, Any]] = found["rows"] if found["format"] == [FORMAT, list(_FIELDS)] else {}
        return rows
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _keep_index(store: Path, rows: dict[str, dict[str, Any]]) -> None:
    """An index only saves time: a store that cannot be written to does without."""
    try:
        write_text(store / INDEX, json.dumps({"format": [FORMAT, list(_FIELDS)], "rows": rows}))
    except OSError:
        return


_FIELDS = tuple(Entry.__dataclass_fields__)
_TUPLES = tuple(_FIELDS.index(name) for name in ("notes", "skipped", "warnings", "layers"))
_LEVEL = _FIELDS.index("level")


def _values(found: Entry) -> list[Any]:
    return list(vars(found).values())


def _entry(values: list[Any]) -> Entry:
    for i in _TUPLES:
        values[i] = tuple(values[i])
    values[_LEVEL] = LEVELS[0]  # a store vouches for nothing, whatever its index says
    return Entry(*values)


def merged(parts: Iterable[Found]) -> Found:
    """Several finds as one."""
    whole = Found()
    for part in parts:
        whole.entries += part.entries
        whole.faults += part.faults
    return whole


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
