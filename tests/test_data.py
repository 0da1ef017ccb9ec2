"""Images: the same pixels, labels, order and batches from every layout, on any number of processes."""

from __future__ import annotations

import gc
import hashlib
import math
import pickle
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import transforms

from rpbench import streams
from rpbench.data import embedded, encoded, opened, resident, streamed
from rpbench.data.opened import Limits, TaskImages
from rpbench.data.order import Order, shares
from rpbench.data.resident import ResidentImages, ResidentTraining
from rpbench.data.sources import Located, Roots, download, hub_cache, locate
from rpbench.data.streamed import StreamedImages, StreamedTraining, centre_crop, crop_box
from rpbench.errors import DataError, MissingData, UsageError
from rpbench.task import Augment, Data, Task, load_set, load_task

Pixels = NDArray[np.uint8]
CPU = torch.device("cpu")
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
WNIDS = ("n01440764", "n01443537", "n02002556")
PERMUTATION = [1, 7, 9, 3, 5, 4, 6, 0, 2, 8]
NOISE = "c5178e805abe33b8c8bab7f443ac04fb9193abd7c156e27fbbbb4d8f4568baa8"
GAUSSIAN = "72bd470375e82bf1f46f8f55cce65af84807dd5c43e7b9ee4c9f2ec6e5ee5d61"
PHOTOS = "a75025de5203113ea0b3fb3640b768666e99a438f1a2613e0198482a01a5a3ee"


@pytest.fixture(scope="module", autouse=True)
def _arrow_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """`datasets` keeps its own copy of every parquet file: not in the user's home."""
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("arrow"))
        yield


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Attempts to reach the network, all refused, with the libraries' own offline switches off."""
    import datasets
    import huggingface_hub

    attempts: list[Any] = []

    def refuse(*args: Any, **_: Any) -> None:
        attempts.append(args)
        raise OSError("there is no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    return attempts


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of decoded images that starts empty."""
    monkeypatch.setenv("RPBENCH_CACHE", str(tmp_path / "decoded"))
    return tmp_path / "decoded"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache that starts empty."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@dataclass(frozen=True)
class Pictures:
    """Labelled images: (n, h, w, c) uint8 and their classes."""

    pixels: Pixels
    labels: list[int]

    def __len__(self) -> int:
        return len(self.labels)

    def shuffled(self, seed: int) -> Pictures:
        order = streams.permutation(streams.key("shuffled", seed), len(self))
        return Pictures(self.pixels[order], [self.labels[i] for i in order])

    def pairs(self) -> list[tuple[bytes, int]]:
        return sorted((image.tobytes(), int(label)) for image, label in zip(self.pixels, self.labels, strict=True))


def pictures(name: str, n: int, size: int = 32, classes: int = 10) -> Pictures:
    values = streams.integers(streams.key("test", name), n * size * size * 3, 256).astype(np.uint8)
    return Pictures(values.reshape(n, size, size, 3), [i % classes for i in range(n)])


TRAIN, TEST = pictures("train", 40), pictures("test", 20)


def file_of(pixels: Pixels, kind: str = "PNG") -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def rows_of(some: Pictures) -> list[dict[str, Any]]:
    return [{"bytes": file_of(image), "path": f"{i}.png"} for i, image in enumerate(some.pixels)]


def write_parquet(
    file: Path, images: list[Any], labels: Sequence[Any], image: str = "img", label: str = "label"
) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({image: images, label: labels}), file)


def hub_parquet(folder: Path, train: Pictures, test: Pictures) -> None:
    half = len(train) // 2
    rows = rows_of(train)
    write_parquet(folder / "plain_text" / "train-00000-of-00002.parquet", rows[:half], train.labels[:half])
    write_parquet(folder / "plain_text" / "train-00001-of-00002.parquet", rows[half:], train.labels[half:])
    write_parquet(folder / "plain_text" / "test-00000-of-00001.parquet", rows_of(test), test.labels)


def image_folder(folder: Path, train: Pictures, test: Pictures) -> None:
    for split, some in (("train", train), ("test", test)):
        for i, (image, label) in enumerate(zip(some.pixels, some.labels, strict=True)):
            (folder / split / CLASSES[label]).mkdir(parents=True, exist_ok=True)
            (folder / split / CLASSES[label] / f"{i:04d}.png").write_bytes(file_of(image))


def batch_of(some: Pictures) -> bytes:
    data = some.pixels.transpose(0, 3, 1, 2).reshape(len(some), -1)
    return pickle.dumps({b"data": data, b"labels": some.labels, b"batch_label": b"a batch"}, protocol=2)


def python_pickles(folder: Path, train: Pictures, test: Pictures) -> None:
    folder.mkdir(parents=True)
    for i in range(5):
        part = slice(i * len(train) // 5, (i + 1) * len(train) // 5)
        (folder / f"data_batch_{i + 1}").write_bytes(batch_of(Pictures(train.pixels[part], train.labels[part])))
    (folder / "test_batch").write_bytes(batch_of(test))
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [c.encode() for c in CLASSES]}, protocol=2))


LAYOUTS: dict[str, Callable[[Path, Pictures, Pictures], None]] = {
    "parquet": hub_parquet,
    "images": image_folder,
    "pickles": python_pickles,
}


def load_ten(roots: Roots, split: str = "test") -> ResidentImages:
    return resident.load(locate(load_set("cifar10"), split, roots), 32, 3)


def named(folder: Path, name: str = "cifar10") -> Roots:
    return Roots(named=((name, folder),))


def one_line(text: str, *words: str) -> None:
    assert "\n" not in text
    for word in words:
        assert word in text


def refusal(call: Callable[[], object]) -> str:
    """The text of the DataError that a call ends in; a file that it left open is reported in the same test."""
    with pytest.raises(DataError) as error:
        call()
    text = str(error.value)
    del error
    gc.collect()
    return text


# one set, many layouts


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("split", "some"), [("train", TRAIN), ("test", TEST)])
def test_same_images_from_every_layout(
    layout: str, seed: int | None, split: str, some: Pictures, tmp_path: Path
) -> None:
    train, test = (TRAIN, TEST) if seed is None else (TRAIN.shuffled(seed), TEST.shuffled(seed))
    LAYOUTS[layout](tmp_path / "cifar10", train, test)
    located = locate(load_set("cifar10"), split, Roots((tmp_path,)))
    found = resident.load(located, 32, 3)
    pixels, labels = resident.canonical(some.pixels, np.array(some.labels, dtype=np.int64))
    assert located.layout == layout
    assert np.array_equal(found.pixels, pixels)
    assert np.array_equal(found.labels, labels)
    assert found.fingerprint == resident.fingerprint(pixels, labels)
    assert Pictures(found.pixels, list(found.labels)).pairs() == some.pairs()
    assert found.origin.startswith("folder cifar10 (")


def test_canonical_order_is_that_of_the_pixels_hashes() -> None:
    found, labels = resident.canonical(TEST.pixels, np.array(TEST.labels, dtype=np.int64))
    hashes = [hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest() for image in found]
    assert hashes == sorted(hashes)
    assert labels.dtype == np.int64


def test_equal_images_of_two_classes_are_ordered_by_class() -> None:
    twice = np.concatenate([TEST.pixels[:1]] * 3)
    assert resident.canonical(twice, np.array([2, 0, 1]))[1].tolist() == [0, 1, 2]


def test_fingerprint_sees_a_pixel_a_label_and_the_shape() -> None:
    labels = np.array(TEST.labels, dtype=np.int64)
    other = TEST.pixels.copy()
    other[3, 2, 1, 0] ^= 1
    prints = {
        resident.fingerprint(TEST.pixels, labels),
        resident.fingerprint(other, labels),
        resident.fingerprint(TEST.pixels, 9 - labels),
        resident.fingerprint(TEST.pixels.reshape(20, 16, 64, 3), labels),
    }
    assert len(prints) == 4


@pytest.mark.parametrize("layout", LAYOUTS)
def test_named_folder_comes_before_the_others(layout: str, tmp_path: Path) -> None:
    LAYOUTS[layout](tmp_path / "mine", TEST, TRAIN)
    hub_parquet(tmp_path / "cifar10", TRAIN, TEST)
    assert len(load_ten(Roots((tmp_path,), (("cifar10", tmp_path / "mine"),)))) == len(TRAIN)
    assert len(load_ten(Roots((tmp_path,), (("cifar100", tmp_path / "mine"),)))) == len(TEST)


def test_torchvisions_own_folder_name(tmp_path: Path) -> None:
    python_pickles(tmp_path / "cifar-10-batches-py", TRAIN, TEST)
    assert len(load_ten(Roots((tmp_path,)))) == len(TEST)
    assert len(load_ten(named(tmp_path))) == len(TEST)


def test_cifar100_pickles_give_fine_labels(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    content = pickle.loads(batch_of(TEST)) | {b"coarse_labels": [7] * 20, b"fine_labels": [i + 70 for i in range(20)]}
    for name in ("train", "test", "meta"):
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    found = resident.load(locate(load_set("cifar100"), "test", Roots((tmp_path,))), 32, 3)
    assert sorted(found.labels) == [i + 70 for i in range(20)]


@pytest.mark.parametrize("folder", ["test", "train", "training"])
def test_name_of_the_users_folder_says_nothing_about_splits(folder: str, tmp_path: Path) -> None:
    write_parquet(tmp_path / folder / "train-00000-of-00001.parquet", rows_of(TRAIN), TRAIN.labels)
    write_parquet(tmp_path / folder / "test-00000-of-00001.parquet", rows_of(TEST), TEST.labels)
    assert len(load_ten(named(tmp_path / folder), "test")) == len(TEST)
    assert len(load_ten(named(tmp_path / folder), "train")) == len(TRAIN)


def test_split_folders_of_parquet_files(tmp_path: Path) -> None:
    write_parquet(tmp_path / "cifar10" / "test" / "0000.parquet", rows_of(TEST), TEST.labels)
    assert len(load_ten(Roots((tmp_path,)))) == len(TEST)


def test_hidden_folder_is_no_class(tmp_path: Path) -> None:
    image_folder(tmp_path / "cifar10", TRAIN, TEST)
    (tmp_path / "cifar10" / "test" / ".ipynb_checkpoints").mkdir()
    assert sorted(load_ten(Roots((tmp_path,))).labels) == sorted(TEST.labels)


def test_grey_and_larger_images_are_converted(tmp_path: Path) -> None:
    flat = np.full((64, 64), 77, dtype=np.uint8)
    write_parquet(tmp_path / "cifar10" / "test-00000-of-00001.parquet", [{"bytes": file_of(flat), "path": None}], [3])
    found = load_ten(Roots((tmp_path,)))
    assert found.pixels.shape == (1, 32, 32, 3)
    assert (found.pixels == 77).all()


def test_roots_are_read_from_options_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c", "d"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("RPBENCH_DATA", f"{tmp_path / 'c'}:{tmp_path / 'd'}")
    roots = Roots.read([str(tmp_path / "a"), f"cifar10={tmp_path / 'b'}"])
    assert roots == Roots((tmp_path / "a", tmp_path / "c", tmp_path / "d"), (("cifar10", tmp_path / "b"),))


def test_data_folder_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="there is no folder '/nowhere/at/all'"):
        Roots.read(["cifar10=/nowhere/at/all"])


def test_data_folder_with_an_equals_sign(tmp_path: Path) -> None:
    (tmp_path / "seed=0").mkdir()
    assert Roots.read([str(tmp_path / "seed=0")]).folders == (tmp_path / "seed=0",)


# the cache of decoded images


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.usefixtures("own_cache")
def test_second_load_comes_from_the_cache(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS[layout](tmp_path / "cifar10", TRAIN, TEST)
    first = load_ten(Roots((tmp_path,)))
    for step in ("_decode", "_read_pickles"):
        monkeypatch.setattr(resident, step, None)
    second = load_ten(Roots((tmp_path,)))
    assert isinstance(second.pixels, np.memmap)
    assert np.array_equal(second.pixels, first.pixels)
    assert np.array_equal(second.labels, first.labels)
    assert (second.fingerprint, second.origin) == (first.fingerprint, first.origin)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.usefixtures("own_cache")
def test_changed_files_are_decoded_anew(layout: str, tmp_path: Path) -> None:
    LAYOUTS[layout](tmp_path / "cifar10", TRAIN, TEST)
    first = load_ten(Roots((tmp_path,)))
    (tmp_path / "cifar10").rename(tmp_path / "before")
    LAYOUTS[layout](tmp_path / "cifar10", TRAIN, pictures("other", 20))
    second = load_ten(Roots((tmp_path,)))
    assert second.fingerprint != first.fingerprint
    assert Pictures(second.pixels, list(second.labels)).pairs() == pictures("other", 20).pairs()


def test_each_size_is_cached_on_its_own(own_cache: Path, tmp_path: Path) -> None:
    hub_parquet(tmp_path / "cifar10", TRAIN, TEST)
    located = locate(load_set("cifar10"), "test", Roots((tmp_path,)))
    assert resident.load(located, 32, 3).pixels.shape == (20, 32, 32, 3)
    assert resident.load(located, 16, 1).pixels.shape == (20, 16, 16, 1)
    assert len(list((own_cache / "images").iterdir())) == 2


@pytest.mark.parametrize("keep", [0, 10, 100])
@pytest.mark.parametrize("name", ["meta.json", "labels.npy", "pixels.npy"])
def test_damaged_cache_is_done_without(name: str, keep: int, own_cache: Path, tmp_path: Path) -> None:
    python_pickles(tmp_path / "cifar10", TRAIN, TEST)
    first = load_ten(Roots((tmp_path,)))
    (file,) = own_cache.rglob(name)
    file.write_bytes(file.read_bytes()[:keep])
    second = load_ten(Roots((tmp_path,)))
    assert np.array_equal(second.pixels, first.pixels)
    assert second.fingerprint == first.fingerprint


def test_damaged_cache_is_written_anew(own_cache: Path, tmp_path: Path) -> None:
    python_pickles(tmp_path / "cifar10", TRAIN, TEST)
    load_ten(Roots((tmp_path,)))
    (file,) = own_cache.rglob("meta.json")
    file.write_text("")
    load_ten(Roots((tmp_path,)))
    assert isinstance(load_ten(Roots((tmp_path,))).pixels, np.memmap)


def test_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RPBENCH_CACHE", str(tmp_path / "file" / "cache"))
    python_pickles(tmp_path / "cifar10", TRAIN, TEST)
    assert len(load_ten(Roots((tmp_path,)))) == len(TEST)


# pickles that are no batches


@pytest.mark.parametrize(
    "payload",
    [
        b"cos\nsystem\n(S'touch {file}'\ntR.",
        b'c__builtin__\neval\n(S\'open("{file}", "w")\'\ntR.',
        b'cbuiltins\nexec\n(S\'open("{file}", "w")\'\ntR.',
        b"cpathlib\nPath\n(S'{file}'\ntR.",
        b'cnumpy.testing\nmeasure\n(S\'open("{file}", "w")\'\ntR.',
        b"cnumpy\nfromfile\n(S'{file}'\ntR.",
        b"cnumpy_of_theirs\n_reconstruct\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x0bos.system__\x93.",
    ],
)
def test_pickles_execute_nothing(payload: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = tmp_path / "executed"
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "numpy_of_theirs.py").write_text(f"open({str(trace)!r}, 'w').close()\n_reconstruct = open\n")
    monkeypatch.syspath_prepend(tmp_path / "path")
    python_pickles(tmp_path / "cifar10", TRAIN, TEST)
    (tmp_path / "cifar10" / "test_batch").write_bytes(payload.replace(b"{file}", str(trace).encode()))
    with pytest.raises(DataError) as error:
        load_ten(Roots((tmp_path,)))
    one_line(str(error.value), str(tmp_path / "cifar10" / "test_batch"), "is not a CIFAR batch")
    assert not trace.exists()


def test_what_the_payloads_would_have_done(tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    pickle.loads(f'c__builtin__\neval\n(S\'open("{trace}", "w").close()\'\ntR.'.encode())
    assert trace.exists()


WHOLE = pickle.loads(batch_of(TEST))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 100,
        batch_of(TEST)[:50],
        batch_of(TEST)[:-1],
        batch_of(TEST).replace(b"multiarray", b"multiarraX"),
        batch_of(TEST).replace(b"latin1", b"latinX"),
        pickle.dumps([1, 2], protocol=2),
        pickle.dumps(None, protocol=2),
        pickle.dumps({"data": 1}, protocol=2),
        pickle.dumps(WHOLE | {b"labels": None}, protocol=2),
        pickle.dumps(WHOLE | {b"labels": ["cat"] * 20}, protocol=2),
        pickle.dumps(WHOLE | {b"labels": TEST.labels[:-1]}, protocol=2),
        pickle.dumps(WHOLE | {b"labels": [*TEST.labels, 1]}, protocol=2),
        pickle.dumps(WHOLE | {b"data": WHOLE[b"data"][:, :-1]}, protocol=2),
        pickle.dumps(WHOLE | {b"data": None}, protocol=2),
    ],
    ids=[
        *("empty", "zeros", "head", "cut", "module", "encoding", "list", "none", "keys"),
        *("labels-none", "labels-words", "labels-short", "labels-long", "data-narrow", "data-none"),
    ],
)
def test_damaged_pickle(content: bytes, tmp_path: Path) -> None:
    python_pickles(tmp_path / "cifar10", TRAIN, TEST)
    (tmp_path / "cifar10" / "test_batch").write_bytes(content)
    with pytest.raises(DataError) as error:
        load_ten(Roots((tmp_path,)))
    one_line(str(error.value), str(tmp_path / "cifar10" / "test_batch"))


def test_pickles_without_their_batches(tmp_path: Path) -> None:
    python_pickles(tmp_path / "cifar10", TRAIN, TEST)
    for file in (tmp_path / "cifar10").glob("*_batch*"):
        file.unlink()
    for split in ("train", "test"):
        with pytest.raises(DataError) as error:
            load_ten(Roots((tmp_path,)), split)
        one_line(str(error.value), str(tmp_path / "cifar10"))


# files that cannot be read


def parquet_with(folder: Path, images: list[Any], labels: Sequence[Any], **columns: str) -> Roots:
    write_parquet(folder / "cifar10" / "test-00000-of-00001.parquet", images, labels, **columns)
    return Roots((folder,))


@pytest.mark.parametrize("damage", ["half", "empty", "tail", "head", "middle", "text"])
def test_truncated_parquet(damage: str, tmp_path: Path) -> None:
    roots = parquet_with(tmp_path, rows_of(TEST), TEST.labels)
    (file,) = (tmp_path / "cifar10").iterdir()
    whole = file.read_bytes()
    contents = {
        "half": whole[: len(whole) // 2],
        "empty": b"",
        "tail": whole[:-5],
        "head": bytes(50) + whole[50:],
        "middle": whole[:2000] + bytes(4000) + whole[6000:],
        "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 10\n",
    }
    file.write_bytes(contents[damage])
    with pytest.raises(DataError) as error:
        load_ten(roots)
    one_line(str(error.value), str(tmp_path / "cifar10"))


@pytest.mark.parametrize(("columns", "missing"), [({"image": "image"}, "img"), ({"label": "class"}, "label")])
def test_wrong_column(columns: dict[str, str], missing: str, tmp_path: Path) -> None:
    roots = parquet_with(tmp_path, rows_of(TEST), TEST.labels, **columns)
    with pytest.raises(DataError) as error:
        load_ten(roots)
    one_line(str(error.value), f"no column '{missing}'", str(tmp_path / "cifar10"), *columns.values(), "[columns]")


def test_wrong_column_in_the_second_file(tmp_path: Path) -> None:
    folder = tmp_path / "cifar10"
    write_parquet(folder / "test-00000-of-00002.parquet", rows_of(TEST), TEST.labels)
    write_parquet(folder / "test-00001-of-00002.parquet", rows_of(TEST), TEST.labels, image="picture")
    with pytest.raises(DataError) as error:
        load_ten(Roots((tmp_path,)))
    one_line(str(error.value), str(folder), "column")


@pytest.mark.parametrize(
    "cell",
    [
        {"bytes": b"nonsense", "path": "a.png"},
        {"bytes": b"", "path": "a.png"},
        {"bytes": None, "path": "a.png"},
        {"bytes": file_of(TEST.pixels[0])[:200], "path": "a.png"},
        {"bytes": file_of(TEST.pixels[0], "JPEG")[:-300], "path": "a.jpg"},
        None,
    ],
    ids=["nonsense", "empty", "null-bytes", "half-png", "half-jpeg", "null"],
)
def test_image_that_cannot_be_decoded(cell: Any, tmp_path: Path) -> None:
    roots = parquet_with(tmp_path, [cell, *rows_of(TEST)[1:]], TEST.labels)
    with pytest.raises(DataError) as error:
        load_ten(roots)
    one_line(str(error.value), "cifar10")


@pytest.mark.parametrize(
    "content", [b"nonsense", b"", file_of(TEST.pixels[0])[:200]], ids=["nonsense", "empty", "half"]
)
def test_image_file_that_cannot_be_decoded(content: bytes, tmp_path: Path) -> None:
    image_folder(tmp_path / "cifar10", TRAIN, TEST)
    file = tmp_path / "cifar10" / "test" / "cat" / "0003.png"
    file.write_bytes(content)
    one_line(refusal(lambda: load_ten(Roots((tmp_path,)))), str(file))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_image_that_claims_to_be_enormous(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roots = parquet_with(tmp_path, rows_of(TEST), TEST.labels)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError) as error:
        load_ten(roots)
    one_line(str(error.value), "cifar10")


def test_column_that_holds_no_images(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        load_ten(parquet_with(tmp_path, list(range(20)), TEST.labels))
    one_line(str(error.value), "cifar10", "img")


@pytest.mark.parametrize("label", ["cat", None, 0.5])
def test_column_that_holds_no_labels(label: Any, tmp_path: Path) -> None:
    others: list[Any] = ["dog"] * 19 if label == "cat" else [1] * 19 if label is None else [1.0] * 19
    with pytest.raises(DataError) as error:
        load_ten(parquet_with(tmp_path, rows_of(TEST), [label, *others]))
    one_line(str(error.value), "cifar10", "label")


def small_task(validation: int = 5000, **evaluation: Any) -> Task:
    task = load_task("cifar10")
    data = task.data.model_copy(update={"validation": validation})
    asked = {"ood": ("gaussian", "noise"), "attacks": ()} | evaluation
    return task.model_copy(update={"data": data, "evaluation": task.evaluation.model_copy(update=asked)})


def open_small(task: Task, roots: Roots, limits: Limits | None = None, skip_missing: bool = False) -> TaskImages:
    found, skipped = opened.find_all(task, roots, True, skip_missing)
    return opened.open_all(task, found, skipped, limits or Limits(), workers=0)


@pytest.mark.parametrize("label", [10, -1, 255])
def test_labels_out_of_range(label: int, tmp_path: Path) -> None:
    hub_parquet(tmp_path / "cifar10", TRAIN, Pictures(TEST.pixels, [label, *TEST.labels[1:]]))
    with pytest.raises(DataError) as error:
        open_small(small_task(), Roots((tmp_path,)))
    one_line(str(error.value), "cifar10 (test)", str(label), "0..9")


def test_set_without_rows(tmp_path: Path) -> None:
    empty = pa.array([], type=pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    folder = tmp_path / "cifar10"
    hub_parquet(folder, TRAIN, TEST)
    write_parquet(folder / "plain_text" / "test-00000-of-00001.parquet", empty, pa.array([], type=pa.int64()))
    with pytest.raises(DataError) as error:
        open_small(small_task(), Roots((tmp_path,)))
    one_line(str(error.value), "cifar10")


def test_more_held_out_than_there_are(tmp_path: Path) -> None:
    hub_parquet(tmp_path / "cifar10", TRAIN, TEST)
    with pytest.raises(DataError, match="held out for validation leaves none"):
        open_small(small_task(validation=50_000), Roots((tmp_path,)))


# sets that are not there


@pytest.mark.parametrize("inside", ["", "cifar10", "cifar10/test", "cifar10/test/cat", "cifar10/plain_text"])
@pytest.mark.usefixtures("hub")
def test_missing_set_is_said_at_once(inside: str, tmp_path: Path, network: list[Any]) -> None:
    (tmp_path / "data" / inside).mkdir(parents=True)
    begun = time.perf_counter()
    with pytest.raises(MissingData) as error:
        locate(load_set("cifar10"), "test", Roots((tmp_path / "data",)))
    assert time.perf_counter() - begun < 2
    places = [str(tmp_path / "data" / name) for name in ("cifar10", "cifar-10-batches-py")]
    one_line(str(error.value), "'cifar10' (test)", *places, "uoft-cs/cifar10@0b27149", "rpbench data prepare cifar10")
    assert network == []


@pytest.mark.usefixtures("hub")
def test_missing_set_without_a_hub_says_where_it_comes_from(network: list[Any]) -> None:
    with pytest.raises(MissingData) as error:
        locate(load_set("imagenet-o"), "test", Roots())
    one_line(str(error.value), "imagenet-o", "github.com/hendrycks", "--data imagenet-o=DIR")
    assert network == []


def test_split_that_the_set_does_not_have() -> None:
    with pytest.raises(UsageError, match=r"image set 'svhn' has no split 'train': it has test"):
        locate(load_set("svhn"), "train", Roots())


def test_pinned_snapshot_in_the_hubs_cache_is_found_offline(hub: Path, network: list[Any]) -> None:
    image_set = load_set("cifar10")
    assert hub_cache(image_set) is None
    hub_parquet(hub / "datasets--uoft-cs--cifar10" / "snapshots" / image_set.revision, TRAIN, TEST)
    located = locate(image_set, "train", Roots())
    assert len(located.files) == 2
    assert located.origin == f"hub uoft-cs/cifar10@{image_set.revision[:12]} (parquet)"
    assert network == []


def test_another_revision_in_the_hubs_cache_is_not_taken(hub: Path) -> None:
    hub_parquet(hub / "datasets--uoft-cs--cifar10" / "snapshots" / ("0" * 40), TRAIN, TEST)
    with pytest.raises(MissingData):
        locate(load_set("cifar10"), "test", Roots())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.usefixtures("own_cache")
def test_loading_local_files_touches_no_network(layout: str, tmp_path: Path, network: list[Any]) -> None:
    LAYOUTS[layout](tmp_path / "cifar10", TRAIN, TEST)
    assert len(load_ten(Roots((tmp_path,)))) == len(TEST)
    assert network == []


@pytest.mark.usefixtures("hub")
def test_download_that_fails_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError) as error:
        download(load_set("svhn"))
    one_line(str(error.value), "svhn", "ufldl-stanford/svhn")
    with pytest.raises(DataError, match="'imagenet-o' is not on the hub: get it from https://"):
        download(load_set("imagenet-o"))


@pytest.mark.usefixtures("hub")
def test_ood_set_is_skipped_only_when_asked(tmp_path: Path) -> None:
    hub_parquet(tmp_path / "cifar10", TRAIN, TEST)
    task = small_task(ood=("svhn", "noise"))
    with pytest.raises(MissingData) as error:
        open_small(task, Roots((tmp_path,)))
    one_line(str(error.value), "svhn", "--skip-missing")
    images = open_small(task, Roots((tmp_path,)), skip_missing=True)
    assert (images.skipped, tuple(images.ood)) == (("svhn",), ("noise",))


@pytest.mark.usefixtures("hub")
def test_own_set_is_never_skipped(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match="cifar10"):
        opened.find_all(small_task(), Roots((tmp_path,)), True, skip_missing=True)


# other sets' layouts


def test_svhn_takes_its_cropped_digits(tmp_path: Path) -> None:
    names = {"image": "image", "label": "label"}
    cropped, full = tmp_path / "svhn" / "cropped_digits", tmp_path / "svhn" / "full_numbers"
    write_parquet(cropped / "test-00000-of-00001.parquet", rows_of(TEST), TEST.labels, **names)
    write_parquet(cropped / "extra-00000-of-00001.parquet", rows_of(TRAIN), TRAIN.labels, **names)
    write_parquet(full / "test-00000-of-00001.parquet", rows_of(TRAIN), TRAIN.labels, **names)
    for roots in (Roots((tmp_path,)), named(tmp_path / "svhn", "svhn"), named(cropped, "svhn")):
        found = resident.load(locate(load_set("svhn"), "test", roots), 32, 3)
        assert Pictures(found.pixels, list(found.labels)).pairs() == TEST.pairs()


def scenes(kind: str, per_class: int) -> list[tuple[str, int, bytes]]:
    """(name, class, JPEG) of images of several sizes, in an order that is not that of their names."""
    found = []
    for i in reversed(range(per_class)):
        for label, wnid in enumerate(WNIDS):
            shape = 40 + 9 * i + label, 64 - 7 * i, 3
            values = streams.integers(streams.key("scene", kind, label, i), math.prod(shape), 256)
            stem = f"{wnid}_{100 - i}" if kind == "train" else f"ILSVRC2012_val_{10 * i + (7 * label) % 3:08d}"
            found.append((stem, label, file_of(values.astype(np.uint8).reshape(shape), "JPEG")))
    return found


def scene_folder(folder: Path, splits: dict[str, list[tuple[str, int, bytes]]]) -> None:
    for split, some in splits.items():
        for stem, label, content in some:
            (folder / split / WNIDS[label]).mkdir(parents=True, exist_ok=True)
            (folder / split / WNIDS[label] / f"{stem}.JPEG").write_bytes(content)


def scene_parquet(folder: Path, splits: dict[str, list[tuple[str, int, bytes]]]) -> None:
    for split, some in splits.items():
        rows = [{"bytes": content, "path": f"{stem}_{WNIDS[label]}.JPEG"} for stem, label, content in some]
        labels = [label for _, label, _ in some]
        write_parquet(folder / "data" / f"{split}-00000-of-00001.parquet", rows, labels, image="image")


@pytest.fixture(scope="module")
def small_imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighteen training images and nine for validation, as `folder/imagenet` and as `parquet/imagenet`."""
    root = tmp_path_factory.mktemp("scenes")
    train, validation = scenes("train", 6), scenes("validation", 3)
    scene_folder(root / "folder" / "imagenet", {"train": train, "val": validation})
    scene_parquet(root / "parquet" / "imagenet", {"train": train, "validation": validation})
    return root


def opened_scenes(root: Path, layout: str, split: str) -> encoded.Encoded:
    located = locate(load_set("imagenet"), split, Roots((root / layout,)))
    assert located.layout == ("images" if layout == "folder" else "parquet")
    return encoded.open_encoded(located)


def size_of(images: encoded.Encoded, index: int) -> tuple[int, int]:
    with images.open(index) as image:
        return image.size


@pytest.mark.parametrize("split", ["train", "validation"])
def test_imagenet_is_the_same_as_folder_and_parquet(split: str, small_imagenet: Path) -> None:
    found = [opened_scenes(small_imagenet, layout, split) for layout in ("folder", "parquet")]
    orders = [encoded.canonical_order(images) for images in found]
    some = {stem: label for stem, label, _ in scenes(split, 6 if split == "train" else 3)}
    for images, order in zip(found, orders, strict=True):
        assert [images.keys[i] for i in order] == sorted(some)
        assert [images.labels[i] for i in order] == [some[stem] for stem in sorted(some)]
        assert [size_of(images, i) for i in order] == [size_of(found[0], i) for i in orders[0]]
    first, second = (encoded.fingerprint(*both) for both in zip(found, orders, strict=True))
    assert first == second


def test_fingerprint_of_scenes_sees_names_and_labels(small_imagenet: Path) -> None:
    images = opened_scenes(small_imagenet, "folder", "train")
    assert isinstance(images, encoded.ImageFiles)
    order = encoded.canonical_order(images)
    before = encoded.fingerprint(images, order)
    images.labels = images.labels.copy()
    images.labels[order[3]] = 2 - images.labels[order[3]] or 1
    relabelled = encoded.fingerprint(images, order)
    images.keys = [key.replace("95", "9x") for key in images.keys]
    assert len({before, relabelled, encoded.fingerprint(images, order)}) == 3


def write_imagenet_o(folder: Path) -> list[tuple[str, int, bytes]]:
    some = scenes("train", 2)
    for stem, label, content in some:
        (folder / WNIDS[label]).mkdir(parents=True, exist_ok=True)
        (folder / WNIDS[label] / f"{stem}.JPEG").write_bytes(content)
    return some


def test_imagenet_o_as_the_authors_tar(tmp_path: Path) -> None:
    some = write_imagenet_o(tmp_path / "imagenet-o")
    (tmp_path / "imagenet-o" / "README.txt").write_text("...")
    for roots in (Roots((tmp_path,)), named(tmp_path / "imagenet-o", "imagenet-o")):
        images = streamed.load(locate(load_set("imagenet-o"), "test", roots), 32, 3, 40, 0)
        assert [images.encoded.keys[i] for i in images.indices] == sorted(stem for stem, _, _ in some)


def test_set_without_labels_is_the_same_as_folder_and_parquet(tmp_path: Path) -> None:
    some = write_imagenet_o(tmp_path / "imagenet-o")
    rows = [{"bytes": content, "path": f"{stem}.JPEG"} for stem, _, content in some]
    write_parquet(tmp_path / "p" / "imagenet-o" / "test-00000-of-00001.parquet", rows, [0] * 6, image="image")
    first, second = (
        streamed.load(locate(load_set("imagenet-o"), "test", Roots((root,))), 32, 3, 40, 0)
        for root in (tmp_path, tmp_path / "p")
    )
    assert first.fingerprint == second.fingerprint
    assert first.labels.tolist() == second.labels.tolist()


# who sees which image when


@pytest.mark.parametrize("world", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("n", "batch"), [(10, 4), (12, 4), (9, 4), (3, 8), (1, 1), (1000, 128)])
def test_slices_of_all_processes_make_up_every_batch(n: int, batch: int, world: int) -> None:
    orders = [Order(0, n, batch, rank, world) for rank in range(world)]
    seen = []
    for step in range(orders[0].steps):
        parts = [np.arange(n)[order.local(step)] for order in orders]
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert sum(map(len, parts)) == orders[0].size(step)
        seen += [*np.concatenate(parts)]
    assert seen == list(range(n))
    assert orders[0].steps == math.ceil(n / batch)


def test_permutation_differs_by_epoch_and_seed_not_by_process() -> None:
    orders = [Order(3, 100, 8, rank, world) for rank, world in ((0, 1), (0, 2), (1, 2), (4, 5))]
    for epoch in range(3):
        assert len({order.permutation(epoch).tobytes() for order in orders}) == 1
        assert sorted(orders[0].permutation(epoch)) == list(range(100))
    epochs = {orders[0].permutation(epoch).tobytes() for epoch in range(10)}
    assert len(epochs) == 10
    assert Order(4, 100, 8).permutation(0).tobytes() not in epochs


def test_permutation_is_pinned() -> None:
    assert Order(0, 10, 4).permutation(0).tolist() == PERMUTATION


@pytest.mark.parametrize("world", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("n", "batch"), [(10, 4), (12, 4), (5, 100), (1, 1), (3, 2), (100, 7)])
def test_shares_cover_each_image_once(n: int, batch: int, world: int) -> None:
    processes = [shares(n, batch, rank, world) for rank in range(world)]
    parts = [part for process in processes for part in process]
    assert np.concatenate(parts).tolist() == list(range(n))
    assert all(0 < len(part) <= batch for part in parts)
    length = math.ceil(n / world)
    lengths = [sum(map(len, process)) for process in processes]
    assert lengths == [max(0, min(length, n - rank * length)) for rank in range(world)]


# training on resident images


def ten(augment: Augment, some: Pictures = TEST, seed: int = 5) -> ResidentTraining:
    images = ResidentImages(some.pixels, np.array(some.labels, dtype=np.int64), "", "")
    return ResidentTraining(images, load_task("cifar10").data, augment, seed, CPU)


def all_batches(training: Any, order: Order, epoch: int = 0, first: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(training.batches(order, epoch, first))


def normalised(pixels: Pixels, data: Data) -> torch.Tensor:
    """uint8 (b, h, w, c) -> (b, c, h, w) by the formula, in float64."""
    x = (pixels.astype(np.float64) / 255 - np.array(data.mean)) / np.array(data.std)
    return torch.from_numpy(x.transpose(0, 3, 1, 2))


def same(x: list[tuple[torch.Tensor, torch.Tensor]], y: list[tuple[torch.Tensor, torch.Tensor]]) -> bool:
    return len(x) == len(y) and all(torch.equal(a[i], b[i]) for a, b in zip(x, y, strict=True) for i in (0, 1))


@pytest.mark.parametrize(
    "augment",
    [
        Augment(pad=4, pad_mode="reflect", flip=True),
        Augment(pad=4, pad_mode="constant", flip=True),
        Augment(pad=2, pad_mode="constant"),
        Augment(pad=0, flip=True),
        Augment(),
    ],
    ids=["reflect-flip", "constant-flip", "constant", "flip", "plain"],
)
@pytest.mark.parametrize("epoch", [0, 7])
def test_crops_equal_a_plain_reference(augment: Augment, epoch: int) -> None:
    training, order, n, pad = ten(augment), Order(11, 20, 8), 20, augment.pad
    rows, columns = (streams.integers(streams.key(w, 5, epoch), n, 2 * pad + 1) for w in ("row", "column"))
    flips = streams.integers(streams.key("flip", 5, epoch), n, 2)
    expected = []
    for i in order.permutation(epoch):
        padded = np.pad(TEST.pixels[i], ((pad, pad), (pad, pad), (0, 0)), mode=augment.pad_mode)
        crop = padded[rows[i] : rows[i] + 32, columns[i] : columns[i] + 32]
        expected.append(crop[:, ::-1] if augment.flip and flips[i] else crop)
    found = all_batches(training, order, epoch)
    assert [len(y) for _, y in found] == [8, 8, 4]
    x = torch.cat([x for x, _ in found])
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(x.double(), normalised(np.stack(expected), training_data()), atol=1e-5, rtol=0)
    assert torch.cat([y for _, y in found]).tolist() == [TEST.labels[i] for i in order.permutation(epoch)]


def training_data() -> Data:
    return load_task("cifar10").data


def test_every_shift_and_both_sides_occur() -> None:
    same_image = Pictures(np.repeat(TEST.pixels[:1], 2000, axis=0), [0] * 2000)
    x, _ = all_batches(ten(Augment(pad=1, flip=True), same_image), Order(0, 2000, 2000))[0]
    _, counts = torch.unique(x.reshape(2000, -1), dim=0, return_counts=True)
    assert len(counts) == 3 * 3 * 2
    assert counts.min() > 60


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_images_do_not_depend_on_the_number_of_processes(world: int) -> None:
    training = ten(Augment(pad=4, flip=True), Pictures(TEST.pixels[:10], TEST.labels[:10]))
    whole = all_batches(training, Order(1, 10, 4))
    parts = [all_batches(training, Order(1, 10, 4, rank, world)) for rank in range(world)]
    for step, (x, y) in enumerate(whole):
        assert torch.equal(torch.cat([part[step][0] for part in parts]), x)
        assert torch.equal(torch.cat([part[step][1] for part in parts]), y)


def test_without_augmentation_a_batch_is_plain() -> None:
    training, order = ten(Augment()), Order(1, 20, 8)
    for step, batch in enumerate(all_batches(training, order, epoch=2)):
        assert same([batch], [training.plain(order.permutation(2)[order.local(step)])])


def test_plain_images_are_not_augmented() -> None:
    x, y = ten(Augment(pad=4, flip=True)).plain(np.array([3, 1]))
    torch.testing.assert_close(x.double(), normalised(TEST.pixels[[3, 1]], training_data()), atol=1e-5, rtol=0)
    assert y.tolist() == [3, 1]


@pytest.mark.parametrize("first", [0, 1, 2, 3])
def test_batch_is_the_same_wherever_the_epoch_is_begun(first: int) -> None:
    training, order = ten(Augment(pad=4, flip=True)), Order(1, 20, 8)
    assert same(all_batches(training, order, 3, first), all_batches(training, order, 3)[first:])


def by_index(training: Any, order: Order, epoch: int) -> bytes:
    """The images of an epoch in their own order: what is left is how they were varied."""
    x = torch.cat([x for x, _ in training.batches(order, epoch, 0)])
    return x[np.argsort(order.permutation(epoch))].numpy().tobytes()


def test_epochs_and_seeds_vary_the_images() -> None:
    trainings = [ten(Augment(pad=4), seed=seed) for seed in (0, 1)]
    assert len({by_index(training, Order(1, 20, 8), epoch) for training in trainings for epoch in (0, 1)}) == 4


def test_training_leaves_the_images_alone() -> None:
    before = TEST.pixels.copy()
    all_batches(ten(Augment(pad=4, flip=True)), Order(1, 20, 8))
    assert np.array_equal(TEST.pixels, before)


# training on streamed images


def scene_images(root: Path, workers: int = 0, size: int = 24) -> StreamedImages:
    return streamed.load(locate(load_set("imagenet"), "train", Roots((root / "folder",))), size, 3, 30, workers)


def scene_training(root: Path, workers: int = 0, seed: int = 2, **augment: Any) -> StreamedTraining:
    chosen = Augment(**({"flip": True, "resize": 30} | augment))
    return StreamedTraining(scene_images(root, workers), load_task("imagenet").data, chosen, seed, CPU)


two_workers = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


@two_workers
def test_workers_change_nothing(small_imagenet: Path) -> None:
    order = Order(1, 18, 4)
    alone, helped = (all_batches(scene_training(small_imagenet, workers), order, 1) for workers in (0, 2))
    assert [tuple(x.shape) for x, _ in alone] == [(4, 3, 24, 24)] * 4 + [(2, 3, 24, 24)]
    assert same(alone, helped)


@pytest.mark.parametrize("first", [1, 4, 5])
def test_streamed_batch_is_the_same_wherever_the_epoch_is_begun(first: int, small_imagenet: Path) -> None:
    training, order = scene_training(small_imagenet), Order(1, 18, 4)
    assert same(all_batches(training, order, 3, first), all_batches(training, order, 3)[first:])


@pytest.mark.parametrize("n", [18, 17])
def test_streamed_images_do_not_depend_on_the_number_of_processes(n: int, small_imagenet: Path) -> None:
    training = scene_training(small_imagenet)
    whole = all_batches(training, Order(1, n, 4))
    parts = [all_batches(training, Order(1, n, 4, rank, 2)) for rank in range(2)]
    assert [sum(len(part[step][1]) for part in parts) for step in range(5)] == [len(y) for _, y in whole]
    for step, (x, y) in enumerate(whole):
        assert torch.equal(torch.cat([part[step][0] for part in parts]), x)
        assert torch.equal(torch.cat([part[step][1] for part in parts]), y)


def test_streamed_labels_belong_to_their_images(small_imagenet: Path) -> None:
    training = scene_training(small_imagenet)
    some = {stem: label for stem, label, _ in scenes("train", 6)}
    expected = [some[stem] for stem in sorted(some)]
    order = Order(1, 18, 4)
    labels = torch.cat([y for _, y in all_batches(training, order)]).tolist()
    assert labels == [expected[i] for i in order.permutation(0)]


def test_streamed_epochs_and_seeds_vary_the_images(small_imagenet: Path) -> None:
    trainings = [scene_training(small_imagenet, seed=seed, flip=False) for seed in (0, 1)]
    assert len({by_index(training, Order(1, 18, 8), epoch) for training in trainings for epoch in (0, 1)}) == 4


def test_whole_image_crop_is_the_image_or_its_mirror(tmp_path: Path) -> None:
    folder = tmp_path / "imagenet" / "train" / WNIDS[0]
    folder.mkdir(parents=True)
    for i, image in enumerate(TEST.pixels):
        (folder / f"{WNIDS[0]}_{i:02d}.png").write_bytes(file_of(image))
    images = streamed.load(locate(load_set("imagenet"), "train", Roots((tmp_path,))), 32, 3, 32, 0)
    augment, order = Augment(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=True), Order(1, 20, 20)
    ((x, _),) = all_batches(StreamedTraining(images, load_task("imagenet").data, augment, 0, CPU), order)
    originals = normalised(TEST.pixels[order.permutation(0)], load_task("imagenet").data).float()
    straight = [torch.allclose(a, b, atol=1e-5) for a, b in zip(x, originals, strict=True)]
    mirrored = [torch.allclose(a, b.flip(-1), atol=1e-5) for a, b in zip(x, originals, strict=True)]
    assert [a != b for a, b in zip(straight, mirrored, strict=True)] == [True] * 20
    assert 3 <= sum(mirrored) <= 17


@two_workers
def test_evaluated_images_are_centre_crops_with_and_without_workers(small_imagenet: Path) -> None:
    images = scene_images(small_imagenet).take(np.array([4, 0, 9, 2, 17]))
    parts = [np.array([0, 1]), np.array([2, 3]), np.array([4])]
    transform = transforms.Compose([transforms.Resize(30), transforms.CenterCrop(24)])
    expected = [np.asarray(transform(images.image(i))) for i in range(5)]
    for workers in (0, 2):
        found = torch.cat(list(replace(images, workers=workers).batches(parts, torch.device("cpu"))))
        assert np.array_equal(found.numpy(), np.stack(expected))


def test_streamed_plain_images_are_centre_crops(small_imagenet: Path) -> None:
    training = scene_training(small_imagenet)
    x, y = training.plain(np.array([5, 1]))
    pixels = np.stack([training.images.evaluated(i) for i in (5, 1)])
    torch.testing.assert_close(x.double(), normalised(pixels, load_task("imagenet").data), atol=1e-5, rtol=0)
    assert y.tolist() == training.labels[[5, 1]].tolist()


@two_workers
@pytest.mark.parametrize(
    ("content", "workers"),
    [(b"nonsense", 0), (scenes("train", 1)[0][2][:-200], 0), (b"nonsense", 2)],
    ids=["nonsense", "half", "in-a-worker"],
)
def test_streamed_image_that_cannot_be_decoded(content: bytes, workers: int, tmp_path: Path) -> None:
    scene_folder(tmp_path / "folder" / "imagenet", {"train": scenes("train", 3)})
    file = tmp_path / "folder" / "imagenet" / "train" / WNIDS[1] / f"{WNIDS[1]}_99.JPEG"
    assert file.is_file()
    file.write_bytes(content)
    one_line(refusal(lambda: all_batches(scene_training(tmp_path, workers), Order(1, 9, 3))), file.stem)


# crops


def boxes(width: int, height: int, n: int = 400, augment: Augment | None = None) -> NDArray[np.int64]:
    """(n, 4): left, top, width, height."""
    used = augment or Augment()
    draws = streams.uniform(streams.key("boxes", width, height), 22 * n).reshape(n, 22)
    return np.array([crop_box(width, height, used.scale, used.ratio, row) for row in draws])


@pytest.mark.parametrize(
    "size",
    [(500, 375), (375, 500), (224, 224), (64, 64), (5, 3), (1, 1), (1, 1000), (1000, 1), (2000, 100), (90, 2000)],
)
def test_crop_box_is_inside_the_image(size: tuple[int, int]) -> None:
    left, top, width, height = boxes(*size).T
    assert (width > 0).all()
    assert (height > 0).all()
    assert left.min() >= 0
    assert top.min() >= 0
    assert (left + width).max() <= size[0]
    assert (top + height).max() <= size[1]


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (224, 224)])
def test_crop_box_has_an_area_and_ratio_within_limits(size: tuple[int, int]) -> None:
    _, _, width, height = boxes(*size).T
    area, ratio = width * height / (size[0] * size[1]), width / height
    assert 0.075 < area.min() < 0.12
    assert 0.85 < area.max() <= 1.0
    assert 0.74 < ratio.min() < 0.8
    assert 1.25 < ratio.max() < 1.35


@pytest.mark.parametrize("size", [(500, 375), (31, 77), (7, 7)])
def test_two_draws_place_the_crop(size: tuple[int, int]) -> None:
    for x, y in ((0, 0), (0, 1), (1, 0), (1, 1)):
        draws = np.zeros(22)
        draws[1], draws[20:] = 0.5, np.array([x, y]) * (1 - 2.0**-53)
        left, top, width, height = crop_box(*size, (0.25, 1.0), (0.75, 4 / 3), draws)
        assert (width, height) == (round(0.5 * math.sqrt(math.prod(size))),) * 2
        assert (left, top) == (x * (size[0] - width), y * (size[1] - height))


@pytest.mark.parametrize("size", [(1000, 10), (10, 1000), (3, 400), (900, 7)])
def test_crop_box_falls_back_as_torchvision_does(size: tuple[int, int]) -> None:
    scale, ratio = (0.9, 1.0), (0.75, 4 / 3)
    top, left, height, width = transforms.RandomResizedCrop.get_params(Image.new("L", size), list(scale), list(ratio))
    assert crop_box(*size, scale, ratio, np.full(22, 0.5)) == (left, top, width, height)


@pytest.mark.parametrize("size", [(500, 375), (300, 400)])
def test_crop_boxes_are_distributed_as_torchvisions(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    image, n = Image.new("L", size), 2000
    theirs = np.array([transforms.RandomResizedCrop.get_params(image, [0.08, 1.0], [0.75, 4 / 3]) for _ in range(n)])
    ours = boxes(*size, n)[:, [1, 0, 3, 2]]
    for of in (lambda b: b[:, 2] * b[:, 3], lambda b: np.log(b[:, 3] / b[:, 2]), lambda b: b[:, 0], lambda b: b[:, 1]):
        a, b = of(ours), of(theirs)
        assert abs(a.mean() - b.mean()) < 4 * math.sqrt((a.var() + b.var()) / n)
        assert a.std() == pytest.approx(b.std(), rel=0.1)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("height", [33, 100, 224, 256, 259, 480])
@pytest.mark.parametrize("width", [80, 223, 256, 259, 640])
def test_centre_crop_equals_torchvisions(width: int, height: int, mode: str) -> None:
    channels = len(mode)
    values = streams.integers(streams.key("crop test", width), width * height * channels, 256).astype(np.uint8)
    image = Image.fromarray(values.reshape(height, width, channels).squeeze())
    theirs = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])(image)
    ours = centre_crop(image, 256, 224)
    assert ours.size == (224, 224)
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))


# whole tasks


@pytest.fixture(scope="module")
def digits() -> TaskImages:
    return open_small(load_task("digits"), Roots())


def parts_of(images: TaskImages) -> tuple[Any, Any, Any]:
    """Training, validation and test images of a task with resident images."""
    return images.train, images.validation, images.test


def rows_as_bytes(images: Any) -> list[bytes]:
    return [image.tobytes() for image in images.pixels]


def test_digits_are_1200_200_397(digits: TaskImages) -> None:
    parts = parts_of(digits)
    assert [len(part) for part in parts] == [1200, 200, 397]
    assert [part.pixels.shape[1:] for part in parts] == [(8, 8, 1)] * 3
    assert [set(part.labels) for part in parts] == [set(range(10))] * 3
    assert digits.notes == []


def test_digits_are_scikit_learns_each_in_one_part(digits: TaskImages) -> None:
    from sklearn.datasets import load_digits

    theirs = load_digits()
    images = np.rint(theirs.images * 255 / 16).astype(np.uint8)
    found = [pair for part in parts_of(digits) for pair in zip(rows_as_bytes(part), part.labels, strict=True)]
    assert sorted(found) == sorted(zip([image.tobytes() for image in images], theirs.target, strict=True))
    train, validation, test = (set(rows_as_bytes(part)) for part in parts_of(digits))
    assert not train & validation
    assert not test & (train | validation)


def test_digits_are_split_the_same_every_time(digits: TaskImages) -> None:
    again = open_small(load_task("digits"), Roots())
    assert again.facts == digits.facts
    for part, other in zip(parts_of(again), parts_of(digits), strict=True):
        assert np.array_equal(part.pixels, other.pixels)
        assert np.array_equal(part.labels, other.labels)


def test_facts_of_digits(digits: TaskImages) -> None:
    declared = load_set("digits").splits
    assert digits.facts["digits/train"] == {
        "fingerprint": declared["train"].fingerprint,
        "n": 1400,
        "source": "inside scikit-learn",
        "trained_on": 1200,
        "validation": 200,
    }
    assert digits.facts["digits"]["fingerprint"] == declared["test"].fingerprint
    counts = {name: fact["n"] for name, fact in digits.facts.items()}
    assert counts == {"digits/train": 1400, "digits": 397, "photos": 1000, "noise": 397}


def test_limits(digits: TaskImages) -> None:
    few = open_small(load_task("digits"), Roots(), Limits(train=100, test=50))
    assert [len(part) for part in (*parts_of(few), *few.ood.values())] == [100, 50, 50, 50, 50]
    for part, whole in zip(parts_of(few), parts_of(digits), strict=True):
        assert set(rows_as_bytes(part)) < set(rows_as_bytes(whole))
    assert few.facts["digits/train"]["trained_on"] == 100
    assert few.facts["digits"]["n"] == 50


def test_limits_above_what_there_is(digits: TaskImages) -> None:
    assert open_small(load_task("digits"), Roots(), Limits(train=5000, test=5000)).facts == digits.facts


def test_scoring_needs_no_training_images() -> None:
    task = load_task("digits")
    found, skipped = opened.find_all(task, Roots(), False, False)
    images = opened.open_all(task, found, skipped, Limits(), 0)
    assert (images.train, images.validation, len(images.test)) == (None, None, 397)


def test_small_cifar_is_split_the_same_from_every_layout(tmp_path: Path) -> None:
    found = []
    for layout, write in LAYOUTS.items():
        write(tmp_path / layout / "cifar10", TRAIN.shuffled(len(found)), TEST.shuffled(len(found)))
        images = open_small(small_task(), Roots((tmp_path / layout,)))
        parts: list[Any] = [*parts_of(images), *images.ood.values()]
        assert [len(part) for part in parts] == [36, 4, 20, 20, 20]
        assert images.notes == [
            "cifar10 (train) has 40 images, its definition says 50,000",
            "cifar10 (test) has 20 images, its definition says 10,000",
        ]
        assert images.differences == {"cifar10/train": 40, "cifar10/test": 20}
        found.append([(part.pixels.tobytes(), part.labels.tobytes()) for part in parts])
    assert found[0] == found[1] == found[2]


def test_other_images_of_the_right_number_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_parquet(tmp_path / "cifar10", TRAIN, TEST)
    image_set = load_set("cifar10")
    counts = {"train": 40, "test": 20}
    splits = {name: split.model_copy(update={"n": counts[name]}) for name, split in image_set.splits.items()}
    monkeypatch.setattr(opened, "load_set", lambda _: image_set.model_copy(update={"splits": splits}))
    images = open_small(small_task(validation=4, ood=()), Roots((tmp_path,)))
    assert images.differences == {f"cifar10/{k}": load_ten(Roots((tmp_path,)), k).fingerprint[:12] for k in counts}
    assert [note.split(" (fingerprint")[0] for note in images.notes] == [
        f"cifar10 ({split}) holds other images than its definition's" for split in ("train", "test")
    ]


def test_streamed_task(small_imagenet: Path) -> None:
    task = load_task("imagenet")
    data = task.data.model_copy(update={"classes": 3, "size": 24})
    few = task.model_copy(
        update={"data": data, "evaluation": task.evaluation.model_copy(update={"ood": ("gaussian", "noise")})}
    )
    images = open_small(few, Roots((small_imagenet / "parquet",)))
    train, validation, test = parts_of(images)
    assert (len(train), len(validation), len(test)) == (17, 1, 9)
    noise: Any = images.ood["noise"]
    assert np.array_equal(noise.evaluated(3), noise.evaluated(3))
    assert not np.array_equal(noise.evaluated(3), noise.evaluated(4))
    assert isinstance(opened.training_set(train, few, 0, CPU), StreamedTraining)


# embedded and generated sets


def test_generated_sets_are_pinned(digits: TaskImages) -> None:
    assert digits.facts["noise"]["fingerprint"] == NOISE
    assert resident.generate(load_set("gaussian"), parts_of(digits)[2]).fingerprint == GAUSSIAN


def flat(value: int, n: int = 40) -> ResidentImages:
    return ResidentImages(np.full((n, 32, 32, 3), value, np.uint8), np.zeros(n, np.int64), "", "")


def normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


@pytest.mark.parametrize(
    ("name", "base", "mean", "sigma"),
    [("noise", 0, 0.5, 0.25), ("noise", 200, 0.5, 0.25), ("gaussian", 128, 128 / 255, 0.2), ("gaussian", 0, 0.0, 0.2)],
)
def test_generated_pixels_are_normal_and_clipped(name: str, base: int, mean: float, sigma: float) -> None:
    images = resident.generate(load_set(name), flat(base))
    values = images.pixels.ravel()
    assert images.pixels.dtype == np.uint8
    assert images.labels.tolist() == [-1] * 40
    for level in (0, 60, 110, 128, 150, 200, 254):
        wanted = normal_cdf(((level + 0.5) / 255 - mean) / sigma)
        assert (values <= level).mean() == pytest.approx(wanted, abs=5 * math.sqrt(0.25 / values.size))
    assert len({image.tobytes() for image in images.pixels}) == 40


def test_generated_images_depend_on_their_index_alone() -> None:
    noise = load_set("noise")
    assert np.array_equal(resident.generate(noise, flat(0, 10)).pixels, resident.generate(noise, flat(9)).pixels[:10])


def test_noise_is_added_to_the_tasks_own_images() -> None:
    images = resident.generate(load_set("gaussian"), ResidentImages(TEST.pixels, np.arange(20), "", ""))
    change = images.pixels.astype(int) - TEST.pixels
    inner = (TEST.pixels > 100) & (TEST.pixels < 155)
    assert change[inner].mean() == pytest.approx(0, abs=1.5)
    assert change[inner].std() == pytest.approx(51, rel=0.05)


def test_photos_are_a_thousand_grey_patches(digits: TaskImages) -> None:
    photos: Any = digits.ood["photos"]
    assert photos.pixels.shape == (1000, 8, 8, 1)
    assert photos.pixels.dtype == np.uint8
    patches, _ = embedded.photos()
    assert len(patches) == 2 * (427 // 8) * (640 // 8)
    assert set(rows_as_bytes(photos)) <= {patch.tobytes() for patch in patches}
    assert digits.facts["photos"]["fingerprint"] == PHOTOS


def test_patches_lie_side_by_side() -> None:
    from sklearn.datasets import load_sample_images

    patches, _ = embedded.photos()
    photo = load_sample_images().images[0].astype(int).sum(axis=2) // 3
    assert np.array_equal(patches[0, ..., 0], photo[:8, :8])
    assert np.array_equal(patches[81, ..., 0], photo[8:16, 8:16])


# real images


@pytest.mark.parametrize(
    ("name", "split"),
    [
        pytest.param("cifar10", "train", marks=pytest.mark.slow),
        ("cifar10", "test"),
        pytest.param("cifar100", "test", marks=pytest.mark.slow),
    ],
)
def test_real_images_have_the_declared_fingerprint(name: str, split: str, real_images: Path) -> None:
    declared = load_set(name).splits[split]
    images = resident.load(locate(load_set(name), split, Roots((real_images,))), 32, 3)
    assert (len(images), images.fingerprint) == (declared.n, declared.fingerprint)


def test_real_scenes_are_streamed(real_images: Path) -> None:
    roots = named(real_images / "imagenet-1k-sample", "imagenet")
    images = streamed.load(locate(load_set("imagenet"), "validation", roots), 224, 3, 256, 0)
    assert sorted(images.labels) == list(range(1000))
    assert images.evaluated(0).shape == (224, 224, 3)


def test_real_grey_scenes_are_converted(real_images: Path) -> None:
    roots = named(real_images / "tiny-imagenet-10", "imagenet")
    images = streamed.load(locate(load_set("imagenet"), "validation", roots), 56, 3, 64, 0)
    assert {images.encoded.open(i).mode for i in range(len(images))} >= {"L", "RGB"}
    assert {images.image(i).mode for i in range(len(images))} == {"RGB"}


def test_real_textures_have_no_labels(real_images: Path) -> None:
    located: Located = locate(load_set("textures"), "test", named(real_images / "dtd-10class-sample", "textures"))
    images = streamed.load(located, 224, 3, 256, 0)
    assert (len(images), set(images.labels)) == (300, {-1})


def test_an_interrupted_download_is_not_the_set(hub: Path) -> None:
    image_set = load_set("svhn")
    folder = hub / "datasets--ufldl-stanford--svhn" / "snapshots" / image_set.revision / "cropped_digits"
    folder.mkdir(parents=True)
    (folder / "test-00000-of-00002.parquet").write_bytes(b"")
    with pytest.raises(MissingData, match=r"holds 1 of 2 files of image set 'svhn' \(test\): finish the download"):
        locate(image_set, "test", Roots())
    (folder / "test-00001-of-00002.parquet").write_bytes(b"")
    assert len(locate(image_set, "test", Roots()).files) == 2


def test_a_part_of_a_set_in_a_folder_of_ones_own_runs(tmp_path: Path) -> None:
    write_parquet(tmp_path / "cifar10" / "test-00000-of-00009.parquet", rows_of(TEST), TEST.labels)
    assert len(locate(load_set("cifar10"), "test", Roots((tmp_path,))).files) == 1
