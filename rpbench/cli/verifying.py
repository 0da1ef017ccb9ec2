"""The command that checks results of others: verify."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rpbench.cli.shared import format_option, import_torch, isolation_limits, isolation_options, tell_protection

if TYPE_CHECKING:
    from rpbench.rerun import Chosen, Compared
    from rpbench.verdict import Verdict
    from rpbench.verification import Subject


@click.command()
@click.argument("what", metavar="BUNDLE|BOARD")
@click.option("--rerun", type=click.IntRange(1), help="Train so many cells again: half those that stand out most.")
@click.option("--cell", "cells", multiple=True, metavar="RUN_ID", help="Train this cell again.")
@click.option("--rerun-seed", type=click.IntRange(0), help="Draw the cells of --rerun as before.  [default: at random]")
@click.option("--slots", type=click.IntRange(1), help="Cells at once.  [default: as many as cores allow]")
@click.option("--store", type=click.Path(path_type=Path, exists=True), help="The cells of BOARD in this store.")
@click.option("--root", type=click.Path(path_type=Path, exists=True), help="A leaderboard.  [default: the one here]")
@click.option(
    "--board", type=click.Path(path_type=Path, exists=True), help="A bundle's board, where it is a TOML file."
)
@click.option("--data", multiple=True, metavar="[NAME=]DIR", help="Images, as for run. Also: RPBENCH_DATA.")
@isolation_options
@format_option("table", "json")
def verify(**given: Any) -> None:
    """Check results without trusting whoever made them; nothing is written.

    BUNDLE is a submission, a folder or a .zip. BOARD is a board's name: its published records, or with --store those
    of a store. Everything that follows from something else is worked out again; --rerun trains cells again.

    \b
    rpbench verify mine.zip
    rpbench verify mine.zip --rerun 3
    rpbench verify digits                   the published records
    rpbench verify digits --store runs      one's own

    Exit code 0 where nothing failed, 1 where something did.
    """
    import_torch()
    with _subject(given) as subject:
        verdicts, text = judged(subject, given)
        click.echo(text)
    if any(v.state == "failed" for v in verdicts):
        raise SystemExit(1)


def judged(subject: Subject, given: dict[str, Any]) -> tuple[list[Verdict], str]:
    """Every verdict, those on cells that are trained again as asked for included; and all of them as text."""
    from rpbench.verification import checked, in_order, level

    verdicts = checked(subject, _say(given["form"]))
    refused = any(v.state == "failed" for v in verdicts)
    chosen, compared = _rerun(subject, given, refused) if given["rerun"] or given["cells"] else (None, [])
    verdicts = in_order([*verdicts, *(one.verdict for one in compared)])
    return verdicts, _show(subject, verdicts, level(verdicts), chosen, compared, given["form"])


@contextlib.contextmanager
def _subject(given: dict[str, Any]) -> Iterator[Subject]:
    from rpbench.board import board_names, load_board
    from rpbench.bundle import open_bundle
    from rpbench.data.sources import Roots
    from rpbench.verification import bundle_subject, published_subject, store_subject

    roots, limits, what = Roots.read(given["data"]), isolation_limits(given), given["what"]
    bundled = _is_bundle(Path(what))
    if bundled and given["store"]:
        raise click.UsageError("--store is for a BOARD: a bundle has its own cells")
    if given["store"]:
        with (stored := store_subject(what, given["store"], roots, limits)).known:
            yield stored
    elif bundled or (Path(what).exists() and what not in board_names()):
        board = load_board(str(given["board"])) if given["board"] else None
        bundle = open_bundle(Path(what))
        tell_protection(bundle.source is not None)
        with bundle_subject(bundle, roots, board, limits) as submitted:
            yield submitted
    elif what in board_names():
        with (published := published_subject(what, given["root"], roots, limits)).known:
            yield published
    else:
        listed = ", ".join(board_names())
        raise click.UsageError(f"'{what}' is neither a bundle (folder or .zip) nor a board: there is {listed}")


def _is_bundle(path: Path) -> bool:
    return (path.suffix == ".zip" and path.is_file()) or (path / "bundle.json").is_file()


def _say(form: str) -> Any:
    """A line that counts cells, where stderr is a terminal."""
    if form == "json" or not sys.stderr.isatty():
        return lambda done, of: None

    def say(done: int, of: int) -> None:
        click.echo(f"\rchecking {done + 1}/{of}" if done + 1 < of else "\r\033[K", err=True, nl=False)

    return say


def _rerun(subject: Subject, given: dict[str, Any], refused: bool) -> tuple[Chosen | None, list[Compared]]:
    from rpbench.progress import Several
    from rpbench.published import published_boards, read_board, root_of
    from rpbench.rerun import again, choice, compare

    board = subject.known.plan.board
    root = root_of(given["root"])
    beside = read_board(board.name, root).entries if board.name in published_boards(root) else []
    seed = given["rerun_seed"] if given["rerun_seed"] is not None else int.from_bytes(os.urandom(4), "little")
    chosen = choice(subject, beside, given["rerun"] or 0, seed, given["cells"], board.metric)
    if not chosen.names and refused:
        return None, []  # what was found says why
    if not chosen.names:
        raise click.UsageError("none of these cells can be trained again: their scheme is not here")
    click.echo(
        f"training {len(chosen.names)} of {len(subject.tolds)} cells again: {len(chosen.standing_out)} that stand out, "
        f"{len(chosen.at_random)} at random (--rerun-seed {seed} takes the same)",
        err=True,
    )
    watches = []

    def watch(names: list[str]) -> Several:
        watches.append(Several(names, sys.stderr.isatty()))
        return watches[-1]

    try:
        found = again(subject, chosen.names, given["slots"], watch)
    finally:
        for one in watches:
            one.close()
    return chosen, compare(subject, chosen.names, found, beside, board.metric)


def _show(
    subject: Subject, verdicts: Sequence[Verdict], told: str, chosen: Chosen | None, compared: list[Compared], form: str
) -> str:
    from rpbench.report.checks import checks_json, checks_text
    from rpbench.report.words import counted

    title = f"{subject.name}: {counted(len(subject.tolds), 'cell')}"
    if form == "table":
        return checks_text(title, verdicts, told, [one.verdict for one in compared])
    found = checks_json(title, verdicts, told)
    if chosen is not None:
        words = {"standing_out": chosen.standing_out, "at_random": chosen.at_random, "named": chosen.named}
        found["rerun"] = {"seed": chosen.seed, **words, "cells": [asdict(one) for one in compared]}
    return json.dumps(found, indent=1)
