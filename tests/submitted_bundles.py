"""Bundles of rows that nobody trained, and a small leaderboard to merge them into."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import synthetic

from rpbench import bundle as bundles
from rpbench.board import Choice, Plan, Wanted, board_hash, expand, load_board
from rpbench.bundle import Bundle, open_bundle
from rpbench.published import publish
from rpbench.verdict import Verdict

PASSED = [
    Verdict("files", "R11", "passed"),
    Verdict("counts", "R8", "passed", where="a cell"),
    Verdict("counts", "R8", "passed", where="another"),
    Verdict("rerun", "R13", "skipped", "nobody asked"),
]
SCHEME = '''from rpbench import shape_scheme, spread


@shape_scheme
def {name}(table, density, *, power=0.5):
    """Densities fall with a power of a layer's size. https://example.org/{name}"""
    return spread(table, lambda layer: layer.numel**-power, density)  # {remark}
'''
SAMPLER = '''from rpbench import mask_sampler


@mask_sampler
def {name}(table, counts, key, scores):
    """As exact draws them. https://example.org/{name}"""
    raise NotImplementedError  # {remark}
'''
CARD = {
    "name": "Mine",
    "version": "1",
    "author": "A. N. Other",
    "email": "a@example.org",
    "licence": "Apache-2.0",
    "source": "https://example.org/mine",
    "claim": "Falls with a power | of a size",
    "date": "2026-11-01",
}


def leaderboard(folder: Path, labels: tuple[str, ...] = ("dense", "erk")) -> Path:
    """A leaderboard with some rows of the digits board, and what git needs to merge it."""
    plan = expand(load_board("digits"))
    value = synthetic.noisy({"erk": -0.01})
    store = folder.with_name(f"{folder.name}-runs")
    synthetic.fill(store, plan, lambda w: value(w) if w.label in labels else None)
    folder.mkdir()
    publish("digits", store, folder)
    return folder


def source(folder: Path, name: str = "mine", remark: str = "", text: str = SCHEME) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.py"
    path.write_text(text.format(name=name, remark=remark))
    return path


def cells(code: Path | str, sampler: str = "") -> tuple[Plan, list[Wanted]]:
    """The board, and the cells of a row of it."""
    choice = Choice(schemes=(str(code),), samplers=(sampler,) if sampler else ())
    plan = expand(load_board("digits"), choice)
    return plan, [w for w in plan.cells if w.asked["scheme"] == str(code)]


def records(code: Path | str, sampler: str = "", top1: float = 0.93, **changes: Any) -> dict[str, dict[str, Any]]:
    """The records of a row by run id."""
    plan, wanted = cells(code, sampler)
    value = synthetic.noisy({}, dense=top1, seed=len(str(top1)))
    found = {}
    for w in wanted:
        run_id = f"{w.who.scheme}-{w.who.source[:6]}{w.who.sampler_source[:6]}-{w.label.partition(':')[2] or 'plain'}"
        run_id = f"{run_id}-{w.context.density:g}-s{w.seeds.run}".replace("=", "_").replace(" ", "")
        own = {"sampler": {"source": w.who.sampler_source}} if w.who.sampler_source else {}
        found[run_id] = synthetic.record(plan, w, value(w), run_id=run_id, **own, **changes)
    return found


def bundle(
    place: Path,
    code: Path,
    told: dict[str, dict[str, Any]] | None = None,
    row: str = "",
    card: dict[str, str] | None = None,
    change: Callable[[dict[str, Any]], None] = lambda manifest: None,
    submitted: Path | None = None,
) -> Bundle:
    """A bundle of a row, opened. `submitted` is the source file where that is not the scheme's."""
    told = records(code) if told is None else told
    first = next(iter((told or records(code)).values()))
    own = submitted or (code if code.suffix == ".py" else None)
    parts: dict[str, bytes | Path] = {f"cells/{name}/record.json": json.dumps(r).encode() for name, r in told.items()}
    parts |= {f"source/{own.name}": own.read_bytes()} if own else {}
    files = bundles.listed(parts)
    board = load_board("digits")
    manifest = {
        "format": bundles.FORMAT, "rpbench": "0.1.0", "kind": "scheme", "row": row or first["scheme"]["name"],
        "board": {"name": board.name, "version": board.version, "hash": board_hash(board)},
        "scheme": {key: first["scheme"][key] for key in ("name", "args")},
        "sampler": {key: first["sampler"][key] for key in ("name", "args")},
        "card": CARD | (card or {}), "files": {k: v.model_dump() for k, v in files.items()},
        "bytes": sum(file.bytes for file in files.values()),
    }  # fmt: skip
    change(manifest)
    parts[bundles.MANIFEST] = json.dumps(manifest).encode()
    bundles.write_folder(place, parts)
    return open_bundle(place)


def files_of(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
