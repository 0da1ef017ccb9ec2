"""The first version of a scheme, sampler or task of one's own: a file that runs as it is."""

from __future__ import annotations

import keyword
import re
import sys
from pathlib import Path
from typing import Literal

from rpbench.catalog import names, sampler_names, scheme_names, shelf
from rpbench.errors import UsageError
from rpbench.files import write_text

Kind = Literal["scheme", "sampler", "task"]
SUFFIX = {"scheme": ".py", "sampler": ".py", "task": ".toml"}
HIDING = ("rpbench", "torch", "numpy", "scipy")  # names of modules that a file beside one's work would hide

SCHEME = '''from rpbench import shape_scheme, spread


@shape_scheme
def NAME(table, density, *, power=0.5):
    """Densities fall with a power of a layer's size. https://example.org"""
    # a layer has name, shape, kind, groups, numel and macs; spread() caps densities at 1 and meets the budget
    return spread(table, lambda layer: layer.numel**-power, density)
'''

SCORE_SCHEME = '''from rpbench import score_scheme


@score_scheme
def NAME(probe):
    """The largest initial weights of the whole net. https://example.org"""
    # one score per weight, higher = keep; probe.batch() gives labelled images, probe.loss(logits, y) their loss
    weights = probe.weights(probe.model())
    return {name: weight.detach().abs() for name, weight in weights.items()}
'''

SAMPLER = '''from rpbench import mask_sampler, streams


@mask_sampler
def NAME(table, counts, key, scores):
    """Each layer's count at uniformly random positions. https://example.org"""
    masks = {}
    for i, layer in enumerate(table):
        order = streams.permutation(key(i), layer.numel)  # key(i): the random stream of layer i
        masks[layer.name] = (order < counts[layer.name]).reshape(layer.shape)
    return masks
'''


def start(kind: Kind, name: str, folder: Path, score: bool = False) -> Path:
    """Write the starting file of a scheme, sampler or task called `name` into a folder; the file's path.

    Raises UsageError for a name that cannot be used, and where the file is there already.
    """
    if fault := name_fault(kind, name):
        raise UsageError(fault)
    if not folder.is_dir():
        raise UsageError(f"there is no folder '{folder}'")
    path = folder / f"{name}{SUFFIX[kind]}"
    if path.exists():
        raise UsageError(f"'{path}' is there already: give another name, or another folder (--to)")
    try:
        write_text(path, template(kind, name, score))
    except OSError as error:
        raise UsageError(f"'{path}' cannot be written: {error.strerror}") from None
    return path


def name_fault(kind: Kind, name: str) -> str:
    """What is wrong with a name, '' for nothing."""
    if kind == "task":
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name) or name.endswith(".toml"):
            return f"'{name}' cannot be a task's name: small letters, digits, '-', '_' and '.', without the suffix"
        taken = names("tasks", ".toml")
    else:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
            return f"'{name}' cannot be a function's name: letters, digits and '_', beginning with a letter"
        if keyword.iskeyword(name) or keyword.issoftkeyword(name):
            return f"'{name}' is a word of Python: give another name"
        if name in sys.stdlib_module_names or name in HIDING:
            return f"a file '{name}.py' would hide the module '{name}' from whatever runs beside it: give another name"
        taken = scheme_names() if kind == "scheme" else sampler_names()
    return f"there is a {kind} '{name}' on the shelf: give another name" if name in taken else ""


def template(kind: Kind, name: str, score: bool = False) -> str:
    """The text of a starting file."""
    if kind == "task":
        return _task(name)
    text = SAMPLER if kind == "sampler" else SCORE_SCHEME if score else SCHEME
    return text.replace("NAME", name)


def _task(name: str) -> str:
    """The embedded task under another name: every number stands there, to be changed."""
    text = (shelf("tasks") / "digits.toml").read_text()
    head = "# Begun as a copy of the embedded task. Bump `version` with anything that can move a score.\n"
    _, _, rest = text.partition('name = "digits"\n')
    return f'{head}name = "{name}"\n{rest}'


def next_commands(kind: Kind, path: Path) -> tuple[str, str]:
    """What to type next."""
    import shlex

    given = shlex.quote(str(path) if "/" in str(path) else f"./{path}")
    if kind == "task":
        return f"rpbench plan --task {given}", f"rpbench run --task {given}"
    return f"rpbench try {given}", f"rpbench sweep digits --{kind} {given}"
