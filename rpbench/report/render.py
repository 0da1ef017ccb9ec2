"""Scored boards in the format that is asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from rpbench.rows import Sheet

Format = Literal["term", "md", "csv", "csv-wide", "latex", "html", "json"]


def render(sheets: Sequence[Sheet], form: Format, by: Literal["scheme", "model"] = "scheme") -> str:
    """The same sheets give the same text, byte for byte."""
    if form == "json":
        from rpbench.report.plain import sheet_json

        found: list[Any] = [sheet_json(sheet) for sheet in sheets]
        return json.dumps(found[0] if len(found) == 1 else found, indent=1)
    if form in ("csv", "csv-wide"):
        from rpbench.report.sheets import long_csv, wide_csv

        return "\n".join((long_csv if form == "csv" else wide_csv)(sheet) for sheet in sheets)
    if form == "latex":
        from rpbench.report.latex import board_latex

        return "\n".join(board_latex(sheet) for sheet in sheets)
    if form == "html":
        from rpbench.report.page import page
        from rpbench.report.reported import reported

        return page(sheets, [vars(r) for r in reported()])
    from rpbench.report.tables import board_text

    between = "\n\n" if form == "md" else f"\n\n{'=' * 80}\n\n"
    return between.join(board_text(sheet, "md" if form == "md" else "term", by) for sheet in sheets)
