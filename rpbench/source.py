"""A submitted source file as far as its text tells: it is parsed here, and run nowhere.

What a syntax tree cannot tell (a module imported by a name that is made up while running) is held off where the file is
run: see `rpbench.confine`.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from dataclasses import dataclass

from rpbench import options

LARGEST = 100_000  # bytes
IMPORTS = ("numpy", "scipy", "torch", "rpbench")  # beside the standard library
DECORATORS = {"shape_scheme": "scheme", "score_scheme": "scheme", "mask_sampler": "sampler"}


@dataclass(frozen=True)
class Told:
    """What a file says of its scheme or sampler: its kind ("scheme", "sampler"), name, and docstring's sentence and
    address."""

    kind: str
    name: str
    summary: str
    url: str


def read_source(content: bytes) -> tuple[Told | None, list[str]]:
    """The one scheme or sampler that a file defines (None where there is not one), and every fault of the file."""
    if len(content) > LARGEST:
        return None, [f"has {len(content):,} bytes: at most {LARGEST:,} are taken"]
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        where = f" (line {line})" if line else ""
        return None, [f"is no Python{where}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"]
    faults = [f"imports {name} (line {line}): {_TAKEN}" for name, line in _foreign(tree)]
    names = dict(DECORATORS) | _aliases(tree)
    found = [(kind, node) for node in tree.body if isinstance(node, ast.FunctionDef) and (kind := _kind(node, names))]
    if len(found) != 1:
        listed = ", ".join(node.name for _, node in found) or "none"
        return None, [*faults, f"must define one decorated scheme or sampler: it has {listed}"]
    kind, node = found[0]
    text = ast.get_docstring(node)
    return Told(kind, node.name, options.first_sentence(text), options.first_url(text)), faults


_TAKEN = f"the standard library, {', '.join(IMPORTS[:-1])} and {IMPORTS[-1]} are taken"


def source_hash(content: bytes) -> str:
    """sha256, as records have it under scheme.source."""
    return hashlib.sha256(content).hexdigest()


def _foreign(tree: ast.Module) -> list[tuple[str, int]]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(("." * node.level + (node.module or ""), node.lineno))
    return [(n, line) for n, line in found if n.split(".")[0] not in sys.stdlib_module_names | set(IMPORTS)]


def _aliases(tree: ast.Module) -> dict[str, str]:
    return {
        alias.asname: DECORATORS[alias.name]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname and alias.name in DECORATORS
    }


def _kind(node: ast.FunctionDef, names: dict[str, str]) -> str:
    """Whether a function is decorated as a scheme or a sampler; '' if it is not."""
    for decorator in node.decorator_list:
        called = decorator.func if isinstance(decorator, ast.Call) else decorator
        if isinstance(called, ast.Attribute) and called.attr in DECORATORS:
            return DECORATORS[called.attr]
        if isinstance(called, ast.Name) and called.id in names:
            return names[called.id]
    return ""
