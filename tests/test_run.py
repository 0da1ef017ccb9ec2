"""One cell from its name to its record, interrupted and resumed in every way."""

from __future__ import annotations

import json
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
from click.testing import Result
from forked import Forked, Signalled, killed

import rpbench
from rpbench import metrics
from rpbench.cell import ask
from rpbench.store import CellFolder, find_cell, load_records, records

Command = Callable[..., subprocess.CompletedProcess[str]]
Invoke = Callable[..., Result]
SHORT = ("--set", "recipe.epochs=3")
LITTLE = ("--set", "recipe.epochs=1", "--limit", "500", "--limit-test", "100")  # where the numbers say nothing


def only_cell(store: Path) -> Path:
    (cell,) = (p for p in store.iterdir() if p.is_dir())
    return cell


def outcome(cell: Path) -> tuple[Any, ...]:
    """What a resumed run must share with an unbroken one, to the bit."""
    record = json.loads((cell / "record.json").read_text())
    weights = (cell / "selected.safetensors").read_bytes(), (cell / "last.safetensors").read_bytes()
    kept = {k: record[k] for k in ("run_id", "status", "metrics", "last", "density", "masks", "data", "scheme")}
    return kept, (cell / "curve.jsonl").read_text(), weights, (cell / "masks.safetensors").read_bytes()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, rpbench_command: Command) -> Path:
    store = tmp_path_factory.mktemp("unbroken")
    done = rpbench_command("run", *SHORT, "--format", "json", "--store", str(store))
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record == json.loads((only_cell(store) / "record.json").read_text())
    return only_cell(store)


def test_record_is_whole(unbroken: Path) -> None:
    record = json.loads((unbroken / "record.json").read_text())
    assert record["schema"] == "rpbench.record/1"
    assert record["run_id"] == unbroken.name
    assert record["status"] == "ok"
    assert not record["protocol"]["on"]
    assert record["protocol"]["overrides"] == {"recipe.epochs": 3}
    density = record["density"]
    assert density["kept"] == sum(density["kept_per_layer"]) == round(0.2 * density["prunable"])
    assert record["masks"]["digest_start"] == record["masks"]["digest_end"]
    assert {"top1", "nll", "brier", "ece", "val_top1", "epoch", "auroc/photos", "robust/fgsm-8"} <= set(
        record["metrics"]
    )
    assert 0.5 < record["metrics"]["top1"] <= 1
    assert sorted(p.name for p in unbroken.iterdir()) == [
        "curve.jsonl", "last.safetensors", "lock", "masks.safetensors", "outputs", "record.json",
        "selected.safetensors",
    ]  # fmt: skip


def test_every_metric_follows_from_the_outputs(unbroken: Path) -> None:
    told = json.loads((unbroken / "record.json").read_text())["metrics"]
    with np.load(unbroken / "outputs" / "selected" / "test.npz") as test:
        logits, labels = test["logits"], test["labels"]
    assert logits.dtype == np.float32
    recomputed = metrics.classification(logits, labels, top5=False)
    for name in ("photos", "noise"):
        with np.load(unbroken / "outputs" / "selected" / f"{name}.npz") as outside:
            found = metrics.detection(metrics.confidence(logits), metrics.confidence(outside["logits"]))
        recomputed |= {f"{key}/{name}": value for key, value in found.items()}
    with np.load(unbroken / "outputs" / "selected" / "fgsm-8.npz") as attacked:
        recomputed["robust/fgsm-8"] = metrics.top_k(attacked["logits"], attacked["labels"])
    assert all(told[key] == value for key, value in recomputed.items())


def test_masks_follow_from_counts_and_seed(unbroken: Path) -> None:
    from rpbench.catalog import find_sampler
    from rpbench.layers import Layer, LayerTable

    record = json.loads((unbroken / "record.json").read_text())
    plan = rpbench.plan(_net(), "erk", 0.2)
    counts = dict(zip(plan.table.names, record["density"]["kept_per_layer"], strict=True))
    table = LayerTable(tuple(Layer(x.name, x.shape, x.kind) for x in plan.table))
    exact, _ = find_sampler("exact")
    assert rpbench.digest(exact.draw(table, counts, record["seeds"]["mask"])) == record["masks"]["digest_end"]


def _net() -> Any:
    from rpbench.models import build, resolve

    return build(resolve("resnet8", "cifar"), 10, 1, 8)


def test_weights_outside_the_mask_are_zero_in_every_file(unbroken: Path) -> None:
    from safetensors.torch import load_file

    masks = load_file(unbroken / "masks.safetensors")
    for name in ("selected", "last"):
        weights = load_file(unbroken / f"{name}.safetensors")
        assert all(not weights[key][~mask].any() for key, mask in masks.items())


def test_finished_cell_is_shown_not_run(unbroken: Path, invoke: Invoke) -> None:
    before = (unbroken / "record.json").stat().st_mtime_ns
    again = invoke("run", *SHORT, "--store", str(unbroken.parent))
    assert again.exit_code == 0
    assert "finished before" in again.stderr
    assert (unbroken / "record.json").stat().st_mtime_ns == before


def test_the_recorded_command_gives_the_same_result(unbroken: Path, tmp_path: Path, invoke: Invoke) -> None:
    words = shlex.split(json.loads((unbroken / "record.json").read_text())["command"])
    assert invoke(*words[1:], "--store", str(tmp_path)).exit_code == 0
    assert outcome(only_cell(tmp_path)) == outcome(unbroken)


def start(store: Path, *args: str) -> Forked:
    return forked.run(*args, "--store", str(store))


def wait_for_checkpoint(store: Path, process: Forked) -> None:
    while process.poll() is None and not list(store.glob("*/checkpoint.safetensors")):
        time.sleep(0.01)


def stopped(number: signal.Signals, monkeypatch: pytest.MonkeyPatch, invoke: Invoke, *args: str) -> Result:
    """What the command says when it is sent a signal in its second epoch."""
    with monkeypatch.context() as patch:
        patch.setattr("rpbench.progress.progress", lambda quiet: Signalled(number))
        return invoke("run", *args)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_and_resumed_is_the_same_training(
    tmp_path: Path, number: signal.Signals, unbroken: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = (*SHORT, "--store", str(tmp_path))
    done = stopped(number, monkeypatch, invoke, *asked)
    assert done.exit_code == 128 + number
    assert "the same command goes on from here" in done.stderr
    assert_goes_on(tmp_path, unbroken, invoke)


def test_stopped_and_resumed_on_several_threads(
    tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch, set_threads: Callable[[int], None]
) -> None:
    set_threads(2)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    few = (*SHORT, "--limit", "500", "--limit-test", "100")
    assert invoke("run", *few, "--store", str(whole)).exit_code == 0
    assert stopped(signal.SIGTERM, monkeypatch, invoke, *few, "--store", str(broken)).exit_code == 143
    assert_goes_on(broken, only_cell(whole), invoke, few)


def test_killed_and_resumed_is_the_same_training(tmp_path: Path, unbroken: Path, invoke: Invoke) -> None:
    process = Forked(killed, "run", *SHORT, "--store", str(tmp_path))
    _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, err
    assert_goes_on(tmp_path, unbroken, invoke)


def assert_goes_on(store: Path, unbroken: Path, invoke: Invoke, asked: Sequence[str] = SHORT) -> None:
    """To the record, the weights and the curve of a run that nothing has stopped."""
    assert list(store.glob("*/checkpoint.safetensors"))
    assert not list(store.glob("*/record.json"))
    assert invoke("run", *asked, "--store", str(store)).exit_code == 0
    assert outcome(only_cell(store)) == outcome(unbroken)


KILLED = {
    "digits": ["--set", "recipe.epochs=100"],
    "cifar10": ["--skip-missing", "--model", "resnet8", "--limit", "1500", "--limit-test", "300"],
}


@pytest.mark.slow
@pytest.mark.parametrize("task", KILLED)
def test_killed_ten_times_at_random(
    task: str, tmp_path: Path, request: pytest.FixtureRequest, rpbench_command: Command
) -> None:
    """SIGKILL at random moments over one run: the same metrics, curve and masks as without kills."""
    asked = ["--task", task, *KILLED[task]]
    if task == "cifar10":
        asked += ["--data", str(request.getfixturevalue("real_images")), "--set", "recipe.epochs=40"]
    assert rpbench_command("run", *asked, "--store", str(tmp_path / "whole")).returncode == 0
    draw = random.Random(task)
    for kill in range(10):
        process = start(tmp_path / "killed", *asked)
        if kill % 3 == 0:  # while it starts, plans, loads
            time.sleep(draw.uniform(0.2, 5))
        else:
            before = checkpoint_times(tmp_path / "killed")
            while process.poll() is None and checkpoint_times(tmp_path / "killed") == before:
                time.sleep(0.01)
            time.sleep(draw.uniform(0, 0.5))
        assert process.poll() is None, "the run ended before its tenth kill"
        process.kill()
        process.communicate()
    assert not list((tmp_path / "killed").glob("*/record.json"))
    assert rpbench_command("run", *asked, "--store", str(tmp_path / "killed")).returncode == 0
    assert outcome(only_cell(tmp_path / "killed")) == outcome(only_cell(tmp_path / "whole"))


def checkpoint_times(store: Path) -> list[int]:
    return [path.stat().st_mtime_ns for path in store.glob("*/checkpoint.safetensors")]


def test_two_processes_on_one_cell(tmp_path: Path, invoke: Invoke) -> None:
    process = start(tmp_path, "--set", "recipe.epochs=200")
    wait_for_checkpoint(tmp_path, process)
    second = invoke("run", "--set", "recipe.epochs=200", "--store", str(tmp_path))
    process.kill()
    process.communicate()
    assert second.exit_code == 2
    assert "another process is working on this cell" in second.stderr


def test_force_starts_over(tmp_path: Path, invoke: Invoke) -> None:
    short = ("run", *LITTLE, "--store", str(tmp_path))
    assert invoke(*short).exit_code == 0
    before = outcome(only_cell(tmp_path))
    (only_cell(tmp_path) / "record.json").write_text('{"half": ')
    broken = invoke(*short)
    assert broken.exit_code == 2
    assert "is not valid" in broken.stderr
    assert invoke(*short, "--force").exit_code == 0
    assert outcome(only_cell(tmp_path)) == before


def test_a_checkpoint_of_another_cell_is_refused(
    tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(signal.SIGTERM, monkeypatch, invoke, *SHORT, "--store", str(tmp_path))
    theirs = only_cell(tmp_path)
    assert invoke("run", *LITTLE, "--store", str(tmp_path)).exit_code == 0
    mine = next(p.parent for p in tmp_path.glob("*/record.json"))
    (mine / "record.json").unlink()
    (theirs / "checkpoint.safetensors").rename(mine / "checkpoint.safetensors")
    refused = invoke("run", *LITTLE, "--store", str(tmp_path))
    assert refused.exit_code == 2
    assert "a checkpoint of another cell" in refused.stderr
    (mine / "checkpoint.safetensors").write_bytes(b"garbage")
    assert "cannot be read" in invoke("run", *LITTLE, "--store", str(tmp_path)).stderr


@pytest.mark.parametrize(
    ("args", "status", "says"),
    [
        (("--scheme", "erk_plus", "--density", "0.001"), "infeasible", "the least density that works is"),
        (("--set", "recipe.lr=1e30", "--set", "recipe.epochs=2"), "diverged", "loss is"),
    ],
)
def test_cells_without_a_usable_result(
    tmp_path: Path, args: tuple[str, ...], status: str, says: str, invoke: Invoke
) -> None:
    done = invoke("run", *args, "--store", str(tmp_path), "--format", "json")
    assert done.exit_code == 1
    record = json.loads(done.stdout)
    assert record["status"] == status
    assert says in record["error"]
    assert record["metrics"] == {}
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_net_that_breaks_ends_as_failed(tmp_path: Path, invoke: Invoke) -> None:
    net = tmp_path / "net.py"
    net.write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, classes):\n"
        "        super().__init__()\n"
        "        self.fc = torch.nn.Linear(64, classes)\n"
        "    def forward(self, x):\n"
        "        if self.training: raise RuntimeError('on purpose')\n"
        "        return self.fc(x.flatten(1))\n"
        "def make(classes): return Net(classes)\n"
    )
    done = invoke("run", "--model", f"{net}:make", "--store", str(tmp_path / "s"), "--format", "json")
    assert done.exit_code == 1
    record = json.loads(done.stdout)
    assert (record["status"], record["error"]) == ("failed", "RuntimeError: on purpose")
    assert "Traceback" not in done.stderr
    assert "on purpose" in (only_cell(tmp_path / "s") / "error.txt").read_text()
    net.write_text(net.read_text().replace("if self.training: raise RuntimeError('on purpose')", "pass"))
    mended = invoke("run", "--model", f"{net}:make", *LITTLE, "--store", str(tmp_path / "s"))
    assert mended.exit_code == 0, mended.stderr


SCHEME = """from rpbench import shape_scheme

@shape_scheme
def erk(table, density):
    return dict.fromkeys(table.names, density)
"""


def test_a_file_of_ones_own_is_known_by_its_content(tmp_path: Path, invoke: Invoke) -> None:
    """Not by its name, which may be that of a baseline; an edited file is another cell."""
    file = tmp_path / "erk.py"
    ids = [ask(scheme="erk").run_id({})]
    for text in (SCHEME, SCHEME + "# changed\n"):
        file.write_text(text)
        ids.append(ask(scheme=str(file)).run_id({}))
    net = tmp_path / "net.py"
    for text in ("def make(): ...\n", "def make(): pass\n"):
        net.write_text(text)
        ids.append(ask(model=f"{net}:make").run_id({}))
    sampler = tmp_path / "exact.py"
    sampler.write_text("from rpbench import mask_sampler\n@mask_sampler\ndef exact(table, counts, key, scores): ...\n")
    ids.append(ask(sampler=str(sampler)).run_id({}))
    assert len(set(ids)) == len(ids)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (moved / "net.py").write_text(net.read_text())
    assert ask(model=f"{moved}/net.py:make").run_id({}) == ids[4]
    done = invoke("run", "--scheme", str(file), *LITTLE, "--format", "json")
    assert json.loads(done.stdout)["density"]["kept_per_layer"] != rpbench.plan(_net(), "erk", 0.2).counts


def test_a_record_of_a_changed_baseline_is_stale(tmp_path: Path, invoke: Invoke) -> None:
    asked = ("run", *LITTLE)
    invoke(*asked)
    path = only_cell(tmp_path / "runs") / "record.json"
    record = json.loads(path.read_text())
    record["scheme"]["source"] = "0" * 64
    path.write_text(json.dumps(record))
    assert "stale: the source of scheme 'erk' has changed" in invoke(*asked).stderr


def test_provenance_is_of_the_plan_not_of_the_end(tmp_path: Path, invoke: Invoke) -> None:
    """A density file that is gone when the run ends: the record tells what was read at its start."""
    plan = rpbench.plan(_net(), "er", 0.2)
    file = tmp_path / "d.json"
    file.write_text(json.dumps([layer.density for layer in plan.layers]))
    cell = ask(scheme=f"given:file={file}", density=0.2, overrides=("recipe.epochs=1",))
    from rpbench.machine import Processes
    from rpbench.progress import Quiet
    from rpbench.run import Wish, run_cell

    class Removing(Quiet):
        def start(self, *_: Any) -> None:
            file.unlink()

    record = run_cell(cell, Wish(tmp_path / "s"), Removing(), Processes()).record
    assert record.status == "ok", record.error
    assert record.scheme.args["file"].startswith("d.json#sha256:")
    assert record.density.kept_per_layer == list(plan.counts.values())


def test_a_lock_does_not_outlive_its_process(tmp_path: Path) -> None:
    """Decode workers are forked: one that outlives its killed parent must not hold the cell."""
    code = (
        "import os, sys, time, pathlib\n"
        "from rpbench.store import CellFolder\n"
        "cell = CellFolder(pathlib.Path(sys.argv[1]), 'x')\n"
        "cell.create()\n"
        "with cell.lock() as mine:\n"
        "    assert mine\n"
        "    if os.fork() == 0: time.sleep(20); os._exit(0)\n"
        "    print('held', flush=True)\n"
        "    time.sleep(20)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "held\n"
    with CellFolder(tmp_path, "x").lock() as mine:
        assert not mine
    owner.kill()
    owner.wait()
    owner.stdout.close()
    with CellFolder(tmp_path, "x").lock() as mine:
        assert mine


@pytest.mark.parametrize("scheme", ["snip", "grasp", "dense", "snip:reinit=xavier,batches=2"])
def test_other_schemes_on_the_line(tmp_path: Path, scheme: str, invoke: Invoke) -> None:
    few = ("--set", "recipe.epochs=1", "--limit-test", "100")
    done = invoke("run", "--scheme", scheme, *few, "--store", str(tmp_path), "--format", "json")
    assert done.exit_code == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["scheme"]["batches"] == {"snip": 1, "dense": 0}.get(scheme, 2)
    assert record["density"]["requested"] == (1.0 if scheme == "dense" else 0.2)


def test_seeds_set_apart_move_one_stream(tmp_path: Path, invoke: Invoke) -> None:
    found = {}
    for name, args in {"base": (), "mask": ("--mask-seed", "5"), "init": ("--init-seed", "5")}.items():
        short = (*LITTLE, "--store", str(tmp_path), "--format", "json")
        found[name] = json.loads(invoke("run", *short, *args).stdout)
    assert found["base"]["masks"] == found["init"]["masks"] != found["mask"]["masks"]
    assert found["base"]["metrics"] != found["init"]["metrics"]
    assert len({r["run_id"] for r in found.values()}) == 3


def test_gradient_flow_is_logged_per_step(tmp_path: Path, invoke: Invoke) -> None:
    done = invoke("run", *SHORT, "--track", "gradient-flow", "--store", str(tmp_path))
    assert done.exit_code == 0, done.stderr
    rows = [json.loads(line) for line in (only_cell(tmp_path) / "gradient_flow.jsonl").read_text().splitlines()]
    assert len(rows) == 3 * 19
    assert all(row["global_l2"] > 0 for row in rows)
    assert [(row["epoch"], row["step"]) for row in rows] == [(e, s) for e in (1, 2, 3) for s in range(1, 20)]


def test_records_load_as_a_frame(unbroken: Path) -> None:
    frame = load_records(unbroken.parent)
    assert list(frame["scheme.name"]) == ["erk"]
    assert frame["metrics.top1"].between(0, 1).all()
    assert [r.run_id for r in records(unbroken.parent)] == [unbroken.name]
    assert find_cell(unbroken.parent, unbroken.name[-6:]).folder == unbroken
