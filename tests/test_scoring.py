"""The five axes of a net trained elsewhere, as a library call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import rpbench
from rpbench.models import build, resolve
from rpbench.scoring import load_model
from rpbench.task import load_task


def net() -> nn.Module:
    torch.manual_seed(0)
    return build(resolve("resnet8", "cifar"), 10, 1, 8)


@pytest.mark.parametrize("wrap", [str, Path, lambda p: [p], lambda p: [str(p)]])
def test_data_as_one_folder_or_several(wrap: Any, tmp_path: Path) -> None:
    found = rpbench.evaluate(net(), "digits", data=wrap(tmp_path), limit_test=50)
    assert found["data"]["digits"]["n"] == 50
    assert not found["protocol"]["on"]


def test_the_net_is_left_as_it_was() -> None:
    model = net().double().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    masks = rpbench.plan(model, "erk", 0.2).draw(0)
    rpbench.prune(model, masks)
    found = rpbench.evaluate(model, "digits", limit_test=50)
    assert model.training
    assert next(model.parameters()).dtype is torch.float64
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items() if k not in masks)
    assert found["density"]["kept"] == 15_414
    assert found["density"]["kept_per_layer"] == [int(m.sum()) for m in masks.values()]


def test_a_net_of_another_task_is_refused() -> None:
    with pytest.raises(rpbench.ModelError, match=r"outputs of shape \(2, 7\)"):
        rpbench.evaluate(nn.Sequential(nn.Flatten(), nn.Linear(64, 7)), "digits")


def test_a_net_of_nan_is_refused() -> None:
    model = net()
    nn.init.constant_(model.fc.weight, float("nan"))  # type: ignore[union-attr, arg-type]
    with pytest.raises(rpbench.ModelError, match="not finite"):
        rpbench.evaluate(model, "digits", limit_test=50)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module.", "net."])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_under_the_prefixes_of_wrappers(prefix: str, suffix: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model, file = net(), tmp_path / f"net{suffix}"
    state = {f"{prefix}{k}": v for k, v in model.state_dict().items()}
    if suffix == ".pt":
        torch.save(state, file)
    else:
        save_file(state, file)
    loaded = load_model(load_task("digits"), "resnet8", file)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in loaded.state_dict().items())


def test_a_submodule_called_net_is_no_prefix(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(
        "from torch import nn\n"
        "class Own(nn.Module):\n"
        "    def __init__(self, classes):\n"
        "        super().__init__()\n"
        "        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n"
        "    def forward(self, x): return self.net(x)\n"
        "def make(classes): return Own(classes)\n"
    )
    weights = tmp_path / "own.pt"
    torch.save({"net.1.weight": torch.ones(10, 64), "net.1.bias": torch.zeros(10)}, weights)
    assert load_model(load_task("digits"), f"{file}:make", weights).net[1].weight.sum() == 640  # type: ignore[index, union-attr]


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(rpbench.ModelError, match="not a state dict that can be read safely"):
        load_model(load_task("digits"), "resnet8", tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()
