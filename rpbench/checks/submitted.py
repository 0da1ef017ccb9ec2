"""Checks of a submission itself: its source file, the contract, its card."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rpbench import options
from rpbench.bundle import Bundle, Named
from rpbench.card import Said, card_faults
from rpbench.catalog import is_shelved_sampler, is_shelved_scheme, isolated_sampler, isolated_scheme
from rpbench.checks.known import Known, bound
from rpbench.contract import verdicts
from rpbench.contract.samplers import sampler_list
from rpbench.contract.schemes import scheme_list
from rpbench.errors import RpbenchError
from rpbench.source import source_faults
from rpbench.untrusted import shown
from rpbench.verdict import Verdict


def submitted_part(bundle: Bundle) -> Named:
    """The scheme or sampler that a bundle submits."""
    return bundle.manifest.scheme if bundle.manifest.kind == "scheme" else bundle.manifest.sampler


def is_shelved(bundle: Bundle) -> bool:
    """Whether the name of what is submitted is on the shelf."""
    shelved = is_shelved_scheme if bundle.manifest.kind == "scheme" else is_shelved_sampler
    return shelved(submitted_part(bundle).name)


def source(bundle: Bundle) -> Iterator[str]:
    """What is wrong with the source file, from its text alone: nothing of it is run."""
    kind, name = bundle.manifest.kind, submitted_part(bundle).name
    if bundle.source is None:
        if not is_shelved(bundle):
            yield f"source/ is empty: no {kind} {shown(name)} is on the shelf"
        return
    yield from (f"source/{bundle.source_name} {fault}" for fault in source_faults(bundle.source, kind))
    if is_shelved(bundle):
        yield f"source/{bundle.source_name} is for {shown(name)}, which is on the shelf already: another name is needed"


def file_options(bundle: Bundle, path: Path | None) -> Iterator[str]:
    """Options of its scheme and sampler that are files, by the text of the source at `path`, or by the shelf's."""
    kind = bundle.manifest.kind
    for word, part, find, shelved in (
        ("scheme", bundle.manifest.scheme, isolated_scheme, is_shelved_scheme),
        ("sampler", bundle.manifest.sampler, isolated_sampler, is_shelved_sampler),
    ):
        own = path if word == kind else None
        if own is None and not shelved(part.name):
            continue
        try:
            found = options.files(find(str(own) if own else part.name)[0].function)
        except RpbenchError:  # `card` says so
            continue
        for name in found:
            told = f"option {name} of the {word} is a file, that a bundle does not hold"
            yield f"{told}: write what it says into a source file"


def card(bundle: Bundle, known: Known) -> Iterator[str]:
    """What the card lacks, by the docstring of what is submitted."""
    name, own = submitted_part(bundle).name, known.source
    find = isolated_scheme if bundle.manifest.kind == "scheme" else isolated_sampler
    if own is not None and own.barred:
        return  # `source` says why it is not read
    try:
        found = find(str(own.path) if own is not None else name)[0]
    except RpbenchError as error:
        yield f"the docstring of {shown(name)} cannot be read: {error}"
        return
    told = bundle.manifest.card.model_dump(exclude_none=True)
    yield from card_faults(told, Said(found.name, found.summary, found.url))


def contract(bundle: Bundle, known: Known) -> list[Verdict]:
    """What `rpbench try` says of the submitted file, which is called in its confined process; nothing of what is on the
    shelf, whose tests say it."""
    own, part = known.source, submitted_part(bundle)
    if own is None:
        return []
    if own.barred:
        return [Verdict("contract", "R2", "skipped", own.barred)]
    try:
        if own.kind == "scheme":
            scheme = known.scheme(part.name, own.sha256)
            checks = scheme_list(scheme, bound(part.name, scheme.function, part.args), own.path.stem)[0]
        else:
            sampler = known.sampler(part.name, own.sha256)
            checks = sampler_list(sampler, bound(part.name, sampler.function, part.args), own.path.stem)[0]
    except RpbenchError as error:
        return [Verdict("contract", "R2", "failed", str(error))]
    return [
        Verdict("contract", "R2", v.state, f"{v.check}: {v.why}" if v.why else "", v.where) for v in verdicts(checks)
    ]
