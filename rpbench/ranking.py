"""Records -> rows: every scheme's mean gap to the dense nets of the same recipe, with interval, rank and completeness.

A row's score and its interval depend on its own records and the reference's alone. Ranks compare rows: their noise is
pooled over all ranked rows, and every pair is one of a declared family (Holm).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, NamedTuple

from rpbench.board import Context, Plan, Who
from rpbench.catalog import is_shelved_scheme
from rpbench.errors import UnknownName
from rpbench.rows import (
    LEVELS,
    SINGLE,
    Block,
    Cell,
    Metric,
    Net,
    Order,
    Row,
    Sheet,
    State,
    Weights,
    metric_of,
    ood_sets,
    value_of,
)
from rpbench.selection import Place, Selection
from rpbench.stats import (
    Crossing,
    Estimate,
    Group,
    Pooled,
    StreamVariance,
    contrast,
    crossing,
    group,
    holm,
    paired_contrast,
    pool,
    ranks,
    separated,
    stream_variances,
)
from rpbench.streams import Seeds


@dataclass(frozen=True)
class _Reference:
    """The dense nets that gaps are taken to: groups by net, for any metric."""

    cells: dict[Net, Cell]
    seen: dict[Net, tuple[str, ...] | None] = field(default_factory=dict)

    def sets(self, net: Net) -> tuple[str, ...] | None:
        """The OoD sets that all dense nets were scored on; None where there is no dense net."""
        if net not in self.seen:
            self.seen[net] = ood_sets(self.cells[net].entries) if net in self.cells else None
        return self.seen[net]


def score(plan: Plan, selection: Selection, metric: str = "", order: Order = "params") -> Sheet:
    """Score the rows of a board by one metric. UnknownName where no record has that metric."""
    shown = metric_of(metric or plan.board.metric)
    known = _metrics(selection)
    if known and shown.key not in known:
        raise UnknownName("metric", shown.key, sorted(known))
    seeds = _wanted_seeds(plan)
    who_reference = next(w.who for w in plan.cells if w.asked["scheme"] == plan.board.reference)
    wanted = list(dict.fromkeys(w.context for w in plan.cells if w.who == who_reference))
    reference = _Reference({
        c[:2]: _cell(c, selection.places.get(who_reference, {}).get(c, Place()), seeds[c], shown, None) for c in wanted
    })  # fmt: skip
    rows = []
    for who in [*plan.labels, *(w for w in selection.places if w not in plan.labels)]:
        if who != who_reference and _belongs(plan, who, selection.places.get(who, {}), seeds):
            rows.append(_row(plan, selection, who, seeds, shown, reference, order))
    complete = [row for row in rows if not row.lacks and all(c.state == "ok" for c in row.cells)]
    infeasible = [row for row in rows if not row.lacks and row not in complete]
    incomplete = [row for row in rows if row.lacks]
    every = plan.contexts
    levels = _levels(plan, every)
    title = f"all {len(every)} cells" if len(every) > 1 else "1 cell"
    if order == "flops":
        title = f"{', '.join(f'{level:.0%}' for level in sorted(levels))} of dense FLOPs"
    ranked, short = _block(title, plan, every, complete, reference, shown, order)
    incomplete += short
    common = None
    if infeasible:
        shared = tuple(c for c in every if all(_state(row, c) == "ok" for row in (*complete, *infeasible)))
        title = f"the {len(shared)} cells of {len(every)} that are feasible for all"
        common, _ = _block(title, plan, shared, [*complete, *infeasible], reference, shown, order)
        incomplete = [*incomplete, *infeasible]
    not_run = [plan.labels[w] for w in plan.labels if w not in selection.places and w != who_reference]
    return Sheet(
        plan=plan,
        metric=shown,
        order=order,
        reference=tuple(reference.cells.values()),
        ranked=ranked,
        common=common,
        incomplete=tuple(sorted(incomplete, key=lambda r: r.label)),
        not_run=tuple(not_run),
        left_out=selection.left_out,
        axes=_axes(known, shown.key),
        notes=tuple(_notes(plan, reference, ranked, order, selection.other_seeds)),
    )


def _belongs(plan: Plan, who: Who, places: Mapping[Context, Place], seeds: Mapping[Context, tuple[Seeds, ...]]) -> bool:
    """Whether a row is the board's: one that it names, one of somebody's own, or a baseline with all seeds of a cell
    (with fewer, its records are those of another board that shares a few)."""
    if who in plan.labels or not is_shelved_scheme(who.scheme):
        return bool(places)
    return any(set(seeds[context]) <= set(place.ok) for context, place in places.items())


def _axes(known: set[str], main: str) -> tuple[str, ...]:
    """The axes beside the score: accuracy, calibration, out of distribution, robustness."""
    robust = sorted(k for k in known if k.startswith("robust/"))
    return tuple(k for k in ("top1", "ece", "nll", "ood", *robust) if k in known and k != main)


def _metrics(selection: Selection) -> set[str]:
    found = {
        k for places in selection.places.values() for p in places.values() for e in p.ok.values() for k in e.metrics
    }
    return (found | {"ood"} if any(k.startswith("auroc/") for k in found) else found) - {"epoch"}


def _cell(
    context: Context, place: Place, wanted: tuple[Seeds, ...], metric: Metric, reference: _Reference | None
) -> Cell:
    """What there is of a row in a context."""
    have = [s for s in wanted if s in place.ok]
    entries = tuple(place.ok[s] for s in have)
    sets = reference.sets(context[:2]) if reference else ood_sets(entries)
    values = [value_of(e, metric, sets) for e in entries]
    known = tuple(v for v in values if v is not None)
    missing = tuple(s for s in wanted if s not in place.ok)
    state: State = "ok"
    if place.infeasible and not have:
        state = "infeasible"
    elif not have:
        state = "failed" if place.broken else "missing"
    elif len(known) < len(have) or (missing and not _single(have, wanted)):
        state = "partial"
    ends = [*place.infeasible.values(), *place.broken.values()]
    reason = "; ".join(dict.fromkeys(f"{e.status}: {e.error}" for e in ends))
    told = group(known) if known and len(known) == len(have) else None
    gap = None
    if told and reference:
        other = reference.cells.get(context[:2])
        if other and other.group:
            gap = contrast([told, other.group], [1.0, -1.0], pool([told, other.group]))
    return Cell(context, state, tuple(have), missing, known, told, gap, entries, reason)


def _single(have: Sequence[Seeds], wanted: Sequence[Seeds]) -> bool:
    """Whether there is the board's first seed alone: such rows are placed, and marked."""
    return list(have) == [wanted[0]]


def _wanted_seeds(plan: Plan) -> dict[Context, tuple[Seeds, ...]]:
    found: dict[Context, dict[Seeds, None]] = {}
    for w in plan.cells:
        found.setdefault(w.context, {})[w.seeds] = None
    return {context: tuple(seeds) for context, seeds in found.items()}


def _row(
    plan: Plan,
    selection: Selection,
    who: Who,
    seeds: Mapping[Context, tuple[Seeds, ...]],
    metric: Metric,
    reference: _Reference,
    order: Order,
) -> Row:
    places = selection.places[who]
    cells = tuple(_cell(c, places.get(c, Place()), seeds[c], metric, reference) for c in plan.contexts)
    lacks = [_lack(cell) for cell in cells if cell.state not in ("ok", "infeasible")]
    alone = [len(c.seeds) == 1 < len(seeds[c.context]) for c in cells if c.state == "ok"]
    if any(alone) and not all(alone):
        lacks += [_lack(c) for c, one in zip((c for c in cells if c.state == "ok"), alone, strict=True) if one]
    marks = [SINGLE] if alone and all(alone) else []
    skipped = sorted({s for c in cells for e in c.entries for s in e.skipped})
    marks += [f"without {', '.join(skipped)}"] if skipped else []
    marks += _divided(cells)
    row = Row(who, selection.labels[who], cells, marks=tuple(marks), lacks=tuple(lacks))
    found = _matching(plan, row, reference) if metric.key == plan.board.metric else {}  # whose margin it is
    return _with(row, matching=found, luck=_luck(cells), level=_level(plan, places, seeds))


def _level(plan: Plan, places: Mapping[Context, Place], seeds: Mapping[Context, tuple[Seeds, ...]]) -> str:
    """The least level of a row's records; at least "complete" where there is one for every seed of every cell, one
    that says that its budget cannot be met included."""
    there = [(set(seeds[c]), places.get(c, Place())) for c in plan.contexts]
    records = (e for _, p in there for part in (p.ok, p.infeasible, p.broken) for e in part.values())
    least = min((e.level for e in records), default="", key=LEVELS.index)
    whole = all(wanted <= {*p.ok, *p.infeasible} for wanted, p in there)
    return max(least, "complete", key=LEVELS.index) if least and whole else least


def _divided(cells: Sequence[Cell]) -> list[str]:
    """How batches were divided, if they were: normalisation then sees the parts."""
    entries = [e for c in cells for e in c.entries]
    found = []
    if worlds := {e.world_size for e in entries if e.world_size > 1}:
        found.append(f"{', '.join(map(str, sorted(worlds)))} processes")
    if parts := {e.micro_batch for e in entries if e.micro_batch is not None}:
        found.append(f"micro-batches of {', '.join(map(str, sorted(parts)))}")
    return found


def _luck(cells: Sequence[Cell]) -> dict[str, StreamVariance | None]:
    """The variance that comes from masks, initial weights and data order, where a board varies them apart."""
    whole = [c for c in cells if len(c.values) == len(c.entries)]
    pairs = [(c.context, v, e) for c in whole for v, e in zip(c.values, c.entries, strict=True)]
    runs = [(v, e.mask_seed, e.init_seed, e.order_seed, context) for context, v, e in pairs]
    if all(mask == init == order for _, mask, init, order, _ in runs):
        return {}
    values, mask, init, order, contexts = zip(*runs, strict=True)
    return stream_variances(values, mask, init, order, contexts)


def _lack(cell: Cell) -> str:
    where = cell.context.title
    if cell.state == "failed":
        return f"{where}: {cell.reason}"
    if not cell.seeds:
        return f"{where}: no seed"
    if not cell.missing:
        return f"{where}: not scored on it"
    runs = ", ".join(str(s.run) for s in cell.missing)
    return f"{where}: seed{'s' if len(cell.missing) > 1 else ''} {runs}"


def _state(row: Row, context: Context) -> State:
    return row.cell(context).state


def _with(row: Row, **changes: Any) -> Row:
    from dataclasses import replace

    return replace(row, **changes)


# --- scores ---------------------------------------------------------------------------------------------------------


def weights(
    row: Row, contexts: Sequence[Context], reference: _Reference, order: Order, levels: Sequence[float]
) -> Weights | str:
    """The row's score as weights of group means; words where the row does not reach what is compared."""
    if order == "params":
        each = 1 / len(contexts)
        found = Weights(dict.fromkeys(contexts, each), {})
        for c in contexts:
            found.reference[c[:2]] = found.reference.get(c[:2], 0.0) - each
        return found
    return _flops_weights(row, contexts, levels)


def _levels(plan: Plan, contexts: Sequence[Context]) -> tuple[float, ...]:
    """The fractions of dense FLOPs at which rows are compared: the board's, else its densities."""
    return plan.board.flops or tuple(dict.fromkeys(c.density for c in contexts))


def _flops_weights(row: Row, contexts: Sequence[Context], levels: Sequence[float]) -> Weights | str:
    """Linear interpolation of the mean over log FLOPs between a net's densities, the dense net at 1."""
    found = Weights({}, {})
    nets = list(dict.fromkeys(c[:2] for c in contexts))
    each = 1 / (len(nets) * len(levels))
    for net in nets:
        points: list[tuple[float, Context | None]] = [(0.0, None)]
        for cell in row.cells:
            if cell.context in contexts and cell.context[:2] == net:
                if not cell.flops:
                    return f"{net[1]}: FLOPs are not known"
                points.append((math.log(cell.flops), cell.context))
        points.sort(key=lambda p: p[0])
        for level in levels:
            x = math.log(level)
            if x < points[0][0]:
                least = math.exp(points[0][0])
                return f"{net[1]}: its FLOPs reach down to {least:.1%} of the dense net's, not to {level:.1%}"
            upper = next(i for i, p in enumerate(points) if p[0] >= x)
            lower = max(0, upper - 1)
            span = points[upper][0] - points[lower][0]
            part = (x - points[lower][0]) / span if span else 1.0
            for share, (_, context) in ((1 - part, points[lower]), (part, points[upper])):
                if context is None:
                    found.reference[net] = found.reference.get(net, 0.0) + share * each
                else:
                    found.own[context] = found.own.get(context, 0.0) + share * each
            found.reference[net] = found.reference.get(net, 0.0) - each
    return found


def _estimate(
    parts: Sequence[tuple[Row, Weights, float]],
    reference: _Reference,
    groups: _Groups,
    pooled: Pooled | None,
    paired: bool,
) -> Estimate | None:
    """A sum of rows' scores, each with a factor: 1 row is its gap, two with 1 and -1 their difference."""
    told: list[tuple[Results, float]] = []
    joint: dict[Net, float] = {}
    for row, w, factor in parts:
        for context, weight in w.own.items():
            found = groups.own(row, context)
            if found is None:
                return None
            told.append((found, factor * weight))
        for net, weight in w.reference.items():
            joint[net] = joint.get(net, 0.0) + factor * weight
    for net, weight in joint.items():
        if abs(weight) > 1e-12:
            found = groups.reference(net)
            if found is None:
                return None
            told.append((found, weight))
    if paired and len({r.seeds for r, _ in told}) == 1 and len(told[0][0].seeds) > 1:
        return paired_contrast([r.values for r, _ in told], [w for _, w in told])
    return contrast([r.group for r, _ in told], [w for _, w in told], pooled)


class Results(NamedTuple):
    """Results of one metric in one cell, by seed."""

    group: Group
    values: tuple[float, ...]
    seeds: tuple[Seeds, ...]


@dataclass(frozen=True)
class _Groups:
    """Results of one metric by row and context, and the reference's by net."""

    metric: Metric
    dense: _Reference
    seen: dict[int, Results | None] = field(default_factory=dict)

    def own(self, row: Row, context: Context) -> Results | None:
        return self._told(row.cell(context), context[:2])

    def reference(self, net: Net) -> Results | None:
        cell = self.dense.cells.get(net)
        return self._told(cell, net) if cell else None

    def _told(self, cell: Cell, net: Net) -> Results | None:
        if id(cell) not in self.seen:
            sets = self.dense.sets(net)
            values = [value_of(e, self.metric, sets) for e in cell.entries]
            known = tuple(v for v in values if v is not None)
            whole = known and len(known) == len(values)
            self.seen[id(cell)] = Results(group(known), known, cell.seeds) if whole else None
        return self.seen[id(cell)]


def _block(
    title: str,
    plan: Plan,
    contexts: tuple[Context, ...],
    rows: Sequence[Row],
    reference: _Reference,
    metric: Metric,
    order: Order,
) -> tuple[Block, list[Row]]:
    """Rank rows on contexts that all of them have; rows that do not reach what is compared are given back."""
    groups = _Groups(metric, reference)
    paired = plan.board.pairing == "seed"
    levels = _levels(plan, contexts)
    weighed: list[tuple[Row, Weights]] = []
    short: list[Row] = []
    for row in rows if contexts else ():
        found = weights(row, contexts, reference, order, levels)
        if isinstance(found, str):
            short.append(_with(row, lacks=(found,)))
        else:
            weighed.append((row, found))
    everyone = pool(
        [*_spread(weighed, groups), *(g for net in reference.cells if (g := _first(groups.reference(net))))]
    )
    scored = []
    for row, w in weighed:
        # a single-seed row has no noise of its own: it takes that of the block
        nets = {c[:2] for c in w.own}
        own = pool([*_spread([(row, w)], groups), *(g for n in nets if (g := _first(groups.reference(n))))])
        noise = everyone if SINGLE in row.marks else own
        scored.append((row, w, _estimate([(row, w, 1.0)], reference, groups, noise, paired)))
    absolute = {id(row): _absolute(row, w, groups) for row, w, _ in scored}
    scored.sort(key=lambda s: (-metric.sign * (absolute[id(s[0])] or 0.0), s[0].label))
    pairs = {}
    for (i, (a, wa, _)), (j, (b, wb, _)) in combinations(enumerate(scored), 2):
        found_pair = _estimate([(a, wa, 1.0), (b, wb, -1.0)], reference, groups, everyone, paired)
        if found_pair is not None:
            pairs[i, j] = Estimate(metric.sign * found_pair.value, found_pair.se, found_pair.df)
    places, apart = ranks(len(scored), pairs), separated(pairs)
    tested = [e.p for *_, e in scored if e is not None and e.p is not None]
    adjusted = iter(holm(tested))
    done, by_metric = [], {key: _Groups(metric_of(key), reference) for key in _keys([row for row, *_ in scored])}
    for (row, w, e), place in zip(scored, places, strict=True):
        p = next(adjusted) if e is not None and e.p is not None else None
        axes = _axes_of(row, w, reference, by_metric, paired)
        done.append(_with(row, score=e, p=p, rank=place, axes=axes))
    steps = tuple(_turned(pairs.get((i, i + 1)), metric.sign) for i in range(len(done) - 1))
    flags = tuple(bool(apart.get((i, i + 1))) for i in range(len(done) - 1))
    return Block(title, contexts, tuple(done), everyone, steps, flags), short


def _turned(e: Estimate | None, sign: int) -> Estimate | None:
    return e and Estimate(sign * e.value, e.se, e.df)


def _absolute(row: Row, w: Weights, groups: _Groups) -> float | None:
    """The row's weighted mean, with the reference's where it is known: orders rows even without a reference."""
    parts = [(g.group.mean, x) for c, x in w.own.items() if (g := groups.own(row, c))]
    parts += [(g.group.mean, x) for n, x in w.reference.items() if (g := groups.reference(n))]
    return math.fsum(m * x for m, x in parts) if parts else None


def _spread(weighed: Sequence[tuple[Row, Weights]], groups: _Groups) -> list[Group]:
    return [g for row, w in weighed for c in w.own if (g := _first(groups.own(row, c)))]


def _first(found: Results | None) -> Group | None:
    return found.group if found else None


def _keys(rows: Sequence[Row]) -> list[str]:
    """Every metric that these rows' records have."""
    keys = {k for row in rows for c in row.cells for e in c.entries for k in e.metrics} - {"epoch", "val_top1"}
    return sorted(keys | {"ood"} if any(k.startswith("auroc/") for k in keys) else keys)


def _axes_of(
    row: Row, w: Weights, reference: _Reference, by_metric: Mapping[str, _Groups], paired: bool
) -> dict[str, Estimate | None]:
    """The gap to the reference by every metric that the row's records have, weighted as the score is."""
    found = {}
    for key, groups in by_metric.items():
        spread = [*_spread([(row, w)], groups), *(g for n in w.reference if (g := _first(groups.reference(n))))]
        found[key] = _estimate([(row, w, 1.0)], reference, groups, pool(spread), paired)
    return found


def difference(sheet: Sheet, a: Row, b: Row) -> tuple[Estimate | None, tuple[Context, ...], Pooled | None]:
    """Row a less row b over the cells that both have, their noise pooled over the two alone."""
    shared = tuple(
        ca.context
        for ca, cb in zip(a.cells, b.cells, strict=True)
        if ca.group and cb.group and not {ca.state, cb.state} - {"ok", "partial"}
    )
    if not shared:
        return None, (), None
    reference = _Reference({c.context[:2]: c for c in sheet.reference})
    groups = _Groups(sheet.metric, reference)
    wa, wb = (weights(r, shared, reference, "params", ()) for r in (a, b))
    assert isinstance(wa, Weights)
    assert isinstance(wb, Weights)
    noise = pool([*_spread([(a, wa)], groups), *_spread([(b, wb)], groups)]) or sheet.ranked.pooled
    paired = sheet.plan.board.pairing == "seed"
    return _estimate([(a, wa, 1.0), (b, wb, -1.0)], reference, groups, noise, paired), shared, noise


def to_reference(sheet: Sheet, row: Row) -> tuple[Estimate | None, tuple[Context, ...], Pooled | None]:
    """A row's gap to the reference over the cells that it has, as `difference` gives that of two rows."""
    reference = _Reference({c.context[:2]: c for c in sheet.reference})
    groups = _Groups(sheet.metric, reference)
    have = tuple(c.context for c in row.cells if c.gap is not None and c.state in ("ok", "partial"))
    if not have:
        return None, (), None
    w = weights(row, have, reference, "params", ())
    assert isinstance(w, Weights)
    noise = pool([*_spread([(row, w)], groups), *(g for n in w.reference if (g := _first(groups.reference(n))))])
    paired = sheet.plan.board.pairing == "seed"
    return _estimate([(row, w, 1.0)], reference, groups, noise or sheet.ranked.pooled, paired), have, noise


def _matching(plan: Plan, row: Row, reference: _Reference) -> dict[Net, Crossing]:
    """Per net, the largest sparsity at which the row keeps within the board's margin of the dense net."""
    found = {}
    for net, dense in reference.cells.items():
        cells = [c for c in row.cells if c.context[:2] == net and c.state == "ok" and c.gap and c.group]
        cells = [c for c in cells if c.context.density < 1]
        cells.sort(key=lambda c: -c.context.density)
        if len(cells) < 2 or dense.group is None:
            continue
        noise = pool([dense.group, *(c.group for c in cells if c.group)])
        told = [contrast([c.group, dense.group], [1.0, -1.0], noise) for c in cells if c.group]
        sign = metric_of(plan.board.metric).sign
        known = all(t.se is not None for t in told)
        shared = contrast([dense.group], [1.0], noise).se if known else None
        # equal dense results have no noise of their own beside others, but the pooled one when they stand alone
        shared = min(shared or 0.0, *(t.se or 0.0 for t in told))
        found[net] = crossing(
            [1 - c.context.density for c in cells],
            [sign * t.value for t in told],
            [t.se or 0.0 for t in told] if known else None,
            plan.board.margin,
            shared=shared,
            df=min((t.df for t in told if t.df is not None), default=math.inf),
        )
    return found


def _notes(plan: Plan, reference: _Reference, ranked: Block, order: Order, passed: int) -> Iterable[str]:
    name = plan.board.reference
    for (task, model), cell in reference.cells.items():
        if cell.group is None:
            yield f"{name} {task} {model} is not there: no gaps to it"
        elif cell.missing:
            yield f"{name} {task} {model} has {len(cell.seeds)} of {len(cell.seeds) + len(cell.missing)} seeds"
        if divided := _divided([cell]):
            yield f"{name} {task} {model}: {', '.join(divided)}"
    if any(grid.vary for grid in plan.board.grids):
        yield "one random stream varies at a time: runs share the others, and intervals of gaps are too narrow"
    pooled = ranked.pooled
    if pooled is not None and not pooled.homogeneous:
        yield f"seed variances differ (p = {pooled.p:.3g}): intervals and ranks use each cell's own (Welch)"
    if passed:
        yield f"passed over, as their seeds are not the board's: {passed} record{'' if passed == 1 else 's'}"
    if order == "flops":
        yield "equal FLOPs: means interpolated over log FLOPs between a net's densities"
