"""Frames between this process and a confined one: a JSON object and bytes beside it, each with its length in front."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rpbench.layers import Layer, LayerTable

if TYPE_CHECKING:  # numpy has threads, and this is imported before they may be there
    from rpbench.wiring import Wiring

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


def wiring_out(wiring: Wiring | None) -> dict[str, Any] | None:
    if wiring is None:
        return None
    feeds = [[f.source, f.target, f.outputs.tolist(), f.inputs.tolist()] for f in wiring.feeds]
    return {"order": list(wiring.order), "feeds": feeds}


def wiring_in(told: dict[str, Any] | None, on_path: Callable[[Mapping[str, Any]], dict[str, Any]]) -> Any:
    """The wiring that was sent; its paths are asked for where the net is."""
    if told is None:
        return None
    import numpy as np

    from rpbench.wiring import Feed, Wiring

    feeds = (Feed(s, t, np.array(o, dtype=np.int64), np.array(i, dtype=np.int64)) for s, t, o, i in told["feeds"])
    return Wiring(tuple(told["order"]), tuple(feeds), on_path)


def bits_size(table: LayerTable) -> int:
    """Bytes of one bool for every weight, each layer's in whole bytes."""
    return sum(-(-layer.numel // 8) for layer in table)


def bits_out(table: LayerTable, masks: Mapping[str, Any]) -> bytes:
    """Bool arrays of the weights' shapes as bits, little end first."""
    import numpy as np

    packed = (np.packbits(np.asarray(masks[name], dtype=bool).ravel(), bitorder="little") for name in table.names)
    return b"".join(bits.tobytes() for bits in packed)


def bits_in(table: LayerTable, blob: bytes) -> dict[str, Any]:
    """What `bits_out` has made: {layer name: bool array of the weight's shape}."""
    import numpy as np

    masks, start = {}, 0
    for layer in table:
        bits = np.frombuffer(blob, np.uint8, -(-layer.numel // 8), start)
        masks[layer.name] = np.unpackbits(bits, count=layer.numel, bitorder="little").astype(bool).reshape(layer.shape)
        start += len(bits)
    return masks
