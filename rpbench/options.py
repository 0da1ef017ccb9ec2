"""Options of a scheme or sampler: keyword-only arguments of its function, set as NAME:key=value,key=value."""

from __future__ import annotations

import hashlib
import inspect
import re
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from rpbench.errors import UnknownName, UsageError

Options = Mapping[str, Any]


def parse(text: str) -> tuple[str, dict[str, str]]:
    """'snip:reinit=xavier,batches=2' -> ('snip', {'reinit': 'xavier', 'batches': '2'})."""
    name, _, rest = text.partition(":")
    given: dict[str, str] = {}
    for part in rest.split(",") if rest else []:
        option, equals, value = part.partition("=")
        if not equals or not option.strip():
            raise UsageError(f"'{part}' in '{text}' is not an option: write {name}:key=value,key=value")
        given[option.strip()] = value.strip()
    return name, given


def declared(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters of a function: its options. One without a type takes that of its default."""
    space = getattr(function, "__globals__", {})
    found = {}
    for p in inspect.signature(function).parameters.values():
        if p.kind is inspect.Parameter.KEYWORD_ONLY:
            annotation = p.annotation
            if isinstance(annotation, str):  # from __future__ import annotations
                try:
                    annotation = eval(annotation, dict(space))
                except NameError as error:
                    raise UsageError(
                        f"the type of option '{p.name}' of '{function.__name__}' cannot be read at run time: {error}"
                    ) from None
            if annotation is p.empty and p.default is not p.empty:
                annotation = type(p.default)
            found[p.name] = p.replace(annotation=annotation)
    return found


def bind(name: str, function: Callable[..., Any], given: Options) -> dict[str, Any]:
    """All options of `function` with their values, in declared order; UsageError for a wrong name or value."""
    known = declared(function)
    for option in given:
        if option not in known:
            if not known:
                raise UsageError(f"'{name}' has no options, so no '{option}'")
            raise UnknownName(f"option of '{name}'", option, known)
    values: dict[str, Any] = {}
    for option, parameter in known.items():
        if option in given:
            values[option] = _convert(f"{name}:{option}", given[option], parameter.annotation)
        elif parameter.default is inspect.Parameter.empty:
            raise UsageError(f"'{name}' needs {name}:{option}=...")
        else:
            values[option] = parameter.default
    return values


def chosen(function: Callable[..., Any], values: Options) -> dict[str, Any]:
    """Options that differ from their defaults, as plain JSON values: a scheme's part of a cell's identity.

    A file stands as its name and the hash of its content, so that an edited file is another cell.
    """
    known = declared(function)
    return {name: _plain(value) for name, value in values.items() if value != known[name].default}


def plain(values: Options) -> dict[str, Any]:
    """All options as plain JSON values, for the record."""
    return {name: _plain(value) for name, value in values.items()}


def written(name: str, function: Callable[..., Any], values: Options) -> str:
    """The shortest NAME:key=value form that means these values. UsageError for one that would be read otherwise."""
    known = declared(function)
    parts = []
    for option, value in values.items():
        if value != known[option].default:
            text = _text(value)
            if "," in text or text != text.strip():
                raise UsageError(
                    f"option {option} is {text!r:.80}: no value with a comma, or a space at an end, can be asked for"
                )
            parts.append(f"{option}={text}")
    return f"{name}:{','.join(parts)}" if parts else name


def files(function: Callable[..., Any]) -> list[str]:
    """The options that are files, to be opened when they are bound or called."""
    return [name for name, p in declared(function).items() if p.annotation is Path or Path in get_args(p.annotation)]


def first_sentence(docstring: str | None) -> str:
    """The first sentence of a docstring, on one line."""
    text = " ".join(re.sub(r"https?://\S+", "", docstring or "").split())
    return re.split(r"\.\s+(?=[A-Z`])", text, maxsplit=1)[0].rstrip(". ")


def first_url(docstring: str | None) -> str:
    """The first address in a docstring, or ''."""
    found = re.search(r"https?://[^\s)>,;]+", docstring or "")
    return found.group().rstrip(".") if found else ""


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return f"{value.name}#sha256:{hashlib.sha256(value.read_bytes()).hexdigest()[:16]}"
    return value


def _convert(place: str, value: Any, annotation: Any) -> Any:
    """`value` (text from a command line, or already typed) as what the option's annotation says."""
    if isinstance(annotation, types.UnionType) or get_origin(annotation) is Union:
        annotation = next(a for a in get_args(annotation) if a is not type(None))
    if get_origin(annotation) is Literal:
        choices = get_args(annotation)
        for choice in choices:
            if str(value) == str(choice):
                return choice
        raise UsageError(f"{place} is '{value}': choose {' or '.join(str(c) for c in choices)}")
    if annotation is Path:
        path = Path(value).expanduser()
        if not path.is_file():
            raise UsageError(f"{place}: there is no file '{path}'")
        return path
    if annotation is bool:
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if isinstance(value, bool):
            return value
        if str(value).lower() in words:
            return words[str(value).lower()]
        raise UsageError(f"{place} is '{value}': choose true or false")
    if annotation in (int, float):
        try:
            number: float = annotation(value)
            if annotation is int and number != float(value):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            word = "a whole number" if annotation is int else "a number"
            raise UsageError(f"{place} is '{value}': it must be {word}") from None
        if number != number or number in (float("inf"), float("-inf")):
            raise UsageError(f"{place} is '{value}': it must be finite")
        return number
    return value if isinstance(value, str) else str(value)
