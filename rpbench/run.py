"""The straight line from a cell to a record.

task, model, scheme, density, seed -> net -> layer table -> scheme -> counts -> sampler -> masks bound to the net
-> fit -> evaluate on every image set -> record -> store
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Generator, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from rpbench import checkpoint, masks, options, streams
from rpbench.cell import Cell
from rpbench.connectivity import paths
from rpbench.data import opened
from rpbench.data.opened import Images, Limits, TaskImages
from rpbench.data.order import Order
from rpbench.data.sources import Roots
from rpbench.data.streamed import default_workers
from rpbench.draft import Draft
from rpbench.engine import EngineName, choose, graphs_of, no_graphs
from rpbench.errors import InfeasibleBudget, Interrupted, MaskError, MissingData, ModelError, ScoreError, StoreError
from rpbench.evaluation import Passes, Scored, score_net
from rpbench.heartbeat import alive
from rpbench.isolated import Limits as SchemeLimits
from rpbench.isolated import limited
from rpbench.layers import LayerTable, layer_table, output_shape
from rpbench.machine import Processes, environment, peak_memory_mb
from rpbench.models import build
from rpbench.planning import plan_table
from rpbench.progress import Quiet
from rpbench.record import RunRecord
from rpbench.sampler import Sampler
from rpbench.scheme import Batch, Origin, Probe
from rpbench.signals import noted_signals
from rpbench.step import Learner, Machine, make_optimizer
from rpbench.store import FINISHED, CellFolder
from rpbench.tracing import wire
from rpbench.train import Diverged, Fit, State, training

T = TypeVar("T")
Turns = Generator[None, None, T]  # pauses after every training step


@dataclass(frozen=True)
class Wish:
    """How a cell is to be run: where, and what is kept beside its result."""

    store: Path
    roots: Roots = field(default_factory=Roots)
    skip_missing: bool = False
    force: bool = False
    last_full: bool = False
    track_flow: bool = False
    workers: int | None = None
    engine: EngineName = "auto"
    packed: int = 1  # cells that share the machine at the time, this one included
    scheme_limits: SchemeLimits = field(
        default_factory=SchemeLimits
    )  # of a scheme or sampler that is not rpbench's own
    note_failures: bool = False  # a scheme that cannot be used ends in a record, as one of many; else it is raised


@dataclass(frozen=True)
class Outcome:
    """A record, where it lies, and whether it was there before."""

    record: RunRecord
    folder: Path
    found: bool = False


def run_cell(cell: Cell, wish: Wish, progress: Quiet, processes: Processes) -> Outcome:
    """Run a cell, go on with one that was interrupted, or return the record of a finished one.

    Raises UsageError and its kin before anything is written, StoreError where another process works on the cell,
    Interrupted after a checkpoint. A cell that fails, diverges or is infeasible ends in a record all the same.
    """
    running = turns(cell, wish, progress, processes)
    while True:
        try:
            next(running)
        except StopIteration as ended:
            outcome: Outcome = ended.value
            return outcome


def turns(
    cell: Cell, wish: Wish, progress: Quiet, processes: Processes, caught: list[int] | None = None
) -> Turns[Outcome]:
    """`run_cell` as a generator that pauses after every training step, so that several cells can take turns; it
    returns the outcome. `caught` are the signals noted by whoever drives; without it they are noted here.
    """
    limits = Limits(cell.limit, cell.limit_test)
    try:
        found, skipped = opened.find_all(cell.task, wish.roots, training=True, skip_missing=wish.skip_missing)
    except MissingData:
        # a finished cell can be shown on a machine without its images
        if outcome := _finished(cell, wish, {}, processes):
            return outcome
        raise
    workers = default_workers(processes.local_world * wish.packed) if wish.workers is None else wish.workers
    images = opened.open_all(cell.task, found, skipped, limits, workers)
    differences = images.differences
    if outcome := _finished(cell, wish, differences, processes):
        return outcome
    if wish.engine == "graph" and graphs_of(processes.device) is None:
        raise no_graphs(processes.device)

    net = initial_net(cell)
    shape = (cell.task.data.channels, cell.task.data.size, cell.task.data.size)
    table = layer_table(net, shape)
    _check_outputs(cell, net, shape)
    draft = Draft(
        cell=cell,
        run_id=cell.run_id(differences),
        table=table,
        params=sum(p.numel() for p in net.parameters()),
        command=cell.command + (" --skip-missing" if skipped else ""),
        notes=list(images.notes),
        scheme_args=options.plain(cell.scheme_args),
        sampler_args=options.plain(cell.sampler_args),
        facts=images.facts,
        skipped=images.skipped,
        env=environment(processes, cell.precision) | {"packed": wish.packed},
    )
    folder = CellFolder(wish.store, draft.run_id)
    work = _Work(cell, wish, draft, folder, images, net, progress, processes, caught)
    return (yield from work.run())


def initial_net(cell: Cell) -> nn.Module:
    """The net with the initial weights of the cell's init stream, on the CPU."""
    torch.manual_seed(streams.torch_seed("init", cell.seeds.init))
    data = cell.task.data
    return build(cell.model, data.classes, data.channels, data.size)


def probe_of(cell: Cell, net: nn.Module, table: LayerTable, train: Images, device: torch.device) -> Probe:
    """What a data-driven scheme may look at in a run of this cell: the net as initialised, and labelled training
    batches, not augmented, in an order of their own, one epoch at most."""

    def batches() -> Iterator[Batch]:
        training = opened.training_set(train, cell.task, cell.seeds.order, device)
        order = streams.permutation(streams.key("probe", cell.seeds.order), len(train))
        for i in range(0, len(order), cell.task.recipe.probe_batch):
            yield training.plain(order[i : i + cell.task.recipe.probe_batch])

    return Probe(
        net,
        table,
        cell.density,
        batches(),
        seed=cell.seeds.init,
        chunk=cell.micro_batch,
        classes=cell.task.data.classes,
        device=device,
        origin=origin_of(cell),
    )


def origin_of(cell: Cell) -> Origin:
    """How `initial_net` made the net of a cell."""
    data, net = cell.task.data, cell.model
    return Origin(net.name, net.family, net.source, data.classes, data.channels, data.size, cell.seeds.init)


class _Work:
    """One cell being worked on."""

    def __init__(
        self,
        cell: Cell,
        wish: Wish,
        draft: Draft,
        folder: CellFolder,
        images: TaskImages,
        net: nn.Module,
        progress: Quiet,
        processes: Processes,
        caught: list[int] | None,
    ) -> None:
        self.caught = caught
        self.state: State | None = None
        self.steps = 0
        self.cell, self.wish, self.draft, self.folder, self.images = cell, wish, draft, folder, images
        self.net, self.progress, self.processes = net, progress, processes
        assert images.train is not None
        assert images.validation is not None
        self.train, self.validation = images.train, images.validation
        self.passes = Passes(
            processes.device, cell.task.data, cell.task.evaluation.batch, processes.rank, processes.world,
            processes.gather,
        )  # fmt: skip
        # an epoch is selected by the precision it was trained in; what is reported is fp32 for every cell
        self.validation_passes = replace(self.passes, precision=cell.precision)

    def run(self) -> Turns[Outcome]:
        """Plan first: what is wrong with a scheme is said before anything is written."""
        plan: dict[str, Any] | Exception | None = None
        resumes = self.folder.checkpoint.is_file() and not self.wish.force
        if self.processes.share(not resumes):
            if self.processes.first:
                plan = self._plan()
            plan = self.processes.share(plan)
            noted = isinstance(plan, InfeasibleBudget | ScoreError) or self.wish.note_failures
            if isinstance(plan, Exception) and not noted:
                raise plan
        if self.processes.first:
            self.folder.create()
            with self.folder.lock() as mine:
                self.processes.share(mine)
                self._locked(mine)
                if not self.wish.force and (record := self.folder.record()) and record.status in FINISHED:
                    self.processes.share(record)
                    return Outcome(record, self.folder.folder, found=True)
                if self.wish.force:
                    self.folder.clean(everything=True)
                self.processes.share(None)
                options_of = {"scheme": self.draft.scheme_args, "sampler": self.draft.sampler_args}
                told = {k: {"name": getattr(self.cell, k).name, "args": args} for k, args in options_of.items()}
                with alive(self.folder.folder, self.cell.asked | told, self._done):
                    return (yield from self._ended(plan))
        self._locked(self.processes.share(None))
        if record := self.processes.share(None):
            return Outcome(record, self.folder.folder, found=True)
        return (yield from self._ended(plan))

    def _done(self) -> float:
        """How much of the training is done, in [0, 1]."""
        state, steps = self.state, self.steps
        return min(1.0, (state.epoch + state.step / steps) / self.cell.task.recipe.epochs) if state and steps else 0.0

    def _locked(self, mine: bool) -> None:
        if not mine:
            raise StoreError(f"another process is working on this cell ({self.folder.folder}): nothing was done here")

    def _plan(self) -> dict[str, Any] | Exception:
        """What the scheme decides, as plain values; exceptions are values too, so that every process hears of them."""
        cell, start = self.cell, time.perf_counter()
        probe = probe_of(cell, self.net, self.draft.table, self.train, self.processes.device)
        try:
            scheme = limited(cell.scheme, self.wish.scheme_limits)
            plan = plan_table(self.draft.table, scheme, cell.density, probe, cell.scheme_args)
            drawn = None
            if cell.sampler.scored or cell.sampler.wired:  # one process draws, and what it cannot draw is said now
                data, table = cell.task.data, self.draft.table
                shape = (data.channels, data.size, data.size)
                drawn = self._sampler.draw(
                    table, plan.counts, cell.seeds.mask, plan.scores, cell.sampler_args,
                    lambda: wire(self.net, table, shape),
                )  # fmt: skip
        except Exception as error:
            return error
        return {
            "allocated": plan.allocated,
            "counts": plan.counts,
            "warnings": list(plan.warnings),
            "batches": plan.batches_used,
            "images": plan.images_used,
            "seconds": time.perf_counter() - start,
            "args": self.draft.scheme_args,
            "source": cell.scheme_source,
            "masks": drawn,
        }

    def _ended(self, plan: dict[str, Any] | Exception | None) -> Turns[Outcome]:
        """The cell's record, whatever way it ends; only an interruption leaves none."""
        if isinstance(plan, Exception):
            status = "infeasible" if isinstance(plan, InfeasibleBudget) else "failed"
            return self._write(self.draft.record(status, error=str(plan)))
        try:
            return (yield from self._trained(plan))
        except (Interrupted, StoreError, KeyboardInterrupt):
            raise
        except Diverged as error:
            return self._write(self.draft.record("diverged", error=str(error)))
        except Exception as error:
            name = "error.txt" if self.processes.first else f"error-{self.processes.rank}.txt"
            (self.folder.folder / name).write_text(traceback.format_exc())
            return self._write(self.draft.record("failed", error=self._reason(error)))

    def _reason(self, error: Exception) -> str:
        # the CPU's allocator has no exception of its own
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            share = self.cell.micro_batch or self.cell.task.recipe.batch // self.processes.world
            fewer = f"fewer --slots than {self.wish.packed}, " if self.wish.packed > 1 else ""
            return f"out of memory: try {fewer}--micro-batch {max(1, share // 2)}, or a smaller model"
        return f"{type(error).__name__}: {error}"

    def _trained(self, plan: dict[str, Any] | None) -> Turns[Outcome]:
        draft, processes = self.draft, self.processes
        loaded = processes.share(checkpoint.load(self.folder, processes.world) if processes.first else None)
        drawn = self._masks(plan, loaded)
        self._describe_masks(drawn)
        self.net.to(processes.device).to(memory_format=torch.channels_last)
        bound = masks.prune(self.net, drawn)
        state, track = loaded.state if loaded else State(), []
        began, before = time.monotonic(), state.total_seconds
        try:
            track = yield from self._fit(bound, state, loaded)
        finally:
            self.progress.close()
            draft.seconds = before + time.monotonic() - began
            draft.train_rate = state.trained / state.train_seconds if state.train_seconds else None
        bound.verify()
        selected, last = self._score(bound, state)
        draft.digest_end = masks.digest(bound.masks())
        draft.seconds = before + time.monotonic() - began
        draft.peak_mb = peak_memory_mb(processes.device)
        if self.wish.packed > 1 and processes.device.type == "cuda":
            draft.peak_mb = draft.train_rate = None  # those are of all cells of this process together
        if track and processes.first:
            self._write_track(track)
        return self._write(draft.record("ok", selected, last, state), selected, last, drawn)

    def _masks(self, plan: dict[str, Any] | None, loaded: checkpoint.Loaded | None) -> dict[str, torch.Tensor]:
        """The masks of the plan, or of the checkpoint: what was scored once is not scored again."""
        if loaded is not None:
            self.progress.say(f"going on from epoch {loaded.state.epoch + 1}, step {loaded.state.step}")
            self.draft.plan = loaded.plan
            return {name: loaded.tensors[f"mask.{name}"] for name in self.draft.table.names}
        assert plan is not None
        ready: dict[str, torch.Tensor] | None = plan.pop("masks")
        self.draft.plan = plan
        cell = self.cell
        return ready or self._sampler.draw(self.draft.table, plan["counts"], cell.seeds.mask, None, cell.sampler_args)

    @property
    def _sampler(self) -> Sampler:
        return limited(self.cell.sampler, self.wish.scheme_limits)

    def _fit(self, bound: masks.Bound, state: State, loaded: checkpoint.Loaded | None) -> Turns[list[torch.Tensor]]:
        """Train from `state` to the end; returns the tracked gradient norms."""
        cell, processes, device = self.cell, self.processes, self.processes.device
        recipe = cell.task.recipe
        optimizer = make_optimizer(self.net, recipe)
        keeper = checkpoint.Keeper(self.folder, self.net, bound, optimizer, self.draft.plan, processes.world)
        keeper.writes = processes.first
        sums, track = keeper.restore(loaded) if loaded else (torch.zeros(2, dtype=torch.float64), [])
        if not processes.first:
            sums.zero_()  # the checkpoint's are of all processes together
        bound.verify()
        learner = Learner(
            net=self.net,
            bound=bound,
            training=opened.training_set(self.train, cell.task, cell.seeds.order, device),
            order=Order(cell.seeds.order, len(self.train), recipe.batch, processes.rank, processes.world),
            recipe=recipe,
            machine=Machine(device, processes.world, cell.precision, processes.wrap(self.net), processes.agree),
            optimizer=optimizer,
            sums=sums.to(device),
            track=track,
            micro_batch=cell.micro_batch,
            track_flow=self.wish.track_flow or bool(track),
        )
        engine, note = choose(self.wish.engine, learner, graphs_of(device))
        if note:
            self.progress.say(f"note: {note}")
        self.draft.env["engine"] = engine.name
        self.state, self.steps = state, learner.order.steps
        self.progress.start(recipe.epochs, learner.order.steps, recipe.batch, state)
        work = Fit(learner, engine, self._validate, keeper, self.progress)
        with noted_signals() if self.caught is None else nullcontext(self.caught) as caught:
            try:
                yield from training(work, state, caught)
            except RuntimeError:
                if caught:  # of decode processes that have died of the same signal
                    raise Interrupted(caught[-1]) from None
                raise
        return learner.track

    def _describe_masks(self, drawn: dict[str, torch.Tensor]) -> None:
        """Counts, digest and connectivity of the masks; MaskError where processes hold different ones."""
        draft, data = self.draft, self.cell.task.data
        digest = masks.digest(drawn)
        every = self.processes.collect(digest)
        if len(set(every)) > 1:
            raise MaskError(f"processes hold different masks: {', '.join(d[:12] for d in every)}")
        draft.digest_start = digest
        draft.kept = masks.kept(drawn)
        draft.reached = paths(self.net, draft.table, drawn, (data.channels, data.size, data.size))
        draft.warnings = list(draft.plan["warnings"])
        if draft.reached and draft.reached.unreached:
            draft.warnings.append(f"{draft.reached.unreached} of {data.classes} outputs are reached by no path")

    def _validate(self) -> tuple[float, float]:
        self.processes.sync(self.net)  # BatchNorm's statistics are each process' own
        return self.validation_passes.accuracy_and_loss(self.net, self.validation)

    def _score(self, bound: masks.Bound, state: State) -> tuple[Scored, Scored]:
        """The net sees test images here and nowhere before: one pass for the selected epoch, one for the last."""
        cell, task = self.cell, self.cell.task
        say = self.progress.say
        best = self.folder.folder / f"best-{state.best_epoch:05d}.safetensors"
        last_is_best = state.best_epoch == len(state.curve) - 1
        if self.processes.first:
            checkpoint.save_weights(self.net, self.folder.folder / "last.safetensors", epoch=str(len(state.curve)))
        if last_is_best:
            last = score_net(self.net, task, self.images, cell.attacks, self.passes, say)
            return last, last
        if self.wish.last_full:
            last = score_net(self.net, task, self.images, cell.attacks, self.passes, say)
        else:
            bare = TaskImages(self.images.test, {}, (), {})
            last = score_net(self.net, task, bare, {}, self.passes, say)
        if self.processes.first:
            checkpoint.load_weights(self.net, best)
        self.processes.sync(self.net)
        bound.verify()
        return score_net(self.net, task, self.images, cell.attacks, self.passes, say), last

    def _write(
        self,
        record: RunRecord,
        selected: Scored | None = None,
        last: Scored | None = None,
        drawn: dict[str, torch.Tensor] | None = None,
    ) -> Outcome:
        """Everything else first, the record last: a cell with a record is whole."""
        if self.processes.first:
            folder = self.folder.folder
            if drawn is not None and selected is not None and last is not None:
                masks.save(drawn, folder / "masks.safetensors")
                epoch = str(record.metrics["epoch"])
                checkpoint.save_weights(self.net, folder / "selected.safetensors", epoch=epoch)
                self.folder.write_outputs("selected", selected.outputs)
                self.folder.write_outputs("last", last.outputs)
            self.folder.write_record(record)
            if record.status in FINISHED:
                self.folder.clean()
        return Outcome(record, self.folder.folder)

    def _write_track(self, track: list[torch.Tensor]) -> None:
        names = ("epoch", "step", "global_l2", "layer_mean_l2", "mean_abs")
        rows = [dict(zip(names, row.tolist(), strict=True)) for row in track]
        self.folder.write_lines("gradient_flow.jsonl", [r | {k: int(r[k]) for k in names[:2]} for r in rows])


def _finished(cell: Cell, wish: Wish, differences: Mapping[str, int | str], processes: Processes) -> Outcome | None:
    """The outcome of a cell that needs no work; the first process looks, all hear of it."""
    outcome = None
    if processes.first and not wish.force:
        folder = CellFolder(wish.store, cell.run_id(differences))
        record = folder.record()
        if record is not None and record.status in FINISHED:
            outcome = Outcome(record, folder.folder, found=True)
    shared: Outcome | None = processes.share(outcome)
    return shared


def _check_outputs(cell: Cell, net: nn.Module, shape: tuple[int, ...]) -> None:
    """ModelError unless the net gives one logit per class."""
    out = output_shape(net, shape)
    if out != (2, cell.task.data.classes):
        raise ModelError(
            f"model '{cell.model.name}' gives outputs of shape {out} for 2 images, "
            f"task '{cell.task.name}' has {cell.task.data.classes} classes"
        )
