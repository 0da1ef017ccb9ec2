"""Bundles: a submission as files that anybody can check. A folder, or a .zip with the same paths; nothing else is read.

bundle.json                              what it is, and size and hash of every other file
README.md                                the same for people
source/NAME.py                           a scheme or sampler of one's own
cells/RUN_ID/record.json, curve.jsonl    as the store has them, byte for byte
cells/RUN_ID/outputs/EPOCH/SET.npz       what every metric was computed from, per example; EPOCH: selected, last
cells/RUN_ID/masks.npz                   bits of the masks, where they do not follow from counts and seed

A bundle may come from a stranger: it is read in place, never unpacked, never run; every path must be one of the above.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rpbench.entries import LARGEST, RUN_ID, Fault, record_texts
from rpbench.errors import BundleError
from rpbench.untrusted import Member, arrays, check_keys, members, shown, strict_json, text_of, unpacked

if TYPE_CHECKING:
    import numpy as np

Arrays = dict[str, "np.ndarray[Any, Any]"]
Load = Callable[[], Arrays]

FORMAT = "rpbench.bundle/1"
MANIFEST, README = "bundle.json", "README.md"
ARRAYS = frozenset({"labels", "logits", "prediction", "confidence", "energy", "loss", "rank", "brier"})
OUTPUT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
SOURCE = 100_000  # bytes of a source file
RECORD = 256 * 2**10  # bytes of a record: the largest nets take 50 KB
NPZ = 256 * 2**20  # bytes of an .npz, and of its arrays
FILES = 40_000
VALUES = 4 * FILES  # in bundle.json: three for each file
TOTAL = 8 * 2**30  # bytes of all files
TEXTS = 256 * 2**20  # bytes of all records and curves, which are held in memory


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


Line = Annotated[str, Field(min_length=1, max_length=200)]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Whole = Annotated[int, Field(ge=0, lt=2**63)]  # sums of larger ones may have more digits than Python writes


class Card(_Part):
    """Who submits what. `source` is the address of the paper or code that the scheme is from, `date` YYYY-MM-DD."""

    name: Line
    version: Line
    author: Line
    email: Annotated[str, Field(max_length=200)] | None = None
    source: Annotated[str, Field(max_length=500)]
    claim: Annotated[str, Field(max_length=1000)]
    licence: Line
    date: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")]


class BoardPart(_Part):
    name: Line
    version: Whole
    hash: Hash = Field(description="rpbench.board.board_hash of its definition")


class Named(_Part):
    name: Line
    args: dict[str, Any] = Field(description="every option with its value")


class File(_Part):
    sha256: Hash
    bytes: Whole


class Manifest(_Part):
    """What bundle.json holds. `row` is the row's label in a table; `bytes` all of `files` together."""

    format: Literal["rpbench.bundle/1"] = "rpbench.bundle/1"
    rpbench: Line
    board: BoardPart
    kind: Literal["scheme", "sampler"]
    row: Line
    scheme: Named
    sampler: Named
    card: Card
    files: dict[str, File]
    bytes: Whole


@dataclass(frozen=True)
class Evidence:
    """What there is of one cell: of a bundle, of a store, or a published line (which has neither curve nor outputs).

    `outputs` load the per-example arrays of a pass ("selected/test" -> {"labels": (n,), "logits": (n, classes)});
    `masks` the bits of every layer's mask as np.packbits makes them, little end first: {layer: uint8 (bytes,)}. Both
    raise BundleError for what cannot be read; nothing is unpickled.
    """

    run_id: str
    text: str
    curve: str | None
    outputs: Mapping[str, Load]
    masks: Load | None


@dataclass(frozen=True)
class Contents:
    """The files in a bundle with their sizes, checked by path and size; `read` gives one of them."""

    sizes: Mapping[str, int]
    read: Callable[[str], bytes]


@dataclass(frozen=True)
class Bundle:
    """A bundle that was opened: safe to read, not yet believed. `source` is the one file under source/."""

    place: Path
    manifest: Manifest
    source: bytes | None
    source_name: str
    cells: tuple[Evidence, ...]
    contents: Contents


def open_bundle(path: Path) -> Bundle:
    """The bundle in a folder or .zip. Reads it in place and writes nothing; BundleError names the fault and the file.

    Records and curves are strict JSON and in memory afterwards; arrays are read when asked for. Whether the files are
    those that bundle.json lists is `file_faults`' business, whether they are true that of `rpbench.verification`.
    """
    contents = _contents(path)
    if MANIFEST not in contents.sizes:
        raise BundleError("missing", f"'{path}' has no {MANIFEST}: it is no bundle")
    manifest = _manifest(contents.read(MANIFEST))
    sources = [name for name in contents.sizes if name.startswith("source/")]
    if len(sources) > 1:
        raise BundleError("grammar", f"{' and '.join(sources)}: a bundle has one source file")
    source = contents.read(sources[0]) if sources else None
    texts = sum(size for name, size in contents.sizes.items() if name.endswith(("/record.json", "/curve.jsonl")))
    if texts > TEXTS:
        raise BundleError("size", f"'{path}': records and curves have {texts:,} bytes: {TEXTS:,} are read")
    cells = tuple(_cell(contents, name, paths) for name, paths in sorted(_by_cell(contents.sizes).items()))
    return Bundle(path, manifest, source, Path(sources[0]).name if sources else "", cells, contents)


def read_manifest(path: Path) -> Manifest:
    """What a bundle says it is, whatever has become of its other files. BundleError where that is not one."""
    contents = _contents(path)
    if MANIFEST not in contents.sizes:
        raise BundleError("missing", f"'{path}' has no {MANIFEST}: it is no bundle")
    return _manifest(contents.read(MANIFEST))


def file_faults(bundle: Bundle) -> Iterator[Fault]:
    """Files that are missing, damaged, or not listed in bundle.json; every file is read once."""
    listed, there = bundle.manifest.files, bundle.contents.sizes
    for name in sorted({*listed, *there} - {MANIFEST}):
        if name not in there:
            yield Fault(name, f"is missing: {MANIFEST} lists it")
        elif name not in listed:
            yield Fault(name, f"is not listed in {MANIFEST}")
        elif there[name] != listed[name].bytes:
            yield Fault(name, f"has {there[name]:,} bytes: {MANIFEST} says {listed[name].bytes:,}")
        else:
            try:
                found = hashlib.sha256(bundle.contents.read(name)).hexdigest()
            except BundleError as error:
                yield Fault(name, str(error))
                continue
            if found != listed[name].sha256:
                yield Fault(name, f"is not the file that {MANIFEST} lists: its sha256 is {found[:12]}...")
    if bundle.manifest.bytes != (total := sum(file.bytes for file in listed.values())):
        yield Fault(MANIFEST, f"says {bundle.manifest.bytes:,} bytes in all, its files have {total:,}")


def store_evidence(store: Path, run_ids: list[str]) -> tuple[Evidence, ...]:
    """What a store holds of these cells; BundleError for a file that cannot be read."""
    return tuple(_cell_of_store(store / name, name) for name in run_ids)


def line_evidence(path: Path) -> tuple[Evidence, ...]:
    """What a file of published lines (or of records) holds: records without curves and outputs."""
    return tuple(Evidence(place, text, None, {}, None) for place, text in record_texts(path))


# Paths: whatever is not one of these is refused. What a file may weigh goes with its path.

_KINDS: tuple[tuple[re.Pattern[str], int], ...] = tuple(
    (re.compile(pattern), most)
    for pattern, most in (
        (r"bundle\.json", 16 * 2**20),
        (r"README\.md", 2**20),
        (r"source/[A-Za-z_][A-Za-z0-9_]{0,79}\.py", SOURCE),
        (rf"cells/{RUN_ID.pattern}/record\.json", RECORD),
        (rf"cells/{RUN_ID.pattern}/curve\.jsonl", LARGEST),
        (rf"cells/{RUN_ID.pattern}/(masks|outputs/(selected|last)/{OUTPUT.pattern})\.npz", NPZ),
    )
)
_FOLDERS = re.compile(rf"source|cells|cells/{RUN_ID.pattern}(/outputs(/(selected|last))?)?")


def allowed(name: str) -> int | None:
    """The most bytes that a file of this path may have in a bundle; None for a path that has no place in one."""
    return next((most for pattern, most in _KINDS if pattern.fullmatch(name)), None)


def _check_path(name: str, folder: bool) -> None:
    if name.startswith("/") or "\\" in name or re.match(r"[A-Za-z]:", name) or ".." in name.split("/"):
        raise BundleError("path", f"{shown(name)} leads out of the bundle")
    if not (_FOLDERS.fullmatch(name) if folder else allowed(name)):
        raise BundleError("grammar", f"{shown(name)} has no place in a bundle: RULES.md lists what has")


def _check_size(name: str, size: int) -> None:
    most = allowed(name) or 0
    if size > most:
        raise BundleError("size", f"{shown(name)} has {size:,} bytes: at most {most:,} are read")


def _check_case(names: list[str]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        parts = name.split("/")
        for i in range(1, len(parts) + 1):
            piece = "/".join(parts[:i])
            if (other := seen.setdefault(piece.casefold(), piece)) != piece:
                raise BundleError("duplicate", f"{shown(other)} and {shown(piece)} differ only in case")


def _check_total(place: Path, sizes: Mapping[str, int]) -> None:
    if len(sizes) > FILES:
        raise BundleError("size", f"'{place}' has more than {FILES:,} files")
    if (total := sum(sizes.values())) > TOTAL:
        raise BundleError("size", f"'{place}' has {total:,} bytes: at most {TOTAL:,} are read")
    _check_case(list(sizes))


def _contents(path: Path) -> Contents:
    try:
        told = path.stat()
    except (OSError, ValueError) as error:
        why = "there is no such file or folder" if isinstance(error, FileNotFoundError) else str(error)
        raise BundleError("missing", f"bundle '{path}': {why}") from None
    if stat.S_ISDIR(told.st_mode):
        return _folder(path)
    if not stat.S_ISREG(told.st_mode):
        raise BundleError("device", f"'{path}' is neither a folder nor a plain file: a folder or a .zip is read")
    return _zip(path)


def _folder(root: Path) -> Contents:
    sizes: dict[str, int] = {}
    for name, told in _walk(root, ""):
        _check_path(name, folder=False)
        _check_size(name, told.st_size)
        sizes[name] = told.st_size
        if len(sizes) > FILES:
            break
    _check_total(root, sizes)
    return Contents(sizes, partial(_read_plain, root))


def _walk(root: Path, inside: str) -> Iterator[tuple[str, os.stat_result]]:
    """Files under a folder with what they are; a link, a device or a folder without a place ends it."""
    try:
        with os.scandir(root / inside) as places:
            found = [(place.name, place.stat(follow_symlinks=False)) for place in places]
    except OSError as error:
        raise BundleError("missing", f"{shown(inside or root)} cannot be read: {error.strerror}") from None
    for name, told in sorted(found):
        path = f"{inside}/{name}" if inside else name
        if stat.S_ISLNK(told.st_mode):
            raise BundleError("link", f"{shown(path)} is a symbolic link: a bundle has plain files only")
        if stat.S_ISDIR(told.st_mode):
            _check_path(path, folder=True)
            yield from _walk(root, path)
        elif stat.S_ISREG(told.st_mode):
            yield path, told
        else:
            raise BundleError("device", f"{shown(path)} is no plain file (a pipe, socket or device)")


def _read_plain(root: Path, name: str) -> bytes:
    """A file of a folder; what has become a link or a device since it was listed is not followed or waited for."""
    most = allowed(name) or 0
    try:
        handle = os.open(root / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise BundleError("device", f"{shown(name)} is no plain file")
            data = file.read(most + 1)
    except OSError as error:
        raise BundleError("missing", f"{shown(name)} cannot be read: {error.strerror}") from None
    _check_size(name, len(data))
    return data


_OTHERS = (
    (0, b"\x1f\x8b", "gzip"), (0, b"BZh", "bzip2"), (0, b"\xfd7zXZ", "xz"), (0, b"7z\xbc\xaf", "7z"),
    (0, b"Rar!", "rar"), (0, b"\x28\xb5\x2f\xfd", "zstd"), (257, b"ustar", "tar"),
)  # fmt: skip


def _zip(path: Path) -> Contents:
    try:
        with open(path, "rb") as file:
            head = file.read(512)
            for at, mark, word in _OTHERS:
                if head[at : at + len(mark)] == mark:
                    raise BundleError("archive", f"'{path}' is a {word} file: a bundle is a folder or a .zip")
            found = members(file, f"'{path}'", TOTAL)
    except OSError as error:
        raise BundleError("missing", f"'{path}' cannot be read: {error.strerror}") from None
    files = {}
    for member in found:
        folder = member.name.endswith("/")
        _check_path(member.name.removesuffix("/"), folder)
        if folder and member.size:
            raise BundleError("size", f"{shown(member.name)} is a folder with content of its own")
        if not folder:
            _check_size(member.name, member.size)
            files[member.name] = member
    sizes = {name: member.size for name, member in files.items()}
    _check_total(path, sizes)
    return Contents(sizes, partial(_read_member, path, files))


def _read_member(path: Path, files: Mapping[str, Member], name: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return unpacked(file, files[name])
    except OSError as error:
        raise BundleError("missing", f"'{path}' cannot be read: {error.strerror}") from None


def _manifest(data: bytes) -> Manifest:
    # pydantic lists every fault with its value: of a million faults, in gigabytes
    value = strict_json(text_of(data, MANIFEST), MANIFEST, most=VALUES)
    told = value.get("format") if isinstance(value, dict) else None
    if told != FORMAT:
        raise BundleError("json", f"{MANIFEST}: format is {shown(told)}: '{FORMAT}' is read")
    if isinstance(value.get("files"), dict) and len(value["files"]) > FILES:
        raise BundleError("size", f"{MANIFEST} lists more than {FILES:,} files")
    try:
        manifest = Manifest.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(p) for p in first["loc"]) or "the file"
        raise BundleError("json", f"{MANIFEST}: {shown(place)}: {str(first['msg']).lower()}") from None
    for name in manifest.files:
        _check_path(name, folder=False)
    _check_case(list(manifest.files))
    return manifest


def _by_cell(sizes: Mapping[str, int]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in sizes:
        if name.startswith("cells/"):
            found.setdefault(name.split("/")[1], []).append(name)
    return found


def _cell(contents: Contents, run_id: str, paths: list[str]) -> Evidence:
    root = f"cells/{run_id}"
    if f"{root}/record.json" not in paths:
        raise BundleError("missing", f"{root} has no record.json")
    text = text_of(contents.read(f"{root}/record.json"), f"{root}/record.json")
    strict_json(text, f"{root}/record.json")
    curve = None
    if f"{root}/curve.jsonl" in paths:
        curve = text_of(contents.read(f"{root}/curve.jsonl"), f"{root}/curve.jsonl")
        for line in curve.splitlines():
            strict_json(line, f"{root}/curve.jsonl")
    outputs = {
        path.removeprefix(f"{root}/outputs/").removesuffix(".npz"): partial(load_outputs, contents.read, path)
        for path in sorted(paths)
        if path.startswith(f"{root}/outputs/")
    }
    masks = partial(load_masks, contents.read, f"{root}/masks.npz") if f"{root}/masks.npz" in paths else None
    return Evidence(run_id, text, curve, outputs, masks)


def load_outputs(read: Callable[[str], bytes], path: str) -> Arrays:
    """The arrays of one pass; BundleError for what is no array of numbers, or none that a run writes."""
    found = arrays(read(path), path, NPZ)
    check_keys(found, ARRAYS, path)
    return found


def load_masks(read: Callable[[str], bytes], path: str) -> Arrays:
    """The bits of every layer's mask, uint8 (bytes,)."""
    found = arrays(read(path), path, NPZ)
    for name, bits in found.items():
        if bits.dtype.str != "|u1" or bits.ndim != 1:
            raise BundleError("npz", f"{shown(path)}: {shown(name)} is {bits.dtype} {bits.shape}: bits are uint8 (n,)")
    return found


def _cell_of_store(folder: Path, run_id: str) -> Evidence:
    """A cell's folder in a store of one's own, which holds more than a bundle's: read by the same rules."""
    root = f"cells/{run_id}"

    def read(path: str) -> bytes:
        return _read_plain_file(folder / path.removeprefix(f"{root}/"), path)

    paths = [f"{root}/{name}" for name in ("record.json", "curve.jsonl") if (folder / name).is_file()]
    for path in sorted(folder.glob("outputs/*/*.npz")):
        name = f"{root}/{path.relative_to(folder).as_posix()}"
        if allowed(name):
            paths.append(name)
    found = _cell(Contents(dict.fromkeys(paths, 0), read), run_id, paths)
    bits = folder / "masks.safetensors"
    return Evidence(
        run_id, found.text, found.curve, found.outputs, partial(packed_masks, bits) if bits.is_file() else None
    )


def _read_plain_file(path: Path, name: str) -> bytes:
    most = allowed(name) or 0
    try:
        with open(path, "rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise BundleError("missing", f"{shown(name)} cannot be read: {error.strerror}") from None
    _check_size(name, len(data))
    return data


def packed_masks(path: Path) -> Arrays:
    """The bits of the masks in a store's masks.safetensors, as `Evidence.masks` has them."""
    import numpy as np
    from safetensors.numpy import load_file

    with contextlib.suppress(OSError, ValueError):
        return {name: np.packbits(mask.ravel(), bitorder="little") for name, mask in load_file(path).items()}
    raise BundleError("npz", f"'{path}' cannot be read")


# Writing


def listed(parts: Mapping[str, bytes | Path]) -> dict[str, File]:
    """Sizes and hashes of files by their path in a bundle, given as bytes or as the file to be copied."""
    found = {}
    for name in sorted(parts):
        data = content(parts[name])
        _check_path(name, folder=False)
        _check_size(name, len(data))
        found[name] = File(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    return found


def content(part: bytes | Path) -> bytes:
    return part if isinstance(part, bytes) else part.read_bytes()


def manifest_text(manifest: Manifest) -> bytes:
    """bundle.json: the same manifest gives the same bytes."""
    import json

    told = manifest.model_dump(mode="json", exclude_none=True)
    return (json.dumps(told, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def write_folder(place: Path, parts: Mapping[str, bytes | Path]) -> int:
    """Make a folder hold these files and no others; how many were written. What is there already is kept.

    A new one appears whole or not at all; what an interrupted one left is gone on with. In an earlier bundle files
    are replaced one by one, bundle.json the last. BundleError "foreign" where something else lies there.
    """
    from rpbench.files import write_bytes

    fresh = not place.exists()
    root = place.with_name(f".{place.name}.partial") if fresh else place
    root.mkdir(parents=True, exist_ok=True)
    there = _own_files(root)
    written = 0
    for name in sorted(parts, key=lambda n: (n == MANIFEST, n)):
        data = content(parts[name])
        if there.get(name) == len(data) and _read_plain(root, name) == data:
            continue
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(root / name, data)
        written += 1
    for name in set(there) - set(parts):
        (root / name).unlink()
        with contextlib.suppress(OSError):  # folders that are empty now
            os.removedirs((root / name).parent)
    if fresh:
        os.rename(root, place)
    return written


def _own_files(root: Path) -> dict[str, int]:
    """Files of a bundle that are in a folder; a BundleError where there is anything else. What an interrupted write
    has left is removed."""
    found, left = {}, []
    try:
        for name, told in _walk(root, ""):
            if re.fullmatch(r"\.[^/]+\.tmp", name.rpartition("/")[2]):
                left.append(root / name)
            else:
                _check_path(name, folder=False)
                found[name] = told.st_size
    except BundleError as error:
        raise BundleError("foreign", f"'{root}' holds something else: {error}") from None
    for path in left:
        path.unlink()
    return found


def write_zip(place: Path, parts: Mapping[str, bytes | Path]) -> None:
    """A .zip of these files, whole or not at all. Equal files give equal bytes: sorted, stored, without dates."""
    import tempfile
    import zipfile

    prefix = f".{place.name}."
    for left in place.parent.iterdir():  # by an interrupted write
        if left.name.startswith(prefix) and left.name.endswith(".tmp"):
            left.unlink()
    handle, temporary = tempfile.mkstemp(dir=place.parent, prefix=prefix, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                for name in sorted(parts):
                    info = zipfile.ZipInfo(name)  # dated 1980
                    info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16
                    archive.writestr(info, content(parts[name]))
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, place)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
