"""Metrics against scikit-learn, scipy and netcal, and against numbers worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import logsumexp, softmax
from sklearn.metrics import (
    average_precision_score,
    log_loss,
    roc_auc_score,
    roc_curve,
    top_k_accuracy_score,
)

from rpbench import metrics

Array = NDArray[np.float64]
SHAPES = [(1, 2), (7, 2), (400, 10), (300, 150)]
LN2 = math.log(2)


def drawn(n: int, k: int, scale: float = 3.0, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    logits = (scale * rng.standard_normal((n, k))).astype(np.float32)
    return logits, rng.integers(0, k, n)


def with_confidences(*confidences: float) -> Array:
    """Two-class logits whose prediction is class 0 at these confidences (float64: each is met to the last bits)."""
    with np.errstate(divide="ignore"):
        return np.array([[math.log(c), np.log(1 - c)] for c in confidences])


@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("scale", [0.0, 3.0, 50.0])
def test_nll_is_scikit_learns(n: int, k: int, scale: float) -> None:
    logits, labels = drawn(n, k, scale)
    theirs = log_loss(labels, softmax(logits.astype(np.float64), axis=1), labels=np.arange(k))
    clipped = metrics.loss(logits, labels).clip(max=-math.log(np.finfo(np.float64).eps))
    assert clipped.mean() == pytest.approx(theirs, rel=1e-12, abs=1e-15)
    if scale < 50:
        assert metrics.nll(logits, labels) == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_energy_and_log_softmax_are_scipys(n: int, k: int) -> None:
    logits, labels = drawn(n, k)
    wide = logits.astype(np.float64)
    np.testing.assert_allclose(metrics.energy(logits), logsumexp(wide, axis=1), rtol=1e-13)
    np.testing.assert_allclose(metrics.log_softmax(logits), wide - logsumexp(wide, axis=1)[:, None], rtol=1e-12)
    np.testing.assert_allclose(metrics.confidence(logits), softmax(wide, axis=1).max(axis=1), rtol=1e-13)
    np.testing.assert_allclose(metrics.loss(logits, labels), logsumexp(wide, axis=1) - wide[np.arange(n), labels])


@pytest.mark.parametrize("k", [1, 2, 5, 9])
def test_top_k_is_scikit_learns(k: int) -> None:
    logits, labels = drawn(500, 10)
    assert metrics.top_k(logits, labels, k) == top_k_accuracy_score(labels, logits, k=k, labels=np.arange(10))


@pytest.mark.parametrize(("label", "k", "right"), [(0, 1, 1.0), (1, 1, 0.0), (0, 2, 0.0), (1, 3, 1.0), (3, 4, 1.0)])
def test_top_k_of_ties(label: int, k: int, right: float) -> None:
    """[2, 2, 2, 1]: argmax takes the first; with k > 1 three tied logits are all in the top 3 and none in the top 2."""
    assert metrics.top_k(np.array([[2.0, 2.0, 2.0, 1.0]], dtype=np.float32), np.array([label]), k) == right


def test_top5_of_fewer_classes_is_one() -> None:
    logits, labels = drawn(20, 3)
    assert metrics.top_k(logits, labels, 5) == 1.0


@pytest.mark.parametrize("k", [1, 5])
def test_nan_logits_are_never_right(k: int) -> None:
    assert metrics.top_k(np.full((10, 10), np.nan, dtype=np.float32), np.arange(10), k) == 0.0


def test_all_arithmetic_is_float64() -> None:
    """A confidence of 1 - 1e-12 is 1.0 in float32, with a loss of 0."""
    logits = np.array([[27.631021115928547, 0.0]], dtype=np.float32)
    assert 0 < 1 - metrics.confidence(logits)[0] < 2e-12
    assert metrics.nll(logits, np.array([0])) == pytest.approx(1e-12, rel=1e-3)
    assert metrics.loss(logits, np.array([0])).dtype == np.float64


@pytest.mark.parametrize("size", [1e3, 1e30, 3e38])
@pytest.mark.filterwarnings("error")
def test_huge_logits_do_not_overflow(size: float) -> None:
    logits = np.array([[size, -size, 0.0], [-size, size, size]], dtype=np.float32)
    labels = np.array([0, 0])
    found = metrics.classification(logits, labels, top5=True)
    assert found["nll"] == pytest.approx(size, rel=1e-3)
    assert (found["top1"], found["brier"]) == (0.5, 0.75)
    np.testing.assert_allclose(metrics.energy(logits), logits[:, [0, 1]].diagonal(), rtol=1e-3)
    np.testing.assert_allclose(metrics.confidence(logits), [1.0, 0.5])


@pytest.mark.parametrize(
    ("probabilities", "label", "expected"),
    [
        ([1.0, 0.0], 0, 0.0),
        ([1.0, 0.0], 1, 2.0),
        ([0.5, 0.5], 0, 0.5),
        ([0.7, 0.2, 0.1], 0, 0.09 + 0.04 + 0.01),
        ([0.7, 0.2, 0.1], 2, 0.49 + 0.04 + 0.81),
        ([0.25] * 4, 3, 0.75),
    ],
)
def test_brier_by_hand(probabilities: list[float], label: int, expected: float) -> None:
    with np.errstate(divide="ignore"):
        logits = np.log([probabilities])
    assert metrics.brier(logits, np.array([label])) == pytest.approx(expected, abs=1e-15)


def test_brier_of_two_classes_is_twice_scikit_learns() -> None:
    from sklearn.metrics import brier_score_loss

    logits, labels = drawn(300, 2)
    theirs = brier_score_loss(labels, softmax(logits.astype(np.float64), axis=1)[:, 1])
    assert metrics.brier(logits, labels) == pytest.approx(2 * theirs, rel=1e-12)


@pytest.mark.parametrize(
    ("confidences", "correct", "expected"),
    [
        ([1.0], [True], 0.0),
        ([1.0], [False], 1.0),
        ([0.8, 0.8, 0.8, 0.8, 0.8], [True] * 4 + [False], 0.0),
        ([0.61, 0.99], [True, False], (0.39 + 0.99) / 2),  # bins 9 and 14: nothing cancels
        ([0.94, 0.99], [True, False], (0.99 - 0.06) / 2),  # both in bin 14: they do
        ([0.6, 0.6 - 1e-9], [True, False], 0.5),  # 0.6 opens bin 9, closed on the left
        ([14 / 15, 1.0], [True, False], (1 - 1 / 15) / 2),
        ([13.999 / 15, 1.0], [True, False], (1 + 1.001 / 15) / 2),
    ],
)
def test_ece_by_hand(confidences: list[float], correct: list[bool], expected: float) -> None:
    assert metrics.ece_from(np.array(confidences), np.array(correct)) == pytest.approx(expected, abs=1e-8)


def test_confidence_one_falls_in_the_last_bin() -> None:
    """39 right at 1 - 2/39 and one wrong at exactly 1: |2 - 1| / 40; a 16th bin for 1.0 would make it 3 / 40."""
    logits = with_confidences(*[1 - 2 / 39] * 39, 1.0)
    labels = np.array([0] * 39 + [1])
    assert metrics.confidence(logits)[-1] == 1.0
    assert metrics.ece(logits, labels) == pytest.approx(0.025, abs=1e-12)


@pytest.mark.parametrize("bin_", range(1, 15))
def test_bins_are_closed_on_the_left(bin_: int) -> None:
    """A wrong example on an edge and a right one just above it share a bin and cancel; just below, they do not."""
    edge = bin_ / 15
    correct = np.array([False, True])
    above = metrics.ece_from(np.array([edge, edge + 1e-6]), correct)
    below = metrics.ece_from(np.array([edge, edge - 1e-6]), correct)
    assert above == pytest.approx(abs(1 - 2 * edge) / 2, abs=1e-5)
    assert below == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize(("n", "k"), [(50, 3), (400, 10), (300, 150)])
@pytest.mark.parametrize("scale", [0.3, 3.0, 30.0])
def test_ece_is_netcals(n: int, k: int, scale: float) -> None:
    netcal = pytest.importorskip("netcal.metrics", exc_type=ImportError)
    logits, labels = drawn(n, k, scale)
    labels[: n // 2] = logits[: n // 2].argmax(axis=1)
    probabilities = softmax(logits.astype(np.float64), axis=1)
    theirs = netcal.ECE(metrics.BINS).measure(probabilities, labels)
    assert metrics.ece(logits, labels) == pytest.approx(theirs, abs=1e-13)


def test_ece_with_confidence_one_is_netcals() -> None:
    netcal = pytest.importorskip("netcal.metrics", exc_type=ImportError)
    confidences = np.array([1.0, 1.0, 0.95, 0.95, 0.2, 0.0])
    correct = np.array([1, 0, 1, 1, 0, 0])
    theirs = netcal.ECE(metrics.BINS).measure(confidences, correct)
    assert metrics.ece_from(confidences, correct.astype(bool)) == pytest.approx(theirs, abs=1e-15)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("decimals", [1, 16])
def test_detection_is_scikit_learns(seed: int, decimals: int) -> None:
    """One decimal leaves ten different scores: ties everywhere."""
    rng = np.random.default_rng(seed)
    inside, outside = rng.beta(4, 2, 200).round(decimals), rng.beta(2, 2, 333).round(decimals)
    truth, scores = np.r_[np.ones(200), np.zeros(333)], np.r_[inside, outside]
    found = metrics.detection(inside, outside)
    assert found["auroc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-15)
    assert found["aupr"] == pytest.approx(average_precision_score(truth, scores), abs=1e-15)
    false_positive, true_positive, _ = roc_curve(truth, scores)
    assert found["fpr95"] <= false_positive[true_positive >= 0.95].min() + 1e-15


@pytest.mark.parametrize("seed", range(3))
def test_detection_by_counting_pairs(seed: int) -> None:
    """ROC-AUC is P(in > out) + P(in = out) / 2; FPR95 tries every threshold."""
    rng = np.random.default_rng(seed)
    inside, outside = rng.integers(2, 9, 40).astype(float), rng.integers(0, 7, 30).astype(float)
    pairs = inside[:, None] - outside
    found = metrics.detection(inside, outside)
    assert found["auroc"] == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean(), abs=1e-14)
    rates = [(outside >= t).mean() for t in np.r_[inside, outside] if (inside >= t).mean() >= 0.95]
    assert found["fpr95"] == pytest.approx(min(rates), abs=1e-15)


@pytest.mark.parametrize(
    ("inside", "outside", "auroc", "aupr", "fpr95"),
    [
        ([3.0, 4.0], [1.0, 2.0], 1.0, 1.0, 0.0),
        ([1.0, 2.0], [3.0, 4.0], 0.0, (1 / 3 + 2 / 4) / 2, 1.0),
        ([5.0, 5.0], [5.0, 5.0, 5.0], 0.5, 2 / 5, 1.0),
        ([2.0], [1.0, 2.0], 0.75, 0.5, 0.5),
        (list(range(20)), list(range(20)), 0.5, 0.5, 0.95),  # a straight line: points on it count
        (list(range(1, 21)), [1.5], 19 / 20, 1 / 20 * 19 + 1 / 20 * 20 / 21, 0.0),  # 19 of 20 are 95 %: enough
        (list(range(1, 20)), [1.5], 18 / 19, 1 / 19 * 18 + 1 / 19 * 19 / 20, 1.0),  # 18 of 19 are not
    ],
)
def test_detection_by_hand(inside: list[float], outside: list[float], auroc: float, aupr: float, fpr95: float) -> None:
    found = metrics.detection(np.array(inside, dtype=float), np.array(outside, dtype=float))
    assert found == pytest.approx({"auroc": auroc, "aupr": aupr, "fpr95": fpr95}, abs=1e-12)


@pytest.mark.parametrize("scale", [1e-300, 1e-9, 1.0, 1e300])
def test_detection_depends_on_the_order_of_scores_only(scale: float) -> None:
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(1, 1, 50), rng.normal(0, 1, 50)
    assert metrics.detection(inside * scale, outside * scale) == metrics.detection(inside, outside)


@pytest.mark.parametrize(
    ("inside", "outside"),
    [
        ([], [1.0]),
        ([1.0], []),
        ([], []),
        ([math.nan, 1.0], [1.0]),
        ([1.0], [1.0, math.nan]),
        ([1.0], [math.inf]),
        ([-math.inf], [1.0]),
    ],
)
def test_detection_without_both_kinds_or_finite_scores_raises(inside: list[float], outside: list[float]) -> None:
    with pytest.raises(ValueError, match="out-of-distribution detection"):
        metrics.detection(np.array(inside), np.array(outside))


@pytest.mark.parametrize("label", [0, 2])
def test_labels_of_one_class_only(label: int) -> None:
    logits, _ = drawn(100, 3)
    labels = np.full(100, label)
    found = metrics.classification(logits, labels, top5=False)
    assert found["top1"] == (logits.argmax(axis=1) == label).mean()
    assert found["nll"] == pytest.approx(log_loss(labels, softmax(logits.astype(float), axis=1), labels=[0, 1, 2]))


@pytest.mark.parametrize(("top5", "keys"), [(True, "top1 top5 nll brier ece"), (False, "top1 nll brier ece")])
def test_classification_of_uniform_logits(top5: bool, keys: str) -> None:
    """Every class has probability 1/2: loss ln 2, Brier 1/2, half of them right, no calibration gap."""
    found = metrics.classification(np.zeros((4, 2), dtype=np.float32), np.array([0, 1, 0, 1]), top5)
    assert list(found) == keys.split()
    expected = {"top1": 0.5, "top5": 1.0, "nll": LN2, "brier": 0.5, "ece": 0.0}
    assert found == pytest.approx({key: expected[key] for key in found}, abs=1e-15)
    assert all(type(value) is float for value in found.values())
