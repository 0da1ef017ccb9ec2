"""Figures of a board: what is drawn where, every board of the shelf, and equal bytes for equal records."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from drawn_entries import curve, entries, entry

from rpbench.board import Board, Figure, Part, Plan, board_names, expand, load_board
from rpbench.entries import Entry
from rpbench.errors import BadDefinition, UnknownName, UsageError
from rpbench.report.figures import NARROW, draw, draw_figures, figure_names, find_figure
from rpbench.report.reported import best, reported
from rpbench.report.series import Panel, panels, read_flow
from rpbench.selection import select
from rpbench.stats import t_interval

CELLS = {
    "cifar10-core": 204, "cifar10-cpu": 69, "cifar100-core": 204, "digits": 225, "digits-samplers": 110,
    "fig1": 555, "fig2": 666, "fig5": 50, "fig6": 34, "fig7": 108, "fig8": 690, "fig9": 828, "fig10": 555,
    "fig11": 333, "fig12": 333, "fig13": 333, "fig14": 17, "luck": 103,
}  # fmt: skip


def test_counts_of_every_board() -> None:
    """A changed number means that a board has changed: its version has to rise."""
    assert {name: len(expand(load_board(name)).cells) for name in board_names()} == CELLS


@pytest.mark.parametrize("name", board_names())
def test_every_board(name: str) -> None:
    board = load_board(name)
    plan = expand(board)
    assert board.name == name
    assert len({cell[:3] for cell in plan.cells}) == len(plan.cells)
    assert {cell.context.task for cell in plan.cells} == set(plan.specs)
    for figure in board.figures:
        empty = panels(plan, select(plan, []), figure)
        full = panels(plan, select(plan, entries(plan, curve)), figure)
        assert [p.title for p in empty] == [p.title for p in full]
        assert not any(p.measured for p in empty)
        if all(p.part.x != "step" for p in full):
            assert all(p.measured and p.lines for p in full)


def cells(name: str) -> set[object]:
    return {cell[:3] for cell in expand(load_board(name)).cells}


def test_boards_share_cells() -> None:
    assert cells("fig1") < cells("fig8")
    assert cells("fig2") < cells("fig9")
    assert cells("fig7") < cells("fig1") | cells("fig2")
    assert cells("fig11") & cells("fig10")
    for name in ("fig8", "fig9"):
        whole, part = cells(name), cells({"fig8": "fig1", "fig9": "fig2"}[name])
        assert {c[1].scheme for c in whole - part} == {"grasp"}  # type: ignore[index]
    # asked for in the same words: one folder of the store
    asked = {c[:3]: c.asked for c in expand(load_board("fig1")).cells}
    for cell in expand(load_board("fig8")).cells:
        assert asked.get(cell[:3], cell.asked) == cell.asked


def test_names_of_figures() -> None:
    names = figure_names()
    assert {f"fig{i}" for i in range(1, 18)} <= set(names)
    assert find_figure("fig3")[0].name == "fig1"
    with pytest.raises(UnknownName, match="no figure 'fig33': did you mean 'fig3'.*fig17"):
        find_figure("fig33")


def test_faults_of_figures_are_reported_together(tmp_path: Path) -> None:
    text = Path(load_file("digits")).read_text()
    text += (
        '\n[[figures]]\nname = "a"\ncaption = ""\nparts = [{ y = "auroc/svhn" }, { models = ["resnet9"] }]\n'
        '[[figures]]\nname = "a"\ncaption = ""\nparts = [{ x = "step" }]\n'
    )
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(BadDefinition) as told:
        load_board(str(path))
    for part in ("4 faults", "no 'auroc/svhn'", "no resnet9", "a second 'a'", "no 'top1' on this board, but global_l2"):
        assert part in str(told.value)


def load_file(name: str) -> str:
    from rpbench.catalog import definition

    return str(definition("board", "tasks.boards", name))


# --- what stands where ----------------------------------------------------------------------------------------------


def made(name: str, keep: object = None) -> tuple[Plan, list[Entry]]:
    plan = expand(load_board(name))
    return plan, [e for e in entries(plan, curve) if keep is None or keep(e)]  # type: ignore[operator]


def drawn(plan: Plan, found: list[Entry], part: Part, store: Path | None = None) -> list[Panel]:
    return panels(plan, select(plan, found), Figure(name="f", caption="", parts=(part,)), store)


def test_means_and_intervals_over_seeds() -> None:
    plan, found = made("fig1")
    panel = drawn(plan, found, Part(models=("resnet56",)))[0]
    line = next(x for x in panel.lines if x.keys == ("erk",))
    own = [e for e in found if (e.model, e.scheme, e.density) == ("resnet56", "erk", 0.1)]
    values = [100 * e.metrics["top1"] for e in own]
    point = line.points[-1]
    assert point.x == 0.9
    assert point.y == pytest.approx(sum(values) / 3)
    assert (point.low, point.high) == pytest.approx(t_interval(values))
    assert [p.x for p in line.points] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert panel.band is not None
    assert panel.band.n == 3


def test_a_single_seed_has_no_interval() -> None:
    plan, found = made("fig1", lambda e: e.seed == 0)
    panel = drawn(plan, found, Part(models=("resnet20",)))[0]
    assert {(p.low, p.high, p.n) for line in panel.lines for p in line.points} == {(None, None, 1)}
    assert panel.band is not None
    assert panel.band.low is None


def test_references_stand_in_every_panel_of_their_net() -> None:
    plan, found = made("fig7")
    whole = drawn(plan, found, Part(x="params", panels=("scheme",), lines=("density",)))
    assert [p.title for p in whole] == ["erk", "snip"]
    for panel in whole:
        dense = next(line for line in panel.lines if line.keys == ("dense",))
        assert len(dense.points) == 4
        assert [line.keys[0] for line in panel.lines[1:]] == [f"{s} % sparse" for s in (30, 50, 70, 90)]
    # half the weights of a net, and what is never pruned
    half = next(line for line in whole[0].lines if line.keys == ("50 % sparse",))
    assert half.points[0].x == pytest.approx((67_992 / 2 + 1_578) / 1e6)


def test_density_of_the_last_layer_is_one_line() -> None:
    plan, found = made("fig14")
    left, right = panels(plan, select(plan, found), plan.board.figures[0])
    (line,) = left.lines
    assert [p.x for p in line.points] == [0.0, 0.1, 0.4, 0.5, 0.8]
    assert left.band is not None
    dense = right.lines[0]
    assert (dense.keys, len(dense.points)) == (("dense",), 3)
    assert [len(line.points) for line in right.lines[1:]] == [3, 3, 3]


def test_luck_tells_streams_apart() -> None:
    plan, found = made("luck")
    for panel in drawn(plan, found, Part(x="stream", panels=("scheme",))):
        (line,) = panel.lines
        assert [(p.x, p.n) for p in line.points] == [(0, 10), (1, 10), (2, 10)]


def test_infeasible_cells_are_marked() -> None:
    plan = expand(load_board("digits"))
    wanted = next(c for c in plan.cells if c.label == "smart" and c.context.density == 0.02)
    made_of = [entry(plan, wanted, {}, "none", status="infeasible")]
    panel = drawn(plan, made_of, Part())[0]
    assert panel.lines[0].infeasible == (0.98,)
    assert panel.measured


def test_gradient_flow(tmp_path: Path) -> None:
    plan, found = made("fig6", lambda e: e.model == "resnet20")
    for e in found:
        folder = tmp_path / e.run_id
        folder.mkdir()
        rows = [{"epoch": 1, "step": s, "global_l2": s + e.seed, "layer_mean_l2": 0, "mean_abs": 0} for s in (1, 2, 3)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "gradient_flow.jsonl").write_text(text + '{"step": 2, "global_l2": NaN}\n{"step": 4, "glo')
    panel = drawn(plan, found, Part(x="step", y="global_l2", models=("resnet20",), last=2), tmp_path)[0]
    assert [line.keys for line in panel.lines] == [("dense",), ("erk",), ("snip",)]
    for line in panel.lines:
        assert [(p.x, p.y) for p in line.points] == [(0.001, 2.0), (0.002, 3.0)]
        assert line.bounds == ((0.001, 1.0, 3.0), (0.002, 2.0, 4.0))
    assert read_flow(tmp_path / "nowhere", "global_l2") == {}


def test_long_flows_are_averaged(tmp_path: Path) -> None:
    plan, found = made("fig6", lambda e: e.model == "wrn50" and e.scheme == "dense")
    (tmp_path / found[0].run_id).mkdir()
    lines = "".join(f'{{"step": {s}, "global_l2": {s % 2}}}\n' for s in range(10_000))
    (tmp_path / found[0].run_id / "gradient_flow.jsonl").write_text(lines)
    panel = drawn(plan, found, Part(x="step", y="global_l2", models=("wrn50",)), tmp_path)[0]
    points = panel.lines[0].points
    assert len(points) == 400
    assert all(abs(p.y - 0.5) < 0.03 for p in points)
    assert all(a.x < b.x for a, b in pairwise(points))


def test_papers_values_stand_behind_their_cells() -> None:
    plan, found = made("fig1", lambda e: e.model == "resnet20")
    first, *others = drawn(plan, found, Part())
    assert {line.keys[0] for line in first.known} == {"uniform", "uniform_plus", "erk", "snip"}
    assert first.level == pytest.approx(92.37)  # printed, before digitised
    erk = next(line for line in first.known if line.keys == ("erk",))
    assert {p.x: p.y for p in erk.points}[0.5] == pytest.approx(91.57)
    assert all(p.known and not p.measured for p in others)
    assert not drawn(plan, found, Part(y="ece"))[0].known


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [pytest.param("pdf", marks=pytest.mark.slow), "svg", "png"])
def test_equal_records_give_equal_bytes(tmp_path: Path, suffix: str) -> None:
    board = load_board("fig7")
    _, found = made("fig7")
    one, two = tmp_path / f"one.{suffix}", tmp_path / f"two.{suffix}"
    draw(board, board.figures[0], found, one)
    draw(board, board.figures[0], found[::-1], two)
    assert one.read_bytes() == two.read_bytes()
    assert one.stat().st_size > 5_000
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from drawn_entries import *; from rpbench.board import *; from rpbench.report.figures import draw\n"
        "board = load_board('fig7'); plan = expand(board)\n"
        "draw(board, board.figures[0], list(entries(plan, curve)), Path(sys.argv[2]))\n"
        "assert 'matplotlib.pyplot' not in sys.modules and 'torch' not in sys.modules\n"
    )
    three = tmp_path / f"three.{suffix}"
    root = str(Path(__file__).resolve().parent)
    environment = os.environ | {"PYTHONHASHSEED": "7", "SOURCE_DATE_EPOCH": "1", "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, "-c", code, root, str(three)], check=True, env=environment)
    assert one.read_bytes() == three.read_bytes()


@pytest.mark.slow
def test_every_kind_of_figure_is_drawn(tmp_path: Path) -> None:
    for name in ("fig2-width", "fig6", "fig14", "luck"):
        board, figure = find_figure(name)
        plan = expand(board)
        for width in (6.9, NARROW):
            draw(board, figure, list(entries(plan, curve)), tmp_path / f"{name}.png", width=width)
            draw(board, figure, [], tmp_path / "none.png", width=width)
            for path in (tmp_path / f"{name}.png", tmp_path / "none.png"):
                assert path.read_bytes().startswith(b"\x89PNG")


def test_drawing_leaves_no_settings_behind(tmp_path: Path) -> None:
    import matplotlib

    settings = [key for key in matplotlib.rcParams if not key.startswith("backend")]
    before = {key: matplotlib.rcParams[key] for key in settings}
    board, figure = find_figure("fig14")
    draw(board, figure, [], tmp_path / "a.png")
    assert {key: matplotlib.rcParams[key] for key in settings} == before


def test_hostile_names_are_drawn_as_text(tmp_path: Path) -> None:
    board = load_board("digits")
    plan, found = made("digits", lambda e: e.scheme in ("dense", "erk"))
    names = ("$x", "$a_b^$", "_hidden", "<script>", "汉字", "a" * 300, "50 %\n")
    found += [
        replace(e, scheme=name, scheme_source="f" * 64, run_id=f"{i}-{e.run_id}")
        for i, name in enumerate(names)
        for e in found
        if e.scheme == "erk"
    ]
    panel = drawn(plan, found, Part())[0]
    assert len(panel.lines) == 1 + len(names)
    draw(board, board.figures[0], found, tmp_path / "a.svg")
    assert b"<script>" not in (tmp_path / "a.svg").read_bytes()


def test_draw_figures(tmp_path: Path) -> None:
    own = load_board("digits").model_copy(update={"figures": (Figure(name="fig7", caption="mine"),)})
    paths = draw_figures(own, ["fig7", "fig14", "fig7"], [], None, tmp_path / "new", ".svg")
    assert paths == [tmp_path / "new" / "fig7.svg", tmp_path / "new" / "fig14.svg"]
    assert b"mine" in paths[0].read_bytes()
    with pytest.raises(UsageError, match=r"'fig1\.jpg': its suffix must be one of \.pdf, \.svg, \.png"):
        draw_figures(None, ["fig1"], [], None, tmp_path, "jpg")
    with pytest.raises(UnknownName):
        draw_figures(None, ["fig77"], [], None, tmp_path, "png")


# --- reported values ------------------------------------------------------------------------------------------------


def test_reported_values_belong_to_cells_of_boards() -> None:
    values = reported()
    assert len(values) == 201
    boards = [expand(load_board(name)) for name in ("fig1", "fig6")]
    known = {(*c.context, c.who.scheme) for plan in boards for c in plan.cells}
    assert {(v.task, v.model, v.density, v.scheme) for v in values} <= known
    assert len({(v.cell, v.how) for v in values}) == len(values)
    assert all(0 < v.value < 1 and 0 < v.tolerance < 0.001 and v.differences for v in values)
    # where both are known, the digitised value is within its tolerance of the printed one
    printed = {v.cell: v for v in values if v.how == "printed"}
    for v in values:
        if v.how == "digitised" and v.cell in printed:
            assert abs(v.value - printed[v.cell].value) <= v.tolerance + printed[v.cell].tolerance
            assert best(values)[v.cell] is printed[v.cell]


def test_tasks_expect_what_is_reported() -> None:
    found = best(reported())
    for name in ("fig1", "fig5"):
        for task in expand(load_board(name)).tasks.values():
            assert task.expected
            for e in task.expected:
                assert found[task.name, e.model, e.scheme, e.density, e.metric].value == pytest.approx(e.value)


def test_reported_values_are_the_golden_ones(golden: Path) -> None:
    numbers = json.loads((golden / "paper_numbers.json").read_text())
    models = {f"ResNet-{a}": f"resnet{a}" for a in (20, 32, 44, 56, 110)} | {"Wide ResNet-50 (x2)": "wrn50"}
    schemes = {"Dense": "dense", "Uniform": "uniform", "Uniform+": "uniform_plus", "ERK": "erk", "SNIP ratio": "snip"}
    wanted = set()
    for row in numbers["exact"]:
        key = (models[row["model"]], schemes[row["scheme"]], round(row["sparsity"], 6))
        wanted.add(("printed", *key, row["value"], 0.005))
    for model, rows in numbers["fig1_digitized"]["values"].items():
        for scheme, points in rows.items():
            for sparsity, p in ({"0": points} if scheme == "Dense" else points).items():
                key = (models[model], schemes[scheme], float(sparsity))
                wanted.add(("digitised", *key, p["acc"], p["tol"]))
    ours = {
        (v.how, v.model, v.scheme, round(1 - v.density, 6), round(100 * v.value, 5), round(100 * v.tolerance, 5))
        for v in reported()
    }
    assert ours == wanted


def test_a_board_of_ones_own_draws_its_figures(tmp_path: Path) -> None:
    text = Path(load_file("digits")).read_text()
    path = tmp_path / "mine.toml"
    path.write_text(text.replace('name = "digits"', 'name = "mine"'))
    board: Board = load_board(str(path))
    assert draw_figures(board, ["mine"], [], None, tmp_path, "pdf")[0].is_file()
