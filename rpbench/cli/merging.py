"""What submit --merge does: a bundle is verified, and put into the leaderboard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rpbench.cli.shared import Command, import_torch
from rpbench.cli.verifying import judged

if TYPE_CHECKING:
    from rpbench.merging import Merged


def merge_options(command: Command) -> Command:
    for option in reversed(
        [
            click.option(
                "--merge",
                "bundle",
                type=click.Path(path_type=Path),
                metavar="BUNDLE",
                help="For maintainers: verify this bundle and put it into the leaderboard.",
            ),
            click.option("--replace", is_flag=True, help="With --merge: in the place of the row's earlier versions."),
            click.option("--rerun", type=click.IntRange(1), help="With --merge: train so many cells again first."),
            click.option("--slots", type=click.IntRange(1), help="With --rerun: cells at once."),
            click.option(
                "--root",
                type=click.Path(path_type=Path, file_okay=False),
                help="With --merge: a leaderboard.  [default: leaderboard/]",
            ),
            click.option("--data", multiple=True, metavar="[NAME=]DIR", help="With --merge: where images are."),
        ]
    ):
        command = option(command)
    return command


def merge_bundle(given: dict[str, Any]) -> None:
    """Verify a bundle, print the verdicts, and merge it: `given` has the options of `merge_options`.

    SystemExit(1) where a check failed: then nothing is merged.
    """
    import_torch()
    from rpbench.bundle import open_bundle
    from rpbench.data.sources import Roots
    from rpbench.merging import check, merge
    from rpbench.published import root_of
    from rpbench.verdict import failed
    from rpbench.verification import bundle_subject, level

    bundle, root = open_bundle(given["bundle"]), root_of(given["root"])
    check(bundle, root, given["replace"])
    asked = {"form": "table", "cells": (), "rerun_seed": None} | given
    with bundle_subject(bundle, Roots.read(given["data"])) as subject:
        verdicts, text = judged(subject, asked)
    click.echo(text, err=True)
    if failed(verdicts):
        click.echo("nothing was merged", err=True)
        raise SystemExit(1)
    _tell(merge(bundle, verdicts, level(verdicts), root, given["replace"]), root)


def _tell(done: Merged, root: Path) -> None:
    from rpbench.report.words import counted, plain

    row = plain(f"{done.row} on {done.board}: {counted(done.records, 'record')}, {done.level}")
    click.echo(row if done.written or done.removed else f"{row}, as merged before: nothing to do")
    for name in done.written:
        click.echo(f"wrote {root / name}", err=True)
    for name in done.removed:
        click.echo(f"removed {root / name}", err=True)
    for name in done.beside:
        click.echo(f"beside it, another row of this name: {root / name}", err=True)
