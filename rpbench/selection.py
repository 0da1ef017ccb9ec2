"""Which records a board compares, and why the others are left out. Every reason is told; nothing is lost silently."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rpbench.board import Context, Plan, Who
from rpbench.catalog import is_shelved_sampler, names, outline, sampler_names
from rpbench.entries import Entry, Fault
from rpbench.errors import UsageError
from rpbench.models import resolve
from rpbench.record import canonical
from rpbench.streams import Seeds


@dataclass
class Place:
    """What there is of one row in one context: results and other ends, by the seeds they had."""

    ok: dict[Seeds, Entry] = field(default_factory=dict)
    infeasible: dict[Seeds, Entry] = field(default_factory=dict)
    broken: dict[Seeds, Entry] = field(default_factory=dict)  # failed or diverged


@dataclass(frozen=True)
class Selection:
    """Records of a board by row and context, and those that belong to it but cannot be compared."""

    places: dict[Who, dict[Context, Place]]
    labels: dict[Who, str]
    left_out: tuple[Fault, ...]
    other_seeds: int = 0  # records of other boards, or of more seeds than this one has: passed over
    stale: frozenset[str] = frozenset()  # places of those whose scheme has changed since


def select(plan: Plan, entries: Iterable[Entry], faults: Iterable[Fault] = ()) -> Selection:
    """Sort records into the places of a board. Records of other boards are passed over; what belongs here by task, net
    and density and cannot be compared is in `left_out`, with the reason."""
    wanted: dict[Context, set[Seeds]] = {}
    for w in plan.cells:
        wanted.setdefault(w.context, set()).add(w.seeds)
    reference = plan.board.reference
    places: dict[Who, dict[Context, Place]] = {}
    left: list[Fault] = list(faults)
    prunable: dict[tuple[str, str], int] = {}
    shelved = Shelved.now()
    compared, passed = set(plan.contexts), 0
    stale: set[str] = set()
    mine = [e for e in entries if (e.task, e.model, e.density) in (wanted if e.scheme == reference else compared)]
    sources = _model_sources(plan)

    def order(e: Entry) -> tuple[Any, ...]:
        # the reference first: whose net another record must have; then what has a result, at the whole batch
        return e.scheme != reference, e.status == "failed", e.micro_batch is not None, e.run_id, e.place

    for e in sorted(mine, key=order):
        context = Context(e.task, e.model, e.density)
        who = who_of(e, shelved)
        if (own := who._replace(source=e.scheme_source)) in plan.labels:
            who = own  # a file of one's own that is named as one on the shelf
        place = places.get(who, {}).get(context, Place())
        why = _objection(plan, e)
        if not why and (why := _stale(e, who, shelved)):
            stale.add(e.place)
        why = why or _off_budget(e)
        if not why and e.model_source != sources[context[:2]]:
            why = f"of another source of model {e.model} than today's"
        if not why and e.prunable != prunable.setdefault(context[:2], e.prunable):
            why = (
                f"has {e.prunable:,} prunable weights, not the {prunable[context[:2]]:,} of other records of {e.model}"
            )
        if not why and e.seeds not in wanted[context]:
            passed += 1
            continue
        if not why and e.status == "ok" and plan.board.metric not in e.metrics:
            why = f"has no {plan.board.metric}"
        if not why and any(e.seeds in part for part in (place.ok, place.infeasible, place.broken)):
            why = "a second record of the same cell"
        if why:
            left.append(Fault(e.place, why))
            continue
        part = {"ok": place.ok, "infeasible": place.infeasible}.get(e.status, place.broken)
        part[e.seeds] = e
        places.setdefault(who, {})[context] = place
    others = [w for w in places if w not in plan.labels]
    labels = {**plan.labels, **_own_labels(others, _called(places), frozenset(plan.labels.values()))}
    return Selection(places, labels, tuple(left), passed, frozenset(stale))


@dataclass(frozen=True)
class Shelved:
    """What is on the shelves, looked up once for many records."""

    schemes: frozenset[str]
    samplers: frozenset[str]

    @classmethod
    def now(cls) -> Shelved:
        return cls(frozenset(names("baselines", ".py")), frozenset(s for s in sampler_names() if is_shelved_sampler(s)))


def who_of(e: Entry, shelved: Shelved) -> Who:
    """Whose row a record belongs to."""
    own = "" if e.scheme in shelved.schemes else e.scheme_source
    drawn = "" if e.sampler in shelved.samplers else e.sampler_source
    return Who(e.scheme, e.scheme_args, own, e.sampler, e.sampler_args, drawn)


def _model_sources(plan: Plan) -> dict[tuple[str, str], str]:
    """The hash of each net's file, '' for those that rpbench has itself."""
    nets = {(w.context.task, w.context.model) for w in plan.cells}
    return {(task, model): resolve(model, plan.tasks[task].family).source for task, model in nets}


def _objection(plan: Plan, e: Entry) -> str:
    """Why a record cannot be compared on this board; '' if it can."""
    if e.spec != plan.specs[e.task]:
        return (
            f"of another definition of task '{e.task}' than today's (spec {e.spec[:8]}, not {plan.specs[e.task][:8]})"
        )
    if not e.on_protocol:
        return f"off protocol: {', '.join(e.notes) or 'limits or overrides'}"
    for word, value, right in (
        ("precision", e.precision, plan.board.precision),
        ("init", e.init, "default"),
        ("source", e.source, "none"),
        ("procedure", e.procedure, "static"),
    ):
        if value != right:
            return f"{word} is {value}, the board's is {right}"
    return ""


def _stale(e: Entry, who: Who, shelved: Shelved) -> str:
    """Whether a baseline has changed since a record of it was made."""
    if not who.source and e.scheme in shelved.schemes and e.scheme_source != outline(e.scheme).source_hash:
        why = f"stale: the source of scheme '{e.scheme}' is not the one that this record was made with"
        return f"{why} (if it is a file of your own: give it another name)"
    return ""


def _off_budget(e: Entry) -> str:
    budget = round(e.density * e.prunable)
    if e.status == "ok" and e.kept != budget:
        return f"off budget: keeps {e.kept:,} weights, {budget:,} were asked for"
    return ""


def _own_labels(rows: list[Who], called: Mapping[Who, str], taken: frozenset[str]) -> dict[Who, str]:
    """Labels of rows that the board does not name: what they are called where they are published, else the scheme's own
    with its options; as short as tells them apart."""
    found = {who: called.get(who) or _whole_label(who) for who in rows}
    for label in set(found.values()):
        same = [who for who in found if found[who] == label]
        if len({(who.source, who.sampler_source) for who in same}) < len(same):  # they differ in options
            found |= {who: _whole_label(who) for who in same}
    for label in set(found.values()):
        same = [who for who in found if found[who] == label]
        if len(same) > 1 or label in taken:
            found |= {who: f"{label} @{'+'.join(h[:8] for h in (who.source, who.sampler_source) if h)}" for who in same}
    return found


def _whole_label(who: Who) -> str:
    text, drawn = _written(who.scheme, who.args), _written(who.sampler, who.sampler_args)
    return text if drawn == "exact" else f"{text} + {drawn}"


def _called(places: Mapping[Who, Mapping[Context, Place]]) -> dict[Who, str]:
    """What rows that are not the shelf's are called where they are published: all of a row's lines say so."""
    found = {}
    for who, there in places.items():
        records = (e for p in there.values() for part in (p.ok, p.infeasible, p.broken) for e in part.values())
        rows = {e.row for e in records if e.row}
        if len(rows) == 1 and (who.source or who.sampler_source) and may_be_called(who, *rows):
            found[who] = rows.pop()
    return found


def may_be_called(who: Who, row: str) -> bool:
    """Whether a label is one of this row's: its scheme's name, and its sampler's where that is not "exact"."""
    scheme, _, sampler = row.partition(" + ")
    drawn = "" if who.sampler == "exact" else who.sampler
    return (scheme.partition(":")[0], sampler.partition(":")[0]) == (who.scheme, drawn)


def _written(name: str, args: str) -> str:
    """NAME:key=value of the options that differ from the defaults, as far as those are known."""
    values: Mapping[str, Any] = json.loads(args)
    defaults: Mapping[str, Any] = {}
    if name in names("baselines", ".py"):
        try:
            defaults = outline(name).options
        except UsageError:
            defaults = {}
    if not isinstance(values, dict):
        return name
    parts = [f"{k}={v}" for k, v in values.items() if canonical(defaults.get(k)) != canonical(v)]
    return f"{name}:{','.join(parts)}" if parts else name
