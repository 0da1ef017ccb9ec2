"""What a leaderboard says of the submissions in it: who made a row, from which code, and how it was checked.

<leaderboard>/BOARD/ROW.jsonl               the records of a row
<leaderboard>/submissions/ROW/NAME.py       its code, as it was submitted
<leaderboard>/submissions/ROW/BOARD.json    its card on that board

ROW is the scheme's name and the beginning of its source's sha256: no submission shares a file with another.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rpbench.board import Who
from rpbench.entries import LEVELS
from rpbench.errors import StoreError
from rpbench.record import canonical

FOLDER = "submissions"
FORMAT = "rpbench.submission/1"
LARGEST_CARD = 2**20  # bytes
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,59}")  # of a scheme or sampler that may be merged: a Python name


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False, strict=True)


class SourcePart(_Part):
    file: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,79}\.py$")]
    sha256: str


class CardPart(_Part):
    """What the submitter says, but for the address."""

    name: str
    version: str
    author: str
    source: str
    claim: str
    licence: str
    date: str


class Card(_Part):
    """A merged submission: one row of one board. `checks` are sentences, a check each; `bundle` is the sha256 of its
    bundle.json, which lists all its other files."""

    format: Literal["rpbench.submission/1"] = "rpbench.submission/1"
    board: dict[str, Any]
    row: str
    kind: Literal["scheme", "sampler"]
    scheme: dict[str, Any]
    sampler: dict[str, Any]
    card: CardPart
    code: SourcePart | None = None
    level: Annotated[str, Field(pattern=f"^({'|'.join(LEVELS)})$")]
    checks: list[str]
    records: int
    bundle: str
    rpbench: str


def row_stem(who: Who, row: str) -> str:
    """The name of a row's files: its label for what is on the shelf, else the name and the source's hash.

    Options or a partner other than the defaults, which `row` tells, are in a second hash.
    """
    if not who.source and not who.sampler_source:
        return slug(row)
    name, bare = (who.scheme, who.scheme) if who.source else (f"{who.scheme}+{who.sampler}", _both(who))
    stem = f"{slug(name)}-{(who.source or who.sampler_source)[:8]}"
    if row == bare or (who.args, who.sampler, who.sampler_args) == ("{}", "exact", "{}"):
        return stem
    told = canonical([who.args, who.sampler, who.sampler_args, who.sampler_source])
    return f"{stem}-{hashlib.sha256(told.encode()).hexdigest()[:6]}"


def _both(who: Who) -> str:
    return f"{who.scheme} + {who.sampler}"


def slug(label: str) -> str:
    """A file's name for a label: itself, or what is left of it and a hash that tells it from others."""
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "._+-") else "_" for c in label)
    return safe if safe == label else f"{safe[:60]}-{hashlib.sha256(label.encode()).hexdigest()[:8]}"


def card_path(root: Path, stem: str, board: str) -> Path:
    return root / FOLDER / stem / f"{board}.json"


def read_card(path: Path) -> Card | None:
    """A card, None where there is none; StoreError for one that cannot be read."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise StoreError(f"card '{path}' is no file")
        with open(path, "rb") as file:
            data = file.read(LARGEST_CARD + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"card '{path}' cannot be read: {error.strerror}") from None
    if len(data) > LARGEST_CARD:
        raise StoreError(f"card '{path}' is larger than {LARGEST_CARD // 2**20} MB")
    try:
        return Card.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(p) for p in first["loc"]) or "the file"
        raise StoreError(f"card '{path}' is not valid: {place}: {first['msg'].lower()}") from None


def cards(root: Path) -> dict[tuple[str, str], Card]:
    """Every card of a leaderboard by board and row, in the order of their names."""
    found = {}
    for path in sorted((root / FOLDER).glob("*/*.json")):
        card = read_card(path)
        if card is not None:
            found[path.stem, path.parent.name] = card
    return dict(sorted(found.items()))


def card_text(card: Card) -> str:
    return json.dumps(card.model_dump(mode="json", exclude_none=True), indent=1, ensure_ascii=False) + "\n"
