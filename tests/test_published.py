"""The published leaderboard: what ships is whole, loads with `datasets`, and its tables are those of its records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import synthetic
from click.testing import CliRunner

from rpbench.board import expand, load_board
from rpbench.cli import main
from rpbench.entries import read_lines, read_store
from rpbench.errors import StoreError, UsageError
from rpbench.published import CARD, PAGE, columns, publish, published_boards, read_board, root_of, stale
from rpbench.ranking import score
from rpbench.selection import select

ROOT = root_of()


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """A store with some of the digits board, one record off protocol."""
    plan = expand(load_board("digits"))
    value = synthetic.noisy({"erk": -0.01})
    synthetic.fill(tmp_path / "runs", plan, lambda w: value(w) if w.label in ("dense", "erk", "snip") else None)
    off = synthetic.record(plan, plan.cells[0], 0.9, run_id="off", protocol={"on": False})
    synthetic.write(tmp_path / "runs", off)
    return tmp_path / "runs"


def test_publishing_is_whole_and_again_is_nothing(digits: Path, tmp_path: Path) -> None:
    root = tmp_path / "leaderboard"
    root.mkdir()
    done = publish("digits", digits, root)
    assert done.files == {"dense.jsonl": 5, "erk.jsonl": 20, "snip.jsonl": 20}
    assert [(fault.place, fault.why[:12]) for fault in done.left_out] == [("off", "off protocol")]
    before = {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
    publish("digits", digits, root)
    assert {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()} == before
    plan = expand(load_board("digits"))
    found = read_board("digits", root)
    assert not found.faults
    own = score(plan, select(plan, read_store(digits).entries))
    assert [r.score for r in score(plan, select(plan, found.entries)).rows] == [r.score for r in own.rows]
    row = json.loads((root / "digits" / "erk.jsonl").read_text().splitlines()[0])
    assert list(row) == list(columns(plan))
    assert row["record"]
    assert "curve" not in row


def test_boards_of_ones_own_are_not_published(digits: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text((Path(__file__).resolve().parent.parent / "tasks" / "boards" / "digits.toml").read_text())
    with pytest.raises(UsageError, match="is not on the shelf"):
        publish(str(own), digits, tmp_path / "leaderboard")
    assert not (tmp_path / "leaderboard").exists()


def test_publishing_keeps_what_is_there(digits: Path, tmp_path: Path) -> None:
    root = tmp_path / "leaderboard"
    root.mkdir()
    publish("digits", digits, root)
    plan = expand(load_board("digits"))
    more = tmp_path / "more"
    one = next(w for w in plan.cells if w.label == "erk")
    synthetic.write(more, synthetic.record(plan, one, 0.123))
    synthetic.write(more, synthetic.record(plan, next(w for w in plan.cells if w.label == "er"), 0.9))
    assert publish("digits", more, root).files == {"er.jsonl": 1, "erk.jsonl": 20}
    assert 0.123 in [e.metrics["top1"] for e in read_lines(root / "digits" / "erk.jsonl").entries]
    with pytest.raises(StoreError, match="no record of board 'fig1'"):
        publish("fig1", digits, root)
    kept = (root / "digits" / "erk.jsonl").read_text() + '{"record": "odd"}\n'
    (root / "digits" / "erk.jsonl").write_text(kept)
    with pytest.raises(StoreError, match="erk.jsonl:21: .*mend or remove this line"):
        publish("digits", more, root)
    assert (root / "digits" / "erk.jsonl").read_text() == kept
    own = tmp_path / "own.toml"  # a board of one's own has what it shares with the published ones
    own.write_text((ROOT.parent / "tasks" / "boards" / "digits.toml").read_text().replace('"digits"', '"own"', 1))
    assert "own@1" in CliRunner().invoke(main, ["report", str(own), "--leaderboard"]).output


def load(root: Path, board: str, cache: Path) -> list[dict[str, object]]:
    import datasets

    before = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bar()
    try:
        return list(datasets.load_dataset(str(root), board, split="train", cache_dir=str(cache)))
    finally:
        if before:
            datasets.enable_progress_bar()


def test_it_loads_with_datasets(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    root = tmp_path / "leaderboard"
    root.mkdir()
    publish("digits", digits, root)
    rows = load(root, "digits", tmp_path / "cache")
    assert len(rows) == 45
    assert {row["scheme"] for row in rows} == {"dense", "erk", "snip"}
    assert all(isinstance(row["top1"], float) and isinstance(row["seed"], int) for row in rows)


@pytest.mark.parametrize("board", published_boards(ROOT))
def test_what_ships(board: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    plan = expand(load_board(board))
    found = read_board(board)
    assert not found.faults
    sheet = score(plan, select(plan, found.entries))
    assert not sheet.left_out  # nothing is stale, off protocol or doubled
    assert sheet.ranked.rows
    assert len(load(ROOT, board, tmp_path)) == len(found.entries)


def test_the_digits_board_ships_complete() -> None:
    if "digits" not in published_boards(ROOT):
        pytest.skip("not published yet")
    plan = expand(load_board("digits"))
    sheet = score(plan, select(plan, read_board("digits").entries))
    assert len(sheet.ranked.rows) == len(plan.labels) - 1
    assert (sheet.incomplete, sheet.not_run) == ((), ())
    assert all(c.group and c.group.n == 5 for row in sheet.ranked.rows for c in row.cells)


def test_card_and_page_are_those_of_the_records() -> None:
    assert not stale(ROOT), "rpbench publish --refresh makes them anew"
    assert (ROOT / PAGE).stat().st_size < 500_000


def test_reports_read_the_leaderboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["report", "--leaderboard"])
    assert done.exit_code == 0, done.output
    assert "digits@1" in done.output


def test_own_rows_stand_beside_the_published(tmp_path: Path) -> None:
    """A scheme of one's own is swept alone, and has its place in the published table."""
    plan = expand(load_board("digits"))
    mine = [w._replace(who=w.who._replace(scheme="mine", source="1" * 64)) for w in plan.cells if w.label == "erk"]
    for w in mine:
        synthetic.write(tmp_path, synthetic.record(plan, w, 0.97, run_id=f"mine-{w.context.density:g}-{w.seeds.run}"))
    done = CliRunner().invoke(main, ["report", "digits", "--leaderboard", "--store", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "has 100,000 prunable weights" in done.output  # of another net than the published: left out, and told
    assert CliRunner().invoke(main, ["report", "digits", "--leaderboard", "--format", "csv"]).exit_code == 0


def test_tables_alone_are_made_anew(digits: Path, tmp_path: Path) -> None:
    root = tmp_path / "leaderboard"
    root.mkdir()
    publish("digits", digits, root)
    command = ["publish", "--refresh", "--root", str(root)]
    assert CliRunner().invoke(main, command).stdout == "nothing to do\n"
    whole = (root / PAGE).read_bytes()
    (root / PAGE).write_text("<<<<<<< a merge")
    assert set(stale(root)) == {PAGE}
    assert CliRunner().invoke(main, command).stdout == f"made anew: {root / PAGE}\n"
    assert (root / PAGE).read_bytes() == whole
    (root / "digits" / "snip.jsonl").unlink()
    assert set(stale(root)) == {CARD, PAGE}
    for wrong in ([*command[:-1], str(tmp_path / "no")], ["publish"], ["publish", "digits", "--refresh"]):
        assert CliRunner().invoke(main, wrong).exit_code == 2
