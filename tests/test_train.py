"""The training step against a plain one, and the parts of a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from rpbench import masks
from rpbench.data.order import Order
from rpbench.engine import Eager
from rpbench.step import Learner, Machine, gradient_flow, make_optimizer, rate
from rpbench.task import Recipe, load_task
from rpbench.train import Diverged, Fit, State, training


@dataclass
class Nothing:
    """Keeps and shows nothing."""

    kept: list[int] = field(default_factory=list)

    def best(self, epoch: int) -> None:
        self.kept.append(epoch)

    def save(self, state: State, sums: list[float], track: list[torch.Tensor]) -> None: ...
    def step(self, state: State, steps: int, loss: float | None) -> None: ...
    def epoch(self, row: Any, state: State) -> None: ...


def small_net(norm: bool = False) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)]
    if norm:
        layers.insert(1, nn.BatchNorm2d(4))
    return nn.Sequential(*layers)


def learner(net: nn.Module, recipe: Recipe, **changes: Any) -> Learner:
    import rpbench

    cpu = torch.device("cpu")
    parts: dict[str, Any] = {
        "net": net,
        "bound": masks.prune(net, rpbench.plan(net, "erk", 0.3).draw(0)),
        "training": None,
        "order": Order(0, 64, recipe.batch),
        "recipe": recipe,
        "machine": Machine(cpu, 1, "fp32", net, lambda n: n),
        "optimizer": make_optimizer(net, recipe),
        "sums": torch.zeros(2, dtype=torch.float64),
    }
    return Learner(**parts | changes)


def work(learner: Learner, validate: Any = lambda: (0.5, 1.0)) -> tuple[Fit, Nothing]:
    nothing = Nothing()
    return Fit(learner, Eager(learner), validate, nothing, nothing), nothing


RECIPE = load_task("digits").recipe


def batch(n: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(n, 1, 8, 8, generator=generator), torch.randint(10, (n,), generator=generator)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_step_equals_a_plain_one(smoothing: float) -> None:
    recipe = RECIPE.model_copy(update={"label_smoothing": smoothing})
    ours, plain = small_net(norm=True), small_net(norm=True)
    mine = learner(ours, recipe)
    theirs = masks.prune(plain, mine.bound.masks())
    optimizer = torch.optim.SGD(plain.parameters(), recipe.lr, 0.9, nesterov=True, weight_decay=5e-4)
    x, y = batch()
    for _ in range(3):
        ours.train()
        mine.sums.zero_()
        mine.step(x, y, 64)
        told = mine.sums
        logits = plain.train()(x)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(logits, y, label_smoothing=smoothing)
        loss.backward()
        optimizer.step()
        theirs.apply()
        assert float(told[0]) / 64 == pytest.approx(loss.item(), rel=1e-5)
        assert int(told[1]) == int((logits.argmax(1) == y).sum())
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("piece", [1, 7, 32, 64, 1000])
def test_micro_batches_add_up_to_the_batch(piece: int) -> None:
    whole, parts = small_net(), small_net()
    x, y = batch()
    learner(whole, RECIPE).step(x, y, 64)
    learner(parts, RECIPE, micro_batch=piece).step(x, y, 64)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_decay_on_weights_alone() -> None:
    net = small_net(norm=True)
    groups = make_optimizer(net, RECIPE.model_copy(update={"decay": "weights"})).param_groups
    assert [g["weight_decay"] for g in groups] == [5e-4, 0.0]
    assert all(p.dim() > 1 for p in groups[0]["params"])
    assert sum(len(g["params"]) for g in groups) == len(list(net.parameters()))


def test_rate_warms_up_and_drops() -> None:
    recipe = load_task("imagenet").recipe
    steps = 100
    assert rate(recipe, 0, 0, steps) == pytest.approx(0.4 / 500)
    assert rate(recipe, 4, 99, steps) == pytest.approx(0.4)
    rates = [rate(recipe, e, 0, steps) for e in (5, 29, 30, 60, 90, 99)]
    assert rates == pytest.approx([0.4, 0.4, 0.04, 0.004, 0.0004, 0.0004])


def test_gradient_flow_by_hand() -> None:
    net = small_net()
    mine = learner(net, RECIPE)
    x, y = batch()
    nn.functional.cross_entropy(net(x), y).backward()
    kept = mine.bound.masks()
    gradients = [dict(net.named_parameters())[n].grad * m for n, m in kept.items()]  # type: ignore[operator]
    flat = torch.cat([g.flatten() for g in gradients])
    alive = torch.cat([m.flatten() for m in kept.values()])
    expected = [flat.norm(), torch.stack([g.norm() for g in gradients]).mean(), flat[alive].abs().mean()]
    torch.testing.assert_close(gradient_flow(mine.bound), torch.stack(expected).double())


@pytest.mark.parametrize("decay", [0.0, 5e-4])
def test_gradient_flow_is_of_the_gradient_not_of_the_momentum(decay: float) -> None:
    """Nesterov without decay writes its update into the gradient: the norms must be taken before."""
    recipe = RECIPE.model_copy(update={"weight_decay": decay, "lr": 1e-12})
    mine = learner(small_net(), recipe, track_flow=True)
    norms = [mine.step(*batch(), 64) for _ in range(3)]
    assert all(n is not None for n in norms)
    torch.testing.assert_close(norms[0], norms[2])


class Batches:
    """The same batch at every step."""

    def batches(self, order: Order, epoch: int, first: int) -> Any:
        for _ in range(first, order.steps):
            yield batch(order.batch)


def test_selection_takes_the_first_strict_maximum() -> None:
    accuracies = iter([0.3, 0.5, 0.5, 0.4, 0.6, 0.6])
    recipe = RECIPE.model_copy(update={"epochs": 6})
    mine, nothing = work(learner(small_net(), recipe, training=Batches()), lambda: (next(accuracies), 1.0))
    state = State()
    for _ in training(mine, state, []):
        pass
    assert (state.best_epoch, state.best_top1) == (4, 0.6)
    assert nothing.kept == [0, 1, 4]
    assert [row["epoch"] for row in state.curve] == [1, 2, 3, 4, 5, 6]


def test_a_loss_that_explodes_is_noticed() -> None:
    recipe = RECIPE.model_copy(update={"lr": 1e30})
    with pytest.raises(Diverged, match="not finite|loss is"):
        list(training(work(learner(small_net(), recipe, training=Batches()))[0], State(), []))


def test_precision_bf16_trains_in_float32_weights() -> None:
    net = small_net(norm=True)
    mine = learner(net, RECIPE)
    mine.machine.precision = "bf16"
    mine.step(*batch(), 64)
    assert bool(torch.isfinite(mine.sums).all())
    assert all(p.dtype is torch.float32 for p in net.parameters())
    mine.bound.verify()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_process_without_an_image_takes_part_with_weight_zero(channels: int) -> None:
    """A last batch may be smaller than the number of processes."""
    net = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.Flatten(), nn.Linear(144, 10))
    mine = learner(net, RECIPE.model_copy(update={"weight_decay": 0.0}))
    before = [p.detach().clone() for p in net.parameters()]
    empty = torch.zeros(0, 8, 8, channels).permute(0, 3, 1, 2)  # as normalise gives it
    mine.step(empty, torch.zeros(0, dtype=torch.int64), 1)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert mine.sums.tolist() == [0, 0]
