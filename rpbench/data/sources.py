"""Where an image set lies on this machine: a folder that the user names, the hub's cache, or a package."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rpbench.errors import DataError, MissingData, UsageError
from rpbench.task import ImageSet

Layout = Literal["parquet", "images", "pickles", "embedded", "generated"]
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".gif", ".tif", ".tiff"}
SPLIT_WORDS = {"train": ("train", "training"), "validation": ("validation", "val", "valid"), "test": ("test",)}


@dataclass(frozen=True)
class Roots:
    """Where the user's images are: folders with one sub-folder per set, and folders of single sets."""

    folders: tuple[Path, ...] = ()
    named: tuple[tuple[str, Path], ...] = ()

    @classmethod
    def read(cls, given: Iterable[str]) -> Roots:
        """From --data values (DIR or NAME=DIR) and RPBENCH_DATA (folders separated like PATH)."""
        folders: list[Path] = []
        named: list[tuple[str, Path]] = []
        for value in given:
            name, equals, folder = ("", "", value) if Path(value).expanduser().is_dir() else value.partition("=")
            path = Path(folder if equals else value).expanduser()
            if not path.is_dir():
                raise UsageError(f"--data {value}: there is no folder '{path}'")
            if equals:
                named.append((name, path))
            else:
                folders.append(path)
        for value in os.environ.get("RPBENCH_DATA", "").split(os.pathsep):
            if value:
                folders.append(Path(value).expanduser())
        return cls(tuple(folders), tuple(named))


@dataclass(frozen=True)
class Located:
    """One split of a set on this machine: its layout, folder and files; `origin` says it in words for the record."""

    image_set: ImageSet
    split: str
    layout: Layout
    folder: Path | None
    files: tuple[Path, ...]
    origin: str

    @property
    def declared(self) -> int | None:
        found = self.image_set.splits.get(self.split)
        return found.n if found else None


def locate(image_set: ImageSet, split: str, roots: Roots) -> Located:
    """Where `split` of a set is. Never touches the network.

    Raises MissingData naming the set, the places looked at and the command that gets it.
    """
    if image_set.source == "generated":
        return Located(image_set, split, "generated", None, (), "generated")
    if split not in image_set.splits:
        raise UsageError(f"image set '{image_set.name}' has no split '{split}': it has {', '.join(image_set.splits)}")
    if image_set.source == "embedded":
        return Located(image_set, split, "embedded", None, (), "inside scikit-learn")
    looked: list[str] = []
    for folder, origin in _candidates(image_set, roots):
        looked.append(str(folder))
        if folder.is_dir() and (found := _look_into(image_set, split, folder, origin)):
            return found
    cached = hub_cache(image_set)
    if cached and (found := _look_into(image_set, split, cached, f"hub {image_set.repo}@{image_set.revision[:12]}")):
        _check_whole(found)
        return found
    if image_set.repo:
        looked.append(f"the hub's cache ({image_set.repo}@{image_set.revision[:7]})")
        remedy = f"get it with: rpbench data prepare {image_set.name}"
    else:
        remedy = f"put its folder there (from {image_set.url})"
    places = "; ".join(looked) or "no folder (none was given by --data DIR or RPBENCH_DATA)"
    raise MissingData(
        f"image set '{image_set.name}' ({split}) is not on this machine; looked in {places}; "
        f"{remedy}, or point to a folder with --data {image_set.name}=DIR"
    )


def hub_cache(image_set: ImageSet) -> Path | None:
    """The pinned snapshot in the hub's cache, without asking the network; None where it is not there."""
    if not image_set.repo:
        return None
    from huggingface_hub import snapshot_download

    with contextlib.suppress(Exception):  # every way of not being cached is the same here
        return Path(
            snapshot_download(image_set.repo, repo_type="dataset", revision=image_set.revision, local_files_only=True)
        )
    return None


def download(image_set: ImageSet) -> Path:
    """Fetch the pinned snapshot with progress; DataError where the hub cannot be reached or refuses."""
    if not image_set.repo:
        raise DataError(f"image set '{image_set.name}' is not on the hub: get it from {image_set.url}")
    from huggingface_hub import snapshot_download

    wanted = sorted({word for split in image_set.splits for word in SPLIT_WORDS.get(split, (split,))})
    patterns = [f"*{word}*.parquet" for word in wanted]
    if image_set.folder:
        patterns = [f"{image_set.folder}/{pattern}" for pattern in patterns]
    try:
        return Path(
            snapshot_download(
                image_set.repo, repo_type="dataset", revision=image_set.revision, allow_patterns=[*patterns, "*.md"]
            )
        )
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"image set '{image_set.name}' could not be fetched from {image_set.repo}: {reason}") from error


def cache_folder() -> Path:
    """Where decoded images are kept: RPBENCH_CACHE, else rpbench under the user's cache folder."""
    if given := os.environ.get("RPBENCH_CACHE"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "rpbench"


def _candidates(image_set: ImageSet, roots: Roots) -> Iterable[tuple[Path, str]]:
    for name, folder in roots.named:
        if name == image_set.name:
            yield folder, f"folder {folder.name}"
    for root in roots.folders:
        for name in (image_set.name, *image_set.aliases):
            yield root / name, f"folder {name}"


def _look_into(image_set: ImageSet, split: str, folder: Path, origin: str) -> Located | None:
    inner = folder / image_set.folder if image_set.folder and (folder / image_set.folder).is_dir() else folder
    words = SPLIT_WORDS.get(split, (split,))
    for pickles in (folder, *(folder / alias for alias in image_set.aliases)):
        if (pickles / "batches.meta").is_file() or ((pickles / "meta").is_file() and (pickles / "train").is_file()):
            return Located(image_set, split, "pickles", pickles, (), f"{origin} (python pickles)")
    for word in words:
        if (inner / word).is_dir() and _holds_images(inner / word):
            return Located(image_set, split, "images", inner / word, (), f"{origin} (image folder)")
    # after the image folders: looking for parquet walks through everything, a million images too
    if files := _parquet(inner, words):
        return Located(image_set, split, "parquet", inner, files, f"{origin} (parquet)")
    if len(image_set.splits) == 1 and _holds_images(inner):
        return Located(image_set, split, "images", inner, (), f"{origin} (image folder)")
    return None


def _parquet(folder: Path, words: tuple[str, ...]) -> tuple[Path, ...]:
    """Parquet files of a split: named after it, or in a folder of its name."""
    known = {word for some in SPLIT_WORDS.values() for word in some}
    found = []
    for path in sorted(folder.rglob("*.parquet")):
        word = path.name.split("-")[0].removesuffix(".parquet")
        if word not in known and path.parent != folder:
            word = path.parent.name
        if word in words:
            found.append(path)
    return tuple(found)


def _check_whole(located: Located) -> None:
    """MissingData where files of a download are missing: they count themselves (train-00003-of-00294.parquet)."""
    counts = [int(n[1]) for path in located.files if (n := re.search(r"-of-(\d+)\.parquet$", path.name))]
    if counts and len(located.files) < max(counts):
        name = located.image_set.name
        raise MissingData(
            f"the hub's cache holds {len(located.files)} of {max(counts)} files of image set '{name}' "
            f"({located.split}): finish the download with: rpbench data prepare {name}"
        )


def _holds_images(folder: Path) -> bool:
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and any(f.suffix.lower() in IMAGE_SUFFIXES for f in entry.iterdir()):
            return True
        if entry.suffix.lower() in IMAGE_SUFFIXES:
            return True
    return False
