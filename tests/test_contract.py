"""The contract finds what is wrong with a scheme or sampler, and says it with the numbers."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rpbench import InfeasibleBudget, Sampler, Scheme, UsageError, mask_sampler, score_scheme, shape_scheme, spread
from rpbench.contract import Check, examine, nets, sampler_checks, scheme_checks, verdicts
from rpbench.verdict import Verdict

SOURCE = "Keeps what a test wants it to keep. https://example.org"
counter = itertools.count()


def shape(function: Callable[..., Any], name: str = "mine") -> Scheme:
    function.__doc__, function.__name__ = function.__doc__ or SOURCE, name
    return shape_scheme(function)


def score(function: Callable[..., Any]) -> Scheme:
    function.__doc__, function.__name__ = SOURCE, "mine"
    return score_scheme(function)


def sampler(function: Callable[..., Any], **kind: bool) -> Sampler:
    function.__doc__, function.__name__ = SOURCE, "mine"
    made: Sampler = mask_sampler(**kind)(function)
    return made


def one(checks: list[Check], name: str) -> Verdict:
    """The verdict of one check alone."""
    return next(check for check in checks if str(check) == name).verdict()


def failed(found: list[Verdict]) -> dict[str, Verdict]:
    return {v.check: v for v in found if v.state == "failed"}


def even(table: Any, density: float) -> dict[str, float]:
    return dict.fromkeys(table.names, density)


def magnitudes(probe: Any) -> dict[str, Any]:
    return {name: w.detach().abs() for name, w in probe.weights(probe.model()).items()}


def test_a_scheme_that_keeps_to_it_passes_everything() -> None:
    found = verdicts(scheme_checks(shape(lambda table, density: even(table, density))))
    assert {v.state for v in found} == {"passed"}
    assert {v.rule for v in found} == {"R2"}
    assert len({v.check for v in found}) == len(found) > 8


def without_last(table: Any, density: float) -> Any:
    return dict.fromkeys(table.names[:-1], density)


def luck(table: Any, density: float) -> Any:
    return spread(table, lambda layer: 1 + random.random() / 10, density)


def counting(table: Any, density: float) -> Any:
    return spread(table, lambda layer: 1 + next(counter) % 7, density)


def by_name(table: Any, density: float) -> Any:
    return spread(table, lambda layer: 2.0 if "conv1" in layer.name or "0" in layer.name else 1.0, density)


def sorted_names(table: Any, density: float) -> Any:
    first = min(table.names)
    return spread(table, lambda layer: 2.0 if layer.name == first else 1.0, density)


def refuses(table: Any, density: float) -> Any:
    if density < 0.05:
        raise InfeasibleBudget(density, 0.001)
    return even(table, density)


def hopeless(table: Any, density: float) -> Any:
    raise InfeasibleBudget(density, 1.0)


def empty_promise(table: Any, density: float) -> Any:
    if density < 0.05:
        raise InfeasibleBudget(density, 0.04)
    return even(table, density)


def extra(table: Any, density: float, power: float = 0.5) -> Any:
    return even(table, density)


def unplain(table: Any, density: float, *, powers: Any = (1, 2)) -> Any:
    return even(table, density)


def untyped(table: Any, density: float, *, power: int = 0.5) -> Any:  # type: ignore[assignment]
    return even(table, density)


def needy(table: Any, density: float, *, power: float) -> Any:
    return even(table, density)


def anything(table: Any, density: float, **options: Any) -> Any:
    return even(table, density)


BROKEN: list[tuple[Callable[..., Any], str, str]] = [
    (
        lambda table, density: even(table, 2 * density),
        "budget",
        "off budget: 0.001 of 270,896 weights is 271",
    ),
    (lambda table, density: even(table, 1.5), "densities", "'conv.weight' is 1.5: it must lie in [0, 1] (63 of 63"),
    (lambda table, density: even(table, float("nan")), "densities", "'conv.weight' is nan"),
    (lambda table, density: dict.fromkeys(table.names, "x"), "densities", "is a str, not a number"),
    (without_last, "densities", "no density for fc.weight"),
    (lambda table, density: {**even(table, density), "bias": 1.0}, "densities", "unknown layers bias"),
    (lambda table, density: 1 / 0, "answers", "raised ZeroDivisionError: division by zero (test_contract.py, line"),
    (lambda table, density: [density], "answers", "gave a list, not a mapping"),
    (luck, "repeatable", "another answer the second time"),
    (counting, "repeatable", "another answer the second time"),
    (by_name, "names", "weights, and"),
    (sorted_names, "names", "weights, and"),
    (hopeless, "answers", "it refuses every density on every net"),
    (refuses, "infeasible", "refused, though 0.001 lies in [0.001, 1], which it says works"),
    (empty_promise, "infeasible", "it says that density 0.04 works"),
    (extra, "options", "'power' cannot be set by name: put a * before it, as in mine(table, density, *, options)"),
    (unplain, "options", "is a tuple: use bool, int, float or str"),
    (untyped, "options", "does not take its own default: mine:power is '0.5': it must be a whole number"),
    (anything, "options", "'**options' hides which options there are"),
]


@pytest.mark.parametrize(("function", "check", "says"), BROKEN, ids=lambda v: v if isinstance(v, str) else "")
def test_a_scheme_that_breaks_it(function: Callable[..., Any], check: str, says: str) -> None:
    checks = scheme_checks(shape(function))
    found = one(checks, check)
    assert found.state == "failed"
    assert says in found.why
    assert one(checks, "answers").state == ("failed" if check == "answers" else "passed")


def test_what_a_scheme_says_of_itself() -> None:
    def mine(table: Any, density: float) -> Any:
        return even(table, density)

    nameless = failed(verdicts(scheme_checks(shape_scheme(mine))[:3]))
    assert "there is no docstring" in nameless["docstring"].why
    mine.__doc__ = "Keeps what a test wants it to keep."
    assert "names no source" in failed(verdicts(scheme_checks(shape_scheme(mine))[:3]))["docstring"].why
    mine.__doc__ = "Keeps " + "what a test wants it to keep and " * 5 + ". https://example.org"
    assert "characters: write 10 to 120" in failed(verdicts(scheme_checks(shape_scheme(mine))[:3]))["docstring"].why
    other = failed(verdicts(scheme_checks(Scheme("other", mine, "shape"))[:1]))
    assert "the function is called 'mine', what it makes 'other'" in other["name"].why


def test_an_option_without_a_default_is_told_before_anything_is_called() -> None:
    with pytest.raises(UsageError, match="needs mine:power="):
        scheme_checks(shape(needy))


FILE = '"""File."""\nfrom rpbench import shape_scheme\n\n\n@shape_scheme\ndef mine(table, density, *, p=1.0):\n    '


def test_a_file_has_the_name_of_its_scheme_and_options_are_those_asked_for(tmp_path: Path) -> None:
    body = '"""Densities with an option. https://example.org"""\n    return dict.fromkeys(table.names, p * density)\n'
    for name in ("mine", "yours"):
        (tmp_path / f"{name}.py").write_text(FILE + body)
    assert not failed(verdicts(scheme_checks(tmp_path / "mine.py")))
    wrong = failed(verdicts(scheme_checks(tmp_path / "yours.py")[:1]))
    assert "asked for as 'yours', but its function is called 'mine'" in wrong["name"].why
    assert set(failed(verdicts(scheme_checks(f"{tmp_path / 'mine.py'}:p=0.5")))) == {"budget"}
    assert examine(f"{tmp_path / 'mine.py'}:p=0.5").label == "mine:p=0.5"


def test_a_check_called_raises_with_the_sentence() -> None:
    check = next(c for c in scheme_checks(shape(lambda table, density: even(table, 1.5))) if str(c) == "densities")
    with pytest.raises(AssertionError, match=r"densities: the density of 'conv.weight' is 1.5.*\[resnet20 at density"):
        check()


def test_a_slow_scheme_is_not_asked_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(table: Any, density: float) -> Any:
        time.sleep(0.02)
        return even(table, density)

    monkeypatch.setattr("rpbench.contract.schemes.PATIENCE", 0.1)
    began = time.monotonic()
    found = failed(verdicts(scheme_checks(shape(slow))))
    assert time.monotonic() - began < 5
    assert "not asked: its calls have taken" in found["answers"].why


def test_calls_are_few() -> None:
    """Each may cost tens of milliseconds where it happens in a process of its own."""
    calls = itertools.count()

    def mine(table: Any, density: float) -> Any:
        next(calls)
        return even(table, density)

    verdicts(scheme_checks(shape(mine)))
    assert next(calls) < 130


def test_what_came_back_is_shown() -> None:
    exam = examine(shape(lambda table, density: even(table, 1.5 if len(table) > 50 else density)))
    wrong = failed(verdicts(exam.checks))["densities"]
    shown, usual = exam.example(wrong.where), exam.example("")
    assert shown is not None
    assert usual is not None
    assert shown.where == wrong.where
    assert {(row[2], row[3]) for row in shown.rows} == {("1.5000", "-")}
    assert usual.where == "resnet8 at density 0.1"
    assert {row[2] for row in usual.rows} == {"0.1000"}
    assert sum(int(row[3].replace(",", "")) for row in usual.rows) == 7707


# score schemes


def test_a_score_scheme_that_keeps_to_it_passes_everything() -> None:
    found = verdicts(scheme_checks(score(magnitudes)))
    assert {v.state for v in found} == {"passed"}


def spoils(probe: Any) -> Any:
    weights = probe.weights(probe._model)
    for weight in weights.values():
        weight.data += 1
    return {name: w.detach().abs() for name, w in weights.items()}


def two_batches(probe: Any, *, batches: int = 1) -> Any:
    probe.batch(), probe.batch()
    return magnitudes(probe)


def deaf(probe: Any, *, batches: int = 1) -> Any:
    probe.batch()
    return magnitudes(probe)


def by_density(probe: Any) -> Any:
    for _ in range(1 if probe.density > 0.2 else 2):
        probe.batch()
    return magnitudes(probe)


def scores_by_name(probe: Any) -> Any:
    return {n: w * (1e3 if "fc" in n or "conv1" in n else 1) for n, w in magnitudes(probe).items()}


def numpys_luck(probe: Any) -> Any:
    return {layer.name: np.random.random(layer.shape) for layer in probe.table}


SCORES: list[tuple[Callable[..., Any], str, str]] = [
    (spoils, "net", "it changed the net: conv.weight, blocks.0.conv1.weight"),
    (two_batches, "batches", "it looked at 2 labelled batches, but says batches=1"),
    (deaf, "batches", "it looked at 1 labelled batches, but was given batches=2"),
    (by_density, "batches", "1 labelled batches, but 2 at density 0.01"),
    (scores_by_name, "names", "weights, and"),
    (numpys_luck, "repeatable", "another answer the second time"),
    (lambda probe: {}, "answers", "no scores for conv.weight"),
    (lambda probe: {n: 0 * w for n, w in magnitudes(probe).items()}, "answers", "scores are equal"),
]


@pytest.mark.parametrize(("function", "check", "says"), SCORES, ids=lambda v: v if isinstance(v, str) else "")
def test_a_score_scheme_that_breaks_it(function: Callable[..., Any], check: str, says: str) -> None:
    found = one(scheme_checks(score(function)), check)
    assert found.state == "failed"
    assert says in found.why


# samplers


def first(table: Any, counts: Mapping[str, int], key: Any, scores: Any) -> dict[str, Any]:
    return {x.name: (np.arange(x.numel) < counts[x.name]).reshape(x.shape) for x in table}


def drawn(table: Any, counts: Mapping[str, int], key: Any, scores: Any) -> dict[str, Any]:
    masks = {}
    for i, x in enumerate(table):
        order = np.random.Generator(np.random.Philox(key=key(i))).permutation(x.numel)
        masks[x.name] = (order < counts[x.name]).reshape(x.shape)
    return masks


def one_too_many(table: Any, counts: Mapping[str, int], key: Any, scores: Any) -> dict[str, Any]:
    return drawn(table, {name: n + 1 for name, n in counts.items()}, key, scores)


def edgeless(table: Any, counts: Mapping[str, int], key: Any, scores: Any) -> dict[str, Any]:
    return drawn(table, {x.name: max(1, counts[x.name]) for x in table}, key, scores)


def global_luck(table: Any, counts: Mapping[str, int], key: Any, scores: Any) -> dict[str, Any]:
    return {x.name: (np.random.permutation(x.numel) < counts[x.name]).reshape(x.shape) for x in table}


def keyed_by_name(table: Any, counts: Mapping[str, int], key: Any, scores: Any) -> dict[str, Any]:
    return drawn(table, counts, lambda i: key(len(table[i].name)), scores)


def flat(table: Any, counts: Mapping[str, int], key: Any, scores: Any) -> dict[str, Any]:
    return {name: mask.ravel() for name, mask in drawn(table, counts, key, scores).items()}


SAMPLERS: list[tuple[Callable[..., Any], str, str]] = [
    (first, "key", "the masks do not follow from the key"),
    (one_too_many, "counts", "weights of 'conv.weight' kept, not"),
    (edgeless, "edges", "1 weights of 'conv.weight' kept, not 0"),
    (global_luck, "repeatable", "asked twice, 'weight' keeps other positions"),
    (keyed_by_name, "names", "with layers renamed"),
    (flat, "masks", "is bool (432,), not bool (16, 3, 3, 3)"),
    (lambda table, counts, key, scores: {}, "masks", "no mask for 'conv.weight'"),
    (lambda table, counts, key, scores: 1 / 0, "answers", "ZeroDivisionError"),
]


def test_a_sampler_that_keeps_to_it_passes_everything() -> None:
    assert {v.state for v in verdicts(sampler_checks(sampler(drawn)))} == {"passed"}


@pytest.mark.parametrize(("function", "check", "says"), SAMPLERS, ids=lambda v: v if isinstance(v, str) else "")
def test_a_sampler_that_breaks_it(function: Callable[..., Any], check: str, says: str) -> None:
    found = one(sampler_checks(sampler(function)), check)
    assert found.state == "failed"
    assert says in found.why


def test_a_sampler_of_each_weight_on_its_own_is_off_by_luck_only() -> None:
    def coins(share: float) -> Callable[..., Any]:
        def toss(table: Any, counts: Mapping[str, int], key: Any, scores: Any) -> Any:
            chance = [np.random.Generator(np.random.Philox(key=key(i))).random(x.shape) for i, x in enumerate(table)]
            return {x.name: c < share * counts[x.name] / x.numel for x, c in zip(table, chance, strict=True)}

        return toss

    assert not failed(verdicts(sampler_checks(sampler(coins(1.0), exact=False))))
    assert (
        "weights against its expectation"
        in failed(verdicts(sampler_checks(sampler(coins(0.8), exact=False))))["counts"].why
    )


def test_a_scored_sampler_follows_the_scores() -> None:
    def best(table: Any, counts: Mapping[str, int], key: Any, scores: Any) -> Any:
        order = {x.name: scores[x.name].ravel().argsort(descending=True).argsort() for x in table}
        return {x.name: (order[x.name] < counts[x.name]).reshape(x.shape) for x in table}

    assert not failed(verdicts(sampler_checks(sampler(best, scored=True))))
    assert set(failed(verdicts(sampler_checks(sampler(first, scored=True))))) == {"key"}


def test_nets_are_as_they_were(one_thread: None) -> None:
    """Whatever was examined before: the nets that all share were not changed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fresh = nets.NETS["mlp"].make()
    assert all(torch.equal(v, nets.weighted("mlp").state_dict()[k]) for k, v in fresh.state_dict().items())
