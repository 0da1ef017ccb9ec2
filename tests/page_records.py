"""Records that nobody trained, of any shape of board: what reports are tried on."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rpbench.board import Board, Plan, Wanted, expand
from rpbench.catalog import is_shelved_scheme, outline
from rpbench.entries import Entry, entry
from rpbench.ranking import score
from rpbench.record import RunRecord
from rpbench.rows import Sheet
from rpbench.selection import select

Change = Callable[[Wanted, dict[str, Any]], dict[str, Any] | None]


def a_board(grids: Sequence[dict[str, Any]], seeds: Sequence[int] = (0, 1, 2), **more: Any) -> Board:
    told = {"name": "synthetic", "version": 1, "summary": "made up", "url": "https://example.org"}
    return Board.model_validate(told | {"seeds": list(seeds), "grids": list(grids)} | more)


def records(plan: Plan, change: Change = lambda w, r: r) -> Iterator[dict[str, Any]]:
    """A record for every cell of a plan; `change` may alter it, or leave it out (None)."""
    for wanted in plan.cells:
        found = change(wanted, a_record(plan, wanted))
        if found is not None:
            yield found


def a_sheet(board: Board, change: Change = lambda w, r: r, **how: Any) -> Sheet:
    """A board scored on made-up records."""
    plan = expand(board)
    return score(plan, select(plan, entries(records(plan, change))), **how)


def entries(found: Iterator[dict[str, Any]]) -> list[Entry]:
    return [entry(RunRecord.model_validate_json(json.dumps(r), strict=True), r["run_id"]) for r in found]


def a_record(plan: Plan, wanted: Wanted) -> dict[str, Any]:
    """Results that fall with sparsity, each scheme at a pace of its own, with noise by seed."""
    context, who, seeds = wanted.context, wanted.who, wanted.seeds
    chance = np.random.default_rng(zlib.crc32(repr((context, who, seeds)).encode()))
    pace = 0.004 + 0.012 * (zlib.crc32(f"{who.scheme}{who.args}{who.sampler}".encode()) % 997) / 997
    size = 1 + zlib.crc32(context.model.encode()) % 7
    loss = 0.0 if context.density == 1 else pace * -np.log(context.density) * 3 / size**0.5
    top1 = float(np.clip(0.9 + 0.012 * size - loss + chance.normal(0, 0.0025), 0, 1))
    numel = [144 * size, *[2304 * size * k for k in (1, 1, 2, 4, 4, 8, 8, 16)], 640 * size]
    kept = _kept(numel, context.density, power=pace * 40)
    prunable, macs = sum(numel), [n * (64 >> i // 3) for i, n in enumerate(numel)]
    shares = [k / n for k, n in zip(kept, numel, strict=True)]
    metrics: dict[str, float] = {"top1": top1, "nll": (1 - top1) * 3, "ece": (1 - top1) / 4, "brier": (1 - top1) * 1.5}
    for name, base in (("svhn", 0.93), ("photos", 0.8)):
        metrics |= {f"auroc/{name}": base - loss, f"aupr/{name}": base - 0.1, f"fpr95/{name}": 0.4 + loss}
    metrics |= {"robust/fgsm-8": float(np.clip(0.4 - 2 * loss + chance.normal(0, 0.01), 0, 1)), "epoch": 22}
    source = outline(who.scheme).source_hash if is_shelved_scheme(who.scheme) else who.source
    task, name = plan.tasks[context.task], Path(str(who.scheme)).stem
    return {
        "schema": "rpbench.record/1", "status": "ok", "error": None, "precision": plan.board.precision,
        "run_id": f"{context.task}-{context.model}-{name}-{context.density:g}-s{seeds.run}-{chance.bytes(6).hex()}",
        "task": {"name": task.name, "version": task.version, "spec": plan.specs[task.name]},
        "model": {"name": context.model, "params": prunable + 700, "prunable": prunable},
        "scheme": {"name": who.scheme, "args": json.loads(who.args), "source": source, "batches": 0},
        "sampler": {"name": who.sampler, "args": json.loads(who.sampler_args), "source": who.sampler_source},
        "density": {"requested": context.density, "allocated": context.density, "realised": sum(kept) / prunable,
                    "effective": sum(kept) / prunable * 0.99, "kept": sum(kept), "prunable": prunable,
                    "kept_per_layer": kept, "numel_per_layer": numel},
        "seeds": {"run": seeds.run, "init": seeds.init, "mask": seeds.mask, "order": seeds.order},
        "protocol": {"on": True, "overrides": {}, "limit": None},
        "metrics": metrics, "last": {"top1": top1 - 0.001, "nll": 0.3, "ece": 0.02, "epoch": 30},
        "masks": {"digest_start": "0", "digest_end": "0"}, "data": {}, "warnings": [],
        "cost": {"params": prunable + 700, "dense_macs": sum(macs), "seconds": 61.5, "scheme_seconds": 0.02,
                 "sparse_macs": sum(m * s for m, s in zip(macs, shares, strict=True)), "train_images_per_s": 7012.0},
        "env": {"device": "cpu", "world_size": 1},
        "command": f"rpbench run --task {task.name} --model {context.model} --scheme {who.scheme} "
                   f"--density {context.density:g} --seed {seeds.run}",
    }  # fmt: skip


def _kept(numel: list[int], density: float, power: float) -> list[int]:
    """round(density * all) weights over the layers, more of the small ones the greater the power."""
    total = round(density * sum(numel))
    low, high = 0.0, 1e12
    for _ in range(200):
        middle = (low + high) / 2
        counts = [int(min(n, middle * n ** (1 - power))) for n in numel]
        low, high = (middle, high) if sum(counts) <= total else (low, middle)
    counts = [int(min(n, low * n ** (1 - power))) for n in numel]
    for i in sorted(range(len(numel)), key=lambda i: counts[i] - numel[i]):
        more = min(numel[i] - counts[i], total - sum(counts))
        counts[i] += more
    return counts
