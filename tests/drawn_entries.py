"""Made-up entries of a board's cells, for tests of what is drawn and written from records."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import astuple

from rpbench.board import Plan, Wanted
from rpbench.catalog import is_shelved_scheme, outline
from rpbench.entries import Entry

Metrics = Callable[[Wanted], dict[str, float]]


SIZES = {
    "resnet20-8": 67_992, "resnet20-24": 608_712, "resnet20-32": 1_081_440, "resnet18": 11_678_912,
    "resnet34": 21_779_648, "resnet50": 25_502_912, "resnet101": 44_442_816, "wrn50": 68_814_016,
}  # fmt: skip


def entries(plan: Plan, metrics: Metrics) -> Iterator[Entry]:
    """A finished, undisturbed record of every cell of a board."""
    for i, wanted in enumerate(plan.cells):
        yield entry(plan, wanted, metrics(wanted), f"cell-{i:04d}")


def entry(
    plan: Plan, wanted: Wanted, metrics: dict[str, float], run_id: str, *, status: str = "ok"
) -> Entry:  # fmt: skip
    c, who, seeds = wanted.context, wanted.who, wanted.seeds
    prunable = SIZES.get(c.model, 270_896)
    params = prunable + 1_578
    kept = round(c.density * prunable)
    return Entry(
        run_id=run_id, place=run_id, status=status, task=c.task, version=plan.tasks[c.task].version,
        spec=plan.specs[c.task], model=c.model, model_source="", params=params, prunable=prunable, scheme=who.scheme,
        scheme_args=who.args, scheme_source=outline(who.scheme).source_hash if is_shelved_scheme(who.scheme) else "",
        batches=0, images=0, sampler=who.sampler, sampler_args=who.sampler_args, sampler_source=who.sampler_source,
        density=c.density, realised=kept / prunable, effective=kept / prunable, kept=kept, seed=seeds.run,
        init_seed=seeds.init, mask_seed=seeds.mask, order_seed=seeds.order, init="default", source="none",
        procedure="static", precision=plan.board.precision, micro_batch=None, on_protocol=True, notes=(), skipped=(),
        warnings=(), metrics=metrics, last=metrics, dense_macs=150 * prunable, sparse_macs=150.0 * kept, seconds=1.0,
        scheme_seconds=0.1, train_images_per_s=1.0, eval_images_per_s=1.0, device="cpu", world_size=1, command="",
        error="",
    )  # fmt: skip


def curve(wanted: Wanted) -> dict[str, float]:
    """Numbers of the shape that trainings give: falling with sparsity, deeper and wider nets higher, some noise."""
    size = sum(map(int, filter(str.isdigit, wanted.context.model)))
    lost = {"uniform": 1.2, "uniform_plus": 1.1, "erk": 0.8, "snip": 0.9}.get(wanted.who.scheme, 1.0)
    lost += 0.3 * math.sin(sum(map(ord, wanted.label)))
    noise = 0.002 * math.sin(
        12.9898 * sum(map(ord, wanted.label + wanted.context.model)) + 78.2 * sum(astuple(wanted.seeds))
    )
    noise += 0.001 * math.sin(997 * wanted.context.density)
    top1 = 0.92 + 0.002 * size + noise - lost * 0.004 * (1 / wanted.context.density - 1) ** 1.1
    return {"top1": max(top1, 0.1), "ece": 0.03 + noise, "nll": 0.3 + 4 * noise, "auroc/cifar100": 0.85 + noise,
            "auroc/svhn": 0.9 + noise, "auroc/imagenet-o": 0.4 + noise, "robust/fgsm-8": 0.1 + noise}  # fmt: skip
