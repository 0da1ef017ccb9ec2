"""A figure's panels as plain numbers: which records stand in which panel, on which line, at which place.

Values are in the units of the paper's axes: accuracies in percent, all others as they are in a record.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from rpbench.board import Context, Figure, Part, Plan
from rpbench.entries import Entry
from rpbench.models.names import cifar_resnet
from rpbench.report.reported import best, reported
from rpbench.selection import Selection
from rpbench.stats import t_interval

STREAMS = ("mask", "init", "order")
MOST_POINTS = 400  # of a line over steps: neighbours are averaged
AXES = {
    "sparsity": "Sparsity",
    "params": "Kept parameters (millions)",
    "flops": "FLOPs (1e9, theoretical)",
    "width": "Width",
    "last_sparsity": "Sparsity of the last layer",
    "step": "Step (thousands)",
    "stream": "What varies",
}
METRICS = {
    "top1": "Top-1 accuracy (%)", "top5": "Top-5 accuracy (%)", "ece": "ECE", "nll": "NLL (nats)",
    "brier": "Brier score", "auroc": "ROC-AUC, *", "aupr": "AUPR, *", "fpr95": "FPR95, *",
    "auroc_energy": "ROC-AUC (energy), *", "aupr_energy": "AUPR (energy), *", "fpr95_energy": "FPR95 (energy), *",
    "robust": "Top-1 under * (%)", "global_l2": "Gradient norm", "layer_mean_l2": "Gradient norm, mean over layers",
    "mean_abs": "Mean |gradient|",
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """A mean over `n` seeds; `low` and `high` are its 95 % t-interval, None for one seed."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    n: int = 1


@dataclass(frozen=True)
class Line:
    """`keys` are what tells it from others, colour first; `dots` are single runs, `bounds` (x, low, high) the range of
    several; where a budget could not be met, `infeasible` has its x. `note` is what the line ended at."""

    keys: tuple[str, ...]
    points: tuple[Point, ...] = ()
    dots: tuple[tuple[float, float], ...] = ()
    bounds: tuple[tuple[float, float, float], ...] = ()
    infeasible: tuple[float, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Panel:
    """One panel. `band` is the reference where it is a level rather than a line; `known` are a paper's values, `level`
    its reference."""

    part: Part
    title: str
    lines: tuple[Line, ...]
    band: Point | None = None
    known: tuple[Line, ...] = ()
    level: float | None = None

    @property
    def measured(self) -> bool:
        return self.band is not None or any(line.points or line.dots or line.infeasible for line in self.lines)

    @property
    def x_label(self) -> str:
        return AXES[self.part.x]

    @property
    def y_label(self) -> str:
        kind, _, of = self.part.y.partition("/")
        return METRICS.get(kind, kind).replace("*", of)


@dataclass(frozen=True)
class Place:
    """One row in one context, as the selection has it."""

    label: str
    scheme: str
    args: str
    context: Context
    reference: bool
    entries: tuple[Entry, ...]
    infeasible: bool
    seen: dict[str, str] = field(default_factory=dict)  # how each dimension is written


def panels(plan: Plan, selection: Selection, figure: Figure, store: Path | None = None) -> list[Panel]:
    """The figure's panels, also those without a record. `store` is where gradient flows lie beside the records."""
    places = _places(plan, selection)
    return [panel for part in figure.parts for panel in _panels(plan, part, places, store)]


def is_reference(keys: Sequence[str], plan: Plan) -> bool:
    """Whether a line is the reference's."""
    return plan.board.reference in keys or sparsity_name(1.0) in keys


def sparsity_name(density: float) -> str:
    """A density as figures write it: 0.3 is '70 % sparse'."""
    return "dense" if density == 1 else f"{round(100 * (1 - density), 6):g} % sparse"


def _places(plan: Plan, selection: Selection) -> list[Place]:
    """In the board's order of rows, schemes of one's own behind; contexts in the board's order."""
    rank = {who: i for i, who in enumerate(plan.labels)}
    contexts = {c: i for i, c in enumerate([*plan.contexts, *dict.fromkeys(w.context for w in plan.cells)])}
    found = []
    for who in sorted(selection.places, key=lambda w: (rank.get(w, len(rank)), selection.labels[w])):
        for context in sorted(selection.places[who], key=lambda c: contexts[c]):
            place, label = selection.places[who][context], selection.labels[who]
            entries = tuple(place.ok[seeds] for seeds in sorted(place.ok, key=astuple))
            seen = {"model": _short(context.model), "density": sparsity_name(context.density), "scheme": label}
            reference = who.scheme == plan.board.reference
            found.append(Place(label, who.scheme, who.args, context, reference, entries, bool(place.infeasible), seen))
    return found


def _panels(plan: Plan, part: Part, places: Sequence[Place], store: Path | None) -> Iterator[Panel]:
    mine = [p for p in places if not p.reference and _listed(part, p.context) and _named(part, p.label)]
    nets = part.references or part.models
    references = [p for p in places if p.reference and (not nets or p.context.model in nets)]
    several = len({c.task for c in plan.contexts if _listed(part, c)}) > 1
    for key, wanted in _wanted(plan, part, mine).items():
        inside = [p for p in mine if _at(part, p.context, p.label) == key]
        beside = [p for p in references if _stands_in(part, p.context, key)]
        title = part.title or ", ".join(str(k) if isinstance(k, str) else _title(k, several) for k in key)
        yield _panel(plan, part, title, wanted, inside, beside, store)


Key = tuple[str | float | tuple[str, str], ...]


def _wanted(plan: Plan, part: Part, places: Sequence[Place]) -> dict[Key, list[tuple[Context, str, str]]]:
    """(context, scheme, label) of what each panel is for, measured or not. A net's key is (task, model)."""
    own = plan.board.reference
    rows = {text: who.scheme for who, text in plan.labels.items() if who.scheme != own and _named(part, text)}
    rows |= {p.label: p.scheme for p in places}
    found: dict[Key, list[tuple[Context, str, str]]] = {}
    for context in plan.contexts:
        for label, scheme in rows.items() if _listed(part, context) else ():
            found.setdefault(_at(part, context, label), []).append((context, scheme, label))
    return found


def _at(part: Part, context: Context, label: str) -> Key:
    value: dict[str, str | float | tuple[str, str]]
    value = {"model": (context.task, context.model), "density": context.density, "scheme": label}
    return tuple(value[d] for d in part.panels)


def _stands_in(part: Part, context: Context, key: Key) -> bool:
    """A reference stands in every panel of its net, whatever the density or scheme."""
    return all(d != "model" or k == (context.task, context.model) for d, k in zip(part.panels, key, strict=True))


def _title(key: float | tuple[str, str], several: bool) -> str:
    if isinstance(key, float | int):
        return sparsity_name(key)
    task, model = key
    return f"{_short(model)}, {task}" if several else _short(model)


def _short(model: str) -> str:
    return model.rpartition("/")[2]


def _listed(part: Part, context: Context) -> bool:
    return (not part.models or context.model in part.models) and (
        not part.densities or context.density in part.densities
    )


def _named(part: Part, label: str) -> bool:
    return not part.schemes or any(fnmatchcase(label, pattern) for pattern in part.schemes)


def _panel(
    plan: Plan, part: Part, title: str, wanted: Sequence[tuple[Context, str, str]],
    inside: Sequence[Place], beside: Sequence[Place], store: Path | None,
) -> Panel:  # fmt: skip
    if part.x == "stream":
        return Panel(part, title, tuple(_luck(part, p) for p in inside))
    if part.x == "step":
        return Panel(part, title, tuple(_flow(part, p, store) for p in [*beside, *inside]))
    # one net's reference is a level; that of several nets is a line of its own
    nets = {(c.task, c.model) for c, _, _ in wanted}
    level = part.x in ("sparsity", "last_sparsity") and len(nets) == 1
    lines = tuple(_line(part, keys, group) for keys, group in _grouped(part, inside if level else [*beside, *inside]))
    if not level:
        return Panel(part, title, lines)
    band = _mean(part, 0.0, [e for p in beside if (p.context.task, p.context.model) in nets for e in p.entries])
    known, dense = _known(plan, part, wanted) if part.x == "sparsity" else ((), None)
    return Panel(part, title, lines, band, known, dense)


def _grouped(part: Part, places: Iterable[Place]) -> list[tuple[tuple[str, ...], list[Place]]]:
    found: dict[tuple[str, ...], list[Place]] = {}
    for p in places:
        # along the last layer's density, variants of a scheme are one line
        seen = p.seen | {"scheme": p.scheme} if part.x == "last_sparsity" else p.seen
        found.setdefault(tuple(seen[d] for d in part.lines), []).append(p)
    return list(found.items())


def _line(part: Part, keys: tuple[str, ...], group: Sequence[Place]) -> Line:
    points, nowhere = [], []
    for p in group:
        x = _x(part, p)
        if x is None:
            continue
        point = _mean(part, x, p.entries)
        if point is not None:
            points.append(point)
        elif p.infeasible:
            nowhere.append(x)
    return Line(keys, tuple(sorted(points, key=lambda q: q.x)), infeasible=tuple(sorted(nowhere)))


def _mean(part: Part, x: float, entries: Sequence[Entry]) -> Point | None:
    values = [_value(part, e) for e in entries if part.y in e.metrics]
    if not values:
        return None
    low, high = t_interval(values) or (None, None)
    return Point(x, math.fsum(values) / len(values), low, high, len(values))


def _value(part: Part, e: Entry) -> float:
    return scale_of(part.y) * e.metrics[part.y]


def scale_of(metric: str) -> float:
    """What a record's value is multiplied with: accuracies are drawn in percent."""
    return 100.0 if metric.partition("/")[0] in ("top1", "top5", "robust") else 1.0


def _x(part: Part, p: Place) -> float | None:
    """Where a place stands; None where that is not known."""
    first = p.entries[0] if p.entries else None
    if part.x == "sparsity":
        return round(1 - p.context.density, 10)
    if part.x == "width":
        net = cifar_resnet(p.context.model)
        return float(net[1]) if net else None
    if part.x == "last_sparsity":
        given = json.loads(p.args).get("classifier")
        return round(1 - given, 10) if isinstance(given, int | float) else None
    if first is None:
        return None
    if part.x == "params":
        return (first.params - first.prunable + (first.kept or 0)) / 1e6
    known = [2 * e.sparse_macs / 1e9 for e in p.entries if e.sparse_macs is not None]
    return math.fsum(known) / len(known) if known else None


def _known(plan: Plan, part: Part, wanted: Sequence[tuple[Context, str, str]]) -> tuple[tuple[Line, ...], float | None]:
    """What papers report of a panel's cells: lines as the panel's own, and their reference's level."""
    values, factor = best(reported()), scale_of(part.y)
    found: dict[tuple[str, ...], list[Point]] = {}
    for c, scheme, label in wanted:
        value = values.get((c.task, c.model, scheme, c.density, part.y)) if label == scheme else None
        if value is not None:
            x, y, tolerance = round(1 - c.density, 10), factor * value.value, factor * value.tolerance
            seen = {"model": _short(c.model), "density": sparsity_name(c.density), "scheme": label}
            keys = tuple(seen[d] for d in part.lines)
            found.setdefault(keys, []).append(Point(x, y, y - tolerance, y + tolerance, value.runs or 1))
    lines = tuple(Line(keys, tuple(sorted(points, key=lambda q: q.x))) for keys, points in found.items())
    first = wanted[0][0]
    dense = values.get((first.task, first.model, plan.board.reference, 1.0, part.y))
    return lines, None if dense is None else factor * dense.value


def _luck(part: Part, p: Place) -> Line:
    """Single runs over the stream that varies, and their mean and standard deviation."""
    dots, points = [], []
    for i, stream in enumerate(STREAMS):
        others = [s for s in STREAMS if s != stream]
        runs = [e for e in p.entries if all(getattr(e.seeds, s) == e.seed for s in others) and part.y in e.metrics]
        values = [_value(part, e) for e in runs]
        if len(values) > 1:
            mean = math.fsum(values) / len(values)
            sd = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
            points.append(Point(i, mean, mean - sd, mean + sd, len(values)))
            dots += [(float(i), v) for v in values]
    return Line((p.label,), tuple(points), tuple(dots))


def _flow(part: Part, p: Place, store: Path | None) -> Line:
    """The mean over seeds along the steps, and their range."""
    keys = tuple(p.seen[d] for d in part.lines)
    runs = [flow for e in p.entries if store is not None and (flow := read_flow(store / e.run_id, part.y, part.last))]
    if not runs:
        return Line(keys)
    width = max(1, math.ceil(max(max(flow) for flow in runs) / MOST_POINTS))
    means = [_binned(flow, width) for flow in runs]
    points, bounds = [], []
    for i in sorted({i for mean in means for i in mean}):
        values = [mean[i] for mean in means if i in mean]
        x = (i * width + (1 + width) / 2) / 1000  # the middle of steps from 1 on
        points.append(Point(x, math.fsum(values) / len(values), n=len(values)))
        bounds.append((x, min(values), max(values)))
    top1 = [100 * e.metrics["top1"] for e in p.entries if "top1" in e.metrics]
    note = f"{p.label} {math.fsum(top1) / len(top1):.2f} %" if top1 else ""
    return Line(keys, tuple(points), bounds=tuple(bounds) if len(runs) > 1 else (), note=note)


def read_flow(folder: Path, key: str, last: int | None = None) -> dict[int, float]:
    """{step: value} of a run's gradient_flow.jsonl, which has a line for every step from 1 on, up to step `last`; what
    cannot be read, or is not finite, is left out."""
    found: dict[int, float] = {}
    try:
        lines = (folder / "gradient_flow.jsonl").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return found
    for step, line in enumerate(lines, start=1):  # the "step" of a line counts from the start of its epoch
        try:
            value = float(json.loads(line)[key])
        except (ValueError, KeyError, TypeError, OverflowError):
            continue
        if math.isfinite(value) and (last is None or step <= last):
            found[step] = value
    return found


def _binned(flow: dict[int, float], width: int) -> dict[int, float]:
    """Means over `width` neighbouring steps."""
    bins: dict[int, list[float]] = {}
    for step, value in flow.items():
        bins.setdefault((step - 1) // width, []).append(value)
    return {i: math.fsum(values) / len(values) for i, values in bins.items()}
