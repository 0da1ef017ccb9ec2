"""Commands on cells: run, plan, score."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rpbench.cli.shared import (
    data_options,
    format_option,
    import_torch,
    isolation_limits,
    isolation_options,
    scheme_options,
    settings_option,
    store_option,
    task_options,
    tell_protection,
)

if TYPE_CHECKING:
    from rpbench.cell import Cell


@click.command()
@task_options
@scheme_options(multiple=True)
@click.option("--sampler", default="exact", show_default=True, help="Who draws the positions; a name or a file.")
@click.option("--seed", type=int, multiple=True, default=[0], help="Seed of all three streams below.  [default: 0]")
@click.option("--mask-seed", type=int, help="Seed of the positions alone.")
@click.option("--init-seed", type=int, help="Seed of the initial weights alone.")
@click.option("--order-seed", type=int, help="Seed of data order and augmentation alone.")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@data_options
@store_option
@settings_option
@click.option("--limit", type=click.IntRange(1), help="At most N training images: off protocol.")
@click.option("--limit-test", type=click.IntRange(1), help="At most N images of every evaluated set: off protocol.")
@click.option("--micro-batch", type=click.IntRange(1), help="Accumulate to the batch in pieces of N (short of memory).")
@isolation_options
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
@format_option("table", "json")
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
        tell_protection(any(cell.scheme.outline or cell.sampler.outline for cell in cells))
    limits = isolation_limits(given)
    import_torch()

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
        scheme_limits=limits,
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
    from rpbench.catalog import isolated_scheme
    from rpbench.cell import read_density

    if given["density"] and given["sparsity"]:
        raise click.UsageError("give --density or --sparsity, not both: sparsity is 1 - density")
    densities = [read_density(d, None) for d in given["density"]] + [read_density(None, s) for s in given["sparsity"]]
    same = ("task", "model", "sampler", "mask_seed", "init_seed", "order_seed", "precision")
    shared = {key: given[key] for key in (*same, "limit", "limit_test", "micro_batch")}
    asked = []
    for scheme in given["scheme"] or [None]:
        fixed = len(given["scheme"]) > 1 and isolated_scheme(scheme)[0].density is not None
        for density in [None] if fixed else densities or [None]:
            for seed in given["seed"]:
                one = {"scheme": scheme, "density": density, "seed": seed, "overrides": given["settings"], **shared}
                if one not in asked:
                    asked.append(one)
    return asked


def _run_several(cells: list[Cell], asked: list[dict[str, Any]], wish: Any, slots: int | None, form: str) -> None:
    """Run cells at once and show one line for each; exit code 1 unless all are ok."""
    from rpbench.pack import run_packed
    from rpbench.progress import Several
    from rpbench.show import cells_text

    names = [
        f"{each['scheme'] or cell.scheme.name} {cell.density:g} s{cell.seeds.run}"
        for each, cell in zip(asked, cells, strict=True)
    ]
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


@click.command()
@task_options
@scheme_options()
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of initial weights and data order.")
@click.option("--init-seed", type=int, help="Seed of the initial weights alone.")
@click.option("--order-seed", type=int, help="Seed of the data order alone.")
@click.option("--micro-batch", type=click.IntRange(1), help="Images that a data-driven scheme sees at once.")
@click.option("--limit", type=click.IntRange(1), help="At most N training images.")
@data_options
@settings_option
@isolation_options
@format_option("table", "json")
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
    limits = isolation_limits(given)
    tell_protection(cell.scheme.outline is not None)
    import_torch()
    from rpbench.cell_plan import plan_cell

    found, notes = plan_cell(cell, given["data"], given["workers"], limits)
    for note in notes:
        click.echo(f"note: {note}", err=True)
    if given["form"] == "json":
        click.echo(json.dumps(found.as_json(cell.model.name), indent=1))
        return
    from rpbench.show import plan_table_text

    click.echo(plan_table_text(found, cell))
    for warning in found.warnings:
        click.echo(f"warning: {warning}", err=True)


@click.command()
@task_options
@click.option("--weights", type=click.Path(path_type=Path), required=True, help="State dict: .safetensors or .pt.")
@data_options
@settings_option
@click.option("--limit-test", type=click.IntRange(1), help="At most N images of every set.")
@format_option("table", "json")
def score(**given: Any) -> None:
    """Score a net trained elsewhere on the five axes of a task."""
    from rpbench.progress import progress
    from rpbench.task import load_task, with_overrides

    task, _ = with_overrides(load_task(given["task"]), given["settings"])
    import_torch()
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
