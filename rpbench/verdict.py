"""What a check has found: the one form in which `try` and `verify` speak."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class Verdict:
    """One check's result.

    `rule` is its number in RULES.md ("" where none stands behind it); `why` one sentence: what was wrong, with the
    value, or why it could not be checked here; `where` the cell, net or file that it is about.
    """

    check: str
    rule: str
    state: State
    why: str = ""
    where: str = ""


def failed(verdicts: list[Verdict]) -> list[Verdict]:
    """Those that failed, in their order."""
    return [v for v in verdicts if v.state == "failed"]
