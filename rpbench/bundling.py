"""A row of a store as the files of a bundle, and a bundle's place on the disk."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rpbench.board import board_hash, expand, load_board
from rpbench.bundle import (
    FORMAT,
    MANIFEST,
    README,
    BoardPart,
    Card,
    Evidence,
    Manifest,
    Named,
    file_faults,
    listed,
    manifest_text,
    open_bundle,
    packed_masks,
    read_manifest,
    write_folder,
    write_zip,
)
from rpbench.card import with_defaults
from rpbench.entries import Found
from rpbench.errors import BundleError, StoreError
from rpbench.published import beside, published_boards, root_of
from rpbench.ranking import score
from rpbench.report.tables import board_text
from rpbench.report.words import counted, markdown
from rpbench.rows import Sheet
from rpbench.selection import select
from rpbench.submission import Row, evidence_of
from rpbench.sweep import At

State = Literal["wrote", "brought up to date", "unchanged"]


@dataclass(frozen=True)
class Made:
    """A bundle as it is to be written: what it says it is, and its files by path."""

    manifest: Manifest
    parts: dict[str, bytes | Path]


def put(row: Row, card: Mapping[str, str], sheet: Sheet, place: Path, today: str) -> tuple[Made, State]:
    """Write the bundle of a row to a .zip or a folder, as `place` is named; one that is whole already stays as it is.

    The card is dated today unless it has a date, or an earlier bundle of the same content lies there. BundleError
    "foreign" where something else lies there: it is not touched.
    """
    earlier = _earlier(row, place)
    if earlier is not None:
        made = make(row, {"date": earlier.card.date} | dict(card), sheet, place)
        if made.manifest == earlier and _is_whole(place):
            return made, "unchanged"
    made = make(row, {"date": today} | dict(card), sheet, place)
    try:
        (write_zip if place.suffix == ".zip" else write_folder)(place, made.parts)
    except OSError as error:
        raise StoreError(f"'{place}' cannot be written: {error.strerror}") from None
    if not _is_whole(place):
        raise StoreError(f"'{place}' is not what was to be written: has the store changed meanwhile? once more")
    return made, "wrote" if earlier is None else "brought up to date"


def _earlier(row: Row, place: Path) -> Manifest | None:
    """What an earlier bundle at this place says, None where there is none."""
    if not place.parent.is_dir():
        raise StoreError(f"there is no folder '{place.parent}' to write to")
    if not place.exists() and not place.is_symlink():
        return None
    other = "name a place of its own with --out"
    if place.is_dir() != (place.suffix != ".zip"):
        raise BundleError("foreign", f"'{place}' is {'a folder' if place.is_dir() else 'a file'}: {other}")
    try:
        found = read_manifest(place)
    except BundleError as error:
        raise BundleError("foreign", f"'{place}' is no bundle, and is not touched ({error}): {other}") from None
    if (found.board.name, found.row) != (row.plan.board.name, row.label):
        raise BundleError("foreign", f"'{place}' is the bundle of {found.row} on {found.board.name}: {other}")
    return found


def _is_whole(place: Path) -> bool:
    try:
        return not list(file_faults(open_bundle(place)))
    except BundleError:
        return False


def make(row: Row, card: Mapping[str, str], sheet: Sheet, place: Path) -> Made:
    """The files of a bundle of a row that nothing stands against. The same row, card and table give the same bytes."""
    whole = Card.model_validate(with_defaults(card, row.said))
    parts: dict[str, bytes | Path] = {}
    if row.source is not None:
        parts[f"source/{row.source.path.name}"] = row.source.content
    for at in row.ended:
        parts |= _cell_parts(row, at, evidence_of(row, at))
    parts[README] = readme(row, whole, sheet, place).encode()
    files = listed(parts)
    board = row.plan.board
    manifest = Manifest(
        rpbench=_version(),
        board=BoardPart(name=board.name, version=board.version, hash=board_hash(board)),
        kind=row.kind,
        row=row.label,
        scheme=Named(name=row.who.scheme, args=json.loads(row.who.args)),
        sampler=Named(name=row.who.sampler, args=json.loads(row.who.sampler_args)),
        card=whole,
        files=files,
        bytes=sum(file.bytes for file in files.values()),
    )
    return Made(manifest, parts | {MANIFEST: manifest_text(manifest)})


def _cell_parts(row: Row, at: At, evidence: Evidence) -> Iterable[tuple[str, bytes | Path]]:
    folder, root = row.wish.store / at.where, f"cells/{at.where}"
    yield f"{root}/record.json", folder / "record.json"
    if evidence.curve is not None:
        yield f"{root}/curve.jsonl", folder / "curve.jsonl"
    for name in evidence.outputs:
        yield f"{root}/outputs/{name}.npz", folder / "outputs" / f"{name}.npz"
    if row.scored and evidence.masks is not None:
        yield f"{root}/masks.npz", _npz(packed_masks(folder / "masks.safetensors"))


def _npz(found: Mapping[str, Any]) -> bytes:
    import numpy as np

    buffer = io.BytesIO()
    np.savez_compressed(buffer, **found)
    return buffer.getvalue()


def _version() -> str:
    from importlib.metadata import version

    return version("rpbench")


def scored_sheet(row: Row) -> Sheet:
    """The row beside the published ones; gaps are to the store's own reference where none is published."""
    plan, name = expand(load_board(row.wish.board)), row.plan.board.name
    mine = {at.where for at in row.ended}
    published = [name] if row.shelved and name in published_boards(root_of()) else []
    found = beside(Found([e for e in row.entries if e.place in mine]), published)
    if not any(e.scheme == plan.board.reference for e in found.entries):
        found.entries += [e for e in row.entries if e.scheme == plan.board.reference]
    chosen = select(plan, found.entries)
    return score(plan, replace(chosen, labels={**chosen.labels, row.who: row.label}))


def readme(row: Row, card: Card, sheet: Sheet, place: Path) -> str:
    """What a person reads first: card, commands, contents, the row in its table."""
    author = f"{card.author} ({card.email})" if card.email else card.author
    told = {"author": author, "version": card.version, "source": card.source, "licence": card.licence,
            "date": card.date}  # fmt: skip
    board = row.plan.board
    about = (
        f"A submission to rpbench (`{FORMAT}`): {row.kind} {markdown(row.label)} on board {board.name}@{board.version}"
    )
    lines = [
        f"# {markdown(card.name)} on {board.name}",
        f"> {markdown(card.claim)}",
        "\n".join(f"- {key}: {markdown(value)}" for key, value in told.items()),
        f"{about}, {counted(len(row.ended), 'cell')}. RULES.md of rpbench says what holds for it.",
        "## Check it",
        "\n".join(["```sh", *commands(row, place), "```"]),
        "## What is in here",
        "\n".join(_contents(row)),
        board_text(sheet, "md"),
    ]
    return "\n\n".join(lines) + "\n"


def verify_command(row: Row, place: str, board: str) -> str:
    """How the bundle at a place is checked; a board of one's own is no part of it."""
    words = ["rpbench", "verify", place, *([] if row.shelved else ["--board", board])]
    return shlex.join(words)


def commands(row: Row, place: Path) -> list[str]:
    """How to check the bundle: without training, its contract alone, and from nothing."""
    scheme, sampler, file = row.wish.scheme, row.wish.sampler, shlex.quote(place.name)
    board = Path(row.wish.board).name
    found = [f"{verify_command(row, place.name, board)}  # everything that needs no training"]
    if row.source is not None:
        inside = f"source/{row.source.path.name}"
        if place.suffix == ".zip":
            found.append(f"unzip {file} {inside}  # read it before it is run")
        else:
            inside = f"{place.name}/{inside}"
        settings = (scheme if row.kind == "scheme" else sampler).partition(":")[2]
        own = f"{inside}:{settings}" if settings else inside
        scheme, sampler = (own, sampler) if row.kind == "scheme" else (scheme, own)
    asked = ["--scheme", scheme, *(["--sampler", sampler] if sampler else [])]
    found.append(f"{shlex.join(['rpbench', 'try', scheme if row.kind == 'scheme' else sampler])}  # the contract")
    found.append(f"{shlex.join(['rpbench', 'sweep', board, *asked])}  # every cell again")
    return found


def _contents(row: Row) -> list[str]:
    found = ["- `bundle.json`: all of this for machines, with size and sha256 of every file"]
    if row.source is not None:
        found.append(f"- `source/{row.source.path.name}`: the {row.kind}")
    found.append("- `cells/RUN_ID/record.json`: what a training was asked and what came out; `curve.jsonl`: its epochs")
    found.append("- `cells/RUN_ID/outputs/`: what every metric was computed from, per example")
    if row.scored:
        found.append("- `cells/RUN_ID/masks.npz`: the masks (`np.packbits`, little end first)")
    return found
