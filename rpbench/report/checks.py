"""Verdicts as a table: what was checked, how often it passed, and what was wrong first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from rpbench.report.words import counted, plain
from rpbench.verdict import Verdict

SHOWN = 3  # faults of a check in a table; --format json has them all


@dataclass(frozen=True)
class Sum:
    """The verdicts of one check: how many of each state, its faults, and why it was skipped."""

    check: str
    rule: str
    passed: int
    failed: int
    skipped: int
    faults: tuple[Verdict, ...]
    why_skipped: str

    @property
    def told(self) -> str:
        if self.failed:
            where = len({v.where for v in self.faults})
            return f"FAILED {where} of {where + self.passed + self.skipped}"
        if self.skipped:
            return f"skipped {self.skipped} of {self.skipped + self.passed}"
        return f"passed {self.passed}"


def summed(verdicts: Sequence[Verdict]) -> list[Sum]:
    """One sum per check, in the order in which they come."""
    found = []
    for check in dict.fromkeys(v.check for v in verdicts):
        mine = [v for v in verdicts if v.check == check]
        faults = tuple(v for v in mine if v.state == "failed")
        skipped = [v for v in mine if v.state == "skipped"]
        passed = len(mine) - len(faults) - len(skipped)
        why = skipped[0].why if skipped else ""
        found.append(Sum(check, mine[0].rule, passed, len(faults), len(skipped), faults, why))
    return found


def checks_text(title: str, verdicts: Sequence[Verdict], level: str, reruns: Sequence[Verdict]) -> str:
    """A table of the checks, the first faults of each, the reruns one by one, the level."""
    sums = summed(verdicts)
    rows = [[s.check, s.rule, s.told, plain(s.why_skipped) if s.skipped and not s.failed else ""] for s in sums]
    parts = [plain(title), tabulate(rows, headers=["check", "rule", "", ""], disable_numparse=True)]
    faults = []
    for s in sums:
        lines = [f"{s.check}: {plain(v.where)}: {plain(v.why)}" if v.where else f"{s.check}: {plain(v.why)}"
                 for v in s.faults[:SHOWN]]  # fmt: skip
        more = len(s.faults) - len(lines)
        faults += [*lines, *([f"{s.check}: {counted(more, 'fault')} more (--format json has all)"] if more else [])]
    if faults:
        parts.append("\n".join(faults))
    again = [f"{v.state}: {plain(v.where)}: {plain(v.why)}" for v in reruns if v.state != "failed"]
    if again:
        parts.append("trained again\n" + "\n".join(again))
    return "\n\n".join([*parts, f"level: {level}"])


def checks_json(title: str, verdicts: Sequence[Verdict], level: str) -> dict[str, Any]:
    """The same as plain values, with every fault."""
    sums = summed(verdicts)
    return {
        "schema": "rpbench.verdicts/1",
        "what": title,
        "level": level,
        "passed": not any(s.failed for s in sums),
        "checks": [
            {"check": s.check, "rule": s.rule, "passed": s.passed, "failed": s.failed, "skipped": s.skipped,
             "why_skipped": s.why_skipped}
            for s in sums
        ],
        "faults": [vars(v) for s in sums for v in s.faults],
    }  # fmt: skip
