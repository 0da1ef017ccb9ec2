"""A submitted source file as far as its text tells (R1): it is parsed here, and run nowhere.

What a syntax tree cannot tell (a module imported by a name that is made up while running) is held off where the file is
run: see `rpbench.confine`.
"""

from __future__ import annotations

import ast
import sys
import warnings

from rpbench.outline import DECORATORS, WORDS, Word

LARGEST = 100_000  # bytes
IMPORTS = ("numpy", "scipy", "torch", "rpbench")  # beside the standard library
_TAKEN = f"the standard library, {', '.join(IMPORTS[:-1])} and {IMPORTS[-1]} are taken"


def source_faults(content: bytes, word: Word) -> list[str]:
    """Everything that is wrong with the file of a scheme or sampler: its size, what it imports, how many it defines."""
    if len(content) > LARGEST:
        return [f"has {len(content):,} bytes: at most {LARGEST:,} are taken"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in its strings
            tree = ast.parse(content)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        where = f" (line {line})" if line else ""
        return [f"is no Python{where}: {' '.join(str(error).split()) or type(error).__name__}"]
    faults = [f"imports {name} (line {line}): {_TAKEN}" for name, line in _foreign(tree)]
    names, functions = _names(tree), [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    found = [f"{node.name} (line {node.lineno})" for node in functions if _kind(node, names) == word]
    if len(found) != 1:
        faults.append(f"must define one {word}: it has {', '.join(found) or 'none'}")
    return faults


def _foreign(tree: ast.Module) -> list[tuple[str, int]]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(("." * node.level + (node.module or ""), node.lineno))
    return [(n, line) for n, line in found if n.split(".")[0] not in sys.stdlib_module_names | set(IMPORTS)]


def _names(tree: ast.Module) -> dict[str, str]:
    """The decorators by the names that the file has for them."""
    found = {name: name for name in DECORATORS}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found |= {alias.asname: alias.name for alias in node.names if alias.asname and alias.name in DECORATORS}
    return found


def _kind(node: ast.FunctionDef, names: dict[str, str]) -> str:
    """The word "scheme" or "sampler" for a function that is decorated as one, else ''."""
    for decorator in node.decorator_list:
        called = decorator.func if isinstance(decorator, ast.Call) else decorator
        name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
        if names.get(name) in DECORATORS:
            return WORDS[DECORATORS[names[name]]]
    return ""
