"""Rows of boards: gaps, intervals, ranks and ties by hand; what is missing; what never changes a row."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic
from scipy import stats as scipy_stats

from rpbench.board import Choice, Plan, Wanted, expand
from rpbench.comparison import compare, words
from rpbench.entries import Entry, entry
from rpbench.errors import UnknownName, UsageError
from rpbench.ranking import score
from rpbench.record import RunRecord
from rpbench.rows import Sheet, metric_of
from rpbench.selection import select


def entries_of(plan: Plan, top1: Any, **changes: Any) -> list[Entry]:
    found = [(w, top1(w)) for w in plan.cells]
    return [made(plan, w, value, **changes) for w, value in found if value is not None]


def made(plan: Plan, w: Wanted, value: float, **changes: Any) -> Entry:
    record = RunRecord.model_validate(synthetic.record(plan, w, value, **changes))
    return entry(record, record.run_id)


def sheet(plan: Plan, entries: list[Entry], **asked: Any) -> Sheet:
    return score(plan, select(plan, entries), **asked)


def labels(rows: Any) -> list[str]:
    return [row.label for row in rows]


def test_a_gap_by_hand() -> None:
    plan = synthetic.plan(grid={"densities": (0.1, 0.3), "schemes": ("erk",)}, seeds=(0, 1, 2))
    told = {("dense", 1.0): (0.90, 0.92, 0.94), ("erk", 0.1): (0.80, 0.82, 0.87), ("erk", 0.3): (0.88, 0.90, 0.92)}
    found = sheet(plan, entries_of(plan, lambda w: told[w.label, w.context.density][w.seeds.run]))
    (row,) = found.ranked.rows
    assert row.score is not None
    assert row.score.value == pytest.approx(-5.5)  # (83 - 92 + 90 - 92) / 2
    variances = [np.var(np.array(v) * 100, ddof=1) for v in told.values()]
    pooled = np.mean(variances)  # three groups of three
    se = math.sqrt(pooled * (1 / 3 + 2 * 0.25 / 3))
    low, high = row.score.interval() or (0, 0)
    assert (high - low) / 2 == pytest.approx(scipy_stats.t.ppf(0.975, 6) * se)
    assert [c.group.mean for c in row.cells if c.group] == pytest.approx([83.0, 90.0])
    assert row.rank == (1, 1, 1)
    assert row.axes["robust/fgsm-8"].value == pytest.approx(-2.75)  # type: ignore[union-attr]


def test_a_row_never_depends_on_the_other_rows() -> None:
    plan = synthetic.plan(grid={"schemes": ("erk", "uniform", "er", "igq")})
    entries = entries_of(plan, synthetic.noisy({"erk": -0.01, "uniform": -0.02, "er": -0.03}, sd=0.004))
    whole = sheet(plan, entries)
    wild = [dataclasses.replace(e, metrics=e.metrics | {"top1": (e.seed * 7919 % 100) / 100}) if e.scheme == "er" else e
            for e in entries]  # fmt: skip
    for others in ([e for e in entries if e.scheme in ("dense", "erk")], wild):
        again = sheet(plan, others)
        for one, two in [(r, s) for r in whole.rows for s in again.rows if r.label == s.label and r.label != "er"]:
            assert one.score == two.score
            assert one.cells == two.cells
            assert one.axes == two.axes
            assert one.matching == two.matching


def test_ties_share_a_rank_and_clear_gaps_do_not() -> None:
    plan = synthetic.plan(grid={"schemes": ("erk", "uniform", "er")}, seeds=tuple(range(5)))
    found = sheet(plan, entries_of(plan, synthetic.noisy({"erk": -0.01, "uniform": -0.0101, "er": -0.05})))
    assert labels(found.ranked.rows)[2] == "er"
    assert [row.rank for row in found.ranked.rows] == [(1, 1, 2), (1, 1, 2), (3, 3, 3)]
    assert found.ranked.apart == (False, True)
    assert [row.p is not None and row.p < 0.05 for row in found.ranked.rows] == [True, True, True]


def test_lower_is_better_where_it_is() -> None:
    plan = synthetic.plan(grid={"schemes": ("erk", "er")})
    entries = entries_of(plan, synthetic.noisy({"erk": -0.01, "er": -0.05}))
    for metric in ("ece", "nll", "brier"):
        assert labels(sheet(plan, entries, metric=metric).ranked.rows) == ["erk", "er"]
    assert labels(sheet(plan, entries, metric="ood").ranked.rows) == ["erk", "er"]
    with pytest.raises(UnknownName, match="no metric 'top-1'.*top1"):
        sheet(plan, entries, metric="top-1")
    assert metric_of("nll").scale == 1
    assert metric_of("fpr95_energy/noise").sign == -1


def test_incomplete_rows_are_listed_with_what_is_missing() -> None:
    plan = synthetic.plan()

    def value(w: Wanted) -> float | None:
        if w.label == "uniform" and (w.context.density, w.seeds.run) == (0.1, 2):
            return None
        if w.label == "er" and w.context.density == 0.3:
            return None
        return 0.9

    found = sheet(plan, entries_of(plan, value))
    assert labels(found.ranked.rows) == ["erk"]
    assert {row.label: row.lacks for row in found.incomplete} == {
        "uniform": ("digits resnet8 0.1: seed 2",), "er": ("digits resnet8 0.3: no seed",)
    }  # fmt: skip
    assert all(row.score is None and row.rank is None for row in found.incomplete)
    assert sheet(plan, entries_of(plan, lambda w: 0.9 if w.label in ("dense", "erk") else None)).not_run == (
        "uniform",
        "er",
    )


def test_single_seed_rows_are_placed_and_marked() -> None:
    plan = synthetic.plan()
    noise = synthetic.noisy({"erk": -0.02})
    found = sheet(plan, entries_of(plan, lambda w: noise(w) if w.label != "er" or w.seeds.run == 0 else None))
    single = next(row for row in found.ranked.rows if row.label == "er")
    assert single.marks == ("1 seed",)
    assert single.score is not None
    assert single.score.interval() is not None  # with the pooled noise of the others
    # another seed than the board's first is a pick
    found = sheet(plan, entries_of(plan, lambda w: noise(w) if w.label != "er" or w.seeds.run == 1 else None))
    assert labels(found.incomplete) == ["er"]


def test_infeasible_cells_make_a_block_of_the_common_ones() -> None:
    plan = synthetic.plan()
    values = synthetic.noisy({"erk": -0.01, "er": -0.03})
    entries = []
    for w in plan.cells:
        if w.label == "uniform" and w.context.density == 0.05:
            entries.append(made(plan, w, 0.5, status="infeasible", error="no budget below 0.08", metrics={}, last={}))
        else:
            entries.append(made(plan, w, values(w)))
    found = sheet(plan, entries)
    assert labels(found.ranked.rows) == ["erk", "er"]
    assert found.common is not None
    assert sorted(labels(found.common.rows)) == ["er", "erk", "uniform"]
    assert [c.density for c in found.common.contexts] == [0.1, 0.3]
    cell = next(row for row in found.incomplete if row.label == "uniform").cells[0]
    assert (cell.state, cell.reason) == ("infeasible", "infeasible: no budget below 0.08")


SMALLER: dict[str, Any] = {
    "density": {"prunable": 50000, "kept": 5000, "kept_per_layer": [500, 1000, 3000, 500]}
    | {"numel_per_layer": [1000, 9000, 30000, 10000]},
    "model": {"prunable": 50000},
}
REASONS: dict[str, tuple[dict[str, Any], str]] = {
    "off protocol": ({"protocol": {"on": False, "overrides": {"recipe.epochs": 1}}}, "off protocol: recipe.epochs=1"),
    "another spec": ({"task": {"spec": "0" * 64}}, "another definition of task 'digits'"),
    "precision": ({"precision": "bf16"}, "precision is bf16, the board's is fp32"),
    "procedure": ({"procedure": "rigl"}, "procedure is rigl, the board's is static"),
    "stale": ({"scheme": {"source": "0" * 64}}, "stale: the source of scheme 'erk'"),
    "budget": ({"density": {"kept": 9999, "realised": 0.09999, "kept_per_layer": [99, 2000, 7000, 900]}}, "off budget"),
    "net": (SMALLER, "50,000 prunable weights, not the 100,000"),
    "args": ({"run_id": "again"}, "a second record of the same cell"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "why"), REASONS.values(), ids=list(REASONS))
def test_what_cannot_be_compared_is_left_out_with_the_reason(changes: dict[str, Any], why: str) -> None:
    plan = synthetic.plan()
    entries = entries_of(plan, lambda w: 0.9)
    w = next(w for w in plan.cells if w.label == "erk" and w.context.density == 0.1 and w.seeds.run == 0)
    odd = made(plan, w, 0.99, **({"run_id": "odd"} | changes))
    found = sheet(plan, [*entries, dataclasses.replace(odd, place="odd")])
    assert [fault.place for fault in found.left_out] == ["odd"] or changes == {"run_id": "again"}
    assert why in found.left_out[0].why
    assert len(found.ranked.rows) == 3


def test_records_of_other_boards_are_passed_over() -> None:
    plan, other = synthetic.plan(), synthetic.plan(grid={"densities": (0.2,), "models": ("resnet14",)})
    found = sheet(plan, [*entries_of(plan, lambda w: 0.9), *entries_of(other, lambda w: 0.8)])
    assert found.left_out == ()
    assert len(found.ranked.rows) == 3


def test_other_seeds_are_passed_over_and_counted() -> None:
    plan, more = synthetic.plan(), synthetic.plan(seeds=(0, 1, 2, 7, 8))
    found = sheet(plan, entries_of(more, lambda w: 0.9))
    assert found.left_out == ()
    assert "seeds are not the board's: " in found.notes[-1]
    assert [c.group and c.group.n for c in found.ranked.rows[0].cells] == [3, 3, 3]


def test_baselines_of_another_board_do_not_join_by_a_shared_run() -> None:
    plan = synthetic.plan(grid={"schemes": ("erk",)})
    wide = synthetic.plan(grid={"schemes": ("erk", "uniform", "er")})

    def value(w: Wanted) -> float | None:
        return 0.9 if w.label in ("dense", "erk", "uniform") or w.seeds.run == 0 else None

    assert sorted(labels(sheet(plan, entries_of(wide, value)).rows)) == ["erk", "uniform"]


def test_options_make_rows_of_their_own() -> None:
    plan = synthetic.plan(grid={"schemes": ("erk_plus", "erk_plus:classifier=0.5", "erk")})
    found = sheet(plan, entries_of(plan, lambda w: 0.9))
    assert sorted(labels(found.ranked.rows)) == ["erk", "erk_plus", "erk_plus:classifier=0.5"]
    narrow = synthetic.plan(grid={"schemes": ("erk",)})
    found = sheet(narrow, entries_of(plan, lambda w: 0.9))  # rows that the board does not name
    assert sorted(labels(found.rows)) == ["erk", "erk_plus", "erk_plus:classifier=0.5"]


def test_without_the_reference_rows_are_ranked_but_have_no_gap() -> None:
    plan = synthetic.plan()
    found = sheet(plan, entries_of(plan, lambda w: None if w.label == "dense" else 0.9 - 0.1 * (w.label == "er")))
    assert labels(found.ranked.rows)[-1] == "er"
    assert all(row.score is None for row in found.ranked.rows)
    assert "no gaps" in found.notes[0]


def test_equal_flops_interpolate_and_say_what_is_not_reached() -> None:
    plan = synthetic.plan(grid={"densities": (0.1, 0.4), "schemes": ("erk", "er")}, flops=(0.3,), seeds=(0, 1))

    def flops(w: Wanted) -> dict[str, Any]:
        part = {"erk": {0.1: 0.15, 0.4: 0.6}, "er": {0.1: 0.35, 0.4: 0.7}, "dense": {1.0: 1.0}}
        return {"cost": {"sparse_macs": 10**6 * part[w.label][w.context.density]}}

    top1 = {0.1: 0.80, 0.4: 0.90, 1.0: 0.95}
    entries = [made(plan, w, top1[w.context.density], **flops(w)) for w in plan.cells]
    found = sheet(plan, entries, order="flops")
    (row,) = found.ranked.rows
    part = math.log(0.3 / 0.15) / math.log(0.6 / 0.15)
    assert row.score is not None
    assert row.score.value == pytest.approx(80 + 10 * part - 95)
    assert {r.label: r.lacks for r in found.incomplete} == {
        "er": ("resnet8: its FLOPs reach down to 35.0% of the dense net's, not to 30.0%",)
    }
    assert any("interpolated" in note for note in found.notes)


def test_matching_sparsity() -> None:
    plan = synthetic.plan(grid={"densities": (0.9, 0.5, 0.1), "schemes": ("erk", "er", "uniform")})
    gaps = {("erk", 0.9): 0.0, ("erk", 0.5): 0.0, ("erk", 0.1): -0.02, ("er", 0.9): -0.03, ("er", 0.5): -0.04,
            ("er", 0.1): -0.2}  # fmt: skip
    noise = synthetic.noisy({}, sd=0.0003)
    found = sheet(plan, entries_of(plan, lambda w: noise(w) + gaps.get((w.label, w.context.density), 0.0)))
    by = {row.label: row.matching["digits", "resnet8"] for row in found.rows}
    assert by["erk"].value == pytest.approx(0.6, abs=0.02)  # from 0 at 0.5 to -2 at 0.9: -0.5 after a quarter
    assert by["er"].censored == "none matching"
    assert by["uniform"].censored == "beyond the last"


def test_the_metric_of_two_image_sets_is_taken_over_the_references() -> None:
    plan = synthetic.plan()
    entries = entries_of(plan, lambda w: 0.9)
    cut = [
        dataclasses.replace(e, metrics={k: v for k, v in e.metrics.items() if k != "auroc/noise"}, skipped=("noise",))
        if e.scheme == "er" else e for e in entries
    ]  # fmt: skip
    found = sheet(plan, cut)
    row = next(row for row in found.rows if row.label == "er")
    assert row.axes["ood"] is None  # never a mean over other sets
    assert "without noise" in row.marks


def test_compare_in_words() -> None:
    plan = synthetic.plan(seeds=tuple(range(5)))
    found = sheet(plan, entries_of(plan, synthetic.noisy({"erk": -0.01, "uniform": -0.0102, "er": -0.05})))
    told = words(compare(found, "er", "erk"))
    assert told.startswith("erk is above er by 3.96 ± 0.16 points")
    assert told.endswith("points of top-1 on 3 cells of small, 5 seeds")
    told = words(compare(found, "erk", "uniform"))
    assert told.startswith("erk and uniform cannot be separated on 3 cells of small: ")
    assert "seeds would separate" in told
    with pytest.raises(UnknownName, match="no row 'erq': did you mean"):
        compare(found, "erq", "er")
    with pytest.raises(UsageError, match="against itself"):
        compare(found, "er", "er")
    told = words(compare(found, "er", "dense"))
    assert told.startswith("dense is above er by 4.80")
    row = next(row for row in found.rows if row.label == "er")
    assert compare(found, "er", "dense").difference == row.score
    assert words(compare(found, "dense", "er")) == told


def test_pairing_by_seed_is_declared() -> None:
    """Results that move together by seed: paired, a small difference is found; unpaired it is not."""
    shift = (0.0, 0.03, -0.03, 0.02)
    own = {("er", 0): 1e-4, ("er", 2): -1e-4}

    def value(w: Wanted) -> float:
        return 0.9 + shift[w.seeds.run] - 0.002 * (w.label == "er") + own.get((w.label, w.seeds.run), 0.0)

    separated = {}
    for pairing in ("none", "seed"):
        plan = synthetic.plan(pairing=pairing, seeds=(0, 1, 2, 3), grid={"schemes": ("erk", "er")})
        separated[pairing] = compare(sheet(plan, entries_of(plan, value)), "erk", "er").separated
    assert separated == {"none": False, "seed": True}


def test_as_json(tmp_path: Path) -> None:
    from rpbench.report.plain import sheet_json

    plan = synthetic.plan()
    entries = entries_of(plan, synthetic.noisy({"erk": -0.01}))
    told = json.dumps(sheet_json(sheet(plan, entries)), allow_nan=False)
    assert told == json.dumps(sheet_json(sheet(plan, entries[::-1])), allow_nan=False)
    assert json.loads(told)["ranked"]["rows"][0]["score"]["value"] is not None


def test_single_runs_are_compared_by_their_test_images(tmp_path: Path) -> None:
    plan = synthetic.plan(grid={"densities": (0.1,), "schemes": ("erk", "er")}, seeds=(0,))
    entries = entries_of(plan, lambda w: 0.9 - 0.1 * (w.label == "er"))
    right = np.arange(100) >= 10
    for e in entries:
        folder = tmp_path / e.place / "outputs" / "selected"
        folder.mkdir(parents=True)
        logits = np.eye(2)[(right if e.scheme == "erk" else np.roll(right, 30) & right).astype(int)]
        np.savez_compressed(folder / "test.npz", logits=logits, labels=np.ones(100, dtype=np.int64))
    found = compare(sheet(plan, entries), "erk", "er", tmp_path)
    assert found.images is not None
    assert (found.images.b, found.images.c) == (10, 0)
    assert "McNemar p = 0.002" in words(found)
    assert found.examples == pytest.approx(100 * math.sqrt(0.1 * 0.9 / 99))
    (tmp_path / entries[-1].place / "outputs" / "selected" / "test.npz").unlink()
    assert compare(sheet(plan, entries), "erk", "er", tmp_path).images is None


def test_reports_of_the_reference_alone_and_of_schemes_without_a_density_below_one() -> None:
    plan = synthetic.plan(grid={"densities": (0.1, 0.3, 1.0), "schemes": ("erk",)})
    found = sheet(plan, entries_of(plan, synthetic.noisy({"erk": -0.01})))
    (crossed,) = found.ranked.rows[0].matching.values()
    assert crossed.low is not None
    only = expand(synthetic.board(), Choice(schemes=("dense",)))
    chosen = select(only, entries_of(synthetic.plan(), lambda w: 0.9))
    assert {who.scheme for who in chosen.places} == {"dense"}


def test_matching_sparsities_where_dense_results_are_equal_and_variances_are_not() -> None:
    plan = synthetic.plan(grid={"densities": (0.05, 0.1, 0.3), "schemes": ("erk",)}, seeds=tuple(range(5)))
    spread = {1.0: 0.0, 0.3: 1e-5, 0.1: 1e-4, 0.05: 0.1}
    found = sheet(plan, entries_of(plan, lambda w: 0.8 + spread[w.context.density] * (w.seeds.run - 2)))
    assert not found.ranked.pooled.homogeneous  # type: ignore[union-attr]
    (crossed,) = found.ranked.rows[0].matching.values()
    assert crossed.low is not None


def test_the_margin_is_of_the_boards_own_metric() -> None:
    plan = synthetic.plan()
    found = sheet(plan, entries_of(plan, synthetic.noisy({"er": -0.05})), metric="nll")
    assert all(row.matching == {} for row in found.rows)


def test_costs_beside_ranks_are_of_the_cells_that_are_ranked() -> None:
    plan = synthetic.plan(grid={"densities": (0.1, 0.3), "schemes": ("erk", "uniform")})
    entries = entries_of(plan, lambda w: 0.9)
    entries = [dataclasses.replace(e, status="infeasible", metrics={}, error="too few", kept=None)
               if e.scheme == "erk" and e.density == 0.1 else e for e in entries]  # fmt: skip
    found = sheet(plan, entries)
    assert found.common is not None
    erk, uniform = (next(r for r in found.common.rows if r.label == label) for label in ("erk", "uniform"))
    assert uniform.mean("flops") == pytest.approx(0.3)
    assert uniform.mean("flops", found.common.contexts) == erk.mean("flops", found.common.contexts)
    assert uniform.cost("scheme_seconds", found.common.contexts) == pytest.approx(0.01)


def test_pairs_are_of_equal_seeds() -> None:
    plan = synthetic.plan(grid={"densities": (0.1,), "schemes": ("erk", "uniform")}, seeds=(0, 1, 2, 3), pairing="seed")
    values = {"dense": 0.95, "erk": 0.9, "uniform": 0.8}
    lost = {("erk", 3), ("uniform", 0)}
    entries = entries_of(
        plan, lambda w: values[w.label] + w.seeds.run / 100 if (w.label, w.seeds.run) not in lost else None
    )
    difference = compare(sheet(plan, entries), "erk", "uniform").difference
    assert difference is not None
    assert difference.se  # seeds 0, 1, 2 beside 1, 2, 3 are no pairs: those would have no spread at all
    whole = entries_of(plan, lambda w: values[w.label] + w.seeds.run / 100)
    assert compare(sheet(plan, whole), "erk", "uniform").difference.se == 0  # type: ignore[union-attr]


def test_divided_batches_are_marked_and_stand_behind_whole_ones() -> None:
    plan = synthetic.plan(grid={"densities": (0.1,), "schemes": ("erk",)})
    entries = entries_of(plan, lambda w: 0.9)
    small = [dataclasses.replace(e, run_id=f"a-{e.run_id}", place=f"a-{e.run_id}", micro_batch=8) for e in entries]
    both = sheet(plan, [*small, *entries])
    assert both.ranked.rows[0].marks == ()
    assert len(both.left_out) == len(small)
    assert sheet(plan, small).ranked.rows[0].marks == ("micro-batches of 8",)
    assert any("micro-batches of 8" in note for note in sheet(plan, small).notes)
    lost = [dataclasses.replace(e, status="failed", error="out of memory", metrics={}) for e in entries]
    assert sheet(plan, [*lost, *small]).ranked.rows[0].marks == ("micro-batches of 8",)


def test_a_file_named_as_a_baseline_is_a_row_of_the_board_that_asks_for_it(tmp_path: Path) -> None:
    own = tmp_path / "erk.py"
    own.write_text(
        "from rpbench import shape_scheme\n\n@shape_scheme\ndef erk(table, density):\n"
        '    """Mine. https://example.org"""\n    return {layer.name: density for layer in table}\n'
    )
    plan = expand(synthetic.board(), Choice(schemes=(str(own),)))
    chosen = select(plan, entries_of(plan, lambda w: 0.9))
    assert not chosen.left_out
    assert [who.source for who in chosen.places] == [w.who.source for w in plan.cells[:1]]


def test_records_of_another_file_of_a_net_are_left_out() -> None:
    plan = synthetic.plan(grid={"schemes": ("erk",)})
    entries = entries_of(plan, lambda w: 0.9)
    changed = [dataclasses.replace(e, model_source="0" * 64) if e.scheme == "erk" else e for e in entries]
    found = sheet(plan, changed)
    assert "of another source of model resnet8 than today's" in {fault.why for fault in found.left_out}
    assert not found.ranked.rows


def test_grids_of_several_seeds_and_other_metrics_are_told_as_they_are() -> None:
    from rpbench.report.tables import board_text, seeds_of

    board = synthetic.board()
    assert seeds_of(board) == "3 seeds"
    two = (board.grids[0], board.grids[0].model_copy(update={"seeds": (0,), "densities": (0.5,)}))
    assert seeds_of(board.model_copy(update={"grids": two})) == "1 or 3 seeds"
    plan = expand(board)
    entries = entries_of(plan, synthetic.noisy({"er": -0.05}))

    def told(style: Any = "term", **asked: Any) -> str:
        return " ".join(board_text(sheet(plan, entries, **asked), style).split())

    assert "a difference of 0.5 between two rows" in told()
    assert "a difference of 0.5" not in told(metric="nll")
    assert "a difference of 0.5" not in told(order="flops")
    assert "in points (but for NLL)" in told("md")
    assert "but for" not in told()
    assert "is told by top-1 alone" in board_text(sheet(plan, entries, metric="nll"), by="model")


def test_latex_marks_single_seeds_and_numbers_of_seeds() -> None:
    from rpbench.report.latex import board_latex

    plan = synthetic.plan(grid={"densities": (0.1, 0.3), "schemes": ("erk", "er")})
    entries = [e for e in entries_of(plan, synthetic.noisy({}))
               if not (e.scheme == "er" and e.seed > 0) and not (e.scheme == "erk" and e.seed == 2)]  # fmt: skip
    told = board_latex(sheet(plan, entries))
    assert "er (1 seed) &" in told
    assert told.count("($n = 2$)") == 2


def test_outputs_that_are_no_archive_are_no_outputs(tmp_path: Path) -> None:
    plan = synthetic.plan(seeds=tuple(range(3)))
    entries = entries_of(plan, synthetic.noisy({"erk": -0.01}))
    for e in entries:
        place = tmp_path / e.place / "outputs" / "selected"
        place.mkdir(parents=True)
        (place / "test.npz").write_bytes(b"PK\x03\x04 broken")
    assert compare(sheet(plan, entries), "erk", "er", tmp_path).examples is None


def test_the_level_of_a_row_is_the_least_of_its_records() -> None:
    plan = synthetic.plan(grid={"densities": (0.1, 0.3), "schemes": ("erk",)}, seeds=(0, 1))

    def level(change: Any, *, without: int = 0) -> str:
        found = [dataclasses.replace(e, **change(e)) for e in entries_of(plan, lambda w: 0.9)]
        (row,) = sheet(plan, found[: len(found) - without]).rows
        return row.level

    def gone(e: Entry, seeds: tuple[int, ...]) -> dict[str, Any]:
        no_result = {"status": "infeasible", "error": "too few weights", "metrics": {}, "last": {}}
        return no_result if (e.scheme, e.density) == ("erk", 0.1) and e.seed in seeds else {}

    assert level(lambda e: {}) == "complete"
    assert level(lambda e: {}, without=1) == "reported"
    assert level(lambda e: {"level": "verified"}) == "verified"
    assert level(lambda e: {"level": "verified"}, without=1) == "verified"
    assert level(lambda e: {"level": "verified" if e.seed else "checked"}) == "checked"
    assert level(lambda e: {"level": "verified" if e.seed else "reported"}) == "complete"
    assert level(lambda e: {"level": "reported" if e.scheme == "dense" else "checked"}) == "checked"
    assert level(lambda e: gone(e, (0, 1))) == "complete"  # that it cannot be met is a result
    assert level(lambda e: gone(e, (1,))) == "complete"
    assert level(lambda e: gone(e, (1,)) | {"level": "checked" if e.status == "ok" else "reported"}) == "checked"
    diverged = {"status": "diverged", "metrics": {}, "last": {}}
    assert level(lambda e: {"level": "checked"} | (diverged if e.seed and e.scheme == "erk" else {})) == "checked"
    assert level(lambda e: diverged if e.seed and e.scheme == "erk" else {}) == "reported"
