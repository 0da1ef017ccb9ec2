"""The card of a submission: who, what, from where, under which licence. From options, a TOML file and the docstring."""

from __future__ import annotations

import datetime
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from rpbench.bundle import Card
from rpbench.errors import UnknownName, UsageError

KEYS = tuple(Card.model_fields)
REQUIRED = tuple(name for name, field in Card.model_fields.items() if field.is_required() and name != "date")


class Said(NamedTuple):
    """What the docstring of a scheme or sampler says: its name, its first sentence, the address of its source."""

    name: str
    summary: str
    url: str


def read_card(path: Path) -> dict[str, str]:
    """What a TOML file says: keys of a card, all of them text. UsageError for others."""
    try:
        found = tomllib.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"card '{path}' cannot be read: {' '.join(str(error).split())}") from None
    card = {}
    for key, value in found.items():
        if key not in KEYS:
            raise UnknownName(f"key of a card ('{path}')", key, KEYS)
        if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
            value = value.isoformat()
        if not isinstance(value, str):
            raise UsageError(f"card '{path}': {key} is {value}: write it as text, in quotes")
        card[key] = value
    return card


def with_defaults(card: Mapping[str, str], said: Said) -> dict[str, str]:
    """A card with what the docstring says where nothing was given: its sentence as claim, its address as source."""
    full = {"name": said.name, "source": said.url, "claim": said.summary} | dict(card)
    return {key: value for key, value in full.items() if value.strip()}


def card_faults(card: Mapping[str, str], said: Said) -> list[str]:
    """What a card lacks or cannot say, and whether the docstring names its source; all of it."""
    full = with_defaults(card, said)
    found = []
    if missing := [name for name in REQUIRED if name not in full]:
        words = " ".join(f"--{name} ..." for name in missing)
        found.append(f"the card lacks {', '.join(missing)}: {words}, or --card FILE")
    if not said.url:
        found.append(f"the docstring of '{said.name}' has no address of its source: write one into it, as https://...")
    try:
        Card.model_validate({"date": "2000-01-01"} | full)
    except ValidationError as error:
        wrong = [fault for fault in error.errors() if fault["type"] != "missing"]
        found += [f"the card's {fault['loc'][0]}: {str(fault['msg']).lower()}" for fault in wrong]
    if full["name"] != said.name:
        found.append(f"the card's name is '{full['name']}', the function is '{said.name}': a row has that name")
    if "source" in full and not re.match(r"https?://[^\s/]+", full["source"]):
        found.append(f"the card's source is '{full['source']}': it must be an address, as https://...")
    return found
