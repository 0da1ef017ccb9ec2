"""Small bundles of records that were never run, as files by path, to be written whole or spoilt."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import synthetic

from rpbench.bundle import Card, Manifest, listed, manifest_text, write_folder, write_zip

CARD = {"name": "mine", "version": "1", "author": "A. N. Other", "source": "https://example.org", "claim": "Better",
        "licence": "Apache-2.0", "date": "2026-01-01"}  # fmt: skip
SOURCE = b'''from rpbench import shape_scheme, spread


@shape_scheme
def mine(table, density, *, power=0.5):
    """Densities fall with a power of a layer's size. https://example.org"""
    return spread(table, lambda layer: layer.numel**-power, density)
'''


def npz(**arrays: Any) -> bytes:
    """An .npz as a store has it."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def outputs() -> bytes:
    return npz(labels=np.arange(7), logits=np.arange(70, dtype=np.float32).reshape(7, 10))


def files(cells: int = 2) -> dict[str, bytes]:
    """Every file of a whole bundle but bundle.json."""
    plan = synthetic.plan(grid={"schemes": ("erk",)})
    found = {"README.md": b"# mine\n", "source/mine.py": SOURCE}
    for w in plan.cells[1 : cells + 1]:
        content = synthetic.record(plan, w, 0.9)
        root = f"cells/{content['run_id']}"
        found[f"{root}/record.json"] = json.dumps(content).encode()
        found[f"{root}/curve.jsonl"] = b'{"epoch": 1, "val_top1": 0.5}\n{"epoch": 2, "val_top1": 0.6}\n'
        found[f"{root}/outputs/selected/test.npz"] = outputs()
        found[f"{root}/outputs/last/test.npz"] = outputs()
    return found


def manifest(parts: Mapping[str, bytes], **changes: Any) -> Manifest:
    told = listed(parts)
    content = {
        "rpbench": "0.1.0", "board": {"name": "small", "version": 1, "hash": "0" * 64}, "kind": "scheme", "row": "mine",
        "scheme": {"name": "mine", "args": {"power": 0.5}}, "sampler": {"name": "exact", "args": {}},
        "card": Card(**CARD), "files": told, "bytes": sum(file.bytes for file in told.values()),
    }  # fmt: skip
    return Manifest.model_validate(content | changes)


def whole(cells: int = 2, **changes: Any) -> dict[str, bytes]:
    """Every file of a bundle."""
    found = files(cells)
    return found | {"bundle.json": manifest_text(manifest(found, **changes))}


def folder(place: Path, parts: Mapping[str, bytes] | None = None) -> Path:
    write_folder(place, dict(parts or whole()))
    return place


def zipped(place: Path, parts: Mapping[str, bytes] | None = None) -> Path:
    write_zip(place, dict(parts or whole()))
    return place
