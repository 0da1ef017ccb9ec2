"""Sweeps: a board's cells are run once each, whatever ends the sweep; where each stands is read from the store."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import pytest
import synthetic
from click.testing import CliRunner
from forked import Forked

from rpbench.board import Choice, expand, load_board
from rpbench.cli import main
from rpbench.entries import read_store
from rpbench.heartbeat import NAME, Sign, alive, signs
from rpbench.sweep import guess, survey, tally, tracked

ROOT = Path(__file__).resolve().parent.parent


def tiny_board(folder: Path, epochs: int = 1, schemes: str = '["erk"]', seeds: str = "[0, 1]") -> Path:
    """A board of a few short cells on the embedded images, with a task of its own beside it."""
    folder.mkdir(exist_ok=True)
    task = (ROOT / "tasks" / "digits.toml").read_text()
    task = task.replace('name = "digits"', 'name = "tiny"').replace("epochs = 30", f"epochs = {epochs}")
    task = task.replace('ood = ["photos", "noise"]', 'ood = ["noise"]')
    (folder / "tiny.toml").write_text(task)
    path = folder / "board.toml"
    path.write_text(
        f'name = "tiny-board"\nversion = 1\nsummary = "a few short cells"\nurl = "x"\nseeds = {seeds}\n'
        f'[[grids]]\ntask = "tiny.toml"\nmodels = ["resnet8"]\ndensities = [0.1]\nschemes = {schemes}\n'
    )
    return path


def sweep(board: Path, store: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rpbench", "sweep", str(board), "--store", str(store), *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def results(store: Path) -> dict[str, Any]:
    """What must be the same however a sweep was run."""
    found = {}
    for path in sorted(store.glob("*/record.json")):
        record = json.loads(path.read_text())
        found[path.parent.name] = (
            record["status"],
            record["metrics"],
            record["last"],
            record["masks"],
            record["density"],
        )
    return found


def test_a_killed_sweep_goes_on_to_the_same_records(tmp_path: Path, set_threads: Callable[[int], None]) -> None:
    from rpbench.cell import ask
    from rpbench.machine import Processes
    from rpbench.pack import own_cores
    from rpbench.progress import Quiet
    from rpbench.run import Wish, run_cell

    board = tiny_board(tmp_path / "b", epochs=2, seeds="[0]")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    words = ("sweep", str(board), "--store", str(broken), "--slots", "1")
    running = Forked(forked.rpbench, *words, own_group=True)
    try:
        deadline = time.monotonic() + 120
        while not list(broken.glob("*/checkpoint.safetensors")) and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.communicate()
    while any(sign.word == "running" for _, sign in signs(broken)) and time.monotonic() < deadline:
        time.sleep(0.05)  # a process that has died is known until somebody has heard of it
    assert len(results(broken)) < 2
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.stderr
    assert "tiny-board: 2 of 2 cells have a result" in done.stdout
    assert "[2/2]" in done.stderr
    set_threads(own_cores())  # as one cell at a time has
    for wanted in expand(load_board(str(board))).cells:
        run_cell(ask(**wanted.asked), Wish(whole), Quiet(), Processes())
    assert results(broken) == results(whole)
    again = CliRunner().invoke(main, words)
    assert again.exit_code == 0
    assert "0 to run" in again.stderr
    told = CliRunner().invoke(main, ["status", str(board), "--store", str(broken), "--format", "json"])
    assert json.loads(told.output)["counts"] == {"finished": 2}
    report = CliRunner().invoke(main, ["report", str(board), "--store", str(broken)])
    assert report.exit_code == 0
    assert "erk" in report.output


@pytest.mark.slow
def test_a_cell_that_fails_takes_no_other_with_it_and_is_retried_when_asked(tmp_path: Path) -> None:
    crash = tmp_path / "crash.py"
    body = (
        "import os, signal\nfrom pathlib import Path\nfrom rpbench import shape_scheme\n\n@shape_scheme\n"
        'def crash(table, density):\n    """Crashes. https://example.org"""\n'
        f"    if Path({str(tmp_path / 'bad')!r}).exists():\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return {layer.name: density for layer in table}\n"
    )
    crash.write_text(body)
    (tmp_path / "bad").touch()
    board = tiny_board(tmp_path / "b", seeds="[0]")
    store = tmp_path / "runs"
    done = sweep(board, store, "--scheme", str(crash), "--scheme", "dense", "--slots", "1")
    assert done.returncode == 1
    assert "its process died (SIGKILL)" in done.stderr
    assert "tiny-board: 1 of 2 cells have a result" in done.stdout
    (tmp_path / "bad").unlink()
    done = sweep(board, store, "--scheme", str(crash), "--scheme", "dense", "--retry")
    assert done.returncode == 0, done.stderr
    assert "2 of 2" in done.stdout


def test_a_scheme_that_raises_has_failed_with_its_reason(tmp_path: Path) -> None:
    """One of many cells ends in a record; alone, it is refused before anything is written."""
    from rpbench.cell import ask
    from rpbench.errors import SchemeError
    from rpbench.machine import Processes
    from rpbench.progress import Quiet
    from rpbench.run import Wish, run_cell

    bad = tmp_path / "bad.py"
    bad.write_text(
        "from rpbench import shape_scheme\n\n@shape_scheme\ndef bad(table, density):\n"
        '    """Raises. https://example.org"""\n    return {}[density]\n'
    )
    cell, store = ask(scheme=str(bad), density=0.1), tmp_path / "runs"
    with pytest.raises(SchemeError, match="KeyError"):
        run_cell(cell, Wish(store), Quiet(), Processes())
    assert not store.exists()
    outcome = run_cell(cell, Wish(store, note_failures=True), Quiet(), Processes())
    assert outcome.record.status == "failed"
    plan = expand(load_board("digits"), Choice(schemes=(str(bad),), densities=(0.1,), seeds=(0,)))
    at = survey(plan, read_store(store), [])
    assert [(one.state, "KeyError" in one.note) for one in at.cells] == [("failed", True)]
    assert at.to_run(retry=False) == []


def test_a_failed_record_is_left_until_a_retry(tmp_path: Path) -> None:
    plan = synthetic.plan()
    cell = synthetic.record(
        plan, plan.cells[1], 0.9, status="failed", metrics={}, last={}, error="OSError: no space left"
    )
    synthetic.write(tmp_path, cell | {"metrics": {}, "last": {}})
    at = survey(plan, read_store(tmp_path), [])
    assert tally(at.cells) == {"failed": 1, "missing": len(plan.cells) - 1}
    (failed,) = [one for one in at.cells if one.state == "failed"]
    assert failed.note == "failed: OSError: no space left"
    assert failed not in at.to_run(retry=False)
    assert failed in at.to_run(retry=True)


def test_outdated_records_are_told(tmp_path: Path) -> None:
    plan = synthetic.plan()
    w = next(w for w in plan.cells if w.label == "erk")
    synthetic.write(tmp_path, synthetic.record(plan, w, 0.9, scheme={"source": "0" * 64}))
    at = survey(plan, read_store(tmp_path), [])
    (old,) = [one for one in at.cells if one.state == "outdated"]
    assert "stale" in old.note
    assert old in at.to_run(retry=True)
    assert old not in at.to_run(retry=False)


def test_a_board_of_gradient_norms_wants_them_noted(tmp_path: Path) -> None:
    plan = synthetic.plan(track="gradient-flow")
    synthetic.fill(tmp_path, plan, lambda w: 0.9)
    (tmp_path / read_store(tmp_path).entries[0].place / "gradient_flow.jsonl").write_text("{}")
    at = tracked(survey(plan, read_store(tmp_path), []), tmp_path)
    assert tally(at.cells) == {"finished": 1, "outdated": len(plan.cells) - 1}
    assert tracked(survey(synthetic.plan(), read_store(tmp_path), []), tmp_path).count("outdated") == 0


def asked(plan: Any, index: int) -> dict[str, Any]:
    w = plan.cells[index]
    return {
        "task": {"name": w.context.task}, "model": w.context.model, "density": w.context.density, "overrides": {},
        "scheme": {"name": w.who.scheme, "args": json.loads(w.who.args)}, "sampler": {"name": "exact", "args": {}},
        "seeds": dict(vars(w.seeds)), "precision": w.asked["precision"], "limit": None, "limit_test": None,
    }  # fmt: skip


def test_signs_of_life(tmp_path: Path) -> None:
    plan = synthetic.plan()
    for i, name in enumerate(("runs", "silent", "stopped", "off")):
        (tmp_path / name).mkdir()
        cell = asked(plan, i) | ({"limit": 10} if name == "off" else {})
        sign = Sign(host="there", pid=1, since=0.0, time=time.time() - 1000 * (name == "silent"), done=0.25, cell=cell,
                    stopped=name == "stopped")  # fmt: skip
        (tmp_path / name / NAME).write_text(sign.model_dump_json())
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / NAME).write_text('{"host": 1')
    at = survey(plan, read_store(tmp_path), signs(tmp_path))
    assert [one.state for one in at.cells[:4]] == ["running", "stale", "stopped", "missing"]
    assert at.cells[0].done == 0.25
    assert "there" in at.cells[0].note
    assert [one.state for one in at.to_run(False)[:3]] == ["stale", "stopped", "missing"]
    text = CliRunner().invoke(main, ["status", "--store", str(tmp_path)])
    assert text.exit_code == 0


def test_a_sign_goes_with_the_record_and_stays_without(tmp_path: Path) -> None:
    plan = synthetic.plan()
    with alive(tmp_path, asked(plan, 0), lambda: 0.5):
        assert Sign.model_validate_json((tmp_path / NAME).read_text()).word == "running"
    assert Sign.model_validate_json((tmp_path / NAME).read_text()).word == "stopped"
    with alive(tmp_path, asked(plan, 0), lambda: 1.0):
        (tmp_path / "record.json").write_text("{}")
    assert not (tmp_path / NAME).exists()
    told = Sign(host=platform.node(), pid=2**22 + 1, since=0, time=time.time(), done=0, cell={})
    assert told.word == "stale"  # a process of this machine that is gone is not waited for
    assert told.model_copy(update={"host": "elsewhere"}).word == "running"


def test_time_is_guessed_from_finished_cells(tmp_path: Path) -> None:
    plan = synthetic.plan()
    synthetic.fill(tmp_path, plan, lambda w: 0.9 if w.seeds.run == 0 else None)
    found = read_store(tmp_path)
    at = survey(plan, found, [])
    todo = at.to_run(False)
    assert guess(todo, found.entries).seconds == pytest.approx(5.0 * len(todo))
    assert guess(todo, []).unknown == len(todo)
    other = expand(synthetic.board(precision="bf16"))
    assert guess(survey(other, found, []).to_run(False), found.entries).unknown == len(other.cells)


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    store = tmp_path / "runs"
    done = CliRunner().invoke(main, ["sweep", "digits", "--store", str(store), "--dry-run"])
    assert done.exit_code == 0
    assert "balanced" in done.output
    assert not store.exists()
    told = CliRunner().invoke(main, ["sweep", "digits", "--store", str(store), "--dry-run", "--format", "json"])
    assert len(json.loads(told.output)["cells"]) == 225
    narrow = ["sweep", "digits", "--dry-run", "--scheme", "erk", "--density", "0.02", "--seed", "1", "--format", "json"]
    assert len(json.loads(CliRunner().invoke(main, narrow).output)["cells"]) == 1


WRONG = {
    "board": (["sweep", "digts"], "no board 'digts': did you mean 'digits'"),
    "scheme": (["sweep", "digits", "--scheme", "erkk"], "no scheme 'erkk'"),
    "model": (["sweep", "digits", "--model", "vgg16"], "board 'digits' has no model vgg16"),
    "density": (["sweep", "digits", "--density", "0.5"], "board 'digits' has no density 0.5: there is 0.02, 0.05"),
    "seed": (["sweep", "digits", "--seed", "9"], "has no seed 9: there is 0, 1, 2, 3, 4"),
    "slurm": (["sweep", "digits", "--launcher", "slurm", "--minutes", "0", "--dry-run"], "minutes 0 is less than 1"),
    "images": (["sweep", "cifar10-cpu", "--store", "STORE"], "cifar10"),
    "jobs": (["sweep", "digits", "--minutes", "60", "--dry-run"], "--minutes is an option of jobs: add --launcher"),
    "store": (["status", "digits", "--store", "STORE"], "there is no store"),
    "a board of reports": (["report", "digts", "--store", "STORE"], "no board 'digts': did you mean 'digits'"),
    "report": (["report", "digits", "--store", "STORE"], "there is no store"),
    "format": (["report", "digits", "--format", "pdf"], "Invalid value for '--format'"),
}


@pytest.mark.parametrize(("command", "told"), WRONG.values(), ids=list(WRONG))
def test_what_is_wrong_is_said_in_a_sentence(
    command: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RPBENCH_DATA", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = CliRunner().invoke(main, [str(tmp_path / "none") if part == "STORE" else part for part in command])
    assert done.exit_code == 2, done.output
    assert told in done.output
    assert "Traceback" not in done.output
    assert not (tmp_path / "none").exists()


def test_a_scheme_alone_is_told_that_gaps_need_the_reference(tmp_path: Path) -> None:
    asked = ["sweep", "digits", "--scheme", "erk", "--seed", "0", "--dry-run", "--store", str(tmp_path)]
    told = CliRunner().invoke(main, asked)
    assert told.exit_code == 0
    assert "1 cell of it" not in told.stdout
    assert "1 cell of it" in told.stderr
    assert "rpbench sweep digits --scheme dense" in told.stderr
    plan = synthetic.plan(seeds=(0,))
    synthetic.fill(tmp_path, plan, lambda w: 0.9, [w for w in plan.cells if w.label == "dense"])
    for args in (asked, asked[:2] + asked[4:]):  # it is there; it is asked for
        assert "gaps are to" not in CliRunner().invoke(main, args).stderr


def test_status_knows_records_of_boards_that_are_not_on_the_shelf(tmp_path: Path) -> None:
    plan = expand(load_board(str(tiny_board(tmp_path / "b"))))
    synthetic.fill(tmp_path / "runs", plan, lambda w: 0.9, plan.cells[:1])
    told = CliRunner().invoke(main, ["status", "--store", str(tmp_path / "runs")])
    assert told.output == "1 record, of no board on the shelf: rpbench status BOARD.toml\n"
    told = CliRunner().invoke(main, ["report", "--store", str(tmp_path / "runs")])
    assert "has records of no board on the shelf: name the board's file" in told.output


def test_odd_signs_of_life_and_records_are_told_in_plain_text(tmp_path: Path) -> None:
    plan = synthetic.plan(grid={"schemes": ("erk",)})
    synthetic.fill(tmp_path, plan, lambda w: 0.9, plan.cells[:2])
    one = synthetic.record(plan, plan.cells[4], 0.9)
    failed = one | {"status": "failed", "error": "no \x1b[31m way\nsecond line", "metrics": {}, "last": {}}
    synthetic.write(tmp_path, failed)
    synthetic.write(tmp_path, one | {"metrics": {"\x1b[2J\n": "x"}}, "odd")
    for name, content in (("a", b"\xff\xfe"), ("b", b'{"done": 1e308}'), ("c", b"[" * 10_000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / NAME).write_bytes(content)
    assert list(signs(tmp_path)) == []
    board = tmp_path / "board.toml"
    grid = 'task = "digits"\nmodels = ["resnet8"]\ndensities = [0.05, 0.1, 0.3]\nschemes = ["erk"]\n'
    head = 'name = "small"\nversion = 1\nsummary = "x"\nurl = "x"\nseeds = [0, 1, 2]\n'
    board.write_text(f"{head}[[grids]]\n{grid}")
    for asked in (["status", str(board)], ["status"]):
        done = CliRunner().invoke(main, [*asked, "--store", str(tmp_path)], color=True)
        assert done.exit_code == 0, done.output
        assert "\x1b" not in done.output
        assert ("no ?[31m way second line" in done.output) == (len(asked) == 2)


def test_status_names_rows_that_only_the_store_has(tmp_path: Path) -> None:
    own = tmp_path / "mine.py"
    own.write_text(
        "from rpbench import shape_scheme, spread\n\n@shape_scheme\ndef mine(table, density):\n"
        '    """All alike. https://example.org"""\n    return spread(table, lambda layer: 1.0, density)\n'
    )
    plan = expand(load_board("digits"), Choice(schemes=(str(own),)))
    synthetic.fill(tmp_path / "runs", plan, lambda w: 0.9, plan.cells[:3])
    asked = ["status", "digits", "--store", str(tmp_path / "runs")]
    assert "0 of 225 cells have a result; beside them mine has 3 results" in CliRunner().invoke(main, asked).output
    assert "beside" not in CliRunner().invoke(main, [*asked, "--scheme", "erk"]).output


def test_a_board_without_a_record_has_no_empty_tables(tmp_path: Path) -> None:
    synthetic.fill(tmp_path, synthetic.plan(), lambda w: 0.9)
    told = CliRunner().invoke(main, ["report", "fig1", "--store", str(tmp_path)]).output
    assert "Not run" in told
    assert "by density" not in told
