"""Names -> things: schemes, samplers, tasks, boards, claims, image sets, attacks. Adding a file adds a
name; there is no list.

The shelves are folders of the installed package (`rpbench/tasks`, `rpbench/baselines`), found the same way from a
wheel and from an editable install, never through the working directory. Nothing here imports torch; listing schemes
reads their files without running them.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rpbench import isolated, options
from rpbench.errors import UnknownName, UsageError
from rpbench.loading import load_file, said
from rpbench.outline import Outline, Word, read_file, read_module
from rpbench.sampler import Sampler
from rpbench.scheme import Scheme

if TYPE_CHECKING:
    from torch import nn

Row = dict[str, Any]
T = TypeVar("T", Scheme, Sampler)


@cache
def shelf(kind: str) -> Path:
    """The folder of a shelf: "baselines", "baselines.samplers", "tasks", "tasks.images", "tasks.attacks",
    "tasks.boards", "tasks.claims", "leaderboard"."""
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
    return sorted({*names("baselines.samplers", ".py"), *(e.name for e in entry_points(group="rpbench.samplers"))})


def known_scheme(given: str) -> None:
    """UnknownName unless `given` names a scheme; nothing is imported, and files are not looked at."""
    name, _ = options.parse(given)
    if not _is_path(name, ".py") and not is_shelved_scheme(name) and name not in scheme_names():
        raise UnknownName("scheme", name, scheme_names())


def is_shelved_scheme(name: str) -> bool:
    """Whether a scheme's name stands for a file of baselines/ (not for a file or package of somebody's own)."""
    return name in names("baselines", ".py")


def is_shelved_sampler(name: str) -> bool:
    """Whether a sampler's name stands for a file of baselines/samplers/."""
    return name in names("baselines.samplers", ".py")


def find_scheme(given: str | Scheme) -> tuple[Scheme, dict[str, Any]]:
    """A scheme and the options in its name: 'snip:reinit=xavier', './mine.py', or a Scheme itself.

    A file is run in this process, as in a person's own Python; commands take `isolated_scheme`.
    """
    if isinstance(given, Scheme):
        return given, {}
    name, chosen = options.parse(given)
    if _is_path(name, ".py"):
        return _from_file(Path(name), Scheme, "scheme"), chosen
    if name in names("baselines", ".py"):
        return _from_shelf("baselines", name, Scheme, "scheme"), chosen
    return _from_entry_point("scheme", name, Scheme, scheme_names()), chosen


def find_sampler(given: str | Sampler) -> tuple[Sampler, dict[str, Any]]:
    """A sampler and the options in its name; as `find_scheme`."""
    if isinstance(given, Sampler):
        return given, {}
    name, chosen = options.parse(given)
    if _is_path(name, ".py"):
        return _from_file(Path(name), Sampler, "sampler"), chosen
    if name in names("baselines.samplers", ".py"):
        return _from_shelf("baselines.samplers", name, Sampler, "sampler"), chosen
    return _from_entry_point("sampler", name, Sampler, sampler_names()), chosen


def isolated_scheme(given: str) -> tuple[Scheme, dict[str, Any]]:
    """As `find_scheme`, for code that may be a stranger's: what is not on rpbench's own shelf is not run here.

    Such a scheme is what its file says (`rpbench.outline`), and calling it runs the file in a confined process
    (`rpbench.isolated`). Everything that asks for cells, lists them or reports on them goes this way.
    """
    name, chosen = options.parse(given)
    if is_shelved_scheme(name):
        return find_scheme(given)
    return isolated.scheme(_own_outline("scheme", name)), chosen


def isolated_sampler(given: str) -> tuple[Sampler, dict[str, Any]]:
    """As `isolated_scheme`, for samplers."""
    name, chosen = options.parse(given)
    if is_shelved_sampler(name):
        return find_sampler(given)
    return isolated.sampler(_own_outline("sampler", name)), chosen


def _own_outline(word: Word, name: str) -> Outline:
    """The outline of a file of one's own or of an entry point."""
    if _is_path(name, ".py"):
        return read_file(Path(name).expanduser(), word)
    for entry in entry_points(group=f"rpbench.{word}s"):
        if entry.name == name:
            return read_module(word, entry.value, f"{word} '{name}'")
    raise UnknownName(word, name, scheme_names() if word == "scheme" else sampler_names())


def find_model_function(given: str) -> tuple[Callable[..., nn.Module], Path]:
    """The function behind './net.py:make' (default name: make) and the file it stands in."""
    name, _, function = given.partition(":")
    path = Path(name).expanduser()
    found = getattr(load_file(path, "model"), function or "make", None)
    if not callable(found):
        raise UsageError(f"model file '{path}' has no function '{function or 'make'}'")
    return found, path


def list_schemes() -> list[Row]:
    """One row per scheme: name, summary, source, options, kind; read from the files without running them."""
    return [_row("scheme", name) for name in scheme_names()]


def list_samplers() -> list[Row]:
    """One row per sampler: name, summary, source, options; those of others are read from their files."""
    return [_row("sampler", name) for name in sampler_names()]


@cache
def outline(name: str) -> Outline:
    """What the file of baseline `name` says; UsageError where it defines no such function."""
    return read_file(shelf("baselines") / f"{name}.py", "scheme", name)


def _outline(word: Word, name: str) -> Outline:
    if word == "scheme" and is_shelved_scheme(name):
        return outline(name)
    if word == "sampler" and is_shelved_sampler(name):
        return read_file(shelf("baselines.samplers") / f"{name}.py", "sampler", name)
    return _own_outline(word, name)


def _row(word: Word, name: str) -> Row:
    try:
        told = _outline(word, name)
    except UsageError as error:
        return {"name": name, "summary": str(error), "source": "", "options": {}}
    row = {"name": name, "summary": told.summary, "source": told.url, "options": told.options}
    shelved = is_shelved_scheme(name) if word == "scheme" else is_shelved_sampler(name)
    entry = next((e for e in entry_points(group=f"rpbench.{word}s") if e.name == name), None)
    if entry and not shelved:
        row["package"] = f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
    looks_at = {"score": "weights and data", "shape": "shapes"}.get(told.kind)
    return row | ({"looks_at": looks_at} if looks_at else {})


def _from_shelf(where: str, name: str, kind: type[T], word: str) -> T:
    found = getattr(importlib.import_module(f"rpbench.{where}.{name}"), name, None)
    if not isinstance(found, kind):
        raise UsageError(f"{where.replace('.', '/')}/{name}.py defines no {word} called '{name}'")
    return found


def _is_path(text: str, suffix: str) -> bool:
    return text.endswith(suffix) or "/" in text


def _from_file(path: Path, kind: type[T], word: str) -> T:
    path = path.expanduser()
    module = load_file(path, word)
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
                raise UsageError(f"{word} '{name}' ({entry.value}) does not load: {said(error)}") from error
            if not isinstance(found, kind):
                raise UsageError(f"entry point '{name}' ({entry.value}) is not a {word}")
            return found
    raise UnknownName(word, name, known)
