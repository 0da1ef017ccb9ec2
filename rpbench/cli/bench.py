"""Commands that time: bench engine, eval, data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from rpbench.cli.shared import Command, Group, format_option


@click.group(cls=Group)
def bench() -> None:
    """Time rpbench's loops on this machine against loops written the usual way.

    A gate comes first (the same numbers, or nothing is timed), then interleaved rounds: every ratio is of turns that
    lie next to each other in time. Exit code 1 where the gate fails or the machine is too noisy for a ratio.
    """


def _bench_options(command: Command) -> Command:
    for option in reversed(
        [
            click.option("--full", is_flag=True, help="15 rounds of 6 seconds a turn instead of 5 of 2."),
            click.option("--rounds", type=click.IntRange(1), help="So many rounds."),
            click.option("--seconds", type=click.FloatRange(0, min_open=True), help="So many seconds a turn."),
        ]
    ):
        command = option(command)
    return format_option("table", "json")(command)


def _subject_options(command: Command) -> Command:
    for option in reversed(
        [
            click.option("--task", default="cifar10", show_default=True, help="Whose recipe and image size."),
            click.option("--model", help="A model's name.  [default: the task's]"),
            click.option("--density", metavar="D", default="0.1", show_default=True, help="ERK at this density."),
        ]
    ):
        command = option(command)
    return command


@bench.command("engine")
@_subject_options
@click.option("--batch", type=click.IntRange(1), help="Images a step.  [default: the recipe's]")
@click.option("--slots", type=click.IntRange(1), help="Trainings at once when packed.  [default: one a core]")
@click.option(
    "--reference",
    metavar="FILE.py",
    help="Somebody else's loop, to compare with: its setup() returns a function that takes one training step and "
    "returns how many images it took.",
)
@_bench_options
def bench_engine(**given: Any) -> None:
    """Training steps: DataLoader workers, masks tensor by tensor and .item() every step, against ours.

    Needs no images: random pixels take as long.
    """
    from rpbench.bench.runs import bench_engine

    _show_bench(bench_engine(_subject(given), _effort(given), given["reference"], given["slots"], _say), given["form"])


@bench.command("eval")
@_subject_options
@_bench_options
def bench_eval(**given: Any) -> None:
    """Evaluation: images to top-1 and loss."""
    from rpbench.bench.runs import bench_eval

    _show_bench(bench_eval(_subject(given), _effort(given), _say), given["form"])


@bench.command("data")
@click.option("--images", "folder", type=click.Path(path_type=Path), help="JPEGs to decode.  [default: two photos]")
@_bench_options
def bench_data(**given: Any) -> None:
    """Loading: JPEG bytes or stored pixels to normalised batches, on one core."""
    from rpbench.bench.runs import bench_data

    _show_bench(bench_data(_effort(given), _jpegs(given["folder"]), _say), given["form"])


def _subject(given: dict[str, Any]) -> Any:
    from rpbench.bench.engine import Subject
    from rpbench.cell import read_density
    from rpbench.task import load_task

    task = load_task(given["task"])
    density = read_density(given["density"], None)
    return Subject(given["task"], given["model"] or task.defaults.model, density or 1.0, given.get("batch"))


def _effort(given: dict[str, Any]) -> Any:
    from rpbench.bench.runs import FULL, QUICK, Effort

    base = FULL if given["full"] else QUICK
    return Effort(given["rounds"] or base.rounds, given["seconds"] or base.seconds)


def _jpegs(folder: Path | None) -> list[bytes] | None:
    if folder is None:
        return None
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))[:200]
    if not found:
        raise click.UsageError(f"--images {folder}: there are no .jpg files in it")
    return [path.read_bytes() for path in found]


def _say(text: str) -> None:
    click.echo(text, err=True)


def _show_bench(found: Any, form: str) -> None:
    click.echo(json.dumps(found.as_json(), indent=1) if form == "json" else found.text())
    if not found.ok:
        raise SystemExit(1)
