"""A bundle is read in place, and whatever is wrong with it is caught by name: nothing is written, run or unpickled."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import socket
import stat
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bundles
import numpy as np
import pytest
import synthetic

from rpbench.bundle import (
    Bundle,
    file_faults,
    line_evidence,
    open_bundle,
    read_manifest,
    store_evidence,
    write_folder,
    write_zip,
)
from rpbench.errors import BundleError
from rpbench.untrusted import arrays, strict_json

CELL = next(name for name in bundles.files() if name.endswith("record.json")).removesuffix("/record.json")
RECORD, TEST = f"{CELL}/record.json", f"{CELL}/outputs/selected/test.npz"
MEMORY = 64 * 2**20


class Payload:
    """What runs while it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("unpickled",)


def tree(root: Path) -> dict[str, tuple[int, int]]:
    return {str(p.relative_to(root)): (p.lstat().st_mode, p.lstat().st_mtime_ns) for p in sorted(root.rglob("*"))}


def read_all(path: Path) -> Bundle:
    """Open a bundle and read everything in it."""
    bundle = open_bundle(path)
    for cell in bundle.cells:
        for load in cell.outputs.values():
            load()
        if cell.masks:
            cell.masks()
    return bundle


@pytest.fixture
def caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], BundleError]:
    """Read a hostile bundle: the error, once it is sure that nothing was written and that memory was bounded."""
    here = tmp_path / "cwd"
    here.mkdir()
    monkeypatch.chdir(here)

    def read(path: Path) -> BundleError:
        before = tree(tmp_path)
        tracemalloc.start()
        try:
            with pytest.raises(BundleError) as caught:
                read_all(path)
            assert tracemalloc.get_traced_memory()[1] < MEMORY
        finally:
            tracemalloc.stop()
        assert tree(tmp_path) == before
        assert len(str(caught.value).splitlines()) == 1
        assert str(caught.value).isprintable()
        return caught.value

    return read


Caught = Callable[[Path], BundleError]


def test_folder_and_zip_hold_the_same(tmp_path: Path) -> None:
    parts = bundles.whole()
    for place in (bundles.folder(tmp_path / "b", parts), bundles.zipped(tmp_path / "b.zip", parts)):
        bundle = open_bundle(place)
        assert list(file_faults(bundle)) == []
        assert bundle.manifest == read_manifest(place) == bundles.manifest(bundles.files())
        assert (bundle.source_name, bundle.source) == ("mine.py", bundles.SOURCE)
        assert {name: bundle.contents.read(name) for name in bundle.contents.sizes} == parts
        first = bundle.cells[0]
        assert first.text.encode() == parts[f"cells/{first.run_id}/record.json"]
        assert first.curve is not None
        assert set(first.outputs) == {"selected/test", "last/test"}
        found = first.outputs["selected/test"]()
        assert found["labels"].tolist() == list(range(7))
        assert (found["logits"].shape, found["logits"].dtype) == ((7, 10), np.float32)
        assert first.masks is None


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    parts = bundles.whole()
    again = dict(reversed(parts.items()))
    assert (
        bundles.zipped(tmp_path / "a.zip", parts).read_bytes() == bundles.zipped(tmp_path / "b.zip", again).read_bytes()
    )


# Hostile folders


def add(name: str, data: bytes) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)

    return spoil


def link(name: str, target: str) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        (root / name).unlink(missing_ok=True)
        (root / name).symlink_to(target)

    return spoil


def fifo(root: Path) -> None:
    (root / TEST).unlink()
    os.mkfifo(root / TEST)


def sparse(root: Path) -> None:
    with open(root / TEST, "wb") as file:
        file.truncate(2**40)


def bind_socket(root: Path) -> None:
    (root / RECORD).unlink()
    before = os.getcwd()
    os.chdir((root / RECORD).parent)  # a socket's name is short
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("record.json")
    os.chdir(before)


def two_cases(root: Path) -> None:
    (root / "source" / "Mine.py").write_bytes(b"")


FOLDERS: list[tuple[str, Callable[[Path], None], str, str]] = [
    ("a link to a file", link(RECORD, "/etc/passwd"), "link", "record.json"),
    ("a link to a folder", link("source/there", "/etc"), "link", "source/there"),
    ("a link that leads nowhere", link("README.md", "nowhere"), "link", "README.md"),
    ("a pipe", fifo, "device", "test.npz"),
    ("a socket", bind_socket, "device", "record.json"),
    ("a terabyte", sparse, "size", "1,099,511,627,776 bytes"),
    ("another file", add("setup.py", b""), "grammar", "'setup.py' has no place"),
    ("another folder", lambda root: (root / "empty").mkdir(), "grammar", "'empty'"),
    ("a hidden file", add(".gitattributes", b""), "grammar", "'.gitattributes'"),
    ("a file beside the outputs", add(f"{CELL}/outputs/test.npz", b""), "grammar", "test.npz"),
    ("a name that paints", add("source/\x1b[2J.py", b""), "grammar", r"source/\x1b[2J.py"),
    ("a name that no terminal has", add("source/\udcff.py", b""), "grammar", "udcff"),
    ("names that differ in case", two_cases, "duplicate", "differ only in case"),
    ("two sources", add("source/other.py", b""), "grammar", "one source file"),
    ("a large record", add(RECORD, b" " * (2**18 + 1)), "size", "262,145 bytes: at most 262,144 are read"),
    ("a large source", add("source/mine.py", b"#" * 100_001), "size", "100,001 bytes"),
    ("no manifest", lambda root: (root / "bundle.json").unlink(), "missing", "no bundle.json"),
    ("no record", lambda root: (root / RECORD).unlink(), "missing", "has no record.json"),
    ("deep JSON", add(RECORD, b"[" * 100_000), "json", "nested too deeply"),
    ("JSON of 33 levels", add(RECORD, b"[" * 33 + b"1" + b"]" * 33), "json", "nested too deeply"),
    ("NaN", add(RECORD, b'{"a": NaN}'), "json", "NaN is no number"),
    ("beyond a float", add(RECORD, b'{"a": 1e999}'), "json", "beyond what a float can hold"),
    ("a doubled key", add(RECORD, b'{"a": 1, "a": 2}'), "json", "key 'a' stands there twice"),
    ("an endless number", add(RECORD, b'{"a": ' + b"9" * 10_000 + b"}"), "json", "record.json"),
    ("a curve that is none", add(f"{CELL}/curve.jsonl", b'{"epoch": 1}\n{"epoch": Infinity}\n'), "json", "Infinity"),
    ("no UTF-8", add(RECORD, b'{"a": "\xff"}'), "text", "byte 7"),
    ("another format", add("bundle.json", b'{"format": "rpbench.bundle/2"}'), "json", "'rpbench.bundle/1' is read"),
    ("a manifest that is a list", add("bundle.json", b"[]"), "json", "format is 'None'"),
    ("a manifest with more", add("bundle.json", b'{"format": "rpbench.bundle/1", "x": 1}'), "json", "bundle.json"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "fault", "says"), [f[1:] for f in FOLDERS], ids=[f[0] for f in FOLDERS])
def test_hostile_folders(spoil: Callable[[Path], None], fault: str, says: str, tmp_path: Path, caught: Caught) -> None:
    spoil(bundles.folder(tmp_path / "b"))
    error = caught(tmp_path / "b")
    assert (error.fault, says in str(error)) == (fault, True), str(error)


def test_manifest_that_lists_paths_outside(tmp_path: Path, caught: Caught) -> None:
    told = json.loads(bundles.whole()["bundle.json"])
    told["files"]["../../etc/passwd"] = {"sha256": "0" * 64, "bytes": 0}
    root = bundles.folder(tmp_path / "b")
    (root / "bundle.json").write_text(json.dumps(told))
    assert caught(root).fault == "path"


NUMBERS: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (
        lambda m: [file.update(bytes=10**4299) for file in list(m["files"].values())[:2]],
        "less than 9223372036854775808",
    ),
    (lambda m: m.update(bytes=2**63), "'bytes': input should be less than"),
    (lambda m: m["board"].update(version=10**4299), "'board.version': input should be less than"),
]


@pytest.mark.parametrize(("change", "says"), NUMBERS)
def test_numbers_of_a_manifest_that_no_sum_can_hold(
    change: Callable[[dict[str, Any]], Any], says: str, tmp_path: Path, caught: Caught
) -> None:
    told = json.loads(bundles.whole()["bundle.json"])
    change(told)
    root = bundles.folder(tmp_path / "b")
    (root / "bundle.json").write_text(json.dumps(told))
    error = caught(root)
    assert (error.fault, says in str(error)) == ("json", True), str(error)


def test_a_manifest_of_very_many_faults(tmp_path: Path, caught: Caught, monkeypatch: pytest.MonkeyPatch) -> None:
    root = bundles.folder(tmp_path / "b")
    told = json.loads((root / "bundle.json").read_text())
    (root / "bundle.json").write_text(json.dumps(told | {"files": {str(i): 0 for i in range(40_001)}}))
    error = caught(root)
    assert (error.fault, str(error)) == ("size", "bundle.json lists more than 40,000 files")
    monkeypatch.setattr("rpbench.bundle.VALUES", 1000)
    (root / "bundle.json").write_text(json.dumps(told | {str(i): 0 for i in range(1000)}))
    assert "has more than the 1,000 values" in str(caught(root))


def test_a_key_that_stands_twice_among_very_many() -> None:
    many = ",".join(f'"{i}":0' for i in range(200_000))
    with pytest.raises(BundleError, match="key '199999' stands there twice"):  # in a blink, not in an hour
        strict_json(f'{{{many},"199999":0}}', "x")


def test_too_many_files(tmp_path: Path, caught: Caught, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rpbench.bundle.FILES", 5)
    assert "more than 5 files" in str(caught(bundles.folder(tmp_path / "b")))
    assert "more than 5 files" in str(caught(bundles.zipped(tmp_path / "b.zip")))


def test_too_much_in_all(tmp_path: Path, caught: Caught, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rpbench.bundle.TOTAL", 500)
    assert caught(bundles.folder(tmp_path / "b")).fault == "size"
    assert caught(bundles.zipped(tmp_path / "b.zip")).fault == "size"


def test_what_becomes_a_link_is_not_followed(tmp_path: Path) -> None:
    root = bundles.folder(tmp_path / "b")
    bundle = open_bundle(root)
    (root / TEST).unlink()
    (root / TEST).symlink_to("/dev/zero")
    with pytest.raises(BundleError, match="cannot be read"):
        bundle.cells[0].outputs["selected/test"]()


# Hostile zips


def member(name: str, data: bytes = b"", **changes: Any) -> Callable[[Path], None]:
    """Append a file to a zip, under any name and with any of its attributes."""

    def spoil(path: Path) -> None:
        info = zipfile.ZipInfo("placeholder")
        info.filename = info.orig_filename = name
        info.external_attr = changes.pop("mode", stat.S_IFREG | 0o644) << 16
        for key, value in changes.items():
            setattr(info, key, value)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(info, data, compresslevel=1)

    return spoil


def central(path: Path, name: str) -> int:
    """Where the table of contents has an entry."""
    data, at = path.read_bytes(), -1
    while True:
        at = data.index(b"PK\x01\x02", at + 1)
        if data[at + 46 :].startswith(name.encode()):
            return at


def patched(name: str, offset: int, form: str, value: int) -> Callable[[Path], None]:
    """Change a field of an entry: 8 flags, 10 method, 16 crc, 20 packed, 24 size, 38 attributes, 42 place."""

    def spoil(path: Path) -> None:
        data = bytearray(path.read_bytes())
        struct.pack_into(form, data, central(path, name) + offset, value)
        path.write_bytes(data)

    return spoil


def damaged(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b"# mine")] ^= 1
    data[data.index(b'"run_id"') + 2] ^= 1
    path.write_bytes(data)


def overlap(path: Path) -> None:
    """Two names for the same bytes: how a small zip has a large content."""
    other = path.read_bytes()[central(path, RECORD) + 42 :][:4]
    patched(f"{CELL}/curve.jsonl", 42, "<I", int.from_bytes(other, "little"))(path)


def doubled(path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        member("README.md", b"another")(path)


def bomb(path: Path) -> None:
    member(f"{CELL}/outputs/selected/photos.npz", b"\0" * 2**26, compress_type=zipfile.ZIP_DEFLATED)(path)


def lying(path: Path) -> None:
    """A file that says 100 bytes and unpacks to 64 MiB."""
    name = f"{CELL}/outputs/selected/photos.npz"
    member(name, b"\0" * 2**26, compress_type=zipfile.ZIP_DEFLATED)(path)
    patched(name, 24, "<I", 100)(path)


def short(path: Path) -> None:
    """A file that says 64 MiB and unpacks to 70 KB, too little for a bomb."""
    name = f"{CELL}/outputs/selected/photos.npz"
    member(name, os.urandom(2**20), compress_type=zipfile.ZIP_DEFLATED)(path)
    patched(name, 24, "<I", 2**26)(path)


def crowded(path: Path) -> None:
    """A table of contents that alone would fill the memory."""
    entry = b"PK\x01\x02" + bytes(24) + struct.pack("<H", 1) + bytes(16) + b"x"
    table = entry * (17 * 2**20 // len(entry))
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, len(table), 0, 0)
    path.write_bytes(table + end)


LINKED = {"mode": stat.S_IFLNK | 0o777}
ZIPS: list[tuple[str, Callable[[Path], None], str, str]] = [
    ("a way out", member("../evil.py", b"x"), "path", "'../evil.py' leads out of the bundle"),
    ("a way out inside", member("cells/../../evil.py", b"x"), "path", "leads out of the bundle"),
    ("an absolute path", member("/tmp/evil.py", b"x"), "path", "'/tmp/evil.py'"),
    ("a backslash", member("..\\evil.py", b"x"), "path", "evil.py"),
    ("a drive", member("C:evil.py", b"x"), "path", "'C:evil.py'"),
    ("a NUL", member("source/a.py\0.txt", b"x"), "path", "NUL"),
    ("a link", member("source/evil.py", b"/etc/passwd", **LINKED), "link", "'source/evil.py' is a link"),
    ("a link of Windows", patched("README.md", 38, "<I", 0x400), "link", "README.md"),
    ("a device", member("source/evil.py", b"", mode=stat.S_IFCHR), "device", "'source/evil.py'"),
    ("two of one name", doubled, "duplicate", "'README.md' is there twice"),
    ("names that differ in case", member("readme.md", b"x"), "grammar", "'readme.md'"),
    ("a zip in a zip", member("cells/more.zip", b"PK"), "grammar", "'cells/more.zip'"),
    ("a folder with content", member("source/", b"x"), "size", "folder with content"),
    ("encrypted", patched(RECORD, 8, "<H", 1), "encrypted", "record.json"),
    ("another compression", member("source/x.py", b"x" * 99, compress_type=zipfile.ZIP_LZMA), "compression", "14"),
    ("a bomb", bomb, "bomb", "would grow from"),
    ("a lie: more inside", lying, "size", "100 bytes"),
    ("a lie: less inside", short, "size", "67,108,864 bytes"),
    ("a lie: beyond the end", patched(TEST, 20, "<I", 2**31), "size", "test.npz"),
    ("a size above any bound", patched(RECORD, 24, "<I", 2**31), "bomb", "record.json"),
    ("overlapping files", overlap, "overlap", "overlaps"),
    ("damaged", damaged, "crc", "checksum"),
    ("another checksum", patched(RECORD, 16, "<I", 1), "crc", "record.json"),
    ("a place outside", patched(RECORD, 42, "<I", 2**31), "archive", "record.json"),
    ("cut off", lambda path: path.write_bytes(path.read_bytes()[:-100]), "archive", "no zip"),
    ("a crowd of names", crowded, "bomb", "table of contents"),
    ("text", lambda path: path.write_bytes(b"hello"), "archive", "no zip"),
    ("nothing", lambda path: path.write_bytes(b""), "archive", "no zip"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "fault", "says"), [z[1:] for z in ZIPS], ids=[z[0] for z in ZIPS])
def test_hostile_zips(spoil: Callable[[Path], None], fault: str, says: str, tmp_path: Path, caught: Caught) -> None:
    spoil(bundles.zipped(tmp_path / "b.zip"))
    error = caught(tmp_path / "b.zip")
    assert (error.fault, says in str(error)) == (fault, True), str(error)


def test_other_archives_are_named(tmp_path: Path, caught: Caught) -> None:
    root = bundles.folder(tmp_path / "b")
    for mode, word in (("w", "tar"), ("w:gz", "gzip"), ("w:xz", "xz"), ("w:bz2", "bzip2")):
        path = tmp_path / "b.zip"
        with tarfile.open(path, mode) as archive:
            archive.add(root, "b")
        assert f"is a {word} file: a bundle is a folder or a .zip" in str(caught(path))
    (tmp_path / "b.7z").write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(100))
    assert "7z" in str(caught(tmp_path / "b.7z"))
    assert caught(tmp_path / "nowhere").fault == "missing"
    assert caught(Path("/dev/zero")).fault == "device"


def test_comments_and_what_stands_before_a_zip_are_passed_over(tmp_path: Path) -> None:
    place = bundles.zipped(tmp_path / "b.zip")
    with zipfile.ZipFile(place, "a") as archive:
        archive.comment = b"hello"
    place.write_bytes(b"#!/bin/sh\n" + place.read_bytes())
    assert len(read_all(place).cells) == 2


def test_a_zip_made_by_others(tmp_path: Path) -> None:
    """With folders as members, and compressed."""
    root, place = bundles.folder(tmp_path / "b"), tmp_path / "other.zip"
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(root.rglob("*")):
            archive.write(path, path.relative_to(root).as_posix())
    assert list(file_faults(read_all(place))) == []


def test_random_damage_is_always_a_bundle_error(tmp_path: Path) -> None:
    data = bundles.zipped(tmp_path / "b.zip").read_bytes()
    draw = random.Random(0)
    for _ in range(400):
        spoilt = bytearray(data)
        for _ in range(draw.randint(1, 8)):
            spoilt[draw.randrange(len(data))] = draw.randrange(256)
        if draw.random() < 0.2:
            del spoilt[draw.randrange(len(data)) :]
        (tmp_path / "b.zip").write_bytes(spoilt)
        try:
            list(file_faults(read_all(tmp_path / "b.zip")))
        except BundleError:
            continue


# Hostile arrays


def array_zip(name: str, header: str, body: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """An .npz of one array whose header says whatever it wants."""
    text = header.encode()
    wide = struct.pack("<H" if version[0] == 1 else "<I", len(text))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"{name}.npy", b"\x93NUMPY" + version + wide + text + body)
    return buffer.getvalue()


def says(descr: str, shape: str) -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n"


def pickled() -> bytes:
    return bundles.npz(labels=np.array([Payload()], dtype=object))


def grown() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labels.npy", b"\0" * 1000)
    data = bytearray(buffer.getvalue())
    struct.pack_into("<I", data, data.index(b"PK\x01\x02") + 24, 2**29)
    return bytes(data)


ARRAYS: list[tuple[str, Callable[[], bytes], str, str]] = [
    ("a pickle", pickled, "pickle", "array 'labels' is a pickle"),
    ("a pickle that calls itself numbers", lambda: array_zip("labels", says("'<i8'", "(3,)"), pickle.dumps(Payload())),
     "size", "24 bytes"),
    ("a pickle alone", lambda: pickle.dumps(Payload()), "archive", "no zip"),
    ("a shape that fills the memory", lambda: array_zip("logits", says("'<f4'", "(1000000000, 1000)"), b"\0" * 40),
     "size", "4,000,000,000,000 bytes"),
    ("a shape beyond numbers", lambda: array_zip("logits", says("'<f4'", f"({'9' * 50},)")), "npz", "shape"),
    ("a negative shape", lambda: array_zip("logits", says("'<f4'", "(-1, -1)"), b"\0" * 4), "npz", "plain numbers"),
    ("a header to be evaluated", lambda: array_zip("logits", says("'<f4'", "(1,), 'x': __import__('os')")), "npz", ""),
    ("a header of brackets", lambda: array_zip("logits", "(" * 60_000), "npz", "plain numbers"),
    ("a header that is none", lambda: array_zip("logits", "{", b"", b"\x02\x00"), "npz", "plain numbers"),
    ("fields", lambda: bundles.npz(labels=np.zeros(3, dtype=[("a", "<i4"), ("b", "<f8")])), "npz", "plain numbers"),
    ("fields with a pickle", lambda: array_zip("labels", says("[('a', '|O')]", "(1,)"), b"x"), "npz", "plain numbers"),
    ("text", lambda: bundles.npz(labels=np.array(["a", "b"])), "npz", "plain numbers"),
    ("complex numbers", lambda: bundles.npz(logits=np.zeros(3, dtype=complex)), "npz", "plain numbers"),
    ("dates", lambda: bundles.npz(labels=np.zeros(3, dtype="datetime64[s]")), "npz", "plain numbers"),
    ("three dimensions", lambda: bundles.npz(logits=np.zeros((1, 2, 3))), "npz", "two dimensions"),
    ("an unknown array", lambda: bundles.npz(weights=np.zeros(3)), "npz", "has an array 'weights'"),
    ("another file", lambda: array_zip("a/../../labels", says("'<i8'", "(0,)")), "npz", "is no array"),
    ("much that is little", grown, "size", "more than 268,435,456 bytes"),
    ("no numpy", lambda: bundles.outputs()[:40] + bytes(60), "archive", "no zip"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "fault", "said"), [a[1:] for a in ARRAYS], ids=[a[0] for a in ARRAYS])
def test_hostile_arrays(make: Callable[[], bytes], fault: str, said: str, tmp_path: Path, caught: Caught) -> None:
    error = caught(bundles.zipped(tmp_path / "b.zip", bundles.whole() | {TEST: make()}))
    assert (error.fault, said in str(error)) == (fault, True), str(error)
    assert not Path("unpickled").exists()


def test_random_headers_are_always_a_bundle_error() -> None:
    draw, header = random.Random(0), says("'<f4'", "(3, 2)")
    read = 0
    for _ in range(2000):
        spoilt = list(header)
        for _ in range(draw.randint(0, 3)):
            spoilt[draw.randrange(len(header))] = draw.choice("0123456789()'<>|fiubO, {}[]x_\n")
        try:
            found = arrays(array_zip("logits", "".join(spoilt), bytes(24)), "x.npz", 10**6)
        except BundleError:
            continue
        assert found["logits"].nbytes == 24
        read += 1
    assert read > 300


def test_every_kind_of_array_that_runs_write(tmp_path: Path) -> None:
    kinds: dict[str, Any] = {
        "labels": np.arange(5), "prediction": np.arange(5), "confidence": np.linspace(0, 1, 5, dtype=np.float32),
        "energy": np.linspace(0, 1, 5), "loss": np.zeros(5), "rank": np.ones(5, dtype=np.int32), "brier": np.zeros(5),
        "logits": np.asfortranarray(np.arange(10.0).reshape(5, 2)),
    }  # fmt: skip
    nothing = {name: values[:0] for name, values in kinds.items()}
    bits = {"conv.weight": np.packbits(np.ones(20, dtype=bool), bitorder="little")}
    parts = bundles.whole() | {TEST: bundles.npz(**kinds), f"{CELL}/masks.npz": bundles.npz(**bits)}
    cell = open_bundle(bundles.folder(tmp_path / "b", parts)).cells[0]
    found = cell.outputs["selected/test"]()
    assert all(found[name].dtype == kinds[name].dtype and (found[name] == kinds[name]).all() for name in kinds)
    assert all(values.size == 0 for values in arrays(bundles.npz(**nothing), "x", 10**6).values())
    assert cell.masks is not None
    assert cell.masks()["conv.weight"].tolist() == [255, 255, 15]
    wrong = bundles.whole() | {f"{CELL}/masks.npz": bundles.npz(a=np.zeros(3))}
    with pytest.raises(BundleError, match="bits are uint8"):
        read_all(bundles.folder(tmp_path / "c", wrong))


# What does not agree with bundle.json


@pytest.mark.parametrize("form", ["folder", "zipped"])
def test_files_that_are_not_the_listed_ones(form: str, tmp_path: Path) -> None:
    parts = bundles.whole()
    spoilt = parts | {"README.md": b"# Mine\n", TEST: parts[TEST] + b"x"}
    spoilt[f"{CELL}/outputs/selected/noise.npz"] = b"?"
    del spoilt[f"{CELL}/curve.jsonl"]
    bundle = open_bundle(getattr(bundles, form)(tmp_path / "b.zip", spoilt))
    told = {fault.place: fault.why for fault in file_faults(bundle)}
    assert told["README.md"].startswith("is not the file that bundle.json lists")
    assert told[f"{CELL}/curve.jsonl"] == "is missing: bundle.json lists it"
    assert told[f"{CELL}/outputs/selected/noise.npz"] == "is not listed in bundle.json"
    assert "bytes: bundle.json says" in told[TEST]
    assert len(told) == 4
    lying = open_bundle(bundles.folder(tmp_path / "c", bundles.whole(bytes=1)))
    assert [fault.place for fault in file_faults(lying)] == ["bundle.json"]


# Writing


def test_a_folder_is_gone_on_with(tmp_path: Path) -> None:
    parts, place = bundles.whole(), tmp_path / "b"
    partial = tmp_path / ".b.partial"
    some = dict(list(parts.items())[:4])
    write_folder(partial, some)
    (partial / f"{CELL}/.record.json.abc.tmp").write_bytes(b"half")
    assert write_folder(place, parts) == len(parts) - 4
    assert not partial.exists()
    assert write_folder(place, parts) == 0
    more = bundles.whole(cells=3)
    assert write_folder(place, more) == 5  # four files of another cell, and bundle.json
    assert write_folder(place, parts) == 1
    assert list(file_faults(open_bundle(place))) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b"]


def test_what_is_no_bundle_is_not_touched(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("years")
    (home / ".thesis.tmp").write_text("days")
    before = tree(tmp_path)
    with pytest.raises(BundleError, match=r"holds something else: 'thesis.tex'") as caught:
        write_folder(home, bundles.whole())
    assert caught.value.fault == "foreign"
    assert tree(tmp_path) == before


def test_a_zip_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    place = bundles.zipped(tmp_path / "b.zip")
    before = place.read_bytes()
    with pytest.raises(FileNotFoundError):
        write_zip(place, bundles.whole() | {"README.md": tmp_path / "nowhere"})
    assert place.read_bytes() == before
    (tmp_path / ".b.zip.x.tmp").write_bytes(b"half")
    write_zip(place, bundles.whole())
    assert place.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["b.zip"]


# Evidence from elsewhere


def test_evidence_of_a_store_and_of_published_lines(tmp_path: Path) -> None:
    plan = synthetic.plan()
    content = synthetic.record(plan, plan.cells[1], 0.9)
    path = synthetic.write(tmp_path, content)
    (path.parent / "outputs" / "selected").mkdir(parents=True)
    (path.parent / "outputs" / "selected" / "test.npz").write_bytes(bundles.outputs())
    (path.parent / "outputs" / "selected" / "notes.txt").write_text("not read")
    (found,) = store_evidence(tmp_path, [content["run_id"]])
    assert json.loads(found.text) == content
    assert (found.curve, found.masks) == (None, None)
    assert found.outputs["selected/test"]()["labels"].shape == (7,)
    with pytest.raises(BundleError, match="has no record.json"):
        store_evidence(tmp_path, ["nothing"])
    lines = tmp_path / "erk.jsonl"
    lines.write_text(json.dumps({"row": "erk", "record": path.read_text()}) + "\n")
    (line,) = line_evidence(lines)
    assert json.loads(line.text) == content
    assert (line.curve, dict(line.outputs), line.masks) == (None, {}, None)


def test_masks_of_a_store(tmp_path: Path) -> None:
    import torch

    from rpbench.masks import save

    plan = synthetic.plan()
    content = synthetic.record(plan, plan.cells[1], 0.9)
    folder = synthetic.write(tmp_path, content).parent
    mask = torch.rand(5, 7) < 0.5
    save({"fc.weight": mask}, folder / "masks.safetensors")
    (found,) = store_evidence(tmp_path, [content["run_id"]])
    assert found.masks is not None
    bits = found.masks()["fc.weight"]
    assert (np.unpackbits(bits, bitorder="little")[:35].reshape(5, 7) == mask.numpy()).all()


def test_strict_json() -> None:
    assert strict_json('{"a": [1, 2.5, null, "x"]}', "x") == {"a": [1, 2.5, None, "x"]}
    for wrong in ("", "{", "{'a': 1}", '{"a": -Infinity}', "[1,]", "\ufeff{}"):
        with pytest.raises(BundleError):
            strict_json(wrong, "x")
