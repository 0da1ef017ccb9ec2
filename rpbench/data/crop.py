"""Crops of images: RandomResizedCrop from a file's bytes for training, a centre crop of a decoded image else.

Training decodes JPEGs with simplejpeg: libjpeg-turbo as inside Pillow, and the same pixels to the bit, in two thirds of
the time. Pillow decodes everything else. The resize is torch's for 8-bit images: the same pixels on every processor.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from io import BytesIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from simplejpeg import decode_jpeg, decode_jpeg_header
from torch.nn.functional import interpolate

from rpbench.data.encoded import UNREADABLE, Encoded, named

Box = tuple[int, int, int, int]
Pixels = NDArray[np.uint8]
BILINEAR = Image.Resampling.BILINEAR


def resized_crop(
    encoded: Encoded, index: int, box_of: Callable[[int, int], Box], size: int, channels: int
) -> torch.Tensor:
    """A box of image `index` at `size` x `size` (bilinear, antialiased): (size, size, c) uint8.

    `box_of(width, height)` is its (left, top, width, height). Raises DataError for an image that cannot be decoded.
    """
    with named(encoded, index):
        content = encoded.read(index)
        if channels == 3:
            # no JPEG, or not a whole one: Pillow reads what can be read, and says what cannot
            with contextlib.suppress(*UNREADABLE):
                return _crop_of_jpeg(content, box_of, size)
        with Image.open(BytesIO(content)) as image:
            pixels = to_pixels(image.convert("L" if channels == 1 else "RGB"), channels)
    return _resized(pixels, box_of(pixels.shape[1], pixels.shape[0]), size)


def crop_box(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], draws: NDArray[np.float64]
) -> Box:
    """RandomResizedCrop's box (left, top, width, height): ten tries of area and log-uniform ratio, else a centre crop.

    `draws` are 22 numbers in [0, 1): two a try, then the position.
    """
    area, logs = width * height, (math.log(ratio[0]), math.log(ratio[1]))
    for attempt in range(10):
        target = area * (scale[0] + draws[2 * attempt] * (scale[1] - scale[0]))
        aspect = math.exp(logs[0] + draws[2 * attempt + 1] * (logs[1] - logs[0]))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(draws[20] * (width - w + 1)), int(draws[21] * (height - h + 1)), w, h
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (width - w) // 2, (height - h) // 2, w, h


def centre_crop(image: Image.Image, resize: int, size: int) -> Image.Image:
    """Shorter side to `resize` (bilinear, antialiased), then the centre `size` x `size`; as torchvision's."""
    w, h = image.size
    short = min(w, h)
    if short != resize:
        w, h = (resize, int(resize * h / w)) if w <= h else (int(resize * w / h), resize)
        image = image.resize((w, h), BILINEAR)
    left, top = round((w - size) / 2), round((h - size) / 2)
    return image.crop((left, top, left + size, top + size))


def to_pixels(image: Image.Image, channels: int) -> Pixels:
    """(h, w, c) uint8, a copy."""
    return np.array(image, dtype=np.uint8).reshape(image.size[1], image.size[0], channels)


def _crop_of_jpeg(content: bytes, box_of: Callable[[int, int], Box], size: int) -> torch.Tensor:
    """As resized_crop, in colour; ValueError for what is not a whole JPEG in colours that libjpeg turns into RGB."""
    height, width, colours, _ = decode_jpeg_header(content)
    if colours not in ("YCbCr", "RGB", "Gray") or width * height > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise ValueError(f"left to Pillow: {width} x {height} in {colours}")
    box = box_of(width, height)
    # twice the wanted pixels are left, as where Pillow makes thumbnails: hardly to be told from a whole decode
    shrink = next((s for s in (8, 4, 2) if min(box[2:]) >= 2 * s * size), 1)
    least_h, least_w = -(-height // shrink), -(-width // shrink)
    pixels = decode_jpeg(content, "RGB", min_height=least_h, min_width=least_w, min_factor=shrink)
    return _resized(pixels, box, size) if shrink == 1 else _resized_from_smaller(pixels, shrink, box, size)


def _resized(pixels: Pixels, box: Box, size: int) -> torch.Tensor:
    """Cropped first, so that no pixel outside the box bleeds in."""
    left, top, w, h = box
    # the batch axis before the permutation: only so torch sees channels last, and takes half as long
    crop = torch.from_numpy(pixels)[None, top : top + h, left : left + w].permute(0, 3, 1, 2)
    return interpolate(crop, (size, size), mode="bilinear", antialias=True)[0].permute(1, 2, 0)


def _resized_from_smaller(pixels: Pixels, shrink: int, box: Box, size: int) -> torch.Tensor:
    """The same from an image decoded at 1/`shrink`, where the box' edges lie between pixels."""
    left, top, right, bottom = (edge / shrink for edge in (box[0], box[1], box[0] + box[2], box[1] + box[3]))
    x, y = int(left), int(top)
    cover = Image.fromarray(pixels[y : math.ceil(bottom), x : math.ceil(right)])
    image = cover.resize((size, size), BILINEAR, box=(left - x, top - y, right - x, bottom - y))
    return torch.from_numpy(to_pixels(image, pixels.shape[2]))
