"""Boards: every one of the shelf stands for cells, each once; bad ones say everything that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import synthetic
from click.testing import CliRunner

from rpbench.board import Board, Choice, board_names, expand, load_board
from rpbench.cli import main
from rpbench.errors import BadDefinition, UnknownName, UsageError
from rpbench.task import load_task, spec


@pytest.mark.parametrize("name", board_names())
def test_every_board(name: str) -> None:
    board = load_board(name)
    assert board.name == name
    plan = expand(board)
    keys = [w[:3] for w in plan.cells]
    assert len(set(keys)) == len(keys) > 0
    assert plan.specs == {grid.task: spec(load_task(grid.task)) for grid in board.grids}
    assert {w.seeds.run for w in plan.cells} <= set(board.seeds) | {s for g in board.grids for s in g.seeds or ()}
    dense = {w.context[:2] for w in plan.cells if w.label == board.reference}
    assert {c[:2] for c in plan.contexts} <= dense  # every gap has something to be taken to


def test_the_digits_board_has_every_baseline() -> None:
    plan = expand(load_board("digits"))
    assert len(plan.cells) == 225
    assert [c.density for c in plan.contexts] == [0.02, 0.05, 0.1, 0.3]
    assert set(plan.labels.values()) >= {"dense", "erk", "uniform", "snip", "grasp", "igq", "balanced"}
    assert "given" not in plan.labels.values()  # it cannot be run without a file
    assert plan.cells[0].label == "dense"
    assert [w.seeds.run for w in plan.cells] == sorted(w.seeds.run for w in plan.cells)


def test_a_choice_narrows_a_board_and_adds_schemes(tmp_path: Path) -> None:
    own = tmp_path / "mine.py"
    own.write_text(
        "from rpbench import shape_scheme\n\n@shape_scheme\ndef mine(table, density, *, power=1.0):\n"
        '    """Mine. https://example.org"""\n    return {layer.name: density for layer in table}\n'
    )
    board = load_board("digits")
    chosen = expand(board, Choice(schemes=(f"{own}:power=2", "erk"), densities=(0.1,), seeds=(0, 3)))
    assert {(w.label, w.context.density, w.seeds.run) for w in chosen.cells} == {
        (label, 0.1, seed) for label in ("mine:power=2.0", "erk") for seed in (0, 3)
    }
    assert len({w.who.source for w in chosen.cells}) == 2
    for wrong in (Choice(models=("resnet20",)), Choice(densities=(0.2,)), Choice(seeds=(7,))):
        with pytest.raises(UsageError, match="board 'digits' has no"):
            expand(board, wrong)
    with pytest.raises(UnknownName):
        expand(board, Choice(schemes=("ERK",)))


def test_streams_are_varied_apart() -> None:
    plan = synthetic.plan(grid={"vary": ("mask", "init"), "schemes": ("erk",), "densities": (0.1,)})
    seeds = [(w.seeds.run, w.seeds.mask, w.seeds.init, w.seeds.order) for w in plan.cells if w.label == "erk"]
    assert sorted(seeds) == [(0, 0, 0, 0), (0, 0, 1, 0), (0, 0, 2, 0), (0, 1, 0, 0), (0, 2, 0, 0)]
    asked = next(w.asked for w in plan.cells if w.seeds.mask == 2)
    assert (asked["seed"], asked["mask_seed"]) == (0, 2)
    assert "init_seed" not in asked


def test_samplers_are_rows_of_their_own() -> None:
    plan = synthetic.plan(grid={"samplers": ("exact", "scored"), "schemes": ("snip", "erk"), "densities": (0.1,)})
    assert list(plan.labels.values()) == ["dense", "snip", "erk", "snip + scored"]


BAD = """
name = "bad"
version = 0
summary = "x"
url = "x"
seeds = [0, 0]
precison = "fp32"
[[grids]]
task = "digits"
models = ["resnet8"]
densities = [1.5]
"""


def test_every_fault_of_a_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(BAD)
    with pytest.raises(BadDefinition) as caught:
        load_board(str(path))
    for told in ("version", "precison (line 7)", "did you mean 'precision'", "densities"):
        assert told in str(caught.value)
    good = BAD.replace("version = 0", "version = 1").replace("[0, 0]", "[0]").replace("precison", "precision")
    path.write_text(good.replace("1.5", "0.5").replace("resnet8", "resnet9").replace('"digits"', '"digit"'))
    with pytest.raises(BadDefinition, match="no task 'digit': did you mean 'digits'"):
        load_board(str(path))
    path.write_text(good.replace("1.5", "0.5").replace("resnet8", "resnet9") + 'schemes = ["erk", "nothing"]\n')
    with pytest.raises(BadDefinition, match="2 faults.*no model 'resnet9'.*no scheme 'nothing'"):
        load_board(str(path))
    path.write_text(good.replace("densities = [1.5]", ""))
    with pytest.raises(BadDefinition, match="densities are missing"):
        load_board(str(path))
    with pytest.raises(ValueError, match="seeds must differ"):
        Board.model_validate(synthetic.board().model_dump() | {"seeds": (1, 1)})


def test_a_task_file_stands_beside_its_board(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text((Path("tasks") / "digits.toml").read_text().replace('"digits"', '"tiny"', 1))
    (tmp_path / "b.toml").write_text(BAD.replace("version = 0", "version = 1").replace("[0, 0]", "[0]")
                                     .replace("precison", "precision").replace("1.5", "0.5")
                                     .replace('task = "digits"', 'task = "tiny.toml"'))  # fmt: skip
    assert expand(load_board(str(tmp_path / "b.toml"))).contexts[0].task == "tiny"


def test_boards_are_listed() -> None:
    done = CliRunner().invoke(main, ["list", "boards"])
    assert done.exit_code == 0
    assert "digits" in done.output
    assert "cifar10-cpu" in CliRunner().invoke(main, ["show", "cifar10-cpu"]).output


def test_a_sampler_of_a_grid_leaves_the_reference_and_cells_that_are_there() -> None:
    drawn = synthetic.plan(grid={"samplers": ("bernoulli",), "schemes": ("erk",)})
    assert {w.label for w in drawn.cells} == {"dense", "erk + bernoulli"}
    scored = synthetic.plan(grid={"samplers": ("scored",), "schemes": ("erk",)})
    assert {w.label for w in scored.cells} == {"dense"}
    assert scored.contexts == ()  # what no cell stands in is not compared


def test_one_seed_of_a_varied_board_is_one_of_its_cells() -> None:
    for vary in (("mask", "init"), ("mask",)):
        board = synthetic.board(grid={"vary": vary, "schemes": ("erk",), "densities": (0.1,)}, seeds=(0, 1, 2))
        whole = {w[:3] for w in expand(board).cells}
        assert any(who.scheme == "dense" for _, who, _ in whole)
        for seed in (0, 1):
            some = {w[:3] for w in expand(board, Choice(seeds=(seed,))).cells}
            assert some < whole
            assert len([w for w in some if w[1].scheme == "erk"]) == (1 if seed == 0 else len(vary))
