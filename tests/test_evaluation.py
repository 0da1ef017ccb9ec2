"""One pass of logits per image set: attacks, sharing among processes, and what is kept of each pass."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from rpbench import metrics
from rpbench.data.opened import Limits, TaskImages, find_all, open_all
from rpbench.data.order import shares
from rpbench.data.resident import ResidentImages, normalisation, normalise
from rpbench.data.sources import Roots
from rpbench.evaluation import Passes, fgsm, per_example, score_net
from rpbench.models import build, resolve
from rpbench.task import Attack, Data, Task, load_attack, load_task

CPU = torch.device("cpu")
EPS = [0.0, 1 / 255, 8 / 255, 0.1, 1.0]


def in_color() -> Data:
    return Data(
        set="cifar10", classes=10, channels=3, size=8, validation=1, pipeline="resident",
        mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010),
    )  # fmt: skip


def images(n: int, channels: int = 3, seed: int = 0) -> ResidentImages:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (n, 8, 8, channels), dtype=np.uint8)
    return ResidentImages(pixels, rng.integers(0, 10, n), "fingerprint", "here")


def net(channels: int = 3, classes: int = 10) -> nn.Module:
    """A small net whose BatchNorm has seen some images."""
    torch.manual_seed(0)
    model = build(resolve("resnet8", "cifar"), classes, channels, 8)
    for _ in range(3):
        model(torch.rand(32, channels, 8, 8))
    return model


def pixels_and_labels(seed: int = 0, grid: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(24, 3, 8, 8, generator=g)
    return (x.mul(255).round().div(255) if grid else x), torch.randint(0, 10, (24,), generator=g)


def gradient_by_hand(model: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_(True)
    nn.functional.cross_entropy(model(x), labels, reduction="sum").backward()
    assert x.grad is not None
    return x.grad


def test_fgsm_with_eps_zero_is_the_identity() -> None:
    x, labels = pixels_and_labels()
    assert torch.equal(fgsm(net().eval(), x, labels, 0.0), x)


@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("grid", [True, False])
def test_fgsm_moves_every_pixel_by_eps_along_the_gradient(eps: float, grid: bool) -> None:
    model = net().eval()
    x, labels = pixels_and_labels(grid=grid)
    attacked = fgsm(model, x, labels, eps)
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    assert (attacked - x).abs().max() <= eps + 1e-7
    gradient = gradient_by_hand(model, x, labels)
    inner = (x >= eps) & (x <= 1 - eps) & (gradient.abs() > 1e-6)
    torch.testing.assert_close((attacked - x)[inner], eps * gradient[inner].sign(), atol=1e-7, rtol=0)
    assert not attacked.requires_grad


def test_fgsm_raises_the_loss() -> None:
    model = net().eval()
    x, labels = pixels_and_labels()
    loss = nn.functional.cross_entropy
    assert loss(model(fgsm(model, x, labels, 2 / 255)), labels) > loss(model(x), labels) + 0.1


def test_fgsm_does_not_depend_on_the_rest_of_the_batch() -> None:
    model = net().eval()
    x, labels = pixels_and_labels()
    alone = torch.cat([fgsm(model, x[i : i + 1], labels[i : i + 1], 8 / 255) for i in range(len(x))])
    assert (alone != fgsm(model, x, labels, 8 / 255)).float().mean() < 1e-3


@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("grid", [True, False])
def test_fgsm_is_foolboxs_bit_for_bit(eps: float, grid: bool) -> None:
    foolbox = pytest.importorskip("foolbox", exc_type=ImportError)
    model = net().eval()
    x, labels = pixels_and_labels(grid=grid)
    attack = foolbox.attacks.LinfFastGradientAttack(random_start=False)
    _, theirs, _ = attack(foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), x, labels, epsilons=eps)
    assert torch.equal(fgsm(model, x, labels, eps), theirs)


def test_attacked_pass_is_foolboxs_with_normalisation_as_preprocessing() -> None:
    foolbox = pytest.importorskip("foolbox", exc_type=ImportError)
    model, data, attack = net().eval(), in_color(), load_attack("fgsm-8")
    some = images(20)
    preprocessing = {"mean": data.mean, "std": data.std, "axis": -3}
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu", preprocessing=preprocessing)
    x = torch.from_numpy(some.pixels).permute(0, 3, 1, 2).float() / 255
    labels = torch.from_numpy(some.labels)
    fast = foolbox.attacks.LinfFastGradientAttack(random_start=False)
    _, adversarial, _ = fast(wrapped, x.contiguous(), labels, epsilons=attack.eps)
    with torch.inference_mode():
        theirs = wrapped(adversarial).numpy()
    ours = Passes(CPU, data, 20).logits(model, some, attack)
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("attack", [None, "fgsm-8"])
def test_a_pass_leaves_the_net_as_it_was(attack: str | None) -> None:
    model = net().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    Passes(CPU, in_color(), 16).logits(model, images(40), load_attack(attack) if attack else None)
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_normalise_is_the_formula() -> None:
    data, every = in_color(), np.arange(256, dtype=np.uint8)
    pixels = np.stack([every, every[::-1], np.roll(every, 7)], axis=-1).reshape(4, 8, 8, 3)
    scale, shift = normalisation(data, CPU)
    ours = normalise(torch.from_numpy(pixels), scale, shift)
    exact = (pixels / 255 - np.array(data.mean)) / np.array(data.std)
    assert ours.dtype is torch.float32
    assert ours.shape == (4, 3, 8, 8)
    np.testing.assert_allclose(ours.numpy(), exact.transpose(0, 3, 1, 2), atol=1e-6, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_logits_are_the_nets_on_normalised_images(channels: int) -> None:
    data = in_color() if channels == 3 else load_task("digits").data
    model, some = net(channels).eval(), images(10, channels)
    x = (some.pixels / 255 - np.array(data.mean)) / np.array(data.std)
    with torch.inference_mode():
        expected = model(torch.from_numpy(x).permute(0, 3, 1, 2).float())
    found = Passes(CPU, data, 4).logits(model, some)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attack", [None, "fgsm-8"])
@pytest.mark.parametrize("batch", [1, 7, 37, 500])
def test_logits_do_not_depend_on_the_batch_size(batch: int, attack: str | None) -> None:
    model, some = net(), images(37)
    with_attack = load_attack(attack) if attack else None
    whole = Passes(CPU, in_color(), 37).logits(model, some, with_attack)
    parts = Passes(CPU, in_color(), batch).logits(model, some, with_attack)
    assert parts.shape == (37, 10)
    if attack is None:
        np.testing.assert_allclose(parts, whole, atol=1e-4, rtol=1e-4)
    else:  # a gradient that is nearly zero may change its sign with the batch
        np.testing.assert_allclose(parts, whole, atol=0.05)


class Together:
    """Gathers of several processes, played by threads: each waits for all, and gets every tensor in rank order."""

    def __init__(self, world: int) -> None:
        self.tensors: dict[int, torch.Tensor] = {}
        self.barrier = threading.Barrier(world, timeout=30)

    def gather(self, rank: int, tensor: torch.Tensor) -> torch.Tensor:
        self.tensors[rank] = tensor
        self.barrier.wait()
        every = [self.tensors[r] for r in range(self.barrier.parties)]
        assert len({t.shape for t in every}) == 1, "gather wants equally long tensors"
        self.barrier.wait()
        return torch.cat(every)


def on_every_process(model: nn.Module, some: ResidentImages, world: int, attack: Attack | None) -> list[Any]:
    together = Together(world)

    def one(rank: int) -> Any:
        passes = Passes(CPU, in_color(), 4, rank, world, lambda tensor: together.gather(rank, tensor))
        return passes.logits(model, some, attack)

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(one, range(world)))


@pytest.mark.parametrize("attack", [None, "fgsm-8"])
@pytest.mark.parametrize("n", [1, 4, 6, 23, 30])
@pytest.mark.parametrize("world", [2, 3, 5])
def test_processes_share_images_and_all_hold_every_row_in_order(world: int, n: int, attack: str | None) -> None:
    """4 images on 3 processes leave the last one without any, 1 image on 5 leaves four."""
    model, some = net().eval(), images(n)
    with_attack = load_attack(attack) if attack else None
    alone = Passes(CPU, in_color(), 4).logits(model, some, with_attack)
    for found in on_every_process(model, some, world, with_attack):
        assert found.shape == (n, 10)
        np.testing.assert_allclose(found, alone, atol=1e-4 if attack is None else 0.05, rtol=1e-4)


@pytest.mark.parametrize("batch", [1, 3, 100])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("n", [0, 1, 2, 6, 7, 100])
def test_shares_are_every_image_once_in_order(n: int, world: int, batch: int) -> None:
    parts = [shares(n, batch, rank, world) for rank in range(world)]
    assert [int(i) for mine in parts for part in mine for i in part] == list(range(n))
    assert all(0 < len(part) <= batch for mine in parts for part in mine)
    assert max(sum(map(len, mine)) for mine in parts) <= -(-n // world)


def test_accuracy_and_loss_are_of_the_logits() -> None:
    model, some = net(), images(30)
    passes = Passes(CPU, in_color(), 8)
    expected = torch.from_numpy(passes.logits(model, some)).double(), torch.from_numpy(some.labels)
    accuracy, loss = passes.accuracy_and_loss(model, some)
    assert accuracy == (expected[0].argmax(1) == expected[1]).double().mean().item()
    assert loss == pytest.approx(nn.functional.cross_entropy(*expected).item(), rel=1e-12)


def logits_of(n: int, classes: int, scale: float, seed: int = 0) -> NDArray[np.float32]:
    return (scale * np.random.default_rng(seed).standard_normal((n, classes))).astype(np.float32)


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_up_to_a_hundred_classes_the_logits_are_kept(classes: int) -> None:
    logits = logits_of(20, classes, 3)
    labels = np.arange(20) % classes
    assert set(per_example(logits, None)) == {"logits"}
    kept = per_example(logits, labels)
    assert set(kept) == {"logits", "labels"}
    assert kept["logits"].dtype == np.float32
    np.testing.assert_array_equal(kept["logits"], logits)
    np.testing.assert_array_equal(kept["labels"], labels)


@pytest.mark.parametrize("classes", [101, 1000])
def test_beyond_a_hundred_classes_a_few_numbers_an_image_are_kept(classes: int) -> None:
    logits = logits_of(20, classes, 3)
    assert set(per_example(logits, None)) == {"prediction", "confidence", "energy"}
    kept = per_example(logits, np.arange(20))
    assert {"prediction", "confidence", "energy", "loss", "labels"} <= set(kept)
    assert all(value.shape == (20,) for value in kept.values())


@pytest.mark.parametrize("scale", [1.0, 3.0, 5.0])
def test_every_metric_can_be_recomputed_beyond_a_hundred_classes(scale: float) -> None:
    n, labels = 600, np.random.default_rng(1).integers(0, 150, 600)
    inside, outside = logits_of(n, 150, scale), logits_of(400, 150, 0.8 * scale, seed=2)
    inside[np.arange(300), labels[:300]] += 2 * scale
    kept, apart = per_example(inside, labels), per_example(outside, None)
    right = kept["prediction"] == kept["labels"]
    found = {
        "top1": right.mean(),
        "top5": (kept["rank"] <= 5).mean(),
        "nll": kept["loss"].astype(np.float64).mean(),
        "brier": kept["brier"].astype(np.float64).mean(),
        "ece": metrics.ece_from(kept["confidence"].astype(np.float64), right),
    }
    assert found == pytest.approx(metrics.classification(inside, labels, top5=True), rel=1e-5, abs=1e-6)
    for key in ("confidence", "energy"):
        score = getattr(metrics, key)
        expected = metrics.detection(score(inside), score(outside))
        assert metrics.detection(kept[key], apart[key]) == pytest.approx(expected, abs=1e-5), key


def test_detection_can_be_recomputed_from_confidences_close_to_one() -> None:
    """A net that fits its data well: many confidences are within 3e-8 of 1 and still tell images apart."""
    rng = np.random.default_rng(0)
    inside, outside = logits_of(600, 150, 1.0), logits_of(400, 150, 1.0, seed=2)
    inside[:, 0] += rng.uniform(10, 35, 600).astype(np.float32)
    outside[:, 0] += rng.uniform(10, 30, 400).astype(np.float32)
    expected = metrics.detection(metrics.confidence(inside), metrics.confidence(outside))
    kept = (per_example(logits, None)["confidence"] for logits in (inside, outside))
    assert metrics.detection(*kept) == pytest.approx(expected, abs=1e-5)


@pytest.fixture(scope="module")
def digits() -> tuple[Task, TaskImages]:
    task = load_task("digits")
    found, skipped = find_all(task, Roots.read(()), training=False, skip_missing=False)
    return task, open_all(task, found, skipped, Limits(None, 150), 0)


DIGITS_KEYS = {"top1", "nll", "brier", "ece", "robust/fgsm-8"} | {
    f"{key}{score}/{name}"
    for key in ("auroc", "aupr", "fpr95")
    for score in ("", "_energy")
    for name in ("photos", "noise")
}


def test_digits_are_scored_on_every_axis(digits: tuple[Task, TaskImages]) -> None:
    task, every = digits
    said: list[str] = []
    passes = Passes(CPU, task.data, task.evaluation.batch)
    attacks = {name: load_attack(name) for name in task.evaluation.attacks}
    scored = score_net(net(channels=1), task, every, attacks, passes, said.append)
    assert set(scored.metrics) == DIGITS_KEYS
    assert all(type(value) is float and np.isfinite(value) for value in scored.metrics.values())
    assert all(0 <= value <= 1 for key, value in scored.metrics.items() if key not in ("nll", "brier"))
    assert set(scored.outputs) == {"test", "photos", "noise", "fgsm-8"}
    assert scored.images_per_s > 0
    assert len(said) == 4


def test_every_metric_of_a_score_can_be_recomputed_from_its_outputs(digits: tuple[Task, TaskImages]) -> None:
    task, every = digits
    attacks = {"fgsm-8": load_attack("fgsm-8")}
    scored = score_net(net(channels=1), task, every, attacks, Passes(CPU, task.data, 64), lambda _: None)
    test = scored.outputs["test"]
    expected = metrics.classification(test["logits"], test["labels"], task.evaluation.top5)
    for name in ("photos", "noise"):
        for suffix, score in (("", metrics.confidence), ("_energy", metrics.energy)):
            pair = metrics.detection(score(test["logits"]), score(scored.outputs[name]["logits"]))
            expected |= {f"{key}{suffix}/{name}": value for key, value in pair.items()}
    attacked = scored.outputs["fgsm-8"]
    expected["robust/fgsm-8"] = metrics.top_k(attacked["logits"], attacked["labels"])
    assert scored.metrics == expected
    np.testing.assert_array_equal(test["labels"], every.test.labels)


def test_top5_is_scored_where_the_task_asks(digits: tuple[Task, TaskImages]) -> None:
    task, every = digits
    asked = task.model_copy(update={"evaluation": task.evaluation.model_copy(update={"top5": True})})
    bare = TaskImages(every.test, {}, (), {})
    scored = score_net(net(channels=1), asked, bare, {}, Passes(CPU, task.data, 64), lambda _: None)
    assert set(scored.metrics) == {"top1", "top5", "nll", "brier", "ece"}
    assert scored.metrics["top1"] <= scored.metrics["top5"]


def test_attack_of_eps_zero_scores_as_no_attack(digits: tuple[Task, TaskImages]) -> None:
    task, every = digits
    none = load_attack("fgsm-8").model_copy(update={"eps_255": 0.0})
    bare = TaskImages(every.test, {}, (), {})
    scored = score_net(net(channels=1), task, bare, {"none": none}, Passes(CPU, task.data, 64), lambda _: None)
    assert scored.metrics["robust/none"] == scored.metrics["top1"]


@pytest.mark.parametrize("with_ood", [True, False])
def test_nan_logits_are_an_error_not_a_number(digits: tuple[Task, TaskImages], with_ood: bool) -> None:
    task, every = digits
    model = net(channels=1)
    nn.init.constant_(model.get_parameter("fc.bias"), float("nan"))
    some = every if with_ood else TaskImages(every.test, {}, (), {})
    with pytest.raises(ValueError, match="finite"):
        score_net(model, task, some, {}, Passes(CPU, task.data, 64), lambda _: None)
