"""`rpbench bench`: gate first, then the race, then what a person or a program reads of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from rpbench.bench.engine import Subject
from rpbench.bench.race import Race, Turn, machine_facts, race, repeated

Say = Callable[[str], None]


@dataclass(frozen=True)
class Effort:
    """Rounds, and seconds of every turn in them."""

    rounds: int
    seconds: float


QUICK, FULL = Effort(5, 2.0), Effort(15, 6.0)


@dataclass(frozen=True)
class Found:
    """What a benchmark found; `races` is empty where the gate failed."""

    name: str
    about: str
    facts: dict[str, Any]
    wrong: list[str]
    races: dict[str, Race]

    @property
    def ok(self) -> bool:
        """Whether the gate passed and the machine was quiet enough for ratios."""
        return not self.wrong and not any(found.too_noisy for found in self.races.values())

    def as_json(self) -> dict[str, Any]:
        told = {
            "bench": self.name,
            "about": self.about,
            "machine": self.facts,
            "gate": {"passed": not self.wrong, "wrong": self.wrong},
        }
        if len(self.races) == 1:
            return told | next(iter(self.races.values())).as_json()
        told["ratios"] = {
            f"{part}/{mode}": spread.as_json()
            for part, found in self.races.items()
            for mode, spread in found.ratios().items()
        }
        return told | {"races": {part: found.as_json() for part, found in self.races.items()}}

    def text(self) -> str:
        """For a terminal of 80 columns."""
        facts = self.facts
        where = facts.get("gpu") or facts["processor"]
        lines = [
            f"{self.name}: {self.about}",
            f"{where}, {facts['cores']} cores, {facts['threads']} threads, load {facts['load'][0]}",
            f"python {facts['python']}, torch {facts['torch']}, torchvision {facts['torchvision']}",
            "",
        ]
        if self.wrong:
            return "\n".join([*lines, "gate: FAILED, nothing was timed", *(f"- {w}" for w in self.wrong)])
        lines.append("gate: passed")
        for part, found in self.races.items():
            lines += ["", *([f"{part}:"] if part else []), _table(found)]
            if found.too_noisy:
                lines.append(f"too noisy for a ratio: {found.too_noisy}; try again when nothing else runs")
            else:
                lines.append(f"ratios to '{found.reference}' round by round; its own turns differ by {found.noise:.1%}")
        return "\n".join(lines)


def _table(found: Race) -> str:
    told, ratios = found.as_json(), found.ratios()
    rows = []
    for name, rate in told["images_per_s"].items():
        ratio = ratios.get(name)
        rows.append(
            (
                name,
                f"{rate['median']:,.0f}",
                f"{rate['min']:,.0f} - {rate['max']:,.0f}",
                f"{ratio.median:.2f}" if ratio else ("1" if name == found.reference else "-"),
                f"{ratio.min:.2f} - {ratio.max:.2f}" if ratio else "",
            )
        )
    return tabulate(
        rows, headers=["mode", "images/s", "min - max", "ratio", "min - max"], disable_numparse=True,
        colalign=("left", "right", "right", "right", "right"),
    )  # fmt: skip


def bench_engine(subject: Subject, effort: Effort, reference: str | None, slots: int | None, say: Say) -> Found:
    """Training steps. Raises UsageError for a reference that cannot be used."""
    import torch

    from rpbench.bench import engine
    from rpbench.machine import best_device

    cuda = best_device().type == "cuda"
    slots = slots or (4 if cuda else torch.get_num_threads())
    together = f"{slots} at once, bf16; TF32 off for all" if cuda else f"{slots} processes of one thread, bf16"
    task = subject.declared()
    about = (
        f"{subject.model} on {task.name}, batch {task.recipe.batch}, density {subject.density:g}; packed: {together}"
    )
    theirs = engine.adapted(reference, task.recipe.batch) if reference else None
    subject.net()  # a name that means nothing is said before anything is run
    say("gate: the same step, the same record")
    facts, wrong = machine_facts(), engine.gate(subject)
    if wrong:
        return Found("engine", about, facts, wrong, {})
    turns, close = engine.turns(subject, theirs, slots)
    try:
        return Found("engine", about, facts, [], {"": race(turns, effort.rounds, effort.seconds, say)})
    finally:
        close()


def bench_eval(subject: Subject, effort: Effort, say: Say) -> Found:
    """Evaluation passes."""
    from rpbench.bench import eval as evaluation

    task = subject.declared()
    about = f"{subject.model} on {task.name}, batches of {task.evaluation.batch} (usual: 128)"
    say("gate: the same logits")
    facts, wrong = machine_facts(), evaluation.gate(subject)
    races = {} if wrong else {"": race(evaluation.turns(subject), effort.rounds, effort.seconds, say)}
    return Found("eval", about, facts, wrong, races)


def bench_data(effort: Effort, images: list[bytes] | None, say: Say) -> Found:
    """From encoded or stored images to normalised batches, on one core."""
    import torch

    from rpbench.bench import data

    torch.set_num_threads(1)
    about = "one core: JPEG bytes (ImageNet) or stored pixels (CIFAR) to normalised batches"
    say("gate: the same crops")
    facts, wrong = machine_facts(), data.gate(images)
    if wrong:
        return Found("data", about, facts, wrong, {})
    crop = "RandomResizedCrop 224 of {} JPEGs".format
    parts = {crop("256-pixel"): data.modes("256"), crop("full-size"): data.modes("full")}
    if images is not None:
        parts = {crop(f"{len(images)} given"): data.modes("full", images)}
    races = {}
    for part, modes in (parts | {"crop and flip of 32-pixel images": data.modes_small()}).items():
        say(part)
        turns: dict[str, Turn] = {name: repeated(start()) for name, start in modes.items()}
        races[part] = race(turns, effort.rounds, effort.seconds / 2, say)
    return Found("data", about, facts, [], races)
