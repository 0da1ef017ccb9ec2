"""What the one who checks knows himself: definitions, nets, images, and what a scheme says when it is called again.

Nothing in here is taken from a submission but its source file, which is called only after its text was looked at.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rpbench import options
from rpbench.board import Context, Plan, Wanted
from rpbench.catalog import is_shelved_sampler, is_shelved_scheme, isolated_sampler, isolated_scheme
from rpbench.cell import Cell, ask
from rpbench.checks.told import Skipped, Told
from rpbench.data import opened
from rpbench.data.opened import Limits as ImageLimits
from rpbench.data.opened import TaskImages
from rpbench.data.sources import Roots
from rpbench.errors import DataError, RpbenchError, UsageError
from rpbench.isolated import Limits, session
from rpbench.layers import LayerTable, layer_table
from rpbench.models import build, resolve
from rpbench.pack import own_cores
from rpbench.planning import Plan as Planned
from rpbench.planning import plan_table
from rpbench.record import RunRecord
from rpbench.run import initial_net, probe_of
from rpbench.sampler import Sampler
from rpbench.scheme import Scheme
from rpbench.streams import Seeds
from rpbench.task import ImageSet, Task, load_attack, load_set
from rpbench.untrusted import shown

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Source:
    """The file of a submission: whose, where it can be loaded from, its sha256, and why it must not be (or '')."""

    kind: str
    path: Path
    sha256: str
    barred: str = ""


@dataclass(frozen=True)
class Net:
    """A net of a task with its layer table; its weights mean nothing."""

    net: nn.Module
    table: LayerTable
    params: int


@dataclass(frozen=True)
class Sets:
    """The image sets and attacks of a task as they are defined: its own set, the sets outside of its distribution with
    the split that is used of each, the names of its attacks."""

    own: ImageSet
    ood: tuple[tuple[ImageSet, str], ...]
    attacks: tuple[str, ...]
    test: int  # images

    @property
    def sizes(self) -> dict[str, int]:
        """Images of every set that a net is scored on; generated ones have as many as the task tests on."""
        found = {"test": self.test} | dict.fromkeys(self.attacks, self.test)
        for image_set, split in self.ood:
            found[image_set.name] = image_set.splits[split].n if split in image_set.splits else self.test
        return found


class Known:
    """The definitions that a board stands on, and what follows from them, worked out once.

    `source` is the file of the bundle that is looked at, `merged` those of submissions that a leaderboard holds. A
    context: at its end the processes end in which their functions ran.
    """

    def __init__(
        self,
        plan: Plan,
        roots: Roots | None = None,
        source: Source | None = None,
        limits: Limits | None = None,
        merged: Sequence[Source] = (),
    ) -> None:
        self.plan, self.roots, self.source, self.limits = plan, roots or Roots(), source, limits or Limits()
        self._sources = {(s.kind, s.sha256): s for s in (*merged, *([source] if source else []))}
        self._sessions = contextlib.ExitStack()
        self._given_tasks = {w.context.task: w.asked["task"] for w in plan.cells}
        self._models = {w.context[:2]: w.asked["model"] for w in plan.cells}
        self._nets: dict[tuple[str, str], Net] = {}
        self._sets: dict[str, Sets] = {}
        self._images: dict[str, TaskImages | Skipped] = {}
        self._cells: dict[tuple[str, str], Cell] = {}
        self._functions: dict[tuple[str, str], Scheme | Sampler] = {}
        self._planned: tuple[str, Planned | RpbenchError] | None = None

    def __enter__(self) -> Known:
        return self

    def __exit__(self, *_: object) -> None:
        self._sessions.close()

    def task(self, record: RunRecord) -> Task:
        """The task that a record is of, as it is defined today."""
        if record.task.name not in self.plan.tasks:
            raise Skipped(f"board '{self.plan.board.name}' has no task '{record.task.name}'")
        return self.plan.tasks[record.task.name]

    def sets(self, task: Task) -> Sets:
        if task.name not in self._sets:
            own = load_set(task.data.set)
            ood = [load_set(name) for name in task.evaluation.ood]
            splits = ["validation" if "test" not in s.splits and "validation" in s.splits else "test" for s in ood]
            attacks = tuple(load_attack(name).name for name in task.evaluation.attacks)
            pairs = tuple(zip(ood, splits, strict=True))
            self._sets[task.name] = Sets(own, pairs, attacks, own.splits[task.data.test].n)
        return self._sets[task.name]

    def model_source(self, record: RunRecord) -> str:
        """The hash of the net's file, '' for those that rpbench has itself."""
        return resolve(self._model(record), self.task(record).family).source

    def net(self, record: RunRecord) -> Net:
        key = (record.task.name, record.model.name)
        if key not in self._nets:
            task = self.task(record)
            data = task.data
            net = build(resolve(self._model(record), task.family), data.classes, data.channels, data.size)
            table = layer_table(net, (data.channels, data.size, data.size))
            self._nets[key] = Net(net, table, sum(p.numel() for p in net.parameters()))
        return self._nets[key]

    def images(self, task: Task) -> TaskImages:
        """The task's images; Skipped where they are not here, or are others than the definition's."""
        if task.name not in self._images:
            self._images[task.name] = self._open(task)
        found = self._images[task.name]
        if isinstance(found, Skipped):
            raise found
        return found

    def _open(self, task: Task) -> TaskImages | Skipped:
        try:
            found, skipped = opened.find_all(task, self.roots, training=True, skip_missing=True)
            images = opened.open_all(task, found, skipped, ImageLimits(), workers=0)
        except DataError as error:
            return Skipped(f"the images of task '{task.name}' are not here: {error}")
        if images.notes:
            return Skipped(f"the images here are not those of task '{task.name}': {'; '.join(images.notes)}")
        return images

    def scheme(self, name: str, sha256: str) -> Scheme:
        """The scheme of this name and source: the submitted file, or the shelf's. Skipped where it is neither."""
        found = self._function("scheme", name, sha256, is_shelved_scheme(name), isolated_scheme)
        assert isinstance(found, Scheme)
        return found

    def sampler(self, name: str, sha256: str) -> Sampler:
        found = self._function("sampler", name, sha256, is_shelved_sampler(name), isolated_sampler)
        assert isinstance(found, Sampler)
        return found

    def path_of(self, kind: str, sha256: str) -> str:
        """Where a submitted file of this content can be loaded from; '' where it is not here."""
        found = self._sources.get((kind, sha256))
        return str(found.path) if found else ""

    def _function(
        self, kind: str, name: str, sha256: str, shelved: bool, find: Callable[[str], tuple[Any, Any]]
    ) -> Scheme | Sampler:
        """The one place that reaches a submission's code, which runs in a confined process: one for all its calls."""
        own = self._sources.get((kind, sha256))
        if own is not None and own.barred:
            raise Skipped(own.barred)
        if own is None and not shelved:
            raise Skipped(f"the file of {kind} '{name}' (sha256 {sha256[:12]}...) is not here")
        given = str(own.path) if own else name
        if (kind, given) not in self._functions:
            self._functions[kind, given] = self._sessions.enter_context(session(find(given)[0], self.limits))
        found = self._functions[kind, given]
        if found.name != name:
            raise UsageError(f"the file of {kind} {shown(name)} defines '{found.name}': a row has the name of its code")
        return found

    def cell(self, record: RunRecord) -> Cell:
        """The cell of the record's task, net, density and seeds; its scheme is the task's default, not the record's."""
        key = (record.task.name, record.model.name)
        if key not in self._cells:
            self._cells[key] = ask(task=self._given_tasks[self.task(record).name], model=self._model(record))
        seeds = Seeds(**vars(record.seeds))
        return replace(self._cells[key], density=record.density.requested, seeds=seeds, micro_batch=record.micro_batch)

    def planned(self, told: Told) -> Planned:
        """What the scheme keeps when it is called again as the run has called it, on the CPU.

        Raises what the scheme raises; Skipped where it, or the images that it looks at, are not here.
        """
        if self._planned is None or self._planned[0] != told.where:
            try:
                self._planned = told.where, self._plan(told.record)
            except RpbenchError as error:
                self._planned = told.where, error
        found = self._planned[1]
        if isinstance(found, RpbenchError):
            raise found
        return found

    def _plan(self, record: RunRecord) -> Planned:
        scheme, table = self.scheme(record.scheme.name, record.scheme.source), self.net(record).table
        args = bound(scheme.name, scheme.function, record.scheme.args)
        density = record.density.requested
        if scheme.kind == "shape":
            return plan_table(table, scheme, density, None, args)
        cell = self.cell(record)
        train = self.images(cell.task).train
        assert train is not None
        told = record.env.get("threads")
        # as many as the run had: sums round alike
        with threads(told if isinstance(told, int) and 1 <= told <= 4 * own_cores() else 1):
            return plan_table(table, scheme, density, probe_of(cell, initial_net(cell), table, train, CPU), args)

    def _model(self, record: RunRecord) -> str:
        """A net's name as the board has it: names in a record are never looked for as files."""
        name = self._models.get((record.task.name, record.model.name))
        if name is None:
            raise Skipped(f"board '{self.plan.board.name}' has no net '{record.model.name}'")
        return str(name)

    @cached_property
    def wanted(self) -> Mapping[Context, tuple[Wanted, ...]]:
        found: dict[Context, tuple[Wanted, ...]] = {}
        for w in self.plan.cells:
            found[w.context] = (*found.get(w.context, ()), w)
        return found


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    """torch with n threads. Small nets want one: threads that wait for each other take longer than the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def chosen(function: Callable[..., Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a record that differ from the function's defaults."""
    defaults = {name: p.default for name, p in options.declared(function).items() if p.default is not p.empty}
    plain = options.plain(defaults)
    return {name: value for name, value in told.items() if name not in plain or plain[name] != value}


def bound(name: str, function: Callable[..., Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """A record's options as the function takes them; UsageError for one that it does not have, and for one that names
    a file: whoever writes a record does not choose what is read here."""
    given = chosen(function, told)
    for option in options.files(function):
        if option in given:
            raise UsageError(f"option {option} of {shown(name)} names a file, which no record holds: it is not opened")
    return options.bind(name, function, given)
