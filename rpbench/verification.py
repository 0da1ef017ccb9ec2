"""What can be checked of a bundle, a store or published lines without training, and what it amounts to.

One path over `Evidence`s: each check looks at one cell and says what is wrong with it in sentences; a few look at all
cells together. Training cells again is `rpbench.rerun`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rpbench.board import Board, Who, board_hash, board_names, expand, load_board
from rpbench.bundle import SOURCE, Bundle, file_faults, line_evidence, store_evidence
from rpbench.checks import asked, pruned, scored, submitted, trained
from rpbench.checks.known import Known, Source, threads
from rpbench.checks.told import Skipped, Told, read
from rpbench.correct import right
from rpbench.data.sources import Roots
from rpbench.entries import LEVELS, Line, entry, parse, read_store, text_of
from rpbench.errors import RpbenchError, UsageError
from rpbench.isolated import Limits
from rpbench.outline import Word
from rpbench.published import line, root_of
from rpbench.record import canonical
from rpbench.rules import rule_of
from rpbench.source import source_faults
from rpbench.submitted import FOLDER
from rpbench.untrusted import shown
from rpbench.verdict import Verdict, failed

KINDS: tuple[Word, ...] = ("scheme", "sampler")
Look = Callable[[Told, Known], Iterator[str]]
Say = Callable[[int, int], None]
RERUNS = 3  # cells that must have been trained again for a row to be verified


@dataclass(frozen=True)
class Check:
    """A check of one cell: its name, what looks, whether it looks only at cells with a result."""

    name: str
    look: Look
    ok: bool = True


CHECKS = (
    Check("identity", asked.identity, ok=False),
    Check("protocol", asked.protocol, ok=False),
    Check("budget", asked.budget, ok=False),
    Check("curve", trained.curve),
    Check("counts", pruned.counts, ok=False),
    Check("batches", pruned.batches),
    Check("masks", pruned.masks),
    Check("metrics", scored.metrics),
    Check("labels", scored.labels),
    Check("flops", pruned.flops),
)
ORDER = (
    "files", "source", "contract", "card", "records", "identity", "cells", "protocol", "budget", "curve",
    "counts", "batches", "masks", "metrics", "labels", "flops", "rerun",
)  # fmt: skip
COMPLETE = ("records", "identity", "cells", "protocol", "budget")  # none of these skipped
CHECKED = ("curve", "counts", "batches", "masks", "metrics", "labels", "flops")


@dataclass(frozen=True)
class Subject:
    """What is verified: its name, its cells, what is known of them, and what was found at opening it."""

    name: str
    tolds: tuple[Told, ...]
    known: Known
    verdicts: tuple[Verdict, ...]


def verify(
    bundle: Bundle, roots: Roots | None = None, board: Board | None = None, limits: Limits | None = None
) -> list[Verdict]:
    """Every verdict on a bundle that needs no training. `board` is for boards that are not on the shelf, `limits` of
    calls of its functions."""
    with bundle_subject(bundle, roots, board, limits) as subject:
        return checked(subject)


def level(verdicts: Sequence[Verdict]) -> str:
    """How far a row was checked: "reported" where something failed or lacks, "complete" with every cell as its board
    wants it, "checked" where each result follows from its outputs, "verified" where cells were trained again."""
    states: dict[str, set[str]] = {}
    for v in verdicts:
        states.setdefault(v.check, set()).add(v.state)

    def passed(checks: Sequence[str]) -> bool:
        return all(states.get(check, set()) <= {"passed"} for check in checks)

    if failed(list(verdicts)) or not passed(COMPLETE) or "cells" not in states:
        return LEVELS[0]
    if not passed(CHECKED):
        return LEVELS[1]
    cells = {v.where for v in verdicts if v.check == "records"}
    again = {v.where for v in verdicts if v.check == "rerun" and v.state == "passed"}
    return LEVELS[3] if len(again) >= min(RERUNS, len(cells)) else LEVELS[2]


@contextlib.contextmanager
def bundle_subject(
    bundle: Bundle, roots: Roots | None = None, board: Board | None = None, limits: Limits | None = None
) -> Iterator[Subject]:
    """A bundle made ready; its source file lies in a folder of its own meanwhile. UsageError for an unknown board."""
    manifest = bundle.manifest
    if board is None:
        if manifest.board.name not in board_names():
            raise UsageError(f"board {shown(manifest.board.name)} is not on the shelf: give its file with --board")
        board = load_board(manifest.board.name)
    verdicts = _verdicts("files", [f"{shown(f.place)} {f.why}" for f in file_faults(bundle)])
    with tempfile.TemporaryDirectory(prefix="rpbench-") as folder:
        path = Path(folder, bundle.source_name) if bundle.source is not None else None
        if path is not None and bundle.source is not None:
            path.write_bytes(bundle.source)
        faults = list(submitted.source(bundle)) or list(submitted.file_options(bundle, path))
        verdicts += _verdicts("source", faults)
        source = None
        if path is not None and bundle.source is not None:
            barred = "its source breaks the rules (check source): it is not run" if faults else ""
            source = Source(bundle.manifest.kind, path, hashlib.sha256(bundle.source).hexdigest(), barred)
        with Known(expand(board), roots, source, limits) as known, threads(1):
            tolds, read_verdicts = read(bundle.cells, whole=True)
            verdicts += submitted.contract(bundle, known) + read_verdicts
            verdicts += _verdicts("card", list(submitted.card(bundle, known)))
            verdicts += _verdicts("cells", list(_row_faults(bundle, board, tolds, known)))
            yield Subject(str(bundle.place), tuple(tolds), known, tuple(verdicts))


def store_subject(board: str, store: Path, roots: Roots | None = None, limits: Limits | None = None) -> Subject:
    """The cells of a board that a store has; more seeds than the board's are passed over. UsageError for none."""
    known = Known(expand(load_board(board)), roots, limits=limits)
    found = read_store(store)
    names = [e.place for e in found.entries if (e.task, e.model, e.density) in known.wanted]
    verdicts = [Verdict("records", "R11", "failed", f.why, f.place) for f in found.faults]
    tolds, read_verdicts = read(store_evidence(store, names), whole=True)
    kept = [told for who, row in asked.rows(tolds, known).items() for told in _of_board(row, who, known)]
    if not kept:
        raise UsageError(f"store '{store}' has no record of board '{board}'")
    there = {told.where for told in kept}
    verdicts += [v for v in read_verdicts if v.where in there or v.state == "failed"]
    return Subject(f"{board} in {store}", tuple(sorted(kept, key=lambda t: t.where)), known, tuple(verdicts))


def _of_board(row: list[Told], who: Who, known: Known) -> list[Told]:
    try:
        wanted = asked.wanted_of(known, who)
    except RpbenchError:  # `asked.cells` says so
        return row
    return [told for told in row if (told.context, told.entry.seeds) in wanted]


def merged_sources(root: Path) -> list[Source]:
    """The code of submissions that a leaderboard holds; what breaks the rules of sources is not run."""
    found = []
    for path in filter(Path.is_file, sorted((root / FOLDER).glob("*/*.py"))):
        with path.open("rb") as file:
            content = file.read(SOURCE + 1)
        faults = {kind: source_faults(content, kind) for kind in KINDS}
        for kind in KINDS:
            others = [k for k in KINDS if k != kind and not faults[k]]
            if not faults[kind] or not others:
                barred = f"its source breaks the rules: {faults[kind][0]}" if faults[kind] else ""
                found.append(Source(kind, path, hashlib.sha256(content).hexdigest(), barred))
    return found


def published_subject(
    board: str, root: Path | None = None, roots: Roots | None = None, limits: Limits | None = None
) -> Subject:
    """A board's published lines: records without curves and outputs. UsageError where there are none."""
    known = Known(expand(load_board(board)), roots, limits=limits, merged=merged_sources(root_of(root)))
    files = sorted((root_of(root) / board).glob("*.jsonl"))
    evidences = tuple(e for path in files for e in line_evidence(path))
    if not evidences:
        raise UsageError(f"leaderboard '{root_of(root)}' has no records of board '{board}'")
    tolds, verdicts = read(evidences, whole=False)
    columns = [v for path in files for v in _column_faults(path, known)]
    return Subject(f"{board} in the leaderboard", tuple(tolds), known, (*verdicts, *columns))


def checked(subject: Subject, say: Say = lambda done, of: None) -> list[Verdict]:
    """Every verdict that needs no training, in the order of the checks; `say` is told how many cells are done."""
    verdicts, seen = list(subject.verdicts), []
    with threads(1):
        for i, told in enumerate(subject.tolds):
            say(i, len(subject.tolds))
            for check in CHECKS:
                if told.ok or not check.ok:
                    verdicts += looked(check, told, subject.known)
            try:
                seen.append(scored.prints(told))
            except RpbenchError:  # `metrics` says so
                seen.append({})
            told.forget()
    verdicts += asked.cells(subject.tolds, subject.known)
    verdicts += scored.among(subject.tolds, seen)
    return in_order(verdicts)


def looked(check: Check, told: Told, known: Known) -> list[Verdict]:
    """One check of one cell: a verdict per fault, or one that it passed or was skipped.

    Whatever a look raises is a fault of what it looked at: honest records raise nothing.
    """
    faults: list[str] = []
    skipped = ""
    try:
        for why in check.look(told, known):
            faults.append(why)
    except Skipped as error:
        skipped = str(error)
    except RpbenchError as error:
        faults.append(" ".join(str(error).split()))
    except Exception as error:
        faults.append(f"cannot be checked: {type(error).__name__}: {' '.join(str(error).split())[:160]}")
    rule = rule_of(check.name)
    if faults:
        return [Verdict(check.name, rule, "failed", why, told.where) for why in faults]
    return [Verdict(check.name, rule, "skipped" if skipped else "passed", skipped, told.where)]


def in_order(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """By check; those of a check stay in their order."""
    return sorted(verdicts, key=lambda v: ORDER.index(v.check) if v.check in ORDER else len(ORDER))


def _verdicts(check: str, faults: list[str]) -> list[Verdict]:
    if faults:
        return [Verdict(check, rule_of(check), "failed", why) for why in faults]
    return [Verdict(check, rule_of(check), "passed")]


def _row_faults(bundle: Bundle, board: Board, tolds: list[Told], known: Known) -> Iterator[str]:
    """Whether a bundle is of today's board, and of one row: the one that it says."""
    manifest = bundle.manifest
    if manifest.board.version != board.version or manifest.board.hash != board_hash(board):
        today = f"version {board.version}, hash {board_hash(board)[:12]}..."
        yield f"board '{board.name}' is another today: {today}, not {manifest.board.hash[:12]}..."
    if not tolds:
        yield "the bundle has no cell with a record that can be read"
    rows = asked.rows(tolds, known)
    if len(rows) > 1:
        yield f"the bundle has cells of {len(rows)} rows: {', '.join(shown(who.scheme) for who in rows)}"
    for who in rows:
        for kind, told, name, args in (
            ("scheme", manifest.scheme, who.scheme, who.args),
            ("sampler", manifest.sampler, who.sampler, who.sampler_args),
        ):
            if (name, args) != (told.name, canonical(told.args)):
                yield f"its records are of {kind} {shown(name)} {shown(args)}, bundle.json says {shown(told.name)}"
        try:
            label = asked.label_of(known, who)
        except RpbenchError:  # `asked.cells` says so
            continue
        if label not in ("", manifest.row):
            yield f"row is {shown(manifest.row)}: such a row is called {label}"


def _column_faults(path: Path, known: Known) -> Iterator[Verdict]:
    """Published lines whose flat columns are not those of the records in them, or that mark other test images as got
    right than their top-1 says; where one line of a row marks them, all do."""
    try:
        lines = text_of(path).split("\n")
    except ValueError as error:
        yield Verdict("records", "R11", "failed", str(error), path.name)
        return
    marked = any('"correct":"' in text and '"correct":""' not in text for text in lines)
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        place = f"{path.name}:{number}"
        if why := _column_fault(text, known):
            yield Verdict("records", "R11", "failed", why, place)
        elif why := _mark_fault(text, known, marked):
            yield Verdict("metrics", "R9", "failed", why, place)


def _mark_fault(text: str, known: Known, marked: bool) -> str:
    """What is wrong with the test images that a line says its net got right."""
    row = json.loads(text)
    record = parse(row["record"])
    if record.status != "ok" or record.task.name not in known.plan.tasks or not (row["correct"] or marked):
        return ""
    n, top1 = known.sets(known.task(record)).test, record.metrics["top1"]
    try:
        found = int(right(row["correct"], n).sum())
    except ValueError as error:
        return f"column correct {error}"
    if abs(found / n - top1) < 0.5 / n:
        return ""
    return f"column correct marks {found:,} of {n:,} images as got right, top1 {top1:.6g} is {round(top1 * n):,}"


def _column_fault(text: str, known: Known) -> str:
    try:
        row = json.loads(text)
        record = parse(row["record"])
        told = Line(record, entry(record, ""), str(row.get("correct")))
        made = json.loads(line(known.plan, str(row.get("row")), told))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return f"is no published line: {type(error).__name__}: {' '.join(str(error).split())[:160]}"
    if row.get("level") not in LEVELS:
        return f"level is {shown(row.get('level'))}: there is {', '.join(LEVELS)}"
    for key in {**made, **row}:
        if key not in ("level", "record") and (key not in row or key not in made or row[key] != made[key]):
            return f"column {shown(key)} is {shown(row.get(key))}: the record in the line has {shown(made.get(key))}"
    return ""
