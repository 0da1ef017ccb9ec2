"""The ImageNet job on a folder of small images: real decoding and workers, two processes, killed and resumed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
from click.testing import Result
from forked import Forked, killed
from PIL import Image

from rpbench.cell import ask
from rpbench.errors import Interrupted
from rpbench.machine import Processes
from rpbench.progress import Quiet
from rpbench.run import Wish, run_cell

Invoke = Callable[..., Result]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageNet's and ImageNet-O's layouts: 90 training, 21 validation and 10 OoD images of 40 x 48 pixels."""
    root = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    for split, count in (("imagenet/train", 30), ("imagenet/val", 7), ("imagenet-o", 3)):
        for c in range(3):
            place = root / split / f"n0000000{c}"
            place.mkdir(parents=True)
            for i in range(count + (split == "imagenet-o" and c == 0)):
                pixels = draw.integers(0, 256, (40, 48, 3)) // 2 + 60 * np.eye(3, dtype=int)[c]
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"n0000000{c}_{i}.JPEG")
    return root


NET = """from torch import nn

def make(classes):
    def part(before, after):
        return nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()

    return nn.Sequential(*part(3, 8), *part(8, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes))
"""


@pytest.fixture(scope="module")
def asked(folder: Path) -> list[str]:
    net = folder / "net.py"
    net.write_text(NET)
    small = ("data.size=32", "augment.resize=36", "recipe.batch=16", "recipe.epochs=2", "recipe.lr=0.05",
             "recipe.probe_batch=16")  # fmt: skip
    words = ["--task", "imagenet", "--model", f"{net}:make", "--scheme", "snip", "--density", "0.3"]
    return [*words, "--data", str(folder), *(w for s in small for w in ("--set", s)), "--format", "json"]


@pytest.fixture(scope="module")
def alone(one_thread: None, tmp_path_factory: pytest.TempPathFactory, asked: list[str], invoke: Invoke) -> Path:
    store = tmp_path_factory.mktemp("one")
    done = invoke("run", *asked, "--workers", "0", "--store", str(store))
    assert done.exit_code == 0, done.stderr
    return store / json.loads(done.stdout)["run_id"]


def read(cell: Path) -> dict[str, Any]:
    return json.loads((cell / "record.json").read_text())  # type: ignore[no-any-return]


def test_record_of_the_imagenet_job(alone: Path) -> None:
    record = read(alone)
    assert not record["protocol"]["on"]
    assert "imagenet (train) has 90 images, its definition says 1,281,167" in record["protocol"]["notes"]
    train = record["data"]["imagenet/train"]
    assert (train["trained_on"], train["validation"]) == (89, 1)
    assert {name: record["data"][name]["n"] for name in ("imagenet", "imagenet-o")} == {
        "imagenet": 21,
        "imagenet-o": 10,
    }
    assert {"top1", "top5", "auroc/imagenet-o", "robust/fgsm-8"} <= set(record["metrics"])
    with np.load(alone / "outputs" / "selected" / "test.npz") as test:
        assert set(test) == {"labels", "prediction", "confidence", "energy", "loss", "rank", "brier"}
        assert float((test["rank"] <= 5).mean()) == record["metrics"]["top5"]
        assert float(test["loss"].mean()) == pytest.approx(record["metrics"]["nll"])


def test_workers_change_nothing(alone: Path, tmp_path: Path, asked: list[str], invoke: Invoke) -> None:
    done = invoke("run", *asked, "--workers", "2", "--store", str(tmp_path))
    assert done.exit_code == 0, done.stderr
    other = tmp_path / alone.name
    assert (other / "curve.jsonl").read_text() == (alone / "curve.jsonl").read_text()
    assert read(other)["metrics"] == read(alone)["metrics"]


def test_killed_and_resumed(alone: Path, tmp_path: Path, asked: list[str], invoke: Invoke) -> None:
    process = Forked(killed, "run", *asked, "--workers", "1", "--store", str(tmp_path))
    said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, said
    assert (tmp_path / alone.name / "checkpoint.safetensors").exists()
    assert not (tmp_path / alone.name / "record.json").exists()
    assert invoke("run", *asked, "--workers", "0", "--store", str(tmp_path)).exit_code == 0
    assert read(tmp_path / alone.name)["metrics"] == read(alone)["metrics"]
    assert (tmp_path / alone.name / "curve.jsonl").read_text() == (alone / "curve.jsonl").read_text()


def test_a_signal_to_all_processes_of_a_run_is_an_interruption(tmp_path: Path, asked: list[str]) -> None:
    longer = ("--set", "recipe.epochs=500", "--workers", "2", "--store", str(tmp_path))
    process = forked.run(*asked, *longer, own_group=True)
    while process.poll() is None and not list(tmp_path.glob("*/checkpoint.safetensors")):
        time.sleep(0.01)
    time.sleep(0.3)  # into the next epoch
    os.killpg(process.pid, signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "stopped by SIGTERM" in said
    assert not list(tmp_path.glob("*/record.json"))


def test_an_error_after_a_signal_is_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a decode process dies of the signal before it can hear it."""

    def training(work: Any, state: Any, caught: list[int]) -> Iterator[None]:
        yield
        if stopped:
            os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("DataLoader worker exited unexpectedly")

    monkeypatch.setattr("rpbench.run.training", training)
    stopped = True
    with pytest.raises(Interrupted, match="SIGTERM"):
        run_cell(ask(), Wish(store=tmp_path), Quiet(), Processes())
    assert not list(tmp_path.glob("*/record.json"))
    stopped = False
    assert run_cell(ask(), Wish(store=tmp_path), Quiet(), Processes()).record.status == "failed"


def test_two_processes_share_the_images(alone: Path, tmp_path: Path, asked: list[str]) -> None:
    with forked.run_together(2, *asked, "--workers", "1", "--store", str(tmp_path)) as processes:
        said = [process.communicate(timeout=200) for process in processes]
        assert [process.returncode for process in processes] == [0, 0], said
    record = json.loads(said[0][0])
    assert record["masks"] == read(alone)["masks"]
    assert record["data"] == read(alone)["data"]
    with np.load(tmp_path / alone.name / "outputs" / "selected" / "test.npz") as test:
        assert test["labels"].tolist() == sorted(test["labels"].tolist())
        assert len(test["prediction"]) == 21
