"""Boards: which cells are compared, declared in `tasks/boards/*.toml`, and the cells that such a file stands for.

A board is a list of grids (task x models x densities x schemes x samplers x seeds). Cells that several boards want are
the same cells: they are trained once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from rpbench import options
from rpbench.catalog import (
    Row,
    definition,
    is_shelved_sampler,
    is_shelved_scheme,
    isolated_sampler,
    isolated_scheme,
    names,
    outline,
)
from rpbench.errors import BadDefinition, RpbenchError, UnknownName, UsageError
from rpbench.models import resolve
from rpbench.record import canonical
from rpbench.streams import Seeds
from rpbench.task import (
    Definition,
    Density,
    Name,
    Reference,
    Task,
    load_attack,
    load_definition,
    load_set,
    load_task,
    spec,
)

SeedList = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
EVERY = "*"


class Grid(Definition):
    """Every combination of what it lists. `schemes` "*" stands for every baseline that needs no argument; `vary` gives
    each stream of random numbers the seeds in turn, while the others keep the first."""

    task: Reference
    models: Annotated[tuple[str, ...], Field(min_length=1)]
    densities: tuple[Density, ...] = ()
    schemes: Annotated[tuple[str, ...], Field(min_length=1)] = (EVERY,)
    samplers: Annotated[tuple[str, ...], Field(min_length=1)] = ("exact",)
    seeds: SeedList | None = None
    vary: tuple[Literal["mask", "init", "order"], ...] = ()


Dimension = Literal["model", "density", "scheme"]
GRADIENTS = ("global_l2", "layer_mean_l2", "mean_abs")  # keys of gradient_flow.jsonl


class Part(Definition):
    """Panels of one kind: `x` against `y`, a panel for each of what `panels` names, a line for each of what `lines`
    names (the first decides the colour, the last the marker). Nothing listed under models and densities is all of the
    board's; `schemes` are labels, * standing for any text. `references` are the nets whose reference is drawn, `last`
    the last step."""

    title: str = ""
    x: Literal["sparsity", "params", "flops", "width", "last_sparsity", "step", "stream"] = "sparsity"
    y: str = "top1"
    scale: Literal["linear", "log"] = "linear"
    panels: tuple[Dimension, ...] = ("model",)
    lines: Annotated[tuple[Dimension, ...], Field(min_length=1)] = ("scheme",)
    models: tuple[str, ...] = ()
    densities: tuple[Density, ...] = ()
    schemes: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    last: Annotated[int, Field(ge=1)] | None = None


class Figure(Definition):
    """A figure drawn from a board's records, as the paper's: panels in rows of `columns` (or as many as fit)."""

    name: Name
    caption: str
    columns: Annotated[int, Field(ge=1, le=6)] | None = None
    parts: Annotated[tuple[Part, ...], Field(min_length=1)] = (Part(),)


class Board(Definition):
    """What is compared: grids of cells under one precision, over the same seeds, and by which metric.

    `reference` is the scheme that gaps are taken to; `margin` (in the metric's unit, points for rates) what still
    counts as matching it; `flops` the fractions of dense FLOPs at which schemes are compared at equal cost (default:
    the densities); `pairing` "seed" compares runs of equal seeds, which pays where their results correlate above 0.58.
    """

    name: Name
    version: Annotated[int, Field(ge=1)]
    summary: str
    url: str
    seeds: SeedList
    precision: Literal["fp32", "bf16"] = "fp32"
    metric: str = "top1"
    reference: str = "dense"
    pairing: Literal["none", "seed"] = "none"
    margin: Annotated[float, Field(gt=0)] = 0.5
    flops: tuple[Density, ...] = ()
    track: Literal["none", "gradient-flow"] = "none"
    grids: Annotated[tuple[Grid, ...], Field(min_length=1)]
    figures: tuple[Figure, ...] = ()

    @model_validator(mode="after")
    def _seeds_differ(self) -> Board:
        for seeds in [self.seeds, *(grid.seeds for grid in self.grids if grid.seeds)]:
            if len(set(seeds)) < len(seeds):
                raise ValueError("seeds must differ")
        return self


class Context(NamedTuple):
    """Where schemes are compared: one net of one task at one density."""

    task: str
    model: str
    density: float

    @property
    def title(self) -> str:
        return f"{self.task} {self.model} {self.density:g}"


class Who(NamedTuple):
    """Whose row it is: a scheme with its options, and a sampler with its own; options are canonical JSON of them all.

    A file of one's own is known by what is in it (`source`), one on the shelf by its name.
    """

    scheme: str
    args: str
    source: str
    sampler: str
    sampler_args: str
    sampler_source: str


class Wanted(NamedTuple):
    """One cell of a board: where, whose, with which seeds, and how to ask for it (arguments of `rpbench.cell.ask`)."""

    context: Context
    who: Who
    seeds: Seeds
    label: str
    asked: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """A board and its cells. `contexts` are those that are compared: the ones with a scheme that has no density of its
    own; `specs` hash each task's definition as it is now."""

    board: Board
    cells: tuple[Wanted, ...]
    contexts: tuple[Context, ...]
    specs: dict[str, str]
    tasks: dict[str, Task]
    labels: dict[Who, str]


@dataclass(frozen=True)
class Choice:
    """What of a board is wanted: nothing given is everything. Schemes may be others than the board's."""

    schemes: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    densities: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()
    samplers: tuple[str, ...] = ()


def board_names() -> list[str]:
    return names("tasks.boards", ".toml")


def load_board(given: str) -> Board:
    """The board that `given` names: a shelf name or a TOML file. BadDefinition reports all its faults at once."""
    path = definition("board", "tasks.boards", given)
    board = load_definition(Board, path)
    # a task file stands beside its board's, wherever the command is given
    grids = [g.model_copy(update={"task": _beside(path, g.task)}) for g in board.grids]
    board = board.model_copy(update={"grids": tuple(grids)})
    faults = []
    for i, grid in enumerate(board.grids):
        faults += [f"grids.{i}: {fault}" for fault in _faults(grid)]
    faults += _figure_faults(board)
    try:
        if _told(board.reference)[0] is None:
            faults.append(f"reference is '{board.reference}': it must be a scheme with a density of its own, as dense")
    except UnknownName as error:
        faults.append(f"reference: {error}")
    if faults:
        count = f"{len(faults)} faults" if len(faults) > 1 else "1 fault"
        raise BadDefinition(f"{path}: {count}: " + "; ".join(faults))
    return board


def _beside(path: Path, task: str) -> str:
    return str(path.parent / task) if task.endswith(".toml") else task


def _faults(grid: Grid) -> Iterator[str]:
    try:
        task = load_task(grid.task)
    except RpbenchError as error:
        yield f"task: {error}"
        return
    for field, given, look in (
        ("models", grid.models, lambda name: resolve(name, task.family)),
        ("schemes", [s for s in grid.schemes if s != EVERY], _bound_scheme),
        ("samplers", grid.samplers, _bound_sampler),
    ):
        for name in given:
            try:
                look(name)
            except RpbenchError as error:
                yield f"{field}: {error}"
    if not grid.densities and any(s == EVERY or _told(s)[0] is None for s in grid.schemes):
        yield "densities are missing"


def _figure_faults(board: Board) -> Iterator[str]:
    """Figures that could only stay empty: metrics, nets or densities that the board does not have."""
    try:
        tasks = {grid.task: load_task(grid.task) for grid in board.grids}
    except RpbenchError:
        return  # told already
    models = {m for grid in board.grids for m in grid.models}
    densities = {d for grid in board.grids for d in grid.densities}
    metrics = {name for task in tasks.values() for name in _metrics(task)}
    seen: set[str] = set()
    for i, figure in enumerate(board.figures):
        if figure.name in seen:
            yield f"figures.{i}.name: a second '{figure.name}'"
        seen.add(figure.name)
        for j, part in enumerate(figure.parts):
            place = f"figures.{i}.parts.{j}"
            known = GRADIENTS if part.x == "step" else metrics
            if part.y not in known:
                yield f"{place}.y: there is no '{part.y}' on this board, but {', '.join(sorted(known))}"
            wrong = [*({*part.models, *part.references} - models), *(set(part.densities) - densities)]
            if wrong:
                yield f"{place}: the board has no {', '.join(sorted(map(str, wrong)))}"


def _metrics(task: Task) -> Iterator[str]:
    """Keys of a record's metrics under this task."""
    yield from ("top1", "nll", "brier", "ece", *(["top5"] if task.evaluation.top5 else []))
    for name in task.evaluation.ood:
        yield from (f"{kind}/{load_set(name).name}" for kind in ("auroc", "aupr", "fpr95"))
        yield from (f"{kind}_energy/{load_set(name).name}" for kind in ("auroc", "aupr", "fpr95"))
    yield from (f"robust/{load_attack(name).name}" for name in task.evaluation.attacks)


def expand(board: Board, choice: Choice | None = None) -> Plan:
    """The cells of a board, the reference's first, seed by seed, each once.

    Raises UsageError where `choice` names a model, density or seed that the board does not have.
    """
    choice = choice or Choice()
    tasks = {grid.task: load_task(grid.task) for grid in board.grids}
    specs = {task.name: spec(task) for task in tasks.values()}
    found: dict[tuple[Context, Who, Seeds], Wanted] = {}
    contexts: dict[Context, None] = {}
    for grid in board.grids:
        task = tasks[grid.task]
        for wanted in _cells(board, grid, task, choice):
            found.setdefault(wanted[:3], wanted)
        if any(density is None for _, density in _schemes(board, grid, Choice())):
            contexts |= {Context(task.name, resolve(m, task.family).name, d): None
                         for m in grid.models for d in grid.densities}  # fmt: skip
    _check_choice(board, choice)
    cells = sorted(found.values(), key=lambda w: (w.seeds.run, w.asked["scheme"] != board.reference))
    labels = {w.who: w.label for w in cells}
    there = {w.context for w in cells}
    kept = [c for c in contexts if c in there]
    return Plan(board, tuple(cells), tuple(kept), specs, {t.name: t for t in tasks.values()}, labels)


def _check_choice(board: Board, choice: Choice) -> None:
    """What is asked for beside schemes must be on the board: cells elsewhere would never be compared."""
    has: dict[str, tuple[Sequence[Any], set[Any]]] = {
        "model": (choice.models, {m for g in board.grids for m in g.models}),
        "density": (choice.densities, {d for g in board.grids for d in g.densities}),
        "seed": (choice.seeds, {s for g in board.grids for s in g.seeds or board.seeds}),
    }
    for word, (asked, there) in has.items():
        for value in asked:
            if value not in there:
                listed = ", ".join(str(x) for x in sorted(there))
                raise UsageError(f"board '{board.name}' has no {word} {value}: there is {listed}")


def _cells(board: Board, grid: Grid, task: Task, choice: Choice) -> Iterator[Wanted]:
    models = [m for m in grid.models if not choice.models or m in choice.models]
    seeds = [s for s in grid.seeds or board.seeds if not choice.seeds or s in choice.seeds]
    for drawn in choice.samplers or grid.samplers:
        for scheme, own in _schemes(board, grid, choice):
            sampler = drawn if own is None else "exact"  # where everything is kept nothing is drawn
            if not _fits(scheme, sampler):
                continue  # `scored` needs scores
            who, label = _who(scheme, sampler)
            wanted = [d for d in grid.densities if not choice.densities or d in choice.densities]
            for model in models:
                for density in [own] if own is not None else wanted:
                    for streams in _streams(board, grid, seeds, drawn=own is None):
                        context = Context(task.name, resolve(model, task.family).name, density)
                        asked = {"task": grid.task, "model": model, "scheme": scheme, "density": density}
                        asked |= {"sampler": sampler, "seed": streams.run, "precision": board.precision}
                        for name in ("mask", "init", "order"):
                            if getattr(streams, name) != streams.run:
                                asked[f"{name}_seed"] = getattr(streams, name)
                        yield Wanted(context, who, streams, label, asked)


def _schemes(board: Board, grid: Grid, choice: Choice) -> Iterator[tuple[str, float | None]]:
    """Schemes of a grid as they are asked for, the reference first, with the density of those that have their own."""
    asked = choice.schemes or grid.schemes
    named: dict[str, None] = {} if choice.schemes else {board.reference: None}
    for name in asked:
        named |= dict.fromkeys(every_baseline() if name == EVERY else [name])
    for name in named:
        yield name, _told(name)[0]


def every_baseline() -> list[str]:
    """Baselines that can be run by name alone."""
    return [name for name in names("baselines", ".py") if not outline(name).needs]


def _streams(board: Board, grid: Grid, seeds: Sequence[int], drawn: bool) -> Iterator[Seeds]:
    """The seeds of a grid's runs, those of `seeds`. Where every weight is kept no mask is drawn: it does not vary."""
    if not grid.vary:
        yield from (Seeds(s, init=s, mask=s, order=s) for s in seeds)
        return
    first, seen = (grid.seeds or board.seeds)[0], set()
    for name in grid.vary:
        for seed in seeds if drawn or name != "mask" else [s for s in seeds if s == first]:
            one = Seeds(**({"run": first, "init": first, "mask": first, "order": first} | {name: seed}))
            if one not in seen:
                seen.add(one)
                yield one


def _fits(scheme: str, sampler: str) -> bool:
    return not isolated_sampler(sampler)[0].scored or _told(scheme)[1] == "score"


def _told(scheme: str) -> tuple[float | None, str]:
    """The density that a scheme is defined for alone, and what it is made from."""
    name, _ = options.parse(scheme)
    found = outline(name) if is_shelved_scheme(name) else isolated_scheme(scheme)[0]
    return found.density, found.kind


def _who(scheme: str, sampler: str) -> tuple[Who, str]:
    name, args, source, written = _bound_scheme(scheme)
    drawer, drawer_args, drawer_source, drawn = _bound_sampler(sampler)
    label = written if drawn == "exact" else f"{written} + {drawn}"
    return Who(name, args, source, drawer, drawer_args, drawer_source), label


def _bound_scheme(given: str) -> tuple[str, str, str, str]:
    """(name, all options as canonical JSON, hash of a file of one's own, as it is written)."""
    if is_shelved_scheme(given) and not outline(given).needs:
        return given, canonical(outline(given).options), "", given
    found, chosen = isolated_scheme(given)
    values = options.bind(found.name, found.function, chosen)
    own = "" if is_shelved_scheme(options.parse(given)[0]) else found.source_hash
    return found.name, canonical(options.plain(values)), own, options.written(found.name, found.function, values)


def _bound_sampler(given: str) -> tuple[str, str, str, str]:
    found, chosen = isolated_sampler(given)
    values = options.bind(found.name, found.function, chosen)
    own = "" if is_shelved_sampler(options.parse(given)[0]) else found.source_hash
    return found.name, canonical(options.plain(values)), own, options.written(found.name, found.function, values)


def board_rows() -> list[Row]:
    """One row per board of the shelf."""
    found = []
    for name in board_names():
        board = load_board(name)
        plan = expand(board)
        found.append(
            {"name": name, "summary": board.summary, "source": board.url, "version": board.version}
            | {"cells": len(plan.cells), "tasks": list(plan.specs)}
        )
    return found


def board_hash(board: Board) -> str:
    """sha256 of everything in a board's definition that decides what is compared."""
    content = board.model_dump(mode="json", exclude={"summary", "url", "figures"})
    return hashlib.sha256(canonical(content).encode()).hexdigest()


def grid_faults(grid: Grid) -> list[str]:
    """What of a grid names nothing that exists, each with its key."""
    return list(_faults(grid))


def own_density(scheme: str) -> float | None:
    """The only density that a scheme is defined for (`dense`: 1), None for one that takes any."""
    return _told(scheme)[0]
