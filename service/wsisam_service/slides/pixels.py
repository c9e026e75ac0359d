"""Pixels of views, regions and thumbnails: any level-0 rectangle of a slide, resampled to any size.

All rectangles are in level 0, pixel-edge frame, with fractions; output pixel i covers exactly its share of the
rectangle, so sub-pixel origins are kept. White outside the slide, but no white reaches in over its border: what the
filter or a level that ends early lacks there is taken from the nearest pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from wsisam_service.errors import ImageTooLarge, InvalidNumber
from wsisam_service.slides.reader import Level, RgbImage, SlideReader
from wsisam_service.views import View

MAX_REGION_PIXELS = 16_000_000
"""Largest output of `read_region_image`."""
MAX_JPEG_SIDE = 65_500
"""Longest side that a JPEG can have."""
COARSER_TOLERANCE = 1.02
"""A level coarser by this little still counts as not coarser: scanners' 0.252 µm is meant as the ladder's 0.25 µm."""
KEPT_DETAIL = 2
"""Whole-number reduction leaves at least this many pixels per output pixel to the antialiasing filter."""
HAMMING_FROM = 1.4
"""Level pixels per output pixel from which the Hamming window replaces bilinear."""
PIECE_PIXELS = 1024
"""Side of the pieces of the output that are made one after the other, and"""
BLOCK_PIXELS = 2048
"""side of the blocks in which large areas are read before reduction, so that memory stays bounded."""
MAX_READ_PIXELS = 2_000_000_000
"""Most pixels of a level that are read for one picture: a slide of 45,000 pixels a side without smaller levels."""

WHITE = 255
Rectangle = tuple[float, float, float, float]
"""(x, y, width, height) in level 0 where nothing else is said."""


def read_view(reader: SlideReader, view: View) -> RgbImage:
    """The pixels of `view`: uint8 (side, side, 3). Raises `UnreadableSlide`."""
    x, y = view.origin_level0
    return read_rectangle(reader, (x, y, view.size_level0, view.size_level0), (view.side, view.side))


def read_region_image(
    reader: SlideReader, rectangle: Rectangle, *, slide_mpp: float, mpp: float | None = None
) -> RgbImage:
    """The pixels of `rectangle` at `mpp` µm per pixel, or as stored at full resolution: uint8 (height, width, 3).

    `slide_mpp` is µm per level-0 pixel as used for this slide. Raises `InvalidNumber` for an empty rectangle,
    `ImageTooLarge`, `UnreadableSlide`.
    """
    scale = 1.0 if mpp is None else mpp / slide_mpp
    if not all(map(math.isfinite, (*rectangle, scale))) or min(rectangle[2], rectangle[3], scale) <= 0:
        raise InvalidNumber("A region needs finite numbers, and a width, height and mpp above 0.")
    width, height = (max(1.0, round(side / scale)) for side in rectangle[2:])
    if width * height > MAX_REGION_PIXELS:
        raise ImageTooLarge(f"The region would have more than {MAX_REGION_PIXELS} pixels; ask for a larger mpp.")
    return read_rectangle(reader, rectangle, (int(width), int(height)))


def thumbnail(reader: SlideReader, max_side: int) -> RgbImage:
    """The whole slide in at most `max_side` pixels each way, never enlarged. Raises `UnreadableSlide`."""
    width, height = reader.width, reader.height
    scale = max(1.0, max(width, height) / max_side)
    size = max(1, round(width / scale)), max(1, round(height / scale))
    return read_rectangle(reader, (0.0, 0.0, float(width), float(height)), size)


def read_rectangle(reader: SlideReader, rectangle: Rectangle, size: tuple[int, int]) -> RgbImage:
    """`rectangle` of level 0 resampled to `size` (width, height): uint8 (height, width, 3).

    Reads the coarsest level that is not coarser than the output, piece by piece of the output. Raises
    `UnreadableSlide`, and `ImageTooLarge` where too much would have to be read for it.
    """
    reader = reader.opened()
    x, y, width, height = rectangle
    scale_x, scale_y = width / size[0], height / size[1]
    index = _best_level(reader.info.levels, min(scale_x, scale_y))
    level = reader.info.levels[index]
    if _overlap(x, width, reader.width) * _overlap(y, height, reader.height) > MAX_READ_PIXELS * level.downsample**2:
        raise ImageTooLarge("Too much of the slide would have to be read for this picture; ask for a part of it.")
    picture = np.full((size[1], size[0], 3), WHITE, np.uint8)
    for top in range(0, size[1], PIECE_PIXELS):
        for left in range(0, size[0], PIECE_PIXELS):
            wide, high = min(PIECE_PIXELS, size[0] - left), min(PIECE_PIXELS, size[1] - top)
            part = x + left * scale_x, y + top * scale_y, wide * scale_x, high * scale_y
            if not (_overlap(part[0], part[2], reader.width) and _overlap(part[1], part[3], reader.height)):
                continue  # white
            picture[top : top + high, left : left + wide] = _read_part(reader, index, part, (wide, high))
    return picture


def _overlap(start: float, length: float, side: int) -> float:
    """How much of the slide's `side` a stretch covers."""
    return max(0.0, min(start + length, side) - max(start, 0.0))


def _read_part(reader: SlideReader, index: int, rectangle: Rectangle, size: tuple[int, int]) -> RgbImage:
    """`rectangle` of level 0 resampled to a small `size` (width, height) from the level of `index`."""
    level = reader.info.levels[index]
    x, width = rectangle[0] / level.downsample_x, rectangle[2] / level.downsample_x
    y, height = rectangle[1] / level.downsample_y, rectangle[3] / level.downsample_y
    by_x, by_y = _reduction(width / size[0]), _reduction(height / size[1])
    # The filter reaches over the part by at most one output pixel, and at least by what interpolation needs.
    margin_x, margin_y = math.ceil(width / size[0]) + 1, math.ceil(height / size[1]) + 1
    left, top = math.floor(x) - margin_x, math.floor(y) - margin_y
    shape = (
        math.ceil((math.ceil(y + height) + margin_y - top) / by_y),
        math.ceil((math.ceil(x + width) + margin_x - left) / by_x),
    )
    pixels = _read_reduced(reader, index, (left, top), shape, (by_x, by_y))
    inside = ((x - left) / by_x, (y - top) / by_y, width / by_x, height / by_y)
    return _on_white(_resample(pixels, inside, size), rectangle, (reader.width, reader.height))


def _reduction(scale: float) -> int:
    """By which whole number pixels are averaged before they are resampled, at `scale` level pixels per output pixel."""
    return min(max(1, int(scale / KEPT_DETAIL)), BLOCK_PIXELS)


def _best_level(levels: Sequence[Level], scale: float) -> int:
    """The coarsest level with at most `scale` level-0 pixels per pixel; 0 where the output is finer than the slide."""
    return max((i for i, level in enumerate(levels) if level.downsample <= scale * COARSER_TOLERANCE), default=0)


def _read_reduced(
    reader: SlideReader, level: int, origin: tuple[int, int], shape: tuple[int, int], by: tuple[int, int]
) -> RgbImage:
    """Means over `by` (x, y) pixels of `level`, from `origin` (x, y) on: uint8 (*shape, 3). Beyond the level its
    outermost pixels go on.
    """
    (left, top), (rows, columns), (by_x, by_y) = origin, shape, by
    if by == (1, 1):
        return _read_clamped(reader, level, origin, shape)
    reduced = np.empty((rows, columns, 3), np.uint8)
    size = reader.info.levels[level]
    block_x, block_y = BLOCK_PIXELS // by_x, BLOCK_PIXELS // by_y
    # Blocks wholly outside the level are not read.
    first_column, last_column = _inside(left, columns, by_x, size.width)
    first_row, last_row = _inside(top, rows, by_y, size.height)
    for row in range(first_row, last_row, block_y):
        for column in range(first_column, last_column, block_x):
            high, wide = min(block_y, last_row - row), min(block_x, last_column - column)
            corner = left + column * by_x, top + row * by_y
            pixels = _read_clamped(reader, level, corner, (high * by_y, wide * by_x))
            mean = cv2.resize(pixels, (wide, high), interpolation=cv2.INTER_AREA)
            reduced[row : row + high, column : column + wide] = mean
    reduced[:, :first_column] = reduced[:, first_column : first_column + 1]
    reduced[:, last_column:] = reduced[:, last_column - 1 : last_column]
    reduced[:first_row] = reduced[first_row]
    reduced[last_row:] = reduced[last_row - 1]
    return reduced


def _inside(start: int, count: int, by: int, side: int) -> tuple[int, int]:
    """Which (from, to) of `count` means over `by` pixels from `start` on meet a level of `side`; at least one."""
    first = min(max(0, -start // by), count - 1)
    return first, max(first + 1, min(count, math.ceil((side - start) / by)))


def _read_clamped(reader: SlideReader, level: int, origin: tuple[int, int], shape: tuple[int, int]) -> RgbImage:
    """The pixels of `level` from `origin` (x, y) on, beyond it the nearest that it has: uint8 (*shape, 3)."""
    size = reader.info.levels[level]
    columns = (origin[0] + np.arange(shape[1])).clip(0, size.width - 1)
    rows = (origin[1] + np.arange(shape[0])).clip(0, size.height - 1)
    left, top = int(columns[0]), int(rows[0])
    pixels = reader.read_region(level, left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1)
    return pixels if pixels.shape[:2] == shape else pixels[np.ix_(rows - top, columns - left)]


def _on_white(pixels: RgbImage, rectangle: Rectangle, slide: tuple[int, int]) -> RgbImage:
    """`pixels` of `rectangle`, each white by as much of it as lies outside a `slide` of (width, height)."""
    x, y, width, height = rectangle
    if x >= 0 and y >= 0 and x + width <= slide[0] and y + height <= slide[1]:
        return pixels
    rows = _shares_inside(y, height, pixels.shape[0], slide[1])
    columns = _shares_inside(x, width, pixels.shape[1], slide[0])
    ink = (WHITE - pixels) * (rows[:, None, None] * columns[None, :, None])
    return np.asarray(WHITE + 0.5 - ink, np.uint8)


def _shares_inside(start: float, length: float, count: int, side: int) -> npt.NDArray[np.float32]:
    """How much of each of the `count` parts of a stretch lies in 0 to `side`."""
    edges = (start + np.arange(count + 1) * (length / count)).clip(0, side)
    return (np.diff(edges) / (length / count)).astype(np.float32)


def _resample(pixels: RgbImage, rectangle: Rectangle, size: tuple[int, int]) -> RgbImage:
    """`rectangle` of `pixels` as an image of `size`, antialiased; means over areas within 2 grey levels.

    Of Pillow's kernels the Hamming window comes nearest to area means, but near full resolution it snaps to whole
    pixels; there bilinear is nearest (1.7 grey levels at worst on the sharpest slide at hand, bicubic 2.7).
    """
    x, y, width, height = rectangle
    averages = min(width / size[0], height / size[1]) >= HAMMING_FROM
    kernel = Image.Resampling.HAMMING if averages else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(pixels).resize(size, kernel, box=(x, y, x + width, y + height)))
