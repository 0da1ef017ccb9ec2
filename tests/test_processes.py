"""Several processes train what one would: the same images, the same masks, one record."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from forked import run_together

Invoke = Callable[..., Result]
ASKED = ("--set", "recipe.epochs=3", "--scheme", "snip", "--format", "json")


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two real gloo processes."""
    store = tmp_path_factory.mktemp("two")
    with run_together(2, *ASKED, "--store", str(store)) as processes:
        said = [process.communicate(timeout=200) for process in processes]
        assert [process.returncode for process in processes] == [0, 0], said
    assert said[1][0] == ""  # one process prints
    return store / json.loads(said[0][0])["run_id"]


@pytest.fixture(scope="module")
def alone(one_thread: None, tmp_path_factory: pytest.TempPathFactory, invoke: Invoke) -> Path:
    store = tmp_path_factory.mktemp("one")
    return store / json.loads(invoke("run", *ASKED, "--store", str(store)).stdout)["run_id"]


def read(cell: Path) -> dict[str, Any]:
    return json.loads((cell / "record.json").read_text())  # type: ignore[no-any-return]


def test_same_cell_same_masks(alone: Path, together: Path) -> None:
    one, two = read(alone), read(together)
    assert alone.name == together.name
    assert (one["env"]["world_size"], two["env"]["world_size"]) == (1, 2)
    assert one["density"]["kept_per_layer"] == two["density"]["kept_per_layer"]
    assert one["masks"] == two["masks"]
    assert one["data"] == two["data"]


@pytest.mark.slow
def test_the_launchers_own_command_ends_in_the_same_record(together: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         "-m", "rpbench", "run", *ASKED, "--store", str(tmp_path)],
        capture_output=True, text=True, timeout=200, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, two = read(together), json.loads(done.stdout)
    assert [one[key] for key in ("run_id", "metrics", "masks")] == [two[key] for key in ("run_id", "metrics", "masks")]


def test_same_images_nearly_the_same_net(alone: Path, together: Path) -> None:
    """BatchNorm sees half the batch on each process: close, not equal."""
    first = [json.loads((cell / "curve.jsonl").read_text().splitlines()[0]) for cell in (alone, together)]
    assert first[0]["train_loss"] == pytest.approx(first[1]["train_loss"], rel=0.15)
    assert read(together)["metrics"]["top1"] > 0.5


def test_evaluation_is_exact(together: Path) -> None:
    with np.load(together / "outputs" / "selected" / "test.npz") as outputs:
        assert outputs["logits"].shape == (397, 10)
        top1 = float((outputs["logits"].argmax(1) == outputs["labels"]).mean())
    assert read(together)["metrics"]["top1"] == top1


def test_resume_under_another_number_of_processes_is_refused(tmp_path: Path, invoke: Invoke) -> None:
    long = ("--set", "recipe.epochs=400")
    with run_together(2, *long, "--store", str(tmp_path)) as processes:
        while processes[0].poll() is None and not list(tmp_path.glob("*/checkpoint.safetensors")):
            time.sleep(0.05)
        for process in processes:
            process.send_signal(signal.SIGTERM)
        said = [process.communicate(timeout=60)[1] for process in processes]
        assert [process.returncode for process in processes] == [128 + signal.SIGTERM] * 2, said
    assert not list(tmp_path.glob("*/record.json"))
    refused = invoke("run", *long, "--store", str(tmp_path))
    assert refused.exit_code == 2
    assert "begun with 2 processes and cannot go on with 1" in refused.stderr


def test_without_batchnorm_two_processes_equal_one(tmp_path: Path, invoke: Invoke) -> None:
    """What is left of the difference is the order of additions."""
    net = tmp_path / "net.py"
    net.write_text(
        "import torch\n"
        "def make(classes):\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.ReLU(),\n"
        "                               torch.nn.Linear(32, classes))\n"
    )
    asked = ("--model", f"{net}:make", "--set", "recipe.epochs=2", "--format", "json")
    one = json.loads(invoke("run", *asked, "--store", str(tmp_path / "one")).stdout)
    with run_together(3, *asked, "--store", str(tmp_path / "three")) as processes:
        said = [process.communicate(timeout=200) for process in processes]
        assert [process.returncode for process in processes] == [0] * 3, said
    three = json.loads(said[0][0])
    assert three["masks"] == one["masks"]
    curves = [(tmp_path / d / one["run_id"] / "curve.jsonl").read_text().splitlines() for d in ("one", "three")]
    for a, b in zip(*(map(json.loads, c) for c in curves), strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4)
        assert a["train_top1"] == pytest.approx(b["train_top1"], abs=2e-3)
