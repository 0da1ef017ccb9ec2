"""Judged claims as text for a terminal of 80 columns, as Markdown, and as plain JSON values."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from tabulate import tabulate

from rpbench.claims import ALPHA, VERDICTS, Judgement, Lack, Measured, Part, Term
from rpbench.report.plain import estimate_json, number, pooled_json
from rpbench.report.words import Escape, digits_of, markdown, plain, signed
from rpbench.rows import Metric

Style = Literal["term", "md"]
SCHEMA = "rpbench.claims/1"
WIDTH = 80
SHOWN = 3  # reasons told one by one on a terminal

LEGEND = (
    "A part is reproduced where its 95 % interval lies wholly on the claimed side of the value, refuted where it lies "
    "wholly on the other. To match dense is to be at most 0.5 points below it, to fall short of it to be below it at "
    "all."
)


def claims_text(judged: Sequence[Judgement], style: Style = "term", store: str = "") -> str:
    """Every claim with what was measured, and a tally. `store` stands in the commands that would run what is missing.

    What comes from a file is escaped; commands are quoted for a shell.
    """
    head = [_overview(judged, style)] if len(judged) > 1 else []
    blocks = [_markdown(one, store) if style == "md" else _terminal(one, store) for one in judged]
    counts = [f"{n} {verdict}" for verdict in VERDICTS if (n := sum(one.verdict == verdict for one in judged))]
    tally = f"{len(judged)} claim{'s' if len(judged) != 1 else ''}: {', '.join(counts)}. {LEGEND}"
    return "\n\n".join([*head, *blocks, tally if style == "md" else _wrap(tally, "")])


def _overview(judged: Sequence[Judgement], style: Style) -> str:
    escape: Escape = markdown if style == "md" else plain
    rows = [(escape(one.claim.name), one.verdict, f"{one.trainings - len(one.lacks)} of {one.trainings}",
             escape(one.claim.place)) for one in judged]  # fmt: skip
    return tabulate(
        rows, headers=["claim", "verdict", "trainings", "place"], disable_numparse=True,
        colalign=("left", "left", "right", "left"), tablefmt="pipe" if style == "md" else "simple",
    )  # fmt: skip


def _terminal(one: Judgement, store: str) -> str:
    claim = one.claim
    lines = [_wrap(f"{claim.name}: {one.verdict.upper()}", ""), _wrap(claim.statement, "  "),
             _wrap(f"{claim.place}, {claim.url}", "  ")]  # fmt: skip
    lines += [_wrap(text, "    ") for text in _measured(one, plain)]
    lines += [_wrap(f"note: {text}", "  ") for text in _notes(one)]
    lines += [_wrap(text, "  ") for text in _lacking(one.lacks, one.trainings, SHOWN)]
    lines += [_wrap(text, "  ") for text in _left(one, SHOWN)]
    lines += [_command(command) for command in commands(one, store)]
    return "\n".join(lines)


def _markdown(one: Judgement, store: str) -> str:
    claim = one.claim
    told = [*_measured(one, markdown), *(markdown(text) for text in _notes(one))]
    told += [markdown(text) for text in (*_lacking(one.lacks, one.trainings, 20), *_left(one, 20))]
    parts = [f"### {markdown(claim.name)}: {one.verdict}", markdown(claim.statement),
             f"{markdown(claim.place)}, {markdown(claim.url)}", "\n".join(f"- {text}" for text in told)]  # fmt: skip
    if ran := commands(one, store):
        parts.append(
            "\n".join(f"    {plain(command)}" for command in ran)
        )  # a code block by indentation: none to break
    return "\n\n".join(parts)


def _measured(one: Judgement, escape: Escape) -> list[str]:
    """A line per part: what is compared, what it came to, what it was claimed to be."""
    found = [escape(f"{described(part.part)}: {_result(part)}") for part in one.parts]
    if len(one.parts) > 1:
        found.append("all of these must hold" if one.claim.holds == "all" else "any of these is enough")
    if one.claim.related:
        found.append(escape(_relation(one)))
    return found


def _result(one: Measured) -> str:
    value = _amount(one.part.threshold, one.metric, False) if one.part.threshold else "0"
    claimed = f"claimed {'above' if one.part.side > 0 else 'below'} {value}"
    reported = f"; the paper's numbers: {_amount(one.part.reported[0], one.metric)}" if one.part.reported else ""
    if one.estimate is None:
        return f"{one.metric.title} {claimed}: {one.verdict}{reported}"
    interval = one.estimate.interval()
    told = "no interval"
    if interval:
        told = f"[{', '.join(_amount(end, one.metric, False) for end in interval)}]"
    value = _amount(one.estimate.value, one.metric, False)
    return f"{one.metric.title} {value} {told}{_unit(one.metric)}, {claimed}: {one.verdict}{reported}"


def _amount(value: float, metric: Metric, unit: bool = True) -> str:
    return signed(value, digits_of(metric)) + (_unit(metric) if unit else "")


def _unit(metric: Metric) -> str:
    """Contrasts of rates are in points."""
    return " points" if metric.unit == "%" else f" {metric.unit}" if metric.unit else ""


def _relation(one: Judgement) -> str:
    assert one.claim.related is not None
    what = f"log {one.claim.related.norm} of the gradient against {one.claim.metric}, schemes within each net"
    found = one.relation
    if found is None:
        return f"{what}, claimed to rise together: {one.verdict}"
    how = f"{found.orders} orders" if found.exact else f"{found.orders} drawn orders"
    return (
        f"{what}: r {found.r:+.2f}, {found.agree} of {found.groups} nets rise, p {found.above:.3g} "
        f"(of {how}), claimed p at most {ALPHA}: {one.verdict}"
    )


def described(part: Part) -> str:
    """A contrast in words: its title, or its terms."""
    if part.title:
        return part.title
    told = ""
    for i, term in enumerate(part.terms):
        sign = "less" if term.factor < 0 else "plus" if i else ""
        size = "" if abs(term.factor) == 1 else f"{abs(term.factor):g} x"
        told = " ".join(word for word in (told, sign, size, _cells(term)) if word)
    return told


def _cells(term: Term) -> str:
    at = f" at {_range(term.densities)}" if term.densities else ""
    return f"{', '.join(term.schemes)} on {', '.join(term.models)}{at}"


def _range(densities: Sequence[float]) -> str:
    """Densities; many by their ends."""
    told = [f"{d:g}" for d in densities]
    return ", ".join(told) if len(told) < 5 else f"{told[0]} to {told[-1]} ({len(told)})"


def _notes(one: Judgement) -> list[str]:
    found = [one.claim.note] if one.claim.note else []
    noises = list(dict.fromkeys(p.assumed for p in one.parts if p.assumed))
    found += [f"one seed a cell: a seed sd of {a.sd:g} is assumed for {a.metric} ({a.source})" for a in noises]
    if any(p.estimate and p.estimate.se is None for p in one.parts):
        found.append("one seed a cell tells nothing of its noise")
    if any(p.pooled and not p.pooled.homogeneous for p in one.parts):
        found.append("seed variances differ: intervals use each cell's own (Welch)")
    sides = ("refuted", "reproduced") if one.claim.holds == "all" else ("reproduced", "refuted")
    alone = [p for p in one.parts if p.verdict == sides[0]]
    if alone and one.verdict != sides[0]:
        found.append(f"{len(alone)} of {len(one.parts)} parts {sides[0]} each on its own, not among so many (Holm)")
    return found


def _lacking(lacks: Sequence[Lack], trainings: int, most: int) -> list[str]:
    if not lacks:
        return []
    reasons: dict[str, list[Lack]] = {}
    for lack in lacks:
        reasons.setdefault(lack.told or lack.why, []).append(lack)
    found = [f"without a result: {len(lacks)} of {trainings} trainings"]
    for told, some in list(reasons.items())[:most]:
        found.append(f"{told}: {_which(some)}")
    if len(reasons) > most:
        found.append(f"{len(reasons) - most} more reasons (--format json)")
    return found


def _which(some: Sequence[Lack]) -> str:
    """Nets, densities, schemes and seeds of trainings."""
    w = [lack.wanted for lack in some]
    listed = (
        _listed(one.context.model for one in w), _listed(one.label for one in w),
        _range(list(dict.fromkeys(one.context.density for one in w))), _listed(str(one.seeds.run) for one in w),
    )  # fmt: skip
    return f"{listed[0]}; {listed[1]}; density {listed[2]}; seed {listed[3]}"


def _listed(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values))


def _left(one: Judgement, most: int) -> list[str]:
    found = [f"left out: {fault.place}: {fault.why}" for fault in one.left_out[:most]]
    more = len(one.left_out) - most
    return [*found, f"left out: {more} more (--format json)"] if more > 0 else found


def commands(one: Judgement, store: str = "") -> list[str]:
    """What would run the trainings that a claim lacks: a sweep for each board; trainings again that are finished but
    were not tracked or scored. Infeasible ones cannot be run."""
    tail = ["--store", store] if store else []
    found = []
    todo = [lack for lack in one.lacks if lack.why in ("missing", "failed")]
    retry = any(lack.why == "failed" for lack in todo) or any(f.why.startswith("stale") for f in one.left_out)
    for board in dict.fromkeys(lack.board for lack in todo):
        mine = [lack for lack in todo if lack.board == board]
        words = ["rpbench", "sweep", board, *_options(mine, "model"), *_options(mine, "scheme")]
        words += [*_options([lack for lack in mine if not _own(lack)], "density"), *_options(mine, "seed")]
        found.append(shlex.join([*words, *(["--retry"] if retry else []), *tail]))
    again = [lack for lack in one.lacks if lack.why in ("not scored", "not tracked")]
    for key in dict.fromkeys((lack.wanted.asked["task"], lack.wanted.asked["model"], _own(lack)) for lack in again):
        mine = [lack for lack in again if (lack.wanted.asked["task"], lack.wanted.asked["model"], _own(lack)) == key]
        words = ["rpbench", "run", "--task", key[0], "--model", key[1], *_options(mine, "scheme")]
        words += [*_options(mine, "density"), *_options(mine, "seed")]
        track = ["--track", "gradient-flow"] if one.claim.related else []
        found.append(shlex.join([*words, *track, "--force", *tail]))
    return found


def _own(lack: Lack) -> bool:
    """Whether everything is kept: a board lists no density for it."""
    return lack.wanted.context.density == 1


def _options(lacks: Iterable[Lack], name: str) -> list[str]:
    values = dict.fromkeys(lack.wanted.asked[name] for lack in lacks)
    return [word for v in values for word in (f"--{name}", f"{v:g}" if isinstance(v, float) else str(v))]


def _wrap(text: str, indent: str) -> str:
    return "\n".join(
        textwrap.wrap(plain(text), WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  ",
                      break_on_hyphens=False)
    )  # fmt: skip


def _command(command: str) -> str:
    """A command over lines that a shell takes for one."""
    lines = [""]
    for word in re.split(r" (?=--)", plain(command)):  # an option stays with its value
        if lines[-1] and len(lines[-1]) + len(word) > WIDTH - 9:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "    " + " \\\n      ".join(lines)


def claims_json(judged: Sequence[Judgement], store: str = "") -> dict[str, Any]:
    """Everything that is known of every claim; values as their metric is shown."""
    return {"schema": SCHEMA, "claims": [_json(one, store) for one in judged]}


def _json(one: Judgement, store: str) -> dict[str, Any]:
    claim, relation = one.claim, one.relation
    return {
        "name": claim.name, "version": claim.version, "statement": claim.statement, "place": claim.place,
        "url": claim.url, "note": claim.note, "verdict": one.verdict, "holds": claim.holds,
        "parts": [_part_json(part) for part in one.parts],
        "relation": None if relation is None else {k: number(v) for k, v in relation._asdict().items()},
        "trainings": one.trainings,
        "lacks": [
            {"board": lack.board, "why": lack.why, "told": lack.told, "task": w.context.task, "model": w.context.model,
             "scheme": w.label, "density": w.context.density, "seed": w.seeds.run}
            for lack in one.lacks for w in [lack.wanted]
        ],
        "left_out": [{"record": fault.place, "why": fault.why} for fault in one.left_out],
        "commands": commands(one, store),
    }  # fmt: skip


def _part_json(one: Measured) -> dict[str, Any]:
    ran = one.estimate is not None and one.estimate.se is not None
    return {
        "what": described(one.part), "metric": one.metric.key, "unit": _unit(one.metric).strip(),
        "above": one.part.above, "below": one.part.below, "verdict": one.verdict,
        "estimate": estimate_json(one.estimate), "pooled": pooled_json(one.pooled),
        "p_toward": number(one.toward) if ran else None, "p_against": number(one.against) if ran else None,
        "assumed": one.assumed.model_dump() if one.assumed else None,
        "reported": one.part.reported[0] if one.part.reported else None,
        "terms": [term.model_dump(mode="json", exclude_none=True) for term in one.part.terms],
    }  # fmt: skip
