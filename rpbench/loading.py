"""Python files of one's own, and parts of packages, run to have what they define."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from rpbench.errors import RpbenchError, SchemeError, UsageError
from rpbench.outline import Outline
from rpbench.sampler import Sampler
from rpbench.scheme import Scheme


def load_file(path: Path, word: str, source_hash: str = "") -> ModuleType:
    """The module in a Python file; whatever fails while it runs becomes one sentence with the line.

    UsageError where its content is not the one that `source_hash` was taken of. What runs is the file as it stands,
    never what Python has compiled of it before.
    """
    if not path.is_file():
        raise UsageError(f"{word} file '{path}' does not exist")
    content = path.read_bytes()
    if source_hash and hashlib.sha256(content).hexdigest() != source_hash:
        raise UsageError(f"{word} file '{path}' has changed since it was read: ask again")
    name = f"rpbench_{word}_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise UsageError(f"{word} file '{path}' is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # inspect finds the source of its functions through this
    try:
        exec(compile(content, str(path), "exec", dont_inherit=True), module.__dict__)
    except RpbenchError:
        raise
    except Exception as error:
        raise UsageError(f"{word} file '{path}' does not load: {said(error)}") from error
    return module


def said(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def real(outline: Outline) -> Scheme | Sampler:
    """The scheme or sampler that an outline is of, by running its file. SchemeError where the file, run, makes another
    one than it says."""
    if outline.module:
        module = importlib.import_module(outline.module)
    else:
        module = load_file(outline.path, outline.word, outline.source_hash)
    found = getattr(module, outline.name, None)
    if not isinstance(found, Sampler if outline.kind == "mask" else Scheme):
        raise SchemeError(f"'{outline.path}' says {outline.word} '{outline.name}', but run it has none of that name")
    if isinstance(found, Sampler):
        same = (found.exact, found.scored) == (outline.exact, outline.scored)
    else:
        same = (found.kind, found.density) == (outline.kind, outline.density)
    if not same or found.name != outline.name:
        raise SchemeError(f"'{outline.path}' makes another {outline.word} '{outline.name}' when run than it says")
    return found
