"""A check: one named demand, what it looked at, and its verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rpbench import options
from rpbench.errors import RpbenchError
from rpbench.options import declared
from rpbench.sampler import Sampler
from rpbench.scheme import Scheme
from rpbench.verdict import Verdict

RULE = "R2"
POSITIONAL = {
    "shape": ("table", "density"),
    "score": ("probe",),
    "sampler": ("table", "counts", "key", "scores"),
    "wired": ("table", "counts", "key", "scores", "wiring"),
}
LONGEST = 120  # characters of a summary: lists show it on two lines at most


@dataclass(frozen=True)
class Case:
    """One thing that a check looked at: where, and its fault ("" where there is none)."""

    where: str
    fault: str = ""


@dataclass(frozen=True)
class Check:
    """One demand of the contract. Called, it raises AssertionError with what is wrong; `verdict` says the same as a
    value. As text it is its name, for `pytest.mark.parametrize(..., ids=str)`."""

    name: str
    asks: str
    look: Callable[[], Iterable[Case]] = field(repr=False)

    def verdict(self) -> Verdict:
        """Passed, failed with the first fault and how many there are, or skipped where there was nothing to look at."""
        cases = list(self.look())
        faults = [case for case in cases if case.fault]
        if not cases:
            return Verdict(self.name, RULE, "skipped", "nothing that could be checked came back")
        if not faults:
            return Verdict(self.name, RULE, "passed", self.asks)
        more = f" ({len(faults)} of {len(cases)} failed)" if len(cases) > 1 else ""
        return Verdict(self.name, RULE, "failed", faults[0].fault + more, faults[0].where)

    def __call__(self) -> None:
        found = self.verdict()
        if found.state == "failed":
            raise AssertionError(f"{self.name}: {found.why}" + (f" [{found.where}]" if found.where else ""))

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Example:
    """What came back once: a line per layer."""

    where: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def shape_text(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))


def said_checks(thing: Scheme | Sampler, called: str) -> list[Check]:
    """Checks of what a scheme or sampler says about itself; `called` is the name that it was asked for by."""
    return [
        Check("name", "file, function and scheme have one name", lambda: _name(thing, called)),
        Check("docstring", "one sentence, and the source's address", lambda: _docstring(thing)),
        Check("options", "keyword-only, of plain types, with defaults", lambda: _options(thing)),
    ]


def _name(thing: Scheme | Sampler, called: str) -> Iterable[Case]:
    own = getattr(thing.function, "__name__", thing.name)
    if own != thing.name:
        yield Case("", f"the function is called '{own}', what it makes '{thing.name}': give both one name")
    elif called and called != thing.name:
        yield Case("", f"it is asked for as '{called}', but its function is called '{thing.name}': give both one name")
    else:
        yield Case("")


def _docstring(thing: Scheme | Sampler) -> Iterable[Case]:
    if not thing.summary:
        yield Case("", "there is no docstring: one sentence that says what it keeps, and the address of its source")
        return
    n = len(thing.summary)
    ok = 10 <= n <= LONGEST
    yield Case("", "" if ok else f"the first sentence has {n} characters: write 10 to {LONGEST}")
    yield Case("", "" if thing.url else "the docstring names no source: add an address (https://...)")


def _options(thing: Scheme | Sampler) -> Iterable[Case]:
    import inspect

    kind = thing.kind if isinstance(thing, Scheme) else "sampler"
    wanted = POSITIONAL["wired" if isinstance(thing, Sampler) and thing.wired else kind]
    parameters = list(inspect.signature(thing.function).parameters.values())
    loose = [p for p in parameters if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    signature = f"{thing.name}({', '.join(wanted)}, *, options)"
    if loose:
        stars = "*" if loose[0].kind is loose[0].VAR_POSITIONAL else "**"
        yield Case("", f"'{stars}{loose[0].name}' hides which options there are: write {signature}")
    elif len(positional) > len(wanted):
        extra = positional[len(wanted)].name
        yield Case("", f"'{extra}' cannot be set by name: put a * before it, as in {signature}")
    elif len(positional) < len(wanted):
        yield Case("", f"the function takes {len(positional)} values, not {len(wanted)}: write {signature}")
    else:
        yield Case("")
    try:
        known = declared(thing.function)
    except RpbenchError as error:
        yield Case("", str(error))
        return
    for name, parameter in known.items():
        yield Case(f"option {name}", _option(thing, known, name, parameter))


def _option(thing: Scheme | Sampler, known: Mapping[str, Any], name: str, parameter: Any) -> str:
    """What is wrong with an option: its default, read from its own text, must be itself."""
    default = parameter.default
    if default is parameter.empty:
        return f"option '{name}' has no default: nobody could run '{thing.name}' by its name"
    if default is not None and not isinstance(default, bool | int | float | str):
        return f"the default of option '{name}' is a {type(default).__name__}: use bool, int, float or str"
    if default is None:
        return ""
    others = {
        n: p.default for n, p in known.items() if n != name and p.default is not p.empty and p.default is not None
    }
    text = str(default).lower() if isinstance(default, bool) else str(default)
    try:
        read = options.bind(thing.name, thing.function, others | {name: text})[name]
    except RpbenchError as error:
        return f"option '{name}' does not take its own default: {error}"
    same = read == default and type(read) is type(default)
    return "" if same else f"the default of option '{name}' is {default!r}, but it reads as {read!r}: mend its type"
