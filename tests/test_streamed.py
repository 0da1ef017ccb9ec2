"""Large images: every one read once an epoch, the same pixels however the work is shared, in memory that stays flat."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from crop_digest import digest, random_box
from numpy.typing import NDArray
from PIL import Image
from simplejpeg import decode_jpeg

from rpbench.bench import data as bench
from rpbench.data import streamed
from rpbench.data.crop import Box, resized_crop
from rpbench.data.order import Order
from rpbench.data.sources import Roots, locate
from rpbench.data.streamed import StreamedImages, StreamedTraining
from rpbench.errors import DataError
from rpbench.task import Augment, load_set, load_task

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")

CPU = torch.device("cpu")
N, BATCH = 23, 5
SOME = bench.made("256")[:N]
LAYOUTS = ("images", "parquet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same 23 JPEGs as `images/imagenet` and as two files of `parquet/imagenet`."""
    root = tmp_path_factory.mktemp("photos")
    names = [f"n0000000{i % 3}_{i:02d}" for i in range(N)]
    for name, content in zip(names, SOME, strict=True):
        place = root / "images" / "imagenet" / "train" / name[:9]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{name}.JPEG").write_bytes(content)
    (root / "parquet" / "imagenet").mkdir(parents=True)
    for k, part in enumerate((slice(0, 10), slice(10, N))):
        rows = [{"bytes": b, "path": f"{n}.JPEG"} for n, b in zip(names[part], SOME[part], strict=True)]
        table = pa.table({"image": rows, "label": [i % 3 for i in range(N)][part]})
        pq.write_table(table, root / "parquet" / "imagenet" / f"train-{k:05d}-of-00002.parquet", row_group_size=4)
    return root


@pytest.fixture(scope="module")
def real(real_images: Path) -> StreamedImages:
    """Fifty real photos from the hub's parquet."""
    roots = Roots(named=(("imagenet", real_images / "imagenet-1k-sample"),))
    return streamed.load(locate(load_set("imagenet"), "validation", roots), 224, 3, 256, 0).take(np.arange(50))


def opened(root: Path, layout: str, workers: int = 0, size: int = 32) -> StreamedImages:
    return streamed.load(locate(load_set("imagenet"), "train", Roots((root / layout,))), size, 3, 40, workers)


def training(images: StreamedImages, seed: int = 2) -> StreamedTraining:
    return StreamedTraining(images, load_task("imagenet").data, Augment(flip=True), seed, CPU)


def pixels_of(images: StreamedImages, order: Order, epoch: int = 0, first: int = 0) -> list[torch.Tensor]:
    return [x for x, _ in training(images).batches(order, epoch, first)]


def equal(x: list[torch.Tensor], y: list[torch.Tensor]) -> bool:
    return len(x) == len(y) and all(map(torch.equal, x, y))


class Logged:
    """Encoded images that write down which of them are read, from whatever process."""

    def __init__(self, encoded: Any, log: Path) -> None:
        self.encoded, self.log = encoded, log
        self.keys, self.labels = encoded.keys, encoded.labels

    def __len__(self) -> int:
        return len(self.encoded)

    def read(self, index: int) -> bytes:
        with open(self.log, "a") as log:
            log.write(f"{index}\n")
        content: bytes = self.encoded.read(index)
        return content

    def open(self, index: int) -> Image.Image:
        return Image.open(BytesIO(self.read(index)))

    def place(self, index: int) -> str:
        return str(self.encoded.place(index))


# who reads which image


@pytest.mark.parametrize(("workers", "world"), [(0, 1), (0, 2), (0, 3), (1, 1), (1, 3), (3, 1), (3, 2)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_image_is_read_once_an_epoch(layout: str, workers: int, world: int, folder: Path, tmp_path: Path) -> None:
    images = opened(folder, layout, workers)
    logged = replace(images, encoded=Logged(images.encoded, tmp_path / "log"))
    for rank in range(world):
        batches = pixels_of(logged, Order(1, N, BATCH, rank, world), epoch=1)
        assert len(batches) == math.ceil(N / BATCH)
    assert sorted(map(int, (tmp_path / "log").read_text().split())) == list(range(N))


def test_an_image_that_is_no_jpeg_is_read_once_too(tmp_path: Path) -> None:
    place = tmp_path / "imagenet" / "train" / "a"
    place.mkdir(parents=True)
    for i, content in enumerate(SOME[:3]):
        Image.open(BytesIO(content)).save(place / f"{i}.png")
    images = streamed.load(locate(load_set("imagenet"), "train", Roots((tmp_path,))), 32, 3, 40, 0)
    pixels_of(replace(images, encoded=Logged(images.encoded, tmp_path / "log")), Order(1, 3, 2))
    assert sorted(map(int, (tmp_path / "log").read_text().split())) == [0, 1, 2]


@pytest.mark.parametrize("first", [1, 3, 4, 5])
@pytest.mark.parametrize("workers", [0, 3])
def test_a_resumed_epoch_reads_only_what_is_left(workers: int, first: int, folder: Path, tmp_path: Path) -> None:
    images, order = opened(folder, "parquet", workers), Order(1, N, BATCH)
    logged = replace(images, encoded=Logged(images.encoded, tmp_path / "log"))
    (tmp_path / "log").touch()
    assert equal(pixels_of(logged, order, 1, first), pixels_of(opened(folder, "parquet"), order, 1)[first:])
    read = sorted(map(int, (tmp_path / "log").read_text().split()))
    assert read == sorted(images.indices[order.permutation(1)[first * BATCH :]])


# the same pixels


def test_pixels_depend_on_neither_workers_nor_layout_nor_batch(folder: Path) -> None:
    whole = torch.cat(pixels_of(opened(folder, "images"), Order(1, N, BATCH), 1))
    for layout, workers, batch in (("parquet", 0, BATCH), ("images", 1, 7), ("parquet", 3, N), ("images", 3, 1)):
        found = pixels_of(opened(folder, layout, workers), Order(1, N, batch), 1)
        assert torch.equal(torch.cat(found), whole)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_real_photos_do_not_depend_on_who_decodes_them(workers: int, real: StreamedImages) -> None:
    whole = pixels_of(real, Order(1, 50, 16), 1)
    parts = [pixels_of(replace(real, workers=workers), Order(1, 50, 16, rank, 2), 1, first=2) for rank in range(2)]
    assert equal([torch.cat(both) for both in zip(*parts, strict=True)], whole[2:])


def test_pixels_depend_on_no_vector_instructions(tmp_path: Path) -> None:
    for i, content in enumerate(bench.made("full")[:12]):
        (tmp_path / f"{i:02d}.jpg").write_bytes(content)
    code = "import sys; sys.path.insert(0, sys.argv[1]); import crop_digest; print(crop_digest.digest(sys.argv[2]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)],
        capture_output=True, text=True, check=True, env=os.environ | {"ATEN_CPU_CAPABILITY": "default"},
    )  # fmt: skip
    assert done.stdout.strip() == digest(str(tmp_path))


# what a crop is


def jpeg(pixels: NDArray[np.uint8], **options: Any) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", **({"quality": 90} | options))
    return buffer.getvalue()


def photo(width: int, height: int, which: int = 0) -> NDArray[np.uint8]:
    from sklearn.datasets import load_sample_images

    whole = Image.fromarray(load_sample_images().images[which])
    return np.asarray(whole.resize((width, height), Image.Resampling.BICUBIC))


def cropped(content: bytes, box: Box, size: int = 224) -> NDArray[np.float64]:
    return resized_crop(bench.Held([content]), 0, lambda *_: box, size, 3).numpy().astype(np.float64)


def reference(content: bytes, box: Box, size: int = 224) -> NDArray[np.float64]:
    """Decoded whole, cropped, then resized: all by Pillow."""
    left, top, w, h = box
    image = Image.open(BytesIO(content)).convert("RGB").crop((left, top, left + w, top + h))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)).astype(np.float64)


def shift(ours: NDArray[np.float64], theirs: NDArray[np.float64], axis: int) -> float:
    """How many pixels `ours` lies beside `theirs`: the least-squares fit of their difference to their slope."""
    slope = np.gradient(theirs, axis=axis)
    return float(((ours - theirs) * slope).sum() / (slope * slope).sum())


@pytest.mark.parametrize("options", [{"subsampling": s} for s in (0, 1, 2)] + [{"progressive": True}])
@pytest.mark.parametrize("size", [(500, 375), (33, 17), (8, 8), (1, 1)])
def test_decoded_jpegs_are_pillows_to_the_bit(size: tuple[int, int], options: dict[str, Any]) -> None:
    for pixels in (photo(*size), photo(*size)[..., 0]):
        content = jpeg(pixels, **options)
        assert np.array_equal(decode_jpeg(content, "RGB"), np.asarray(Image.open(BytesIO(content)).convert("RGB")))


@pytest.mark.parametrize("kind", ["256", "full"])
def test_crops_are_pillows_but_for_rounding(kind: str) -> None:
    for i, content in enumerate(bench.made(kind)[:16]):
        box = random_box(i)(*Image.open(BytesIO(content)).size)
        ours, theirs = cropped(content, box), reference(content, box)
        assert np.abs(ours - theirs).mean() < 0.25
        assert np.abs(ours - theirs).max() <= 3


def test_real_crops_are_pillows_but_for_rounding(real: StreamedImages) -> None:
    for i in range(len(real)):
        content = real.encoded.read(int(real.indices[i]))
        box = random_box(i)(*Image.open(BytesIO(content)).size)
        assert np.abs(cropped(content, box) - reference(content, box)).mean() < 0.25


@pytest.mark.parametrize("shrink", [2, 4, 8])
@pytest.mark.parametrize("size", [(600, 450), (611, 457)])
def test_an_image_decoded_at_less_than_its_size_is_neither_shifted_nor_cut(size: tuple[int, int], shrink: int) -> None:
    wanted = min(size) // (2 * shrink) - 20
    for which in (0, 1):
        content = jpeg(photo(*size, which))
        for box in ((0, 0, *size), (3, 5, size[0] - 7, size[1] - 6), (size[0] - 431, size[1] - 433, 431, 433)):
            assert min(box[2:]) // (2 * wanted) >= shrink
            ours, theirs = cropped(content, box, wanted), reference(content, box, wanted)
            assert np.abs(ours - theirs).mean() < 1.5
            assert abs(shift(ours, theirs, 0)) < 0.02
            assert abs(shift(ours, theirs, 1)) < 0.02


@pytest.mark.parametrize("size", [224, 64, 14])
def test_no_pixel_outside_the_box_bleeds_in(size: int) -> None:
    pixels = np.full((384, 512, 3), 255, dtype=np.uint8)
    pixels[64:320, 128:384] = 0
    assert cropped(jpeg(pixels, subsampling=0), (128, 64, 256, 256), size).max() <= 1


def test_a_box_as_large_as_the_crop_is_taken_as_it_is() -> None:
    content = jpeg(photo(300, 260))
    assert np.array_equal(cropped(content, (31, 17, 224, 224)), reference(content, (31, 17, 224, 224)))


def other_file(kind: str) -> bytes:
    image = Image.fromarray(photo(80, 60))
    buffer = BytesIO()
    {
        "png": lambda: image.save(buffer, "PNG"),
        "palette": lambda: image.convert("P").save(buffer, "GIF"),
        "cmyk": lambda: image.convert("CMYK").save(buffer, "JPEG"),
        "extra bytes": lambda: buffer.write(jpeg(photo(80, 60))[:-2] + b"xxxx\xff\xd9"),
    }[kind]()
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["png", "palette", "cmyk", "extra bytes"])
def test_what_is_no_plain_jpeg_is_decoded_by_pillow(kind: str) -> None:
    content = other_file(kind)
    assert np.abs(cropped(content, (7, 5, 60, 50), 32) - reference(content, (7, 5, 60, 50), 32)).max() <= 3


def test_a_grey_task_sees_pillows_grey() -> None:
    encoded = bench.Held([jpeg(photo(80, 60)), jpeg(photo(80, 60)[..., 0])])
    for i in range(2):
        theirs = np.asarray(encoded.open(i).convert("L"))[:, :, None]
        assert np.array_equal(resized_crop(encoded, i, lambda *_: (0, 0, 60, 60), 60, 1).numpy(), theirs[:60, :60])


# images that cannot be decoded


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("damage", ["half", "no end", "empty", "text"])
def test_a_damaged_image_is_named(damage: str, layout: str, workers: int, tmp_path: Path) -> None:
    content = {"half": SOME[3][:5000], "no end": SOME[3][:-2], "empty": b"", "text": b"no image"}[damage]
    contents = [*SOME[:3], content, *SOME[4:6]]
    folder = tmp_path / layout / "imagenet"
    (folder / "train" / "n00000000").mkdir(parents=True)
    if layout == "parquet":
        rows = [{"bytes": b, "path": f"n00000000_{i}.JPEG"} for i, b in enumerate(contents)]
        pq.write_table(pa.table({"image": rows, "label": [0] * 6}), folder / "train-00000-of-00001.parquet")
    else:
        for i, b in enumerate(contents):
            (folder / "train" / "n00000000" / f"n00000000_{i}.JPEG").write_bytes(b)
    images = opened(tmp_path, layout, workers)
    with pytest.raises(DataError, match=r"n00000000_3.* cannot be decoded: ") as error:
        pixels_of(images, Order(1, 6, 2))
    assert "\n" not in str(error.value)
    assert "BytesIO" not in str(error.value)


def test_a_file_that_has_gone_is_named(folder: Path) -> None:
    images = opened(folder, "images")
    images.encoded.names[4] = b"n00000000/gone.JPEG"  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=r"n00000000/gone\.JPEG' cannot be decoded: "):
        pixels_of(images, Order(1, N, BATCH))


# memory

EPOCH = """
import multiprocessing, resource, sys
from pathlib import Path
import torch
from rpbench.data import streamed
from rpbench.data.order import Order
from rpbench.data.sources import Roots, locate
from rpbench.task import Augment, load_set, load_task

def used():
    processes = ["self", *(str(child.pid) for child in multiprocessing.active_children())]
    pages = sum(int(Path(f"/proc/{p}/statm").read_text().split()[1]) for p in processes)
    return pages * resource.getpagesize() / 2**20

if __name__ == "__main__":
    torch.set_num_threads(1)
    located = locate(load_set("imagenet"), "train", Roots((Path(sys.argv[1]),)))
    data, augment = load_task("imagenet").data, Augment(flip=True)
    for workers in (0, 1):
        images = streamed.load(located, 224, 3, 256, workers)
        training = streamed.StreamedTraining(images, data, augment, 0, torch.device("cpu"))
        seen = [used() for _ in training.batches(Order(0, len(images), 16), 0, 0)]
        quarter = len(seen) // 4
        print(max(seen[-quarter:]) - max(seen[:quarter]))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="there is no /proc to read the memory from")
def test_memory_is_flat_over_an_epoch(tmp_path: Path) -> None:
    place = tmp_path / "imagenet" / "train" / "a"
    place.mkdir(parents=True)
    for i in range(800):
        (place / f"{i}.jpg").write_bytes(SOME[i % N])
    (tmp_path / "epoch.py").write_text(EPOCH)
    # glibc before 2.38 does not find the holes again that torch's aligned tensors leave (its bug 14581): no holes then
    own_pages = {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    done = subprocess.run(
        [sys.executable, str(tmp_path / "epoch.py"), str(tmp_path)],
        capture_output=True, text=True, check=True, env=os.environ | own_pages | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    # a kept crop is 0.15 MB, a kept batch 9.6 MB: over three quarters of the epoch that would be 90 MB and more
    assert [float(grown) < 30 for grown in done.stdout.split()] == [True, True], done.stdout


# what the bench races


def test_the_benchs_own_crops_pass_its_gate() -> None:
    assert bench.gate() == []


def test_the_gate_names_a_crop_that_is_beside_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def beside(encoded: Any, index: int, box_of: Any, size: int, channels: int) -> torch.Tensor:
        return resized_crop(encoded, index, box_of, size, channels).roll(1, 0)

    monkeypatch.setattr(bench, "resized_crop", beside)
    (wrong,) = bench.gate(SOME[:1])
    assert wrong.startswith("the crop (")
    assert "at most 0.25 is right" in wrong


@pytest.mark.parametrize("kind", ["256", "full", "small"])
def test_both_sides_of_a_race_do_the_same_images(kind: str) -> None:
    raced = bench.modes_small() if kind == "small" else bench.modes(kind, bench.made(kind)[:6])
    assert next(iter(raced)) == "usual"
    done = {name: start()() for name, start in raced.items()}
    assert done == ({"usual": 1024, "rpbench": 8192} if kind == "small" else {"usual": 6, "rpbench": 6})


def test_images_of_the_bench_are_as_large_as_they_say() -> None:
    for kind, shorter in (("256", 256), ("full", 375)):
        images = bench.made(kind)
        assert len(set(images)) == 48
        assert {min(Image.open(BytesIO(b)).size) for b in images} == {shorter}
    with pytest.raises(ValueError, match="no kind of image 'half': there is 256, full"):
        bench.made("half")
