"""One training, whoever takes its steps: engines against each other, bit for bit."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tape import Tape, TapeGraphs
from torch import nn

import rpbench
from rpbench import masks
from rpbench.data.order import Order
from rpbench.data.resident import ResidentImages, ResidentTraining
from rpbench.engine import CannotRecord, CudaGraphs, Eager, Graphs, Recorded, choose, graphs_of
from rpbench.errors import UsageError
from rpbench.models import cifar
from rpbench.step import Learner, Machine, make_optimizer
from rpbench.task import load_task

CPU = torch.device("cpu")
TASK = load_task("cifar10")
STEPS, BATCH, N = 4, 16, 58  # the last batch has 10 images


def net_of(name: str) -> nn.Module:
    torch.manual_seed(3)
    if name == "plain":
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3600, 10))
    return cifar.build(name, 10, 3)


def learner_of(net: nn.Module, device: torch.device = CPU, precision: str = "fp32", **changes: Any) -> Learner:
    generator = np.random.default_rng(0)
    images = ResidentImages(
        generator.integers(0, 256, (N, 32, 32, 3), dtype=np.uint8), generator.integers(0, 10, N), "made", "made"
    )
    recipe = TASK.recipe.model_copy(update={"epochs": 3, "batch": BATCH, "warmup": 0.4} | changes.pop("recipe", {}))
    drawn = rpbench.plan(net, "erk", 0.3).draw(0)
    net = net.to(device).to(memory_format=torch.channels_last)
    return Learner(
        net=net,
        bound=masks.prune(net, drawn),
        training=ResidentTraining(images, TASK.data, TASK.augment, 5, device),
        order=Order(5, N, BATCH),
        recipe=recipe,
        machine=Machine(device, 1, precision, net, lambda n: n),
        optimizer=make_optimizer(net, recipe),
        sums=torch.zeros(2, dtype=torch.float64, device=device),
        **changes,
    )


def state_of(learner: Learner) -> dict[str, torch.Tensor]:
    momenta = {f"m{i}": s["momentum_buffer"] for i, s in enumerate(learner.optimizer.state.values()) if s}
    return {k: v.clone() for k, v in (learner.net.state_dict() | momenta | {"sums": learner.sums}).items()}


def trained(engine: Any, learner: Learner, epochs: int = 2, first: int = 0) -> dict[str, torch.Tensor]:
    for epoch in range(epochs):
        assert sum(1 for _ in engine.steps(epoch, first if epoch == 0 else 0)) == STEPS - (first if epoch == 0 else 0)
        learner.net.eval()  # as validation does
    return state_of(learner)


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"precision": "bf16"},
    "micro batches": {"micro_batch": 7},
    "decay of weights": {"recipe": {"decay": "weights", "nesterov": False, "label_smoothing": 0.1}},
    "no momentum": {"recipe": {"momentum": 0.0, "nesterov": False}},
}


@pytest.mark.parametrize("name", ["plain", "resnet8", pytest.param("vgg11", marks=pytest.mark.slow)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_recorded_training_is_the_eager_one(name: str, variant: str) -> None:
    if name == "vgg11" and variant != "fp32":
        pytest.skip("one variant is enough for the larger net")
    eager, recorded = (learner_of(net_of(name), **VARIANTS[variant]) for _ in range(2))
    graphs = TapeGraphs()
    engine = Recorded(recorded, graphs)
    assert_same(state_of(eager), state_of(recorded))  # warming up and recording have left no trace
    assert_same(trained(Eager(eager), eager), trained(engine, recorded))
    assert graphs.recorded == 2  # a whole batch and the last one
    assert graphs.replayed == 2 + 2 * STEPS  # each tried once; then nothing but replays
    recorded.bound.verify()


@pytest.mark.parametrize("first", [1, 3])
def test_engines_take_over_from_each_other_within_an_epoch(first: int) -> None:
    whole, parts = (learner_of(net_of("resnet8")) for _ in range(2))
    expected = trained(Eager(whole), whole)
    begun = Eager(parts).steps(0, 0)
    for _ in range(first):
        next(begun)
    begun.close()
    assert_same(expected, trained(Recorded(parts, TapeGraphs()), parts, first=first))


def test_one_batch_is_recorded_once() -> None:
    learner = learner_of(net_of("plain"))
    learner.order = Order(5, N, 29)
    learner.recipe = learner.recipe.model_copy(update={"batch": 29})
    graphs = TapeGraphs()
    Recorded(learner, graphs)
    assert graphs.recorded == 1


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net_of("plain")
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(self.drop(x))


class Asking(Dropping):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x * 2) if float(x.sum()) > 0 else self.net(x)


class Counting(Dropping):
    calls = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.net(x * self.calls)


class Drawing(Dropping):
    """Draws where a GPU's own generator does not see it, as stochastic depth often does."""

    def __init__(self, draw: Callable[[], object]) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.draw()
        return self.net(x)


def on_host(learner: Learner) -> Learner:
    learner.training = object()  # type: ignore[assignment]
    return learner


REFUSED: dict[str, tuple[Callable[[], Learner], str]] = {
    "random": (lambda: learner_of(Dropping()), "random numbers"),
    "random in Python": (lambda: learner_of(Drawing(random.random)), "random numbers"),
    "random in numpy": (lambda: learner_of(Drawing(np.random.random)), "random numbers"),
    "asks the host": (lambda: learner_of(Asking()), "not permitted"),
    "changes in Python": (lambda: learner_of(Counting()), "differs from an eager one"),
    "tracked": (lambda: learner_of(net_of("plain"), track_flow=True), "tracked"),
    "streamed": (lambda: on_host(learner_of(net_of("plain"))), "on the host"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_recorded_is_taken_by_the_host(case: str) -> None:
    make, reason = REFUSED[case]
    with pytest.raises((CannotRecord, RuntimeError), match=reason):
        Recorded(make(), TapeGraphs())
    learner = make()
    before = state_of(learner)
    engine, note = choose("auto", learner, TapeGraphs())
    assert engine.name == "eager"
    assert note is None if case in ("tracked", "streamed") else reason in str(note)  # those are as they should be
    assert_same(before, state_of(learner))
    with pytest.raises(UsageError, match=reason):
        choose("graph", make(), TapeGraphs())


def test_falling_back_trains_the_same() -> None:
    def made() -> Learner:
        torch.manual_seed(0)
        return learner_of(Dropping())

    plain, fallen = made(), made()
    engine, _ = choose("auto", fallen, TapeGraphs())
    assert_same(trained(Eager(plain), plain), trained(engine, fallen))


def test_every_step_draws_for_itself() -> None:
    learner, seeds = learner_of(net_of("plain")), []
    learner.net.register_forward_hook(lambda *_: seeds.append(torch.initial_seed()))
    trained(Eager(learner), learner)
    assert len(set(seeds)) == len(seeds) == 2 * STEPS


def test_the_host_takes_steps_where_nothing_records() -> None:
    learner = learner_of(net_of("plain"))
    assert choose("auto", learner, graphs_of(CPU))[0].name == "eager"
    assert choose("eager", learner, TapeGraphs())[0].name == "eager"
    assert choose("auto", learner, TapeGraphs())[0].name == "graph"
    with pytest.raises(UsageError, match="only CUDA devices record, this is a cpu"):
        choose("graph", learner, graphs_of(CPU))


def test_a_loss_that_is_not_finite_is_not_recorded() -> None:
    learner = learner_of(net_of("plain"), recipe={"lr": 1e30})
    with torch.no_grad():
        next(learner.net.parameters()).fill_(float("nan"))
    assert choose("auto", learner, TapeGraphs())[0].name == "eager"


def _without(name: str) -> Callable[[Any], Any]:
    return lambda done: None if name in str(done[0]) else done


def _with(**changed: Any) -> Callable[[Any], Any]:
    return lambda done: (*done[:2], done[2] | changed, done[3]) if "sgd" in str(done[0]) else done


def _forgetting(done: Any) -> Any:
    function, args, kwargs, fresh = done
    if "batch_norm" in str(function) and "backward" not in str(function):
        args = (*args[:3], args[3].clone(), args[4].clone(), *args[5:])
    return function, args, kwargs, fresh


WRONG: dict[str, tuple[Callable[[Any], Any], str]] = {
    "no update": (_without("sgd"), "in weights"),
    "no decay": (_with(weight_decay=0.0), "in weights"),
    "another rate": (_with(lr=torch.tensor(0.2)), "in weights"),
    "no masks": (_without("_foreach_mul_"), "in weights"),
    "no running statistics": (_forgetting, "in statistics"),
    "no next step": (lambda d: None if "add_" in str(d[0]) and d[1][0].shape == (1,) else d, "in counts"),
    "no sums": (lambda d: None if d[1] and getattr(d[1][0], "dtype", None) is torch.float64 else d, "in sums"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_replay_that_is_wrong_in_one_thing_is_not_trusted(case: str) -> None:
    """Losses of a batch sum to hundreds: what happens to the weights must not drown in them."""
    edit, where = WRONG[case]

    class Wrong(TapeGraphs):
        def record(self, work: Callable[[], None]) -> Callable[[], None]:
            tape = Tape()
            with tape:
                work()
            tape.done = [kept for done in tape.done if (kept := edit(done))]
            return tape.replay

    learner = learner_of(net_of("resnet8"), recipe={"weight_decay": 0.1})
    before = state_of(learner)
    with pytest.raises(CannotRecord, match=f"differs from an eager one by .* {where}"):
        Recorded(learner, Wrong())
    assert_same(before, state_of(learner))


def test_a_recording_that_fails_leaves_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch before 2.15 stays on the recording's stream where the end of a recording raises."""
    streams: list[str] = ["own"]

    @contextlib.contextmanager
    def graph(*_: Any, stream: str, **__: Any) -> Any:
        streams.append(stream)
        yield
        raise RuntimeError("capture failed")

    fakes: dict[str, Any] = {
        "Stream": lambda _: "recording", "graph_pool_handle": lambda: None, "CUDAGraph": object, "graph": graph,
        "current_stream": lambda _: streams[-1], "set_stream": streams.append,
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    with pytest.raises(RuntimeError, match="capture failed"):
        CudaGraphs(CPU).record(lambda: None)
    assert streams == ["own", "recording", "own"]


@pytest.mark.parametrize("name", ["resnet8", "vgg11"])
def test_everything_in_a_step_is_channels_last(name: str) -> None:
    learner = learner_of(net_of(name))
    seen = []

    def look(module: nn.Module, given: Any, out: torch.Tensor) -> None:
        for tensor in (given[0], out):
            if tensor.dim() == 4 and tensor.shape[1] > 1 and tensor.shape[2] > 1:  # else strides say nothing
                assert tensor.is_contiguous(memory_format=torch.channels_last), (module, tensor.stride())
                seen.append(module)

    for module in learner.net.modules():
        if not list(module.children()):
            module.register_forward_hook(look)
    next(Eager(learner).steps(0, 0))
    assert len(seen) > 10
    for parameter, state in learner.optimizer.state.items():
        if parameter.dim() == 4:
            assert parameter.is_contiguous(memory_format=torch.channels_last)
            assert state["momentum_buffer"].stride() == parameter.stride() == parameter.grad.stride()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["resnet8", "vgg11"])
def test_a_cuda_graph_trains_as_the_host_does(name: str, precision: str) -> None:
    device = torch.device("cuda")
    eager, recorded = (learner_of(net_of(name), device, precision) for _ in range(2))
    graphs: Graphs = CudaGraphs(device)
    a, b = trained(Eager(eager), eager), trained(Recorded(recorded, graphs), recorded)
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-2, atol=1e-3)
