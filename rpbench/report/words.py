"""Numbers and names as they are written in a terminal, Markdown, LaTeX and CSV. What comes from a record is escaped."""

from __future__ import annotations

import re
from collections.abc import Callable

from rpbench.board import Context
from rpbench.rows import Metric
from rpbench.stats import Crossing, Estimate

Escape = Callable[[str], str]


def plain(text: str) -> str:
    """For a terminal: one line without control characters, which could move the cursor or paint."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def markdown(text: str) -> str:
    """For a cell of a Markdown table, which is also read as HTML."""
    text = plain(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|~])", r"\\\1", text)


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "^": r"\textasciicircum{}",
    "_": r"\_", "~": r"\textasciitilde{}", "%": r"\%", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}",
}  # fmt: skip


def latex(text: str) -> str:
    """For LaTeX text."""
    return "".join(_LATEX.get(c, c) for c in plain(text))


def csv_text(text: str) -> str:
    """For a CSV field: a spreadsheet takes what begins with = + - @ for a formula."""
    text = plain(text)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text


def counted(n: int, noun: str) -> str:
    """A number of things: 1 cell, 2 cells."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def signed(value: float | None, digits: int = 2) -> str:
    """A gap: with its sign, "-" where it is not known; no negative zero."""
    if value is None:
        return "-"
    text = f"{value:+.{digits}f}"
    return text.replace("-", "+") if float(text) == 0 else text


def gap(e: Estimate | None, digits: int = 2) -> str:
    """A gap with half its 95 % interval."""
    if e is None:
        return "-"
    half = e.half()
    return f"{signed(e.value, digits)} ± {'?' if half is None else f'{half:.{digits}f}'}"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}" if value < 0.0995 else f"{value:.0%}"


def digits_of(metric: Metric) -> int:
    """Decimals of a metric's values: rates are in percent."""
    return 2 if metric.scale == 100 else 3


def crossed(found: Crossing | None) -> str:
    """The largest matching sparsity, with its interval."""
    if found is None:
        return "-"
    if found.low is None:
        return _sparsity(found)
    high = "" if found.high is None else f"{found.high:.2f}"
    return f"{_sparsity(found)} [{found.low:.2f}, {high or '...'}]"


def _sparsity(found: Crossing) -> str:
    if found.censored == "none matching":
        return "none"
    return "all" if found.value is None else f"{found.value:.2f}"


def seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1000:.1f} ms" if value < 0.1 else f"{value:.1f} s" if value < 100 else f"{value / 60:.0f} min"


def net(context: Context | tuple[str, str]) -> str:
    return f"{context[0]} {context[1]}"
