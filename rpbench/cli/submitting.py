"""The command that makes a submission: submit."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rpbench.cli.merging import merge_bundle, merge_options
from rpbench.cli.shared import Command, store_option

if TYPE_CHECKING:
    from rpbench.rows import Sheet
    from rpbench.submission import Row

MANY = 50  # cells from which on a terminal is shown how far it is


def card_options(command: Command) -> Command:
    for option in reversed(
        [
            click.option(
                "--card",
                "card_file",
                type=click.Path(path_type=Path),
                metavar="FILE",
                help="TOML file of the keys below.",
            ),
            click.option("--name", help="What it is called.  [default: the function's name]"),
            click.option("--version", help="Of the scheme or sampler, as 1 or 2026.1."),
            click.option("--author", help="One person or several."),
            click.option("--email", help="Where questions go; it is published."),
            click.option("--source", help="Address of paper or code.  [default: the docstring's]"),
            click.option("--claim", help="What is said of it.  [default: the docstring's sentence]"),
            click.option("--licence", "--license", help="Of the source file, as Apache-2.0."),
            click.option("--date", metavar="YYYY-MM-DD", help="[default: today]"),
        ]
    ):
        command = option(command)
    return command


@click.command()
@click.argument("scheme", metavar="NAME[:KEY=VALUE,...]", required=False)
@click.option("--board", help="A board's name, or a TOML file.")
@click.option("--sampler", default="", help="A sampler's name, or ./mine.py.  [default: the board's]")
@store_option
@click.option("--out", type=click.Path(path_type=Path), help="Where to.  [default: NAME-BOARD.zip here]")
@click.option("--archive/--folder", default=None, help="A .zip, or a folder.  [default: as --out is named]")
@card_options
@merge_options
def submit(**given: Any) -> None:
    """Put a row of a board into a bundle that anybody can check.

    NAME is a scheme as in a sweep: ./mine.py, a name on the shelf, an entry point. A sampler of your own is submitted
    with the scheme that it was run with.

    What RULES.md refuses is said at once, by number, and nothing is written: missing cells, another protocol, a
    source that was edited since, a card without a licence. The same command again changes only what differs.

    \b
    rpbench sweep digits --scheme ./mine.py            first: every cell
    rpbench submit ./mine.py --board digits --author "A. N. Other" \\
        --version 1 --licence Apache-2.0               mine-digits.zip
    rpbench submit ./mine.py:power=0.7 --board digits --card card.toml
    rpbench submit uniform --sampler ./mica.py --board luck --card card.toml
    rpbench verify mine-digits.zip                     what a maintainer does
    rpbench submit --merge mine-digits.zip             and then

    \b
    card.toml:
      version = "1"
      author = "A. N. Other"
      licence = "Apache-2.0"
      claim = "Better than ERK below 5 % density"
    """
    if given["bundle"] is not None:
        if given["scheme"] or given["board"]:
            raise click.UsageError("--merge takes a bundle, which says of which row and board it is")
        merge_bundle(given)
        return
    if not given["scheme"] or not given["board"]:
        raise click.UsageError("name a scheme and a board, as rpbench submit ./mine.py --board digits")
    import datetime

    from rpbench.bundling import put, scored_sheet
    from rpbench.card import KEYS, read_card
    from rpbench.store import default_store
    from rpbench.submission import Wish, find_row, refusals

    card = read_card(given["card_file"]) if given["card_file"] else {}
    card |= {key: given[key] for key in KEYS if given[key] is not None}
    store = given["store"] or default_store()
    if not store.is_dir():
        raise click.UsageError(f"there is no store '{store}': --store DIR, or RPBENCH_STORE")
    row = find_row(Wish(given["scheme"], given["board"], store, given["sampler"]))
    place = _place(given, row)
    if row.source is not None and not row.source.faults:
        click.echo("checking the contract, as rpbench try does", err=True)
    if found := refusals(row, card, _watched):
        _refuse(found)
    sheet = scored_sheet(row)
    made, state = put(row, card, sheet, place, datetime.date.today().isoformat())
    _tell(row, sheet, place, state, made.manifest.bytes, len(made.parts))


def _watched(cells: Iterable[Any], number: int) -> Iterable[Any]:
    from tqdm import tqdm

    bar = "reading cells |{bar:12}| {n_fmt} of {total_fmt}, {remaining} left"
    return tqdm(cells, total=number, bar_format=bar, leave=False, disable=number < MANY or not sys.stderr.isatty())


def _place(given: dict[str, Any], row: Row) -> Path:
    """Where the bundle goes: --out, or a name made of the row's and the board's."""
    out, archive = given["out"], given["archive"]
    if out is None:
        safe = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in row.label)
        return Path(f"{safe}-{row.plan.board.name}{'' if archive is False else '.zip'}")
    if archive is not None and archive != (out.suffix == ".zip"):
        right = "as a .zip is named" if archive else "as a .zip is: name a folder"
        raise click.UsageError(f"--out '{out}' is {'not named ' if archive else 'named '}{right}")
    return Path(out)


def _refuse(found: list[Any]) -> None:
    from rpbench.report.words import counted, plain

    for verdict in found:
        click.echo(f"{verdict.rule} {verdict.check}: {plain(verdict.why)}", err=True)
    rules = sorted({verdict.rule for verdict in found}, key=lambda rule: int(rule[1:]))
    raise click.UsageError(
        f"nothing was written: refused by {counted(len(rules), 'rule')} of RULES.md ({', '.join(rules)})"
    )


def _tell(row: Row, sheet: Sheet, place: Path, state: str, size: int, files: int) -> None:
    from rpbench.bundling import verify_command
    from rpbench.report.words import counted, plain

    board = row.plan.board
    click.echo(f"{plain(row.label)} on {board.name}@{board.version}: {standing(row, sheet)}")
    of = f"{counted(len(row.ended), 'cell')}, {counted(files, 'file')}, {size / 1e6:.1f} MB"
    click.echo(f"{state}{': ' if state == 'unchanged' else ' '}{place} ({of})")
    click.echo(f"anybody can check it: {verify_command(row, str(place), row.wish.board)}")
    if row.also:
        told = counted(row.also, "record")
        click.echo(f"left out: {told} of this row with seeds that the board does not have", err=True)
    if not row.shelved:
        click.echo(f"'{row.wish.board}' is a board of your own: the leaderboard takes those of the shelf", err=True)


def standing(row: Row, sheet: Sheet) -> str:
    """Where the row stands among those that it is shown beside."""
    from rpbench.report.words import counted, gap

    found = next((r for r in sheet.ranked.rows if r.label == row.label), None)
    if found is None or found.rank is None or found.score is None:
        lacks = not any(cell.group for cell in sheet.reference)
        return (
            f"not ranked, for {row.plan.board.reference} is not there" if lacks else "not ranked (README.md says why)"
        )
    places = f"{found.rank.low}" if found.rank.low == found.rank.high else f"{found.rank.low} to {found.rank.high}"
    unit = " points" if sheet.metric.unit else ""
    to = f"{sheet.metric.title} {gap(found.score)}{unit} to {row.plan.board.reference}"
    return f"{to}, rank {places} of {counted(len(sheet.ranked.rows), 'row')}"
