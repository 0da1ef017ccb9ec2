"""Commands that run a board and say how far it is: sweep, status."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rpbench.cli.shared import (
    Command,
    data_options,
    format_option,
    import_torch,
    isolation_limits,
    isolation_options,
    store_option,
    tell_protection,
)

if TYPE_CHECKING:
    from rpbench.board import Plan
    from rpbench.launch.slurm import SlurmOptions
    from rpbench.run import Wish
    from rpbench.sweep import At, Survey


JOB_OPTIONS = ("partition", "minutes", "cpus", "gpus", "memory", "parallelism", "pack")


def choice_options(command: Command) -> Command:
    for option in reversed(
        [
            click.option(
                "--scheme", "schemes", multiple=True, help="Only this scheme; one of your own joins the board."
            ),
            click.option("--model", "models", multiple=True, help="Only this net of the board."),
            click.option("--density", "densities", multiple=True, type=float, help="Only this density of the board."),
            click.option("--seed", "seeds", multiple=True, type=int, help="Only this seed of the board."),
            click.option("--sampler", "samplers", multiple=True, help="This sampler instead of the board's."),
        ]
    ):
        command = option(command)
    return command


def slurm_options(command: Command) -> Command:
    for option in reversed(
        [
            click.option("--partition", help="slurm: a partition.  [default: the cluster's]"),
            click.option("--minutes", type=int, default=60, show_default=True, help="slurm: time limit of a job."),
            click.option("--cpus", type=int, default=1, show_default=True, help="slurm: cores of a job."),
            click.option("--gpus", type=int, default=0, show_default=True, help="slurm: GPUs of a job."),
            click.option("--memory", type=float, metavar="GB", help="slurm: memory of a job."),
            click.option("--parallelism", type=int, default=64, show_default=True, help="slurm: jobs at a time."),
            click.option("--pack", type=int, default=1, show_default=True, help="slurm: cells in a job, at once."),
            click.option("--slurm", "extra", multiple=True, metavar="KEY=VALUE", help="slurm: another sbatch option."),
        ]
    ):
        command = option(command)
    return command


@click.command()
@click.argument("board")
@choice_options
@click.option("--launcher", type=click.Choice(["local", "slurm"]), default="local", show_default=True)
@slurm_options
@click.option("--slots", type=click.IntRange(1), help="Cells at once.  [default: one a core, or 4 a GPU]")
@click.option("--retry", is_flag=True, help="Run failed and outdated cells again.")
@click.option("--dry-run", is_flag=True, help="Only say what would be run, and how long it may take.")
@data_options
@store_option
@isolation_options
@click.option("--engine", type=click.Choice(["auto", "eager", "graph"]), default="auto", show_default=True)
@format_option("table", "json")
def sweep(**given: Any) -> None:
    """Train every cell of a board that the store does not have yet.

    The same command again goes on where it was, whatever ended it. BOARD is a name (rpbench list boards) or a TOML
    file.

    \b
    rpbench sweep digits                       minutes on two cores
    rpbench sweep digits --scheme ./mine.py    your own scheme in the same table
    rpbench sweep fig1 --model resnet20 --dry-run
    rpbench sweep fig1 --launcher slurm --gpus 1 --cpus 4 --pack 4
    """
    from rpbench.pack import own_cores
    from rpbench.store import default_store
    from rpbench.sweep import guess

    _refuse_slurm_options(given["launcher"])
    store = given["store"] or default_store()
    plan = _plan(given)
    if not plan.cells:
        raise click.UsageError(f"nothing of board '{plan.board.name}' is asked for")
    at, entries = _survey(plan, store)
    todo = at.to_run(given["retry"])
    slots = given["slots"] or own_cores()
    if given["launcher"] == "slurm":
        _slurm(given)  # wrong options are told first
        slots = given["parallelism"] * given["pack"]
        todo = _with_jobs(at, todo, store)
    expected = guess(todo, entries)
    if given["form"] != "json":
        click.echo(_announcement(at, todo, expected, min(slots, max(1, len(todo)))), err=True)
    if given["dry_run"]:
        _show_dry_run(at, todo, expected, slots, given["form"])
        _tell_reference(given, plan, store)
        return
    failed = bool(todo) and _run(plan, at, todo, store, given)
    at, _ = _survey(plan, store)
    _show_survey(at, given["form"])
    _tell_reference(given, plan, store)
    if failed or at.count("failed"):
        raise SystemExit(1)


@click.command()
@click.argument("board", required=False)
@choice_options
@store_option
@format_option("table", "json")
def status(**given: Any) -> None:
    """Say how far a board is: finished, running, stale, failed, missing. From the store alone.

    Without BOARD: every board that the store has something of.
    """
    from rpbench.store import default_store

    store = given["store"] or default_store()
    if not store.is_dir():
        raise click.UsageError(f"there is no store '{store}': --store DIR, or RPBENCH_STORE")
    if given["board"]:
        at, _ = _survey(_plan(given), store)
        _show_survey(at, given["form"], beside=not given["schemes"] and not given["samplers"])
        return
    _show_all(store, given["form"])


def _refuse_slurm_options(launcher: str) -> None:
    """Options of jobs mean nothing without SLURM: one that is given was meant for it."""
    context = click.get_current_context()
    for option, name in (*((name, name) for name in JOB_OPTIONS), ("extra", "slurm")):
        told = context.get_parameter_source(option) == click.core.ParameterSource.COMMANDLINE
        if told and launcher != "slurm":
            raise click.UsageError(f"--{name} is an option of jobs: add --launcher slurm")


def _tell_reference(given: dict[str, Any], plan: Plan, store: Path) -> None:
    """A choice of schemes leaves the reference out, and without it a report has no gaps."""
    from rpbench.board import Choice, expand
    from rpbench.report.words import counted

    reference = plan.board.reference
    if given["form"] == "json" or not given["schemes"] or reference in given["schemes"]:
        return
    choice = Choice(schemes=(reference,), models=given["models"], seeds=given["seeds"])
    at, _ = _survey(expand(plan.board, choice), store)
    lacking = len(at.cells) - at.count("finished")
    if lacking:
        command = f"rpbench sweep {given['board']} --scheme {reference}"
        told = f"gaps are to {reference}, and this store lacks {counted(lacking, 'cell')} of it: {command}"
        click.echo(told, err=True)


def _plan(given: dict[str, Any]) -> Plan:
    from rpbench.board import Choice, expand, load_board

    parts = ("schemes", "models", "densities", "seeds", "samplers")
    return expand(load_board(given["board"]), Choice(**{part: given[part] for part in parts}))


def _survey(plan: Plan, store: Path) -> tuple[Survey, list[Any]]:
    from rpbench.entries import read_store
    from rpbench.heartbeat import signs
    from rpbench.sweep import survey, tracked

    found = read_store(store)
    return tracked(survey(plan, found, signs(store)), store), found.entries


def _announcement(at: Survey, todo: list[At], expected: Any, slots: int) -> str:
    from rpbench.progress import duration
    from rpbench.report.words import counted
    from rpbench.sweep import tally

    board = at.plan.board
    counts = ", ".join(f"{n} {state}" for state, n in tally(at.cells).items())
    text = f"{board.name}@{board.version}: {counted(len(at.cells), 'cell')} ({counts}), {len(todo)} to run"
    if todo and expected.unknown < len(todo):
        text += f", about {duration(expected.seconds / slots)} on {slots} slot{'s' if slots > 1 else ''}"
    if todo and expected.unknown:
        known = expected.unknown < len(todo)
        text += f", besides {expected.unknown} of unknown length" if known else "; the first ones will tell how long"
    return text


def _run(plan: Plan, at: Survey, todo: list[At], store: Path, given: dict[str, Any]) -> bool:
    """Run cells; whether one had no result. Outdated ones start over: their record is there."""
    limits = isolation_limits(given)
    tell_protection(any(one.wanted.who.source or one.wanted.who.sampler_source for one in todo))
    import_torch()
    from dataclasses import replace

    from rpbench.data import opened
    from rpbench.data.sources import Roots
    from rpbench.run import Wish

    wish = Wish(
        store=store,
        roots=Roots.read(given["data"]),
        skip_missing=given["skip_missing"],
        track_flow=plan.board.track == "gradient-flow",
        workers=given["workers"],
        engine=given["engine"],
        scheme_limits=limits,
        note_failures=True,
    )
    for name in dict.fromkeys(one.wanted.context.task for one in todo):  # said once, not by every cell
        opened.find_all(plan.tasks[name], wish.roots, training=True, skip_missing=wish.skip_missing)
    over = [one for one in todo if one.over]
    rest = [one for one in todo if one not in over]
    ends = []
    done = len(at.cells) - len(todo)
    for part, asked in ((rest, wish), (over, replace(wish, force=True))):
        if part:
            ends += _launch(part, asked, done, given)
            done += len(part)
    return any(end.outcome is None or end.outcome.record.status == "failed" for end in ends)


def _slurm(given: dict[str, Any]) -> SlurmOptions:
    from rpbench.launch.slurm import SlurmOptions, read_extra

    return SlurmOptions(**{name: given[name] for name in JOB_OPTIONS}, extra=read_extra(given["extra"]))


def _with_jobs(at: Survey, todo: list[At], store: Path) -> list[At]:
    """What is to be run, and what SLURM runs already: that is watched."""
    from rpbench.launch.slurm import in_jobs

    running = [one for one in at.cells if one.state == "running"]
    queued = in_jobs([one.wanted.asked for one in running], store) if running else []
    watched = [one for one, job in zip(running, queued, strict=True) if job]
    return [one for one in at.cells if one in todo or one in watched]


def _launch(part: list[At], wish: Wish, done: int, given: dict[str, Any]) -> list[Any]:
    from rpbench.pack import run_packed
    from rpbench.progress import Several

    watch = Several([one.name for one in part], sys.stderr.isatty(), done)
    try:
        if given["launcher"] == "slurm":
            from rpbench.launch.slurm import run_slurm

            asked = [one.wanted.asked for one in part]
            return run_slurm(asked, wish, _slurm(given), watch, lambda text: click.echo(text, err=True))
        return run_packed([one.wanted.asked for one in part], wish, given["slots"], watch, apart=True)
    finally:
        watch.close()


def _show_dry_run(at: Survey, todo: list[At], expected: Any, slots: int, form: str) -> None:
    from rpbench.report.states import plan_text

    if form == "json":
        cells = [one.wanted.asked for one in todo]
        told = {"cells": cells, "seconds": expected.seconds, "unknown": expected.unknown, "slots": slots}
        click.echo(json.dumps(told, indent=1))
    else:
        click.echo(plan_text(at, todo))


def _show_survey(at: Survey, form: str, beside: bool = False) -> None:
    from rpbench.report.states import survey_json, survey_text

    click.echo(json.dumps(survey_json(at), indent=1) if form == "json" else survey_text(at, beside))


def _show_all(store: Path, form: str) -> None:
    from rpbench.board import board_names, expand, load_board
    from rpbench.entries import read_store
    from rpbench.heartbeat import signs
    from rpbench.report.states import boards_text
    from rpbench.sweep import survey, tally

    found, living = read_store(store), list(signs(store))
    every = [survey(expand(load_board(name)), found, living) for name in board_names()]
    begun = [at for at in every if at.count("missing") < len(at.cells)]
    if form == "json":
        click.echo(json.dumps({at.plan.board.name: tally(at.cells) for at in begun}, indent=1))
    else:
        click.echo(boards_text(begun, found.faults, len(found.entries)))
