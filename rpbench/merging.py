"""A bundle that has been verified -> rows of a leaderboard, with the code and the card of whoever submitted them.

Every file has a name of its own (see `rpbench.submitted`), appears whole or not at all, and the records come after code
and card: whatever interrupts it, the same command completes it. Nothing of the bundle is run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from rpbench.board import Plan, Who, board_hash, board_names, expand, load_board
from rpbench.bundle import MANIFEST, Bundle, Evidence
from rpbench.catalog import is_shelved_sampler, is_shelved_scheme, names, sampler_names
from rpbench.correct import marks
from rpbench.entries import LARGEST, LARGEST_FILE, LEVELS, Line, entry, parse
from rpbench.errors import UsageError
from rpbench.files import write_bytes
from rpbench.published import RowFile, lines_text, refresh, rows_of
from rpbench.record import canonical
from rpbench.selection import Shelved, may_be_called, select, who_of
from rpbench.submitted import (
    FOLDER,
    NAME,
    Card,
    CardPart,
    SourcePart,
    card_path,
    card_text,
    cards,
    read_card,
    row_stem,
)
from rpbench.untrusted import shown
from rpbench.verdict import Verdict, failed

LEAST = "checked"  # the level from which a bundle is merged
RERUN = "R13"  # the rule that is checked only on request


class Merged(NamedTuple):
    """What merging has done: the files that it wrote and removed, within the leaderboard; none where all was there."""

    board: str
    row: str
    level: str
    records: int
    written: tuple[str, ...]
    removed: tuple[str, ...]
    beside: tuple[str, ...]  # files of other rows of this name, which stay


def merge(bundle: Bundle, verdicts: Sequence[Verdict], level: str, root: Path, swap: bool = False) -> Merged:
    """Put a bundle into the leaderboard at `root`, at the level that checking it has come to.

    Other versions of a row stay beside it. `swap` puts it in the place of those of the same name, options and author,
    and of records of the same row with other results. Merged again it changes nothing; what was found at a higher level
    before stays there.

    UsageError where a verdict failed, the level is below "checked", or `check` refuses it.
    """
    if wrong := failed(list(verdicts)):
        raise UsageError(f"the bundle is not merged: {_told(wrong[0])}")
    if level not in LEVELS or LEVELS.index(level) < LEVELS.index(LEAST):
        why = next((f": {_told(v)}" for v in verdicts if v.state == "skipped" and v.rule != RERUN), "")
        raise UsageError(f"the bundle is '{level}', not '{LEAST}': a check could not be made{why}")
    change = _change(bundle, verdicts, level, root, swap)
    written = [path for path, data in change.wanted.items() if _put(path, data)]
    removed = _moved(change)
    card, board = change.card, change.board
    for stem, by in change.older.items() if swap else ():
        removed += _remove(root, board, stem) if by == card.card.author else []
    written += [root / name for name in refresh(root)]
    left = (root / board / f"{stem}.jsonl" for stem in change.older)
    stays = [path for path in left if path.is_file()]
    places = (tuple(str(path.relative_to(root)) for path in paths) for paths in (written, removed, stays))
    return Merged(board, card.row, card.level, card.records, *places)


def check(bundle: Bundle, root: Path, swap: bool = False) -> None:
    """What can be refused before anything is verified.

    UsageError for a board that is not on the shelf or of another definition, a name that is on the shelf, a card with
    gaps, records that are not one row of the board as it is today, and for what needs `swap`.
    """
    _change(bundle, [], LEAST, root, swap)


@dataclass(frozen=True)
class _Change:
    """What merging writes, by file and in this order; `known` is where the row was published, `older` other versions
    of it with their authors."""

    plan: Plan
    who: Who
    card: Card
    wanted: Mapping[Path, bytes]
    target: Path
    known: RowFile | None
    older: Mapping[str, str]

    @property
    def board(self) -> str:
        return self.plan.board.name


def _change(bundle: Bundle, verdicts: Sequence[Verdict], level: str, root: Path, swap: bool) -> _Change:
    plan = _plan(bundle)
    board = plan.board.name
    who, label, lines = _row(bundle, plan, level)
    there = rows_of(board, root)
    known, stem = there.get(who), row_stem(who, label)
    if known is not None and (bundle.source is None or card_path(root, known.path.stem, board).is_file()):
        stem, label = known.path.stem, known.row or label  # a row stays where it is
    target = root / board / f"{stem}.jsonl"
    card, old = _card(bundle, verdicts, level, who, label, len(lines)), read_card(card_path(root, stem, board))
    lines = _not_lost(old, card, known, who, lines, swap)
    if old is not None and old.bundle == card.bundle and _higher(old.level, level) == old.level:
        card = old
    shared = next((file.lines for file in there.values() if file.path == target), ())
    wanted = _submitted(bundle, card, root, stem)
    wanted[target] = lines_text(plan, label, [*_others(shared, who), *lines]).encode()
    if (size := len(wanted[target])) > LARGEST_FILE:
        raise UsageError(f"the row's file would have {size / 2**20:.0f} MB: {LARGEST_FILE // 2**20} MB are read")
    return _Change(plan, who, card, wanted, target, known, _older(root, board, stem, card))


def _submitted(bundle: Bundle, card: Card, root: Path, stem: str) -> dict[Path, bytes]:
    """The code and the card of a submission, in the order in which they are written."""
    own = {card_path(root, stem, card.board["name"]): card_text(card).encode()}
    if bundle.source is None:
        return own
    code = root / FOLDER / stem / bundle.source_name
    if code.is_file() and code.read_bytes() != bundle.source:
        raise UsageError(f"'{code}' is another file, whose sha256 begins alike: it must be merged by hand")
    return {code: bundle.source} | own


def _moved(change: _Change) -> list[Path]:
    """Take a row's records out of another file than its own, where its own people had published it before; the files
    that are gone."""
    known = change.known
    if known is None or known.path == change.target:
        return []
    if rest := _others(known.lines, change.who):
        _put(known.path, lines_text(change.plan, known.row, rest).encode())
        return []
    known.path.unlink()
    return [known.path]


def _higher(a: str, b: str) -> str:
    return max(a, b, key=LEVELS.index)


def _told(verdict: Verdict) -> str:
    rule = f"{verdict.rule} " if verdict.rule else ""
    return f"{rule}{verdict.check}: {' '.join(verdict.why.split())}"


def _plan(bundle: Bundle) -> Plan:
    """The board of a bundle, as it is on the shelf."""
    told = bundle.manifest.board
    if told.name not in board_names():
        raise UsageError(f"board {shown(told.name)} is not on the shelf: only those of rpbench list boards are merged")
    board = load_board(told.name)
    if told.hash != board_hash(board):
        raise UsageError(
            f"board '{board.name}' has another definition today: {board.name}@{board.version} {board_hash(board)[:8]}, "
            f"the bundle's is {board.name}@{told.version} {told.hash[:8]}"
        )
    return expand(board)


def _row(bundle: Bundle, plan: Plan, level: str) -> tuple[Who, str, list[Line]]:
    """Whose row it is, its label, and its records: one row of the board as it is today, with nothing left out."""
    lines = [_line(cell, level) for cell in bundle.cells]
    if not lines:
        raise UsageError("the bundle has no records")
    shelved = Shelved.now()
    found = {who_of(one.entry, shelved) for one in lines}
    if len(found) > 1:
        raise UsageError(f"the bundle has records of {len(found)} rows: one is merged at a time")
    (who,) = found
    _check_name(bundle, who)
    chosen = select(plan, [one.entry for one in lines])
    for fault in chosen.left_out:
        raise UsageError(f"board '{plan.board.name}' leaves out {shown(fault.place)}: {' '.join(fault.why.split())}")
    places = chosen.places.get(who, {}).values()
    if sum(len(part) for p in places for part in (p.ok, p.infeasible, p.broken)) < len(lines):
        raise UsageError(f"the bundle has records that are not cells of board '{plan.board.name}'")
    return who, _label(bundle, who) if bundle.source is not None else chosen.labels[who], lines


def _line(cell: Evidence, level: str) -> Line:
    try:
        record = parse(cell.text)
        if (size := len(canonical(record.as_json()))) > LARGEST:  # it may have come in fewer bytes
            raise ValueError(f"would be published with {size / 2**20:.1f} MB: {LARGEST // 2**20} MB are read")
        found = replace(entry(record, cell.run_id), level=level)
    except ValueError as error:
        raise UsageError(f"record {shown(cell.run_id)}: {' '.join(str(error).split())}") from None
    if record.status == "failed":
        raise UsageError(f"record {shown(cell.run_id)} is of a run that failed: that is no result")
    return Line(record, found, _marks(cell))


def _marks(cell: Evidence) -> str:
    """Which test images the cell's net got right, from its outputs; they have been verified."""
    load = cell.outputs.get("selected/test")
    return marks(load()) if load else ""


def _check_name(bundle: Bundle, who: Who) -> None:
    """What is not on the shelf needs a name that nothing there has, and its code."""
    own = [] if is_shelved_scheme(who.scheme) else [(who.scheme, who.source)]
    own += [] if is_shelved_sampler(who.sampler) else [(who.sampler, who.sampler_source)]
    if bundle.source is None:
        if own:
            raise UsageError(f"{shown(own[0][0])} is not on the shelf, and the bundle has no source/ with its code")
        return
    if len(own) > 1:
        raise UsageError(f"neither {shown(own[0][0])} nor {shown(own[1][0])} is on the shelf: one is merged at a time")
    name, source = own[0] if own else (Path(bundle.source_name).stem, "")
    taken = {known.casefold() for known in (*names("baselines", ".py"), *filter(is_shelved_sampler, sampler_names()))}
    if not own or name.casefold() in taken:
        raise UsageError(f"'{name}' is a name on the shelf: a submission has a name of its own")
    if not NAME.fullmatch(name):
        raise UsageError(f"{shown(name)} is no name for files: letters, digits and _ make one, at most 60")
    code = hashlib.sha256(bundle.source).hexdigest()
    if source != code:
        raise UsageError(f"the records of '{name}' were made with another file: sha256 {source[:8]}, not {code[:8]}")


def _label(bundle: Bundle, who: Who) -> str:
    """What the row is called, as the bundle says; UsageError where it takes another's name."""
    row = bundle.manifest.row
    if not may_be_called(who, row):
        raise UsageError(f"the row calls itself {shown(row)}: it is {shown(who.scheme)} with {shown(who.sampler)}")
    return row


def _card(bundle: Bundle, verdicts: Sequence[Verdict], level: str, who: Who, row: str, records: int) -> Card:
    """The card that is published. UsageError where the submitter's has gaps."""
    told = bundle.manifest.card.model_dump(mode="json")
    gaps = [name for name in CardPart.model_fields if not str(told.get(name) or "").strip()]
    if gaps:
        raise UsageError(f"the card does not say {', '.join(gaps)}: every submission does")
    code = None
    if bundle.source is not None:
        code = SourcePart(file=bundle.source_name, sha256=hashlib.sha256(bundle.source).hexdigest())
    return Card(
        board=bundle.manifest.board.model_dump(mode="json"),
        row=row,
        kind="scheme" if not who.sampler_source else "sampler",
        scheme={"name": who.scheme, "args": json.loads(who.args)},
        sampler={"name": who.sampler, "args": json.loads(who.sampler_args)},
        card=CardPart(**{name: told[name] for name in CardPart.model_fields}),
        code=code,
        level=level,
        checks=list(_checks(verdicts)),
        records=records,
        bundle=hashlib.sha256(bundle.contents.read(MANIFEST)).hexdigest(),
        rpbench=bundle.manifest.rpbench,
    )


def _checks(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """A sentence for each check, in the order in which they were made."""
    for check, rule in dict.fromkeys((v.check, v.rule) for v in verdicts):
        mine = [v for v in verdicts if (v.check, v.rule) == (check, rule)]
        skipped = [v for v in mine if v.state == "skipped"]
        told = [f"{len(mine) - len(skipped)} passed"] if len(skipped) < len(mine) else []
        told += [f"{len(skipped)} skipped ({' '.join(skipped[0].why.split())[:200]})"] if skipped else []
        yield f"{rule} {check}: {', '.join(told)}".strip()


def _not_lost(
    old: Card | None, card: Card, known: RowFile | None, who: Who, lines: list[Line], swap: bool
) -> list[Line]:
    """The records with their levels: those that were checked further before keep theirs.

    UsageError where records of this row that are published would be lost, or another bundle's card, without `swap`.
    """
    shelved = Shelved.now()
    before = {one.entry.run_id: one for one in (known.lines if known else ()) if who_of(one.entry, shelved) == who}
    now = {one.entry.run_id: one for one in lines}
    lost = [name for name, one in before.items() if name not in now or now[name].record != one.record]
    if old is not None and (old.scheme, old.sampler) != (card.scheme, card.sampler):
        raise UsageError(f"row '{card.row}' is there already, with other options: its label must name them")
    if not swap and (lost or (old is not None and old.bundle != card.bundle)):
        what = f"with other results ({len(lost)} records)" if lost else "from another bundle"
        raise UsageError(f"row '{card.row}' of board '{card.board['name']}' is there already, {what}: see --replace")
    same = {name: before[name].entry.level for name in before if name not in lost}
    return [one._replace(entry=replace(one.entry, level=_higher(one.entry.level, same.get(name, LEVELS[0]))))
            for name, one in now.items()]  # fmt: skip


def _others(lines: Iterable[Line], who: Who) -> list[Line]:
    shelved = Shelved.now()
    return [one for one in lines if who_of(one.entry, shelved) != who]


def _older(root: Path, board: str, stem: str, card: Card) -> dict[str, str]:
    """Other versions of a row on a board: those of another source with the same name and options, and their authors."""

    def row(one: Card) -> tuple[object, ...]:
        return one.kind, one.scheme, one.sampler

    return {name: known.card.author for (on, name), known in cards(root).items()
            if on == board and name != stem and row(known) == row(card)}  # fmt: skip


def _put(path: Path, data: bytes) -> bool:
    """Write a file, whole or not at all; whether it was another before."""
    if path.is_file() and path.read_bytes() == data:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, data)
    return True


def _remove(root: Path, board: str, stem: str) -> list[Path]:
    """Take a row off a board: its records, its code where no other board has it, and its card last."""
    own, folder = card_path(root, stem, board), root / FOLDER / stem
    others = [path for path in folder.glob("*.json") if path != own]
    files = [root / board / f"{stem}.jsonl", *([] if others else folder.glob("*.py")), own]
    there = [path for path in files if path.is_file()]
    for path in there:
        path.unlink()
    if not others:
        with contextlib.suppress(OSError):
            folder.rmdir()
    return there
