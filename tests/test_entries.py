"""Records as boards read them: each bad one is named in a line and loses no other; an index saves reading."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import synthetic
from click.testing import CliRunner

from rpbench.cli import main
from rpbench.entries import INDEX, LARGEST_FILE, read_lines, read_store, read_whole


def good() -> dict[str, Any]:
    plan = synthetic.plan()
    return synthetic.record(plan, plan.cells[3], 0.9)


def changed(path: str, value: Any) -> str:
    content = copy.deepcopy(good())
    place: Any = content
    *parts, last = path.split(".")
    for part in parts:
        place = place[part]
    if value is KeyError:
        del place[last]
    else:
        place[last] = value
    return json.dumps(content)


KEYS = [
    "schema",
    "run_id",
    "status",
    "task",
    "task.name",
    "task.spec",
    "task.version",
    "model",
    "model.name",
    "model.params",
    "model.prunable",
    "scheme",
    "scheme.name",
    "scheme.args",
    "scheme.source",
    "sampler",
    "density",
    "density.requested",
    "density.kept_per_layer",
    "seeds",
    "seeds.mask",
    "precision",
    "protocol",
    "protocol.on",
    "metrics",
    "metrics.top1",
    "metrics.nll",
    "metrics.ece",
    "metrics.epoch",
    "last",
    "masks",
    "data",
    "cost",
    "cost.params",
    "env",
    "command",
]
NUMBERS = (float("nan"), float("inf"), 1e300, -0.1, "0.9", None, [], {}, True)
NAMES = ("../../etc/passwd", "/etc/passwd", "a/b", "", ".", "x" * 300, "a\x00b", "a\nb")
LAYERS: list[dict[str, Any]] = [
    {"kept_per_layer": [1], "numel_per_layer": [0]},
    {"kept_per_layer": [10**400], "numel_per_layer": [1]},
    {"kept_per_layer": [10**400], "numel_per_layer": [10**401]},
    {"kept_per_layer": [-1], "numel_per_layer": [1]},
    {"kept_per_layer": [1, 1], "numel_per_layer": [1]},
]
HOSTILE: list[str | bytes] = [
    *(changed(key, KeyError) for key in KEYS),
    *(changed(f"metrics.{key}", value) for key in ("top1", "nll", "ece") for value in NUMBERS),
    *(changed(f"density.{key}", value) for key in ("requested", "realised") for value in (float("nan"), 2, -1, "0.1")),
    *(changed("seeds.run", value) for value in (-1, 0.5, "0", 10**400)),
    *(changed("run_id", value) for value in NAMES),
    changed("density.kept", 5),
    changed("density.prunable", 0),
    changed("density.kept_per_layer", [-1, 2]),
    changed("density.kept_per_layer", "all"),
    changed("density.numel_per_layer", [1, 1, 1, 1]),
    *(changed(f"{part}.{key}", 10**400) for part in ("metrics", "last") for key in ("top1", "nll", "epoch")),
    changed("metrics.\x1b]0;PWN\x07", "x"),
    changed("task.version", 10**400),
    changed("model.prunable", 10**400),
    *(
        json.dumps(good() | {"status": status, "metrics": {}, "last": {}, "density": good()["density"] | layers})
        for status in ("infeasible", "failed", "diverged", "ok")
        for layers in LAYERS
    ),
    changed("status", "great"),
    changed("precision", "int1"),
    changed("protocol.overrides", {"recipe.epochs": 1}),
    changed("schema", "rpbench.record/9"),
    *("{", "[]", "null", "1", '"record"', "{}", "[" * 100_000, '{"a":' * 50_000, json.dumps(good())[:-40]),
    json.dumps(good()).replace('"ok"', "ok"),
    b"\xff\xfe\x00",
    b"\x00" * 100,
    changed("command", "x" * (5 * 2**20)),
]


def test_hostile_records_are_named_one_by_one_and_lose_nothing_else(tmp_path: Path) -> None:
    assert len(HOSTILE) >= 100
    plan = synthetic.plan()
    synthetic.fill(tmp_path, plan, synthetic.noisy({}))
    for i, text in enumerate(HOSTILE):
        folder = tmp_path / f"hostile-{i:03d}"
        folder.mkdir()
        (folder / "record.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    (tmp_path / "fifo").mkdir()
    os.mkfifo(tmp_path / "fifo" / "record.json")
    (tmp_path / "folder" / "record.json").mkdir(parents=True)
    for _ in range(2):  # read, and from the index
        found = read_store(tmp_path)
        assert len(found.entries) == len(plan.cells)
        hostile = [f"hostile-{i:03d}" for i in range(len(HOSTILE))]
        assert [fault.place for fault in found.faults] == ["fifo", "folder", *hostile]
        assert all(fault.why and fault.why.isprintable() and len(fault.why) < 400 for fault in found.faults)


def test_a_cell_that_was_never_drawn_has_kept_nothing(tmp_path: Path) -> None:
    cell = good() | {"status": "infeasible", "metrics": {}, "last": {}, "error": "cannot be met"}
    cell["density"] |= {"kept": None, "realised": None, "effective": None, "kept_per_layer": []}
    synthetic.write(tmp_path, cell)
    found = read_store(tmp_path)
    assert not found.faults
    assert [(e.status, e.layers) for e in found.entries] == [("infeasible", ())]


def test_hostile_lines_are_named_by_their_number(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    one_line = [text.replace("\n", " ") for text in HOSTILE if isinstance(text, str) and text and len(text) < 10**6]
    path.write_text("\n".join([json.dumps(good()), *one_line, json.dumps({"record": json.dumps(good())}), ""]))
    found = read_lines(path)
    assert [f.place for f in found.faults] == [f"rows.jsonl:{i}" for i in range(2, 2 + len(one_line))]
    assert len(found.entries) == len(read_whole(path)) == 2
    assert found.faults[0].place == "rows.jsonl:2"


def test_a_level_is_told_by_published_lines_alone(tmp_path: Path) -> None:
    levels = ("checked", "verified", "complete", "reported", "best", None, 3, ["verified"], KeyError)
    rows = [{"record": json.dumps(good()), "level": told} for told in levels]
    del rows[-1]["level"]
    rows.append(good() | {"level": "verified"})  # a record itself, with a key that is none of a record's
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = ["checked", "verified", "complete", *["reported"] * 7]
    assert [e.level for e in read_lines(path).entries] == told
    assert [one.entry.level for one in read_whole(path)] == told
    store = tmp_path / "runs"
    synthetic.write(store, good() | {"level": "verified"})
    assert [e.level for e in read_store(store).entries] == ["reported"]
    kept = (store / INDEX).read_text()
    (store / INDEX).write_text(kept.replace('"reported"', '"verified"'))
    assert (store / INDEX).read_text() != kept
    assert [e.level for e in read_store(store).entries] == ["reported"]


@pytest.mark.parametrize("kind", ["fifo", "folder", "large"])
def test_a_file_of_lines_that_is_no_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.truncate(LARGEST_FILE + 1)
    assert [fault.place for fault in read_lines(path).faults] == ["rows.jsonl"]
    assert read_lines(path).faults[0].why == "is no file of at most 64 MB"


def test_reports_name_hostile_records(tmp_path: Path) -> None:
    board = tmp_path / "small.toml"
    board.write_text(
        'name = "small"\nversion = 1\nsummary = "x"\nurl = "x"\nseeds = [0, 1]\n[[grids]]\ntask = "digits"\n'
        'models = ["resnet8"]\ndensities = [0.1]\nschemes = ["erk", "uniform"]\n'
    )
    from rpbench.board import expand, load_board

    plan = expand(load_board(str(board)))
    store = tmp_path / "runs"
    synthetic.fill(store, plan, synthetic.noisy({"erk": -0.01}))
    for i, name in enumerate(("<script>alert(1)</script>", "a|b", "=cmd()", "\x1b[31mred", "../up", "x" * 5000)):
        cell = synthetic.record(plan, plan.cells[2], 0.9, scheme={"name": name, "source": "1" * 64}, run_id=f"odd-{i}")
        synthetic.write(store, cell)
    double = synthetic.record(plan, plan.cells[2], 0.2, run_id="zz-double")
    synthetic.write(store, double)
    for form in ("term", "md", "csv", "csv-wide", "latex", "json"):
        done = CliRunner().invoke(main, ["report", str(board), "--store", str(store), "--format", form])
        assert done.exit_code == 0, done.output
        assert "\x1b" not in done.output.replace("\\u001b", "")
        assert "zz-double" in done.output
        if form == "md":
            assert "<script>" not in done.output
            assert "a|b" not in done.output
        if form == "latex":
            assert "<script>" not in done.output
        if form.startswith("csv"):
            assert ",=cmd" not in done.output


def test_the_index_is_only_a_shortcut(tmp_path: Path) -> None:
    plan = synthetic.plan()
    synthetic.fill(tmp_path, plan, synthetic.noisy({}))
    first = read_store(tmp_path)
    assert (tmp_path / INDEX).is_file()
    assert read_store(tmp_path).entries == first.entries
    whole = json.loads((tmp_path / INDEX).read_text())
    cut = {name: {"stamp": row["stamp"]} for name, row in whole["rows"].items()}
    wrong = {name: row | {"entry": [1]} for name, row in whole["rows"].items()}
    for odd in ({"format": [1], "rows": "no"}, whole | {"rows": cut}, whole | {"rows": wrong}, [], None):
        (tmp_path / INDEX).write_text(json.dumps(odd))
        assert read_store(tmp_path).entries == first.entries
    path = synthetic.write(tmp_path, synthetic.record(plan, plan.cells[0], 0.5))
    os.utime(path, ns=(1, 1))
    assert {e.metrics["top1"] for e in read_store(tmp_path).entries} >= {0.5}
    path.unlink()
    assert len(read_store(tmp_path).entries) == len(plan.cells) - 1
    assert read_store(tmp_path / "nothing").entries == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_store_that_cannot_be_written_is_read(tmp_path: Path) -> None:
    plan = synthetic.plan()
    synthetic.fill(tmp_path, plan, synthetic.noisy({}))
    tmp_path.chmod(0o555)
    assert len(read_store(tmp_path).entries) == len(plan.cells)
