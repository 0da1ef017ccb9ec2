"""How far a board is, as text and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from rpbench.entries import Fault
from rpbench.report.words import counted, plain
from rpbench.sweep import DONE, STATES, At, Survey, tally

SHOWN = 12  # cells told one by one, of each kind


def survey_text(at: Survey, beside: bool = False) -> str:
    """A line per row of the board with its counts; then what runs, and what failed and why; `beside` adds the rows
    that only the store has."""
    states = [s for s in STATES if at.count(s)]
    rows = []
    for label in dict.fromkeys(one.wanted.label for one in at.cells):
        mine = [one for one in at.cells if one.wanted.label == label]
        counts = tally(mine)
        rows.append((plain(label), len(mine), *(counts.get(s, "") for s in states)))
    text = tabulate(rows, headers=["scheme", "cells", *states], disable_numparse=True,
                    colalign=("left", *["right"] * (1 + len(states))))  # fmt: skip
    done = at.count(*DONE)
    text += f"\n{at.plan.board.name}: {done} of {len(at.cells)} cells have a result"
    if beside and at.beside:
        text += plain("; beside them " + ", ".join(f"{label} has {counted(n, 'result')}" for label, n in at.beside))
    for state in ("running", "stopped", "stale", "failed", "outdated", "infeasible"):
        some = [one for one in at.cells if one.state == state]
        text += "".join(f"\n{_line(one)}" for one in some[:SHOWN])
        if len(some) > SHOWN:
            text += f"\n{state}: {len(some) - SHOWN} more (--format json)"
    return text


def _line(one: At) -> str:
    part = f" {one.done:.0%}" if one.state in ("running", "stopped", "stale") else ""
    return plain(f"{one.state}:{part} {one.name}: {one.note}")


def plan_text(at: Survey, todo: Sequence[At]) -> str:
    """What a sweep would run: cells by task, net and scheme."""
    rows = []
    for key in dict.fromkeys((o.wanted.context.task, o.wanted.context.model, o.wanted.label) for o in todo):
        mine = [o for o in todo if (o.wanted.context.task, o.wanted.context.model, o.wanted.label) == key]
        densities = dict.fromkeys(f"{o.wanted.context.density:g}" for o in mine)
        seeds = dict.fromkeys(str(o.wanted.seeds.run) for o in mine)
        rows.append((*map(plain, key), " ".join(densities), " ".join(seeds), len(mine)))
    if not rows:
        return "nothing to run"
    return tabulate(rows, headers=["task", "model", "scheme", "densities", "seeds", "cells"], disable_numparse=True,
                    colalign=("left", "left", "left", "left", "left", "right"))  # fmt: skip


def survey_json(at: Survey) -> dict[str, Any]:
    cells = [
        {"task": one.wanted.context.task, "model": one.wanted.context.model, "scheme": one.wanted.label,
         "density": one.wanted.context.density, "seed": one.wanted.seeds.run, "state": one.state, "note": one.note,
         "done": round(one.done, 4), "record": one.where}
        for one in at.cells
    ]  # fmt: skip
    return {"board": at.plan.board.name, "counts": tally(at.cells), "cells": cells}


def boards_text(begun: Sequence[Survey], faults: Sequence[Fault], records: int = 0) -> str:
    """A line per board that a store has something of, and the records that cannot be read."""
    if not begun and not faults:
        if records:
            return f"{counted(records, 'record')}, of no board on the shelf: rpbench status BOARD.toml"
        return "no cell of any board: rpbench sweep BOARD (rpbench list boards)"
    states = [s for s in STATES if any(at.count(s) for at in begun)]
    rows = [(at.plan.board.name, len(at.cells), *(at.count(s) or "" for s in states)) for at in begun]
    text = tabulate(rows, headers=["board", "cells", *states], disable_numparse=True,
                    colalign=("left", *["right"] * (1 + len(states)))) if rows else ""  # fmt: skip
    return "\n".join([text, *(plain(f"unusable: {f.place}: {f.why}") for f in faults)]).strip()
