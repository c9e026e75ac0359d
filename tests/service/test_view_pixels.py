"""Pixels of views, regions and thumbnails against plain reads of the same place."""

from __future__ import annotations

import functools
import math
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsisam_service.errors import ImageTooLarge, InvalidNumber
from wsisam_service.slides import pixels as pixels_module
from wsisam_service.slides.opening import open_slide
from wsisam_service.slides.pixels import Rectangle, read_rectangle, read_region_image, read_view, thumbnail
from wsisam_service.slides.reader import Level, RgbImage, SlideInfo, SlideReader
from wsisam_service.views import View, snapped_view

Pixels = npt.NDArray[np.uint8]
MakeSlide = Callable[..., Path]

TOLERANCE = 2.0
"""Grey levels on average (DESIGN.md section 5)."""


class ArraySlide(SlideReader):
    """A slide in memory that remembers which levels were read and the largest read."""

    def __init__(self, *levels: Pixels) -> None:
        height, width = levels[0].shape[:2]
        sizes = [Level(p.shape[1], p.shape[0], width / p.shape[1], height / p.shape[0]) for p in levels]
        self.info = SlideInfo(sizes)
        self._levels = levels
        self.read_levels: set[int] = set()
        self.largest_read = 0

    def read_region(self, level: int, x: int, y: int, width: int, height: int) -> RgbImage:
        self.read_levels.add(level)
        self.largest_read = max(self.largest_read, width * height)
        size = self.info.levels[level]
        region = np.full((height, width, 3), 255, np.uint8)
        x0, x1, y0, y1 = max(x, 0), min(x + width, size.width), max(y, 0), min(y + height, size.height)
        if x0 < x1 and y0 < y1:
            region[y0 - y : y1 - y, x0 - x : x1 - x] = self._levels[level][y0:y1, x0:x1]
        return region


def on_white(image: Pixels, left: int, top: int, right: int, bottom: int) -> npt.NDArray[np.float64]:
    """The rectangle of `image`, white where it reaches over the border."""
    region = np.full((bottom - top, right - left, 3), 255.0)
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(right, image.shape[1]), min(bottom, image.shape[0])
    region[y0 - top : y1 - top, x0 - left : x1 - left] = image[y0:y1, x0:x1]
    return region


def area_means(
    image: Pixels, rectangle: tuple[float, float, float, float], size: tuple[int, int]
) -> npt.NDArray[np.float64]:
    """`rectangle` of `image` on white, each output pixel the exact mean over its share: the oracle of shrinking."""
    x, y, width, height = rectangle
    left, top = math.floor(x), math.floor(y)
    means = on_white(image, left, top, math.ceil(x + width) + 1, math.ceil(y + height) + 1)
    for axis, start, length, count in ((0, y - top, height, size[1]), (1, x - left, width, size[0])):
        sums = np.concatenate([np.zeros_like(means.take([0], axis)), means.cumsum(axis)], axis)
        edges = start + np.arange(count + 1) * length / count
        whole = np.floor(edges).astype(int)
        part = (edges - whole).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        at = sums.take(whole, axis) * (1 - part) + sums.take(whole + 1, axis) * part
        means = np.diff(at, axis=axis) / (length / count)
    return means


@functools.cache
def opened(path: Path) -> SlideReader:
    return open_slide(path)


@functools.cache
def whole_level(slide: SlideReader, level: int) -> Pixels:
    size = slide.info.levels[level]
    return slide.read_region(level, 0, 0, size.width, size.height)


@pytest.mark.parametrize("k", [-1, 0, 1, 2, 3])
@pytest.mark.parametrize("place", [(0.5, 0.4), (0.03, 0.02), (0.99, 0.98)])
@pytest.mark.parametrize(
    "name", ["cmu-1-small-region-pyramid.ome.tif", "tcga-cr-7395-01a-01-ts1.svs", "os-1-he.ome.tif"]
)
def test_view_agrees_with_a_plain_read_of_the_same_region(
    shared: Path, name: str, place: tuple[float, float], k: int
) -> None:
    slide = opened(shared / "data/slides" / name)
    centre = slide.width * place[0], slide.height * place[1]
    view = snapped_view(centre, k, 256, slide.mpp or 1.0, lone_point=False)
    level = pixels_module._best_level(slide.info.levels, view.scale)
    size = slide.info.levels[level]
    plain = whole_level(slide, level)
    origin = view.origin_level0[0] / size.downsample_x, view.origin_level0[1] / size.downsample_y
    scale = view.scale / size.downsample_x, view.scale / size.downsample_y
    if scale[0] < 1:
        expected = enlarged(plain, origin, scale[0])
    else:
        expected = area_means(plain, (*origin, scale[0] * 256, scale[1] * 256), (256, 256))
    assert np.abs(read_view(slide, view) - expected).mean() <= TOLERANCE


def enlarged(image: Pixels, origin: tuple[float, float], scale: float) -> npt.NDArray[np.float64]:
    """256 x 256 pixels of `scale` source pixels each from `origin`, bilinear, on white."""
    left, top = (math.floor(start) - 1 for start in origin)
    source = on_white(image, left, top, left + 260, top + 260)
    x, y = (origin[0] - left, origin[1] - top)
    u, v = ((start + (np.arange(256) + 0.5) * scale - 0.5) for start in (x, y))
    columns, rows = np.floor(u).astype(int), np.floor(v).astype(int)
    u, v = (u - columns)[None, :, None], (v - rows)[:, None, None]
    upper = source[rows][:, columns] * (1 - u) + source[rows][:, columns + 1] * u
    lower = source[rows + 1][:, columns] * (1 - u) + source[rows + 1][:, columns + 1] * u
    return upper * (1 - v) + lower * v


@given(origin=st.tuples(st.floats(20, 60), st.floats(20, 60)), scale=st.floats(0.5, 9.0))
def test_fractional_origins_and_scales_land_where_they_say(origin: tuple[float, float], scale: float) -> None:
    side = 8
    slope = 100 / (
        scale * side
    )  # a ramp keeps its slope under every filter: a quarter of an output pixel is 3 grey levels
    image = np.zeros((160, 160, 3), np.uint8)
    for axis, start in enumerate(origin):
        ramp = 75 + ((np.arange(160) - start) * slope).clip(-75, 180)
        image[..., axis] = (ramp[None, :] if axis == 0 else ramp[:, None]).round()
    got = read_rectangle(ArraySlide(image), (*origin, scale * side, scale * side), (side, side)).astype(float)
    expected = 75 + ((np.arange(side) + 0.5) * scale - 0.5) * slope
    assert np.abs(got[..., 0] - expected[None, :]).max() <= 2.0
    assert np.abs(got[..., 1] - expected[:, None]).max() <= 2.0


@pytest.mark.parametrize("scale", [1.0, 1.1, 1.25, 1.39, 1.41, 1.5, 1.75, 2.0, 2.5, 3.0, 3.9, 4.1, 6.5])
def test_shrinking_is_near_to_area_means_on_the_sharpest_slide(shared: Path, scale: float) -> None:
    slide = opened(shared / "data/slides/cmu-1-small-region.svs")
    for origin in ((900.0, 900.0), (400.3, 900.55)):
        rectangle = (*origin, scale * 256, scale * 256)
        expected = area_means(whole_level(slide, 0), rectangle, (256, 256))
        assert np.abs(read_rectangle(slide, rectangle, (256, 256)) - expected).mean() <= TOLERANCE


def test_view_at_full_resolution_is_the_stored_pixels(tissue: Pixels) -> None:
    view = View(side=256, k=1, cx=8, cy=8, slide_mpp=0.5)
    assert view.origin_level0 == (0.0, 0.0)
    assert np.array_equal(read_view(ArraySlide(tissue), view), tissue[:256, :256])


def test_lr_view_holds_the_hr_view_in_its_middle(shared: Path) -> None:
    slide = open_slide(shared / "data/slides/os-1-he.ome.tif")
    hr_view = snapped_view((550.0, 550.0), 0, 256, slide.mpp or 1.0, lone_point=False)
    hr, lr = (read_view(slide, view).astype(float) for view in (hr_view, hr_view.coarser()))
    halved = hr.reshape(128, 2, 128, 2, 3).mean((1, 3))
    assert np.abs(halved - lr[64:192, 64:192]).mean() <= TOLERANCE


@pytest.mark.parametrize(("scale", "level"), [(0.5, 0), (1.0, 0), (1.9, 0), (1.984, 1), (2.0, 1), (3.9, 1), (9.0, 2)])
def test_best_level_that_is_not_coarser_is_read(tissue: Pixels, scale: float, level: int) -> None:
    slide = ArraySlide(tissue, tissue[::2, ::2], tissue[::4, ::4])
    read_rectangle(slide, (0, 0, 40 * scale, 40 * scale), (40, 40))
    assert slide.read_levels == {level}


def test_outside_is_white_at_every_scale(tissue: Pixels) -> None:
    slide = ArraySlide(np.zeros_like(tissue))
    for scale in (0.5, 1.0, 2.0, 7.3):
        image = read_rectangle(slide, (-100 * scale, -100 * scale, 200 * scale, 200 * scale), (200, 200))
        assert (image[:98] == 255).all()
        assert (image[:, :98] == 255).all()
        assert (image[102:150, 102:150] == 0).all()


@pytest.mark.parametrize("scale", [0.7, 1.0, 1.3, 3.0, 7.3])
def test_no_white_reaches_into_the_slide_nor_tissue_out_of_it(scale: float) -> None:
    slide = ArraySlide(np.zeros((300, 400, 3), np.uint8))
    whole = read_rectangle(slide, (0, 0, 400, 300), (round(400 / scale), round(300 / scale)))
    assert not whole.any()
    corner = read_rectangle(slide, (-9.5 * scale, 300 - 9.5 * scale, 20 * scale, 20 * scale), (20, 20))
    assert (corner[:, :9] == 255).all()
    assert (corner[10:] == 255).all()
    assert np.abs(corner[:9, 9].astype(int) - 127).max() <= 1  # half of these pixels is slide
    assert not corner[:9, 10:].any()


def test_level_that_ends_before_the_slide_does_leaves_no_white_there() -> None:
    grey = np.full((63, 63, 3), 60, np.uint8)
    slide = ArraySlide(np.full((255, 255, 3), 60, np.uint8), grey)
    slide.info = SlideInfo([Level(255, 255), Level(63, 63, 4.0, 4.0)])
    for side in (64, 40, 9):
        assert (read_rectangle(slide, (0, 0, 255, 255), (side, side)) == 60).all()
    assert slide.read_levels == {1}


def test_coarse_view_of_a_slide_of_one_level_is_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0).integers(0, 256, (700, 900, 3), np.uint8)
    slide = ArraySlide(random)
    monkeypatch.setattr(pixels_module, "BLOCK_PIXELS", 256)
    rectangle = (-133.3, -100.7, 1300.0, 950.0)
    image = read_rectangle(slide, rectangle, (52, 38))
    assert slide.largest_read <= 256 * 256
    assert np.abs(image - area_means(random, rectangle, (52, 38))).mean() <= TOLERANCE


def test_memory_of_a_coarse_view_stays_small() -> None:
    class Huge(SlideReader):
        info = SlideInfo([Level(40_000, 40_000)])

        def read_region(self, level: int, x: int, y: int, width: int, height: int) -> RgbImage:
            return np.full((height, width, 3), 128, np.uint8)

    view = View(side=256, k=8, cx=512, cy=512, slide_mpp=1.0)
    tracemalloc.start()
    try:
        assert read_view(Huge(), view).shape == (256, 256, 3)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("rectangle", "size"),
    [
        ((-5.0, 100.0, 300_000_000.0, 1.0), (2_343_750, 1)),
        ((0.0, 0.0, 12_000.0, 12_000.0), (6_000, 1)),
        ((0.0, 0.0, 12_000.0, 12_000.0), (1, 6_000)),
        ((0.0, 0.0, 12_000.0, 12_000.0), (1, 1)),
        ((1e300, -1e300, 10.0, 10.0), (10, 10)),
    ],
)
def test_memory_of_any_shape_of_picture_stays_small(rectangle: Rectangle, size: tuple[int, int]) -> None:
    class Grey(SlideReader):
        info = SlideInfo([Level(12_000, 12_000)])

        def read_region(self, level: int, x: int, y: int, width: int, height: int) -> RgbImage:
            return np.full((height, width, 3), 128, np.uint8)

    tracemalloc.start()
    try:
        picture = read_rectangle(Grey(), rectangle, size)
        assert tracemalloc.get_traced_memory()[1] < 150 << 20
    finally:
        tracemalloc.stop()
    middle = int(picture[size[1] // 2, min(size[0] // 2, 40), 0])
    assert middle == (255 if rectangle[0] > 12_000 else 128)


def test_a_picture_is_the_same_across_its_pieces(tissue: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    slide, rectangle = ArraySlide(tissue, tissue[::4, ::4]), (-20.5, 13.3, 400.0, 301.0)
    for size in ((730, 555), (100, 75), (31, 27)):
        whole = read_rectangle(slide, rectangle, size).astype(int)
        monkeypatch.setattr(pixels_module, "PIECE_PIXELS", 16)
        assert abs(read_rectangle(slide, rectangle, size) - whole).max() <= 1
        monkeypatch.undo()


@pytest.mark.parametrize(
    "levels", [(Level(100_000, 100_000),), (Level(300_000, 300_000), Level(75_000, 75_000, 4.0, 4.0))]
)
def test_what_would_take_the_reading_of_billions_of_pixels_is_refused(levels: tuple[Level, ...]) -> None:
    class Flat(SlideReader):
        info = SlideInfo(levels)

        def read_region(self, level: int, x: int, y: int, width: int, height: int) -> RgbImage:
            raise AssertionError

    with pytest.raises(ImageTooLarge):
        thumbnail(Flat(), 64)


def test_a_part_of_the_largest_slide_is_read_wherever_it_lies() -> None:
    class Grey(SlideReader):
        info = SlideInfo([Level(100_000, 100_000)])

        def read_region(self, level: int, x: int, y: int, width: int, height: int) -> RgbImage:
            return np.full((height, width, 3), 128, np.uint8)

    assert (read_rectangle(Grey(), (99_000.0, 99_000.0, 500.0, 500.0), (50, 50)) == 128).all()


def test_region_has_the_size_that_its_mpp_gives(tissue: Pixels) -> None:
    slide = ArraySlide(tissue)
    assert np.array_equal(read_region_image(slide, (10, 20, 100, 50), slide_mpp=0.5), tissue[20:70, 10:110])
    assert read_region_image(slide, (10, 20, 100, 50), slide_mpp=0.5, mpp=2.0).shape == (12, 25, 3)
    assert read_region_image(slide, (0, 0, 1, 1), slide_mpp=0.5, mpp=60.0).shape == (1, 1, 3)


def test_region_is_bounded_before_it_is_read(tissue: Pixels) -> None:
    slide = ArraySlide(tissue)
    with pytest.raises(ImageTooLarge):
        read_region_image(slide, (0, 0, 5000, 5000), slide_mpp=0.5)
    with pytest.raises(ImageTooLarge):
        read_region_image(slide, (0, 0, 1e300, 1e300), slide_mpp=0.5)
    for rectangle in ((0, 0, 0, 10), (0, 0, -5, 10), (float("nan"), 0, 10, 10), (0, 0, float("inf"), 10)):
        with pytest.raises(InvalidNumber):
            read_region_image(slide, rectangle, slide_mpp=0.5)
    assert not slide.read_levels


def test_thumbnail_keeps_the_shape_and_never_enlarges(make_slide: MakeSlide, tissue: Pixels) -> None:
    slide = open_slide(make_slide(image=tissue[:300]))
    small = thumbnail(slide, 128)
    assert small.shape == (75, 128, 3)
    assert np.abs(small - area_means(tissue[:300], (0, 0, 512, 300), (128, 75))).mean() <= TOLERANCE + 1
    assert np.array_equal(thumbnail(slide, 4096), tissue[:300])
