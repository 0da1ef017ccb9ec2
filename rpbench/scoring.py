"""The five axes of a net trained elsewhere."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rpbench.connectivity import paths
from rpbench.data import opened
from rpbench.data.opened import Limits
from rpbench.data.sources import Roots
from rpbench.data.streamed import default_workers
from rpbench.errors import ModelError
from rpbench.evaluation import Passes, score_net
from rpbench.layers import LayerTable, layer_table, output_shape
from rpbench.machine import best_device, peak_memory_mb
from rpbench.models import build, resolve
from rpbench.progress import Quiet
from rpbench.task import Task, load_attack, load_task, spec, with_overrides


def evaluate(
    model: nn.Module,
    task: str | Task = "digits",
    *,
    data: str | Path | Iterable[str | Path] = (),
    skip_missing: bool = False,
    limit_test: int | None = None,
    workers: int | None = None,
    overrides: tuple[str, ...] = (),
    progress: Quiet | None = None,
) -> dict[str, Any]:
    """Accuracy, calibration, OoD detection, robustness and cost of `model` on a task, as plain values.

    `model` maps normalised images (b, c, h, w) to logits (b, classes); it is put into eval mode and float32 on the
    best device, its own object left as it was. Density counts weights that are not zero. Raises DataError where
    images are missing, ModelError for a net that does not fit the task.
    """
    declared = load_task(task) if isinstance(task, str) else task
    task, changed = with_overrides(declared, overrides)
    folders = [data] if isinstance(data, str | Path) else data
    progress = progress or Quiet()
    shape = (task.data.channels, task.data.size, task.data.size)
    out = output_shape(model, shape)
    if out != (2, task.data.classes):
        raise ModelError(
            f"the net gives outputs of shape {out} for 2 images, task '{task.name}' has {task.data.classes}"
        )
    table = layer_table(model, shape)
    found, skipped = opened.find_all(
        task, Roots.read(str(folder) for folder in folders), training=False, skip_missing=skip_missing
    )
    images = opened.open_all(
        task, found, skipped, Limits(None, limit_test), default_workers(1) if workers is None else workers
    )
    device = best_device()
    net = copy.deepcopy(model).float().to(device).to(memory_format=torch.channels_last).eval()
    attacks = {attack.name: attack for attack in map(load_attack, task.evaluation.attacks)}
    passes = Passes(device, task.data, task.evaluation.batch)
    try:
        scored = score_net(net, task, images, attacks, passes, progress.say)
    except ValueError as error:
        raise ModelError(f"the net cannot be scored: {error}") from error
    return {
        "task": {"name": task.name, "version": task.version, "spec": spec(declared)},
        "protocol": {
            "on": not changed and limit_test is None and not images.notes,
            "overrides": changed,
            "limit_test": limit_test,
            "notes": images.notes,
        },
        "metrics": scored.metrics,
        **_density_and_cost(net, table, shape, scored.images_per_s),
        "data": images.facts,
        "skipped": skipped,
    }


def _density_and_cost(net: nn.Module, table: LayerTable, shape: tuple[int, ...], images_per_s: float) -> dict[str, Any]:
    """What the net's own zeros make of it, under the keys of a record."""
    weights = dict(net.named_parameters(remove_duplicate=False))
    masks = {name: (weights[name].detach() != 0).cpu() for name in table.names}
    kept = [int(mask.sum()) for mask in masks.values()]
    reached = paths(net, table, masks, shape)
    return {
        "density": {
            "realised": sum(kept) / table.prunable,
            "effective": reached.effective if reached else None,
            "kept": sum(kept),
            "prunable": table.prunable,
            "kept_per_layer": kept,
        },
        "cost": {
            "params": sum(p.numel() for p in net.parameters()),
            "dense_macs": sum(layer.macs or 0 for layer in table),
            "sparse_macs": sum((layer.macs or 0) * n / layer.numel for layer, n in zip(table, kept, strict=True)),
            "eval_images_per_s": images_per_s,
            "peak_memory_mb": peak_memory_mb(next(net.parameters()).device),
        },
    }


def load_model(task: Task, name: str, weights: Path) -> nn.Module:
    """A named net with a state dict from a .safetensors or .pt file (no pickled code). ModelError where they differ."""
    net = build(resolve(name, task.family), task.data.classes, task.data.channels, task.data.size)
    wanted = net.state_dict()
    state = _unwrapped(_read_state(weights), wanted)
    for key in wanted.keys() ^ state.keys():
        if not key.endswith("num_batches_tracked"):
            where = "the file lacks" if key in wanted else f"'{name}' has no"
            raise ModelError(f"weights '{weights}' are not of model '{name}': {where} '{key}'")
    for key, value in state.items():
        if key in wanted and value.shape != wanted[key].shape:
            raise ModelError(
                f"weights '{weights}' are not of model '{name}' on task '{task.name}': "
                f"'{key}' is {tuple(value.shape)}, not {tuple(wanted[key].shape)}"
            )
    net.load_state_dict(state, strict=False)
    return net


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise ModelError(f"weights '{path}': there is no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ModelError(
            f"weights '{path}' are not a state dict that can be read safely (.safetensors, or .pt of tensors alone)"
        ) from error
    while isinstance(content, dict) and (inner := next((content[k] for k in _WRAPPERS if k in content), None)):
        content = inner
    if not isinstance(content, dict) or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise ModelError(f"weights '{path}' hold no state dict of tensors")
    return content


def _unwrapped(state: dict[str, torch.Tensor], wanted: Iterable[str]) -> dict[str, torch.Tensor]:
    """`state` without the prefixes of wrappers (DistributedDataParallel, torch.compile) and of rpbench's checkpoint."""
    names = set(wanted)
    while not names & state.keys():
        for prefix in ("module.", "_orig_mod.", "net."):
            inner = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            if inner:
                state = inner
                break
        else:
            return state
    return state


_WRAPPERS = ("state_dict", "model_state_dict", "model")
