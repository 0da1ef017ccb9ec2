"""The paper's figures from one's own records, as PDF, SVG or PNG. The same records give the same bytes.

Matplotlib is imported where a figure is drawn, and its settings are put back afterwards.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rpbench.board import Board, Figure, Plan, board_names, every_baseline, expand, load_board
from rpbench.entries import Entry
from rpbench.errors import UnknownName, UsageError
from rpbench.files import write_bytes
from rpbench.report.series import STREAMS, Line, Panel, Point, is_reference, panels, scale_of
from rpbench.selection import select

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".pdf", ".svg", ".png")
WIDE, NARROW = 6.9, 3.35  # inches: two columns of a page, and one
LEAST, MOST = 1.5, 3.35  # inches of a panel's width
# Okabe & Ito's colours and Tol's muted ones: told apart under every kind of colour blindness, never by colour alone
COLOURS = (
    "#332288", "#44AA99", "#0072B2", "#56B4E9", "#CC79A7", "#999933",
    "#882255", "#661100", "#D55E00", "#009E73", "#E69F00", "#117733",
)  # fmt: skip
ORDER = (2, 8, 9, 4, 10, 3, 0, 5, 1, 6, 7, 11)  # in which nets and densities take them: the clearest first
MARKERS = ("p", "h", "o", "d", "v", "P", "X", "<", "s", "^", "D", ">")
DENSE, KNOWN = "#000000", "#B3B3B3"
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans", "font.size": 7, "axes.titlesize": 7.5, "axes.labelsize": 7, "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5, "legend.fontsize": 7, "axes.linewidth": 0.6, "xtick.major.width": 0.6,
    "ytick.major.width": 0.6, "xtick.major.size": 2.5, "ytick.major.size": 2.5, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": "#E6E6E6", "grid.linewidth": 0.5,
    "axes.axisbelow": True, "lines.linewidth": 1.0, "lines.markersize": 3.5, "pdf.fonttype": 42, "svg.fonttype": "path",
    "svg.hashsalt": "rpbench", "figure.dpi": 100, "text.parse_math": False, "path.simplify": True,
}  # fmt: skip


@dataclass(frozen=True)
class Look:
    colour: str
    marker: str
    hollow: bool = False


def figure_names() -> list[str]:
    """Figures of every board on the shelf."""
    return sorted({figure.name for name in board_names() for figure in load_board(name).figures})


def find_figure(name: str) -> tuple[Board, Figure]:
    """A figure and the board that declares it (fig3 stands on board fig1). UnknownName lists what exists."""
    for shelved in board_names():
        board = load_board(shelved)
        for figure in board.figures:
            if figure.name == name:
                return board, figure
    raise UnknownName("figure", name, figure_names())


def draw_figures(
    board: Board | None, names: Sequence[str], entries: Sequence[Entry], store: Path | None, folder: Path, suffix: str
) -> list[Path]:
    """Draw figures into `folder` and give their files. A name means a figure of `board` first, then one of the shelf.

    Raises UnknownName, or UsageError for a suffix that is none of SUFFIXES.
    """
    own = {figure.name: figure for figure in board.figures} if board else {}
    found = [(board, own[name]) if board and name in own else find_figure(name) for name in dict.fromkeys(names)]
    paths = []
    for whose, figure in found:
        path = folder / f"{figure.name}.{suffix.removeprefix('.')}"
        draw(whose, figure, entries, path, store=store)
        paths.append(path)
    return paths


def draw(
    board: Board, figure: Figure, entries: Iterable[Entry], path: Path, *, store: Path | None = None,
    width: float = WIDE,
) -> None:  # fmt: skip
    """Draw one figure of a board, at most `width` inches wide. Panels without a record say so; `store` is where the
    gradient flows of these records lie. UsageError for a suffix that is none of SUFFIXES."""
    if path.suffix not in SUFFIXES:
        raise UsageError(
            f"a figure cannot be written as '{path.name}': its suffix must be one of {', '.join(SUFFIXES)}"
        )
    plan = expand(board)
    drawn = panels(plan, select(plan, entries), figure, store)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, render(plan, figure, drawn, path.suffix, width))


def render(plan: Plan, figure: Figure, drawn: Sequence[Panel], suffix: str, width: float = WIDE) -> bytes:
    """The bytes of a figure file."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Sheet

    metadata: dict[str, dict[str, str | None]] = {
        ".pdf": {"Title": figure.caption, "CreationDate": None, "Creator": None, "Producer": None},
        ".svg": {"Title": figure.caption, "Date": None, "Creator": None},
        ".png": {"Title": figure.caption, "Software": None},
    }
    looks = _looks(plan, drawn)
    key = _key(plan, drawn, looks)
    # a single panel has its legend beside it where there is room
    alone = len(drawn) == 1 and key and width >= 2 * MOST
    columns = _columns(2 if alone else len(drawn), figure.columns, width)
    rows = math.ceil(len(drawn) / columns)
    across = min(width / columns, MOST)
    high = min(max(0.82 * across, 1.35), 2.3)
    spare = rows * columns > len(drawn) and len(key) <= (high - 0.1) / 0.15
    abreast = _abreast(key, across * columns)
    # the legend's place is as wide as the legend needs
    sides = [across] * columns
    if alone and spare:
        sides[-1] = min(across, 0.6 + 0.065 * max(len(sign.text) for sign in key))
    above = 0.0 if spare or not key else 0.16 * math.ceil(len(key) / abreast)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(cast(Any, STYLE))
        sheet = Sheet(figsize=(sum(sides), rows * high + above + 0.3), layout="constrained")
        FigureCanvasAgg(sheet)
        axes = sheet.subplots(rows, columns, squeeze=False, width_ratios=sides).ravel()
        for i, panel in enumerate(drawn):
            _draw_panel(axes[i], plan, panel, looks)
            below, left = i + columns, drawn[i - 1] if i % columns else None
            if below >= len(drawn) or drawn[below].x_label != panel.x_label:
                axes[i].set_xlabel(panel.x_label)
            if left is None or left.y_label != panel.y_label:
                axes[i].set_ylabel(panel.y_label)
        for axis in axes[len(drawn) :]:
            axis.set_axis_off()
        if spare:
            _legend(axes[-1], key, {"loc": "center"})
        else:
            _legend(sheet, key, {"loc": "outside upper center", "ncols": abreast})
        text = textwrap.fill(_footer(plan, drawn), int(sum(sides) * 21))
        sheet.supxlabel(text, fontsize=5.5, color="#555555", x=0.01, ha="left")
        out = io.BytesIO()
        sheet.savefig(out, format=suffix[1:], dpi=200, metadata=metadata[suffix])
    return out.getvalue()


def _columns(panels: int, asked: int | None, width: float) -> int:
    """As many as fit; of the layouts with the fewest rows the one with the fewest columns."""
    most = max(1, int(width / LEAST))
    if asked:
        return min(asked, most)
    fit = min(most, panels, 3 if panels > 4 else 4)
    return math.ceil(panels / math.ceil(panels / fit))


def _looks(plan: Plan, drawn: Sequence[Panel]) -> dict[str, Look]:
    """How each key of a line looks. A scheme looks the same in every figure: by its place on the shelf."""
    shelf = [name for name in every_baseline() if name != plan.board.reference]
    drawn_lines = [(panel, line) for panel in drawn for line in [*panel.lines, *panel.known]]
    found: dict[str, Look] = {}
    strangers: list[str] = []
    others: dict[str, list[str]] = {"model": [], "density": []}
    for dimension, key in (
        (d, k) for panel, line in drawn_lines for d, k in zip(panel.part.lines, line.keys, strict=True)
    ):
        if is_reference([key], plan):
            found[key] = Look(DENSE, "*")
        elif key in found:
            continue
        elif dimension == "scheme":
            base = key.partition(" ")[0].partition(":")[0]
            if base not in [*shelf, *strangers]:
                strangers.append(base)
            found[key] = _look([*shelf, *strangers].index(base), base != key)
        else:
            others[dimension].append(key)
            found[key] = _look(ORDER[(len(others[dimension]) - 1) % len(ORDER)])
    return found


def _look(at: int, hollow: bool = False) -> Look:
    """The style at a place; behind the last one they start again with other markers, hollow."""
    again, at = divmod(at, len(COLOURS))
    return Look(COLOURS[at], MARKERS[(at + 5 * again) % len(MARKERS)], hollow or again > 0)


def _draw_panel(ax: Axes, plan: Plan, panel: Panel, looks: dict[str, Look]) -> None:
    ax.set_title(_safe(panel.title), loc="left", pad=3)
    log = panel.part.scale == "log" and panel.part.x == "sparsity"
    at: Callable[[float], float] = _density if log else float
    count = len(panel.lines) - 1
    if not panel.measured:
        place = (0.04, 0.05, "left", "bottom") if panel.known else (0.5, 0.5, "center", "center")
        ax.text(
            *place[:2], "not run", transform=ax.transAxes, ha=place[2], va=place[3], color="#777777", style="italic"
        )
    if not panel.measured and not panel.known:
        ax.set_xticks([])
        ax.set_yticks([])
        return
    for line in panel.known:
        look = looks[line.keys[-1]]
        ax.plot([at(p.x) for p in line.points], [p.y for p in line.points], color=KNOWN, marker=look.marker,
                linewidth=0.7, markersize=2.8, zorder=1.5)  # fmt: skip
    if panel.level is not None:
        ax.axhline(panel.level, color=KNOWN, linewidth=0.9, linestyle=(0, (4, 2)), zorder=1.4)
    if panel.band is not None:
        ax.axhline(panel.band.y, color=DENSE, linewidth=0.9, zorder=2.2)
        if panel.band.low is not None and panel.band.high is not None:
            ax.axhspan(panel.band.low, panel.band.high, color=DENSE, alpha=0.09, linewidth=0, zorder=1)
    for i, line in enumerate(panel.lines):
        _draw_line(ax, plan, panel, line, looks, _beside(panel, i - count / 2, at), i)
    _scale(ax, panel, log)


def _density(sparsity: float) -> float:
    return 1 - sparsity


def _beside(panel: Panel, i: float, at: Callable[[float], float]) -> Callable[[float], float]:
    """Where line `i` (0 in the middle) draws a sparsity: beside the others, so that no interval hides another."""
    if panel.part.x != "sparsity":
        return at
    step = min(0.011, 0.05 / max(len(panel.lines), 1))
    if panel.part.scale == "log":
        return lambda x: at(x) * (1 + 2 * step) ** -i
    return lambda x: at(x) + step * i


def _draw_line(
    ax: Axes,
    plan: Plan,
    panel: Panel,
    line: Line,
    looks: dict[str, Look],
    at: Callable[[float], float],
    i: int,
) -> None:
    colour, look = looks[line.keys[0]].colour, looks[line.keys[-1]]
    if is_reference(line.keys, plan) and len(line.keys) > 1 and not is_reference(line.keys[:1], plan):
        look = Look(colour, "*")
    face = "white" if look.hollow else colour
    if panel.part.x == "step":
        steps = [p.x for p in line.points]
        ax.plot(steps, [p.y for p in line.points], color=colour, zorder=3)
        if line.bounds:
            ax.fill_between(steps, [b[1] for b in line.bounds], [b[2] for b in line.bounds], color=colour, alpha=0.2,
                            linewidth=0)  # fmt: skip
        if line.note:
            ax.text(0.98, 0.97 - 0.1 * i, _safe(line.note), transform=ax.transAxes, ha="right", va="top", color=colour,
                    fontsize=6, zorder=4)  # fmt: skip
        return
    if panel.part.x == "stream":
        shift = 0.22 * (i - (len(panel.lines) - 1) / 2)
        ax.plot([x + shift - 0.08 for x, _ in line.dots], [y for _, y in line.dots], color=colour, marker="o",
                linestyle="", markersize=2.4, alpha=0.55, markeredgewidth=0, zorder=2)  # fmt: skip
        _bars(ax, [p.x + shift + 0.08 for p in line.points], line.points, colour, look.marker, face, "")
        return
    _bars(ax, [at(p.x) for p in line.points], line.points, colour, look.marker, face, "-")
    for x in line.infeasible:
        others = sum(x in other.infeasible for other in panel.lines[:i])
        ax.plot(
            [at(x)], [0.03 + 0.05 * others], marker="x", color=colour, markersize=3, transform=ax.get_xaxis_transform()
        )


def _bars(
    ax: Axes, xs: Sequence[float], points: Sequence[Point], colour: str, marker: str, face: str, style: str
) -> None:
    below = [0.0 if p.low is None else p.y - p.low for p in points]
    above = [0.0 if p.high is None else p.high - p.y for p in points]
    size = 6 if marker == "*" else 3.5
    ax.errorbar(xs, [p.y for p in points], yerr=[below, above], color=colour, marker=marker, markerfacecolor=face,
                markeredgewidth=0.7, markersize=size, linestyle=style, elinewidth=0.6, capsize=1.4, capthick=0.6,
                zorder=3)  # fmt: skip


def _scale(ax: Axes, panel: Panel, log: bool) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    ax.set_ylim(*_limits(panel))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    if panel.part.x == "stream":
        ax.set_xticks(range(len(STREAMS)), STREAMS)
        ax.set_xlim(-0.5, len(STREAMS) - 0.5)
        return
    if log:
        seen = sorted({p.x for line in [*panel.lines, *panel.known] for p in line.points})
        if len(seen) == 1:
            ax.set_xlim((1 - seen[0]) / 2, (1 - seen[0]) * 2)  # a single point spans nothing
        ax.set_xscale("log")
        ax.invert_xaxis()
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_locator(FixedLocator([1 - x for x in seen[:: math.ceil(len(seen) / 5) or 1]]))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda density, _: f"{round(1 - density, 6):g}"))
        return
    if panel.part.x in ("width", "last_sparsity") and panel.lines:
        seen = sorted({p.x for line in panel.lines for p in line.points})
        ax.set_xticks(seen, [f"{x:g}" for x in seen])
        return
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))


def _limits(panel: Panel) -> tuple[float, float]:
    """From the lowest to the highest mean; intervals are shown as far as they stretch this by a fifth on either side
    and stay within what the metric can be."""
    points = [p for line in panel.lines for p in line.points] + ([panel.band] if panel.band else [])
    values = [p.y for p in points] + [p.y for line in panel.known for p in line.points]
    values += [y for line in panel.lines for _, y in line.dots]
    values += [y for line in panel.lines for _, *ends in line.bounds for y in ends]
    if panel.level is not None:
        values.append(panel.level)
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    room = 0.2 * (high - low) or max(abs(high) * 0.01, 1e-6)
    lowest = min([low, *(p.low for p in points if p.low is not None)])
    highest = max([high, *(p.high for p in points if p.high is not None)])
    low, high = max(lowest, low - room), min(highest, high + room)
    margin = 0.06 * (high - low) or room
    most = math.inf if panel.part.x == "step" or panel.part.y in ("nll", "brier") else scale_of(panel.part.y)
    return max(low - margin, min(0.0, min(values))), min(high + margin, max(1.01 * most, max(values)))


@dataclass(frozen=True)
class Sign:
    """One line of the legend: what it looks like (options of a Line2D), over a patch where it has a band."""

    text: str
    style: dict[str, Any]
    band: bool = False


def _key(plan: Plan, drawn: Sequence[Panel], looks: dict[str, Look]) -> list[Sign]:
    """The legend: rows in the board's order, colours before markers, then the reference and a paper's values."""
    lines = [(panel, line) for panel in drawn for line in [*panel.lines, *panel.known]]
    rows = {label: i for i, label in enumerate(plan.labels.values())}
    signs: dict[str, Sign] = {}
    for place in range(max((len(line.keys) for _, line in lines), default=0)):
        for key in sorted(
            dict.fromkeys(x.keys[place] for _, x in lines if len(x.keys) > place), key=lambda k: rows.get(k, len(rows))
        ):
            owner = next(panel for panel, x in lines if x.keys[place : place + 1] == (key,))
            signs.setdefault(key, Sign(_safe(key), _sign_style(owner, looks[key], place)))
    if any(panel.band for panel in drawn) and plan.board.reference not in signs:
        signs["band"] = Sign(_safe(plan.board.reference), {"color": DENSE, "linewidth": 0.9}, band=True)
    if any(panel.known or panel.level is not None for panel in drawn):
        style = {"color": KNOWN, "marker": "o", "linewidth": 0.7, "markersize": 2.8}
        signs["known"] = Sign("Liu et al. 2022 (dense: dashed)", style)
    if any(line.infeasible for _, line in lines):
        style = {"color": "#555555", "marker": "x", "linestyle": "", "markersize": 3}
        signs["infeasible"] = Sign("budget cannot be met", style)
    return list(signs.values())


def _sign_style(panel: Panel, look: Look, place: int) -> dict[str, Any]:
    """With two keys a line the first shows its colour alone, the second its marker alone."""
    paired = len(panel.part.lines) > 1
    colour = "#555555" if place else look.colour
    bare = panel.part.x == "step" or (paired and not place)
    return {
        "color": colour, "linestyle": "" if place else "-", "marker": "" if bare else look.marker,
        "markerfacecolor": "white" if look.hollow else colour, "markersize": 6 if look.marker == "*" else 3.5,
    }  # fmt: skip


def _abreast(key: Sequence[Sign], width: float) -> int:
    """Columns of a legend above the panels: as few rows as fit, filled evenly."""
    if not key:
        return 1
    most = max(1, int(width / (0.5 + 0.065 * max(len(sign.text) for sign in key))))
    return math.ceil(len(key) / math.ceil(len(key) / most))


def _legend(place: Any, key: Sequence[Sign], options: dict[str, Any]) -> None:
    from matplotlib.legend_handler import HandlerTuple
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    if not key:
        return
    handles: list[Any] = []
    for sign in key:
        line = Line2D([], [], **sign.style)
        handles.append((Patch(color=DENSE, alpha=0.09, linewidth=0), line) if sign.band else line)
    handlers = {tuple: HandlerTuple(ndivide=1)}
    legend = place.legend(handles, [sign.text for sign in key], frameon=False, handler_map=handlers, **options)
    for text, sign in zip(legend.get_texts(), key, strict=True):
        text.set_text(sign.text)


def _footer(plan: Plan, drawn: Sequence[Panel]) -> str:
    """What the numbers are: tasks, precision, seeds, intervals."""
    tasks = ", ".join(f"{t.name}@{t.version}" for t in plan.tasks.values())
    points = [p for panel in drawn for line in panel.lines for p in line.points]
    points += [panel.band for panel in drawn if panel.band]
    if not points:
        return f"{plan.board.name}: {tasks}, {plan.board.precision}"
    low, high = min(p.n for p in points), max(p.n for p in points)
    seeds = f"{high} seed{'s' if high > 1 else ''}" if low == high else f"{low} to {high} seeds"
    told = f"{plan.board.name}: {tasks}, {plan.board.precision}; {seeds}"
    kinds = {panel.part.x for panel in drawn}
    if high > 1 and kinds <= {"step"}:
        told += "; shaded: their range"
    elif high > 1 and kinds <= {"stream"}:
        told += "; bars: standard deviation"
    elif high > 1:
        told += "; bars and band: 95 % t-intervals (cut where they leave the panel)"
    return told


def _safe(text: str) -> str:
    """Names as the font can draw them, of a length that a legend can hold."""
    shown = "".join(c if c.isascii() and c.isprintable() else "?" for c in text)
    return shown if len(shown) <= 36 else f"{shown[:33]}..."
