"""What there is: rows about schemes, samplers, tasks, boards, claims, models, image sets, attacks, cells. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from rpbench import catalog
from rpbench.board import board_names, board_rows, load_board
from rpbench.catalog import Row
from rpbench.claims import claim_rows
from rpbench.data.sources import Roots, download, locate
from rpbench.errors import DataError, MissingData
from rpbench.models import list_models
from rpbench.store import default_store, records
from rpbench.task import load_attack, load_set, load_task


def rows(what: str, store: Path | None = None) -> list[Row]:
    """Rows with at least name, summary and source."""
    kinds: dict[str, Callable[[], list[Row]]] = {
        "schemes": catalog.list_schemes,
        "samplers": catalog.list_samplers,
        "tasks": _tasks,
        "boards": board_rows,
        "figures": _figures,
        "claims": claim_rows,
        "models": list_models,
        "sets": _sets,
        "attacks": _attacks,
        "cells": lambda: _cells(store or default_store()),
    }
    return kinds[what]()


def _figures() -> list[Row]:
    """One row per figure of a board on the shelf."""
    boards = [load_board(name) for name in board_names()]
    return [
        {"name": figure.name, "summary": figure.caption, "source": board.url, "board": board.name}
        for board in boards
        for figure in board.figures
    ]


def data_rows(folders: Iterable[str]) -> list[Row]:
    """Every image set, and where each of its splits is; '-' where it is not on this machine."""
    roots = Roots.read(folders)
    found = []
    for name in catalog.names("tasks.images", ".toml"):
        image_set = load_set(name)
        for split in list(image_set.splits) or ["test"]:
            declared = image_set.splits[split].n if image_set.splits else None
            try:
                place = locate(image_set, split, roots).origin
            except MissingData:
                place = "-"
            found.append({"name": name, "split": split, "images": declared, "where": place})
    return found


def prepare(name: str, folders: Iterable[str]) -> Iterator[str]:
    """Get an image set and decode it once where it is small; yields what was done."""
    image_set = load_set(name)
    roots = Roots.read(folders)
    for split in image_set.splits:
        try:
            located = locate(image_set, split, roots)
        except MissingData:
            if not image_set.repo:
                raise
            yield f"{name}: fetching {image_set.repo}@{image_set.revision[:7]}"
            download(image_set)
            located = locate(image_set, split, roots)
        yield f"{name} ({split}): {located.origin}"
        if image_set.size is not None and image_set.channels is not None and located.layout != "embedded":
            from rpbench.data import resident

            images = resident.load(located, image_set.size, image_set.channels)
            yield f"{name} ({split}): {len(images):,} images decoded"


def check(name: str, folders: Iterable[str]) -> Iterator[Row]:
    """One row per split: images found and declared, fingerprint, verdict ("ok" or what is wrong)."""
    image_set = load_set(name)
    if image_set.source == "generated":
        yield {"name": name, "split": "test", "images": None, "declared": None, "fingerprint": "", "verdict": "ok"}
        return
    from rpbench.data import encoded, resident

    for split, declared in image_set.splits.items():
        row: Row = {"name": name, "split": split, "images": None, "declared": declared.n, "fingerprint": ""}
        try:
            located = locate(image_set, split, Roots.read(folders))
            if image_set.size is not None and image_set.channels is not None:
                images: Any = resident.load(located, image_set.size, image_set.channels)
                row |= {"images": len(images), "fingerprint": images.fingerprint}
            else:
                images = encoded.open_encoded(located)
                order = encoded.canonical_order(images)
                row |= {"images": len(images), "fingerprint": encoded.fingerprint(images, order)}
            yield row | {"verdict": _verdict(row, declared.fingerprint)}
        except DataError as error:
            yield row | {"verdict": str(error)}


def _verdict(row: Row, fingerprint: str) -> str:
    if row["images"] != row["declared"]:
        return f"{row['images']:,} images, not {row['declared']:,}"
    if fingerprint and row["fingerprint"] != fingerprint:
        return "other images than the definition's"
    return "ok"


def _tasks() -> list[Row]:
    found = []
    for name in catalog.names("tasks", ".toml"):
        task = load_task(name)
        found.append(
            {"name": name, "summary": task.summary, "source": task.url, "version": task.version}
            | {"models": list(task.models), "ood": list(task.evaluation.ood)}
        )
    return found


def _sets() -> list[Row]:
    return [
        {"name": name, "summary": s.summary, "source": s.url, "kind": s.source}
        | {"images": {split: part.n for split, part in s.splits.items()}}
        for name in catalog.names("tasks.images", ".toml")
        for s in [load_set(name)]
    ]


def _attacks() -> list[Row]:
    return [
        {"name": name, "summary": a.summary, "source": a.url, "eps": a.eps}
        for name in catalog.names("tasks.attacks", ".toml")
        for a in [load_attack(name)]
    ]


def _cells(store: Path) -> list[Row]:
    return [
        {"name": r.run_id, "summary": _in_short(r), "source": str(store), "status": r.status}
        | {"top1": r.metrics.get("top1"), "protocol": r.protocol.on}
        for r in records(store)
    ]


def _in_short(record: Any) -> str:
    text = f"{record.task.name} {record.model.name} {record.scheme.name} {record.density.requested:g} {record.status}"
    top1 = record.metrics.get("top1")
    return text if top1 is None else f"{text} {top1:.2%}"
