"""Commands on scored boards: report, compare, publish."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rpbench.cli.shared import Placed, format_option, leaderboard_option, leaderboard_root, store_option

if TYPE_CHECKING:
    from rpbench.entries import Found

FORMS = {".txt": "term", ".md": "md", ".csv": "csv", ".tex": "latex", ".html": "html", ".json": "json"}


@click.command(cls=Placed)
@click.argument("boards", nargs=-1)
@store_option
@leaderboard_option
@click.option("--metric", help="Score by this metric, as ece or robust/fgsm-8.  [default: the board's]")
@click.option(
    "--order",
    type=click.Choice(["params", "flops"]),
    default="params",
    show_default=True,
    help="Compare at equal parameters, or at equal FLOPs (interpolated over densities).",
)
@click.option("--by", type=click.Choice(["scheme", "model"]), default="scheme", show_default=True)
@click.option("--figure", "figures", multiple=True, help="Draw this figure, as fig1 (rpbench list figures).")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Write to this file, in the format of its suffix; a figure: .pdf, .svg or .png, or a folder.",
)
@format_option("term", "md", "csv", "csv-wide", "latex", "html", "json")
def report(**given: Any) -> None:
    """Show a board: every scheme's gap to dense, with intervals, ranks and ties.

    Without BOARDS: every board that the store has something of. csv is a line per training, csv-wide one per scheme.

    \b
    rpbench report digits
    rpbench report digits --leaderboard --store runs     your rows beside the published
    rpbench report digits --leaderboard hf:owner/name    those of somebody else
    rpbench report digits --out digits.html              or .md, .tex, .csv, .json
    rpbench report --by model fig1
    rpbench report --figure fig1 --figure fig3
    """
    from rpbench.report.render import render

    if given["figures"]:
        _draw(given)
        return

    given["form"] = _form(given)
    sheets = _sheets(given)
    text = render(sheets, given["form"], given["by"])
    if given["form"].startswith("csv") or given["form"] == "latex":  # the others have a place for them
        from rpbench.report.words import plain

        for sheet in sheets:
            for fault in sheet.left_out:
                click.echo(f"left out: {plain(fault.place)}: {plain(fault.why)}", err=True)
    if given["out"] is None:
        click.echo(text, nl=not text.endswith("\n"))
        return
    from rpbench.files import write_text

    try:
        write_text(given["out"], text if text.endswith("\n") else text + "\n")
    except OSError as error:
        raise click.UsageError(f"--out '{given['out']}' cannot be written: {error.strerror}") from None
    click.echo(f"wrote {given['out']} ({given['out'].stat().st_size / 1000:.0f} KB)", err=True)


def _form(given: dict[str, Any]) -> str:
    """The format that is asked for, or that the file's suffix names."""
    out, context = given["out"], click.get_current_context()
    if out is None or context.get_parameter_source("form") == click.core.ParameterSource.COMMANDLINE:
        return str(given["form"])
    from rpbench.report.figures import SUFFIXES

    if out.suffix in SUFFIXES:
        raise click.UsageError(f"--out '{out}' is a figure's file: name the figure, as --figure fig1")
    return FORMS.get(out.suffix, str(given["form"]))


def _draw(given: dict[str, Any]) -> None:
    """Figures into files of their names: --out is a folder, or for one figure a file."""
    from rpbench.board import load_board
    from rpbench.report.figures import SUFFIXES, draw_figures

    out, names = given["out"] or Path("."), given["figures"]
    if out.suffix and len(names) > 1:
        raise click.UsageError(f"--out '{out}' is one file, but {len(names)} figures are asked for: give a folder")
    if out.suffix and out.suffix not in SUFFIXES and not out.is_dir():
        raise click.UsageError(f"--out '{out}': a figure's suffix must be one of {', '.join(SUFFIXES)}")
    if len(given["boards"]) > 1:
        raise click.UsageError("a figure stands on one board: name at most one")
    boards = [load_board(name) for name in given["boards"]]
    store, found = _records(given, leaderboard_root(given["leaderboard"]), None)
    folder = out.parent if out.suffix else out
    if not folder.is_dir():
        raise click.UsageError(f"--out: there is no folder '{folder}'")
    for path in draw_figures(boards[0] if boards else None, names, found.entries, store, folder, out.suffix or ".pdf"):
        click.echo(str(path.replace(out) if out.suffix else path))


def _records(given: dict[str, Any], root: Path | None, board: str | None) -> tuple[Path | None, Found]:
    """The store and what it holds; or the records of one board or of all that a leaderboard has, beside a store that is
    named."""
    from rpbench.board import board_names
    from rpbench.entries import Found, read_store
    from rpbench.published import beside, published_boards
    from rpbench.store import default_store

    store = given["store"] if root else given["store"] or default_store()
    if store is not None and not store.is_dir():
        raise click.UsageError(f"there is no store '{store}': --store DIR, RPBENCH_STORE, or --leaderboard")
    own = read_store(store) if store is not None else Found()
    if not root:
        return store, own
    shelved = board in board_names()  # a board of one's own may share cells with any
    return store, beside(own, [board] if board and shelved else published_boards(root), root)


def _sheets(given: dict[str, Any]) -> list[Any]:
    """The boards that are asked for, scored from a store or the published records."""
    from rpbench.board import board_names, expand, load_board
    from rpbench.errors import UnknownName
    from rpbench.ranking import score
    from rpbench.selection import select

    sheets, read, unknown = [], None, None
    root = leaderboard_root(given["leaderboard"])
    plans = [(name, expand(load_board(name))) for name in given["boards"] or board_names()]
    for name, plan in plans:
        if read is None or root:
            store, read = _records(given, root, name)
        chosen = select(plan, read.entries, read.faults)
        if not chosen.places and not given["boards"]:
            continue
        try:
            sheets.append(score(plan, chosen, given["metric"] or "", given["order"]))
        except UnknownName as error:  # of many boards, those that have the metric
            if given["boards"]:
                raise
            unknown = error
    if not given["boards"]:  # cells are shared: what is merely touched says little
        sheets = [sheet for sheet in sheets if sheet.seeded] or sheets
    if not sheets and unknown:
        raise unknown
    if not sheets:
        where = "the leaderboard" if root else f"store '{store}'"
        if read is not None and read.entries:
            raise click.UsageError(f"{where} has records of no board on the shelf: name the board's file")
        raise click.UsageError(f"{where} has no record of any board: rpbench sweep BOARD (rpbench list boards)")
    return sheets


@click.command(cls=Placed)
@click.argument("a")
@click.argument("b")
@click.option("--board", "boards", multiple=True, help="On this board.  [default: every board that ranks both]")
@store_option
@leaderboard_option
@click.option("--metric", help="By this metric, as ece or robust/fgsm-8.  [default: the board's]")
@format_option("term", "json")
def compare(**given: Any) -> None:
    """Say whether a difference between two rows of a board is real.

    \b
    rpbench compare erk uniform
    rpbench compare snip grasp --board digits --metric ece
    """
    from rpbench.comparison import beside, comparison_json, words
    from rpbench.comparison import compare as compared
    from rpbench.errors import UnknownName
    from rpbench.store import default_store

    a, b = given["a"], given["b"]
    sheets = _sheets(given | {"order": "params"})
    store = None if given["leaderboard"] else given["store"] or default_store()
    have = [s for s in sheets if {a, b} <= {s.plan.board.reference, *(row.label for row in s.rows)}]
    ranked = [s for s in have if {a, b} <= {s.plan.board.reference, *(row.label for row in s.seeded)}]
    found = [compared(sheet, a, b, store) for sheet in (sheets if given["boards"] else ranked or have)]
    if not found:
        known = sorted({row.label for sheet in sheets for row in sheet.rows})
        for name in (a, b):
            if name not in known:
                raise UnknownName("row", name, known)
        raise click.UsageError(f"no board has records of both '{a}' and '{b}'")
    if given["form"] == "json":
        click.echo(json.dumps([comparison_json(c) for c in found], indent=1))
        return
    from rpbench.report.words import plain

    for c in found:
        click.echo(plain(words(c)))
        if told := beside(c):
            click.echo(f"  {told}")
        if c.examples is not None and c.difference is not None:
            click.echo(f"  the draw of the test images adds a standard error of {c.examples:.2f}", err=True)


@click.command()
@click.argument("board", required=False)
@store_option
@click.option(
    "--root", type=click.Path(path_type=Path, file_okay=False), help="A leaderboard's folder.  [default: leaderboard/]"
)
@click.option("--refresh", is_flag=True, help="Make the tables and the page anew from the records, and nothing else.")
@click.option("--to", metavar="hf:OWNER/NAME", help="Put the leaderboard into a public dataset repository.")
def publish(board: str | None, store: Path | None, root: Path | None, refresh: bool, to: str | None) -> None:
    """Put a store's records of a board into the published leaderboard, and make its tables and page anew.

    \b
    rpbench publish digits --store runs
    rpbench publish --refresh                    after a merge in git
    rpbench publish --to hf:owner/name           report --leaderboard hf:owner/name reads it
    """
    from rpbench.published import root_of

    if (board is None) == (not refresh and to is None):
        raise click.UsageError("name a board, as rpbench publish digits, or give --refresh or --to alone")
    folder = root_of(root)
    if board is not None:
        _publish(board, store, folder)
    if refresh:
        _refresh(folder)
    if to is not None:
        _upload(folder, to)


def _publish(board: str, store: Path | None, folder: Path) -> None:
    from rpbench.published import publish as put
    from rpbench.report.words import counted, plain
    from rpbench.store import default_store

    done = put(board, store or default_store(), folder)
    for name, records in done.files.items():
        click.echo(f"{board}/{name}: {counted(records, 'record')}")
    for fault in done.left_out:
        click.echo(f"left out: {plain(fault.place)}: {plain(fault.why)}", err=True)
    click.echo(f"made anew: {folder / 'README.md'}, {folder / 'index.html'}", err=True)


def _refresh(folder: Path) -> None:
    from rpbench.published import refresh

    if not folder.is_dir():
        raise click.UsageError(f"--root: there is no folder '{folder}'")
    changed = refresh(folder)
    click.echo(f"made anew: {', '.join(str(folder / name) for name in changed)}" if changed else "nothing to do")


def _upload(folder: Path, to: str) -> None:
    from rpbench.hub import upload
    from rpbench.report.words import counted

    done = upload(folder, to)
    for name in done.removed:
        click.echo(f"removed there: {name}", err=True)
    click.echo(f"{done.pinned}: {counted(len(done.files), 'file')}")
