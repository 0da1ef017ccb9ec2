"""Claims: statements of a paper as declared contrasts of cells, in `tasks/claims/*.toml`, judged from records.

A part of a claim is a linear contrast of cell means and the side of a threshold on which the paper sees it. It is
reproduced where the contrast's 95 % interval lies wholly on that side, refuted where it lies wholly on the other, and
else the two cannot be separated. Cells are asked for as on a board, and records are left out by the same rules.

"Matches dense" means at most a margin of 0.5 points (a board's) below it; "falls short of dense" means below it at all.
Both give the statement its fairest reading, so a gap that is surely between -0.5 and 0 is evidence for either.

Several parts: where all must hold, a claim is reproduced when every part is, each at its own level (an
intersection-union test: all would have to err together, Berger 1982), but refuted when a single one is, for which
their p values are adjusted (Holm). Where any is enough it is the other way round. Parts that are not run count in the
family, so that what was run first decides nothing. With one to nine parts at their thresholds (4 cells and dense of 3
seeds each, 3,000 draws) wrong verdicts of either kind are at most 2.6 %, where 2.5 are promised.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rpbench.board import Board, Context, Grid, Plan, SeedList, Wanted, Who, expand, grid_faults, own_density
from rpbench.catalog import Row, definition, names
from rpbench.correlation import LARGEST, Correlation, within
from rpbench.entries import Entry, Fault
from rpbench.errors import BadDefinition, RpbenchError
from rpbench.rows import Metric, metric_of, value_of
from rpbench.selection import Place, Selection, Shelved, select, who_of
from rpbench.stats import Estimate, Group, Pooled, contrast, group, holm, pool
from rpbench.task import Count, Definition, Density, Name, Reference, load_attack, load_definition, load_set, load_task

Verdict = Literal["reproduced", "refuted", "cannot be separated", "not run"]
VERDICTS: tuple[Verdict, ...] = ("reproduced", "refuted", "cannot be separated", "not run")
Norms = Callable[[Entry, str, int], float | None]
ALPHA = 0.025  # one-sided: the level of either end of a 95 % interval
RATES = ("top1", "top5", "ece", "nll", "brier")
OOD = ("auroc", "aupr", "fpr95", "auroc_energy", "aupr_energy", "fpr95_energy")


class Term(Definition):
    """The mean over every combination of what is listed, times `factor`; schemes with a density of their own (`dense`)
    need none. `task`, `board` and `seeds` are the claim's unless given; `steps` is how many of the first training
    steps a gradient norm is averaged over (correlations alone)."""

    schemes: Annotated[tuple[str, ...], Field(min_length=1)]
    models: Annotated[tuple[str, ...], Field(min_length=1)]
    densities: tuple[Density, ...] = ()
    factor: float = 1.0
    task: Reference = ""
    board: Reference = ""
    seeds: SeedList | None = None
    steps: Count | None = None


class Part(Definition):
    """A contrast, the sum of its terms, and what it is claimed to be: `above` or `below` a value, in the metric's unit
    (points for rates, "macs": thousand millions).

    `each` makes a part of every combination of what the first term lists there; terms that list the same take the same
    one. `reported` is the contrast's value by the paper's own numbers, one per part.
    """

    title: str = ""
    metric: str = ""
    above: float | None = None
    below: float | None = None
    each: tuple[Literal["schemes", "models", "densities"], ...] = ()
    terms: Annotated[tuple[Term, ...], Field(min_length=1)]
    reported: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _one_side(self) -> Part:
        if (self.above is None) == (self.below is None):
            raise ValueError("a part needs one of above and below")
        return self

    @property
    def threshold(self) -> float:
        return self.above if self.above is not None else self.below or 0.0

    @property
    def side(self) -> int:
        """+1 where the contrast is claimed to be above the threshold, -1 where below."""
        return 1 if self.above is not None else -1


class Related(Definition):
    """Schemes of which a larger gradient norm early in training goes with a better metric, net by net."""

    norm: Literal["global_l2", "layer_mean_l2", "mean_abs"] = "global_l2"
    terms: Annotated[tuple[Term, ...], Field(min_length=1)]


class Assumed(Definition):
    """A seed standard deviation for a metric (in its unit), used where every cell has one seed alone."""

    metric: str
    sd: Annotated[float, Field(gt=0)]
    source: str


class Claim(Definition):
    """A statement of a paper and what would have to be measured. `holds` says whether all parts must be reproduced,
    or any; `note` is what a reader should know, as where the paper's figures say something else than its text."""

    name: Name
    version: Count
    statement: str
    place: str
    url: str
    note: str = ""
    task: Reference = ""
    board: Reference = ""
    seeds: SeedList
    metric: str = "top1"
    holds: Literal["all", "any"] = "all"
    parts: tuple[Part, ...] = ()
    related: Related | None = None
    assumed: tuple[Assumed, ...] = ()

    @model_validator(mode="after")
    def _judged(self) -> Claim:
        if bool(self.parts) == (self.related is not None):
            raise ValueError("a claim needs either [[parts]] or [related]")
        return self

    @property
    def terms(self) -> tuple[Term, ...]:
        related = self.related.terms if self.related else ()
        return (*(term for part in self.parts for term in part.terms), *related)

    @property
    def boards(self) -> tuple[str, ...]:
        """The boards whose cells it needs."""
        return tuple(dict.fromkeys(term.board for term in self.terms))


# --- definitions ----------------------------------------------------------------------------------------------------


def claim_names() -> list[str]:
    return names("tasks.claims", ".toml")


def load_claim(given: str) -> Claim:
    """The claim that `given` names, a shelf name or a TOML file, with every term filled in and every `each` spelt out.

    BadDefinition reports all its faults at once.
    """
    path = definition("claim", "tasks.claims", given)
    declared = load_definition(Claim, path)
    claim = _filled(declared, path.parent)
    faults = list(_faults(claim)) or list(_double(claim))
    if faults:
        count = f"{len(faults)} faults" if len(faults) > 1 else "1 fault"
        raise BadDefinition(f"{path}: {count}: " + "; ".join(faults))
    return claim.model_copy(update={"parts": tuple(one for part in claim.parts for one in _each(part))})


def _filled(claim: Claim, beside: Path) -> Claim:
    """The claim with its own task, board, seeds and metric wherever a term or part gives none."""

    def filled(term: Term) -> Term:
        task = term.task or claim.task
        if task.endswith(".toml"):
            task = str(beside / task)
        return term.model_copy(
            update={"task": task, "board": term.board or claim.board, "seeds": term.seeds or claim.seeds}
        )

    parts = tuple(
        part.model_copy(update={"terms": tuple(map(filled, part.terms)), "metric": part.metric or claim.metric})
        for part in claim.parts
    )
    related = claim.related and claim.related.model_copy(update={"terms": tuple(map(filled, claim.related.terms))})
    return claim.model_copy(update={"parts": parts, "related": related})


def _each(part: Part) -> Iterator[Part]:
    """A part for every combination that its `each` stands for."""
    first = part.terms[0]
    lists = [getattr(first, name) for name in part.each]
    for i, chosen in enumerate(itertools.product(*lists)):
        terms = []
        for term in part.terms:
            told = zip(part.each, lists, chosen, strict=True)
            same: dict[str, Any] = {name: (one,) for name, listed, one in told if getattr(term, name) == listed}
            terms.append(term.model_copy(update=same))
        own = f"{part.title}, {', '.join(map(_short, chosen))}" if part.title and chosen else part.title
        yield part.model_copy(
            update={"terms": tuple(terms), "each": (), "title": own, "reported": part.reported[i : i + 1]}
        )


def _short(value: str | float) -> str:
    return f"{value:g}" if isinstance(value, float) else value


def _placed(claim: Claim) -> Iterator[tuple[str, Term]]:
    for i, part in enumerate(claim.parts):
        yield from ((f"parts.{i}.terms.{j}", term) for j, term in enumerate(part.terms))
    if claim.related:
        yield from ((f"related.terms.{j}", term) for j, term in enumerate(claim.related.terms))


def _faults(claim: Claim) -> Iterator[str]:
    """What of a claim names nothing that exists, or says too much or too little."""
    for i, part in enumerate(claim.parts):
        many = math.prod(len(getattr(part.terms[0], name)) for name in part.each)
        if part.reported and len(part.reported) != many:
            yield f"parts.{i}.reported has {len(part.reported)} values: it takes one for each of {many} parts"
    for place, term in _placed(claim):
        yield from (f"{place}: {fault}" for fault in _term_faults(term, claim.related is not None))
    yield from _metric_faults(claim)


def _double(claim: Claim) -> Iterator[str]:
    """Trainings that a term names twice, and groups too large to be counted through."""
    plan = plan_of(claim)
    for place, term in _placed(claim):
        found, listed = len(cells_of(plan, term)), _listed(term)
        if found < listed:
            yield f"{place}: names {listed} trainings, but {listed - found} of them twice"
    if claim.related:
        for context, points in _by_context(plan, claim.related).items():
            if len(points) > LARGEST:
                yield f"related: {context.title} has {len(points)} schemes: at most {LARGEST} can be counted through"


def _term_faults(term: Term, related: bool) -> Iterator[str]:
    if term.factor == 0:
        yield "factor is 0: it would count for nothing"
    if related and term.steps is None:
        yield "steps is missing: how many of the first steps the gradient norm is taken over"
    if not related and term.steps is not None:
        yield f"steps is {term.steps}: it belongs to [related] alone"
    for name in ("task", "board"):
        if not getattr(term, name):
            yield f"{name} is missing, here and in the claim"
    if term.task:
        yield from grid_faults(_grid(term))


def _metric_faults(claim: Claim) -> Iterator[str]:
    pairs = [(f"parts.{i}", p.metric, t.task) for i, p in enumerate(claim.parts) for t in p.terms]
    if claim.related:
        pairs += [("related", claim.metric, t.task) for t in claim.related.terms]
    known_by = {task: _known_metrics(task) for _, _, task in pairs if task}
    for place, metric, task in dict.fromkeys(pairs):
        known = known_by.get(task)
        if known and metric not in known:
            yield f"{place}: metric is '{metric}': there is {', '.join(known)}"
    used = {metric for _, metric, _ in pairs}
    for i, one in enumerate(claim.assumed):
        if one.metric not in used:
            yield f"assumed.{i}: no part is about '{one.metric}'"


def _known_metrics(task: str) -> list[str]:
    """Metrics that a task's records have, and "macs"; nothing where the task itself is faulty."""
    try:
        told = load_task(task).evaluation
        ood = [load_set(name).name for name in told.ood]
        attacks = [load_attack(name).name for name in told.attacks]
    except RpbenchError:
        return []
    return [*RATES, *(f"{kind}/{name}" for kind in OOD for name in ood), *(f"robust/{a}" for a in attacks), "macs"]


def _listed(term: Term) -> int:
    """How many trainings a term lists."""
    each = sum(1 if own_density(s) is not None else len(term.densities) for s in term.schemes)
    return each * len(term.models) * len(term.seeds or ())


# --- cells ----------------------------------------------------------------------------------------------------------


def plan_of(claim: Claim) -> Plan:
    """The claim's cells as those of a board, so that records are chosen as boards choose them."""
    assert claim.terms
    grids = tuple(dict.fromkeys(_grid(term) for term in claim.terms))
    return expand(Board(name=claim.name, version=claim.version, summary=claim.statement, url=claim.url,
                        seeds=claim.seeds, grids=grids))  # fmt: skip


def _grid(term: Term) -> Grid:
    return Grid(task=term.task, models=term.models, densities=term.densities, schemes=term.schemes, seeds=term.seeds)


def cells_of(plan: Plan, term: Term) -> tuple[Wanted, ...]:
    """The trainings that a term is the mean of."""
    own = {s: own_density(s) for s in term.schemes}
    return tuple(
        w for w in plan.cells
        if w.asked["task"] == term.task and w.asked["model"] in term.models and w.asked["scheme"] in own
        and w.seeds.run in (term.seeds or ())
        and (own[w.asked["scheme"]] is not None or w.context.density in term.densities)
    )  # fmt: skip


@dataclass(frozen=True)
class Lack:
    """A training that a claim needs and that has no usable result, the board it is a cell of, and why."""

    wanted: Wanted
    board: str
    why: Literal["missing", "failed", "infeasible", "not scored", "not tracked"]
    told: str = ""


@dataclass(frozen=True)
class Measured:
    """One part: its contrast (None where a training is missing) and what follows.

    `toward` and `against` are one-sided p values of the contrast lying on the claimed side of the threshold and on the
    other; `assumed` is the noise that stands in for that of one seed.
    """

    part: Part
    metric: Metric
    verdict: Verdict
    estimate: Estimate | None = None
    pooled: Pooled | None = None
    assumed: Assumed | None = None
    toward: float = 1.0
    against: float = 1.0


@dataclass(frozen=True)
class Judgement:
    """A claim and what the records say of it. `trainings` is how many it needs, `lacks` those that are not there."""

    claim: Claim
    verdict: Verdict
    parts: tuple[Measured, ...]
    relation: Correlation | None
    trainings: int
    lacks: tuple[Lack, ...]
    left_out: tuple[Fault, ...]


# --- judging --------------------------------------------------------------------------------------------------------


def judge(claim: Claim, entries: Iterable[Entry], norms: Norms | None = None) -> Judgement:
    """What records say of a claim. `norms(entry, name, steps)` gives the mean gradient norm over a training's first
    steps, None where they were not tracked."""
    plan = plan_of(claim)
    needed = {w[:3] for term in claim.terms for w in cells_of(plan, term)}
    contexts = {context for context, *_ in needed}
    shelved = Shelved.now()
    near = ((Context(e.task, e.model, e.density), e) for e in entries)
    chosen = select(plan, [e for c, e in near if c in contexts and (c, who_of(e, shelved), e.seeds) in needed])
    if claim.related:
        verdict, relation, lacks = _relate(claim, claim.related, plan, chosen, norms or (lambda *_: None))
        return Judgement(claim, verdict, (), relation, len(needed), tuple(lacks), chosen.left_out)
    every: dict[Any, Lack] = {}
    parts = []
    for part in claim.parts:
        found, lacking = _measure(claim, part, plan, chosen)
        parts.append(found)
        for lack in lacking:
            every.setdefault(lack.wanted[:3], lack)
    verdict = together(claim.holds, parts)
    return Judgement(claim, verdict, tuple(parts), None, len(needed), tuple(every.values()), chosen.left_out)


def together(holds: Literal["all", "any"], parts: Sequence[Measured]) -> Verdict:
    """The verdict on a claim from those on its parts."""
    one: Verdict = "refuted" if holds == "all" else "reproduced"
    every: Verdict = "reproduced" if holds == "all" else "refuted"
    adjusted = holm([p.against if holds == "all" else p.toward for p in parts])
    if any(p.verdict == one and q <= ALPHA for p, q in zip(parts, adjusted, strict=True)):
        return one
    if all(p.verdict == every for p in parts):
        return every
    return "not run" if any(p.verdict == "not run" for p in parts) else "cannot be separated"


def _measure(claim: Claim, part: Part, plan: Plan, chosen: Selection) -> tuple[Measured, list[Lack]]:
    metric = shown(part.metric)
    lacks: list[Lack] = []
    weights: dict[tuple[Who, Context], float] = {}
    values: dict[tuple[Who, Context], list[float]] = {}
    for term in part.terms:
        cells = cells_of(plan, term)
        places = dict.fromkeys((w.who, w.context) for w in cells)
        for place in places:  # a net that stands in several terms is one group, its weights summed
            weights[place] = weights.get(place, 0.0) + term.factor / len(places)
            values[place] = []
        for w in cells:
            found = _value(chosen, w, metric)
            if isinstance(found, float):
                values[w.who, w.context].append(found)
            else:
                lacks.append(Lack(w, term.board, *found))
    if lacks:
        return Measured(part, metric, "not run"), lacks
    used = [(group(values[place]), weight) for place, weight in weights.items() if abs(weight) > 1e-12]
    noise = pool(g for g, _ in used)
    estimate = contrast([g for g, _ in used], [w for _, w in used], noise)
    assumed = None
    if estimate.se is None:
        assumed = next((a for a in claim.assumed if a.metric == part.metric), None)
        estimate = _alone(estimate, used, part.metric, assumed)
    verdict, toward, against = against_threshold(part, estimate)
    return Measured(part, metric, verdict, estimate, noise, assumed, toward, against), []


def _alone(estimate: Estimate, used: Sequence[tuple[Group, float]], metric: str, assumed: Assumed | None) -> Estimate:
    """One seed a cell tells nothing of its noise: the assumed one stands in. Costs are computed, not sampled."""
    if metric == "macs":
        return Estimate(estimate.value, 0.0, math.inf)
    if assumed is None:
        return estimate
    return Estimate(estimate.value, assumed.sd * math.sqrt(math.fsum(w * w / g.n for g, w in used)), math.inf)


def against_threshold(part: Part, estimate: Estimate) -> tuple[Verdict, float, float]:
    """The verdict by the 95 % interval, and the one-sided p values toward and against."""
    interval = estimate.interval()
    if interval is None:
        return "cannot be separated", 1.0, 1.0
    beyond = Estimate(part.side * (estimate.value - part.threshold), estimate.se, estimate.df)
    half = (1.0 if beyond.p is None else beyond.p) / 2
    toward, against = (half, 1 - half) if beyond.value >= 0 else (1 - half, half)
    low, high = sorted(part.side * (end - part.threshold) for end in interval)
    verdict: Verdict = "reproduced" if low > 0 else "refuted" if high < 0 else "cannot be separated"
    return verdict, toward, against


def shown(key: str) -> Metric:
    """A metric as it is shown; beside those of boards "macs", multiply-adds of an image through the kept weights."""
    return Metric("macs", "sparse MACs", "G", 1e-9, -1) if key == "macs" else metric_of(key)


def _value(chosen: Selection, w: Wanted, metric: Metric) -> float | tuple[Any, str]:
    """A training's value, scaled as the metric is shown; (why there is none, in words) where there is none."""
    place = chosen.places.get(w.who, {}).get(w.context, Place())
    e = place.ok.get(w.seeds)
    if e is not None:
        if metric.key == "macs":
            found = None if e.sparse_macs is None else e.sparse_macs * metric.scale
        else:
            found = value_of(e, metric)
        return found if found is not None else ("not scored", f"not scored on {metric.key}")
    if end := place.infeasible.get(w.seeds):
        return "infeasible", f"infeasible: {end.error}"
    if end := place.broken.get(w.seeds):
        return "failed", f"{end.status}: {end.error}"
    return "missing", ""


def _by_context(plan: Plan, related: Related) -> dict[Context, dict[Who, list[tuple[Wanted, Term]]]]:
    """Trainings to be related, by net and density, then by scheme."""
    found: dict[Context, dict[Who, list[tuple[Wanted, Term]]]] = {}
    for term in related.terms:
        for w in cells_of(plan, term):
            found.setdefault(w.context, {}).setdefault(w.who, []).append((w, term))
    return found


def _relate(
    claim: Claim, related: Related, plan: Plan, chosen: Selection, norms: Norms
) -> tuple[Verdict, Correlation | None, list[Lack]]:
    """Log gradient norm against the metric, means over seeds, within each net at each density."""
    metric = shown(claim.metric)
    lacks: list[Lack] = []
    groups = []
    for context, schemes in _by_context(plan, related).items():
        points = []
        for who, cells in schemes.items():
            xs, ys = [], []
            for w, term in cells:
                found = _value(chosen, w, metric)
                if not isinstance(found, float):
                    lacks.append(Lack(w, term.board, *found))
                    continue
                entry = chosen.places[who][context].ok[w.seeds]
                norm = norms(entry, related.norm, term.steps or 1)
                if norm is None or not 0 < norm < math.inf:
                    lacks.append(Lack(w, term.board, "not tracked", "its gradient norms were not tracked"))
                    continue
                xs.append(math.log(norm))
                ys.append(metric.sign * found)
            if xs:
                points.append((math.fsum(xs) / len(xs), math.fsum(ys) / len(ys)))
        groups.append(points)
    if lacks:
        return "not run", None, lacks
    found_relation = within(groups)
    if found_relation is None:
        return "cannot be separated", None, []
    if found_relation.above <= ALPHA:
        return "reproduced", found_relation, []
    return ("refuted" if found_relation.below <= ALPHA else "cannot be separated"), found_relation, []


def read_norms(store: Path) -> Norms:
    """The mean gradient norm over a training's first steps, from `<run id>/gradient_flow.jsonl` of a store: a line a
    step. None where there are fewer lines, or one that is no finite number."""

    def read(e: Entry, name: str, steps: int) -> float | None:
        try:
            with (store / e.run_id / "gradient_flow.jsonl").open() as lines:
                found = [float(json.loads(line)[name]) for line in itertools.islice(lines, steps)]
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            return None
        whole = len(found) == steps and all(map(math.isfinite, found))
        return math.fsum(found) / steps if whole else None

    return read


# --- what is said of them -------------------------------------------------------------------------------------------


def claim_rows() -> list[Row]:
    """One row per claim of the shelf."""
    found = []
    for name in claim_names():
        claim = load_claim(name)
        plan = plan_of(claim)
        needed = {w[:3] for term in claim.terms for w in cells_of(plan, term)}
        found.append(
            {"name": name, "summary": claim.statement, "source": claim.url, "place": claim.place}
            | {"boards": list(claim.boards), "cells": len(needed)}
        )
    return found
