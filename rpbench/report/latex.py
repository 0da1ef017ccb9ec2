"""A scored board as LaTeX: a table scheme x density for every net, for booktabs and siunitx."""

from __future__ import annotations

from collections.abc import Sequence

from rpbench.report.tables import cell_half, named, seeds_of
from rpbench.report.words import digits_of, latex, net
from rpbench.rows import LEVELS, Cell, Row, Sheet

PREAMBLE = r"""% \usepackage{booktabs}
% \usepackage{siunitx}  % version 3
% \sisetup{uncertainty-mode=separate, text-series-to-math=true, text-family-to-math=true}
"""

CITE = r"""% @inproceedings{liu2022unreasonable,
%   title     = {The Unreasonable Effectiveness of Random Pruning: Return of the Most Naive Baseline for Sparse
%                Training},
%   author    = {Liu, Shiwei and Chen, Tianlong and Chen, Xiaohan and Shen, Li and Mocanu, Decebal Constantin and
%                Wang, Zhangyang and Pechenizkiy, Mykola},
%   booktitle = {International Conference on Learning Representations},
%   year      = {2022},
%   url       = {https://arxiv.org/abs/2202.02643}
% }
"""


def board_latex(sheet: Sheet) -> str:
    """A table per net: mean ± half a 95 % interval; the best of a density in bold, the second underlined, and what
    is equal to them as printed."""
    nets = list(dict.fromkeys(c[:2] for c in sheet.plan.contexts))
    return PREAMBLE + "\n".join(_table(sheet, one) for one in nets) + CITE


def _table(sheet: Sheet, one: tuple[str, str]) -> str:
    contexts = [c for c in sheet.plan.contexts if c[:2] == one]
    rows = [row for row in sheet.rows if any(row.cell(c).group for c in contexts)]
    places = {c: _places(sheet, [row.cell(c) for row in rows]) for c in contexts}
    mixed = len({row.level for row in rows}) > 1
    lines = [
        r"\begin{table}",
        r"  \centering",
        r"  \small",
        rf"  \caption{{{_caption(sheet, one, rows)}}}",
        rf"  \label{{tab:{_label(sheet.plan.board.name, one)}}}",
        rf"  \begin{{tabular}}{{l{'c' * len(contexts)}{'l' * mixed}}}",
        r"    \toprule",
        "    Density & " + " & ".join(rf"\num{{{c.density:g}}}" for c in contexts) + " & Level" * mixed + r" \\",
        r"    \midrule",
    ]
    for dense in sheet.reference:
        if dense.context[:2] == one:
            told = _number(sheet, dense) if dense.group else "--"
            wide = rf"\multicolumn{{{len(contexts)}}}{{c}}{{{told}}}{' &' * mixed}"
            lines += [rf"    {latex(sheet.plan.board.reference)} & {wide} \\", r"    \midrule"]
    for i, row in enumerate(rows):
        cells = [_marked(_number(sheet, row.cell(c)), places[c][i]) for c in contexts]
        cells += [row.level] if mixed else []
        lines.append(f"    {latex(named(row))} & {' & '.join(cells)} " + r"\\")
    return "\n".join([*lines, r"    \bottomrule", r"  \end{tabular}", r"\end{table}", ""])


def _number(sheet: Sheet, cell: Cell) -> str:
    if cell.group is None:
        return "--" if cell.state == "missing" else cell.state
    digits, half = digits_of(sheet.metric), cell_half(cell)
    told = rf"\num{{{cell.group.mean:.{digits}f}{'' if half is None else f' +- {half:.{digits}f}'}}}"
    return f"{told} ($n = {cell.group.n}$)" if cell.state == "partial" else told


def _places(sheet: Sheet, cells: Sequence[Cell]) -> list[int]:
    """1 for the best mean as it is printed, 2 for the second, 0 for the others; equal ones share a place."""
    digits = digits_of(sheet.metric)
    printed = [None if c.group is None else round(c.group.mean, digits) for c in cells]
    best = sorted({p for p in printed if p is not None}, reverse=sheet.metric.sign > 0)[:2]
    return [0 if p not in best else 1 + best.index(p) for p in printed]


def _marked(text: str, place: int) -> str:
    return {1: rf"\textbf{{{text}}}", 2: rf"\underline{{{text}}}"}.get(place, text)


def _caption(sheet: Sheet, one: tuple[str, str], rows: Sequence[Row]) -> str:
    board, task = sheet.plan.board, sheet.plan.tasks[one[0]]
    unit = r" (\%)" if sheet.metric.unit else ""
    text = (
        f"{sheet.metric.title}{'@@'} of {net(one)} by density: {board.name}@{board.version}, task "
        f"{task.name}@{task.version}, {task.recipe.epochs} epochs, {board.precision}, fixed random masks with exact "
        f"budgets, epoch selected on validation images. Mean over n = {seeds_of(board)}"
    )
    spread = " with half of its 95 % t-interval" if seeds_of(board) != "1 seed" else ""
    end = ". Best in bold, second underlined, equal ones alike."
    levels = {row.level for row in rows}
    if len(levels) == 1:
        end += f" Level: {rows[0].level}."
    elif levels:
        end += f" Level: how far records have been checked ({' < '.join(LEVELS)})."
    return latex(text + spread + end).replace("@@", unit)


def _label(board: str, one: tuple[str, str]) -> str:
    return "".join(c if c.isalnum() or c == "-" else "-" for c in f"{board}-{one[0]}-{one[1]}")
