"""The published leaderboard: a folder per board, a file of JSON lines per row; a card and a page made from them.

A line has flat columns for those who load it with `datasets`, and the whole record as text under "record": it is what
reports read. Curves and per-example outputs are left out, but for which test images were got right.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rpbench.board import Plan, Who, board_names, expand, load_board
from rpbench.catalog import shelf
from rpbench.correct import marks_of
from rpbench.entries import LEVELS, Entry, Fault, Found, Line, merged, read_lines, read_store, read_whole
from rpbench.errors import StoreError, UsageError
from rpbench.files import write_text
from rpbench.record import canonical
from rpbench.selection import Shelved, select, who_of
from rpbench.submitted import FOLDER, cards, row_stem

CARD, PAGE = "README.md", "index.html"
BEGIN, END = "<!-- tables: made by rpbench publish -->", "<!-- end of tables -->"

TEXT = ("board", "row", "status", "level", "task", "spec", "model", "scheme", "scheme_args", "sampler", "precision")
WHOLE = ("seed", "mask_seed", "init_seed", "order_seed", "params", "prunable", "kept", "batches", "epoch")
REAL = ("density", "realised", "effective", "dense_macs", "sparse_macs", "scheme_seconds", "seconds", "last_top1")


def root_of(folder: Path | None = None) -> Path:
    """A leaderboard's folder; the one that ships where none is given."""
    return folder or shelf("leaderboard")


def published_boards(root: Path) -> list[str]:
    """Boards with published records, those of the shelf alone."""
    return [name for name in board_names() if any((root / name).glob("*.jsonl"))]


def read_board(board: str, root: Path | None = None) -> Found:
    """Every published record of a board; what is wrong with a line is told, and loses no other."""
    return merged(read_lines(path) for path in sorted((root_of(root) / board).glob("*.jsonl")))


def beside(own: Found, boards: Sequence[str], root: Path | None = None) -> Found:
    """A store's records and the published ones of these boards. Boards share cells, and a store may hold what it has
    published: each record counts once, the store's own first, unless the published one is the same and was checked."""
    found = {e.run_id: e for e in own.entries}
    whole = Found(faults=list(own.faults))
    for board in boards:
        published = read_board(board, root)
        whole.faults += published.faults
        for e in published.entries:
            known = found.setdefault(e.run_id, e)
            if replace(known, place=e.place, level=e.level, row=e.row) == e:
                found[e.run_id] = max(e, known, key=lambda one: LEVELS.index(one.level))
    whole.entries = list(found.values())
    return whole


def columns(plan: Plan) -> dict[str, str]:
    """Every column of a board's lines with its type, as `datasets` names it; the same for all rows of the board."""
    metrics: dict[str, None] = dict.fromkeys(("top1", "nll", "brier", "ece", "val_top1"))
    for task in plan.tasks.values():
        found = ["top5"] if task.evaluation.top5 else []
        found += [f"{kind}/{name}" for name in task.evaluation.ood for kind in _OOD]
        metrics |= dict.fromkeys([*found, *(f"robust/{name}" for name in task.evaluation.attacks)])
    types = dict.fromkeys(TEXT, "string") | dict.fromkeys(WHOLE, "int64") | dict.fromkeys(REAL, "float64")
    return types | dict.fromkeys(metrics, "float64") | {"correct": "string", "record": "string"}


_OOD = ("auroc", "aupr", "fpr95", "auroc_energy", "aupr_energy", "fpr95_energy")


def line(plan: Plan, label: str, one: Line) -> str:
    """A published line: flat columns, and the record itself."""
    e = one.entry
    values: dict[str, Any] = vars(e) | {
        "board": plan.board.name, "row": label, "epoch": e.metrics.get("epoch"), "last_top1": e.last.get("top1"),
        "correct": one.correct, "record": canonical(one.record.as_json()),
    }  # fmt: skip
    metrics = {k: v for k, v in e.metrics.items() if k not in values}
    kept = {name: values.get(name, metrics.get(name)) for name in columns(plan)}
    return json.dumps(kept, separators=(",", ":"), allow_nan=False)


class Published(NamedTuple):
    """What publishing has done: records by file, and what of the store was left out, with the reason."""

    files: dict[str, int]
    left_out: tuple[Fault, ...]


def publish(board: str, store: Path, root: Path) -> Published:
    """Put a store's records of a board into a leaderboard.

    Records published before stay; one of the same cell is replaced, unless it was checked. The card and the page are
    made anew. StoreError where the store has no record of the board, or a file has a line that would be lost;
    UsageError for a board that is not on the shelf.
    """
    if board not in board_names():
        raise UsageError(f"board '{board}' is not on the shelf: only those of rpbench list boards are published")
    plan = expand(load_board(board))
    mine = read_whole(store)
    chosen = select(plan, [one.entry for one in mine], read_store(store).faults)
    fit = {e.run_id for places in chosen.places.values() for p in places.values()
           for part in (p.ok, p.infeasible, p.broken) for e in part.values()}  # fmt: skip
    fresh = [one._replace(correct=marks_of(store / one.entry.place)) for one in mine
             if one.entry.run_id in fit and one.entry.status != "failed"]  # fmt: skip
    if not fresh:
        raise StoreError(f"store '{store}' has no record of board '{board}' that can be published")
    written, kept = {}, []
    there, shelved = rows_of(plan.board.name, root), Shelved.now()
    for who in dict.fromkeys(who_of(one.entry, shelved) for one in fresh):
        path, row = root / plan.board.name / f"{row_stem(who, chosen.labels[who])}.jsonl", chosen.labels[who]
        if who in there:  # as it is called there
            path, row = there[who].path, there[who].row or row
        rows = {one.entry.run_id: one for one in there[who].lines} if who in there else {}
        for one in (one for one in fresh if who_of(one.entry, shelved) == who):
            known = rows.setdefault(one.entry.run_id, one)
            if known.record == one.record:
                rows[one.entry.run_id] = known._replace(correct=known.correct or one.correct)
                continue
            if known.entry.level in LEVELS[2:]:
                kept.append(Fault(one.entry.place, f"is published as {known.entry.level}, with other results"))
            else:
                rows[one.entry.run_id] = one
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, lines_text(plan, row, rows.values()))
        written[path.name] = len(rows)
    refresh(root)
    failed = [Fault(e.place, f"failed: {e.error}") for e in (one.entry for one in mine) if e.status == "failed"]
    return Published(written, (*chosen.left_out, *failed, *kept))


class RowFile(NamedTuple):
    """The file of a row as it is published, what the row is called there, and every record in it."""

    path: Path
    row: str
    lines: tuple[Line, ...]


def rows_of(board: str, root: Path) -> dict[Who, RowFile]:
    """The rows of a board as they are published. StoreError for a line that would be lost by writing its file anew."""
    for fault in read_board(board, root).faults:
        raise StoreError(f"{root / board}/{fault.place}: {fault.why}: mend or remove this line first")
    found: dict[Who, RowFile] = {}
    shelved = Shelved.now()
    for path in sorted((root / board).glob("*.jsonl")):
        lines = tuple(read_whole(path))
        for one in lines:
            found.setdefault(who_of(one.entry, shelved), RowFile(path, one.entry.row, lines))
    return found


def lines_text(plan: Plan, row: str, lines: Iterable[Line]) -> str:
    """A row's file: a line for each record, in the order of its cells."""
    ordered = sorted(lines, key=lambda one: _order(one.entry))
    return "".join(line(plan, row, one) + "\n" for one in ordered)


def _order(e: Entry) -> tuple[Any, ...]:
    return e.task, e.model, e.density, e.seed, e.mask_seed, e.init_seed, e.order_seed, e.run_id


def refresh(root: Path) -> tuple[str, ...]:
    """Make the card and the page of a leaderboard anew from its records; which of them were others before."""
    changed = stale(root)
    for name, text in changed.items():
        write_text(root / name, text)
    return tuple(changed)


def stale(root: Path) -> dict[str, str]:
    """What is not made from the records as they are: CARD or PAGE, and what it should be."""
    made = {CARD: card(root), PAGE: page_of(root)}
    return {name: text for name, text in made.items() if not _holds(root / name, text.encode())}


def _holds(path: Path, data: bytes) -> bool:
    try:
        return path.read_bytes() == data
    except OSError:
        return False


def card(root: Path) -> str:
    """The dataset card: how to load it, what the rules are, and the tables. The same records give the same bytes."""
    from rpbench.report.tables import board_text

    boards = published_boards(root)
    plans = {name: expand(load_board(name)) for name in boards}
    head = ["---", "pretty_name: rpbench leaderboard", "license: apache-2.0", "task_categories:",
            "- image-classification", "tags:", "- pruning", "- sparse-training", "configs:"]  # fmt: skip
    info = ["dataset_info:"]
    for name, plan in plans.items():
        head += [f"- config_name: {name}", "  data_files:", "  - split: train", f'    path: "{name}/*.jsonl"']
        info += [f"- config_name: {name}", "  features:"]
        info += [f"  - name: {column}\n    dtype: {kind}" for column, kind in columns(plan).items()]
    tables = [board_text(sheet, "md") for sheet in _sheets(root, boards)]
    parts = [
        "\n".join([*head, *info, "---"]),
        _TEXT.format(boards="`, `".join(boards) or "none yet"),
        BEGIN,
        *tables,
        *_submissions(root),
        END,
    ]
    return "\n\n".join(parts) + "\n"


def _submissions(root: Path) -> list[str]:
    """Who submitted what: a line for each row of each board, with its code."""
    from tabulate import tabulate

    from rpbench.report.words import markdown

    rows = []
    for (board, stem), told in cards(root).items():
        code = f"{FOLDER}/{stem}/{told.code.file}" if told.code else ""
        by, source = f"{told.card.author}, {told.card.date}", told.card.source
        rows.append([
            markdown(told.row), markdown(board), told.level, markdown(by), markdown(told.card.licence),
            f"[{markdown(told.code.file)}]({code})" if told.code else "",
            f"<{source}>" if _ADDRESS.fullmatch(source) else markdown(source), markdown(told.card.claim),
        ])  # fmt: skip
    if not rows:
        return []
    head = ["row", "board", "level", "by", "licence", "code", "source", "claim"]
    return ["## Submissions", tabulate(rows, headers=head, disable_numparse=True, tablefmt="pipe")]


_ADDRESS = re.compile(r"https?://[A-Za-z0-9./_~%#?=&:+-]+")


def page_of(root: Path) -> str:
    """The page of all published boards: one file, offline."""
    from rpbench.report.page import page
    from rpbench.report.reported import reported

    return page(_sheets(root, published_boards(root)), [vars(r) for r in reported()])


def _sheets(root: Path, boards: Sequence[str]) -> list[Any]:
    from rpbench.ranking import score

    found = []
    for name in boards:
        plan, here = expand(load_board(name)), read_board(name, root)
        found.append(score(plan, select(plan, here.entries, here.faults)))
    return found


_TEXT = """# rpbench leaderboard

Every record that the tables below are made of: sparse training with random pruning at initialization, one protocol.

```python
from datasets import load_dataset

rows = load_dataset("leaderboard", "digits", split="train")  # boards: `{boards}`
```

A line is one training: flat columns (rates in [0, 1]), under `correct` which test images the net got right (a bit each,
base64, little end first), and under `record` the whole record as JSON. Curves and other outputs are left out.
`rpbench report BOARD --leaderboard` prints the tables, `index.html` is the page.

## Rules

- A row is a scheme (with its options and sampler). Its cells are the board's: every net, density and seed of
  `tasks/boards/BOARD.toml`; others are not compared.
- Every cell follows its task to the letter: recipe, images, budget (`round(density * prunable)` weights, exactly), the
  epoch selected on validation images. Records off protocol, of another definition, with another budget or precision,
  or made with a scheme that has changed since are left out, with the reason.
- The score is the mean gap to the dense net of the same recipe and precision, in percentage points, with a 95 %
  interval of the row's own seeds and the dense net's. Ranks are shared where rows cannot be separated (Holm over all
  pairs, 5 %, noise pooled over rows); a rank interval says which places the data allow.
- Rows that lack a cell are listed with what is missing, unranked. Infeasible cells are shown; such rows are ranked on
  the cells that all rows have.
- `level` says how far a record was checked: reported < complete < checked < verified. A row is of the least level of
  its records, and at least complete where it has every cell.

`submissions/` has the code of the rows that were submitted, with their cards. `reported/` has what the literature
reports, with figure, tolerance and the differences of protocol: those numbers are shown beside measured ones, and never
ranked with them."""
