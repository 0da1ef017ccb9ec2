"""Leaderboards elsewhere: a folder, or a dataset repository on the Hugging Face hub, "hf:owner/name[@revision]".

A leaderboard that comes from there is a stranger's: its sizes are looked at before it is downloaded, its records are
read as strictly as any others, and nothing in it is run.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rpbench.board import board_names
from rpbench.entries import LARGEST_FILE
from rpbench.errors import HubError, UsageError
from rpbench.published import CARD, PAGE, published_boards, read_board, stale
from rpbench.submitted import FOLDER, cards

if TYPE_CHECKING:
    from huggingface_hub import HfApi

HF = "hf:"
REPO = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?", re.ASCII)
MOST_FILES = 10_000  # that are downloaded
MOST_BYTES = 2**30
WRITE = "log in (hf auth login) or set HF_TOKEN, with a token that may write"


class Leaderboard(NamedTuple):
    """A folder with a leaderboard, and how to name just this state of it; '' where it has no such name."""

    root: Path
    pinned: str


class Uploaded(NamedTuple):
    """The commit that a leaderboard is in now, its files, and those that were removed there."""

    pinned: str
    files: tuple[str, ...]
    removed: tuple[str, ...]


def is_place(given: str) -> bool:
    """Whether a word names a leaderboard's place: a repository or a path, not a board or a row."""
    return given.startswith(HF) or given in (".", "..") or ("/" in given and not given.endswith(".toml"))


def leaderboard_at(given: str) -> Leaderboard:
    """The leaderboard in a folder or in a repository on the hub, which is downloaded where it is not in the cache.

    UsageError where there is none, HubError where the hub cannot or will not give it.
    """
    if given.startswith(HF):
        return _download(given)
    root = Path(given).expanduser()
    if not root.is_dir():
        raise UsageError(f"there is no leaderboard '{given}': it is a folder, or hf:owner/name")
    if not published_boards(root):
        raise UsageError(f"'{given}' has no records of a board on the shelf")
    return Leaderboard(root, "")


def _parsed(given: str) -> tuple[str, str | None]:
    found = REPO.fullmatch(given)
    if found is None:
        raise UsageError(f"'{given}' is no repository on the hub: hf:owner/name, or hf:owner/name@revision")
    return found["repo"], found["revision"]


def _download(given: str) -> Leaderboard:
    from huggingface_hub import HfApi, snapshot_download

    repo, revision = _parsed(given)
    wanted = [f"{board}/*.jsonl" for board in board_names()]
    offline = False
    with _told(given):
        try:
            _check_sizes(given, HfApi(), repo, revision, wanted)
        except Exception as error:
            if not _unreachable(error):
                raise
            offline = True
    with _told(given), _quiet():
        folder = snapshot_download(
            repo, repo_type="dataset", revision=revision, allow_patterns=wanted, local_files_only=offline
        )
    root = Path(folder)
    if not published_boards(root):
        raise HubError(f"'{given}' has no records of a board on the shelf")
    return Leaderboard(root, f"{HF}{repo}@{root.name}")


def _check_sizes(given: str, api: HfApi, repo: str, revision: str | None, wanted: list[str]) -> None:
    """Refuse what is too large before any of it is downloaded."""
    told = api.dataset_info(repo, revision=revision, files_metadata=True).siblings or []
    mine = [file for file in told if any(fnmatch(file.rfilename, pattern) for pattern in wanted)]
    sizes = [file.size or 0 for file in mine]
    if len(mine) > MOST_FILES or sum(sizes) > MOST_BYTES:
        raise HubError(f"'{given}' has {len(mine):,} files of {sum(sizes) / 1e6:,.0f} MB: that is no leaderboard")
    for file, size in zip(mine, sizes, strict=True):
        if size > LARGEST_FILE:
            raise HubError(f"'{given}': {file.rfilename} has {size / 1e6:,.0f} MB: at most 64 MB are read")


def upload(root: Path, given: str) -> Uploaded:
    """Put a leaderboard into a dataset repository on the hub, which is made where there is none; in one commit.

    What an earlier upload put there and is gone here is removed there; other files there stay. UsageError where tables
    are not made from the records, or a line cannot be read; HubError where the hub does not take it, or where the
    repository is something else.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    repo, revision = _parsed(given)
    if old := stale(root):
        raise UsageError(f"{' and '.join(old)} are not made from the records: rpbench publish --refresh first")
    for board in published_boards(root):
        for fault in read_board(board, root).faults:
            raise UsageError(f"{root / board}/{fault.place}: {fault.why}: mend or remove this line first")
    files = {name: (root / name).read_bytes() for name in published_files(root)}
    api = HfApi()
    with _told(given, write=True), _quiet():
        api.create_repo(repo, repo_type="dataset", exist_ok=True)
        info = api.dataset_info(repo, revision=revision)
        there = [file.rfilename for file in info.siblings or []]
        ours = [name for name in there if _is_ours(name)]
        if CARD in there and not ours:
            raise HubError(f"'{given}' holds something else: give it a repository of its own")
        gone = [name for name in ours if name not in files]
        operations: list[Any] = [CommitOperationAdd(name, data) for name, data in files.items()]
        operations += [CommitOperationDelete(name) for name in gone]
        done = api.create_commit(
            repo, operations, commit_message="rpbench publish", repo_type="dataset", revision=revision,
            parent_commit=info.sha,
        )  # fmt: skip
    return Uploaded(f"{HF}{repo}@{done.oid}", tuple(files), tuple(gone))


def published_files(root: Path) -> list[str]:
    """What a leaderboard consists of, each file by name: nothing else of its folder leaves the machine."""
    found = [root / CARD, root / PAGE]
    for board in published_boards(root):
        found += sorted((root / board).glob("*.jsonl"))
    found += sorted((root / "reported").glob("*.jsonl"))
    for (board, stem), card in cards(root).items():
        folder = root / FOLDER / stem
        found += [folder / f"{board}.json", *([folder / card.code.file] if card.code else [])]
    names = dict.fromkeys(path.relative_to(root).as_posix() for path in found)
    for name in names:
        if not (root / name).is_file() or (root / name).is_symlink():
            raise UsageError(f"'{root / name}' is no file")
    return list(names)


def _is_ours(name: str) -> bool:
    """Whether a file in a repository is one that `upload` puts there."""
    boards = "|".join(map(re.escape, board_names()))
    return bool(re.fullmatch(rf"({boards}|reported)/[^/]+\.jsonl|{FOLDER}/[^/]+/[^/]+\.(json|py)", name))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars of huggingface_hub."""
    from huggingface_hub import utils as bars

    if bars.are_progress_bars_disabled():  # type: ignore[attr-defined]
        yield
        return
    bars.disable_progress_bars()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        bars.enable_progress_bars()  # type: ignore[attr-defined]


@contextlib.contextmanager
def _told(given: str, write: bool = False) -> Iterator[None]:
    """What the hub's library raises, in one line."""
    from huggingface_hub import errors

    try:
        yield
    except HubError:
        raise
    except errors.GatedRepoError:
        raise HubError(f"'{given}' is gated: ask for access on its page, and log in (hf auth login)") from None
    except errors.RepositoryNotFoundError:
        why = WRITE if write else "or it is private: log in (hf auth login) or set HF_TOKEN"
        raise HubError(f"'{given}': the hub has no such dataset, {why}") from None
    except errors.RevisionNotFoundError:
        raise HubError(f"'{given}' has no such revision") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise HubError(f"'{given}': not allowed ({status}): {WRITE}") from None
        if status == 412:
            raise HubError(f"'{given}' has changed meanwhile: the same command again") from None
        raise HubError(f"'{given}': the hub says {_short(error)}") from None
    except errors.LocalEntryNotFoundError:
        raise HubError(f"'{given}': the hub cannot be reached, and it is not in the cache") from None
    except errors.HFValidationError as error:
        raise HubError(f"'{given}' is no repository on the hub: {_short(error)}") from None
    except Exception as error:
        if not _unreachable(error):
            raise
        raise HubError(f"'{given}': the hub cannot be reached ({_short(error)})") from None


def _unreachable(error: Exception) -> bool:
    """Whether nobody answered: offline by choice, or an error of whatever library the hub's uses for its requests."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return error.response is not None and error.response.status_code >= 500
    home = type(error).__module__.partition(".")[0]
    return isinstance(error, OfflineModeIsEnabled | ConnectionError | TimeoutError) or home.startswith(
        ("httpx", "httpcore", "requests", "urllib3")
    )


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"{text[:197]}..."
