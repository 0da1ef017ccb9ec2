"""Claims: verdicts from made-up records, the shelf, faulty definitions, and what is printed."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from rpbench.board import Wanted, board_names, expand, load_board
from rpbench.catalog import is_shelved_scheme, outline, shelf
from rpbench.claims import (
    Judgement,
    Measured,
    Part,
    Term,
    cells_of,
    claim_names,
    judge,
    load_claim,
    plan_of,
    read_norms,
    together,
)
from rpbench.correlation import within
from rpbench.entries import Entry
from rpbench.errors import BadDefinition, UsageError
from rpbench.report.verdicts import claims_json, claims_text, commands
from rpbench.rows import metric_of
from rpbench.stats import contrast, group, pool

HEAD = """
name = "mine"
version = 1
statement = "A scheme matches dense"
place = "Section 1"
url = "https://example.org"
task = "digits"
board = "digits"
seeds = [0, 1, 2]
"""
MATCHES = """
[[parts]]
above = -0.5
[[parts.terms]]
models = ["resnet8"]
schemes = ["erk", "uniform"]
densities = [0.1, 0.3]
[[parts.terms]]
factor = -1.0
models = ["resnet8"]
schemes = ["dense"]
"""
EACH = MATCHES.replace("above = -0.5", 'above = -0.5\neach = ["schemes", "densities"]')
RELATED = """
[related]
[[related.terms]]
models = ["resnet8"]
schemes = ["erk", "uniform"]
densities = [0.02, 0.05, 0.1, 0.3]
steps = 3
[[related.terms]]
models = ["resnet14"]
schemes = ["erk", "uniform"]
densities = [0.1, 0.3]
steps = 3
"""
plan_once = cache(plan_of)


def claim(tmp_path: Path, text: str) -> Any:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return load_claim(str(path))


def entry(given: Any, w: Wanted, metrics: dict[str, float] | None = None, **changes: Any) -> Entry:
    """A finished, undisturbed record of a cell."""
    plan, prunable = plan_once(given), 70_000
    kept = round(w.context.density * prunable)
    who, name = (
        w.who,
        f"{w.context.task}-{w.context.model}-{w.label.replace(':', '.')}-{w.context.density:g}-s{w.seeds.run}",
    )
    told: dict[str, Any] = {
        "run_id": name, "place": name, "status": "ok", "task": w.context.task, "version": 1,
        "spec": plan.specs[w.context.task], "model": w.context.model, "model_source": "", "params": prunable + 500,
        "prunable": prunable, "scheme": who.scheme, "scheme_args": who.args, "batches": 0, "images": 0,
        "scheme_source": outline(who.scheme).source_hash if is_shelved_scheme(who.scheme) else "",
        "sampler": who.sampler, "sampler_args": who.sampler_args, "sampler_source": who.sampler_source,
        "density": w.context.density, "realised": kept / prunable, "effective": 1.0, "kept": kept,
        "seed": w.seeds.run, "init_seed": w.seeds.init, "mask_seed": w.seeds.mask, "order_seed": w.seeds.order,
        "init": "default", "source": "none", "procedure": "static", "precision": "fp32", "micro_batch": None,
        "on_protocol": True, "notes": (), "skipped": (), "warnings": (), "metrics": metrics or {}, "last": {},
        "dense_macs": 10**9, "sparse_macs": 1e9 * w.context.density, "seconds": 1.0, "scheme_seconds": 0.0,
        "train_images_per_s": None, "eval_images_per_s": None, "device": "cpu", "world_size": 1, "command": "",
        "error": "",
    }  # fmt: skip
    return Entry(**(told | changes))


def wanted(given: Any) -> list[Wanted]:
    plan = plan_once(given)
    return list({w[:3]: w for term in given.terms for w in cells_of(plan, term)}.values())


def records(given: Any, top1: Callable[[Wanted], float]) -> list[Entry]:
    return [entry(given, w, {"top1": top1(w) / 100}) for w in wanted(given)]


def shifted(gap: float, step: float = 0.1) -> Callable[[Wanted], float]:
    """Dense at 90, all else `gap` points above it; seeds differ by `step`."""
    return lambda w: 90 + (0 if w.label == "dense" else gap) + step * (w.seeds.run - 1)


@pytest.mark.parametrize(
    ("gap", "verdict"),
    [(0.0, "reproduced"), (-0.2, "reproduced"), (-0.45, "cannot be separated"), (-0.8, "refuted"), (-9.0, "refuted")],
)
def test_a_part_is_judged_by_its_interval(tmp_path: Path, gap: float, verdict: str) -> None:
    given = claim(tmp_path, HEAD + MATCHES)
    found = judge(given, records(given, shifted(gap)))
    assert found.verdict == verdict
    (part,) = found.parts
    assert part.estimate is not None
    assert part.estimate.value == pytest.approx(gap)
    interval = part.estimate.interval()
    assert interval is not None
    # 4 cells and dense, each of variance 0.01: (4 * 1/16 + 1) * 0.01 / 3, t of 10 degrees of freedom
    assert interval[1] - interval[0] == pytest.approx(2 * 2.228139 * math.sqrt(1.25 * 0.01 / 3), rel=1e-6)
    assert (found.trainings, found.lacks) == (15, ())


def test_below_is_the_mirror_of_above(tmp_path: Path) -> None:
    given = claim(tmp_path, HEAD + MATCHES.replace("above = -0.5", "below = 0.5"))
    for gap, verdict in ((0.2, "reproduced"), (0.5, "cannot be separated"), (0.9, "refuted")):
        found = judge(given, records(given, shifted(gap)))
        assert found.verdict == verdict
        part = found.parts[0]
        assert part.toward + part.against == pytest.approx(1)
        assert (part.toward < 0.025, part.against < 0.025) == (verdict == "reproduced", verdict == "refuted")


def test_the_contrast_is_that_of_the_groups_with_dense_once(tmp_path: Path) -> None:
    """Two terms that name dense make one group, its weights summed; unequal variances are Welch's."""
    more = '[[parts.terms]]\nfactor = 0.25\nmodels = ["resnet8"]\nschemes = ["dense", "erk"]\ndensities = [0.1]\n'
    given = claim(tmp_path, HEAD + MATCHES + more)

    def top1(w: Wanted) -> float:
        spread = 5.0 if (w.label, w.context.density) == ("uniform", 0.1) else 0.01
        return 90 + w.context.density + spread * ((w.seeds.run * 7 + len(w.label)) % 5)

    entries = records(given, top1)
    (part,) = judge(given, entries).parts

    def cell(scheme: str, density: float) -> list[float]:
        return [100 * e.metrics["top1"] for e in entries if (e.scheme, e.density) == (scheme, density)]

    groups = [group(cell(*c)) for c in (("erk", 0.1), ("erk", 0.3), ("uniform", 0.1), ("uniform", 0.3), ("dense", 1.0))]
    weights = [0.25 + 0.125, 0.25, 0.25, 0.25, -1 + 0.125]
    noise = pool(groups)
    assert noise is not None
    assert not noise.homogeneous
    expected = contrast(groups, weights, noise)
    assert part.estimate is not None
    assert part.estimate.value == pytest.approx(expected.value)
    assert part.estimate.se == pytest.approx(expected.se)
    assert part.estimate.df == pytest.approx(expected.df)


def test_a_missing_training_is_not_run(tmp_path: Path) -> None:
    given = claim(tmp_path, HEAD + MATCHES)
    entries = [e for e in records(given, shifted(0)) if (e.scheme, e.density, e.seed) != ("erk", 0.1, 2)]
    found = judge(given, entries)
    assert found.verdict == "not run"
    (lack,) = found.lacks
    assert (lack.wanted.label, lack.wanted.context.density, lack.wanted.seeds.run) == ("erk", 0.1, 2)
    assert commands(found, "my runs") == [
        "rpbench sweep digits --model resnet8 --scheme erk --density 0.1 --seed 2 --store 'my runs'"
    ]
    assert judge(given, []).verdict == "not run"
    assert commands(judge(given, [])) == [
        "rpbench sweep digits --model resnet8 --scheme erk --scheme uniform --scheme dense --density 0.1 --density 0.3"
        " --seed 0 --seed 1 --seed 2"
    ]


@pytest.mark.parametrize(
    ("changes", "why", "told"),
    [
        ({"on_protocol": False, "notes": ("recipe.epochs=1",)}, "off protocol", "missing"),
        ({"scheme_source": "0" * 64}, "stale", "missing"),
        ({"spec": "0" * 64}, "another definition", "missing"),
        ({"precision": "bf16"}, "precision is bf16", "missing"),
        ({"kept": 69_999}, "off budget", "missing"),
        ({"status": "failed", "error": "no memory"}, "", "failed"),
        ({"status": "infeasible", "error": "least 0.2"}, "", "infeasible"),
        ({"metrics": {"ece": 0.1}}, "has no top1", "missing"),
        ({"metrics": {"top1": 0.9}}, "", "not scored"),
    ],
)
def test_records_are_left_out_as_on_a_board(tmp_path: Path, changes: dict[str, Any], why: str, told: str) -> None:
    given = claim(tmp_path, HEAD + 'metric = "auroc/photos"\n' + MATCHES)
    cells = wanted(given)
    metrics = {"top1": 0.9, "auroc/photos": 0.8}
    good = [entry(given, w, metrics) for w in cells[1:]]
    found = judge(given, [entry(given, cells[0], **({"metrics": metrics} | changes)), *good])
    assert found.verdict == "not run"
    assert [lack.why for lack in found.lacks] == [told]
    assert any(why in fault.why for fault in found.left_out) or not why
    text = claims_text([found])
    assert "1 of 15 trainings" in text
    assert ("--retry" in text) == (told == "failed" or why == "stale")
    assert ("rpbench" in text) == (told != "infeasible")


def test_records_of_other_cells_play_no_part(tmp_path: Path) -> None:
    given = claim(tmp_path, HEAD + MATCHES)
    entries = records(given, shifted(0))
    other = entry(given, wanted(given)[0], {"top1": 0.1}, scheme="snip", scheme_args='{"x":1}', on_protocol=False)
    again = entry(given, wanted(given)[0], {"top1": 0.1}, seed=7, run_id="seven")
    assert judge(given, [*entries, other, again]) == judge(given, entries)


def test_each_makes_a_part_of_every_combination(tmp_path: Path) -> None:
    given = claim(tmp_path, HEAD + EACH)
    assert [(p.terms[0].schemes, p.terms[0].densities) for p in given.parts] == [
        (("erk",), (0.1,)), (("erk",), (0.3,)), (("uniform",), (0.1,)), (("uniform",), (0.3,)),
    ]  # fmt: skip
    assert all(p.terms[1].schemes == ("dense",) for p in given.parts)
    assert len(wanted(given)) == 15


def measured(verdict: Any, toward: float, against: float) -> Measured:
    part = Part(above=0.0, terms=(Term(schemes=("erk",), models=("resnet8",)),))
    return Measured(part, metric_of("top1"), verdict, toward=toward, against=against)


R, X, C, N = (
    measured("reproduced", 0.02, 0.98), measured("refuted", 0.98, 0.02), measured("cannot be separated", 0.5, 0.5),
    measured("not run", 1.0, 1.0),
)  # fmt: skip
SURE, SURELY_NOT = measured("reproduced", 1e-4, 1.0), measured("refuted", 1.0, 1e-4)


@pytest.mark.parametrize(
    ("parts", "every", "some"),
    [
        ([R], "reproduced", "reproduced"),
        ([X], "refuted", "refuted"),
        ([R, R], "reproduced", "cannot be separated"),  # one of two needs 0.0125
        ([X, X], "cannot be separated", "refuted"),
        ([R, C], "cannot be separated", "cannot be separated"),
        ([SURE, C], "cannot be separated", "reproduced"),
        ([SURELY_NOT, R], "refuted", "cannot be separated"),
        ([SURELY_NOT, N], "refuted", "not run"),
        ([SURE, N], "not run", "reproduced"),
        ([X, N], "not run", "not run"),
        ([N, N], "not run", "not run"),
    ],
)
def test_parts_make_a_verdict(parts: list[Measured], every: str, some: str) -> None:
    assert together("all", parts) == every
    assert together("any", parts) == some


def test_one_seed_is_judged_by_declared_noise_alone(tmp_path: Path) -> None:
    head = HEAD.replace("[0, 1, 2]", "[0]")
    given = claim(tmp_path, head + MATCHES)
    found = judge(given, records(given, shifted(5.0)))
    assert found.verdict == "cannot be separated"
    assert "one seed a cell tells nothing" in claims_text([found])
    assume = '[[assumed]]\nmetric = "top1"\nsd = 0.2\nsource = "somebody"\n'
    given = claim(tmp_path, head + MATCHES + assume)
    found = judge(given, records(given, shifted(0.0)))
    interval = found.parts[0].estimate and found.parts[0].estimate.interval()
    assert interval
    assert interval[1] == pytest.approx(1.959964 * 0.2 * math.sqrt(1.25))
    assert found.verdict == "reproduced"
    assert "a seed sd of 0.2 is assumed for top1 (somebody)" in " ".join(claims_text([found]).split())
    # with seeds of its own the declared noise is not looked at
    given = claim(tmp_path, HEAD + MATCHES + assume)
    assert judge(given, records(given, shifted(0.0))).parts[0].assumed is None


def test_multiply_adds_need_no_noise(tmp_path: Path) -> None:
    text = HEAD.replace("[0, 1, 2]", "[0]") + MATCHES.replace("above = -0.5", 'metric = "macs"\nbelow = -0.75')
    given = claim(tmp_path, text)
    found = judge(given, records(given, shifted(0.0)))
    assert found.parts[0].estimate is not None
    assert found.parts[0].estimate.value == pytest.approx(0.2 - 1.0)
    assert found.verdict == "reproduced"


def flows(store: Path, given: Any, norm: Callable[[Wanted], float]) -> None:
    for w in wanted(given):
        folder = store / entry(given, w, {}).run_id
        folder.mkdir(parents=True)
        rows = [{"epoch": e, "step": s, "global_l2": norm(w)} for e, s in ((1, 1), (1, 2), (2, 1), (2, 2))]
        (folder / "gradient_flow.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


@pytest.mark.parametrize(("slope", "verdict"), [(0.3, "reproduced"), (-0.3, "refuted")])
def test_gradient_norms_are_related_within_nets(tmp_path: Path, slope: float, verdict: str) -> None:
    given = claim(tmp_path, HEAD + RELATED)
    entries = records(given, lambda w: 80 + 20 * w.context.density + (slope if w.label == "erk" else 0))
    assert judge(given, entries).verdict == "not run"
    assert {lack.why for lack in judge(given, entries).lacks} == {"not tracked"}
    assert commands(judge(given, entries))[0].startswith("rpbench run --task digits --model resnet8 --scheme erk")
    assert "--track gradient-flow --force" in commands(judge(given, entries))[0]
    flows(tmp_path / "runs", given, lambda w: (2 if w.label == "erk" else 1) / w.context.density)
    found = judge(given, entries, read_norms(tmp_path / "runs"))
    assert found.verdict == verdict
    assert found.relation is not None
    assert (found.relation.orders, found.relation.groups) == (2**6, 6)
    assert found.relation.r == pytest.approx(math.copysign(1, slope))
    assert (found.relation.above if slope > 0 else found.relation.below) == pytest.approx(1 / 64)


def test_tracks_that_are_short_or_broken_are_none(tmp_path: Path) -> None:
    given = claim(tmp_path, HEAD + RELATED)
    flows(tmp_path, given, lambda w: 2.0)
    e = entry(given, wanted(given)[0], {})
    assert read_norms(tmp_path)(e, "global_l2", 4) == 2
    assert read_norms(tmp_path)(e, "global_l2", 5) is None
    assert read_norms(tmp_path)(e, "mean_abs", 4) is None
    for line in ("{", "[]", '{"global_l2": NaN}', '{"global_l2": "x"}', '{"global_l2": null}', "\xff"):
        (tmp_path / e.run_id / "gradient_flow.jsonl").write_text(f"{line}\n" * 4, encoding="latin-1")
        assert read_norms(tmp_path)(e, "global_l2", 4) is None


def test_correlation_against_brute_force() -> None:
    from itertools import permutations, product

    import numpy as np

    groups = [[(1.0, 2.0), (2.0, 1.0), (4.0, 5.0)], [(10.0, -3.0), (11.0, -2.0)], [(5.0, 5.0)]]
    found = within(groups)
    assert found is not None

    def r(ys: Any) -> float:
        xs = np.concatenate([np.array([x for x, _ in g]) - np.mean([x for x, _ in g]) for g in groups])
        flat = np.concatenate([np.array(y) - np.mean(y) for y in ys])
        return float(np.corrcoef(xs, flat)[0, 1])

    seen = r([[y for _, y in g] for g in groups])
    every = [r(ys) for ys in product(*(permutations([y for _, y in g]) for g in groups))]
    assert found.r == pytest.approx(seen)
    assert (found.orders, found.groups, found.exact) == (12, 2, True)
    assert found.above == sum(v >= seen - 1e-12 for v in every) / 12
    assert found.below == sum(v <= seen + 1e-12 for v in every) / 12


def test_correlation_of_many_is_drawn_and_of_nothing_is_none() -> None:
    groups = [[(float(i), float((i * j) % 7)) for i in range(7)] for j in (1, 2, 3)]
    found = within(groups)
    assert found is not None
    assert not found.exact
    assert found == within(groups)
    assert within([]) is None
    assert within([[(1.0, 2.0)], [(3.0, 3.0), (4.0, 3.0)]]) is None
    with pytest.raises(UsageError, match="at most 7"):
        within([[(float(i), float(i)) for i in range(8)]])


# --- the shelf ------------------------------------------------------------------------------------------------------


def test_the_shelf_has_the_papers_claims() -> None:
    assert len(claim_names()) >= 13


@pytest.mark.parametrize("name", claim_names())
def test_every_claim_states_its_cells_and_is_judged(name: str) -> None:
    given = load_claim(name)
    assert given.name == name
    cells = wanted(given)
    assert cells
    assert all(term.board and term.task and term.seeds for term in given.terms)
    if given.related:
        return
    found = judge(given, [entry(given, w, _metrics(given, 0.5 + 0.001 * w.seeds.run)) for w in cells])
    assert (found.lacks, found.left_out) == ((), ())
    assert all(part.estimate is not None and part.estimate.se is not None for part in found.parts)
    assert judge(given, []).verdict == "not run"


def _metrics(given: Any, value: float) -> dict[str, float]:
    return {"top1": value} | {part.metric: value for part in given.parts}


@pytest.mark.parametrize("name", claim_names())
def test_a_sweep_of_its_boards_yields_what_a_claim_needs(name: str) -> None:
    given = load_claim(name)
    if missing := set(given.boards) - set(board_names()):
        pytest.skip(f"no board {', '.join(sorted(missing))} yet")
    plans = {board: expand(load_board(board)) for board in given.boards}
    mine = plan_of(given)
    for term in given.terms:
        there = {(w[:3], w.asked["precision"]) for w in plans[term.board].cells}
        assert {(w[:3], w.asked["precision"]) for w in cells_of(mine, term)} <= there, term
    if given.related:
        assert all(plans[board].board.track == "gradient-flow" for board in given.boards)


@pytest.mark.parametrize("name", claim_names())
def test_reported_values_are_those_of_the_papers_numbers(name: str) -> None:
    path = shelf("leaderboard") / "reported" / "liu2022.jsonl"
    if not path.is_file():
        pytest.skip("the paper's numbers are not here yet")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows.sort(key=lambda row: row["place"] == "Figure 1")  # of two numbers of a cell, Figure 1's
    known = {(r["task"], r["model"], r["scheme"], r["density"]): r["value"] for r in rows if r["metric"] == "top1"}
    given = load_claim(name)
    plan = plan_of(given)
    for part in given.parts:
        for value in part.reported:
            total = 0.0
            for term in part.terms:
                labels = {(*w.context[:2], w.label, w.context.density) for w in cells_of(plan, term)}
                total += term.factor * 100 * sum(known[k] for k in labels) / len(labels)
            assert total == pytest.approx(value, abs=0.0051), part.title


# --- definitions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        (HEAD, ["either [[parts]] or [related]"]),
        (HEAD + MATCHES + RELATED, ["either [[parts]] or [related]"]),
        (HEAD + MATCHES.replace("above = -0.5", ""), ["one of above and below"]),
        (HEAD + MATCHES.replace("above", "abov"), ["abov", "did you mean 'above'", "one of above and below"][:2]),
        (
            HEAD + MATCHES.replace('"erk"', '"ekr"').replace('"resnet8"', '"resnet9"').replace("-1.0", "0.0"),
            ["no scheme 'ekr'", "no model 'resnet9'", "factor is 0", "parts.0.terms.1", "faults"],
        ),
        (HEAD + MATCHES.replace("densities = [0.1, 0.3]", ""), ["densities are missing"]),
        (HEAD.replace('task = "digits"', "") + MATCHES, ["task is missing"]),
        (HEAD.replace('board = "digits"', "") + MATCHES, ["board is missing"]),
        (HEAD + 'metric = "auroc/svhn"\n' + MATCHES, ["metric is 'auroc/svhn'", "auroc/photos"]),
        (HEAD + MATCHES.replace("0.1, 0.3", "0.1, 0.1"), ["names 12 trainings, but 6 of them twice"]),
        (HEAD + MATCHES.replace('"erk", "uniform"', '"erk", "erk:x=1"'), ["erk"]),
        (HEAD + MATCHES.replace("above = -0.5", "above = -0.5\nreported = [1.0, 2.0]"), ["reported has 2 values"]),
        (HEAD + RELATED.replace("steps = 3", "", 1), ["steps is missing"]),
        (HEAD + MATCHES + "steps = 5\n", ["steps is 5"]),
        (HEAD + MATCHES + '[[assumed]]\nmetric = "nll"\nsd = 1.0\nsource = "x"\n', ["no part is about 'nll'"]),
        (HEAD.replace("seeds = [0, 1, 2]", "seeds = []") + MATCHES, ["seeds"]),
    ],
)
def test_faulty_definitions_are_refused_with_all_faults(tmp_path: Path, text: str, faults: list[str]) -> None:
    with pytest.raises(BadDefinition) as caught:
        claim(tmp_path, text)
    for fault in faults:
        assert fault in str(caught.value)


def test_a_task_file_stands_beside_its_claim(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text((shelf("tasks") / "digits.toml").read_text().replace('"digits"', '"own"', 1))
    given = claim(tmp_path, HEAD.replace('task = "digits"', 'task = "own.toml"') + MATCHES)
    assert {w.context.task for w in wanted(given)} == {"own"}
    assert judge(given, records(given, shifted(0))).verdict == "reproduced"


# --- what is printed ------------------------------------------------------------------------------------------------


def judged(tmp_path: Path, gap: float = 0.0, text: str = HEAD + MATCHES) -> Judgement:
    given = claim(tmp_path, text)
    return judge(given, records(given, shifted(gap)))


def test_the_terminal_has_80_columns_and_says_it_all(tmp_path: Path) -> None:
    text = claims_text([judged(tmp_path), judge(load_claim("ratios-converge"), []), judged(tmp_path, -9)])
    assert max(map(len, text.splitlines())) <= 80
    told = " ".join(text.split())
    assert "mine: REPRODUCED" in told
    assert "A scheme matches dense" in told
    assert "top-1 +0.00 [-0.14, +0.14] points, claimed above -0.50: reproduced" in told
    assert "3 claims: 1 reproduced, 1 refuted, 1 not run." in told
    assert "the paper's numbers: +0.24 points" in told


def test_printed_commands_are_commands(tmp_path: Path) -> None:
    from rpbench.cli import main

    for name in claim_names():
        found = judge(load_claim(name), [])
        text = claims_text([found], store="a folder")
        block = text[text.index("    rpbench sweep") :].split("\n\n")[0].replace(" \\\n", " ")
        assert [shlex.split(line) for line in block.splitlines()] == [
            shlex.split(c) for c in commands(found, "a folder")
        ]
        for command in commands(found):
            _, verb, *rest = shlex.split(command)
            main.commands[verb].make_parser(main.make_context("rpbench", [], resilient_parsing=True)).parse_args(rest)


def test_parts_that_are_lost_to_the_family_are_told(tmp_path: Path) -> None:
    given = claim(tmp_path, HEAD + EACH)
    entries = records(given, lambda w: shifted(-0.75 if (w.label, w.context.density) == ("erk", 0.1) else 0.0)(w))
    found = judge(given, entries)
    assert [p.verdict for p in found.parts] == ["refuted", "reproduced", "reproduced", "reproduced"]
    assert found.verdict == "cannot be separated"
    assert "1 of 4 parts refuted each on its own" in " ".join(claims_text([found]).split())


def test_hostile_text_is_escaped(tmp_path: Path) -> None:
    bad = '<script>alert("x")</script> a|b `c` [d](e) *f*'
    text = HEAD.replace("A scheme matches dense", "S " + bad.replace('"', "'")).replace("Section 1", "P\\u001b[31m|<b>")
    given = claim(tmp_path, text + MATCHES)
    cells = wanted(given)
    broken = [entry(given, cells[0], {}, status="failed", error=f"{bad}\n\x1b[2J\nrm -rf", place=bad)]
    broken += [entry(given, w, {"top1": 0.9}, on_protocol=False, notes=(bad,), place=f"{bad}\n# x") for w in cells[1:3]]
    found = judge(given, broken)
    for form in ("term", "md"):
        told = claims_text([found], form, store="$(touch x)`y`")
        assert "\x1b" not in told
        assert "\nrm -rf" not in told
        assert "'$(touch x)`y`'" in told
    assert "<script>" not in told
    assert "<b>" not in told
    assert "\n# x" not in told
    assert json.loads(json.dumps(claims_json([found])))["claims"][0]["left_out"][0]["record"].startswith("<script>")


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    given = claim(tmp_path, HEAD + MATCHES)
    entries = records(given, shifted(-0.3))
    one, other = judge(given, entries), judge(given, list(reversed(entries)))
    for form in ("term", "md"):
        assert claims_text([one], form) == claims_text([other], form)
    assert json.dumps(claims_json([one])) == json.dumps(claims_json([other]))


def test_the_command(tmp_path: Path, invoke: Any) -> None:
    done = invoke("claims", "deep-nets-match")
    assert done.exit_code == 0
    assert "deep-nets-match: NOT RUN" in done.stdout
    assert "rpbench sweep fig1" in done.stdout
    done = invoke("claims", "--format", "json", "--leaderboard")
    assert [c["name"] for c in json.loads(done.stdout)["claims"]] == claim_names()
    assert "### deep-nets-match" in invoke("claims", "deep-nets-match", "--format", "md").stdout.replace("\\", "")
    done = invoke("claims", "deep-net-match")
    assert done.exit_code == 2
    assert "did you mean 'deep-nets-match'" in done.stderr
    assert invoke("claims", "--store", str(tmp_path / "nowhere")).exit_code == 2
    done = invoke("list", "claims", "--format", "json")
    assert [row["name"] for row in json.loads(done.stdout)] == claim_names()
