"""Records and identities: what others' scripts and stores rely on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import rpbench.record
from rpbench.cell import ask
from rpbench.record import RunRecord, json_schema
from rpbench.store import CellFolder, load_records, records

SCHEMA = Path(rpbench.record.__file__).with_name("record.schema.json")

# A change here renames every cell in every store: bump the task's version or leave the defaults alone.
IDENTITIES: dict[str, dict[str, Any]] = {
    "digits-resnet8-erk-0.2-s0-150b22448c96": {},
    "cifar10-resnet20-erk-0.5-s0-d37b42143088": {"task": "cifar10"},
    "cifar10-resnet20-snip-0.1-s3-9db8d8b85e72": {
        "task": "cifar10",
        "scheme": "snip:reinit=xavier",
        "density": 0.1,
        "seed": 3,
        "mask_seed": 4,
    },
    "imagenet-wrn50-snip-0.3-s0-7e952ef49296": {
        "task": "imagenet",
        "overrides": ("recipe.epochs=1",),
        "limit": 100,
        "precision": "bf16",
    },
}


@pytest.mark.parametrize(("name", "asked"), IDENTITIES.items())
def test_identities_never_change(name: str, asked: dict[str, Any]) -> None:
    assert ask(**asked).run_id({}) == name


def test_what_is_asked_decides_the_identity() -> None:
    base = ask().run_id({})
    assert ask(task="digits", model="resnet8", scheme="erk", density=0.2).run_id({}) == base
    assert ask(overrides=("recipe.epochs=30",)).run_id({}) == base
    others: list[dict[str, Any]] = [
        {"seed": 1}, {"mask_seed": 1}, {"order_seed": 1}, {"density": 0.1}, {"sampler": "bernoulli"}, {"limit": 9},
        {"precision": "bf16"}, {"micro_batch": 8}, {"overrides": ("recipe.epochs=1",)}, {"scheme": "er"},
        {"model": "resnet14"}, {"scheme": "erk_plus:classifier=0.5"}, {"limit_test": 3},
    ]  # fmt: skip
    ids = {ask(**other).run_id({}) for other in others} | {base, ask().run_id({"digits/train": 3})}
    assert len(ids) == len(others) + 2


def test_an_edited_density_file_is_another_cell(tmp_path: Path) -> None:
    file = tmp_path / "d.json"
    ids = set()
    for text in ("[0.1]", "[0.2]"):
        file.write_text(text)
        ids.add(ask(scheme=f"given:file={file}", density=0.2).run_id({}))
    assert len(ids) == 2


def test_schema_that_ships_is_the_schema() -> None:
    assert json.loads(SCHEMA.read_text()) == json_schema(), "python -m rpbench.record > rpbench/record.schema.json"


def a_record() -> dict[str, Any]:
    return {
        "schema": "rpbench.record/1", "run_id": "x", "status": "ok",
        "task": {"name": "digits", "version": 1, "spec": "s"}, "model": {"name": "m", "params": 1, "prunable": 1},
        "scheme": {"name": "erk", "args": {}, "source": "", "batches": 0}, "sampler": {"name": "exact", "args": {}},
        "density": {
            "requested": 0.2, "allocated": 0.2, "realised": 0.2, "effective": 0.2, "kept": 1, "prunable": 5,
            "kept_per_layer": [1],
        },
        "seeds": {"run": 0, "init": 0, "mask": 0, "order": 0}, "precision": "fp32",
        "protocol": {"on": True, "overrides": {}, "limit": None}, "metrics": {"top1": 0.5}, "last": {},
        "masks": {"digest_start": "a", "digest_end": "a"}, "data": {},
        "cost": {"params": 1, "dense_macs": 1, "sparse_macs": 1},
        "env": {}, "command": "rpbench run",
    }  # fmt: skip


def test_records_validate_against_the_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(RunRecord.model_validate(a_record()).as_json(), json_schema())


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    folder = CellFolder(tmp_path, "x")
    folder.create()
    record = RunRecord.model_validate(a_record() | {"later_key": [1]})
    folder.write_record(record)
    assert folder.record() == record
    assert record.as_json()["later_key"] == [1]


@pytest.mark.parametrize(
    "change",
    [{"metrics": {"top1": float("nan")}}, {"status": "great"}, {"schema": "rpbench.record/9"}, {"precision": "fp8"}],
)
def test_records_that_are_not(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RunRecord.model_validate(a_record() | change)


def test_a_broken_record_hides_no_other(tmp_path: Path) -> None:
    for name, text in {"a": "{", "b": json.dumps(a_record()), "c": "\x00"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "record.json").write_text(text)
    assert [r.run_id for r in records(tmp_path)] == ["x"]
    assert len(load_records(tmp_path)) == 1
