"""Cells trained again, and how their results compare with what was told."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rpbench.checks import asked
from rpbench.checks.scored import numbers, unlike
from rpbench.checks.standing import Relation, Tolerance, among_seeds, choose, limit, relate, tolerance
from rpbench.checks.told import Told
from rpbench.entries import Entry, entry
from rpbench.errors import RpbenchError, UsageError
from rpbench.pack import End, Watch, own_cores, run_packed
from rpbench.record import RunRecord
from rpbench.rows import metric_of
from rpbench.run import Wish
from rpbench.untrusted import shown
from rpbench.verdict import Verdict
from rpbench.verification import Subject

ALPHA = 0.01  # that an honest cell is found outside, over all reruns and both comparisons
SEEDS_WEIGH = 10  # p values of four or five seeds are small by chance: a raised record should stand before those
SOFTWARE = ("rpbench", "torch", "numpy", "platform", "device", "device_name", "threads", "world_size", "precision",
            "engine")  # fmt: skip
Asked = dict[str, Any]


@dataclass(frozen=True)
class Found:
    """What a cell gave when it was trained again: its record and curve, or why there is none."""

    record: RunRecord | None
    curve: str | None = None
    refused: str = ""


@dataclass(frozen=True)
class Chosen:
    """The cells to be trained again: those that stand out, those drawn at random by `seed`, those that were named."""

    standing_out: tuple[str, ...]
    at_random: tuple[str, ...]
    named: tuple[str, ...]
    seed: int
    ps: Mapping[str, float] = field(default_factory=dict, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.named, *self.standing_out, *self.at_random)))


@dataclass(frozen=True)
class Compared:
    """One cell trained again. `differences` are told less found, by metric."""

    run_id: str
    outcome: Literal["equal", "within", "outside", "unknown"]
    why: str
    metric: str
    told: float | None = None
    found: float | None = None
    tolerance: Tolerance | None = None
    differences: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def verdict(self) -> Verdict:
        state: Literal["passed", "failed", "skipped"] = "passed"
        if self.outcome in ("outside", "unknown"):
            state = "failed" if self.outcome == "outside" else "skipped"
        return Verdict("rerun", "R13", state, self.why + (f" ({self.note})" if self.note else ""), self.run_id)


def choice(
    subject: Subject, beside: Sequence[Entry], n: int, seed: int, named: Sequence[str] = (), metric: str = "top1"
) -> Chosen:
    """Which cells to train again: `named` ones, and n more, of which half (rounded up) stand out most among the seeds
    of their own row, or by their own other numbers; the rest at random. UsageError for names that are not there, or of
    which the scheme is not."""
    asks = asks_of(subject)
    known = {told.where for told in subject.tolds}
    for name in named:
        if name not in known:
            raise UsageError(f"--cell {name}: there is no such cell in {subject.name}")
        if name not in asks:
            raise UsageError(f"--cell {name}: its scheme or sampler is not here, so it cannot be trained again")
    able = [t.where for t in subject.tolds if t.where in asks and t.record.status in ("ok", "diverged")]
    able = [name for name in dict.fromkeys(able) if name not in named]
    ps = standing_out(subject, beside, metric)
    out, random = choose(ps, able, n, seed)
    return Chosen(tuple(out), tuple(random), tuple(named), seed, ps)


def standing_out(subject: Subject, beside: Sequence[Entry], metric: str = "top1") -> dict[str, float]:
    """Each cell's least p value of being like the others (see `standing`)."""
    entries = _together(subject, beside)
    found: dict[str, float] = {}
    for net in {(e.task, e.model) for e in entries}:
        _, ps = relate([e for e in entries if (e.task, e.model) == net])
        found |= ps
    for row in _groups(entries).values():
        values = {e.run_id: e.metrics[metric] for e in row if metric in e.metrics}
        for name, p in among_seeds(values).items():
            found[name] = min(p * SEEDS_WEIGH, found.get(name, 1.0))
    return found


def _together(subject: Subject, beside: Sequence[Entry]) -> list[Entry]:
    """The subject's entries and others of its contexts, each run once; results alone."""
    own = {told.where: told.entry for told in subject.tolds}
    contexts = set(subject.known.wanted)
    others = {e.run_id: e for e in beside if (e.task, e.model, e.density) in contexts and e.on_protocol}
    return [e for e in (others | own).values() if e.status == "ok"]


def _groups(entries: Sequence[Entry]) -> dict[tuple[Any, ...], list[Entry]]:
    """Seeds of one row in one context."""
    found: dict[tuple[Any, ...], list[Entry]] = {}
    for e in entries:
        found.setdefault(_row(e), []).append(e)
    return found


def _row(e: Entry) -> tuple[Any, ...]:
    return e.task, e.model, e.density, e.scheme, e.scheme_args, e.scheme_source, e.sampler, e.sampler_args


def asks_of(subject: Subject) -> dict[str, Asked]:
    """How to ask for each cell of the board whose scheme and sampler are here, by its name. Left out: what nobody can
    ask for, which checks say."""
    found = {}
    for who, row in asked.rows(subject.tolds, subject.known).items():
        try:
            if asked.given_of(subject.known, who) is None:
                continue
            wanted = asked.wanted_of(subject.known, who)
        except RpbenchError:
            continue
        for told in row:
            ask = wanted.get((told.context, told.entry.seeds))
            if ask and not asked.micro_batch_fault(told.record, subject.known):
                found[told.where] = ask | {"micro_batch": told.record.micro_batch}
    return found


def again(
    subject: Subject, names: Sequence[str], slots: int | None, watch: Callable[[list[str]], Watch]
) -> list[Found]:
    """Train cells in a store that is thrown away, each with as many threads as its record says (this machine's cores
    at most): what each gave. UsageError where images are missing; Interrupted after a signal."""
    asks, tolds = asks_of(subject), {told.where: told for told in subject.tolds}
    found: dict[str, Found] = {}
    parts: dict[tuple[int, bool], list[str]] = {}
    for name in names:
        record = tolds[name].record
        threads = record.env.get("threads")
        usable = threads if isinstance(threads, int) and 1 <= threads <= own_cores() else own_cores()
        parts.setdefault((usable, bool(record.skipped)), []).append(name)
    with tempfile.TemporaryDirectory(prefix="rpbench-") as store:
        for (threads, skip), part in parts.items():
            together = min(len(part), slots or max(1, own_cores() // threads))
            known = subject.known
            wish = Wish(Path(store), known.roots, skip_missing=skip, note_failures=True, scheme_limits=known.limits)
            shown_ = watch(part)
            ends = run_packed(
                [asks[name] for name in part], wish, together, shown_, apart=True, cores=together * threads
            )
            for name, end in zip(part, ends, strict=True):
                found[name] = _found(end)
    return [found[name] for name in names]


def _found(end: End) -> Found:
    if end.outcome is None:
        return Found(None, refused=end.refused)
    curve = end.outcome.folder / "curve.jsonl"
    return Found(end.outcome.record, curve.read_text() if curve.is_file() else None)


def compare(
    subject: Subject, names: Sequence[str], found: Sequence[Found], beside: Sequence[Entry], metric: str = "top1"
) -> list[Compared]:
    """Each cell's result beside what was told of it."""
    tolds, entries = {told.where: told for told in subject.tolds}, _together(subject, beside)
    alpha = ALPHA / (2 * len(names)) if names else ALPHA
    done = []
    for name, one in zip(names, found, strict=True):
        told = tolds[name]
        others = [e for e in entries if e.run_id != name]
        relation, _ = relate([e for e in others if (e.task, e.model) == told.context[:2]])
        least = 1 / subject.known.sets(subject.known.task(told.record)).test
        done.append(_compared(told, one, others, relation, metric, alpha, least))
    return done


def _compared(
    told: Told,
    again: Found,
    others: Sequence[Entry],
    relation: Relation | None,
    metric: str,
    alpha: float,
    least: float,
) -> Compared:
    record, shown_metric = told.record, metric_of(metric)
    found = again.record
    if found is None:
        return Compared(told.where, "unknown", f"could not be trained again: {again.refused}", metric)
    if found.status != record.status or not told.ok:
        same = found.status == record.status
        why = f"ended as {found.status} again" if same else f"ended as {found.status}: the record says {record.status}"
        return Compared(told.where, "within" if same else "outside", why, metric)
    a, b = numbers(record, told.evidence.curve), numbers(found, again.curve if told.evidence.curve else None)
    differences = {key: a[key] - b[key] for key in record.metrics if key in b and key != "epoch"}
    t, f = a.get(metric, math.nan), b.get(metric, math.nan)
    own = _row(told.entry)
    groups = {row: [e.metrics[metric] for e in there if metric in e.metrics] for row, there in _groups(
        [e for e in others if (e.task, e.model, e.density) == told.context]).items()}  # fmt: skip
    groups[own] = [*groups.get(own, []), f]  # the result found is one more seed as good as any, the one told is not
    allowed = tolerance(groups, own, alpha, least if shown_metric.scale == 100 else 0.0)
    scale, unit = shown_metric.scale, " points" if shown_metric.scale == 100 else ""
    words = f"{shown_metric.title} {f * scale:.2f}{shown_metric.unit and ' %'}, told {t * scale:.2f}"

    def ended(outcome: Literal["equal", "within", "outside", "unknown"], why: str) -> Compared:
        note = _note(record, found) if outcome != "equal" else ""
        return Compared(told.where, outcome, why, metric, t, f, allowed, differences, note)

    if a == b:
        return ended("equal", f"equal to the bit: {words}")
    if why := unlike(b, a):
        return ended("outside", f"{words}: {why}")
    if allowed is None:
        return ended("unknown", f"{words}: no row has two seeds to tell how far they may differ")
    span = f"±{allowed.half * scale:.2f}{unit} (seeds scatter by {allowed.sd * scale:.2f}, {allowed.df} df)"
    if not abs(t - f) <= allowed.half:
        return ended("outside", f"{words}: {(t - f) * scale:+.2f}{unit}, outside {span}")
    if metric == "top1" and relation and (why := _surplus(told.entry, entry(found, ""), relation, alpha)):
        return ended("outside", f"{words}: {why}")
    return ended("within", f"{words}: {(t - f) * scale:+.2f}{unit}, within {span}")


def _surplus(told: Entry, found: Entry, relation: Relation, alpha: float) -> str:
    """Where a told top-1 is higher or lower than its own other numbers lead one to expect, beside the rerun's."""
    off = relation.surplus(told) - relation.surplus(found)
    half = limit(alpha, relation.df) * math.hypot(relation.spread(told), relation.spread(found))
    if not math.isfinite(off) or abs(off) <= half:
        return ""
    return f"{off * 100:+.2f} points beside its own Brier score, ECE and last epoch, outside ±{half * 100:.2f}"


def _note(told: RunRecord, found: RunRecord) -> str:
    """What a difference in spite of equal software and device means: somebody should look."""
    if any(told.env.get(key) != found.env.get(key) for key in SOFTWARE) or not found.env.get("deterministic"):
        return ""
    if found.micro_batch != told.micro_batch:
        return ""
    return f"software, {shown(found.env.get('device_name'))} and threads are the same, where runs repeat to the bit"
