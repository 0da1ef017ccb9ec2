"""Reports: every format of a board, the same bytes from the same records, at most 80 columns on a terminal."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import synthetic
from click.testing import CliRunner

from rpbench.board import Board, Wanted, expand
from rpbench.cli import main
from rpbench.comparison import Comparison, beside
from rpbench.entries import read_store
from rpbench.ranking import score
from rpbench.report.tables import board_text
from rpbench.selection import select
from rpbench.stats import Estimate

TEXT = """
name = "shown"
version = 1
summary = "rows of every kind"
url = "https://example.org"
seeds = [0, 1, 2]

[[grids]]
task = "digits"
models = ["resnet8", "resnet8-32"]
densities = [0.05, 0.1, 0.3]
schemes = ["erk", "uniform", "er", "igq", "balanced", "snip"]
"""
FORMATS = ("term", "md", "csv", "csv-wide", "latex", "html", "json")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A board's file and a store: complete rows, an incomplete, an infeasible, a single-seed and a left-out one."""
    folder = tmp_path_factory.mktemp("shown")
    path, store = folder / "shown.toml", folder / "runs"
    path.write_text(TEXT)
    from rpbench.board import load_board

    plan = expand(load_board(str(path)))
    value = synthetic.noisy({"erk": -0.01, "uniform": -0.02, "er": -0.021, "igq": -0.012, "snip": -0.03})

    def top1(w: Wanted) -> float | None:
        told = value(w)
        if w.label == "er" and w.context.density == 0.3 and w.seeds.run == 1:
            return None
        return told if w.label != "snip" or w.seeds.run == 0 else None

    for w in plan.cells:
        if w.label == "balanced" and w.context.density == 0.05:
            gone = {"status": "infeasible", "error": "the least density is 0.07", "metrics": {}, "last": {}}
            cell = synthetic.record(plan, w, 0.9, **gone)
            synthetic.write(store, cell | {"metrics": {}, "last": {}})
        elif (found := top1(w)) is not None:
            synthetic.write(store, synthetic.record(plan, w, found))
    off = synthetic.record(
        plan, plan.cells[4], 0.9, run_id="off", protocol={"on": False, "overrides": {"recipe.lr": 1}}
    )
    synthetic.write(store, off)
    return path, store


def report(shown: tuple[Path, Path], *more: str) -> str:
    done = CliRunner().invoke(main, ["report", str(shown[0]), "--store", str(shown[1]), *more])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def elsewhere(shown: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Every format from a copy of the records, in a process with another order of hashes and another clock."""
    copy = tmp_path_factory.mktemp("copy")
    for path in sorted(shown[1].glob("*/record.json"), reverse=True):
        (copy / path.parent.name).mkdir()
        (copy / path.parent.name / "record.json").write_bytes(path.read_bytes())
    code = (
        "import sys; from rpbench.cli import main\n"
        f"for form in {FORMATS}:\n"
        "    main(['report', sys.argv[1], '--store', sys.argv[2], '--format', form], standalone_mode=False)\n"
        "    print(end='\\0')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(shown[0]), str(copy)],
        capture_output=True,
        text=True,
        env={"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "PATH": "", "LANG": "C.UTF-8"},
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(FORMATS, done.stdout.split("\0")[:-1], strict=True))


@pytest.mark.parametrize("form", FORMATS)
def test_the_same_records_give_the_same_bytes(form: str, shown: tuple[Path, Path], elsewhere: dict[str, str]) -> None:
    first = report(shown, "--format", form)
    assert elsewhere[form] == first
    for name in ("erk", "uniform", "igq", "snip"):
        assert name in first


def test_a_terminal_has_eighty_columns(shown: tuple[Path, Path]) -> None:
    for more in ((), ("--by", "model"), ("--order", "flops"), ("--metric", "ece"), ("--metric", "nll")):
        text = report(shown, *more)
        assert max(len(line) for line in text.splitlines()) <= 80, more
    text = report(shown)
    for told in (
        "snip (1 seed)",
        "er: digits resnet8 0.3: seed 1",
        "the least density is 0.07",
        "off protocol: recipe.lr=1",
        "On the 4 cells of 6 that are feasible for all",
        "Largest matching sparsity",
        "seed sd",
    ):
        assert told in " ".join(text.split())


def test_csv_can_be_read(shown: tuple[Path, Path]) -> None:
    rows = list(csv.DictReader(io.StringIO(report(shown, "--format", "csv"))))
    assert {row["row"] for row in rows} == {"dense", "erk", "uniform", "er", "igq", "balanced", "snip"}
    assert all(0 < float(row["top1"]) < 1 for row in rows)
    wide = list(csv.DictReader(io.StringIO(report(shown, "--format", "csv-wide"))))
    assert [row["row"] for row in wide][:2] == ["erk", "igq"]
    assert float(wide[0]["gap_low"]) < float(wide[0]["gap"]) < float(wide[0]["gap_high"]) < 0
    assert next(row for row in wide if row["row"] == "er")["lacks"].endswith("seed 1")


def test_json_says_everything(shown: tuple[Path, Path]) -> None:
    told = json.loads(report(shown, "--format", "json"))
    assert told["schema"] == "rpbench.report/1"
    assert [row["label"] for row in told["ranked"]["rows"]][:2] == ["erk", "igq"]
    assert told["left_out"][0]["record"] == "off"
    assert told["common"]["rows"]
    ranks = {row["label"]: row["rank"] for row in told["ranked"]["rows"]}
    assert ranks["uniform"][0] > ranks["erk"][0]


def test_latex_marks_the_best(shown: tuple[Path, Path]) -> None:
    text = report(shown, "--format", "latex")
    assert text.count(r"\begin{table}") == 2
    assert text.count(r"\textbf{\num{") >= 6
    assert text.count(r"\underline{\num{") >= 6
    for told in (r"\usepackage{booktabs}", r"\usepackage{siunitx}", "@inproceedings{liu2022", "n = 3 seeds", "95 \\%"):
        assert told in text
    assert text.count("{") == text.count("}")


def test_every_form_tells_the_level(shown: tuple[Path, Path]) -> None:
    levels = {"uniform": "complete", "er": "reported", "snip": "reported", "igq": "complete"}
    text = report(shown)
    assert "reported < complete < checked < verified" in " ".join(text.split())
    assert next(line.split()[-1] for line in text.splitlines() if line.startswith("uniform")) == "complete"
    table = [line for line in report(shown, "--format", "md").splitlines() if line.startswith("|")]
    assert any("level" in line for line in table)
    assert any(line.split("|")[2].strip() == "uniform" and line.split("|")[-2].strip() == "complete" for line in table)
    wide = csv.DictReader(io.StringIO(report(shown, "--format", "csv-wide")))
    assert levels.items() <= {row["row"]: row["level"] for row in wide}.items()
    long = csv.DictReader(io.StringIO(report(shown, "--format", "csv")))
    assert {row["level"] for row in long} == {"reported"}  # of a record: a store vouches for nothing
    told = json.loads(report(shown, "--format", "json"))
    assert levels.items() <= {row["label"]: row["level"] for row in told["rows"]}.items()
    latex = report(shown, "--format", "latex")
    assert "& Level" in latex
    assert any(line.strip().startswith("uniform") and "complete" in line for line in latex.splitlines())
    assert '"complete"' in report(shown, "--format", "html")


def test_a_report_is_written_whole_or_not_at_all(shown: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "report.md"
    report(shown, "--format", "md", "--out", str(out))
    assert out.read_text().startswith("## shown@1: rows of every kind")
    done = CliRunner().invoke(
        main, ["report", str(shown[0]), "--store", str(shown[1]), "--out", str(tmp_path / "no" / "x.md")]
    )
    assert done.exit_code == 2
    assert "cannot be written" in done.output


def test_the_suffix_of_a_file_names_its_format(shown: tuple[Path, Path], tmp_path: Path) -> None:
    begins = {".html": "<!doctype", ".md": "## shown@1", ".tex": "%", ".json": "{", ".csv": "board,", ".txt": "shown@1"}
    for suffix, start in begins.items():
        out = tmp_path / f"report{suffix}"
        report(shown, "--out", str(out))
        assert out.read_text().startswith(start)
    report(shown, "--out", str(tmp_path / "x.html"), "--format", "md")  # what is said goes first
    assert (tmp_path / "x.html").read_text().startswith("## shown@1")
    wrong = ["report", str(shown[0]), "--store", str(shown[1]), "--out", str(tmp_path / "x.pdf")]
    assert "name the figure, as --figure" in CliRunner().invoke(main, wrong).output
    assert not (tmp_path / "x.pdf").exists()


def test_a_pair_alone_and_among_all_pairs(shown: tuple[Path, Path]) -> None:
    def compare(a: str, b: str) -> str:
        done = CliRunner().invoke(main, ["compare", a, b, "--board", str(shown[0]), "--store", str(shown[1])])
        return done.output

    assert "at once" not in compare("erk", "uniform")  # the places show the same
    assert "dense is above erk by" in compare("erk", "dense")
    apart = Comparison("b", "top1", "erk", "er", Estimate(1.0, 0.1, 20.0), (), 3, None, 5, None, pairs=10)
    assert beside(apart) == "this pair alone; rpbench report judges 10 pairs at once (Holm)"
    assert beside(replace(apart, tied=True)).endswith("(Holm), and does not separate it")
    assert beside(replace(apart, tied=False)) == beside(replace(apart, pairs=1)) == ""
    assert beside(replace(apart, tied=True, difference=Estimate(0.1, 0.1, 20.0))) == ""


def test_matching_sparsities_of_every_net(tmp_path: Path) -> None:
    nets = ("resnet8", "resnet14", "resnet20", "resnet8-32")
    plan = synthetic.plan(grid={"models": nets})
    synthetic.fill(tmp_path, plan, synthetic.noisy({}))
    found = read_store(tmp_path)
    text = board_text(score(plan, select(plan, found.entries)))
    told = text[text.index("Largest matching") :]
    assert all(f"digits {one}" in told for one in nets)
    assert max(map(len, told.splitlines())) <= 80


def test_less_is_said_to_be_better(shown: tuple[Path, Path]) -> None:
    assert "ECE (less is better) of the epoch" in " ".join(report(shown, "--metric", "ece").split())
    assert "less is better" not in report(shown)


def test_figures(shown: tuple[Path, Path], tmp_path: Path) -> None:
    done = CliRunner().invoke(
        main, ["report", "--store", str(shown[1]), "--figure", "digits", "--out", str(tmp_path / "f.svg")]
    )
    assert done.exit_code == 0, done.output
    assert (tmp_path / "f.svg").read_text().startswith("<?xml")
    for wrong, told in ((["--figure", "fig99"], "no figure 'fig99'"), (["--figure", "fig1", "--out", "x.gif"], ".gif")):
        done = CliRunner().invoke(main, ["report", "--store", str(shown[1]), *wrong])
        assert done.exit_code == 2
        assert told in done.output


def test_where_luck_comes_from(tmp_path: Path) -> None:
    plan = expand(Board.model_validate(
        synthetic.board(grid={"vary": ("mask", "init", "order"), "schemes": ("erk",), "densities": (0.1,)},
                        seeds=tuple(range(8))).model_dump()))  # fmt: skip
    from rpbench.entries import read_store
    from rpbench.ranking import score
    from rpbench.report.tables import board_text
    from rpbench.selection import select

    synthetic.fill(tmp_path, plan, lambda w: 0.9 + 0.01 * (w.seeds.mask % 3) + 0.001 * (w.seeds.init % 3))
    found = score(plan, select(plan, read_store(tmp_path).entries))
    (row,) = found.rows
    mask, init, order = (row.luck[name] for name in ("mask", "init", "order"))
    assert mask is not None
    assert init is not None
    assert order is not None
    assert mask.var == pytest.approx(100 * init.var)
    assert order.var == pytest.approx(0, abs=1e-12)
    assert "Where luck comes from" in board_text(found)
