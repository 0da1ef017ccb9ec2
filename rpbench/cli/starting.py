"""Commands for a scheme, sampler or task of one's own: new, try."""

from __future__ import annotations

import json
import sys
import tempfile
import textwrap
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rpbench.cli.shared import format_option, import_torch, isolation_limits, isolation_options

if TYPE_CHECKING:
    from rpbench.contract import Examination, Example
    from rpbench.isolated import Limits
    from rpbench.record import RunRecord
    from rpbench.trial import Trial
    from rpbench.verdict import Verdict

WIDTH = 80


@click.command()
@click.argument("kind", type=click.Choice(["scheme", "sampler", "task"]))
@click.argument("name")
@click.option("--to", "folder", type=click.Path(path_type=Path), default=Path("."), help="Folder.  [default: here]")
@click.option("--score", is_flag=True, help="A scheme that scores weights, instead of one that looks at shapes.")
def new(kind: Any, name: str, folder: Path, score: bool) -> None:
    """Write the first version of a scheme, sampler or task: a file that runs as it is.

    \b
    rpbench new scheme mine              mine.py, ten lines
    rpbench new scheme mine --score      one that looks at weights and images
    rpbench new task mine --to tasks     tasks/mine.toml
    """
    from rpbench.starting import next_commands, start

    if score and kind != "scheme":
        raise click.UsageError(f"--score is for schemes, not for a {kind}")
    path = start(kind, name, folder, score)
    click.echo(f"wrote {path}\nnext: " + "\n      ".join(next_commands(kind, path)))


@click.command("try")
@click.argument("mine")
@click.option("--no-train", is_flag=True, help="Only the contract.")
@click.option("--quick", is_flag=True, help="Train for 5 epochs only: off protocol.")
@click.option("--anyway", is_flag=True, help="Train even if a check has failed.")
@click.option("--seeds", type=click.IntRange(1, 20), default=1, show_default=True, help="Trainings of each.")
@click.option("--slots", type=click.IntRange(1), help="Trainings at once.  [default: one a core, or 4 a GPU]")
@click.option("--store", type=click.Path(path_type=Path), help="Keep the records here.  [default: thrown away]")
@isolation_options
@format_option("table", "json")
def try_(**given: Any) -> None:
    """Check a scheme or sampler of one's own, then train it beside known ones.

    MINE is a file, or a name; options as ./mine.py:power=0.7. The contract takes seconds: exact budgets on nine nets,
    the same answer every time, and so on. Then a few real cells of the embedded task: a smoke test, not a result. Exit
    code 1 if a check or a training fails.

    \b
    rpbench try ./mine.py
    rpbench try ./mine.py:power=0.7 --no-train
    rpbench try ./mine.py --seeds 3 --store runs
    """
    import_torch()
    from rpbench.contract import examining
    from rpbench.verdict import failed

    as_json = given["form"] == "json"
    with examining(given["mine"], limits=_call_limits(given)) as exam:
        if not as_json:
            click.echo(_head(exam))
        found = _checked(exam, quiet=as_json)
        wrong = failed(found)
        shown = exam.example(wrong[0].where if wrong else "")
    if not as_json:
        click.echo(_after(found, wrong, shown))
    told: dict[str, Any] = {"name": exam.label, "kind": exam.kind, "protection": _protection(exam)}
    told |= {"checks": [asdict(v) for v in found], "example": asdict(shown) if shown else None}
    bad = bool(wrong)
    if not given["no_train"] and (not wrong or given["anyway"]):
        compared, ok = _compared(exam, given)
        told["comparison"], bad = compared, bad or not ok
    if as_json:
        click.echo(json.dumps(told, indent=1))
    if bad:
        raise SystemExit(1)


def _call_limits(given: dict[str, Any]) -> Limits:
    """What a call on the contract's small nets may take: less than in training, unless it is told."""
    from rpbench.contract import CALL

    source = click.get_current_context().get_parameter_source("scheme_seconds")
    told = source == click.core.ParameterSource.COMMANDLINE
    return isolation_limits(given if told else given | {"scheme_seconds": CALL})


def _head(exam: Examination) -> str:
    thing, looks = exam.thing, "a sampler"
    if exam.kind == "scheme":
        looks = "a scheme that scores weights" if getattr(thing, "kind", "") == "score" else "a scheme of layer shapes"
    from rpbench.report.words import plain

    guard = "".join(f"\n  {line}" for line in textwrap.wrap(_protection(exam), WIDTH - 2))
    return f"{plain(exam.label)}: {looks}{guard}"


def _protection(exam: Examination) -> str:
    """What this machine is protected from while the function is called; '' for what is on the shelf."""
    from rpbench import confine, isolated

    if exam.thing.outline is None:
        return ""
    if isolated.switched_off():
        return "it runs unprotected, in this process (RPBENCH_ISOLATION=off)"
    found = confine.expected()
    return "; ".join(["it runs in a process of its own", *found.holds, *([found.words] if found.words else [])])


def _checked(exam: Examination, quiet: bool) -> list[Verdict]:
    """What each check has found, said as soon as it is known."""
    found = []
    for check in exam.checks:
        found.append(check.verdict())
        if not quiet:
            click.echo(_line(found[-1]))
    return found


def _line(verdict: Verdict) -> str:
    """One check in 80 columns: name, state, and what it asks or what is wrong."""
    from rpbench.report.words import plain

    state = verdict.state.upper() if verdict.state == "failed" else verdict.state
    text = plain(verdict.why) + (f" [{plain(verdict.where)}]" if verdict.where else "")
    first, *rest = textwrap.wrap(text, WIDTH - 22, break_on_hyphens=False) or [""]
    return "\n".join([f"  {verdict.check:<10}  {state:<7} {first}", *(f"{'':<22}{line}" for line in rest)])


def _after(found: list[Verdict], wrong: list[Verdict], shown: Example | None) -> str:
    """How many passed, and what came back for one net."""
    from tabulate import tabulate

    from rpbench.report.words import counted, plain

    skipped = sum(v.state == "skipped" for v in found)
    passed = f"all {len(found)}" if not skipped else f"{len(found) - skipped} of {len(found)}"
    lines = [f"{counted(len(wrong), 'check')} of {len(found)} failed" if wrong else f"{passed} checks passed"]
    if shown:
        rows = [[plain(cell)[:40] for cell in row] for row in shown.rows]
        cut = [*rows[:8], ["...", "", "", ""], *rows[-3:]] if len(rows) > 12 else rows
        align = ("left", "left", *("right" for _ in shown.headers[2:]))
        came = "came back for " if wrong else ""
        lines += ["", f"{came}{shown.where}", tabulate(cut, shown.headers, disable_numparse=True, colalign=align)]
    return "\n".join(lines)


def _compared(exam: Examination, given: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Train the cells of the comparison; what it found as plain values, and whether every cell has a result."""
    from rpbench.trial import next_commands, table, trial

    what = trial(exam, given["mine"], given["seeds"], given["quick"])
    as_json = given["form"] == "json"
    with ExitStack() as stack:
        store = given["store"] or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rpbench-try-")))
        if not as_json:
            click.echo("\n" + textwrap.fill(what.words, WIDTH))
        ends = _trained(what, store, given)
    records: dict[str, list[RunRecord]] = {column.label: [] for column in what.columns}
    refused = []
    for end, label in zip(ends, [c.label for _ in range(what.seeds) for c in what.columns], strict=True):
        if end.outcome is None:
            refused.append(f"{label}: {end.refused}")
        else:
            records[label].append(end.outcome.record)
    if not as_json:
        click.echo("\n".join([table(what, records), *refused]))
        if given["store"]:
            click.echo(f"records: {given['store']}")
        commands = next_commands(exam, given["mine"], given["store"])
        click.echo("next: " + "\n      ".join(commands))
    cells = [{"label": label, "record": r.as_json()} for label, found in records.items() for r in found]
    ok = not refused and all(r.status in ("ok", "infeasible") for found in records.values() for r in found)
    return {"what": what.words, "cells": cells, "refused": refused}, ok


def _trained(what: Trial, store: Path, given: dict[str, Any]) -> list[Any]:
    from rpbench.pack import run_packed
    from rpbench.progress import Several
    from rpbench.run import Wish

    names = [f"{column.label} s{i}" for i in range(what.seeds) for column in what.columns]
    watch = Several(names, shown=sys.stderr.isatty())
    try:
        wish = Wish(store=store, scheme_limits=isolation_limits(given), note_failures=True)
        return run_packed(what.asked, wish, given["slots"], watch)
    finally:
        watch.close()
