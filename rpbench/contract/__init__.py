"""The contract of every scheme and sampler as named checks: what `rpbench try` shows, and what a package of one's own
can test itself with:

    import pytest
    from rpbench.contract import scheme_checks

    @pytest.mark.parametrize("check", scheme_checks("mine"), ids=str)
    def test_contract(check):
        check()
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rpbench import catalog, isolated, options
from rpbench.contract import samplers, schemes
from rpbench.contract.checks import Case, Check, Example
from rpbench.errors import UnknownName, UsageError
from rpbench.sampler import Sampler
from rpbench.scheme import Scheme
from rpbench.verdict import Verdict

__all__ = [
    "Case",
    "Check",
    "Examination",
    "Example",
    "examine",
    "examining",
    "sampler_checks",
    "scheme_checks",
    "verdicts",
]

Kind = Literal["scheme", "sampler"]
Given = str | Path | Scheme | Sampler
CALL = 20.0  # seconds that one call of an isolated function may take


@dataclass(frozen=True)
class Examination:
    """A scheme or sampler with its checks; they share what it has answered, so that all of them take seconds.

    `label` is how a board would write it; `example(where)` what came back for one net: where a check failed, or a small
    one.
    """

    thing: Scheme | Sampler
    kind: Kind
    label: str
    checks: tuple[Check, ...]
    example: Callable[[str], Example | None] = field(repr=False)


def scheme_checks(given: str | Path | Scheme) -> list[Check]:
    """The checks of a scheme: its name, a file (options as in './mine.py:power=0.5'), or a Scheme.

    Raises UsageError where there is none, or its file does not load.
    """
    return list(examine(given, "scheme").checks)


def sampler_checks(given: str | Path | Sampler) -> list[Check]:
    """The checks of a sampler: its name, a file, or a Sampler. Raises as `scheme_checks`."""
    return list(examine(given, "sampler").checks)


def verdicts(checks: Iterable[Check]) -> list[Verdict]:
    """What each check has found, in their order."""
    return [check.verdict() for check in checks]


def examine(given: Given, kind: Kind | None = None) -> Examination:
    """A scheme or sampler (found out from what is given, unless `kind` says) and its checks; nothing is called yet.

    A file is run in this process. For code that may be a stranger's there is `examining`.
    """
    return _examination(*obtain(given, kind))


@contextlib.contextmanager
def examining(given: str, kind: Kind | None = None, limits: isolated.Limits | None = None) -> Iterator[Examination]:
    """As `examine`, but what is not on rpbench's own shelf is read, not run, and called in one confined process that
    ends with the block."""
    thing, values, called = obtain(given, kind, confined=True)
    limits = limits or isolated.Limits(CALL)
    if isinstance(thing, Scheme):
        with isolated.session(thing, limits) as scheme:
            yield _examination(scheme, values, called)
    else:
        with isolated.session(thing, limits) as sampler:
            yield _examination(sampler, values, called)


def obtain(
    given: Given, kind: Kind | None = None, confined: bool = False
) -> tuple[Scheme | Sampler, dict[str, Any], str]:
    """The scheme or sampler, its options, and the name that it was asked for by ('' for an object)."""
    if isinstance(given, Scheme | Sampler):
        return given, options.bind(given.name, given.function, {}), ""
    text = str(given)
    name, _ = options.parse(text)
    found, chosen = _found(text, name, kind, confined)
    called = Path(name).stem if name.endswith(".py") or "/" in name else name
    return found, options.bind(found.name, found.function, chosen), called


def _found(text: str, name: str, kind: Kind | None, confined: bool) -> tuple[Scheme | Sampler, dict[str, Any]]:
    scheme = catalog.isolated_scheme if confined else catalog.find_scheme
    sampler = catalog.isolated_sampler if confined else catalog.find_sampler
    if kind == "scheme":
        return scheme(text)
    if kind == "sampler":
        return sampler(text)
    try:
        return scheme(text)
    except UnknownName as error:
        if name in catalog.sampler_names():
            return sampler(text)
        raise UnknownName("scheme or sampler", name, catalog.scheme_names() + catalog.sampler_names()) from error
    except UsageError as error:
        try:
            return sampler(text)
        except UsageError:
            raise error from None


def _examination(thing: Scheme | Sampler, values: dict[str, Any], called: str) -> Examination:
    label = options.written(thing.name, thing.function, values)
    if isinstance(thing, Scheme):
        checks, scheme = schemes.scheme_list(thing, values, called)
        return Examination(thing, "scheme", label, tuple(checks), lambda where: schemes.example(scheme, where))
    checks, sampler = samplers.sampler_list(thing, values, called)
    return Examination(thing, "sampler", label, tuple(checks), lambda where: samplers.example(sampler, where))
