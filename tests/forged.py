"""A real bundle of a small board, and what somebody could do to it: edits that fix all that follows from them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rpbench import metrics
from rpbench.board import Board, Choice, board_hash, expand, load_board
from rpbench.bundle import BoardPart, Card, Manifest, Named, listed, manifest_text, write_folder
from rpbench.cell import ask
from rpbench.checks import asked
from rpbench.checks.known import Known
from rpbench.connectivity import paths
from rpbench.entries import parse
from rpbench.masks import digest

SOURCE = '''from rpbench import shape_scheme, spread


@shape_scheme
def mine(table, density, *, power=0.5):
    """Densities fall with a power of a layer's size. https://example.org/mine"""
    return spread(table, lambda layer: layer.numel**-power, density)
'''
TASK = Path(__file__).resolve().parent.parent / "tasks" / "digits.toml"
BOARD = """
name = "small"
version = 1
summary = "two epochs on the embedded digits"
url = "https://example.org"
seeds = [0, 1]
[[grids]]
task = "short.toml"
models = ["resnet8"]
densities = [0.1, 0.3]
schemes = ["snip"]
"""


def small_board(folder: Path) -> Board:
    """A board of a task of two epochs, written to a folder."""
    text = TASK.read_text().replace('name = "digits"', 'name = "short"').replace("epochs = 30", "epochs = 2")
    (folder / "short.toml").write_text(text)
    (folder / "small.toml").write_text(BOARD)
    return load_board(str(folder / "small.toml"))


def trained(store: Path, board: Board, choice: Choice) -> list[str]:
    """Train a board's cells of a choice in this process; their names."""
    from rpbench.machine import Processes
    from rpbench.progress import Quiet
    from rpbench.run import Wish, run_cell

    cells = [ask(**w.asked) for w in expand(board, choice).cells]
    return [run_cell(cell, Wish(store), Quiet(), Processes()).record.run_id for cell in cells]


def pack(store: Path, names: list[str], board: Board, source: bytes, place: Path) -> None:
    """The bundle of cells of `mine`."""
    parts: dict[str, bytes | Path] = {"README.md": b"# mine\n", "source/mine.py": source}
    for name in names:
        for path in (store / name / "record.json", store / name / "curve.jsonl", *(store / name).glob("outputs/*/*")):
            parts[f"cells/{path.relative_to(store)}"] = path
    files = listed(parts)
    manifest = Manifest(
        rpbench="0.1.0",
        board=BoardPart(name=board.name, version=board.version, hash=board_hash(board)),
        kind="scheme",
        row="mine",
        scheme=Named(name="mine", args={"power": 0.5}),
        sampler=Named(name="exact", args={}),
        card=Card(name="mine", version="1", author="somebody", source="https://example.org/mine", claim="It is mine",
                  licence="MIT", date="2026-01-01"),
        files=files,
        bytes=sum(file.bytes for file in files.values()),
    )  # fmt: skip
    write_folder(place, parts | {"bundle.json": manifest_text(manifest)})


@dataclass
class Forgery:
    """A copy of a bundle that is being changed. `known` is what the forger knows too: everything is public."""

    place: Path
    known: Known

    @property
    def cells(self) -> list[Path]:
        return sorted((self.place / "cells").iterdir())

    def record(self, cell: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.cells[cell] / "record.json").read_text())
        return found

    def write(self, record: dict[str, Any], cell: int = 0) -> None:
        (self.cells[cell] / "record.json").write_text(json.dumps(record, indent=1))

    def edit(self, change: Callable[[dict[str, Any]], Any], cell: int = 0) -> None:
        record = self.record(cell)
        change(record)
        self.write(record, cell)

    def edit_all(self, change: Callable[[dict[str, Any]], Any]) -> None:
        for cell in range(len(self.cells)):
            self.edit(change, cell)

    def rename(self, cell: int = 0) -> None:
        """Give a cell the name that follows from what its record says now."""
        record = self.record(cell)
        record["run_id"] = asked.run_ids(parse(json.dumps(record)), self.known)[0]
        self.write(record, cell)
        folder = self.cells[cell]
        if folder.name != record["run_id"]:
            folder.rename(folder.with_name(record["run_id"]))

    def rename_all(self) -> None:
        for name in [path.name for path in self.cells]:
            self.rename([path.name for path in self.cells].index(name))

    def curve(self, cell: int = 0) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.cells[cell] / "curve.jsonl").read_text().splitlines()]

    def write_curve(self, rows: list[dict[str, Any]], cell: int = 0) -> None:
        (self.cells[cell] / "curve.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def outputs(self, name: str, cell: int = 0) -> dict[str, np.ndarray[Any, Any]]:
        with np.load(self.cells[cell] / "outputs" / f"{name}.npz") as found:
            return dict(found)

    def write_outputs(self, name: str, arrays: dict[str, np.ndarray[Any, Any]], cell: int = 0) -> None:
        np.savez_compressed(self.cells[cell] / "outputs" / f"{name}.npz", **arrays)

    def rescore(self, cell: int = 0) -> None:
        """Let every metric be what the outputs give."""
        record = self.record(cell)
        for part, word in (("selected", "metrics"), ("last", "last")):
            inside = self.outputs(f"{part}/test", cell)
            found = metrics.classification(inside["logits"], inside["labels"], top5=False)
            for path in (self.cells[cell] / "outputs" / part).glob("*.npz"):
                arrays = self.outputs(f"{part}/{path.stem}", cell)
                if "labels" not in arrays:
                    for suffix, score in (("", metrics.confidence), ("_energy", metrics.energy)):
                        told = metrics.detection(score(inside["logits"]), score(arrays["logits"]))
                        found |= {f"{key}{suffix}/{path.stem}": value for key, value in told.items()}
                elif path.stem != "test":
                    found[f"robust/{path.stem}"] = metrics.top_k(arrays["logits"], arrays["labels"])
            record[word] |= found
        self.write(record, cell)

    def redraw(self, cell: int = 0) -> None:
        """Let masks, budget and costs be what counts and mask seed give."""
        record = self.record(cell)
        net = self.known.net(parse(json.dumps(record)))
        d = record["density"]
        counts = dict(zip(net.table.names, d["kept_per_layer"], strict=True))
        drawn = self.known.sampler("exact", "").draw(net.table, counts, record["seeds"]["mask"])
        reached = paths(net.net, net.table, drawn, (1, 8, 8))
        assert reached is not None
        d["kept"], d["effective"] = sum(d["kept_per_layer"]), reached.effective
        d["realised"] = d["allocated"] = d["kept"] / d["prunable"]
        record["masks"] = dict.fromkeys(("digest_start", "digest_end"), digest(drawn))
        sparse = [(x.macs or 0) * k / x.numel for x, k in zip(net.table, d["kept_per_layer"], strict=True)]
        record["cost"]["sparse_macs"] = sum(sparse)
        self.write(record, cell)

    def remove(self, cell: int = 0) -> None:
        shutil.rmtree(self.cells[cell])

    def copy(self, cell: int, name: str) -> int:
        """A second folder of a cell; its place among the cells."""
        shutil.copytree(self.cells[cell], self.cells[cell].with_name(name))
        return [path.name for path in self.cells].index(name)

    def source(self, text: str) -> None:
        (self.place / "source" / "mine.py").write_text(text)

    def manifest(self, change: Callable[[dict[str, Any]], Any]) -> None:
        found = json.loads((self.place / "bundle.json").read_text())
        change(found)
        (self.place / "bundle.json").write_text(json.dumps(found, indent=1))

    def seal(self) -> None:
        """Hashes and sizes as the files are now."""
        parts = {str(p.relative_to(self.place)): p for p in self.place.rglob("*") if p.is_file()}
        del parts["bundle.json"]
        files = {name: {"sha256": file.sha256, "bytes": file.bytes} for name, file in listed(parts).items()}
        total = sum(file["bytes"] for file in files.values() if isinstance(file["bytes"], int))
        self.manifest(lambda m: m.update(files=files, bytes=total))


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
