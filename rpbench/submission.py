"""From a store to a bundle: one row of a board, everything that stands against it, and the files that show it.

The places of the board are filled as a report fills them, so that what is submitted is what was compared.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rpbench import options
from rpbench.board import Choice, Context, Plan, Who, board_names, expand, load_board
from rpbench.bundle import Evidence, allowed, store_evidence
from rpbench.card import Said, card_faults
from rpbench.catalog import is_shelved_sampler, is_shelved_scheme, isolated_sampler, isolated_scheme, outline
from rpbench.cell import ask
from rpbench.contract import verdicts
from rpbench.contract.samplers import sampler_list
from rpbench.contract.schemes import scheme_list
from rpbench.entries import Entry, read_store
from rpbench.errors import BundleError, UsageError
from rpbench.heartbeat import signs
from rpbench.isolated import Limits, session
from rpbench.outline import Word
from rpbench.report.words import counted
from rpbench.rules import RULES, rule_of
from rpbench.sampler import Sampler
from rpbench.scheme import Scheme
from rpbench.selection import Selection, select
from rpbench.source import source_faults
from rpbench.sweep import At, survey
from rpbench.task import load_attack, load_set
from rpbench.verdict import Verdict, failed

Watch = Callable[[Iterable[Any], int], Iterable[Any]]
STANDARD = "exact"  # the sampler that boards have
FEW = 3  # cells that a line names


@dataclass(frozen=True)
class Wish:
    """What is to be submitted: a scheme and a sampler as they are written in a sweep, on a board, from a store."""

    scheme: str
    board: str
    store: Path
    sampler: str = ""

    @property
    def sweep(self) -> str:
        """The command that trains what is missing."""
        words = ["rpbench", "sweep", self.board, "--scheme", self.scheme]
        words += ["--sampler", self.sampler] if self.sampler else []
        return shlex.join([*words, "--store", str(self.store)])


@dataclass(frozen=True)
class Row:
    """One row of a board, as a store has it. `source` is the file of one's own (scheme or sampler), None where both
    are on the shelf, and `said` its docstring; `entries` are the row's records and those of the board's reference,
    `also` how many of the row its board does not ask for."""

    wish: Wish
    plan: Plan
    who: Who
    label: str
    kind: Word
    source: Source | None
    said: Said
    scored: bool
    cells: tuple[At, ...]
    entries: tuple[Entry, ...]
    chosen: Selection
    also: int

    @property
    def shelved(self) -> bool:
        """Whether its board is one that a leaderboard takes."""
        return self.plan.board.name in board_names() and not self.wish.board.endswith(".toml")

    @property
    def ended(self) -> tuple[At, ...]:
        """Cells with a result: those that a bundle holds."""
        return tuple(at for at in self.cells if at.state in ("finished", "infeasible") or _diverged(at))


@dataclass(frozen=True)
class Source:
    """A file of one's own: where it lies, its bytes, and what R1 says against it."""

    path: Path
    content: bytes
    faults: tuple[str, ...]


def _diverged(at: At) -> bool:
    return at.state == "failed" and at.over  # a result, as `store.FINISHED` has it


def find_row(wish: Wish) -> Row:
    """The row that is asked for, with the state of every cell of it.

    Raises UsageError for unknown names, and where the wish is for no row of the board or for more than one.
    """
    board = load_board(wish.board)
    source, said, kind = _source_of(wish)
    plan = expand(board, Choice(schemes=(wish.scheme,), samplers=(wish.sampler,) if wish.sampler else ()))
    if not plan.cells:
        raise UsageError(f"board '{board.name}' has no cell of {wish.scheme} with sampler {wish.sampler or 'exact'}")
    if len(plan.labels) > 1:
        listed = ", ".join(plan.labels.values())
        raise UsageError(f"board '{board.name}' has several rows of {wish.scheme} ({listed}): add --sampler NAME")
    who, label = next(iter(plan.labels.items()))
    found = read_store(wish.store)
    at = survey(plan, found, signs(wish.store))
    wanted = {(w.context, w.seeds) for w in plan.cells}
    contexts = {w.context for w in plan.cells}
    entries = tuple(e for e in found.entries if _same(e, who) or e.scheme == board.reference)
    also = sum(_context(e) in contexts and (_context(e), e.seeds) not in wanted for e in entries if _same(e, who))
    drawn = isolated_sampler(plan.cells[0].asked["sampler"])[0]
    chosen = select(plan, found.entries, found.faults)
    return Row(wish, plan, who, label, kind, source, said, drawn.scored, at.cells, entries, chosen, also)


def _context(e: Entry) -> Context:
    return Context(e.task, e.model, e.density)


def _same(e: Entry, who: Who) -> bool:
    """Whether a record is of a row, whatever version of its source it was made with."""
    return (e.scheme, e.scheme_args, e.sampler, e.sampler_args) == (
        who.scheme, who.args, who.sampler, who.sampler_args
    )  # fmt: skip


def _source_of(wish: Wish) -> tuple[Source | None, Said, Word]:
    """The one file that is not on a shelf, and what is submitted: a scheme, or a sampler for one that is there."""
    scheme, sampler = options.parse(wish.scheme)[0], options.parse(wish.sampler)[0]
    own: list[Scheme | Sampler] = [] if is_shelved_scheme(scheme) else [isolated_scheme(wish.scheme)[0]]
    if sampler and not is_shelved_sampler(sampler):
        own.append(isolated_sampler(wish.sampler)[0])
    if len(own) > 1:
        raise UsageError("scheme and sampler are both files of your own: a submission is one of them")
    if not own:
        word: Word = "sampler" if sampler not in ("", STANDARD) else "scheme"
        at_hand = outline(scheme) if word == "scheme" else isolated_sampler(sampler)[0]
        return None, Said(at_hand.name, at_hand.summary, at_hand.url), word
    told = own[0].outline
    assert told is not None
    try:
        content = told.path.read_bytes()
    except OSError as error:
        raise UsageError(f"{told.word} file '{told.path}' cannot be read: {error.strerror}") from None
    faults = source_faults(content, told.word)
    if not allowed(f"source/{told.path.name}"):
        faults.append("has a name that a bundle cannot have: letters, digits and _ before .py")
    if (is_shelved_scheme if told.word == "scheme" else is_shelved_sampler)(told.name):
        faults.append(f"defines '{told.name}', which is on the shelf already: give it another name")
    return Source(told.path, content, tuple(faults)), Said(told.name, told.summary, told.url), told.word


# What stands against it


def refusals(row: Row, card: Mapping[str, str], watch: Watch = lambda cells, _: cells) -> list[Verdict]:
    """Everything that the rules refuse, before anything is written: all of it at once, in the order of the rules.

    `watch` is given the cells that are read, and their number, and gives them back one by one.
    """
    found = [*_source_refusals(row), *contract_refusals(row), *_cell_refusals(row), *_file_refusals(row, watch)]
    found += [_refused("card", why) for why in card_faults(card, row.said)]
    order = [rule.number for rule in RULES]
    return sorted(found, key=lambda verdict: order.index(verdict.rule))


def _refused(check: str, why: str) -> Verdict:
    return Verdict(check, rule_of(check), "failed", why)


def _source_refusals(row: Row) -> Iterator[Verdict]:
    if row.source is not None:
        for fault in row.source.faults:
            yield _refused("source", f"{row.source.path.name} {fault}")
    sampler = row.wish.sampler or STANDARD
    for word, found, args in (
        ("scheme", isolated_scheme(row.wish.scheme)[0].function, row.who.args),
        ("sampler", isolated_sampler(sampler)[0].function, row.who.sampler_args),
    ):
        for name in options.files(found):
            value = json.loads(args).get(name)
            file = f"names a file, {value.partition('#')[0]}," if isinstance(value, str) else "is a file,"
            told = f"option {name} of the {word} {file} that a bundle does not hold"
            yield _refused("source", f"{told}: write what it says into a source file")


def contract_refusals(row: Row) -> list[Verdict]:
    """What a file of one's own fails of the contract (R2); its function is called in a confined process."""
    if row.source is None or row.source.faults:  # one that imports what it may not is not run at all
        return []
    name, found = row.source.path.stem, []
    if row.kind == "scheme":
        scheme, chosen = isolated_scheme(row.wish.scheme)
        with session(scheme, Limits()) as called:
            found = verdicts(scheme_list(called, options.bind(scheme.name, scheme.function, chosen), name)[0])
    else:
        sampler, chosen = isolated_sampler(row.wish.sampler)
        with session(sampler, Limits()) as drawn:
            found = verdicts(sampler_list(drawn, options.bind(sampler.name, sampler.function, chosen), name)[0])
    return [Verdict("contract", v.rule, v.state, f"{v.check}: {v.why}", v.where) for v in failed(found)]


def _cell_refusals(row: Row) -> Iterator[Verdict]:
    """Cells without a result that the board compares, by what is the matter with them."""
    lacking: dict[tuple[str, str, str], list[str]] = {}
    why_left = {fault.place: fault.why for fault in row.chosen.left_out}
    for at in row.cells:
        if at not in row.ended:
            lacking.setdefault(_matter(row, at, why_left), []).append(at.name)
    for (check, what, remedy), names in lacking.items():
        yield _refused(check, f"{_some(row, what, names)}: {remedy}")
    if any(check == "cells" for check, *_ in lacking) and row.also:
        yield _refused("cells", f"{counted(row.also, 'record')} of other seeds cannot stand for the board's")


def _matter(row: Row, at: At, why_left: Mapping[str, str]) -> tuple[str, str, str]:
    """(check, what, remedy) for a cell that has no result."""
    train, anew = row.wish.sweep, f"{row.wish.sweep} --retry"
    if at.state == "outdated":
        return "protocol", f"outdated: {at.note}", anew
    if at.state == "failed":
        return "cells", at.note, anew
    if at.state != "missing":
        return "cells", f"not finished ({at.state})", train
    place = (at.wanted.context, at.wanted.seeds)
    same = [e for e in row.entries if _same(e, row.who) and (_context(e), e.seeds) == place]
    for e in same:
        was, now = _versions(e, row.who)
        if was != now:
            return "identity", f"made with another source (sha256 {was[:8]}, today's is {now[:8]})", train
    for e in same:
        if why := why_left.get(e.place):
            return ("budget" if why.startswith("off budget") else "protocol"), why, train
    if why := why_left.get(ask(**at.wanted.asked).run_id({})):
        return "records", f"with a record that cannot be used: {why}", anew
    return "cells", "missing", train


def _versions(e: Entry, who: Who) -> tuple[str, str]:
    """Of the row's own file: the hash that a record was made with, and today's."""
    if who.source:
        return e.scheme_source, who.source
    return (e.sampler_source, who.sampler_source) if who.sampler_source else ("", "")


def _file_refusals(row: Row, watch: Watch) -> Iterator[Verdict]:
    """Files that a result must have beside its record."""
    lacking: dict[tuple[str, str], list[str]] = {}
    for at in watch(row.ended, len(row.ended)):
        for fault in _file_faults(row, at):
            lacking.setdefault(fault, []).append(at.where)
    for (check, what), names in lacking.items():
        yield _refused(check, _some(row, what, names))


def _file_faults(row: Row, at: At) -> Iterator[tuple[str, str]]:
    """(check, what) for whatever a cell's folder lacks."""
    try:
        evidence = evidence_of(row, at)
    except BundleError as error:
        yield "records", f"with a file that cannot be read: {error}"
        return
    entry = next(e for e in row.entries if e.place == at.where)
    if entry.status != "ok":
        return
    if not evidence.curve:
        yield "curve", "without curve.jsonl"
    for name in passes(row.plan, entry):
        if name not in evidence.outputs:
            yield "metrics", f"without outputs/{name}.npz"
            continue
        try:
            evidence.outputs[name]()
        except BundleError as error:
            yield "metrics", f"with an outputs/{name}.npz that cannot be read ({error.fault})"
    if row.scored and evidence.masks is None:
        yield "masks", "without masks.safetensors"


def passes(plan: Plan, e: Entry) -> list[str]:
    """The passes over images that a finished cell keeps outputs of: "selected/test", one per set and attack, and
    "last/test"."""
    asked = plan.tasks[e.task].evaluation
    names = ["test", *(load_set(name).name for name in asked.ood), *(load_attack(name).name for name in asked.attacks)]
    return [*(f"selected/{name}" for name in names if name not in e.skipped), "last/test"]


def evidence_of(row: Row, at: At) -> Evidence:
    """What the store holds of a cell with a result; BundleError where that cannot be read."""
    return store_evidence(row.wish.store, [at.where])[0]


def _some(row: Row, what: str, names: list[str]) -> str:
    more = f" and {len(names) - FEW:,} more" if len(names) > FEW else ""
    return f"{len(names):,} of {counted(len(row.cells), 'cell')} {what} ({', '.join(names[:FEW])}{more})"
