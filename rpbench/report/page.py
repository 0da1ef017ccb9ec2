"""Scored boards as one HTML file: offline, self-contained, the same bytes for the same records.

The page is a shell. What it shows is embedded once, as compact JSON; everything from a record goes into the document as
text. Its policy allows its own script and style, by hash, and no request to anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os.path
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rpbench.models.names import cifar_resnet
from rpbench.report.plain import number, sheet_json
from rpbench.rows import Block, Sheet, metric_of
from rpbench.stats import Estimate

Json = Any
SCHEMA = "rpbench.page/1"
SCRIPTS = ("elements", "data", "numbers", "view", "marks", "bars", "columns", "tables", "details", "scales", "plots",
           "figures", "sizes", "frame", "controls", "rest", "start")  # fmt: skip
LISTED = 200  # of the records that are left out; the number of all of them is told
CELL = ("context", "state", "reason", "missing", "gap", "flops", "realised", "effective", "layers", "record", "command",
        "runs")  # fmt: skip
RUN = ("seeds", "record", "command", "values", "epoch", "last_top1", "kept", "sparse_macs", "seconds", "images_per_s",
       "device", "warnings")  # fmt: skip
ROW = ("label", "scheme", "sampler", "level", "marks", "lacks", "flops", "realised", "effective", "scheme_seconds",
       "batches", "seconds", "matching", "luck")  # fmt: skip
REPORTED = ("task", "model", "scheme", "density", "metric", "value", "tolerance", "place", "source")


def page(sheets: Sequence[Sheet], reported: Sequence[Mapping[str, Any]] = ()) -> str:
    """One HTML document for one or several scored boards, which its reader switches between.

    `reported` are published values to hold against the measured ones, those of other cells are left out: task, model,
    scheme (a row's label, or the reference's name), density, metric (its key in a record), value and tolerance (rates
    in [0, 1], None where unknown), place (figure or table) and source.
    """
    style, script = _part("page.css"), "\n".join(_bare(_part(f"{name}.js")) for name in SCRIPTS)
    names = ", ".join(dict.fromkeys(sheet.plan.board.name for sheet in sheets))
    fills = {
        "POLICY": f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'",
        "TITLE": html.escape(f"{names or 'no board'} - rpbench"),
        "STYLE": style,
        "DATA": embedded(page_json(sheets, reported)),
        "SCRIPT": script,
    }
    first, *parts = _part("page.html").split("{{")
    found = [part.partition("}}") for part in parts]
    return first + "".join(fills[name] + rest for name, _, rest in found)


def embedded(value: Json) -> str:
    """JSON that may stand inside a <script>: nothing in it ends the element or opens a comment."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # all ASCII: U+2028 is escaped
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _part(name: str) -> str:
    return (Path(__file__).parent / "html" / name).read_text(encoding="utf-8")


def _bare(script: str) -> str:
    """A script without indentation: a fifth of its size, and no line of ours goes on inside a string."""
    return "\n".join(line.strip() for line in script.splitlines() if line.strip())


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


# --- what is embedded: the sheets' JSON with short arrays, and without what the page does not show -------------------


def page_json(sheets: Sequence[Sheet], reported: Sequence[Mapping[str, Any]] = ()) -> Json:
    """The data of the page. Cells, runs and rows are arrays whose fields `fields` names; `words` holds texts that many
    runs share, which they name by number; densities of layers are in ten thousandths; `t` is Student's 97.5 % quantile
    by degrees of freedom."""
    words: dict[str, int] = {}
    boards = [_board(sheet, words) for sheet in sheets]
    most = max((len(cell.values) for s in sheets for cell in _cells(s)), default=0)
    return {
        "schema": SCHEMA,
        "fields": {"cell": CELL, "run": RUN, "row": ROW},
        "t": {str(df): Estimate(0.0, 1.0, df).half() for df in range(1, most)},
        "boards": boards,
        "reported": _reported(sheets, reported),
        "words": list(words),
    }


def _cells(sheet: Sheet) -> list[Any]:
    return [*sheet.reference, *(cell for row in sheet.rows for cell in row.cells)]


def _board(sheet: Sheet, words: dict[str, int]) -> Json:
    told = sheet_json(sheet)
    nets = list(dict.fromkeys((c["task"], c["model"]) for c in (*told["reference"], *told["contexts"])))
    contexts = {tuple(c.values()): i for i, c in enumerate(told["contexts"])}
    place = {row.who: i for i, row in enumerate(sheet.rows)}
    metrics = list(told["metrics"])

    def block(found: Block, json_rows: Json) -> Json:
        return {
            "title": json_rows["title"],
            "contexts": [contexts[tuple(c.values())] for c in json_rows["contexts"]],
            "rows": [
                {"row": place[row.who], "score": _interval(j["score"]), "p": j["p"], "rank": j["rank"],
                 "axes": [_interval(j["axes"].get(key)) for key in metrics]}
                for row, j in zip(found.rows, json_rows["rows"], strict=True)
            ],
            "pooled": json_rows["pooled"],
            "steps": [[*(_interval(s["step"]) or [None] * 3), int(s["separated"])] for s in json_rows["steps"]],
        }  # fmt: skip

    def cell(j: Json, context: int | None) -> Json:
        runs = j["runs"]
        record, command = _shared([r["record"] for r in runs]), _shared([r["command"] for r in runs])
        head = {"context": context, "gap": _interval(j["gap"]), "record": record}
        head["command"] = [[_word(w, words) for w in command[0].split(" ")], command[1]]
        head["layers"] = [round(density * 10_000) for density in j["layers"]]
        return [(j | head)[key] for key in CELL[:-1]] + [[one_run(r, record, command) for r in runs]]

    def one_run(j: Json, record: list[str], command: list[str]) -> Json:
        short = {
            "seeds": _seeds(j),
            "values": [j["values"][key] for key in metrics],
            "device": _word(j["device"], words),
        }
        short |= {"warnings": [_word(w, words) for w in j["warnings"]]}
        short |= {"record": _middle(j["record"], record), "command": _middle(j["command"], command)}
        return [(j | short)[key] for key in RUN]

    def reference(net: tuple[str, str]) -> Json:
        found = [c for c in told["reference"] if (c["task"], c["model"]) == net]
        return cell(found[0], None) if found else None

    return {
        "board": told["board"],
        "tasks": told["tasks"],
        "metrics": [[m["key"], m["title"], m["unit"], int(m["higher_is_better"])] for m in told["metrics"].values()],
        "axes": [metrics.index(key) for key in told["axes"]],
        "order": told["order"],
        "nets": [_net(net, told) for net in nets],
        "contexts": [[nets.index((task, model)), density] for task, model, density in contexts],
        "reference": [reference(net) for net in nets],
        "rows": [
            [row[key] for key in ROW] + [[cell(c, i) for i, c in enumerate(row["cells"])]] for row in told["rows"]
        ],
        "ranked": block(sheet.ranked, told["ranked"]),
        "common": block(sheet.common, told["common"]) if sheet.common else None,
        "not_run": told["not_run"],
        "left_out": [[f["record"], f["why"]] for f in told["left_out"][:LISTED]],
        "all_left_out": len(told["left_out"]),
        "notes": told["notes"],
    }


def _net(net: tuple[str, str], told: Json) -> Json:
    """A net with what its records say of it, and its depth and width where its name tells them."""
    task, model = net
    cells = [*told["reference"], *(c for row in told["rows"] for c in row["cells"])]
    run: Json = next((r for c in cells if (c["task"], c["model"]) == net for r in c["runs"]), {})
    depth, width = cifar_resnet(model) or (None, None)
    facts = {key: run.get(key) for key in ("params", "prunable", "dense_macs")}
    return {"task": task, "model": model, "depth": depth, "width": width} | facts


def _reported(sheets: Sequence[Sheet], reported: Sequence[Mapping[str, Any]]) -> Json:
    """The published values of nets that are on the boards, scaled as their metric is shown."""
    nets = {cell.context[:2] for sheet in sheets for cell in _cells(sheet)}
    found = []
    for r in reported:
        if (r["task"], r["model"]) in nets:
            scale = metric_of(r["metric"]).scale
            scaled = {key: number(r[key] * scale) for key in ("value", "tolerance") if r.get(key) is not None}
            found.append({key: r.get(key) for key in REPORTED} | scaled)
    return found


def _seeds(run: Json) -> Json:
    """A run's seed; with those of its streams where they are set apart."""
    apart = [f"{name} {seed}" for name, seed in run["streams"].items() if seed != run["seed"]]
    return ", ".join([str(run["seed"]), *apart]) if apart else run["seed"]


def _interval(estimate: Json) -> Json:
    return estimate and [estimate["value"], estimate["low"], estimate["high"]]


def _shared(texts: Sequence[str]) -> list[str]:
    """What all of them begin and end with: the runs of a cell differ in a seed."""
    head = os.path.commonprefix(list(texts))
    return [head, os.path.commonprefix([text[len(head) :][::-1] for text in texts])[::-1]]


def _middle(text: str, shared: Sequence[str]) -> str:
    head, tail = shared
    return text[len(head) : len(text) - len(tail)]


def _word(text: str, words: dict[str, int]) -> int:
    return words.setdefault(text, len(words))
