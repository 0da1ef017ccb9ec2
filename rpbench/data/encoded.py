"""Images as they lie on disk: (key, label, how to decode), whatever the layout. Keys give an order of their own to
every set, so that split and training order do not depend on where it came from."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from rpbench.data.sources import IMAGE_SUFFIXES, Located
from rpbench.errors import DataError

Labels = NDArray[np.int64]


class Encoded(Protocol):
    """Images that are decoded one at a time: `keys[i]` names image i, `labels[i]` is its class (-1 where none)."""

    keys: Sequence[str]
    labels: Labels

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """The file of image `index`."""
        ...

    def open(self, index: int) -> Image.Image:
        """Image `index`, not yet decoded further than its header."""
        ...

    def place(self, index: int) -> str:
        """Where image `index` lies, in words for an error."""
        ...


UNREADABLE = (OSError, ValueError, TypeError, SyntaxError, Image.DecompressionBombError)


class ImageFiles:
    """An image folder: one sub-folder per class (classes numbered in sorted order), or images alone."""

    def __init__(self, folder: Path, labels: bool) -> None:
        classes = sorted(d.name for d in folder.iterdir() if d.is_dir() and not d.name.startswith("."))
        found = [(path, i) for i, name in enumerate(classes) for path in _images_under(folder / name)]
        if not classes:
            found = [(path, -1) for path in _images_under(folder)]
        self.folder = folder
        # one array, no million strings: counting references to those would make every worker copy all of them
        self.names = np.array([os.fsencode(path.relative_to(folder)) for path, _ in found], dtype=np.bytes_)
        self.keys: Sequence[str] = [_stem(path.name) for path, _ in found]
        self.labels = np.array([label if labels else -1 for _, label in found], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> bytes:
        return self._path(index).read_bytes()

    def open(self, index: int) -> Image.Image:
        return Image.open(self._path(index))

    def place(self, index: int) -> str:
        return f"'{self._path(index)}'"

    def _path(self, index: int) -> Path:
        return self.folder / os.fsdecode(self.names[index])


class ParquetRows:
    """Parquet files in the hub's layout, memory-mapped through `datasets`, which keeps a copy of them in Arrow's.

    The copy is what makes random access cheap. In the files themselves images are compressed by the row group, a
    hundred at a time: to read one is to decompress all of them, which takes several times as long as to decode it.
    """

    def __init__(self, located: Located) -> None:
        import datasets
        from datasets import disable_progress_bars

        disable_progress_bars()
        datasets.logging.set_verbosity_error()
        columns = located.image_set.columns
        self.folder = f"{located.folder} ({located.split})"
        _check_files(located.files)
        try:
            # not load_dataset, which tells a server about every load
            rows: Any = datasets.Dataset.from_parquet([str(f) for f in located.files])
        except Exception as error:
            raise DataError(f"{self.folder} cannot be read as parquet: {_root_cause(error)}") from error
        wanted = [columns.image, *([columns.label] if located.image_set.labels else [])]
        for column in wanted:
            if column not in rows.column_names:
                raise DataError(
                    f"{self.folder} has no column '{column}' (it has {', '.join(rows.column_names)}): the columns of "
                    f"image set '{located.image_set.name}' are declared under [columns] in its definition"
                )
        _check_types(rows.data.schema, wanted, self.folder)
        feature = rows.features[columns.image]
        if not isinstance(feature, datasets.Image):
            rows = rows.cast_column(columns.image, datasets.Image())
        self.column = columns.image
        if located.image_set.labels and rows.data.column(columns.label).null_count:
            raise DataError(f"{self.folder} has rows without a label in column '{columns.label}'")
        self.rows = rows.cast_column(columns.image, datasets.Image(decode=False)).select_columns(wanted)
        n = len(self.rows)
        self.labels = (
            np.asarray(self.rows.data.column(columns.label).to_numpy(), dtype=np.int64)
            if located.image_set.labels
            else np.full(n, -1, dtype=np.int64)
        )
        import pyarrow.compute as pc

        paths = pc.struct_field(self.rows.data.column(columns.image), "path").to_pylist()
        self.keys: Sequence[str] = [_stem(p) if p else f"{i:09d}" for i, p in enumerate(paths)]

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> bytes:
        # a row of `datasets` takes five times as long to make
        content: bytes = self.rows.data.column(self.column)[int(index)]["bytes"].as_py()
        return content

    def open(self, index: int) -> Image.Image:
        return Image.open(BytesIO(self.read(index)))

    def place(self, index: int) -> str:
        return f"image {index} ('{self.keys[index]}') of {self.folder}"


def open_encoded(located: Located) -> Encoded:
    """The images of a located split. Raises DataError for unreadable files and wrong columns."""
    if located.layout == "parquet":
        return ParquetRows(located)
    assert located.folder is not None
    return ImageFiles(located.folder, located.image_set.labels)


def decoded(encoded: Encoded, index: int, mode: str) -> Image.Image:
    """Image `index` in a Pillow mode; DataError where it cannot be decoded."""
    with named(encoded, index), encoded.open(index) as image:
        return image.convert(mode)


@contextlib.contextmanager
def named(encoded: Encoded, index: int) -> Iterator[None]:
    """What cannot be read or decoded in here ends in a DataError that names image `index`."""
    try:
        yield
    except UnidentifiedImageError:
        raise DataError(f"{encoded.place(index)} cannot be decoded: it is in no format that Pillow knows") from None
    except UNREADABLE as error:
        raise DataError(f"{encoded.place(index)} cannot be decoded: {error}") from None


def canonical_order(encoded: Encoded) -> NDArray[np.int64]:
    """Indices sorted by key, then label: the same images in the same order from every layout."""
    return np.array(sorted(range(len(encoded)), key=lambda i: (encoded.keys[i], encoded.labels[i])), dtype=np.int64)


def fingerprint(encoded: Encoded, order: NDArray[np.int64]) -> str:
    """sha256 over keys and labels in canonical order: what a set too large to hash by its pixels is known by."""
    total = hashlib.sha256()
    for i in order:
        total.update(f"{encoded.keys[i]}:{encoded.labels[i]}\n".encode())
    return total.hexdigest()


def _check_files(files: tuple[Path, ...]) -> None:
    """DataError for a file that is not whole, by name: `datasets` would only name the set."""
    import pyarrow.parquet as pq

    for file in files:
        try:
            pq.ParquetFile(file).close()
        except Exception as error:
            raise DataError(f"'{file}' is not a whole parquet file: {_root_cause(error)}") from error


def _check_types(schema: Any, columns: list[str], place: str) -> None:
    """DataError where the image column holds no images or the label column no whole numbers."""
    import pyarrow as pa

    image = schema.field(columns[0]).type
    if not (pa.types.is_struct(image) or pa.types.is_binary(image) or pa.types.is_large_binary(image)):
        raise DataError(f"{place}: column '{columns[0]}' holds {image}, not images")
    for column in columns[1:]:
        if not pa.types.is_integer(schema.field(column).type):
            raise DataError(f"{place}: label column '{column}' holds {schema.field(column).type}, not whole numbers")


def _images_under(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)


def _stem(path: str) -> str:
    """The name of an image; ImageNet's hub copy appends the class once more (n01440764_10026_n01440764.JPEG)."""
    stem = Path(path).stem
    found = re.match(r"(n\d{8}_\d+|ILSVRC2012_val_\d+)", stem)
    return found[1] if found else stem


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
