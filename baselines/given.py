import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rpbench import LayerTable, SchemeError, UsageError, shape_scheme


@shape_scheme
def given(table: LayerTable, density: float, *, file: Path) -> Mapping[str, float]:
    """Densities read from a JSON file: the door for learned ratios. https://arxiv.org/abs/2202.02643

    `file` is {layer name: density}, a list of densities in table order, the output of `rpbench plan --format json`,
    or the record of a finished run. Layers are matched by name where all names agree, else by order.
    """
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise UsageError(f"'{file}' is not JSON: {error}") from None
    names, values = _read(content, table)
    if set(names) == set(table.names):
        return dict(zip(names, values, strict=True))
    if len(values) != len(table):
        raise SchemeError(f"'{file}' has densities of {len(values)} layers, this net has {len(table)}")
    return dict(zip(table.names, values, strict=True))


def _read(content: Any, table: LayerTable) -> tuple[list[str], list[float]]:
    kept = content.get("density", {}) if isinstance(content, dict) else {}
    if isinstance(kept, dict) and "kept_per_layer" in kept:  # a record
        counts = kept["kept_per_layer"]
        return [], [n / layer.numel for n, layer in zip(counts, table, strict=False)] + counts[len(table) :]
    if isinstance(content, dict) and "layers" in content:  # a plan
        return [str(row["name"]) for row in content["layers"]], [_number(row["density"]) for row in content["layers"]]
    if isinstance(content, dict):
        return [str(name) for name in content], [_number(value) for value in content.values()]
    if isinstance(content, list):
        return [], [_number(value) for value in content]
    raise UsageError("densities are {layer name: density}, a list, a plan or a record")


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{value!r} is not a density")
    return float(value)
