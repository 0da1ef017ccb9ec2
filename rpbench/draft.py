"""A record in the making: everything that is known of a cell while it runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rpbench.cell import Cell
from rpbench.connectivity import Paths
from rpbench.evaluation import Scored
from rpbench.layers import LayerTable
from rpbench.record import RunRecord
from rpbench.train import State


@dataclass
class Draft:
    """What is known of a record while the cell runs."""

    cell: Cell
    run_id: str
    table: LayerTable
    params: int
    command: str
    notes: list[str]
    scheme_args: dict[str, Any]
    sampler_args: dict[str, Any]
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    env: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    reached: Paths | None = None
    digest_start: str | None = None
    digest_end: str | None = None
    train_rate: float | None = None
    seconds: float = 0.0
    peak_mb: float | None = None

    def record(
        self,
        status: str,
        selected: Scored | None = None,
        last: Scored | None = None,
        state: State | None = None,
        error: str | None = None,
    ) -> RunRecord:
        """The record as of now."""
        cell, prunable = self.cell, self.table.prunable
        pairs = list(zip(self.table, self.kept, strict=True)) if self.kept else []
        counted = bool(pairs) and all(layer.macs is not None for layer in self.table)
        curve = state.curve if state else []
        chosen = _epoch_metrics(selected, curve, state.best_epoch if state else -1)
        final = _epoch_metrics(last, curve, len(curve) - 1)
        off = bool(cell.overrides) or cell.limit is not None or cell.limit_test is not None or bool(self.notes)
        return RunRecord.model_validate(
            {
                "schema": "rpbench.record/1",
                "run_id": self.run_id,
                "status": status,
                "task": {"name": cell.task.name, "version": cell.task.version, "spec": cell.spec},
                "model": {"name": cell.model.name, "params": self.params, "prunable": prunable}
                | {"source": cell.model.source},
                "scheme": {
                    "name": cell.scheme.name,
                    # of when the plan was made: files may change while a run is interrupted
                    "args": self.plan.get("args", self.scheme_args),
                    "source": self.plan.get("source", cell.scheme_source),
                    "batches": self.plan.get("batches", 0),
                    "images": self.plan.get("images", 0),
                },
                "sampler": {"name": cell.sampler.name, "args": self.sampler_args, "source": cell.sampler_source},
                "init": cell.init,
                "source": cell.source,
                "procedure": cell.procedure,
                "density": {
                    "requested": cell.density,
                    "allocated": self.plan.get("allocated"),
                    "realised": sum(self.kept) / prunable if self.kept else None,
                    "effective": self.reached.effective if self.reached else None,
                    "kept": sum(self.kept) if self.kept else None,
                    "prunable": prunable,
                    "kept_per_layer": self.kept,
                    "numel_per_layer": [layer.numel for layer in self.table],
                    "layers": list(self.table.names),
                },
                "seeds": {"run": cell.seeds.run, "init": cell.seeds.init}
                | {"mask": cell.seeds.mask, "order": cell.seeds.order},
                "precision": cell.precision,
                "micro_batch": cell.micro_batch,
                "protocol": {
                    "on": not off,
                    "overrides": cell.overrides,
                    "limit": cell.limit,
                    "limit_test": cell.limit_test,
                    "notes": self.notes,
                },
                "metrics": chosen,
                "last": final,
                "masks": {"digest_start": self.digest_start, "digest_end": self.digest_end},
                "data": self.facts,
                "skipped": list(self.skipped),
                "warnings": self.warnings,
                "cost": {
                    "params": self.params,
                    "dense_macs": sum(layer.macs or 0 for layer in self.table) if counted else None,
                    "sparse_macs": sum((x.macs or 0) * k / x.numel for x, k in pairs) if counted else None,
                    "train_images_per_s": self.train_rate,
                    "eval_images_per_s": selected.images_per_s if selected else None,
                    "seconds": self.seconds,
                    "scheme_seconds": self.plan.get("seconds"),
                    "peak_memory_mb": self.peak_mb,
                },
                "env": self.env,
                "command": self.command,
                "error": error,
            }
        )


def _epoch_metrics(scored: Scored | None, curve: list[dict[str, Any]], epoch: int) -> dict[str, float]:
    if scored is None or not 0 <= epoch < len(curve):
        return {}
    return scored.metrics | {key: curve[epoch][key] for key in ("val_top1", "epoch")}
