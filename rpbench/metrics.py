"""Metrics on arrays: pure functions of logits (n, k) float32 and classes (n,) int64. All arithmetic is float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
BINS = 15


def log_softmax(logits: NDArray[Any]) -> Array:
    """Row-wise log-probabilities, (n, k) float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def confidence(logits: NDArray[Any]) -> Array:
    """The maximum softmax probability of each row, (n,)."""
    return np.asarray(np.exp(log_softmax(logits).max(axis=1)))


def energy(logits: NDArray[Any]) -> Array:
    """logsumexp of each row, (n,): the negative free energy of Liu et al. 2020; higher is more in-distribution."""
    x = logits.astype(np.float64)
    top = x.max(axis=1)
    return np.asarray(top + np.log(np.exp(x - top[:, None]).sum(axis=1)))


def loss(logits: NDArray[Any], labels: Labels) -> Array:
    """Negative log-likelihood of each row in nats, (n,)."""
    return np.asarray(-log_softmax(logits)[np.arange(len(labels)), labels])


def top_k(logits: NDArray[Any], labels: Labels, k: int = 1) -> float:
    """The fraction of rows whose class is among the k largest logits. Ties: at k = 1 the first index is the prediction
    (argmax), else they count against the class."""
    finite = ~np.isnan(logits).any(axis=1)  # a NaN row ranks nothing: never right
    if k == 1:
        return float(((logits.argmax(axis=1) == labels) & finite).mean())
    own = logits[np.arange(len(labels)), labels][:, None]
    return float((((logits >= own).sum(axis=1) <= k) & finite).mean())


def nll(logits: NDArray[Any], labels: Labels) -> float:
    """Mean negative log-likelihood in nats."""
    return float(loss(logits, labels).mean())


def brier(logits: NDArray[Any], labels: Labels) -> float:
    """Mean squared distance of the probabilities from the one-hot class, summed over classes: 0 to 2 (Brier 1950)."""
    p = np.exp(log_softmax(logits))
    p[np.arange(len(labels)), labels] -= 1.0
    return float((p**2).sum(axis=1).mean())


def ece(logits: NDArray[Any], labels: Labels) -> float:
    """Expected calibration error (Guo et al. 2017), 15 equal-width bins, confidence 1.0 in the last one."""
    return ece_from(confidence(logits), logits.argmax(axis=1) == labels)


def ece_from(confidences: Array, correct: NDArray[np.bool_]) -> float:
    """Sum over bins of |sum over its examples of (correct - confidence)| / n; bins are closed on the left."""
    bins = np.minimum((confidences * BINS).astype(np.int64), BINS - 1)
    gaps = np.bincount(bins, weights=correct.astype(np.float64) - confidences, minlength=BINS)
    return float(np.abs(gaps).sum() / len(confidences))


def detection(inside: Array, outside: Array) -> dict[str, float]:
    """How well a score tells in- from out-of-distribution images: ROC-AUC, AUPR (in-distribution positive), and the
    false-positive rate at 95 % true positives. Raises ValueError for empty sets and scores that are not finite."""
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

    if not len(inside) or not len(outside):
        raise ValueError("out-of-distribution detection needs images of both kinds")
    scores = np.concatenate([inside, outside])
    if not np.isfinite(scores).all():
        raise ValueError("scores for out-of-distribution detection are not finite")
    truth = np.concatenate([np.ones(len(inside)), np.zeros(len(outside))])
    false_positive, true_positive, _ = roc_curve(truth, scores, drop_intermediate=False)
    return {
        "auroc": float(roc_auc_score(truth, scores)),
        "aupr": float(average_precision_score(truth, scores)),
        "fpr95": float(false_positive[np.searchsorted(true_positive, 0.95)]),
    }


def classification(logits: NDArray[Any], labels: Labels, top5: bool) -> dict[str, float]:
    """top1 (and top5), nll, brier, ece of one pass over labelled images."""
    found = {"top1": top_k(logits, labels)}
    if top5:
        found["top5"] = top_k(logits, labels, 5)
    return found | {"nll": nll(logits, labels), "brier": brier(logits, labels), "ece": ece(logits, labels)}
