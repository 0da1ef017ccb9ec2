"""A row of a store becomes a bundle, or everything that stands against it is said and nothing is written."""

from __future__ import annotations

import builtins
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bundles
import numpy as np
import pytest
import synthetic
from click.testing import CliRunner, Result
from safetensors.numpy import load_file

from rpbench.board import board_hash, expand, load_board
from rpbench.bundle import file_faults, open_bundle
from rpbench.bundling import make, put, scored_sheet
from rpbench.card import read_card
from rpbench.catalog import shelf
from rpbench.cli import main
from rpbench.errors import BundleError, UsageError
from rpbench.submission import Wish, find_row, refusals

BOARD = """
name = "own"
version = 1
summary = "one cell of the embedded task"
url = "https://example.org"
seeds = [0]

[[grids]]
task = "digits"
models = ["resnet8"]
densities = [0.1]
schemes = ["erk"]
"""
SOURCE = bundles.SOURCE + b"\n\nimport builtins\n\nbuiltins.seen = True\n"
CARD = {"author": "A. N. Other", "version": "1", "licence": "Apache-2.0"}
OPTIONS = [word for key, value in CARD.items() for word in (f"--{key}", value)]


def invoke(*args: str) -> Result:
    done = CliRunner().invoke(main, list(args))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """A scheme and a board of one's own, and a store that has the row's one cell and the published dense net."""
    home = tmp_path_factory.mktemp("lab")
    (home / "own.toml").write_text(BOARD)
    (home / "mine.py").write_bytes(SOURCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        done = invoke("run", "--scheme", "./mine.py", "--density", "0.1", "--store", "store")
    assert done.exit_code == 0, done.output
    line = (shelf("leaderboard") / "digits" / "dense.jsonl").read_text().splitlines()[0]
    synthetic.write(home / "store", json.loads(json.loads(line)["record"]))
    return home


@pytest.fixture
def lab(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to work in; the contract has tests of its own."""
    home = tmp_path / "lab"
    shutil.copytree(trained, home)
    monkeypatch.chdir(home)
    monkeypatch.setattr("rpbench.submission.contract_refusals", lambda row: [])
    return home


def cell_of(lab: Path) -> Path:
    (found,) = (lab / "store").glob("digits-resnet8-mine-*")
    return found


def submit(*more: str, card: bool = True) -> Result:
    return invoke("submit", "./mine.py", "--board", "own.toml", "--store", "store", *(OPTIONS if card else []), *more)


def test_a_row_becomes_a_bundle(lab: Path) -> None:
    done = submit()
    assert done.exit_code == 0, done.output
    first, second, third = done.stdout.splitlines()
    assert first.startswith("mine on own@1: top-1 ")
    assert "rank 1 of 1 row" in first
    assert second.startswith("wrote mine-own.zip (1 cell, 10 files, 0.1 MB)")
    assert third.endswith("rpbench verify mine-own.zip --board own.toml")
    assert "is a board of your own" in done.stderr
    bundle = open_bundle(lab / "mine-own.zip")
    assert list(file_faults(bundle)) == []
    told = bundle.manifest
    assert (told.kind, told.row, told.scheme.name, told.scheme.args) == ("scheme", "mine", "mine", {"power": 0.5})
    assert (told.sampler.name, told.sampler.args) == ("exact", {})
    board = load_board("own.toml")
    assert (told.board.name, told.board.version, told.board.hash) == ("own", 1, board_hash(board))
    assert (told.card.name, told.card.source) == ("mine", "https://example.org")
    assert told.card.claim == "Densities fall with a power of a layer's size"
    assert (bundle.source_name, bundle.source) == ("mine.py", SOURCE)
    (cell,) = bundle.cells
    folder = cell_of(lab)
    assert cell.run_id == folder.name
    for name in ("record.json", "curve.jsonl", "outputs/selected/test.npz", "outputs/last/test.npz"):
        assert bundle.contents.read(f"cells/{cell.run_id}/{name}") == (folder / name).read_bytes()
    assert set(cell.outputs) == {f"selected/{n}" for n in ("test", "photos", "noise", "fgsm-8")} | {"last/test"}
    assert cell.masks is None  # they follow from counts and seed


def test_the_file_is_not_run_here(lab: Path) -> None:
    assert submit().exit_code == 0
    assert not hasattr(builtins, "seen")


def test_its_readme_says_how_to_check_it(lab: Path) -> None:
    submit("--claim", "Better <b>than</b> `erk`", "--email", "a@example.org")
    text = open_bundle(lab / "mine-own.zip").contents.read("README.md").decode()
    assert text.startswith("# mine on own\n\n> Better &lt;b&gt;than&lt;/b&gt; \\`erk\\`\n")
    for line in (
        "- author: A. N. Other (a@example.org)",
        "rpbench verify mine-own.zip --board own.toml  # everything that needs no training",
        "unzip mine-own.zip source/mine.py  # read it before it is run",
        "rpbench try source/mine.py  # the contract",
        "rpbench sweep own.toml --scheme source/mine.py  # every cell again",
        "- `source/mine.py`: the scheme",
    ):
        assert line in text.splitlines()
    assert "| mine " in text


def test_the_same_again_changes_nothing(lab: Path) -> None:
    assert "wrote" in submit("--date", "2026-01-01").stdout
    before = (lab / "mine-own.zip").stat()
    again = submit()  # on another day
    assert "unchanged: mine-own.zip" in again.stdout
    assert (lab / "mine-own.zip").stat() == before
    other = submit("--out", "other.zip", "--date", "2026-01-01")
    assert other.exit_code == 0
    first, second = (open_bundle(lab / name) for name in ("mine-own.zip", "other.zip"))
    assert first.manifest.files.keys() == second.manifest.files.keys()
    assert "brought up to date mine-own.zip" in submit("--version", "2").stdout
    assert open_bundle(lab / "mine-own.zip").manifest.card.version == "2"


def test_a_folder_is_mended(lab: Path) -> None:
    assert "wrote mine-own (" in submit("--folder").stdout
    place = lab / "mine-own"
    curve = next(place.glob("cells/*/curve.jsonl"))
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file() and path != curve}
    curve.unlink()
    assert "brought up to date mine-own" in submit("--folder").stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert list(file_faults(open_bundle(place))) == []
    assert "unchanged" in submit("--out", "mine-own").stdout


def test_what_lies_there_already_is_not_touched(lab: Path) -> None:
    (lab / "thesis").mkdir()
    (lab / "thesis" / "thesis.tex").write_text("years")
    (lab / "notes.zip").write_text("no zip")
    submit("--out", "taken.zip")
    for out, says in (
        ("thesis", "'thesis' is no bundle, and is not touched"),
        ("notes.zip", "'notes.zip' is no bundle, and is not touched"),
        ("nowhere/mine.zip", "there is no folder 'nowhere'"),
        ("store", "'store' is no bundle"),
    ):
        before = bundles_tree(lab)
        done = submit("--out", out)
        assert done.exit_code == 2
        assert says in done.stderr.splitlines()[-1]
        assert bundles_tree(lab) == before
    done = invoke("submit", "./mine.py:power=0.7", "--board", "own.toml", "--store", "store", "--out", "taken.zip")
    assert done.exit_code == 2
    row = replace(find_row(Wish("./mine.py", "own.toml", lab / "store")), label="mine:power=0.7")
    with pytest.raises(BundleError, match="'taken.zip' is the bundle of mine on own") as caught:
        put(row, CARD, scored_sheet(row), Path("taken.zip"), "2026-01-01")
    assert caught.value.fault == "foreign"
    for words in (("--folder", "--out", "a.zip"), ("--archive", "--out", "a")):
        assert submit(*words).exit_code == 2


def bundles_tree(root: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in root.rglob("*")}


# What the rules refuse


def edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(lab: Path) -> None:
        path = lab / name if (lab / name).is_file() else cell_of(lab) / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))

    return change


def drop(name: str) -> Callable[[Path], None]:
    return lambda lab: (cell_of(lab) / name).unlink()


def lose(lab: Path) -> None:
    shutil.rmtree(cell_of(lab))


def other_seed(lab: Path) -> None:
    """The board's seed is missing; another one is there."""
    content = json.loads((cell_of(lab) / "record.json").read_text())
    lose(lab)
    seeds = dict.fromkeys(("run", "init", "mask", "order"), 7)
    synthetic.write(lab / "store", content | {"run_id": "digits-resnet8-mine-7", "seeds": seeds})


def pickle(lab: Path) -> None:
    array = np.array([lab.name], dtype=object)
    (cell_of(lab) / "outputs" / "selected" / "photos.npz").write_bytes(bundles.npz(logits=array))


AGAIN = "rpbench sweep own.toml --scheme ./mine.py --store store"
OFF = ('"limit": null', '"limit": 100'), ('"on": true', '"on": false')
REFUSED: list[tuple[str, Callable[[Path], Any], str]] = [
    ("R1", edit("mine.py", "import builtins", "import requests"), "source: mine.py imports requests (line 10)"),
    ("R1", edit("mine.py", "builtins.seen", f"x = '{'x' * 100_000}'\nbuiltins.seen"), "source: mine.py has 100,"),
    ("R4", lose, f"cells: 1 of 1 cell missing (resnet8 mine 0.1 s0): {AGAIN}"),
    ("R4", other_seed, "cells: 1 record of other seeds cannot stand for the board's"),
    ("R4", edit("record.json", '"status": "ok"', '"status": "failed"'), "cells: 1 of 1 cell failed: (resnet8 mine"),
    ("R5", lambda lab: [edit("record.json", *pair)(lab) for pair in OFF], "protocol: 1 of 1 cell off protocol: limits"),
    ("R5", edit("record.json", '"spec": "', '"spec": "0'), "protocol: 1 of 1 cell of another definition of task"),
    ("R6", drop("curve.jsonl"), "curve: 1 of 1 cell without curve.jsonl (digits-resnet8-mine-0.1-s0-"),
    ("R9", drop("outputs/selected/photos.npz"), "metrics: 1 of 1 cell without outputs/selected/photos.npz ("),
    ("R9", pickle, "metrics: 1 of 1 cell with an outputs/selected/photos.npz that cannot be read (pickle)"),
    ("R11", edit("mine.py", "import builtins", "import builtins  #"), "identity: 1 of 1 cell made with another"),
    ("R11", edit("record.json", '"prunable": 77072', '"prunable": -1'), "records: 1 of 1 cell with a record that"),
    ("R12", edit("mine.py", "https://example.org", "me"), "card: the docstring of 'mine' has no address of its source"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "spoil", "says"), REFUSED, ids=[f"{r[0]} {r[2][:40]}" for r in REFUSED])
def test_what_the_rules_refuse(rule: str, spoil: Callable[[Path], Any], says: str, lab: Path) -> None:
    spoil(lab)
    before = bundles_tree(lab)
    done = submit()
    assert (done.exit_code, done.stdout) == (2, "")
    assert f"{rule} {says}" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: nothing was written: refused by ")
    assert rule in done.stderr.splitlines()[-1]
    assert {path for path in bundles_tree(lab) if not path.endswith("index.json")} == {
        path for path in before if not path.endswith("index.json")
    }


def test_everything_is_refused_at_once(lab: Path) -> None:
    edit("mine.py", "import builtins", "import requests")(lab)
    drop("curve.jsonl")(lab)
    done = submit("--name", "Mine", "--source", "nowhere", card=False)
    told = [line.split(":")[0] for line in done.stderr.splitlines() if line.startswith("R")]
    assert told == ["R1 source", "R11 identity", "R12 card", "R12 card", "R12 card"]
    assert "the card lacks version, author, licence: --version ... --author ... --licence ..., or --card" in done.stderr
    assert "the card's name is 'Mine', the function is 'mine'" in done.stderr
    assert "the card's source is 'nowhere'" in done.stderr


def test_a_contract_that_is_broken(lab: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked in a confined process, with the row's own options."""
    monkeypatch.undo()
    monkeypatch.chdir(lab)
    row = find_row(Wish("./mine.py:power=0.5", "own.toml", lab / "store"))
    assert [v for v in refusals(row, CARD) if v.check == "contract"] == []
    (lab / "mine.py").write_bytes(SOURCE.replace(b"layer.numel**-power, density", b"1.0, density * power * 2"))
    row = find_row(Wish("./mine.py:power=0.4", "own.toml", lab / "store"))
    found = [v for v in refusals(row, CARD) if v.check == "contract"]
    assert {v.rule for v in found} == {"R2"}
    assert any(v.why.startswith("budget: ") for v in found)


def test_cells_are_told_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty cells with records alone: a line for each kind of file that lacks."""
    monkeypatch.chdir(tmp_path)
    plan = expand(load_board("digits"))
    synthetic.fill(tmp_path / "store", plan, lambda w: 0.9 if w.label == "erk" and w.context.density > 0.02 else None)
    done = invoke("submit", "erk", "--board", "digits", "--store", "store", *OPTIONS)
    told = [line for line in done.stderr.splitlines() if line.startswith("R")]
    assert told[0].startswith("R4 cells: 5 of 20 cells missing (resnet8 erk 0.02 s0, resnet8 erk 0.02 s1, ")
    assert "and 2 more): rpbench sweep digits --scheme erk --store store" in told[0]
    assert told[1].startswith("R6 curve: 15 of 20 cells without curve.jsonl (")
    assert [line[:28] for line in told[2:]] == ["R9 metrics: 15 of 20 cells w"] * 5


def test_infeasible_and_diverged_cells_are_results(lab: Path) -> None:
    path = cell_of(lab) / "record.json"
    content = json.loads(path.read_text())
    for status in ("infeasible", "diverged"):
        path.write_text(json.dumps(content | {"status": status, "error": "so it is"}))
        done = submit("--out", f"{status}.zip")
        assert done.exit_code == 0, done.stderr
        assert "not ranked" in done.stdout
        assert len(open_bundle(lab / f"{status}.zip").cells) == 1


# Whose row


def test_rows_that_are_not_one(lab: Path) -> None:
    for args, says in (
        (("./nofile.py", "--board", "own.toml"), "does not exist"),
        (("./mine.py", "--board", "digit"), "did you mean 'digits'?"),
        (("./mine.py", "--board", "own.toml", "--store", "nowhere"), "there is no store 'nowhere'"),
        (("erk", "--board", "own.toml", "--sampler", "scored"), "has no cell of erk with sampler scored"),
        (("./mine.py", "--board", "own.toml", "--sampler", "./mine.py"), "must define one sampler"),
    ):
        done = invoke("submit", *args, *([] if "--store" in args else ["--store", "store"]), *OPTIONS)
        assert (done.exit_code, done.stdout) == (2, "")
        assert says in done.stderr.splitlines()[-1]
    (lab / "own.toml").write_text(BOARD + 'samplers = ["exact", "bernoulli"]\n')
    assert "several rows of ./mine.py (mine, mine + bernoulli): add --sampler" in submit().stderr


SAMPLER = '''from rpbench import mask_sampler


@mask_sampler
def pick(table, counts, key, scores, *, shift=1):
    """The first weights of every layer. https://example.org"""
    return {}
'''


def test_a_sampler_is_submitted_with_the_scheme_it_ran_with(lab: Path) -> None:
    (lab / "pick.py").write_text(SAMPLER)
    row = find_row(Wish("erk", "own.toml", lab / "store", "./pick.py:shift=2"))
    assert (row.kind, row.label, row.said.name) == ("sampler", "erk + pick:shift=2", "pick")
    assert row.source is not None
    assert row.source.path.name == "pick.py"
    assert [at.state for at in row.cells] == ["missing"]
    with pytest.raises(UsageError, match="both files of your own"):
        find_row(Wish("./mine.py", "own.toml", lab / "store", "./pick.py"))
    shelved = find_row(Wish("erk", "own.toml", lab / "store"))
    assert (shelved.kind, shelved.source, shelved.said.name) == ("scheme", None, "erk")


def test_masks_of_samplers_that_use_scores_are_in_it(lab: Path) -> None:
    row = replace(find_row(Wish("./mine.py", "own.toml", lab / "store")), scored=True)
    put(row, CARD, scored_sheet(row), lab / "scored", "2026-01-01")
    (cell,) = open_bundle(lab / "scored").cells
    assert cell.masks is not None
    found = cell.masks()
    for name, mask in load_file(cell_of(lab) / "masks.safetensors").items():
        assert (np.unpackbits(found[name], bitorder="little")[: mask.size] == mask.ravel()).all()
    (cell_of(lab) / "masks.safetensors").unlink()
    assert "R8 masks" in [f"{v.rule} {v.check}" for v in refusals(row, CARD)]


def test_options_that_name_files_are_refused(lab: Path) -> None:
    (lab / "densities.json").write_text("{}")
    row = find_row(Wish("given:file=densities.json", "own.toml", lab / "store"))
    told = next(v for v in refusals(row, CARD) if v.rule == "R1")
    assert told.why.startswith("option file of the scheme names a file, densities.json")


def test_a_source_that_takes_a_file_is_refused(lab: Path) -> None:
    """Given or not: its bundle would not be verified."""
    head = "from pathlib import Path\nfrom rpbench import shape_scheme\n\n@shape_scheme\n"
    (lab / "takes.py").write_text(f"{head}def takes(table, density, *, file: Path | None = None):\n    'It takes.'\n")
    told = [v.why for v in refusals(find_row(Wish("./takes.py", "own.toml", lab / "store")), CARD) if v.rule == "R1"]
    assert told == ["option file of the scheme is a file, that a bundle does not hold: write what it says into a "
                    "source file"]  # fmt: skip


def test_a_row_without_its_reference_is_not_ranked(lab: Path) -> None:
    (dense,) = (lab / "store").glob("digits-resnet8-dense-*")
    shutil.rmtree(dense)
    assert "mine on own@1: not ranked, for dense is not there" in submit().stdout


def test_what_was_submitted_is_verified(lab: Path) -> None:
    submit()
    done = invoke("verify", "mine-own.zip", "--board", "own.toml")
    assert (done.exit_code, "failed" in done.output) == (0, False)
    assert "level: checked" in done.stdout


def test_entry_points_bring_their_file(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (lab / "packaged.py").write_text(SOURCE.decode().replace("def mine", "def other"))
    entry = SimpleNamespace(name="other", value="packaged:other", dist=None)
    monkeypatch.setattr("rpbench.catalog.entry_points", lambda group: [entry] if group == "rpbench.schemes" else [])
    monkeypatch.syspath_prepend(lab)
    row = find_row(Wish("other", "own.toml", lab / "store"))
    assert row.source is not None
    assert (row.source.path.name, row.said.name) == ("packaged.py", "other")


# The card


def test_a_card_from_a_file(lab: Path) -> None:
    (lab / "card.toml").write_text('author = "A"\nversion = "1"\nlicence = "MIT"\ndate = 2026-01-02\nclaim = "x"\n')
    done = submit("--card", "card.toml", "--author", "B", card=False)
    assert done.exit_code == 0, done.stderr
    card = open_bundle(lab / "mine-own.zip").manifest.card
    assert (card.author, card.licence, card.date, card.claim) == ("B", "MIT", "2026-01-02", "x")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("license = 'MIT'", "no key of a card ('card.toml') 'license': did you mean 'licence'?"),
        ("version = 1", "version is 1: write it as text, in quotes"),
        ("version =", "cannot be read"),
    ],
)
def test_cards_that_are_wrong(text: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("card.toml").write_text(text)
    with pytest.raises(UsageError) as caught:
        read_card(Path("card.toml"))
    assert says in str(caught.value)


def test_values_of_a_card_that_cannot_be(lab: Path) -> None:
    row = find_row(Wish("./mine.py", "own.toml", lab / "store"))
    found = [v.why for v in refusals(row, CARD | {"author": "x" * 201, "date": "soon"})]
    assert len(found) == 2
    assert "the card's author: string should have at most 200 characters" in found


def test_equal_rows_give_equal_bytes(lab: Path) -> None:
    row = find_row(Wish("./mine.py", "own.toml", lab / "store"))
    sheet = scored_sheet(row)
    first, second = (make(row, CARD | {"date": "2026-01-01"}, sheet, Path("x.zip")) for _ in range(2))
    assert first == second
    for name in ("a.zip", "b.zip"):
        bundles.zipped(lab / name, {k: v if isinstance(v, bytes) else v.read_bytes() for k, v in first.parts.items()})
    assert (lab / "a.zip").read_bytes() == (lab / "b.zip").read_bytes()
