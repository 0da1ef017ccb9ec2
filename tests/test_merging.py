"""Merging bundles into a leaderboard: files of their own, nothing twice, nothing lost, and no conflict in git."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import synthetic
from click.testing import CliRunner
from submitted_bundles import CARD, PASSED, SAMPLER, bundle, files_of, leaderboard, records, source

from rpbench import files, merging
from rpbench.board import expand, load_board
from rpbench.cli import main
from rpbench.entries import entry, read_store
from rpbench.errors import UsageError
from rpbench.merging import Merged, merge
from rpbench.published import beside, publish, read_board, refresh, root_of, stale
from rpbench.ranking import score
from rpbench.record import RunRecord
from rpbench.rows import Row
from rpbench.selection import Shelved, select, who_of
from rpbench.verdict import Verdict


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small leaderboard; to be copied."""
    return leaderboard(tmp_path_factory.mktemp("ready") / "leaderboard")


@pytest.fixture
def root(ready: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ready, tmp_path / "leaderboard"))


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rows(root: Path) -> dict[str, Row]:
    plan, found = expand(load_board("digits")), read_board("digits", root)
    assert not found.faults
    sheet = score(plan, select(plan, found.entries))
    assert not sheet.left_out
    return {row.label: row for row in sheet.rows}


def test_a_bundle_becomes_a_row_with_code_and_card(root: Path, tmp_path: Path) -> None:
    code = source(tmp_path)
    given = bundle(tmp_path / "bundle", code)
    before = files_of(root)
    done = merge(given, PASSED, "checked", root)
    stem = f"mine-{sha(code)[:8]}"
    new = (f"submissions/{stem}/mine.py", f"submissions/{stem}/digits.json", f"digits/{stem}.jsonl")
    assert done == Merged("digits", "mine", "checked", 20, (*new, "README.md", "index.html"), (), ())
    after = files_of(root)
    assert set(after) - set(before) == set(new)
    assert {name for name in before if before[name] != after[name]} == {"README.md", "index.html"}
    assert after[new[0]] == code.read_bytes()
    card = json.loads(after[new[1]])
    assert card["card"] == {key: told for key, told in CARD.items() if key != "email"}  # an address stays out
    assert card["level"] == "checked"
    assert card["bundle"] == hashlib.sha256((tmp_path / "bundle" / "bundle.json").read_bytes()).hexdigest()
    assert card["checks"] == ["R11 files: 1 passed", "R8 counts: 2 passed", "R13 rerun: 1 skipped (nobody asked)"]
    lines = [json.loads(line) for line in after[new[2]].decode().splitlines()]
    assert {(line["level"], line["row"], line["scheme"]) for line in lines} == {("checked", "mine", "mine")}
    row = rows(root)["mine"]
    assert (row.level, row.rank is None, row.lacks) == ("checked", False, ())
    assert not stale(root)
    told = after["README.md"].decode()
    assert f"[mine.py](submissions/{stem}/mine.py)" in told
    assert "Falls with a power \\| of a size" in told
    assert "<https://example.org/mine>" in told
    assert "a@example.org" not in told


def test_merging_again_is_nothing(root: Path, tmp_path: Path) -> None:
    given = bundle(tmp_path / "bundle", source(tmp_path))
    merge(given, PASSED, "checked", root)
    before = files_of(root)
    again = merge(given, [*PASSED, Verdict("labels", "R9", "skipped", "no images here")], "checked", root)
    assert (again.written, again.removed) == ((), ())
    assert files_of(root) == before
    better = merge(given, PASSED, "verified", root)
    assert better.level == "verified"
    assert rows(root)["mine"].level == "verified"
    before = files_of(root)
    assert merge(given, PASSED, "checked", root)[2:5] == ("verified", 20, ())  # what was found stays found
    assert files_of(root) == before


@pytest.mark.parametrize("writes", [1, 2, 4])
def test_what_is_interrupted_is_completed_by_the_same_command(
    writes: int, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = bundle(tmp_path / "bundle", source(tmp_path))
    left, real = [writes], os.replace

    def cut(*paths: Any) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        real(*paths)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", cut)
        with pytest.raises(KeyboardInterrupt):
            merge(given, PASSED, "checked", root)
    have = files_of(root)
    assert not any(".tmp" in name for name in have)
    assert ("mine" in rows(root)) == (writes >= 3)  # the records come after code and card
    assert len(merge(given, PASSED, "checked", root).written) == 5 - writes
    whole = tmp_path / "whole"
    shutil.copytree(root, whole)
    assert merge(given, PASSED, "checked", whole).written == ()


def test_versions_stand_side_by_side_or_replace_each_other(root: Path, tmp_path: Path) -> None:
    old, new = source(tmp_path / "old"), source(tmp_path / "new", remark="changed")
    first, second = bundle(tmp_path / "a", old), bundle(tmp_path / "b", new)
    other = bundle(tmp_path / "c", source(tmp_path / "c-code", remark="theirs"), card={"author": "Somebody Else"})
    for given in (first, second, other):
        merge(given, PASSED, "checked", root)
    labels = {f"mine @{sha(code)[:8]}" for code in (old, new)}
    assert labels < set(rows(root))
    done = CliRunner().invoke(main, ["compare", *sorted(labels), "--board", "digits", f"--leaderboard={root}"])
    assert done.exit_code == 0, done.output
    newest = source(tmp_path / "newest", remark="changed again")
    done_by = merge(bundle(tmp_path / "d", newest), PASSED, "checked", root, swap=True)
    gone = {f"mine-{sha(code)[:8]}" for code in (old, new)}
    assert {Path(name).parts[-1].split(".")[0] for name in done_by.removed if name.endswith("jsonl")} == gone
    assert len(done_by.removed) == 6  # records, code and card of both
    assert not any(stem in name for stem in gone for name in files_of(root))
    assert len(done_by.beside) == 1  # somebody else's row of that name is nobody's to replace
    assert len([label for label in rows(root) if label.startswith("mine")]) == 2


def test_options_make_another_row(root: Path, tmp_path: Path) -> None:
    code = source(tmp_path)
    merge(bundle(tmp_path / "a", code), PASSED, "checked", root)
    other = records(f"{code}:power=0.7")
    merge(bundle(tmp_path / "b", code, other, row="mine:power=0.7"), PASSED, "checked", root, swap=True)
    assert {"mine", "mine:power=0.7"} < set(rows(root))
    assert len(list((root / "submissions").iterdir())) == 2
    third = bundle(tmp_path / "c", code, records(f"{code}:power=0.9"), row="mine")
    with pytest.raises(UsageError, match="'mine' is there already, with other options: its label must name them"):
        merge(third, PASSED, "checked", root, swap=True)
    lines = root / "digits" / f"mine-{sha(code)[:8]}.jsonl"
    for path in (root / "digits").glob("mine-*-*.jsonl"):
        lines.write_text(lines.read_text() + path.read_text().replace('"row":"mine:power=0.7"', '"row":"mine"'))
        path.unlink()
    renamed = bundle(tmp_path / "d", code, row="mine:power=0.5", card={"claim": "x"})
    assert not merge(renamed, PASSED, "checked", root, swap=True).removed  # a row stays where it is
    assert {"mine:power=0.5", "mine:power=0.7"} < set(rows(root))  # whatever a file calls them, they are told apart


def test_a_sampler_is_merged_with_its_scheme(root: Path, tmp_path: Path) -> None:
    code = source(tmp_path, "draws", text=SAMPLER)
    told = records("erk", str(code))
    given = bundle(tmp_path / "a", Path("erk"), told, row="erk + draws", submitted=code)
    done = merge(given, PASSED, "checked", root)
    assert f"digits/erk+draws-{sha(code)[:8]}.jsonl" in done.written
    assert rows(root)["erk + draws"].level == "checked"
    assert json.loads((root / done.written[1]).read_text())["kind"] == "sampler"


def test_a_row_of_the_shelf_stays_in_its_file(root: Path, tmp_path: Path) -> None:
    """Somebody has run a baseline anew, or for a board that lacks it."""
    done = merge(bundle(tmp_path / "er", Path("er"), records("er")), PASSED, "checked", root)
    assert done.written[:2] == ("submissions/er/digits.json", "digits/er.jsonl")
    assert rows(root)["er"].level == "checked"
    erk = bundle(tmp_path / "erk", Path("erk"), records("erk"))
    with pytest.raises(UsageError, match="with other results .*--replace"):
        merge(erk, PASSED, "checked", root)
    merge(erk, PASSED, "checked", root, swap=True)
    assert rows(root)["erk"].level == "checked"
    assert len(read_board("digits", root).entries) == 45  # dense, erk, er: each cell once


def test_what_its_people_published_before_gains_a_level(root: Path, tmp_path: Path) -> None:
    code = source(tmp_path)
    told = records(code)
    for name, record in told.items():
        (tmp_path / "mine" / name).mkdir(parents=True)
        (tmp_path / "mine" / name / "record.json").write_text(json.dumps(record))
    publish("digits", tmp_path / "mine", root)
    assert rows(root)["mine:power=0.5"].level == "complete"
    count = len(read_board("digits", root).entries)
    merge(bundle(tmp_path / "bundle", code, told), PASSED, "checked", root)
    assert len(read_board("digits", root).entries) == count
    assert rows(root)["mine"].level == "checked"
    before = files_of(root)
    assert publish("digits", tmp_path / "mine", root).files == {f"mine-{sha(code)[:8]}.jsonl": 20}
    assert files_of(root) == before  # publishing the same records takes nothing back
    changed = tmp_path / "mine" / next(iter(told)) / "record.json"
    changed.write_text(changed.read_text().replace('"epoch": 3', '"epoch": 2'))
    left = publish("digits", tmp_path / "mine", root).left_out
    assert [fault.why for fault in left] == ["is published as checked, with other results"]
    assert files_of(root) == before


def test_the_store_and_the_leaderboard_have_the_same_row(root: Path, tmp_path: Path) -> None:
    code = source(tmp_path)
    told = records(code)
    merge(bundle(tmp_path / "bundle", code, told), PASSED, "checked", root)
    for name, record in told.items():
        (tmp_path / "mine" / name).mkdir(parents=True)
        (tmp_path / "mine" / name / "record.json").write_text(json.dumps(record))
    own = read_store(tmp_path / "mine")
    both = beside(own, ["digits"], root)
    assert len(both.entries) == len(read_board("digits", root).entries)
    assert {e.level for e in both.entries if e.scheme == "mine"} == {"checked"}
    arguments = ["report", "digits", f"--leaderboard={root}", "--store", str(tmp_path / "mine")]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert done.output.count("mine") == len([w for w in done.output.split() if w.startswith("mine")])
    assert "second record" not in done.output
    changed = tmp_path / "mine" / next(iter(told)) / "record.json"
    changed.write_text(changed.read_text().replace('"epoch": 3', '"epoch": 2'))
    levels = [e.level for e in beside(read_store(tmp_path / "mine"), ["digits"], root).entries if e.scheme == "mine"]
    assert sorted(levels) == ["checked"] * 19 + ["reported"]  # the store's own first


def test_what_is_not_merged(root: Path, tmp_path: Path) -> None:
    code = source(tmp_path)
    good = records(code)
    whole = bundle(tmp_path / "good", code, good)
    before = files_of(root)
    made = iter(range(100))

    def of(told: dict[str, Any] = good, **more: Any) -> Any:
        return bundle(tmp_path / f"b{next(made)}", more.pop("code", code), told, **more)

    def changed(**changes: Any) -> dict[str, Any]:
        first, *rest = good
        return {first: {k: v | changes.get(k, {}) if isinstance(v, dict) else changes.get(k, v)
                        for k, v in good[first].items()}} | {name: good[name] for name in rest}  # fmt: skip

    def manifest(**parts: Any) -> Any:
        return lambda whole: [whole[k].update(v) if isinstance(v, dict) else whole.update({k: v})
                              for k, v in parts.items()]  # fmt: skip

    other = source(tmp_path / "other", remark="edited since")
    erk = source(tmp_path / "erk", "erk")
    upper = source(tmp_path / "upper", "ERK")
    bad = Verdict("metrics", "R9", "failed", "top1 is 0.93, its outputs give 0.91", "cell 1")
    for given, verdicts, level, why in (
        (whole, [*PASSED, bad], "checked", "R9 metrics: top1 is 0.93"),
        (whole, PASSED, "complete", "is 'complete', not 'checked'"),
        (whole, PASSED, "best", "is 'best', not 'checked'"),
        (of(change=manifest(board={"name": "mine"})), PASSED, "checked", "board 'mine' is not on the shelf"),
        (of(change=manifest(board={"hash": "0" * 64})), PASSED, "checked", "another definition today"),
        (of(card={"claim": " ", "source": ""}), PASSED, "checked", "does not say source, claim"),
        (of(row="erk"), PASSED, "checked", "the row calls itself 'erk'"),
        (of(row="mine + bernoulli"), PASSED, "checked", "the row calls itself"),
        (of({}, code=code), PASSED, "checked", "no records"),
        (of({**records("erk")}, submitted=erk), PASSED, "checked", "'erk' is a name on the shelf"),
        (of({**records(upper)}, code=upper), PASSED, "checked", "'ERK' is a name on the shelf"),
        (of(submitted=other), PASSED, "checked", "made with another file"),
        (of(good | records("er")), PASSED, "checked", "records of 2 rows"),
        (of(changed(status="failed", error="x")), PASSED, "checked", "of a run that failed"),
        (of(changed(protocol={"on": False})), PASSED, "checked", "leaves out .*off protocol"),
        (of(changed(seeds={"run": 77})), PASSED, "checked", "not cells of board"),
        (of(changed(metrics={"top1": 3.0})), PASSED, "checked", '"top1" is 3.0: must be in'),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=why) as refused:
            merge(given, verdicts, level, root)
        assert "\n" not in str(refused.value)
    assert files_of(root) == before
    merge(whole, PASSED, "checked", root)
    with pytest.raises(UsageError, match="from another bundle: see --replace"):
        merge(of(card={"claim": "Better than it was"}), PASSED, "checked", root)
    with pytest.raises(UsageError, match="with other results"):
        merge(of(records(code, top1=0.95)), PASSED, "checked", root)
    merge(of(records(code, top1=0.95), card={"claim": "x"}), PASSED, "checked", root, swap=True)
    assert len(read_board("digits", root).entries) == 45


def test_what_is_merged_can_be_read_again(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record is published in ASCII, which may take six times the bytes that it came in."""
    code, before = source(tmp_path), files_of(root)
    told = records(code)
    wide = next(iter(told))
    told[wide]["env"]["device_name"] = "\u00e9" * 40_000
    given = bundle(tmp_path / "wide", code, told)
    monkeypatch.setattr(merging, "LARGEST", 200_000)
    with pytest.raises(UsageError, match=r"would be published with 0\.2 MB"):
        merging.check(given, root)
    monkeypatch.undo()
    monkeypatch.setattr(merging, "LARGEST_FILE", 300_000)
    with pytest.raises(UsageError, match="the row's file would have 0 MB"):
        merge(given, PASSED, "checked", root)
    assert files_of(root) == before
    monkeypatch.undo()
    merge(given, PASSED, "checked", root)
    assert not read_board("digits", root).faults


class Repository:
    """A folder with git, which knows nothing that is not in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {name: "somebody" for part in ("AUTHOR", "COMMITTER") for name in (f"GIT_{part}_NAME",)}
        self.env |= {f"GIT_{part}_EMAIL": "somebody@example.org" for part in ("AUTHOR", "COMMITTER")}
        self.env |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "PATH": os.environ["PATH"]}

    def git(self, *words: str) -> str:
        done = subprocess.run(["git", *words], cwd=self.folder, env=self.env, capture_output=True, text=True)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def commit(self, message: str) -> None:
        self.git("add", "-A")
        self.git("commit", "-qm", message)


@pytest.mark.skipif(shutil.which("git") is None, reason="no git here")
def test_two_merges_in_two_branches_do_not_conflict(root: Path, tmp_path: Path) -> None:
    shutil.copy(root_of() / ".gitattributes", root)
    given = {
        name: bundle(tmp_path / name, source(tmp_path / f"{name}-code", name), row=name) for name in ("aaa", "zzz")
    }
    at = Repository(tmp_path)
    (tmp_path / ".gitignore").write_text("*\n!leaderboard\n!leaderboard/**\n")
    at.git("init", "-q", "-b", "main")
    at.commit("a leaderboard")
    for name, made in given.items():
        at.git("checkout", "-q", "-b", name, "main")
        assert set(merge(made, PASSED, "checked", root).written) >= {"README.md", "index.html"}
        at.commit(f"merge {name}")
    both = {}
    for first, second in (("aaa", "zzz"), ("zzz", "aaa")):
        at.git("checkout", "-q", "-B", "joined", first)
        at.git("merge", "-q", "--no-edit", second)
        assert at.git("status", "--porcelain") == ""
        assert {"aaa", "zzz"} < set(rows(root))  # no record is lost
        assert set(stale(root)) == {"README.md", "index.html"}  # and it shows that they are to be made anew
        done = CliRunner().invoke(main, ["publish", "--refresh", "--root", str(root)])
        assert done.exit_code == 0, done.output
        assert not stale(root)
        assert refresh(root) == ()
        at.commit("refresh")
        both[first] = files_of(root)
    assert both["aaa"] == both["zzz"]
    at.git("checkout", "-q", "-B", "one", "aaa")  # one after the other, as in one branch
    merge(given["zzz"], PASSED, "checked", root)
    assert files_of(root) == both["aaa"]


def test_the_level_from_which_is_merged_is_a_level() -> None:
    from rpbench.entries import LEVELS

    assert merging.LEAST in LEVELS


def test_labels_tell_rows_apart() -> None:
    plan = expand(load_board("digits"))
    first = next(w for w in plan.cells if w.label == "erk")

    def label(*rows: tuple[str, str, str, str]) -> list[str]:
        found = []
        for i, (scheme, letter, args, row) in enumerate(rows):
            who = first.who._replace(scheme=scheme, source=letter * 64, args=args)
            told = synthetic.record(plan, first._replace(who=who), 0.9, run_id=f"r{i}")
            found.append(replace(entry(RunRecord.model_validate(told), f"r{i}"), row=row))
        chosen = select(plan, found)
        return [chosen.labels[who_of(e, Shelved.now())] for e in found]

    power = '{"power":0.5}'
    assert label(("mine", "1", "{}", "")) == ["mine"]
    assert label(("mine", "1", power, ""), ("theirs", "2", power, "theirs")) == ["mine:power=0.5", "theirs"]
    assert label(("mine", "1", "{}", ""), ("mine", "2", "{}", "")) == ["mine @11111111", "mine @22222222"]
    assert label(("mine", "1", power, "erk")) == ["mine:power=0.5"]  # that is another's name
    assert label(("mine", "1", power, "mine"), ("mine", "1", "{}", "mine")) == ["mine:power=0.5", "mine"]
    assert label(("mine", "1", power, "mine"), ("mine", "2", "{}", "")) == ["mine @11111111", "mine @22222222"]


def test_the_command_verifies_before_it_merges(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle(tmp_path / "bundle", source(tmp_path))
    before = files_of(root)
    command = ["submit", "--merge", str(tmp_path / "bundle"), "--root", str(root)]
    made_up = CliRunner().invoke(main, command)
    assert made_up.exit_code == 1
    assert made_up.stdout == ""
    assert "R9" in made_up.stderr  # it has no outputs
    assert made_up.stderr.endswith("nothing was merged\n")
    assert files_of(root) == before
    with monkeypatch.context() as patch:
        patch.setattr("rpbench.verification.checked", lambda subject, say: PASSED)
        patch.setattr("rpbench.verification.level", lambda verdicts: "checked")
        done = CliRunner().invoke(main, command)
        assert (done.exit_code, done.stdout) == (0, "mine on digits: 20 records, checked\n"), done.stderr
        again = CliRunner().invoke(main, command)
        assert again.stdout == "mine on digits: 20 records, checked, as merged before: nothing to do\n"
    for args, why in (
        (["submit", "erk"], "name a scheme and a board"),
        ([*command, "--board", "digits"], "--merge takes"),
        (["submit", "--merge", str(tmp_path / "no.zip")], "there is no such file or folder"),
    ):
        assert CliRunner().invoke(main, args).exit_code == 2
        assert why in CliRunner().invoke(main, args).output
