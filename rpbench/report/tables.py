"""A scored board as text tables: for a terminal of 80 columns, and the same as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

from tabulate import tabulate

from rpbench.board import Board, Context
from rpbench.entries import Fault
from rpbench.report.words import (
    Escape,
    counted,
    crossed,
    digits_of,
    gap,
    markdown,
    net,
    percent,
    plain,
    seconds,
    signed,
)
from rpbench.rows import LEVELS, Block, Cell, Row, Sheet, metric_of
from rpbench.stats import StreamVariance, seeds_needed

T = TypeVar("T")
Style = Literal["term", "md"]
WIDTH = 80
LEVEL = f"level: how far a row's records have been checked: {' < '.join(LEVELS)}."


def board_text(sheet: Sheet, style: Style = "term", by: Literal["scheme", "model"] = "scheme") -> str:
    """The whole report: ranks, common cells, results by net, matching sparsities, what is missing and left out."""
    escape: Escape = markdown if style == "md" else plain
    parts = [head(sheet, style)]
    if by == "model":
        parts += [_by_model(sheet, style, escape)]
    else:
        if sheet.ranked.rows:
            parts += [_block(sheet, sheet.ranked, style, escape)]
        if sheet.common:
            parts += [_title(f"On {sheet.common.title}", style), _block(sheet, sheet.common, style, escape)]
        parts += _nets(sheet, style, escape)
        if matching := _matching(sheet, style, escape):
            parts += [matching]
        if luck := _luck(sheet, style, escape):
            parts += [luck]
    parts += _rest(sheet, style, escape)
    return "\n\n".join(part for part in parts if part)


def head(sheet: Sheet, style: Style) -> str:
    """What is compared, under which protocol."""
    board = sheet.plan.board
    tasks = ", ".join(f"{t.name}@{t.version} ({t.recipe.epochs} epochs)" for t in sheet.plan.tasks.values())
    less = " (less is better)" if sheet.metric.sign < 0 else ""
    lines = [
        f"{board.name}@{board.version}: {board.summary}",
        f"{tasks}; {board.precision}; {seeds_of(board)}; {sheet.metric.title}{less} of the epoch that "
        f"validation images select; {counted(len(sheet.plan.contexts), 'cell')} a row",
    ]
    for cell in (c for c in sheet.reference if c.group):  # a missing one is among the notes
        lines.append(f"{board.reference}, {net(cell.context)}: {_result(cell, sheet)}")
    lines += sheet.notes
    if style == "md":
        return f"## {markdown(lines[0])}\n\n" + "\n".join(f"- {markdown(line)}" for line in lines[1:])
    return "\n".join(line for text in lines for line in _wrapped(plain(text)))


def _wrapped(text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, WIDTH, subsequent_indent="  ")


def _result(cell: Cell, sheet: Sheet) -> str:
    digits = digits_of(sheet.metric)
    if cell.group is None:
        return cell.state
    half = cell_half(cell)
    spread = "" if half is None else f" ± {half:.{digits}f}"
    return f"{cell.group.mean:.{digits}f}{spread}{sheet.metric.unit and ' ' + sheet.metric.unit} (n = {cell.group.n})"


def cell_half(cell: Cell) -> float | None:
    """Half the 95 % t-interval of a cell's mean over its own seeds."""
    from rpbench.stats import t_interval

    interval = t_interval(cell.values) if cell.values else None
    return None if interval is None else (interval[1] - interval[0]) / 2


def _block(sheet: Sheet, block: Block, style: Style, escape: Escape) -> str:
    digits = digits_of(sheet.metric)
    axes = [key for key in sheet.axes if style == "md" or key in _narrow(sheet)]
    rows = []
    for i, row in enumerate(block.rows):
        step, apart = (block.steps[i], block.apart[i]) if i < len(block.steps) else (None, False)
        told = "" if step is None else f"{signed(step.value, digits)}{'*' if apart else ' '}"
        scores = [
            _rank(row),
            escape(named(row)),
            f"{gap(row.score, digits)}{_star(row)}",
            told,
            *(_axis(row, key) for key in axes),
        ]
        shares = (percent(row.mean(name, block.contexts)) for name in ("flops", "effective"))
        rows.append([*scores, *shares, _cost(row, block.contexts), row.level])
    unit = "points" if sheet.metric.unit else sheet.metric.title
    titles = [_short(key) for key in axes]
    head = ["rank", "scheme", f"gap ({unit})", "next", *titles]
    align = ["right", "left", "right", "right", *["right"] * len(axes)]
    blank = "\n" * (1 + (style == "md"))
    costs, sides = ["FLOPs", "effective", "cost of the scheme", "level"], ["right", "right", "right", "left"]
    if style == "md":
        return _table(rows, head + costs, align + sides, style) + blank + f"{_legend(sheet, block, axes)}\n{LEVEL}"
    second = [[row[1], *row[-4:]] for row in rows]
    return "\n".join([
        _table([row[:-4] for row in rows], head, align, style), _legend(sheet, block, axes), "",
        _table(second, ["scheme", *costs], ["left", *sides], style),
        "FLOPs: of the dense net's. effective: weights on a path from input to output.", *_wrapped(LEVEL),
    ])  # fmt: skip


def _narrow(sheet: Sheet) -> list[str]:
    """The axes that 80 columns have room for: one each of calibration, out of distribution and robustness."""
    robust = [key for key in sheet.axes if key.startswith("robust/")]
    found = [key for key in sheet.axes if key in ("top1", "ece", "ood")] + robust[:1]
    return found if len(found) < 4 else [key for key in found if key != "ece"]


def _legend(sheet: Sheet, block: Block, axes: Sequence[str]) -> str:
    where = "at" if sheet.order == "flops" else "over"
    step = "so much above" if sheet.metric.sign > 0 else "the difference to"
    lines = [
        f"gap: mean {where} {block.title} to {sheet.plan.board.reference}, ± half of a 95 % interval; other axes: mean "
        f"gaps{_points(axes)}, in brackets where their interval holds 0. rank: ties share one, with the places "
        f"that the data allow. next: {step} the next row. "
        f"*: separated from {sheet.plan.board.reference}, or from the next row (Holm over all of them, 5 %).",
    ]
    if block.pooled is not None and block.pooled.homogeneous and block.pooled.var > 0:
        sd, cells = block.pooled.var**0.5, len(block.contexts)
        told = f"seed sd {sd:.{digits_of(sheet.metric)}f} (pooled, {block.pooled.df} degrees of freedom)"
        if sheet.metric.unit and sheet.order == "params":  # points of a mean over cells
            told += f"; a difference of 0.5 between two rows takes {seeds_needed(0.5, sd, cells)} seeds"
        lines.append(told)
    return "\n".join(line for text in lines for line in _wrapped(text))


def _points(axes: Sequence[str]) -> str:
    """The unit of the axes' gaps: rates are in points."""
    bare = [_short(key) for key in axes if not metric_of(key).unit]
    return f", in points (but for {', '.join(bare)})" if bare else ", in points"


def seeds_of(board: Board) -> str:
    """How many seeds a cell has; grids may have their own."""
    many = sorted({len(grid.seeds or board.seeds) for grid in board.grids})
    return f"{' or '.join(map(str, many))} seed{'s' if many != [1] else ''}"


def _rank(row: Row) -> str:
    if row.rank is None:
        return "-"
    place = row.rank
    return str(place.rank) if place.low == place.high else f"{place.low}-{place.high}"


def _star(row: Row) -> str:
    """Whether a row is separated from the reference, in the family of all ranked rows."""
    return " " if row.p is None or row.p > 0.05 else "*"


def named(row: Row) -> str:
    return f"{row.label} ({', '.join(row.marks)})" if row.marks else row.label


def _axis(row: Row, key: str) -> str:
    """A gap by another metric, in brackets where its interval holds 0."""
    e = row.axes.get(key)
    text = signed(e.value if e else None, digits_of(metric_of(key)))
    interval = e.interval() if e else None
    return text if e is None or (interval and not interval[0] <= 0 <= interval[1]) else f"({text})"


def _short(key: str) -> str:
    kind = key.partition("/")[0]
    return {"ood": "OoD", "robust": key.partition("/")[2], "ece": "ECE", "nll": "NLL", "top1": "top-1"}.get(kind, key)


def _cost(row: Row, contexts: Sequence[Context]) -> str:
    text, batches = seconds(row.cost("scheme_seconds", contexts)), row.cost("batches", contexts)
    return f"{text}, {batches:g} batch{'es' if batches > 1 else ''}" if batches else text


def _nets(sheet: Sheet, style: Style, escape: Escape) -> list[str]:
    """A table per net: rows by densities, mean ± half of a cell's own interval."""
    digits, found = digits_of(sheet.metric), []
    rows = list(sheet.rows)
    if not rows:
        return []
    nets = list(dict.fromkeys(c[:2] for c in sheet.plan.contexts))
    for one in nets:
        contexts = [c for c in sheet.plan.contexts if c[:2] == one]
        for part in _parts(contexts, 5 if style == "term" else 20):
            table = [(escape(named(row)), *(_value(row.cell(c), digits) for c in part)) for row in rows]
            head = ["scheme", *(f"{c.density:g}" for c in part)]
            title = f"{sheet.metric.title} ({sheet.metric.unit or '1'}), {net(one)}, by density"
            found.append(_title(title, style) + "\n" * (1 + (style == "md"))
                         + _table(table, head, ("left", *["right"] * len(part)), style))  # fmt: skip
    return found


def _parts(whole: Sequence[T], most: int) -> list[Sequence[T]]:
    return [whole[i : i + most] for i in range(0, len(whole), most)]


def _value(cell: Cell, digits: int) -> str:
    if cell.group is None:
        return cell.state
    half = cell_half(cell)
    text = f"{cell.group.mean:.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}")
    return text if cell.state == "ok" else f"{text} (n {cell.group.n})"


def _matching(sheet: Sheet, style: Style, escape: Escape) -> str:
    nets = list(dict.fromkeys(n for row in sheet.rows for n in row.matching))
    if not nets or sheet.metric.key != sheet.plan.board.metric:
        return ""
    margin = f"{sheet.plan.board.margin:g}{' points' if sheet.metric.unit else ''}"
    title = (
        f"Largest matching sparsity: within {margin} of {sheet.plan.board.reference}, with 95 % interval (none: below "
        "at every density, all: at none; where a falling curve crosses, not how deep it falls after)"
    )
    some, tables = [row for row in sheet.rows if row.matching], []
    for part in _parts(nets, 3 if style == "term" else 20):
        rows = [(escape(row.label), *(crossed(row.matching.get(n)) for n in part)) for row in some]
        tables.append(_table(rows, ["scheme", *map(net, part)], ("left", *["right"] * len(part)), style))
    return _title(title, style) + "\n" * (1 + (style == "md")) + "\n\n".join(tables)


def _luck(sheet: Sheet, style: Style, escape: Escape) -> str:
    """The spread that each stream of random numbers makes alone, with its interval."""
    streams = ("mask", "init", "order", "total")
    rows = [(escape(row.label), *(_sd(row.luck.get(s)) for s in streams)) for row in sheet.rows if row.luck]
    if not rows:
        return ""
    unit = "points" if sheet.metric.unit else sheet.metric.title
    title = f"Where luck comes from: sd ({unit}) while one seed varies, with 95 % interval"
    table = _table(rows, ["scheme", "mask", "init", "order", "together"], ("left", *["right"] * 4), style)
    return _title(title, style) + "\n" * (1 + (style == "md")) + table


def _sd(found: StreamVariance | None) -> str:
    return "-" if found is None else f"{found.var**0.5:.2f} [{found.low**0.5:.2f}, {found.high**0.5:.2f}]"


def _by_model(sheet: Sheet, style: Style, escape: Escape) -> str:
    """How far each net can be pruned under one scheme."""
    margin = f"{sheet.plan.board.margin:g}{' points' if sheet.metric.unit else ''}"
    rows = []
    for row in sheet.rows:
        for one, found in row.matching.items():
            dense = next(c for c in sheet.reference if c.context[:2] == one)
            rows.append((escape(row.label), escape(net(one)), _result(dense, sheet), crossed(found)))
    title = f"How far each net can be pruned within {margin} of {sheet.plan.board.reference}"
    if sheet.metric.key != sheet.plan.board.metric:
        own = metric_of(sheet.plan.board.metric).title
        return f"How far each net can be pruned is told by {own} alone, which the margin is of"
    if not rows:
        return f"{title}: no scheme has two densities of a net yet"
    return _title(title, style) + "\n" * (1 + (style == "md")) + _table(
        rows, ["scheme", "net", sheet.plan.board.reference, "sparsity, 95 %"], ("left", "left", "right", "right"), style
    )  # fmt: skip


def _rest(sheet: Sheet, style: Style, escape: Escape) -> list[str]:
    found = []
    if sheet.incomplete:
        lines = [f"{escape(row.label)}{_checked(row)}: {_lacking(row, escape, style)}" for row in sheet.incomplete]
        found.append(_list("Not ranked", lines, style))
    if sheet.not_run:
        found.append(_list("Not run", [escape(", ".join(sheet.not_run))], style))
    if sheet.left_out:
        found.append(_list("Left out", _left(sheet.left_out, style, escape), style))
    return found


def _checked(row: Row) -> str:
    """The level of a row that has no place in a table, where somebody has checked it."""
    return f" ({row.level})" if row.level in LEVELS[2:] else ""


def _lacking(row: Row, escape: Escape, style: Style) -> str:
    infeasible = [c for c in row.cells if c.state == "infeasible"]
    told = [*row.lacks, *(f"{c.context.title}: {c.reason}" for c in infeasible)]
    most = 3 if style == "term" else 20
    more = f"; {len(told) - most} more" if len(told) > most else ""
    return escape("; ".join(told[:most]) + more)


def _left(faults: Sequence[Fault], style: Style, escape: Escape) -> list[str]:
    """A line for each record that is left out; a terminal has room for their beginnings."""
    lines = [f"{escape(f.place)}: {escape(f.why)}" for f in faults]
    return lines if style == "md" else [line if len(line) <= WIDTH - 2 else f"{line[: WIDTH - 5]}..." for line in lines]


def _list(title: str, lines: Sequence[str], style: Style) -> str:
    if style == "md":
        return f"{_title(title, style)}\n\n" + "\n".join(f"- {line}" for line in lines)
    return f"{title}:\n" + "\n".join(f"  {line}" for text in lines for line in _wrapped(text))


def _title(text: str, style: Style) -> str:
    return f"### {markdown(text)}" if style == "md" else "\n".join(_wrapped(text))


def _table(rows: Sequence[Sequence[str]], head: Sequence[str], align: Sequence[str], style: Style) -> str:
    return tabulate(
        rows, headers=head, disable_numparse=True, colalign=align if rows else None,
        tablefmt="pipe" if style == "md" else "simple",
    )  # fmt: skip
