"""The command line: parses, calls, prints. Results go to stdout, progress and notes to stderr.

Exit codes: 0 ok, 1 something failed, 2 usage (nothing was written), 128 + n stopped by signal n.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rpbench.cell import Cell

Command = Callable[..., Any]
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class _Group(click.Group):
    """Turns rpbench's own errors into click's usage errors: one sentence, exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        from rpbench.errors import RpbenchError

        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # outside of training, which notes signals and keeps a checkpoint of its own
            click.echo("stopped by SIGINT; the same command goes on from the last checkpoint", err=True)
            raise SystemExit(130) from None
        except RpbenchError as error:
            number = getattr(error, "number", None)
            if number is not None:  # stopped by a signal, after a checkpoint
                click.echo(str(error), err=True)
                raise SystemExit(128 + number) from None
            raise click.UsageError(" ".join(str(error).split()), ctx=_deepest(ctx)) from None


def _deepest(ctx: click.Context) -> click.Context:
    name = ctx.invoked_subcommand
    command = main.get_command(ctx, name) if name else None
    return click.Context(command, info_name=name, parent=ctx) if command else ctx


@click.group(cls=_Group, context_settings=SETTINGS)
@click.version_option(package_name="rpbench")
def main() -> None:
    """Benchmark suite for sparse training with random pruning at initialization.

    A scheme decides how much of each layer is kept, positions are drawn at random, the sparse net is trained from
    scratch with a fixed mask, and scored on five axes: accuracy, calibration, out-of-distribution detection,
    adversarial robustness, cost.

    \b
    rpbench run                                the embedded task, under a minute
    rpbench run --task cifar10 --scheme snip   the paper's recipe (needs the images)
    rpbench plan --model resnet20              what a scheme would keep, before training
    rpbench list schemes                       what there is
    rpbench bench engine                       how fast this machine trains, and against the usual loop
    """


def _task_options(command: Command) -> Command:
    for option in reversed(
        [
            click.option("--task", default="digits", show_default=True, help="A task's name, or a TOML file."),
            click.option("--model", help="A model's name, or ./net.py:make.  [default: the task's]"),
        ]
    ):
        command = option(command)
    return command


def _scheme_options(multiple: bool = False) -> Callable[[Command], Command]:
    scheme = "A scheme's name, or ./mine.py; options as snip:reinit=xavier,batches=2."

    def decorate(command: Command) -> Command:
        for option in reversed(
            [
                click.option("--scheme", multiple=multiple, help=scheme),
                click.option(
                    "--density", metavar="D", multiple=multiple, help="Fraction of prunable weights kept, in (0, 1]."
                ),
                click.option("--sparsity", metavar="S", multiple=multiple, help="The same as 1 - S."),
            ]
        ):
            command = option(command)
        return command

    return decorate


def _data_options(command: Command) -> Command:
    for option in reversed(
        [
            click.option(
                "--data", multiple=True, metavar="[NAME=]DIR",
                help="Folder with one sub-folder per image set, or of set NAME. Also: RPBENCH_DATA.",
            ),
            click.option("--skip-missing", is_flag=True, help="Leave out OoD sets that are not on this machine."),
            click.option("--workers", type=click.IntRange(0), help="Decode processes (large images)."),
        ]
    ):  # fmt: skip
        command = option(command)
    return command


def _settings_option(command: Command) -> Command:
    return click.option(
        "--set", "settings", multiple=True, metavar="KEY=VALUE",
        help="Override a number of the task, as recipe.epochs=1: off protocol.",
    )(command)  # fmt: skip


def _format_option(*formats: str) -> Callable[[Command], Command]:
    return click.option("--format", "form", type=click.Choice(formats), default=formats[0], show_default=True)


def _store_option(command: Command) -> Command:
    return click.option(
        "--store", type=click.Path(path_type=Path), help="Folder of records.  [default: RPBENCH_STORE, or ./runs]"
    )(command)


@main.command()
@_task_options
@_scheme_options(multiple=True)
@click.option("--sampler", default="exact", show_default=True, help="Who draws the positions; a name or a file.")
@click.option("--seed", type=int, multiple=True, default=[0], help="Seed of all three streams below.  [default: 0]")
@click.option("--mask-seed", type=int, help="Seed of the positions alone.")
@click.option("--init-seed", type=int, help="Seed of the initial weights alone.")
@click.option("--order-seed", type=int, help="Seed of data order and augmentation alone.")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@_data_options
@_store_option
@_settings_option
@click.option("--limit", type=click.IntRange(1), help="At most N training images: off protocol.")
@click.option("--limit-test", type=click.IntRange(1), help="At most N images of every evaluated set: off protocol.")
@click.option("--micro-batch", type=click.IntRange(1), help="Accumulate to the batch in pieces of N (short of memory).")
@click.option("--slots", type=click.IntRange(1), help="Cells at once, of several.  [default: one a core, 4 on a GPU]")
@click.option(
    "--engine",
    type=click.Choice(["auto", "eager", "graph"]),
    default="auto",
    show_default=True,
    help="Who takes the steps: the host, or a CUDA graph (auto: where it can be). The training is the same.",
)
@click.option("--track", type=click.Choice(["gradient-flow"]), help="Log the norms of kept gradients at every step.")
@click.option("--last-full", is_flag=True, help="OoD and attacks for the last epoch too, not only the selected one.")
@click.option("--force", is_flag=True, help="Start over, even if the cell is finished.")
@_format_option("table", "json")
def run(**given: Any) -> None:
    """Train one cell and score it on five axes.

    Without arguments: the embedded task, ERK at density 0.2. The same command again shows the finished record, or
    goes on where an interrupted run stopped. Several processes: accelerate launch -m rpbench run ..., or torchrun.

    --scheme, --density and --seed may be given more than once: all their cells are run, several at once.
    """
    from rpbench.cell import ask

    asked = _grid(given)
    cells = [ask(**each) for each in asked]
    first = os.environ.get("RANK", "0") == "0"
    if first:
        click.echo(_announcement(cells), err=True)
    _import_torch()

    from rpbench.data.sources import Roots
    from rpbench.run import Wish
    from rpbench.store import default_store

    wish = Wish(
        store=given["store"] or default_store(),
        roots=Roots.read(given["data"]),
        skip_missing=given["skip_missing"],
        force=given["force"],
        last_full=given["last_full"],
        track_flow=given["track"] is not None,
        workers=given["workers"],
        engine=given["engine"],
    )
    if len(cells) > 1:
        _run_several(cells, asked, wish, given["slots"], given["form"])
        return
    from rpbench.machine import Processes
    from rpbench.progress import progress
    from rpbench.run import run_cell

    processes = Processes()
    outcome = run_cell(cells[0], wish, progress(quiet=not first), processes)
    if first:
        if outcome.found:
            click.echo("finished before (--force starts over)", err=True)
            if wish.track_flow or wish.last_full:
                click.echo("note: --track and --last-full act while a cell runs, not on a finished one", err=True)
            for told in cells[0].changed_since(outcome.record.scheme.source):
                click.echo(f"stale: {told}", err=True)
        _show_outcome(outcome, given["form"])
    processes.close()
    if outcome.record.status != "ok":
        raise SystemExit(1)


def _grid(given: dict[str, Any]) -> list[dict[str, Any]]:
    """What is asked of each cell: schemes x densities x seeds. Of several schemes, dense has its own density."""
    from rpbench.catalog import find_scheme
    from rpbench.cell import read_density

    if given["density"] and given["sparsity"]:
        raise click.UsageError("give --density or --sparsity, not both: sparsity is 1 - density")
    densities = [read_density(d, None) for d in given["density"]] + [read_density(None, s) for s in given["sparsity"]]
    same = ("task", "model", "sampler", "mask_seed", "init_seed", "order_seed", "precision")
    shared = {key: given[key] for key in (*same, "limit", "limit_test", "micro_batch")}
    asked = []
    for scheme in given["scheme"] or [None]:
        fixed = len(given["scheme"]) > 1 and find_scheme(scheme)[0].density is not None
        for density in [None] if fixed else densities or [None]:
            for seed in given["seed"]:
                one = {"scheme": scheme, "density": density, "seed": seed, "overrides": given["settings"], **shared}
                if one not in asked:
                    asked.append(one)
    return asked


def _run_several(cells: list[Cell], asked: list[dict[str, Any]], wish: Any, slots: int | None, form: str) -> None:
    """Run cells at once and show one line for each; exit code 1 unless all are ok."""
    import sys

    from rpbench.pack import run_packed
    from rpbench.progress import Several
    from rpbench.show import cells_text

    names = [f"{cell.scheme.name} {cell.density:g} s{cell.seeds.run}" for cell in cells]
    watch = Several(names, shown=sys.stderr.isatty())
    try:
        ends = run_packed(asked, wish, slots, watch)
    finally:
        watch.close()
    records = [end.outcome.record for end in ends if end.outcome]
    if form == "json":
        click.echo(json.dumps([record.as_json() for record in records], indent=1))
    else:
        click.echo(cells_text(records))
        click.echo(f"records: {wish.store}")
    if len(records) < len(ends) or any(record.status != "ok" for record in records):
        raise SystemExit(1)


@main.command()
@_task_options
@_scheme_options()
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of initial weights and data order.")
@click.option("--init-seed", type=int, help="Seed of the initial weights alone.")
@click.option("--order-seed", type=int, help="Seed of the data order alone.")
@click.option("--micro-batch", type=click.IntRange(1), help="Images that a data-driven scheme sees at once.")
@click.option("--limit", type=click.IntRange(1), help="At most N training images.")
@_data_options
@_settings_option
@_format_option("table", "json")
def plan(**given: Any) -> None:
    """Show what a scheme would keep of every layer, before any training.

    Needs no images, unless the scheme looks at them (snip, grasp).
    """
    from rpbench.cell import ask, read_density

    density = read_density(given["density"], given["sparsity"])
    same = ("task", "model", "scheme", "seed", "init_seed", "order_seed")
    cell = ask(
        density=density,
        overrides=given["settings"],
        **{key: given[key] for key in (*same, "limit", "micro_batch")},
    )
    _import_torch()
    from rpbench.cell_plan import plan_cell

    found, notes = plan_cell(cell, given["data"], given["workers"])
    for note in notes:
        click.echo(f"note: {note}", err=True)
    if given["form"] == "json":
        click.echo(json.dumps(found.as_json(cell.model.name), indent=1))
        return
    from rpbench.show import plan_table_text

    click.echo(plan_table_text(found, cell))
    for warning in found.warnings:
        click.echo(f"warning: {warning}", err=True)


@main.command()
@_task_options
@click.option("--weights", type=click.Path(path_type=Path), required=True, help="State dict: .safetensors or .pt.")
@_data_options
@_settings_option
@click.option("--limit-test", type=click.IntRange(1), help="At most N images of every set.")
@_format_option("table", "json")
def score(**given: Any) -> None:
    """Score a net trained elsewhere on the five axes of a task."""
    from rpbench.progress import progress
    from rpbench.task import load_task, with_overrides

    task, _ = with_overrides(load_task(given["task"]), given["settings"])
    _import_torch()
    from rpbench.scoring import evaluate, load_model

    net = load_model(task, given["model"] or task.defaults.model, given["weights"])
    found = evaluate(
        net, task, progress=progress(),
        **{key: given[key] for key in ("data", "skip_missing", "limit_test", "workers")},
    )  # fmt: skip
    for note in found["protocol"]["notes"]:
        click.echo(f"note: {note}", err=True)
    if given["form"] == "json":
        click.echo(json.dumps(found, indent=1))
        return
    from rpbench.show import score_text

    click.echo(score_text(found))


@main.command("list")
@click.argument("what", type=click.Choice(["schemes", "samplers", "tasks", "models", "sets", "attacks", "cells"]))
@_store_option
@_format_option("table", "json")
def list_(what: str, store: Path | None, form: str) -> None:
    """List what there is: schemes, samplers, tasks, models, image sets, attacks, or the cells of a store."""
    from rpbench.show import list_rows, list_text

    rows = list_rows(what, store)
    click.echo(json.dumps(rows, indent=1) if form == "json" else list_text(rows))


@main.command()
@click.argument("name")
@_store_option
@_format_option("table", "json", "curve")
def show(name: str, store: Path | None, form: str) -> None:
    """Show a finished cell (start or end of its run id, or its folder), or a task or scheme by name."""
    from rpbench.show import show_text

    click.echo(show_text(name, store, form))


@main.group(cls=_Group)
def data() -> None:
    """Say where images are, get them, check them."""


@data.command("list")
@click.option("--data", "folders", multiple=True, metavar="[NAME=]DIR", help="Where to look. Also: RPBENCH_DATA.")
@_format_option("table", "json")
def data_list(folders: tuple[str, ...], form: str) -> None:
    """Every image set, and where it is on this machine."""
    from rpbench.shelves import data_rows
    from rpbench.show import list_text

    rows = data_rows(folders)
    click.echo(json.dumps(rows, indent=1) if form == "json" else list_text(rows))


@data.command("prepare")
@click.argument("names", nargs=-1, required=True)
@click.option("--data", "folders", multiple=True, metavar="[NAME=]DIR", help="Where to look first.")
def data_prepare(names: tuple[str, ...], folders: tuple[str, ...]) -> None:
    """Download image sets at their pinned revisions and decode small ones once."""
    from rpbench.shelves import prepare

    for name in names:
        for line in prepare(name, folders):
            click.echo(line)


@data.command("check")
@click.argument("names", nargs=-1, required=True)
@click.option("--data", "folders", multiple=True, metavar="[NAME=]DIR", help="Where to look. Also: RPBENCH_DATA.")
@_format_option("table", "json")
def data_check(names: tuple[str, ...], folders: tuple[str, ...], form: str) -> None:
    """Open every image set and compare counts and fingerprints with its definition."""
    from rpbench.shelves import check
    from rpbench.show import list_text

    rows = [row for name in names for row in check(name, folders)]
    click.echo(json.dumps(rows, indent=1) if form == "json" else list_text(rows))
    if any(row["verdict"] != "ok" for row in rows):
        raise SystemExit(1)


@main.group(cls=_Group)
def bench() -> None:
    """Time rpbench's loops on this machine against loops written the usual way.

    A gate comes first (the same numbers, or nothing is timed), then interleaved rounds: every ratio is of turns that
    lie next to each other in time. Exit code 1 where the gate fails or the machine is too noisy for a ratio.
    """


def _bench_options(command: Command) -> Command:
    for option in reversed(
        [
            click.option("--full", is_flag=True, help="15 rounds of 6 seconds a turn instead of 5 of 2.5."),
            click.option("--rounds", type=click.IntRange(1), help="So many rounds."),
            click.option("--seconds", type=click.FloatRange(0, min_open=True), help="So many seconds a turn."),
        ]
    ):
        command = option(command)
    return _format_option("table", "json")(command)


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


def _import_torch() -> None:
    """Import torch, and keep the garbage collector from what it made: a third of a second, half of it at exit."""
    if "torch" in sys.modules:
        return
    gc.disable()
    try:
        importlib.import_module("torch")
    finally:
        gc.freeze()
        gc.enable()


def _announcement(cells: list[Cell]) -> str:
    cell = cells[0]
    recipe = cell.task.recipe
    what = f"{cell.scheme.name} at density {cell.density:g}, seed {cell.seeds.run}"
    if len(cells) > 1:
        what = f"{len(cells)} cells"
    return (
        f"{cell.task.name}@{cell.task.version}: {cell.model.name}, {what}: "
        f"{recipe.epochs} epochs, batch {recipe.batch}, {cell.precision}"
    )


def _show_outcome(outcome: Any, form: str) -> None:
    record = outcome.record
    for note in [*record.protocol.notes, *record.warnings]:
        click.echo(f"note: {note}", err=True)
    if record.skipped:
        click.echo(f"note: left out: {', '.join(record.skipped)}", err=True)
    if form == "json":
        click.echo(json.dumps(record.as_json(), indent=1))
    else:
        from rpbench.show import record_text

        click.echo(record_text(record))
        click.echo(f"record: {outcome.folder / 'record.json'}")
    if record.error:
        click.echo(f"{record.status}: {record.error}", err=True)
