"""Commands on what there is: list, show, data."""

from __future__ import annotations

import json
from pathlib import Path

import click

from rpbench.cli.shared import Group, format_option, store_option


@click.command("list")
@click.argument(
    "what",
    type=click.Choice(
        ["schemes", "samplers", "tasks", "boards", "figures", "claims", "models", "sets", "attacks", "cells"]
    ),
)
@store_option
@format_option("table", "json")
def list_(what: str, store: Path | None, form: str) -> None:
    """List what there is: schemes, tasks, boards, figures, claims, models, ..., or the cells of a store."""
    from rpbench.show import list_rows, list_text

    rows = list_rows(what, store)
    click.echo(json.dumps(rows, indent=1) if form == "json" else list_text(rows))


@click.command()
@click.argument("name")
@store_option
@format_option("table", "json", "curve")
def show(name: str, store: Path | None, form: str) -> None:
    """Show a finished cell (start or end of its run id, or its folder), or a task or scheme by name."""
    from rpbench.show import show_text

    click.echo(show_text(name, store, form))


@click.group(cls=Group)
def data() -> None:
    """Say where images are, get them, check them."""


@data.command("list")
@click.option("--data", "folders", multiple=True, metavar="[NAME=]DIR", help="Where to look. Also: RPBENCH_DATA.")
@format_option("table", "json")
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
@format_option("table", "json")
def data_check(names: tuple[str, ...], folders: tuple[str, ...], form: str) -> None:
    """Open every image set and compare counts and fingerprints with its definition."""
    from rpbench.shelves import check
    from rpbench.show import list_text

    rows = [row for name in names for row in check(name, folders)]
    click.echo(json.dumps(rows, indent=1) if form == "json" else list_text(rows))
    if any(row["verdict"] != "ok" for row in rows):
        raise SystemExit(1)
