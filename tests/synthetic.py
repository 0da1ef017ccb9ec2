"""Records that were never run: of every cell of a board, with results as a function of the cell says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from rpbench.board import Board, Plan, Wanted, expand
from rpbench.catalog import is_shelved_scheme, outline
from rpbench.record import RunRecord

LAYERS = [1000, 20000, 70000, 9000]


def board(**changes: Any) -> Board:
    """A small board of the embedded task."""
    grid = {
        "task": "digits",
        "models": ("resnet8",),
        "densities": (0.05, 0.1, 0.3),
        "schemes": ("erk", "uniform", "er"),
    }
    content = {
        "name": "small",
        "version": 1,
        "summary": "a small board",
        "url": "https://example.org",
        "seeds": (0, 1, 2),
    }
    content["grids"] = (grid | changes.pop("grid", {}),)
    return Board.model_validate(content | changes)


def record(plan: Plan, w: Wanted, top1: float, **changes: Any) -> dict[str, Any]:
    """The record of a wanted cell, as JSON values; `changes` are merged into its parts."""
    total = sum(LAYERS)
    kept = round(w.context.density * total)
    counts = [kept * n // total for n in LAYERS]
    counts[-1] += kept - sum(counts)
    source = w.who.source or (outline(w.who.scheme).source_hash if is_shelved_scheme(w.who.scheme) else "")
    task = plan.tasks[w.context.task]
    metrics: dict[str, Any] = {"top1": top1, "nll": 1 - top1, "brier": 1 - top1, "ece": (1 - top1) / 10}
    metrics |= {f"auroc/{name}": 0.7 + top1 / 10 for name in task.evaluation.ood}
    metrics |= {f"robust/{name}": top1 / 2 for name in task.evaluation.attacks}
    label = "".join(c if c.isalnum() or c in "._-" else "_" for c in w.label)
    found: dict[str, Any] = {
        "schema": "rpbench.record/1",
        "run_id": f"{w.context.task}-{w.context.model}-{label}-{w.context.density:g}-s{w.seeds.run}-"
        f"{w.seeds.init}{w.seeds.mask}{w.seeds.order}",
        "status": "ok",
        "task": {"name": w.context.task, "version": task.version, "spec": plan.specs[w.context.task]},
        "model": {"name": w.context.model, "params": total + 100, "prunable": total, "source": ""},
        "scheme": {"name": w.who.scheme, "args": json.loads(w.who.args), "source": source, "batches": 0, "images": 0},
        "sampler": {"name": w.who.sampler, "args": json.loads(w.who.sampler_args), "source": ""},
        "density": {
            "requested": w.context.density, "allocated": w.context.density, "realised": kept / total,
            "effective": kept / total, "kept": kept, "prunable": total, "kept_per_layer": counts,
            "numel_per_layer": LAYERS, "layers": [f"layer{i}.weight" for i in range(len(LAYERS))],
        },
        "seeds": dict(vars(w.seeds)),
        "precision": w.asked["precision"],
        "protocol": {"on": True, "overrides": {}, "limit": None, "limit_test": None, "notes": []},
        "metrics": metrics | {"val_top1": top1, "epoch": 3},
        "last": {"top1": top1, "nll": 1 - top1, "ece": (1 - top1) / 10, "val_top1": top1, "epoch": 4},
        "masks": {"digest_start": "0" * 64, "digest_end": "0" * 64},
        "data": {},
        "skipped": [],
        "warnings": [],
        "cost": {"params": total + 100, "dense_macs": 10**6, "sparse_macs": 1.5 * 10**6 * w.context.density}
        | {"seconds": 5.0, "scheme_seconds": 0.01, "train_images_per_s": 1000.0},
        "env": {"device": "cpu", "device_name": "a machine", "world_size": 1},
        "command": f"rpbench run --scheme {w.label}",
        "error": None,
    }  # fmt: skip
    for key, value in changes.items():
        found[key] = found[key] | value if isinstance(value, dict) else value
    return RunRecord.model_validate(found).as_json()


def fill(store: Path, plan: Plan, top1: Callable[[Wanted], float | None], only: Iterable[Wanted] | None = None) -> None:
    """Put records of a plan's cells into a store; cells for which `top1` gives None are left out."""
    for w in plan.cells if only is None else only:
        value = top1(w)
        if value is not None:
            write(store, record(plan, w, value))


def write(store: Path, content: dict[str, Any], name: str = "") -> Path:
    """One record into its folder of a store."""
    folder = store / (name or content["run_id"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "record.json").write_text(json.dumps(content))
    return folder / "record.json"


def noisy(
    effects: dict[str, float], sd: float = 0.002, dense: float = 0.95, seed: int = 0
) -> Callable[[Wanted], float]:
    """Results with an effect per scheme on the dense accuracy and independent normal noise; the same for a seed."""
    draws = np.random.default_rng(seed)
    return lambda w: float(np.clip(dense + effects.get(w.label, 0.0) + draws.normal(0, sd), 0, 1))


def plan(**changes: Any) -> Plan:
    return expand(board(**changes))
