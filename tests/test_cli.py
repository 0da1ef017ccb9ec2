"""The command line: bad input ends in one sentence and exit code 2; results have the published shapes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

Invoke = Callable[..., Result]
ROOT = Path(__file__).resolve().parent.parent

BAD = [
    (("run", "--task", "cifr10"), "no task 'cifr10': did you mean 'cifar10'?"),
    (("run", "--model", "resnet21"), "no model 'resnet21': did you mean 'resnet20'?"),
    (("run", "--scheme", "ERK"), "no scheme 'ERK': did you mean 'erk'? there is balanced, dense, er, erk"),
    (("run", "--sampler", "exakt"), "no sampler 'exakt': did you mean 'exact'?"),
    (("run", "--density", "0"), "density 0.0 is not a fraction"),
    (("run", "--density", "1.5"), "density 1.5 is not a fraction"),
    (("run", "--density", "nan"), "nan is not a finite number"),
    (("run", "--density", "half"), "'half' is not a number"),
    (("run", "--sparsity", "1"), "--sparsity 1 is not a fraction of weights removed"),
    (("run", "--sparsity", "0.5", "--density", "0.5"), "not both"),
    (("run", "--scheme", "dense", "--density", "0.5"), "density 1 by definition"),
    (("run", "--scheme", "snip:reinit=foo"), "choose none or xavier"),
    (("run", "--scheme", "snip:batch=3"), "did you mean 'batches'?"),
    (("run", "--scheme", "snip:batches"), "write snip:key=value"),
    (("run", "--scheme", "given"), "needs given:file=..."),
    (("run", "--scheme", "given:file=/nowhere.json"), "there is no file"),
    (("run", "--scheme", "./nofile.py"), "does not exist"),
    (("run", "--sampler", "scored"), "'erk' scores none"),
    (("run", "--set", "recipe.epoch=3"), "did you mean 'recipe.epochs'?"),
    (("run", "--set", "recipe.epochs=many"), 'recipe.epochs is "many": input should be a valid integer'),
    (("run", "--set", "recipe.epochs=0"), "greater than or equal to 1"),
    (("run", "--set", "recipe.nesterov=3"), "recipe.nesterov is 3: input should be a valid boolean"),
    (("run", "--set", "data.set=svnh"), "did you mean 'svhn'?"),
    (("run", "--set", "nonsense"), "write KEY=VALUE"),
    (("run", "--seed", "-1"), "seeds are whole numbers from 0"),
    (("run", "--limit", "0"), "0 is not in the range"),
    (("run", "--data", "bogus=/tmp"), "no image set 'bogus'"),
    (("run", "--set", "data.set=noise"), "cannot train on image set 'noise': it has no labels"),
    (("run", "--set", "data.test=validation"), "has no split 'validation': it has train, test"),
    (("plan", "--scheme", "snip:batches=0"), "it must be at least 1"),
    (("run", "--data", "/nowhere"), "there is no folder '/nowhere'"),
    (("run", "--store", "/proc/nope", "--set", "recipe.epochs=1"), "cannot be written"),
    (("run", "--task", "cifar10"), "get it with: rpbench data prepare cifar10"),
    (("run", "--model", "wrn50"), "takes 3 channels, this task has 1"),
    (("run", "--model", "vgg16"), "cannot take an input of shape (1, 8, 8)"),
    (("run", "--model", "./nonet.py:make"), "does not exist"),
    (("plan", "--scheme", "erk_plus", "--density", "0.001"), "the least density that works is"),
    (("plan", "--density", "1e-9"), "keeps none of 77,072 weights"),
    (("plan", "--scheme", "snip", "--task", "cifar100"), "is not on this machine"),
    (("show", "nothing"), "has no finished cells"),
    (("score", "--weights", "/nowhere.pt"), "there is no such file"),
    (("data", "check", "svnh"), "did you mean 'svhn'?"),
    (("data", "prepare", "imagenet-o"), "put its folder there"),
]


@pytest.mark.parametrize(("args", "says"), BAD, ids=lambda v: " ".join(v) if isinstance(v, tuple) else "")
def test_bad_input_is_one_sentence(args: tuple[str, ...], says: str, invoke: Invoke, tmp_path: Path) -> None:
    result = invoke(*args)
    assert result.exit_code == 2
    assert result.stdout == ""
    error = result.stderr.rstrip().splitlines()[-1]
    assert error.startswith("Error: ")
    assert says in error
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "runs").exists()  # nothing was written


SCHEME = "from rpbench import shape_scheme\n\n@shape_scheme\ndef mine(table, density):\n    {}\n"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return {l.name: 1.0 for l in table}", "off budget: 0.2 of 77,072 weights is 15,414, allocated 77,072"),
        ("return {l.name: float('nan') for l in table}", "is nan: it must lie in [0, 1]"),
        ("return {}", "no density for conv.weight"),
        ("return dict.fromkeys(table.names, 'x')", "is x: it must lie in [0, 1]"),
        ("return 3", "scheme 'mine' gave a int, not a mapping"),
        ("return {l.nume: density for l in table}", "has no attribute 'nume' (mine.py, line 5)"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_scheme_file_that_breaks_its_contract(
    command: str, body: str, says: str, tmp_path: Path, invoke: Invoke
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(SCHEME.format(body))
    result = invoke(command, "--scheme", str(file), "--density", "0.2")
    assert result.exit_code == 2
    assert says in result.stderr.rstrip().splitlines()[-1]
    assert not (tmp_path / "runs").exists()


def test_a_scheme_of_ones_own_in_ten_lines(tmp_path: Path, invoke: Invoke) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from rpbench import shape_scheme, spread\n\n\n@shape_scheme\ndef mine(table, density, *, power=0.5):\n"
        '    """Densities fall with the square root of a layer\'s size. https://example.org"""\n'
        "    return spread(table, lambda layer: layer.numel**-power, density)\n"
    )
    found = json.loads(invoke("plan", "--scheme", f"{file}:power=0.7", "--format", "json").stdout)
    assert (found["scheme"], found["kept"]) == ("mine", 15_414)
    done = invoke("run", "--scheme", str(file), "--set", "recipe.epochs=1", "--format", "json")
    assert done.exit_code == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["scheme"]["name"] == "mine"
    assert record["scheme"]["args"] == {"power": 0.5}


def test_names_inside_a_definition_are_told_with_their_file(tmp_path: Path, invoke: Invoke) -> None:
    text = (ROOT / "tasks" / "digits.toml").read_text()
    file = tmp_path / "mine.toml"
    file.write_text(text.replace('["photos", "noise"]', '["foto", "noise"]').replace('"erk"', '"erq"'))
    result = invoke("run", "--task", str(file))
    assert result.exit_code == 2
    for says in (
        str(file),
        "2 faults",
        "evaluation.ood (line 39): no image set 'foto'",
        "no scheme 'erq': did you mean",
    ):
        assert says in result.stderr


def test_an_image_set_of_ones_own(tmp_path: Path, invoke: Invoke) -> None:
    from PIL import Image

    (tmp_path / "faces" / "test").mkdir(parents=True)
    for i in range(5):
        Image.new("L", (8, 8), 40 * i).save(tmp_path / "faces" / "test" / f"{i}.png")
    own = tmp_path / "faces.toml"
    own.write_text(
        'name = "faces"\nsummary = "s"\nurl = "https://example.org"\nsource = "folder"\nlabels = false\n'
        "[splits.test]\nn = 5\n"
    )
    asked = ("--set", f'evaluation.ood=["{own}"]', "--set", "recipe.epochs=1", "--format", "json")
    done = invoke("run", *asked, "--data", str(tmp_path))
    assert done.exit_code == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["data"]["faces"]["n"] == 5
    assert "auroc/faces" in record["metrics"]


def test_definition_with_three_faults_tells_all(tmp_path: Path, invoke: Invoke) -> None:
    text = (ROOT / "tasks" / "digits.toml").read_text()
    broken = text.replace("epochs = 30", 'epochs = "thirty"').replace("flip = false", "flop = false")
    file = tmp_path / "mine.toml"
    file.write_text(broken.replace("classes = 10\n", ""))
    result = invoke("run", "--task", str(file))
    assert result.exit_code == 2
    for says in (
        "3 faults",
        'recipe.epochs (line 24) is "thirty"',
        "augment.flop (line 21)",
        "data.classes is missing",
    ):
        assert says in result.stderr


def test_a_key_is_not_its_own_likeness_and_a_fault_is_told_once(tmp_path: Path, invoke: Invoke) -> None:
    head = 'name = "mine"\nversion = 1\nsummary = "x"\nurl = "x"\nseeds = [0]\n'
    file = tmp_path / "mine.toml"
    file.write_text(f'{head}[[grids]]\ntask = "digits"\nmodels = ["resnet8"]\ndensities = [1.5]\n')
    error = invoke("sweep", str(file)).stderr
    assert "1 fault: grids.0.densities.0 is 1.5" in error
    error = invoke("claims", str(file)).stderr  # a board where a claim is wanted
    assert "grids (line 6) is not a key that exists here" in error
    assert "did you mean 'grids'" not in error


PLAN_KEYS = {
    "model",
    "scheme",
    "requested",
    "allocated",
    "kept",
    "prunable",
    "dense_macs",
    "sparse_macs",
    "warnings",
    "layers",
}


@pytest.mark.parametrize(
    "args",
    [(), ("--task", "cifar10"), ("--task", "imagenet", "--model", "resnet50", "--scheme", "erk"), ("--scheme", "snip")],
)
def test_plan_as_json(args: tuple[str, ...], invoke: Invoke) -> None:
    found = json.loads(invoke("plan", *args, "--format", "json").stdout)
    assert set(found) >= PLAN_KEYS
    assert set(found["layers"][0]) >= {"name", "shape", "numel", "density", "kept", "macs"}
    assert found["kept"] == sum(layer["kept"] for layer in found["layers"])
    assert found["dense_macs"] == sum(layer["macs"] for layer in found["layers"])


def test_sparsity_is_the_same_cell_as_density(invoke: Invoke) -> None:
    plans = [invoke("plan", *args, "--format", "json").stdout for args in (("--sparsity", "0.9"), ("--density", "0.1"))]
    assert plans[0] == plans[1]


@pytest.mark.parametrize("what", ["schemes", "samplers", "tasks", "models", "sets", "attacks"])
def test_lists(what: str, invoke: Invoke) -> None:
    rows = json.loads(invoke("list", what, "--format", "json").stdout)
    assert rows
    assert all({"name", "summary", "source"} <= set(row) for row in rows)
    assert all(row["source"].startswith("http") for row in rows)
    text = invoke("list", what).stdout
    assert all(len(line) <= 80 for line in text.splitlines())
    assert json.loads(invoke("show", rows[0]["name"], "--format", "json").stdout)["name"] == rows[0]["name"]


def test_list_figures(invoke: Invoke) -> None:
    rows = json.loads(invoke("list", "figures", "--format", "json").stdout)
    assert {"fig1", "fig3", "fig17"} <= {row["name"] for row in rows}
    assert next(row["board"] for row in rows if row["name"] == "fig3") == "fig1"


def test_score_a_net_trained_elsewhere(tmp_path: Path, invoke: Invoke) -> None:
    import torch

    from rpbench.models import build, resolve

    torch.manual_seed(0)
    net = build(resolve("resnet8", "cifar"), 10, 1, 8)
    torch.save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, tmp_path / "net.pt")
    result = invoke("score", "--weights", str(tmp_path / "net.pt"), "--format", "json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert {"top1", "ece", "nll", "brier", "auroc/photos", "robust/fgsm-8"} <= set(found["metrics"])
    assert found["density"]["realised"] == 1.0
    assert found["protocol"]["on"]
    assert found["cost"]["dense_macs"] == 763_520
    other = invoke("score", "--model", "resnet14", "--weights", str(tmp_path / "net.pt"))
    assert other.exit_code == 2
    assert "are not of model 'resnet14'" in other.stderr


def test_score_agrees_with_the_record(tmp_path: Path, invoke: Invoke) -> None:
    record = json.loads(invoke("run", "--set", "recipe.epochs=1", "--format", "json").stdout)
    weights = tmp_path / "runs" / record["run_id"] / "selected.safetensors"
    found = json.loads(invoke("score", "--weights", str(weights), "--format", "json").stdout)
    assert all(value == pytest.approx(record["metrics"][key], abs=1e-6) for key, value in found["metrics"].items())
    assert found["density"]["kept"] == record["density"]["kept"]


def test_show_a_cell(invoke: Invoke) -> None:
    record = json.loads(invoke("run", "--set", "recipe.epochs=1", "--format", "json").stdout)
    text = invoke("show", record["run_id"][-8:]).stdout
    assert "off protocol" in text
    assert record["command"] in text
    assert all(len(line) <= 80 for line in text.splitlines() if not line.startswith("again: "))
    assert json.loads(invoke("show", record["run_id"], "--format", "json").stdout) == record
    curve = invoke("show", record["run_id"], "--format", "curve").stdout.splitlines()
    assert json.loads(curve[0])["epoch"] == 1
    assert record["run_id"] in invoke("list", "cells").stdout


COMMANDS: list[tuple[str, ...]] = [
    (), ("run",), ("plan",), ("score",), ("list",), ("show",), ("data",),
    ("data", "list"), ("data", "prepare"), ("data", "check"), ("new",), ("try",),
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_is_instant_and_fits(command: tuple[str, ...]) -> None:
    """Under 0.3 s of processor time, at best in three times; nothing heavy is imported."""
    code = (
        "import sys, time, contextlib\n"
        "from rpbench.cli import main\n"
        f"with contextlib.suppress(SystemExit): main({[*command, '--help']!r}, prog_name='rpbench')\n"
        "heavy = {'torch', 'sklearn', 'datasets', 'accelerate', 'pydantic', 'pandas', 'numpy'} & {*sys.modules}\n"
        "print(time.process_time(), sorted(heavy), file=sys.stderr)\n"
    )
    times: list[float] = []
    while len(times) < 3 and not (times and min(times) < 0.3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        seconds, heavy = done.stderr.rsplit("\n", 2)[-2].split(" ", 1)
        assert heavy == "[]"
        assert done.stdout.startswith("Usage: rpbench")
        times.append(float(seconds))
    assert min(times) < 0.3
    assert all(len(line) <= 100 for line in done.stdout.splitlines())


def test_light_commands_do_not_import_torch() -> None:
    code = """import sys
from rpbench.cli import main
for args in (["list", "schemes"], ["list", "tasks"], ["data", "list"], ["show", "digits"]):
    main(args, standalone_mode=False)
    assert 'torch' not in sys.modules, args"""
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr


def test_plan_imports_torch_and_nothing_else_that_is_slow() -> None:
    cells = [
        [],
        ["--task", "cifar10", "--model", "resnet20", "--scheme", "erk", "--density", "0.1"],
        ["--task", "imagenet", "--model", "wrn50", "--scheme", "erk", "--density", "0.3"],
    ]
    code = f"""import contextlib, sys
from rpbench.cli import main
slow = ('torch', 'torch._dynamo', 'sympy', 'torchvision', 'sklearn', 'scipy', 'pandas', 'datasets', 'accelerate')
for args in {cells!r}:
    with contextlib.suppress(SystemExit): main(["plan", *args])
    print("imported", *(name for name in slow if name in sys.modules))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    ends = [i for i, line in enumerate(lines) if line.startswith("imported ")]
    assert [lines[i] for i in ends] == ["imported torch"] * len(cells)
    assert all(lines[i - 1].startswith("MACs ") for i in ends)


def test_training_starts_without_scikit_learn_and_torchvision(tmp_path: Path) -> None:
    code = """import sys
import rpbench.step
from rpbench.cli import main
def first_step(*_):
    print(*(name for name in ('sklearn', 'torchvision', 'pandas', 'datasets') if name in sys.modules), '.')
    raise KeyboardInterrupt
rpbench.step.Learner.step = first_step
main(['run'])"""
    env = os.environ | {"RPBENCH_STORE": str(tmp_path / "runs"), "RPBENCH_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert (done.returncode, done.stdout) == (130, ".\n"), done.stderr


@pytest.mark.parametrize("stopped", [False, True])
def test_no_error_paints(stopped: bool, monkeypatch: pytest.MonkeyPatch, invoke: Invoke) -> None:
    import rpbench.run
    from rpbench.errors import Interrupted, SchemeError

    text = "layer \x1b]0;PWN\x07\x1b[31m\u202eall\r\nis \udcff well " + "A" * 5000

    def fail(*_: Any) -> None:
        raise Interrupted(15, text) if stopped else SchemeError(text)

    monkeypatch.setattr(rpbench.run, "run_cell", fail)
    result = invoke("run")
    assert result.exit_code == (143 if stopped else 2)
    told = result.stderr.rstrip("\n").splitlines()[-1].removeprefix("Error: ")
    assert told.startswith("layer ?]0;PWN??[31m?all is ? well AAA")
    assert len(told) == 2000
    assert told.isprintable()


def test_interrupted_outside_of_training(monkeypatch: pytest.MonkeyPatch, invoke: Invoke) -> None:
    import rpbench.run

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rpbench.run, "run_cell", interrupt)
    result = invoke("run")
    assert result.exit_code == 130
    assert "stopped by SIGINT" in result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine records")
def test_a_graph_is_refused_before_anything_is_written_where_nothing_records(invoke: Invoke, tmp_path: Path) -> None:
    done = invoke("run", "--engine", "graph", "--store", str(tmp_path / "runs"))
    assert done.exit_code == 2
    assert "only CUDA devices record, this is a cpu; leave --engine out" in done.stderr
    assert not (tmp_path / "runs").exists()
