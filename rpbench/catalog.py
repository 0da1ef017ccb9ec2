"""Names -> things: schemes, samplers, tasks, boards, claims, image sets, attacks. Adding a file adds a
name; there is no list.

The shelves are folders of the installed package (`rpbench/tasks`, `rpbench/baselines`), found the same way from a
wheel and from an editable install, never through the working directory. Nothing here imports torch; listing schemes
reads their files without running them.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from rpbench import options
from rpbench.errors import RpbenchError, UnknownName, UsageError
from rpbench.sampler import Sampler
from rpbench.scheme import Scheme

if TYPE_CHECKING:
    from torch import nn

Row = dict[str, Any]
T = TypeVar("T", Scheme, Sampler)


@cache
def shelf(kind: str) -> Path:
    """The folder of a shelf: "baselines", "tasks", "tasks.images", "tasks.attacks", "tasks.boards", "tasks.claims",
    "leaderboard"."""
    spec = importlib.util.find_spec(f"rpbench.{kind}")
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        raise UsageError(f"the installation is incomplete: rpbench.{kind} is missing")
    return Path(places[0])


def names(kind: str, suffix: str) -> list[str]:
    """Names on a shelf: its files, without their suffix."""
    return sorted(p.stem for p in shelf(kind).glob(f"*{suffix}") if not p.stem.startswith("_"))


def definition(kind: str, shelf_name: str, given: str) -> Path:
    """The TOML file that `given` names: a path, or a name on the shelf. UnknownName lists what exists."""
    if _is_path(given, ".toml"):
        path = Path(given).expanduser()
        if not path.is_file():
            raise UsageError(f"{kind} '{given}': there is no such file")
        return path
    known = names(shelf_name, ".toml")
    if given not in known:
        raise UnknownName(kind, given, known)
    return shelf(shelf_name) / f"{given}.toml"


def scheme_names() -> list[str]:
    return sorted({*names("baselines", ".py"), *(e.name for e in entry_points(group="rpbench.schemes"))})


def sampler_names() -> list[str]:
    return sorted({*_built_in_samplers(), *(e.name for e in entry_points(group="rpbench.samplers"))})


def known_scheme(given: str) -> None:
    """UnknownName unless `given` names a scheme; nothing is imported, and files are not looked at."""
    name, _ = options.parse(given)
    if not _is_path(name, ".py") and name not in scheme_names():
        raise UnknownName("scheme", name, scheme_names())


def is_shelved_scheme(name: str) -> bool:
    """Whether a scheme's name stands for a file of baselines/ (not for a file or package of somebody's own)."""
    return name in names("baselines", ".py")


def is_shelved_sampler(name: str) -> bool:
    return name in _built_in_samplers()


def find_scheme(given: str | Scheme) -> tuple[Scheme, dict[str, Any]]:
    """A scheme and the options in its name: 'snip:reinit=xavier', './mine.py', or a Scheme itself."""
    if isinstance(given, Scheme):
        return given, {}
    name, chosen = options.parse(given)
    if _is_path(name, ".py"):
        return _from_file(Path(name), Scheme, "scheme"), chosen
    if name in names("baselines", ".py"):
        found = getattr(importlib.import_module(f"rpbench.baselines.{name}"), name, None)
        if not isinstance(found, Scheme):
            raise UsageError(f"baselines/{name}.py defines no scheme called '{name}'")
        return found, chosen
    return _from_entry_point("scheme", name, Scheme, scheme_names()), chosen


def find_sampler(given: str | Sampler) -> tuple[Sampler, dict[str, Any]]:
    """A sampler and the options in its name; as `find_scheme`."""
    if isinstance(given, Sampler):
        return given, {}
    name, chosen = options.parse(given)
    if _is_path(name, ".py"):
        return _from_file(Path(name), Sampler, "sampler"), chosen
    if name in _built_in_samplers():
        return _built_in_samplers()[name], chosen
    return _from_entry_point("sampler", name, Sampler, sampler_names()), chosen


def find_model_function(given: str) -> tuple[Callable[..., nn.Module], Path]:
    """The function behind './net.py:make' (default name: make) and the file it stands in."""
    name, _, function = given.partition(":")
    path = Path(name).expanduser()
    found = getattr(_load_file(path, "model"), function or "make", None)
    if not callable(found):
        raise UsageError(f"model file '{path}' has no function '{function or 'make'}'")
    return found, path


def list_schemes() -> list[Row]:
    """One row per scheme: name, summary, source, options, kind; read from the files without importing them."""
    rows = []
    for name in scheme_names():
        path = shelf("baselines") / f"{name}.py"
        rows.append(_read_scheme(name) if path.is_file() else _describe(find_scheme(name)[0]))
    return rows


def list_samplers() -> list[Row]:
    """One row per sampler: name, summary, source, options."""
    return [_describe(find_sampler(name)[0]) for name in sampler_names()]


def _describe(found: Scheme | Sampler) -> Row:
    known = options.declared(found.function)
    shown = {n: None if p.default is p.empty else p.default for n, p in known.items()}
    return {"name": found.name, "summary": found.summary, "source": found.url, "options": shown}


@dataclass(frozen=True)
class Outline:
    """A baseline as far as its file tells without being run: torch is not imported for a list or a report.

    `options` are defaults (None: it must be given, and stands in `needs`), `density` the only one it is defined for.
    """

    name: str
    summary: str
    url: str
    kind: Literal["shape", "score"]
    density: float | None
    options: dict[str, Any]
    needs: tuple[str, ...]
    source_hash: str


@cache
def outline(name: str) -> Outline:
    """What the file of baseline `name` says; UsageError where it defines no such function."""
    path = shelf("baselines") / f"{name}.py"
    content = path.read_bytes()
    tree = ast.parse(content)
    function = next((n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name), None)
    if function is None:
        raise UsageError(f"{path} defines no function '{name}'")
    keywords = list(zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True))
    density = next((_literal(k.value) for k in _decorator_keywords(function) if k.arg == "density"), None)
    return Outline(
        name=name,
        summary=options.first_sentence(ast.get_docstring(function)),
        url=options.first_url(ast.get_docstring(function)),
        kind="score" if any("score_scheme" in ast.unparse(d) for d in function.decorator_list) else "shape",
        density=density,
        options={a.arg: _literal(d) if d is not None else None for a, d in keywords},
        needs=tuple(a.arg for a, d in keywords if d is None),
        source_hash=hashlib.sha256(content).hexdigest(),
    )


def _decorator_keywords(function: ast.FunctionDef) -> list[ast.keyword]:
    return [k for d in function.decorator_list if isinstance(d, ast.Call) for k in d.keywords]


def _read_scheme(name: str) -> Row:
    try:
        told = outline(name)
    except UsageError as error:
        return {"name": name, "summary": str(error), "source": "", "options": {}}
    looks_at = "weights and data" if told.kind == "score" else "shapes"
    return {"name": name, "summary": told.summary, "source": told.url, "options": told.options, "looks_at": looks_at}


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


@cache
def _built_in_samplers() -> Mapping[str, Sampler]:
    module = importlib.import_module("rpbench.sampler")
    return {value.name: value for value in vars(module).values() if isinstance(value, Sampler)}


def _is_path(text: str, suffix: str) -> bool:
    return text.endswith(suffix) or "/" in text


def _from_file(path: Path, kind: type[T], word: str) -> T:
    path = path.expanduser()
    module = _load_file(path, word)
    found = {value.name: value for value in vars(module).values() if isinstance(value, kind)}
    if path.stem in found:
        return found[path.stem]
    if len(found) != 1:
        has = ", ".join(found) or "none"
        raise UsageError(f"'{path}' must define one {word} (or one called '{path.stem}'): it has {has}")
    return next(iter(found.values()))


def _from_entry_point(word: str, name: str, kind: type[T], known: Iterable[str]) -> T:
    for entry in entry_points(group=f"rpbench.{word}s"):
        if entry.name == name:
            try:
                found = entry.load()
            except Exception as error:
                raise UsageError(f"{word} '{name}' ({entry.value}) does not load: {_said(error)}") from error
            if not isinstance(found, kind):
                raise UsageError(f"entry point '{name}' ({entry.value}) is not a {word}")
            return found
    raise UnknownName(word, name, known)


def _load_file(path: Path, word: str) -> ModuleType:
    """The module in a Python file; whatever fails while it runs becomes one sentence with the line."""
    if not path.is_file():
        raise UsageError(f"{word} file '{path}' does not exist")
    name = f"rpbench_{word}_{path.stem}_{abs(hash(str(path.resolve()))):x}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{word} file '{path}' is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # inspect finds the source of its functions through this
    try:
        spec.loader.exec_module(module)
    except RpbenchError:
        raise
    except Exception as error:
        raise UsageError(f"{word} file '{path}' does not load: {_said(error)}") from error
    return module


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
