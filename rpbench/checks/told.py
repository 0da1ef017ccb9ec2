"""Cells as they were told: records with whatever stands beside them, read without trust."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from pydantic import BaseModel

from rpbench.board import Context
from rpbench.bundle import Arrays, Evidence
from rpbench.entries import Entry, entry, parse
from rpbench.errors import BundleError
from rpbench.record import ENVIRONMENT, FACTS, RunRecord
from rpbench.untrusted import shown, strict_json
from rpbench.verdict import Verdict


class Skipped(Exception):
    """A check that cannot be made here; its text says why."""


@dataclass(frozen=True)
class Told:
    """One cell as it was told. `whole`: curve and outputs belong to it, so that it is a fault if they are missing."""

    evidence: Evidence
    record: RunRecord
    entry: Entry
    whole: bool
    _loaded: dict[str, Arrays] = field(default_factory=dict, repr=False, compare=False)

    @property
    def where(self) -> str:
        return self.record.run_id

    @property
    def context(self) -> Context:
        return Context(self.record.task.name, self.record.model.name, self.record.density.requested)

    @property
    def ok(self) -> bool:
        return self.record.status == "ok"

    def output(self, name: str) -> Arrays:
        """The arrays of a pass, as "selected/test". BundleError for what is missing or cannot be read."""
        if name not in self._loaded:
            if name not in self.evidence.outputs:
                raise BundleError("missing", f"outputs/{name}.npz is missing")
            self._loaded[name] = self.evidence.outputs[name]()
        return self._loaded[name]

    def forget(self) -> None:
        """Let go of the arrays: those of a large board do not fit into memory together."""
        self._loaded.clear()


def read(evidences: Iterator[Evidence] | tuple[Evidence, ...], whole: bool) -> tuple[list[Told], list[Verdict]]:
    """Every cell whose record can be read, and the verdict of the check `records` on each."""
    found, verdicts = [], []
    for evidence in evidences:
        try:
            record = parse(evidence.text)
            told = Told(evidence, record, entry(record, evidence.run_id), whole)
            faults = list(_faults(told))
        except (ValueError, BundleError) as error:
            verdicts.append(Verdict("records", "R11", "failed", str(error), evidence.run_id))
            continue
        found.append(told)
        verdicts += [Verdict("records", "R11", "failed", why, told.where) for why in faults]
        verdicts += [] if faults else [Verdict("records", "R11", "passed", "", told.where)]
    return found, verdicts


def _faults(told: Told) -> Iterator[str]:
    """What no record of a run has, though it can be read."""
    record, cost = told.record, told.record.cost
    strict_json(told.evidence.text, "record.json")
    if told.whole and record.run_id != told.evidence.run_id:
        yield f"run_id {shown(record.run_id)} is not the name of its folder, {shown(told.evidence.run_id)}"
    if foreign := sorted([*_foreign(record), *_foreign_facts(record)]):
        yield f"keys that this version does not write: {', '.join(map(shown, foreign[:5]))}"
    if told.ok and record.error:
        yield f"status is ok, with an error: {shown(record.error)}"
    if not told.ok and (record.metrics or record.last):
        yield f"status is {record.status}, with metrics: such a cell has none"
    if told.ok:
        times = {"seconds": cost.seconds, "eval_images_per_s": cost.eval_images_per_s}
        yield from (f"cost.{name} is {value}: it must be above 0" for name, value in times.items() if not value)
        if cost.train_images_per_s is not None and cost.train_images_per_s <= 0:
            yield f"cost.train_images_per_s is {cost.train_images_per_s}: it must be above 0"


def _foreign(part: BaseModel, place: str = "") -> Iterator[str]:
    """Keys outside the schema, at any depth."""
    yield from (place + key for key in part.model_extra or ())
    for name in type(part).model_fields:
        inner = getattr(part, name)
        if isinstance(inner, BaseModel):
            yield from _foreign(inner, f"{place}{name}.")


def _foreign_facts(record: RunRecord) -> Iterator[str]:
    """Keys of the environment and of image sets that no run writes, or that hold more than a number or a text."""
    parts = [("env", record.env, ENVIRONMENT), *((f"data.{name}", fact, FACTS) for name, fact in record.data.items())]
    for place, part, known in parts:
        for key, value in part.items():
            if key not in known or not isinstance(value, str | int | float | None):
                yield f"{place}.{key}"
