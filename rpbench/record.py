"""What one cell is (identity) and what it produced (record). No torch here: reading records is instant."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

# what a run writes in `env` (`machine.environment`, and how many cells shared the machine), and of each set in `data`
ENVIRONMENT = frozenset({
    "rpbench", "git", "python", "torch", "torchvision", "accelerate", "numpy", "platform", "device", "device_name",
    "threads", "cores", "world_size", "precision", "engine", "deterministic", "tf32", "packed",
})  # fmt: skip
FACTS = frozenset({"fingerprint", "n", "source", "trained_on", "validation"})

Status = Literal["ok", "failed", "diverged", "infeasible"]


class Part(BaseModel):
    """Base of a record's parts: frozen, no NaN or infinity, keys of later versions kept."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)


class TaskPart(Part):
    name: str
    version: int
    spec: str = Field(description="sha256 of the task's definition, its image sets and attacks")


class ModelPart(Part):
    name: str
    params: int
    prunable: int
    source: str = Field("", description="sha256 of the file, for nets given by path")


class SchemePart(Part):
    name: str
    args: dict[str, Any] = Field(description="every option with its value")
    source: str = Field(description="sha256 of the scheme's file")
    batches: int = Field(description="labelled batches that the scheme looked at")
    images: int = 0


class SamplerPart(Part):
    name: str
    args: dict[str, Any]
    source: str = Field("", description="sha256 of the sampler's file")


class DensityPart(Part):
    requested: float
    allocated: float | None = Field(description="what the scheme's densities add up to before rounding")
    realised: float | None = Field(description="kept / prunable, as drawn")
    effective: float | None = Field(description="weights on a path from input to output / prunable")
    kept: int | None
    prunable: int
    kept_per_layer: list[int] = Field(description="as drawn, in table order")
    numel_per_layer: list[int] = Field(default=[], description="weights of each layer, in table order")
    layers: list[str] = Field(default=[], description="parameter names, in table order")


class SeedsPart(Part):
    run: int
    init: int
    mask: int
    order: int


class ProtocolPart(Part):
    on: bool = Field(description="whether the cell followed its task to the letter: no board ranks others")
    overrides: dict[str, Any]
    limit: int | None = Field(description="training images used at most")
    limit_test: int | None = None
    notes: list[str] = Field(default=[], description="why it is off protocol, or what else differs")


class MasksPart(Part):
    digest_start: str | None
    digest_end: str | None


class CostPart(Part):
    params: int
    dense_macs: int | None = Field(description="multiply-adds per example; FLOPs = 2 MACs")
    sparse_macs: float | None = Field(description="sum over layers of MACs x realised density: theoretical")
    train_images_per_s: float | None = None
    eval_images_per_s: float | None = None
    seconds: float | None = Field(None, description="seconds of training and evaluation, interruptions left out")
    scheme_seconds: float | None = None
    peak_memory_mb: float | None = None


class RunRecord(Part):
    """One cell's result: what was asked, what came out, and what makes it checkable. Rates are in [0, 1]."""

    schema_: Literal["rpbench.record/1"] = Field(alias="schema")
    run_id: str
    status: Status
    task: TaskPart
    model: ModelPart
    scheme: SchemePart
    sampler: SamplerPart
    init: str = "default"
    source: str = "none"
    procedure: str = "static"
    density: DensityPart
    seeds: SeedsPart
    precision: Literal["fp32", "bf16"]
    micro_batch: int | None = None
    protocol: ProtocolPart
    metrics: dict[str, int | float] = Field(
        description="of the epoch selected on validation images (first strict maximum)"
    )
    last: dict[str, int | float] = Field(description="of the last epoch")
    masks: MasksPart
    data: dict[str, dict[str, Any]]
    skipped: list[str] = Field(default=[], description="OoD sets that were not there and left out on request")
    warnings: list[str] = []
    cost: CostPart
    env: dict[str, Any]
    command: str
    error: str | None = None

    model_config = ConfigDict(
        frozen=True, extra="allow", allow_inf_nan=False, populate_by_name=True, protected_namespaces=()
    )

    def as_json(self) -> dict[str, Any]:
        """The record as plain JSON values, under its published keys."""
        return self.model_dump(mode="json", by_alias=True)


def json_schema() -> dict[str, Any]:
    """The JSON schema of a record, as shipped in `rpbench/record.schema.json`."""
    return RunRecord.model_json_schema(by_alias=True)


def run_id(asked: dict[str, Any]) -> str:
    """A readable name and 12 hex digits of the hash of everything that was asked."""
    code = hashlib.sha256(canonical(asked).encode()).hexdigest()[:12]
    model = asked["model"].partition("@")[0]
    parts = [asked["task"]["name"], model, asked["scheme"]["name"], f"{asked['density']:g}"]
    parts += [f"s{asked['seeds']['run']}", code]
    return "-".join("".join(c if c.isalnum() or c in "._" else "_" for c in str(p)) for p in parts)


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values, equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=1))
