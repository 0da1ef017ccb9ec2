"""The published leaderboard: records as JSON lines, a folder per board, a file per row."""

from __future__ import annotations

from pathlib import Path

from rpbench.catalog import shelf
from rpbench.entries import Found, merged, read_lines


def read_board(board: str, root: Path | None = None) -> Found:
    """Every published record of a board; root is a leaderboard's folder (default: the one that ships)."""
    folder = (root or shelf("leaderboard")) / board
    return merged(read_lines(path) for path in sorted(folder.glob("*.jsonl")))
