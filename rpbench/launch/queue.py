"""What SLURM says of jobs. squeue alone is asked: accounting (sacct) is not needed, and many clusters have none."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

from rpbench.errors import UsageError

OVER = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
)  # fmt: skip


@dataclass(frozen=True)
class Queued:
    """A job as SLURM sees it: its number ("12_3"), its state, and why it is in that state."""

    number: str
    state: str
    reason: str = ""

    @property
    def over(self) -> bool:
        return self.state in OVER

    @property
    def array(self) -> str:
        return self.number.partition("_")[0]


def read_queue(names: set[str]) -> dict[tuple[str, int], Queued]:
    """What squeue knows of the jobs of arrays, by name and place. Jobs that are over stay there for some minutes.

    Raises UsageError where squeue does not answer.
    """
    if not names:
        return {}
    command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%j|%T|%r", f"--name={','.join(names)}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        raise UsageError("squeue has not answered within a minute: is SLURM's controller up?") from None
    if done.returncode:
        raise UsageError(f"squeue failed: {' '.join(done.stderr.split())}")
    return parse_queue(done.stdout)


def parse_queue(text: str) -> dict[tuple[str, int], Queued]:
    """Lines "12_3|name|STATE|reason" of squeue --array; a job that is alone has no "_3"."""
    found = {}
    for line in text.splitlines():
        number, name, state, reason = (line.split("|", 3) + [""] * 3)[:4]
        place = number.partition("_")[2] or "0"
        if name and place.isdigit():
            found[name, int(place)] = Queued(number, state, reason)
    return found
