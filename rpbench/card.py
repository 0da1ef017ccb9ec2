"""The card of a submission: who, what, from where, under which licence. From options, a TOML file and the docstring."""

from __future__ import annotations

import datetime
import tomllib
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from rpbench.bundle import Card
from rpbench.errors import UnknownName, UsageError
from rpbench.source import Told

KEYS = tuple(Card.model_fields)
REQUIRED = tuple(name for name, field in Card.model_fields.items() if field.is_required() and name != "date")


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


def with_defaults(card: Mapping[str, str], told: Told | None) -> dict[str, str]:
    """A card with what the docstring says where nothing was given: its sentence as claim, its address as source."""
    said = {"name": told.name, "source": told.url, "claim": told.summary} if told else {}
    return {key: value for key, value in (said | dict(card)).items() if value.strip()}


def card_faults(card: Mapping[str, str], told: Told | None, own: bool) -> list[str]:
    """What a card lacks or cannot say, and whether the docstring of a file of one's own names its source; all of it."""
    full = with_defaults(card, told)
    found = []
    if missing := [name for name in REQUIRED if name not in full]:
        words = " ".join(f"--{name} ..." for name in missing)
        found.append(f"the card lacks {', '.join(missing)}: {words}, or --card FILE")
    if own and told is not None and not told.url:
        found.append(f"the docstring of '{told.name}' has no address of its source: write one into it, as https://...")
    try:
        Card.model_validate({"date": "2000-01-01"} | full)
    except ValidationError as error:
        wrong = [fault for fault in error.errors() if fault["type"] != "missing"]
        found += [f"the card's {fault['loc'][0]}: {str(fault['msg']).lower()}" for fault in wrong]
    return found
