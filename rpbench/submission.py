"""From a store to a bundle: one row of a board, everything that stands against it, and the files that show it.

The places of the board are filled as a report fills them, so that what is submitted is what was compared.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rpbench import options
from rpbench.board import Choice, Context, Plan, Who, board_names, expand, load_board
from rpbench.bundle import Evidence, allowed, store_evidence
from rpbench.card import card_faults
from rpbench.catalog import find_sampler, find_scheme, is_shelved_sampler, is_shelved_scheme, outline
from rpbench.cell import ask
from rpbench.entries import Entry, read_store
from rpbench.errors import BundleError, UsageError
from rpbench.heartbeat import signs
from rpbench.rules import RULES, rule_of
from rpbench.selection import Selection, select
from rpbench.source import Told, read_source, source_hash
from rpbench.sweep import At, survey
from rpbench.task import load_attack, load_set
from rpbench.verdict import Verdict

Kind = Literal["scheme", "sampler"]
Watch = Callable[[Iterable[Any], int], Iterable[Any]]
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
    """One row of a board, as a store has it. `source` is the file of one's own (scheme or sampler) and what it says,
    None where both are on the shelf; `also` are records of the row that its board does not ask for."""

    wish: Wish
    plan: Plan
    who: Who
    label: str
    kind: Kind
    source: Source | None
    told: Told | None
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
    source, told, kind = _source_of(wish)
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
    mine = tuple(e for e in found.entries if _same(e, who) and _context(e) in contexts)
    also = sum((_context(e), e.seeds) not in wanted for e in mine)
    drawn = find_sampler(plan.cells[0].asked["sampler"])[0]
    chosen = select(plan, found.entries, found.faults)
    return Row(wish, plan, who, label, kind, source, told, drawn.scored, at.cells, tuple(found.entries), chosen, also)


def _context(e: Entry) -> Context:
    return Context(e.task, e.model, e.density)


def _same(e: Entry, who: Who) -> bool:
    """Whether a record is of a row, whatever version of its source it was made with."""
    return (e.scheme, e.scheme_args, e.sampler, e.sampler_args) == (
        who.scheme, who.args, who.sampler, who.sampler_args
    )  # fmt: skip


def _source_of(wish: Wish) -> tuple[Source | None, Told | None, Kind]:
    """The one file that is not on a shelf, and what is submitted: a scheme, or a sampler for one that is there."""
    scheme, sampler = options.parse(wish.scheme)[0], options.parse(wish.sampler)[0]
    own: list[tuple[Kind, str]] = [] if is_shelved_scheme(scheme) else [("scheme", wish.scheme)]
    if sampler and not is_shelved_sampler(sampler):
        own.append(("sampler", wish.sampler))
    if len(own) > 1:
        raise UsageError("scheme and sampler are both files of your own: a submission is one of them")
    if not own:
        if sampler not in ("", "exact"):
            found = find_sampler(sampler)[0]
            return None, Told("sampler", found.name, found.summary, found.url), "sampler"
        at_hand = outline(scheme)
        return None, Told("scheme", at_hand.name, at_hand.summary, at_hand.url), "scheme"
    kind, given = own[0]
    path = _path_of(kind, given)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{kind} file '{path}' cannot be read: {error.strerror}") from None
    told, faults = read_source(content)
    if told is not None and told.kind != kind:
        faults.append(f"defines a {told.kind}, not a {kind}")
    if not allowed(f"source/{path.name}"):
        faults.append(f"is called '{path.name}': a name of letters, digits and _ that ends in .py is taken")
    return Source(path, content, tuple(faults)), told, kind


def _path_of(kind: Kind, given: str) -> Path:
    """The file behind a name: a path, or the module of an installed package."""
    name, _ = options.parse(given)
    if name.endswith(".py") or "/" in name:
        path = Path(name).expanduser()
        if not path.is_file():
            raise UsageError(f"{kind} file '{path}' does not exist")
        return path
    import inspect

    found = (find_scheme if kind == "scheme" else find_sampler)(name)[0]
    file = inspect.getsourcefile(found.function)
    if file is None:
        raise UsageError(f"{kind} '{name}' has no source file that could be submitted")
    return Path(file)


# What stands against it


def refusals(row: Row, card: Mapping[str, str], watch: Watch = lambda cells, _: cells) -> list[Verdict]:
    """Everything that the rules refuse, before anything is written: all of it at once, in the order of the rules.

    `watch` is given the cells that are read, and their number, and gives them back one by one.
    """
    found = [*_source_refusals(row), *contract_refusals(row), *_cell_refusals(row), *_file_refusals(row, watch)]
    found += [_refused("card", why) for why in card_faults(card, row.told, row.source is not None)]
    order = [rule.number for rule in RULES]
    return sorted(found, key=lambda verdict: order.index(verdict.rule))


def _refused(check: str, why: str) -> Verdict:
    return Verdict(check, rule_of(check), "failed", why)


def _source_refusals(row: Row) -> Iterator[Verdict]:
    if row.source is not None:
        for fault in row.source.faults:
            yield _refused("source", f"{row.source.path.name} {fault}")
    for word, args in (("scheme", row.who.args), ("sampler", row.who.sampler_args)):
        for name, value in json.loads(args).items():
            if isinstance(value, str) and "#sha256:" in value:
                told = (
                    f"option {name} of the {word} names a file, {value.partition('#')[0]}, that a bundle does not hold"
                )
                yield _refused("source", f"{told}: write what it says into a source file")


def contract_refusals(row: Row) -> list[Verdict]:
    """Checks of the contract (R2) that the row's scheme or sampler fails. None are made here yet."""
    return []


def _cell_refusals(row: Row) -> Iterator[Verdict]:
    """Cells without a result that the board compares, by what is the matter with them."""
    lacking: dict[tuple[str, str], list[str]] = {}
    why_left = {fault.place: fault.why for fault in row.chosen.left_out}
    for at in row.cells:
        if at not in row.ended:
            lacking.setdefault(_matter(row, at, why_left), []).append(at.name)
    for (check, why), names in lacking.items():
        yield _refused(check, f"{_some(names, len(row.cells))} {why}")
    if any(check == "cells" for check, _ in lacking) and row.also:
        yield _refused("cells", f"{_counted(row.also, 'record')} of other seeds stand for none of the missing ones")


def _matter(row: Row, at: At, why_left: Mapping[str, str]) -> tuple[str, str]:
    """(check, why) for a cell that has no result."""
    again = row.wish.sweep
    if at.state == "outdated":
        return "protocol", f"is out of date: {at.note}: {again} --retry"
    if at.state == "failed":
        return "cells", f"has failed ({at.note}): {again} --retry"
    if at.state != "missing":
        return "cells", f"is not finished ({at.state}): {again}"
    same = [
        e for e in row.entries if _same(e, row.who) and (_context(e), e.seeds) == (at.wanted.context, at.wanted.seeds)
    ]
    for e in same:
        if e.place in why_left:
            why = why_left[e.place]
            return ("budget" if why.startswith("off budget") else "protocol"), f"is {why}: {again}"
    for e in same:
        was, now = _versions(e, row.who)
        if was != now:
            return "identity", f"was made with another version of the source ({was[:8]}, today's is {now[:8]}): {again}"
    name = ask(**at.wanted.asked).run_id({})
    if name in why_left:
        return "records", f"has a record that cannot be used ({why_left[name]}): {again} --retry"
    return "cells", f"is missing: {again}"


def _versions(e: Entry, who: Who) -> tuple[str, str]:
    if who.source and e.scheme_source != who.source:
        return e.scheme_source, who.source
    return (e.sampler_source, who.sampler_source) if who.sampler_source else ("", "")


def _file_refusals(row: Row, watch: Watch) -> Iterator[Verdict]:
    """Files that a result must have beside its record."""
    lacking: dict[tuple[str, str], list[str]] = {}
    for at in watch(row.ended, len(row.ended)):
        for key in _file_faults(row, at):
            lacking.setdefault(key, []).append(at.where)
    for (check, why), names in lacking.items():
        yield _refused(check, f"{why}: {_some(names, len(row.cells))}")


def _file_faults(row: Row, at: At) -> Iterator[tuple[str, str]]:
    try:
        evidence = evidence_of(row, at)
    except BundleError as error:
        yield "records", str(error)
        return
    entry = next(e for e in row.entries if e.place == at.where)
    if row.source is not None:
        had = entry.scheme_source if row.kind == "scheme" else entry.sampler_source
        if had != source_hash(row.source.content):
            yield "identity", f"{row.source.path.name} is not the file that these records were made with"
    if entry.status != "ok":
        return
    if not evidence.curve:
        yield "curve", "curve.jsonl is missing"
    for name in passes(row.plan, entry):
        if name not in evidence.outputs:
            yield "metrics", f"outputs/{name}.npz is missing"
            continue
        try:
            evidence.outputs[name]()
        except BundleError as error:
            yield "metrics", f"outputs/{name}.npz cannot be read ({error.fault})"
    if row.scored and evidence.masks is None:
        yield "masks", "masks.safetensors is missing"


def passes(plan: Plan, e: Entry) -> list[str]:
    """The passes over images that a finished cell keeps outputs of: "selected/test", one per set and attack, and
    "last/test"."""
    asked = plan.tasks[e.task].evaluation
    names = ["test", *(load_set(name).name for name in asked.ood), *(load_attack(name).name for name in asked.attacks)]
    return [*(f"selected/{name}" for name in names if name not in e.skipped), "last/test"]


def evidence_of(row: Row, at: At) -> Evidence:
    """What the store holds of a cell with a result; BundleError where that cannot be read."""
    return store_evidence(row.wish.store, [at.where])[0]


def _some(names: list[str], total: int) -> str:
    more = f" and {len(names) - FEW:,} more" if len(names) > FEW else ""
    return f"{len(names):,} of {total:,} cells ({', '.join(names[:FEW])}{more})"


def _counted(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
