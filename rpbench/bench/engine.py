"""Training steps against the usual loop: what is timed, and the gate that comes before any time."""

from __future__ import annotations

import copy
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rpbench.bench.race import Turn, repeated, stepping
from rpbench.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from rpbench.data.resident import ResidentImages
    from rpbench.masks import Masks
    from rpbench.run import Outcome
    from rpbench.step import Learner
    from rpbench.task import Task

IMAGES = 4096  # random pixels: what is timed does not depend on what they show
LOSS = 1e-5  # how far our fp32 loss may be from a plain step's, as a fraction
BATCHES = 4
GRADIENT = 3  # how many times as far from float64 as torch's own fp32 gradient ours may be: ReLUs that flip are luck
SHORT = ("recipe.epochs=2",)


@dataclass(frozen=True)
class Subject:
    """What is trained: names, so that another process can make the same."""

    task: str
    model: str
    density: float
    batch: int | None = None

    def declared(self) -> Task:
        """The task. Raises UsageError for one whose images do not stay on the device."""
        from rpbench.task import load_task

        task = load_task(self.task)
        if task.data.pipeline != "resident":
            raise UsageError(f"task '{self.task}' streams its images: 'rpbench bench data' times that")
        if self.batch:
            task = task.model_copy(update={"recipe": task.recipe.model_copy(update={"batch": self.batch})})
        return task

    def net(self) -> tuple[nn.Module, Masks]:
        """The initial net, and its ERK masks."""
        import torch

        from rpbench.catalog import find_scheme
        from rpbench.layers import layer_table
        from rpbench.models import build, resolve
        from rpbench.planning import plan_table

        task = self.declared()
        torch.manual_seed(0)
        net = build(resolve(self.model, task.family), task.data.classes, task.data.channels, task.data.size)
        name = "erk" if self.density < 1 else "dense"
        plan = plan_table(layer_table(net), find_scheme(name)[0], self.density, None, {})
        return net, plan.draw(0)

    def images(self) -> ResidentImages:
        """Random pixels of the task's shape, with random classes."""
        from rpbench.data.resident import ResidentImages

        data = self.declared().data
        generator = np.random.default_rng(0)
        pixels = generator.integers(0, 256, (IMAGES, data.size, data.size, data.channels), dtype=np.uint8)
        return ResidentImages(pixels, generator.integers(0, data.classes, IMAGES), "random", "random")


def learner_of(subject: Subject, precision: str, device: torch.device) -> Learner:
    """What rpbench trains."""
    import torch

    from rpbench.data.order import Order
    from rpbench.data.resident import ResidentTraining
    from rpbench.masks import prune
    from rpbench.step import Learner, Machine, make_optimizer

    task = subject.declared()
    net, masks = subject.net()
    net = net.to(device).to(memory_format=torch.channels_last)
    bound = prune(net, masks)
    return Learner(
        net=net,
        bound=bound,
        training=ResidentTraining(subject.images(), task.data, task.augment, 0, device),
        order=Order(0, IMAGES, task.recipe.batch),
        recipe=task.recipe,
        machine=Machine(device, 1, precision, net, lambda n: n),
        optimizer=make_optimizer(net, task.recipe),
        sums=torch.zeros(2, dtype=torch.float64, device=device),
    )


def our_steps(learner: Learner, engine: str) -> Iterator[int]:
    """An endless training by rpbench's own step and engine."""
    from rpbench.engine import choose, graphs_of
    from rpbench.train import LOOK_EVERY

    look_every = LOOK_EVERY.get(learner.machine.device.type, 50)
    chosen, _ = choose(engine, learner, graphs_of(learner.machine.device))  # type: ignore[arg-type]
    epoch = 0
    while True:
        for step, _ in enumerate(chosen.steps(epoch, 0)):
            if (step + 1) % look_every == 0 or step + 1 == learner.order.steps:
                float(learner.sums[0])
            yield learner.order.size(step)
        learner.sums.zero_()
        epoch += 1


def turns(
    subject: Subject, reference: Callable[[], int] | None, slots: int
) -> tuple[dict[str, Turn], Callable[[], None]]:
    """Every mode's turn, the reference first; and what ends the processes behind them."""
    from rpbench.bench import usual
    from rpbench.machine import best_device

    device = best_device()
    task = subject.declared()
    modes: dict[str, Turn] = {}
    if reference is not None:
        modes["reference"] = repeated(reference, _waiter(device))
    net, masks = subject.net()
    images = subject.images()
    pictures = usual.Pictures(images.pixels, images.labels, usual.training_transform(task))
    steps = usual.training_steps(task, net, masks, pictures, device)
    modes["usual"] = stepping(steps, _waiter(device), usual.AHEAD)
    engines = ["eager", "auto"] if device.type == "cuda" else ["eager"]  # auto is graph where the net can be recorded
    for engine in engines:
        for precision in ("fp32", "bf16"):
            name = precision if len(engines) == 1 else f"{precision} {engine}"
            modes[name] = stepping(our_steps(learner_of(subject, precision, device), engine), _waiter(device))
    if device.type == "cuda":
        modes["packed"] = _lanes(subject, slots, device)
        return modes, lambda: None
    crew = Crew(subject, slots)
    modes["packed"] = crew.turn
    return modes, crew.close


def adapted(reference: str, batch: int) -> Callable[[], int]:
    """A step of somebody else's loop: FILE.py holds `setup()`, which returns a function that takes one training step
    and returns how many images it took (a whole number; anything else stands for the task's batch).

    Raises UsageError where that cannot be had.
    """
    from rpbench.catalog import find_model_function

    function, path = find_model_function(f"{reference}:setup")
    try:
        step = function()
    except Exception as error:
        raise UsageError(f"setup() of '{path}' failed: {type(error).__name__}: {error}") from error
    if not callable(step):
        raise UsageError(f"setup() of '{path}' gave a {type(step).__name__}, not a function that takes a step")

    def one() -> int:
        try:
            images = step()
        except Exception as error:
            raise UsageError(f"the step of '{path}' failed: {type(error).__name__}: {error}") from error
        if not isinstance(images, int):
            return batch
        if images < 1:
            raise UsageError(f"the step of '{path}' returned {images!r}, not a number of images")
        return images

    return one


class Crew:
    """Processes of one thread each that train the same thing at the same time, in bf16."""

    def __init__(self, subject: Subject, size: int) -> None:
        context = get_context("spawn")
        self.members = []
        for _ in range(size):
            here, there = context.Pipe()
            process = context.Process(target=_train_alone, args=(there, subject), daemon=True)
            process.start()
            there.close()
            self.members.append((process, here))

    def turn(self, seconds: float) -> float:
        """All at once; their images per second together."""
        for _, pipe in self.members:
            pipe.send(seconds)
        return float(sum(pipe.recv() for _, pipe in self.members))

    def close(self) -> None:
        for process, pipe in self.members:
            pipe.close()
            process.kill()
            process.join()


def _train_alone(pipe: Connection, subject: Subject) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
    import torch

    from rpbench.machine import keep_memory

    torch.set_num_threads(1)
    keep_memory()
    turn = stepping(our_steps(learner_of(subject, "bf16", torch.device("cpu")), "eager"))
    while True:
        try:
            pipe.send(turn(pipe.recv()))
        except (EOFError, BrokenPipeError):
            return


def _lanes(subject: Subject, slots: int, device: torch.device) -> Turn:
    """Trainings in one process that take turns, each on a stream of its own."""
    import torch

    lanes = []
    for _ in range(slots):
        stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        lanes.append((stream, our_steps(learner_of(subject, "bf16", device), "auto")))

    def step() -> int:
        images = 0
        for stream, steps in lanes:
            with torch.cuda.stream(stream):
                images += next(steps)
        return images

    return repeated(step, _waiter(device))


def _waiter(device: torch.device) -> Callable[[], None]:
    """Waits for the device."""
    import torch

    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def gate(subject: Subject) -> list[str]:
    """What is wrong with our training, in sentences; nothing is timed unless this is empty."""
    return [*gate_of_the_step(subject), *gate_of_the_record()]


def gate_of_the_step(subject: Subject) -> list[str]:
    """Steps on the same weights and batches: our loss against a plain step's, our gradients against float64's."""
    from rpbench.machine import best_device

    device = best_device()
    learner = learner_of(subject, "fp32", device)
    learner.set_rate(0.0)
    plain = copy.deepcopy(learner.net).train()
    exact = copy.deepcopy(plain).double()
    off, mine, theirs = 0.0, 0.0, 0.0
    for x, y in itertools.islice(learner.training.batches(learner.order, 0, 0), BATCHES):
        loss, torchs = _plain_gradients(plain, x, y, learner.recipe.label_smoothing)
        _, true = _plain_gradients(exact, x.double(), y, learner.recipe.label_smoothing)
        learner.sums.zero_()
        learner.net.train()
        learner.step(x, y, len(y))
        ours = [p.grad.double() for p in learner.net.parameters() if p.grad is not None]
        off = max(off, abs(float(learner.sums[0]) / len(y) / loss - 1))
        mine, theirs = mine + _distance(ours, true) ** 2 / BATCHES, theirs + _distance(torchs, true) ** 2 / BATCHES
    wrong = []
    if not off <= LOSS:
        wrong.append(f"our fp32 loss is off a plain step's by {off:.1e} (at most {LOSS:.0e})")
    if not mine <= GRADIENT**2 * theirs:
        wrong.append(f"our gradients are {mine**0.5:.1e} from float64's, torch's own {theirs**0.5:.1e}")
    return wrong


def _plain_gradients(
    net: nn.Module, x: torch.Tensor, y: torch.Tensor, smoothing: float
) -> tuple[float, list[torch.Tensor]]:
    """(loss, gradients in float64) as anybody computes them, in torch's default memory layout."""
    import torch
    from torch.nn import functional

    net.to(memory_format=torch.contiguous_format).zero_grad()
    loss = functional.cross_entropy(net(x.contiguous()), y, label_smoothing=smoothing)
    torch.autograd.backward(loss)
    return float(loss.detach()), [p.grad.double() for p in net.parameters() if p.grad is not None]


def _distance(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    """Relative, over all tensors together."""
    apart = sum(float((x - y).square().sum()) for x, y in zip(a, b, strict=True))
    return float((apart / sum(float(y.square().sum()) for y in b)) ** 0.5)


def gate_of_the_record() -> list[str]:
    """A short cell of the embedded task alone, beside another in processes, and in turns with another: one record."""
    import torch

    from rpbench.cell import ask
    from rpbench.machine import Processes
    from rpbench.pack import Team, run_lanes, run_processes
    from rpbench.progress import Quiet
    from rpbench.run import Wish, run_cell

    asked = [{"task": "digits", "seed": seed, "overrides": SHORT, "limit_test": 100} for seed in (0, 1)]
    cells = [ask(**each) for each in asked]  # type: ignore[arg-type]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            wishes = [Wish(store=Path(folder) / name, engine="eager") for name in ("alone", "turns", "processes")]
            processes = Processes()
            found = {"alone": run_cell(cells[0], wishes[0], Quiet(), processes)}
            lanes = run_lanes(cells, wishes[1], 2, Nobody(), processes)
            if processes.device.type == "cpu":  # one GPU is shared by lanes, not by processes
                ends = run_processes(asked, replace(wishes[2], packed=2), Team(2), Nobody())
                found |= {"in a process of its own": _of(ends[0].outcome)}
            found |= {"in turns": _of(lanes[0].outcome)}
            told = {name: _told(outcome) for name, outcome in found.items()}
    finally:
        torch.set_num_threads(threads)
    # GPUs add in any order: there the masks and data must be the same, the rest is for statistics
    return differences(told, None if processes.device.type == "cpu" else ("masks", "data"))


def differences(told: dict[str, dict[str, Any]], keys: Sequence[str] | None = None) -> list[str]:
    """Where a cell's results, by the way in which it was run, are not those of the first way."""
    (_, alone), *others = told.items()
    return [
        f"a cell run {name} has other {key} than alone"
        for name, found in others
        for key in keys or alone
        if found[key] != alone[key]
    ]


class Nobody:
    """Watches nothing."""

    def at(self, index: int, done: float) -> None: ...
    def said(self, index: int, text: str) -> None: ...
    def ended(self, index: int, end: Any) -> None: ...


def _of(outcome: Outcome | None) -> Outcome:
    if outcome is None:
        raise UsageError("the embedded task cannot be trained here: try 'rpbench run'")
    return outcome


def _told(outcome: Outcome) -> dict[str, Any]:
    record = outcome.record
    curve = (outcome.folder / "curve.jsonl").read_text()
    return {
        "status": record.status,
        "metrics": record.metrics,
        "last metrics": record.last,
        "masks": record.masks.model_dump(),
        "data": record.data,
        "curve": curve,
    }
