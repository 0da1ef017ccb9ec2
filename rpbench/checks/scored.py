"""Checks of what was scored: every metric from the per-example outputs, and their labels from the task's images."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rpbench import metrics as formulas
from rpbench.bundle import Arrays
from rpbench.checks.known import Known, Sets
from rpbench.checks.told import Skipped, Told
from rpbench.checks.trained import whole
from rpbench.evaluation import FULL_LOGITS
from rpbench.record import RunRecord, canonical
from rpbench.task import Task
from rpbench.untrusted import shown
from rpbench.verdict import Verdict

EXACT = 1e-9  # relative: the same float64 arithmetic on another processor
TIED = 1e-12  # relative: scores this close may be in either order there
OWN = ("val_top1", "epoch")  # what the curve holds, not the outputs


class _Wrong(ValueError):
    """Outputs that no net of the task gives; its text says what is wrong."""


def metrics(told: Told, known: Known) -> Iterator[str]:
    """Every metric of the selected and the last epoch, recomputed from the outputs; without outputs, what their
    numbers must be for the number of images."""
    record, task = told.record, known.task(told.record)
    sets = known.sets(task)
    names = _names(told, sets)
    yield from _bounds(told, sets.sizes)
    same = record.metrics.get("epoch") == record.last.get("epoch")
    for key, value in record.last.items():
        if same and record.metrics.get(key) != value:
            yield f"last.{key} is {value}, metrics.{key} {record.metrics.get(key)}: both are of the same epoch"
    wanted = _wanted_keys(task, names)
    yield from _key_faults("metrics", record.metrics, wanted)
    bare = {k for k in wanted if "/" not in k}
    yield from _key_faults("last", record.last, wanted if same or len(record.last) > len(bare) else bare)
    if not told.evidence.outputs and not told.whole:
        raise Skipped("published lines have no outputs")
    full = {f"selected/{name}" for name in names} | {"last/test"}
    every = full | {f"last/{name}" for name in names}
    if missing := sorted((every if any("/" in k for k in record.last) else full) - set(told.evidence.outputs)):
        yield f"outputs/{missing[0]}.npz is missing" + (f", and {len(missing) - 1} more" if missing[1:] else "")
        return
    if odd := sorted(set(told.evidence.outputs) - every):
        yield f"outputs has {', '.join(map(shown, odd))}: the task declares no such set"
    for part, claimed in (("selected", record.metrics), ("last", record.last)):
        try:
            yield from _part_faults(told, part, claimed, task, sets, names)
        except _Wrong as error:
            yield str(error)


def _names(told: Told, sets: Sets) -> dict[str, str]:
    """The image sets and attacks that a cell is scored on: {name: "test", "ood" or "attack"}."""
    ood = {image_set.name: "ood" for image_set, _ in sets.ood if image_set.name not in told.record.skipped}
    return {"test": "test"} | ood | dict.fromkeys(sets.attacks, "attack")


def _wanted_keys(task: Task, names: Mapping[str, str]) -> set[str]:
    found = {"top1", "nll", "brier", "ece", *OWN} | ({"top5"} if task.evaluation.top5 else set())
    for name, kind in names.items():
        if kind == "ood":
            found |= {f"{k}{e}/{name}" for k in ("auroc", "aupr", "fpr95") for e in ("", "_energy")}
        elif kind == "attack":
            found.add(f"robust/{name}")
    return found


def _key_faults(part: str, claimed: Mapping[str, float], wanted: set[str]) -> Iterator[str]:
    if lacking := sorted(wanted - set(claimed)):
        yield f"{part}.{lacking[0]} is missing" + (f", and {len(lacking) - 1} more" if lacking[1:] else "")
    if extra := sorted(set(claimed) - wanted):
        yield f"{part} has {', '.join(map(shown, extra))}: the task declares no such metric"


def _bounds(told: Told, sizes: Mapping[str, int]) -> Iterator[str]:
    """What a rate over n images can be, and how good the probabilities of a net with so many errors can be.

    An error's class has a probability of at most 1/2: its loss is at least ln 2, its Brier score at least 1/2.
    """
    for part, claimed in (("metrics", told.record.metrics), ("last", told.record.last)):
        for key, value in claimed.items():
            kind, _, name = key.partition("/")
            n = {"top1": sizes["test"], "top5": sizes["test"], "robust": sizes["test"]}.get(kind)
            if kind in ("fpr95", "fpr95_energy"):
                n = sizes.get(name)
            if n and not whole(value, n):
                yield f"{part}.{key} is {value}: no whole number of {n:,} images"
        errors = 1 - claimed.get("top1", 1.0)
        for key, least in (("nll", math.log(2)), ("brier", 0.5)):
            if claimed.get(key, math.inf) < errors * least - 1e-9:
                yield (
                    f"{part}.{key} is {claimed[key]:g}: with {errors:.2%} of errors it is at least {errors * least:g}"
                )


def _part_faults(
    told: Told, part: str, claimed: Mapping[str, float], task: Task, sets: Sets, names: Mapping[str, str]
) -> Iterator[str]:
    word = "metrics" if part == "selected" else "last"
    inside = _checked(told, f"{part}/test", task, sets, names)
    found = classification(inside, task)
    bounds: dict[str, tuple[float, float]] = {}
    for name, kind in names.items():
        if kind == "test" or f"{part}/{name}" not in told.evidence.outputs:
            continue
        outside = _checked(told, f"{part}/{name}", task, sets, names)
        if kind == "attack":
            found[f"robust/{name}"] = _top1(outside)
            continue
        for suffix, score in (("", _confidence), ("_energy", _energy)):
            a, b = score(inside), score(outside)
            for key, value in formulas.detection(a, b).items():
                found[f"{key}{suffix}/{name}"] = value
                if not _equal(value, claimed.get(f"{key}{suffix}/{name}", math.nan)):
                    bounds[f"{key}{suffix}/{name}"] = tied(a, b, key)
    for key, value in found.items():
        told_value = claimed.get(key)
        low, high = bounds.get(key, (value, value))
        if told_value is not None and not (_equal(value, told_value) or low - EXACT <= told_value <= high + EXACT):
            yield f"{word}.{key} is {told_value}: the outputs give {value}"


def _equal(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=EXACT, abs_tol=1e-12)


def tied(inside: formulas.Array, outside: formulas.Array, key: str) -> tuple[float, float]:
    """The least and most that a detection metric can be where scores that are equal but for rounding are ordered
    against it, or for it."""
    shift = TIED * np.maximum(1.0, np.abs(outside))
    ends = sorted(formulas.detection(inside, outside + sign * shift)[key] for sign in (-1, 1))
    return ends[0], ends[1]


def _checked(told: Told, name: str, task: Task, sets: Sets, names: Mapping[str, str]) -> Arrays:
    """The arrays of a pass if a run can have written them: their keys, types, lengths and ranges. Raises _Wrong."""
    arrays = told.output(name)
    of, classes = name.partition("/")[2], task.data.classes
    kind, n = names[of], sets.sizes[of]
    place = f"outputs/{name}.npz"
    labelled = {"labels"} if kind != "ood" else set()
    if classes <= FULL_LOGITS:
        keys = labelled | {"logits"}
    else:
        keys = labelled | {"prediction", "confidence", "energy"} | ({"loss", "rank", "brier"} if labelled else set())
    if set(arrays) != keys:
        raise _Wrong(f"{place} has {', '.join(sorted(arrays))}: it must have {', '.join(sorted(keys))}")
    for key, values in arrays.items():
        shape = (n, classes) if key == "logits" else (n,)
        if values.shape != shape:
            raise _Wrong(f"{place}: {key} has shape {values.shape}, it must be {shape}")
        if key != "logits" and values.dtype.kind not in ("iu" if key in ("labels", "prediction", "rank") else "f"):
            raise _Wrong(f"{place}: {key} is {values.dtype}")
    if "logits" in arrays and arrays["logits"].dtype != np.float32:
        raise _Wrong(f"{place}: logits are {arrays['logits'].dtype}, not float32")
    floats = [values for values in arrays.values() if values.dtype.kind == "f"]
    if kind != "attack" and not all(np.isfinite(values).all() for values in floats):
        raise _Wrong(f"{place} has values that are not finite")
    if "labels" in arrays and not ((arrays["labels"] >= 0) & (arrays["labels"] < classes)).all():
        raise _Wrong(f"{place} has labels outside 0..{classes - 1}")
    if "rank" in arrays:
        check_summary(arrays, place, classes)
    return arrays


def check_summary(arrays: Arrays, place: str, classes: int) -> None:
    """What the numbers kept of a pass over many classes must be to each other. Raises _Wrong."""
    right, c = arrays["prediction"] == arrays["labels"], arrays["confidence"]
    p, brier, rank = np.exp(-arrays["loss"]), arrays["brier"], arrays["rank"]
    slack = 1e-6
    for why, wrong in (
        ("confidences outside [1/classes, 1]", (c > 1 + slack) | (c < 1 / classes - slack)),
        ("a right prediction whose loss is not that of its confidence", right & (np.abs(p - c) > slack)),
        ("a wrong prediction of a class that is less likely", ~right & (p > np.minimum(c, 1 - c) + slack)),
        ("a wrong prediction of rank 1", ~right & (rank < 2)),
        ("ranks outside 1..classes", (rank < 1) | (rank > classes)),
        ("Brier scores that no probabilities give", right & ((brier > 2 * (1 - c) ** 2 + slack) & (brier > 1))),
        ("Brier scores of errors below (1 - p)^2 + confidence^2", ~right & (brier < (1 - p) ** 2 + c**2 - slack)),
        ("Brier scores below (1 - p)^2", brier < (1 - p) ** 2 - slack),
        ("Brier scores above 2", brier > 2 + slack),
    ):  # fmt: skip
        if wrong.any():
            raise _Wrong(f"{place}: example {int(np.flatnonzero(wrong)[0])} has {why}")


def classification(arrays: Arrays, task: Task) -> dict[str, float]:
    labels = arrays["labels"]
    if "logits" in arrays:
        return formulas.classification(arrays["logits"], labels, task.evaluation.top5)
    right = arrays["prediction"] == labels
    found = {"top1": float(right.mean()), "nll": float(arrays["loss"].mean()), "brier": float(arrays["brier"].mean())}
    if task.evaluation.top5:
        found["top5"] = float((arrays["rank"] <= 5).mean())
    return found | {"ece": formulas.ece_from(arrays["confidence"], right)}


def _top1(arrays: Arrays) -> float:
    if "logits" in arrays:
        return formulas.top_k(arrays["logits"], arrays["labels"])
    return float((arrays["prediction"] == arrays["labels"]).mean())


def _confidence(arrays: Arrays) -> formulas.Array:
    return formulas.confidence(arrays["logits"]) if "logits" in arrays else arrays["confidence"]


def _energy(arrays: Arrays) -> formulas.Array:
    return formulas.energy(arrays["logits"]) if "logits" in arrays else arrays["energy"]


def labels(told: Told, known: Known) -> Iterator[str]:
    """The labels of every output are those of the task's test images, in their order."""
    task = known.task(told.record)
    names = _names(told, known.sets(task))
    if not told.evidence.outputs and not told.whole:
        raise Skipped("published lines have no outputs")
    there: dict[str, NDArray[Any]] = {}
    for name in sorted(told.evidence.outputs):
        if names.get(name.partition("/")[2]) in ("test", "attack") and "labels" in (arrays := told.output(name)):
            there[name] = arrays["labels"]
    first = next(iter(there), "")
    for name in there:
        if not np.array_equal(there[name], there[first]):
            yield f"outputs/{name}.npz has other labels than outputs/{first}.npz"
    right = np.asarray(known.images(task).test.labels)
    for name, found in there.items():
        if not np.array_equal(found, right):
            wrong = int((found != right).sum()) if found.shape == right.shape else len(right)
            yield f"outputs/{name}.npz: {wrong:,} of {len(right):,} labels are not those of the test images"


def prints(told: Told) -> dict[str, str]:
    """Hashes by which cells are compared with each other: of the labels, and of what the net gave on test images."""
    found: dict[str, str] = {}
    if "selected/test" in told.evidence.outputs:
        arrays = told.output("selected/test")
        for key in ("labels", "logits", "loss"):
            if key in arrays:
                found[key] = hashlib.sha256(np.ascontiguousarray(arrays[key]).tobytes()).hexdigest()
    if told.record.metrics:
        exact = {k: v for k, v in told.record.metrics.items() if k in ("nll", "brier", "ece")}
        found["numbers"] = canonical(exact)
    return found


def among(tolds: Sequence[Told], seen: Sequence[Mapping[str, str]]) -> list[Verdict]:
    """Faults that show only when cells are laid beside each other: outputs of one under the name of another, labels
    that differ, trainings that are one and the same and have different results."""
    verdicts = []
    labels_of: dict[str, tuple[str, str]] = {}
    outputs: dict[tuple[str, str], Told] = {}
    trainings: dict[str, Told] = {}
    for told, hashes in zip(tolds, seen, strict=True):
        if not told.ok:
            continue
        if "labels" in hashes:
            first, where = labels_of.setdefault(told.record.task.name, (hashes["labels"], told.where))
            if hashes["labels"] != first:
                verdicts.append(Verdict("labels", "R9", "failed", f"has other labels than {where}", told.where))
        for kind in ("logits", "loss", "numbers"):
            other = outputs.setdefault((kind, hashes[kind]), told) if kind in hashes else told
            if training(other) != training(told):
                why = f"has the {'outputs' if kind != 'numbers' else 'NLL, Brier score and ECE'} of {other.where}"
                verdicts.append(Verdict("metrics", "R9", "failed", f"{why}, another training", told.where))
                break
        twin = trainings.setdefault(training(told), told)
        if why := unlike(numbers(twin.record), numbers(told.record)):
            why = f"is the same training as {twin.where} (net, masks, seeds), but {why}"
            verdicts.append(Verdict("metrics", "R9", "failed", why, told.where))
    return verdicts


def training(told: Told) -> str:
    """What decides a training and its result: two cells may share it, where two schemes keep the same weights.

    The parts that a batch was trained in are left out: where they change a result they change all its numbers, and
    where they change none of it, it is one training under two names.
    """
    r = told.record
    return canonical([r.task.spec, r.model.name, r.model.source, r.masks.digest_start, r.seeds.init, r.seeds.order,
                      r.precision])  # fmt: skip


def numbers(told: RunRecord, curve: str | None = None) -> dict[str, float]:
    """Every number of a result: metrics, those of the last epoch as "last.top1", the last line of its curve."""
    found = {**told.metrics, **{f"last.{key}": value for key, value in told.last.items()}}
    return found | {f"curve.{key}": value for key, value in _last_row(curve or "").items()}


def _last_row(curve: str) -> dict[str, float]:
    """The last line of a curve; {} where it is none, which the check `curve` says."""
    try:
        row = json.loads(curve.splitlines()[-1])
    except (ValueError, IndexError, RecursionError):
        return {}
    numbers = row.items() if isinstance(row, dict) else ()
    return {key: float(value) for key, value in numbers if isinstance(value, int | float)}


CONTINUOUS = ("nll", "brier", "ece")
CONTINUOUS_LAST = ("last.nll", "last.brier", "last.ece", "curve.train_loss", "curve.val_loss")


def unlike(a: Mapping[str, float], b: Mapping[str, float]) -> str:
    """Where one training has two results: a continuous number is equal, which never happens by chance, and another of
    the same epoch or an earlier one is not. '' where there is no such contradiction, also where nothing is equal."""

    def equal(keys: Iterable[str]) -> bool:
        return any(key in a and key in b and _equal(a[key], b[key]) for key in keys)

    selected = [key for key in a if "." not in key.partition("/")[0]]
    for key in a if equal(CONTINUOUS_LAST) else selected if equal(CONTINUOUS) else ():
        if key in b and abs(a[key] - b[key]) > 1e-4:
            return f"{key} is {b[key]:g}, not {a[key]:g}, while other numbers agree to the bit"
    return ""
