"""A board's cells and how far they are: what is finished, running, failed or missing, read from the store alone."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rpbench.board import Context, Plan, Wanted
from rpbench.entries import Entry, Found
from rpbench.heartbeat import Sign
from rpbench.record import canonical
from rpbench.selection import Place, select

State = Literal["finished", "infeasible", "running", "stopped", "stale", "failed", "outdated", "missing"]
STATES: tuple[State, ...] = (
    "finished", "infeasible", "running", "stopped", "stale", "failed", "outdated", "missing",
)  # fmt: skip
DONE: tuple[State, ...] = ("finished", "infeasible")
RETRIED: tuple[State, ...] = ("failed", "outdated")  # run again only when asked


class At(NamedTuple):
    """How far one cell is."""

    wanted: Wanted
    state: State
    note: str = ""
    done: float = 0.0
    where: str = ""  # its folder, or the machine that works on it
    over: bool = False  # to run it means to start over: it has a record of a finished run

    @property
    def name(self) -> str:
        w = self.wanted
        seeds = "".join(
            f" {n}{v}" for n, v in (("mask", w.seeds.mask), ("init", w.seeds.init), ("order", w.seeds.order))
            if v != w.seeds.run
        )  # fmt: skip
        return f"{w.context.model} {w.label} {w.context.density:g} s{w.seeds.run}{seeds}"


@dataclass(frozen=True)
class Survey:
    """Every cell of a plan with its state."""

    plan: Plan
    cells: tuple[At, ...]
    beside: tuple[
        tuple[str, int], ...
    ] = ()  # rows that the plan does not have, with their results: its reports show them

    def count(self, *states: State) -> int:
        return sum(at.state in states for at in self.cells)

    def to_run(self, retry: bool) -> list[At]:
        """What a sweep runs now: cells without a result that nobody works on; failed ones only when asked."""
        skipped = (*DONE, "running", *(() if retry else RETRIED))
        return [at for at in self.cells if at.state not in skipped]


def survey(plan: Plan, found: Found, signs: Iterable[tuple[str, Sign]]) -> Survey:
    """Where every cell of a plan stands, from the records and signs of life of a store."""
    chosen = select(plan, found.entries)
    outdated = {fault.place: fault.why for fault in chosen.left_out if fault.place in chosen.stale}
    old = {_key_of(e): (e.place, outdated[e.place]) for e in found.entries if e.place in outdated}
    living = {key: (name, sign) for name, sign in signs if (key := _asked_key(sign.cell))}
    cells = tuple(_at(w, chosen.places.get(w.who, {}).get(w.context), living, old) for w in plan.cells)
    beside = (
        (chosen.labels[who], sum(len(p.ok) + len(p.infeasible) for p in places.values()))
        for who, places in chosen.places.items()
        if who not in plan.labels
    )
    return Survey(plan, cells, tuple((label, n) for label, n in beside if n))


def tracked(at: Survey, store: Path) -> Survey:
    """The survey of a board that wants gradient norms: cells that were trained without noting them are outdated."""
    if at.plan.board.track == "none":
        return at
    missing = "trained without noting gradient norms, which this board wants"
    cells = [
        one._replace(state="outdated", note=missing, over=True)
        if one.state == "finished" and not (store / one.where / "gradient_flow.jsonl").is_file()
        else one
        for one in at.cells
    ]
    return replace(at, cells=tuple(cells))


def _at(w: Wanted, place: Place | None, living: dict[str, tuple[str, Sign]], old: dict[str, tuple[str, str]]) -> At:
    key = _key(w.context, w.who.scheme, w.who.args, w.who.sampler, w.who.sampler_args, w.seeds, w.asked["precision"])
    if key in living:
        name, sign = living[key]
        if sign.word == "running":
            return At(w, "running", f"process {sign.pid} on {sign.host}", sign.done, name)
    if place and (e := place.ok.get(w.seeds)):
        return At(w, "finished", "", 1.0, e.place)
    if place and (e := place.infeasible.get(w.seeds)):
        return At(w, "infeasible", e.error, 1.0, e.place)
    if place and (e := place.broken.get(w.seeds)):
        return At(w, "failed", f"{e.status}: {e.error}", 0.0, e.place, over=e.status == "diverged")
    if key in old:
        return At(w, "outdated", old[key][1], 0.0, old[key][0], over=True)
    if key in living:
        name, sign = living[key]
        return At(w, sign.word, f"last seen on {sign.host}", sign.done, name)
    return At(w, "missing")


def _key_of(e: Entry) -> str:
    context = Context(e.task, e.model, e.density)
    return _key(context, e.scheme, e.scheme_args, e.sampler, e.sampler_args, e.seeds, e.precision)


def _key(context: Context, scheme: str, args: str, sampler: str, sampler_args: str, seeds: Any, precision: str) -> str:
    return canonical([*context, scheme, json.loads(args), sampler, json.loads(sampler_args), vars(seeds), precision])


def _asked_key(asked: dict[str, Any]) -> str:
    """The key of a cell that was asked for; '' for one that no board can want."""
    try:
        if asked["overrides"] or asked["limit"] is not None or asked["limit_test"] is not None:
            return ""
        scheme, sampler = asked["scheme"], asked["sampler"]
        whose = [scheme["name"], scheme["args"], sampler["name"], sampler["args"]]
        return canonical([asked["task"]["name"], asked["model"], asked["density"], *whose, asked["seeds"],
                          asked["precision"]])  # fmt: skip
    except (KeyError, TypeError, ValueError):
        return ""


@dataclass(frozen=True)
class Guess:
    """How long cells take on one slot, from finished ones: seconds, and of how many cells nothing is known."""

    seconds: float
    unknown: int


def guess(todo: Sequence[At], entries: Iterable[Entry]) -> Guess:
    """Expected seconds of cells, one after another: the median of finished cells of their task, net and precision."""
    took: dict[tuple[str, str, str], list[float]] = {}
    for e in entries:
        if e.status == "ok" and e.seconds:
            took.setdefault((e.task, e.model, e.precision), []).append(e.seconds)
    keys = [(at.wanted.context.task, at.wanted.context.model, at.wanted.asked["precision"]) for at in todo]
    known = [statistics.median(took[key]) * (1 - at.done) for key, at in zip(keys, todo, strict=True) if key in took]
    return Guess(sum(known), len(keys) - len(known))


def tally(cells: Iterable[At]) -> dict[str, int]:
    """How many cells are in each state, in a fixed order, without the states that none is in."""
    counts = Counter(at.state for at in cells)
    return {state: counts[state] for state in STATES if counts[state]}
