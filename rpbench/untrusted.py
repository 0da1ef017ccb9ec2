"""Reading what a stranger made: JSON, zip members, arrays. Bounded in size before anything is allocated, and nothing
is ever written, run or unpickled. Every fault is a BundleError that names the file in one line.
"""

from __future__ import annotations

import json
import math
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from rpbench.errors import BundleError

if TYPE_CHECKING:
    import numpy as np

DEEPEST = 32  # JSON: a record has 4 levels
SUSPECT = 2**20  # bytes: what is larger must not shrink to a hundredth
RATIO = 100
DIRECTORY = 16 * 2**20  # bytes of a zip's table of contents: 40,000 files take 8 MB
LOCAL_HEADER = 30  # bytes before a member's name
END = b"PK\x05\x06"  # begins the last 22 bytes, but for a comment


def shown(name: object) -> str:
    """A stranger's name as it may be printed: ASCII, quoted, cut at 80 characters."""
    text = ascii(str(name))
    return text if len(text) <= 80 else f"{text[:76]}...'"


def strict_json(text: str, name: str, most: int | None = None) -> Any:
    """A JSON value. BundleError "json" for NaN, infinities, doubled keys, more than 32 levels, or no JSON; "size" for
    more than `most` values in it."""
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant, parse_float=_finite)
    except RecursionError:
        raise BundleError("json", f"{shown(name)}: JSON is nested too deeply: {DEEPEST} levels are read") from None
    except ValueError as error:
        raise BundleError("json", f"{shown(name)}: {' '.join(str(error).split())[:160]}") from None
    level, depth, count = [value], 0, 0
    while level:
        depth, count = depth + 1, count + len(level)
        if most is not None and count > most:
            raise BundleError("size", f"{shown(name)}: has more than the {most:,} values that are read")
        if depth > DEEPEST + 1:
            raise BundleError("json", f"{shown(name)}: JSON is nested too deeply: {DEEPEST} levels are read")
        level = [inner for outer in level for inner in _inside(outer)]
    return value


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"key {shown(key)} stands there twice")
            seen.add(key)
    return found


def _no_constant(word: str) -> float:
    raise ValueError(f"{word} is no number: JSON has none such")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:20]} is beyond what a float can hold")
    return number


def text_of(data: bytes, name: str) -> str:
    """Bytes as text; BundleError "text" where they are not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise BundleError("text", f"{shown(name)}: byte {error.start} is not UTF-8") from None


@dataclass(frozen=True)
class Member:
    """One file in a zip, as its table of contents tells it and as it was checked: where its bytes begin and end."""

    name: str
    size: int
    start: int
    packed: int
    deflated: bool
    crc: int


class _Sparing:
    """A file of which little is read at once: the table of contents of a zip is read whole by zipfile."""

    def __init__(self, file: BinaryIO, most: int, place: str) -> None:
        self._file, self._most, self._place = file, most, place
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(self._most + 1 if size < 0 else min(size, self._most + 1))
        if len(data) > self._most:
            raise BundleError("bomb", f"{self._place}: its table of contents has more than {self._most:,} bytes")
        return data


def members(
    file: BinaryIO, place: str, most: int, directory: int = DIRECTORY, ratio: int | None = RATIO
) -> list[Member]:
    """The files of a zip in the order of its table of contents, folders left out; none of them is read yet.

    `most` bounds the bytes of all files unpacked, `directory` those of the table of contents, `ratio` how far a file
    above 1 MiB may grow. BundleError for what is
    no zip, links and devices, encryption, names that are more than one, sizes that cannot be, members that overlap.
    """
    try:
        archive = zipfile.ZipFile(_Sparing(file, directory, place))
        infos, end = archive.infolist(), file.seek(0, 2)
        file.seek(end - len(END) - len(archive.comment) - 18)
        if file.read(4) != END:  # of a file that was cut off, zipfile may find the end of an .npz in it
            raise zipfile.BadZipFile("it does not end as a zip does")
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, struct.error, ValueError, OSError) as error:
        raise BundleError("archive", f"{place}: is no zip that can be read: {' '.join(str(error).split())}") from None
    if sum(info.file_size for info in infos) > most:
        raise BundleError("size", f"{place}: its files have more than {most:,} bytes in all")
    found: list[Member] = []
    seen: set[str] = set()
    for info in infos:
        if info.orig_filename in seen:
            raise BundleError("duplicate", f"{shown(info.orig_filename)} is there twice")
        seen.add(info.orig_filename)
        found.append(_member(file, info, end, ratio))
    at = 0
    for member, begin in sorted(((m, i.header_offset) for m, i in zip(found, infos, strict=True)), key=lambda p: p[1]):
        if begin < at:
            raise BundleError("overlap", f"{shown(member.name)} overlaps with another file of the zip")
        at = member.start + member.packed
    return found


def _member(file: BinaryIO, info: zipfile.ZipInfo, end: int, ratio: int | None) -> Member:
    name = shown(info.orig_filename)
    if info.orig_filename != info.filename:
        raise BundleError("path", f"{name}: a name with a NUL or a foreign separator is not read")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK or info.external_attr & 0x400:  # 0x400: a reparse point, the links of Windows
        raise BundleError("link", f"{name} is a link: a bundle has plain files only")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise BundleError("device", f"{name} is no plain file")
    if info.flag_bits & 0x2041:
        raise BundleError("encrypted", f"{name} is encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BundleError("compression", f"{name} is compressed by method {info.compress_type}: deflate is read")
    size, packed, deflated = info.file_size, info.compress_size, info.compress_type == zipfile.ZIP_DEFLATED
    if ratio and size > SUSPECT and size > ratio * packed:
        raise BundleError("bomb", f"{name} would grow from {packed:,} to {size:,} bytes")
    if (packed != size and not deflated) or packed > size + size // 8 + 1024:
        raise BundleError("size", f"{name}: {packed:,} bytes in the zip cannot be {size:,} bytes outside")
    try:
        file.seek(info.header_offset)
        header = file.read(LOCAL_HEADER)
    except (OSError, ValueError, OverflowError):
        header = b""
    if len(header) < LOCAL_HEADER or header[:4] != b"PK\x03\x04":
        raise BundleError("archive", f"{name}: the zip has no such file where its table of contents says")
    start = info.header_offset + LOCAL_HEADER
    start += int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    if start + packed > end:
        raise BundleError("size", f"{name}: ends behind the end of the zip")
    return Member(info.orig_filename, size, start, packed, deflated, info.CRC)


def unpacked(file: BinaryIO, member: Member) -> bytes:
    """What a member holds: as many bytes as it declares, of the checksum that it declares, or a BundleError."""
    file.seek(member.start)
    data, whole = file.read(member.packed), True
    if member.deflated:
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            data = inflate.decompress(data, member.size + 1)
        except zlib.error:
            raise BundleError("crc", f"{shown(member.name)}: its compressed bytes are damaged") from None
        whole = inflate.eof and not inflate.unused_data
    if len(data) != member.size or not whole:
        raise BundleError("size", f"{shown(member.name)} is not as large as it says: {member.size:,} bytes")
    if zlib.crc32(data) != member.crc:
        raise BundleError("crc", f"{shown(member.name)}: its checksum is another than the zip says")
    return data


# What numpy writes for an array of numbers: nothing of it is evaluated.
_HEADER = re.compile(
    rb"\{'descr': '([^'\\]{1,16})', 'fortran_order': (True|False), 'shape': \(([0-9, ]{0,60})\), \} *\n?"
)
_DTYPE = re.compile(r"\|[biu]1|<[iu][248]|<f[248]")


def arrays(data: bytes, name: str, most: int) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of an .npz: plain numbers of at most `most` bytes in all. BundleError for anything else."""
    import io

    file = io.BytesIO(data)
    found = {}
    for member in members(file, shown(name), most, directory=2**20, ratio=None):
        key = member.name.removesuffix(".npy")
        if key == member.name or "/" in key:
            raise BundleError("npz", f"{shown(name)}: {shown(member.name)} is no array")
        found[key] = _array(unpacked(file, member), f"{shown(name)}: array {shown(key)}")
    return found


def _array(data: bytes, place: str) -> np.ndarray[Any, Any]:
    import numpy as np

    wide = {b"\x93NUMPY\x01\x00": 2, b"\x93NUMPY\x02\x00": 4, b"\x93NUMPY\x03\x00": 4}.get(data[:8])
    if wide is None:
        raise BundleError("npz", f"{place} has no header that numpy writes")
    start = 8 + wide + int.from_bytes(data[8 : 8 + wide], "little")
    header = data[8 + wide : min(start, 4096)]
    if re.match(rb"\{'descr': '[^']*O", header):
        raise BundleError("pickle", f"{place} is a pickle (dtype object), which could run anything: numbers are read")
    told = _HEADER.fullmatch(header)
    dtype = told[1].decode("ascii", "replace") if told else ""
    if not told or not _DTYPE.fullmatch(dtype):
        raise BundleError(
            "npz", f"{place} is no array of plain numbers: {shown(header[:60].decode('ascii', 'replace'))}"
        )
    shape = tuple(int(n) for n in told[3].decode().replace(" ", "").split(",") if n)
    if len(shape) > 2 or any(n >= 2**40 for n in shape):
        raise BundleError("npz", f"{place} has shape {shape}: at most two dimensions are read")
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size != len(data) - start:
        raise BundleError("size", f"{place} says that it has {size:,} bytes, and has {len(data) - start:,}")
    values = np.frombuffer(data, dtype=dtype, offset=start)
    return values.reshape(shape, order="F" if told[2] == b"True" else "C")


def check_keys(found: Mapping[str, object], allowed: frozenset[str], name: str) -> None:
    """BundleError "npz" unless every array is one of those that are read."""
    for key in found:
        if key not in allowed:
            raise BundleError("npz", f"{shown(name)}: has an array {shown(key)}: there is {', '.join(sorted(allowed))}")
