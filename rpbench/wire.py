"""Frames between this process and a confined one: a JSON object and bytes beside it, each with its length in front."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from rpbench.layers import Layer, LayerTable

PREFIX = struct.Struct(">4sIQ")  # magic, bytes of JSON, bytes beside it
MAGIC = b"rpb1"


class BadFrame(ValueError):
    """Something else than a frame."""


def frame(head: dict[str, Any], blob: bytes = b"") -> bytes:
    text = json.dumps(head, allow_nan=False).encode()
    return PREFIX.pack(MAGIC, len(text), len(blob)) + text + blob


def lengths(prefix: bytes) -> tuple[int, int]:
    """Bytes of JSON and bytes beside it; BadFrame where no frame begins like that."""
    magic, text, blob = PREFIX.unpack(prefix)
    if magic != MAGIC:
        raise BadFrame("no frame")
    return text, blob


def head(text: bytes) -> dict[str, Any]:
    """The object of a frame; BadFrame for anything else, NaN and infinities included."""
    try:
        found = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise BadFrame(str(error)) from None
    if not isinstance(found, dict):
        raise BadFrame("no object")
    return found


def _refuse(word: str) -> Any:
    raise BadFrame(f"{word} is no number")


def table_out(table: LayerTable) -> list[list[Any]]:
    return [[x.name, list(x.shape), x.kind, x.groups, x.macs] for x in table]


def table_in(rows: list[list[Any]]) -> LayerTable:
    return LayerTable(tuple(Layer(name, tuple(shape), kind, groups, macs) for name, shape, kind, groups, macs in rows))


def args_out(args: dict[str, Any]) -> dict[str, Any]:
    """Values of options; a file as its whole path, for the other process stands in another folder."""
    return {k: {"path": str(v.absolute())} if isinstance(v, Path) else v for k, v in args.items()}


def args_in(args: dict[str, Any]) -> dict[str, Any]:
    return {k: Path(v["path"]) if isinstance(v, dict) else v for k, v in args.items()}
