"""Checks of a submission itself: its source file, its card, the contract."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator

from rpbench.bundle import SOURCE, Bundle
from rpbench.catalog import is_shelved_sampler, is_shelved_scheme
from rpbench.checks.known import Known
from rpbench.untrusted import shown
from rpbench.verdict import Verdict

ALLOWED = frozenset({"numpy", "scipy", "torch", "rpbench"})
DECORATORS = {"scheme": {"shape_scheme", "score_scheme"}, "sampler": {"mask_sampler"}}


def source(bundle: Bundle) -> Iterator[str]:
    """What is wrong with the source file, from its text alone: nothing of it is run."""
    manifest = bundle.manifest
    part = manifest.scheme if manifest.kind == "scheme" else manifest.sampler
    shelved = is_shelved_scheme if manifest.kind == "scheme" else is_shelved_sampler
    if bundle.source is None:
        if not shelved(part.name):
            yield f"source/{part.name}.py is missing: no {manifest.kind} of this name is on the shelf"
        return
    if len(bundle.source) > SOURCE:
        yield f"source/{bundle.source_name} has {len(bundle.source):,} bytes: at most {SOURCE:,} are read"
        return
    try:
        tree = ast.parse(bundle.source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        yield f"source/{bundle.source_name} is not Python: {' '.join(str(error).split())}"
        return
    decorated = [f for f in tree.body if isinstance(f, ast.FunctionDef) and _decorators(f) & DECORATORS[manifest.kind]]
    if len(decorated) != 1:
        yield f"source/{bundle.source_name} has {len(decorated)} decorated functions at its top: it must have one"
    for function in decorated:
        if function.name != part.name:
            yield f"source/{bundle.source_name} defines {shown(function.name)}: {manifest.kind}.name is {part.name}"
    for name in sorted(_imports(tree) - ALLOWED - sys.stdlib_module_names):
        yield f"source/{bundle.source_name} imports {shown(name)}: the standard library, {_listed()} are allowed"


def _listed() -> str:
    return ", ".join(sorted(ALLOWED))


def _decorators(function: ast.FunctionDef) -> set[str]:
    names = [d.func if isinstance(d, ast.Call) else d for d in function.decorator_list]
    return {n.attr if isinstance(n, ast.Attribute) else n.id for n in names if isinstance(n, ast.Attribute | ast.Name)}


def _imports(tree: ast.Module) -> set[str]:
    """The packages that a file imports, at whatever place; a relative import is one of ''."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("" if node.level else (node.module or "").partition(".")[0])
    return found


def card(bundle: Bundle) -> Iterator[str]:
    """Who submits what, with an address, a licence, and a docstring that names the source."""
    told, part = bundle.manifest.card, bundle.manifest.scheme
    part = part if bundle.manifest.kind == "scheme" else bundle.manifest.sampler
    if told.name != part.name:
        yield f"card.name is {shown(told.name)}: the {bundle.manifest.kind} is {shown(part.name)}"
    if not re.match(r"https?://[^\s/]+", told.source):
        yield f"card.source is {shown(told.source)}: it must be an address, https://..."
    if bundle.source is None:
        return
    try:
        tree = ast.parse(bundle.source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return  # `source` says so
    function = next((f for f in tree.body if isinstance(f, ast.FunctionDef) and f.name == part.name), None)
    docstring = ast.get_docstring(function) if function else None
    if function and not re.search(r"https?://\S+", docstring or ""):
        yield f"the docstring of {shown(part.name)} has no address of its source"


def contract(bundle: Bundle, known: Known) -> list[Verdict]:
    """What `rpbench try` says of the submitted function."""
    return [Verdict("contract", "R2", "skipped", "rpbench try has not been asked")]
