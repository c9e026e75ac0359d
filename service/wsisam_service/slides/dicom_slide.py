"""A slide made of DICOM images, from wherever their frames come: files here, a PACS elsewhere."""

from __future__ import annotations

import hashlib
import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from wsisam_service.dicom.codec import decode_frame
from wsisam_service.dicom.image import SlideImage
from wsisam_service.dicom.pyramid import build_pyramid
from wsisam_service.dicom.source import DicomSource
from wsisam_service.slides.reader import Level, RgbImage, SlideInfo, SlideReader, paste
from wsisam_service.slides.tiles import TileCache, TileOwner

VENDOR = "dicom"
NAME_DIGITS = 12


class FrameSource(Protocol):
    """Where compressed frames come from; safe for concurrent use."""

    @property
    def threads(self) -> Executor:
        """What frames are fetched and decoded in."""
        ...

    def calls(self, count: int) -> int:
        """In how many calls of `frames` to fetch `count` frames of one image, side by side."""
        ...

    def frames(self, sop_uid: str, numbers: Sequence[int]) -> Sequence[bytes]:
        """Frames of one instance, counted from 0, in the order asked. Raises `ServiceError`."""
        ...


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Tiles of one level that one call fetches: all of one image."""

    level: int
    image: SlideImage
    tiles: Sequence[int]


class DicomReader(SlideReader):
    """The pyramid of `images`; `source` makes the slide's source of the SOP instance UIDs of its levels' first images,
    finest first. Raises `UnreadableSlide`.
    """

    def __init__(
        self,
        images: Sequence[SlideImage],
        source: Callable[[Sequence[str]], DicomSource],
        frames: FrameSource,
        tiles: TileCache,
    ) -> None:
        self._levels = build_pyramid(images)
        self._frames = frames
        self._tiles = tiles
        self._owner = TileOwner()
        finest = self._levels[0].images[0]
        self.info = SlideInfo(
            levels=tuple(Level(*level.matrix, *level.downsample) for level in self._levels),
            mpp=finest.mpp,
            pixel_ratio=finest.pixel_ratio,
            vendor=VENDOR,
            objective_power=finest.objective_power,
            origin_mm=finest.origin_mm,
            dicom=source([level.images[0].sop_uid for level in self._levels]),
        )

    def read_region(self, level: int, x: int, y: int, width: int, height: int) -> RgbImage:
        region = np.full((height, width, 3), 255, np.uint8)
        shown = self._levels[level]
        numbers = [int(number) for number in shown.tiles_over(x, y, width, height)]
        for number, tile in self._pixels(level, numbers):
            left, top = int(shown.x[number]), int(shown.y[number])
            inside = tile[: shown.matrix[1] - top, : shown.matrix[0] - left]  # tiles at the far edges are padded
            paste(region, inside, left - x, top - y)
        return region

    def drop_tiles(self) -> None:
        self._tiles.drop(self._owner)

    def _pixels(self, level: int, numbers: Iterable[int]) -> Iterator[tuple[int, RgbImage]]:
        """(number, pixels) of each tile, fetched where it is not held. In order: sparse tiles may overlap."""
        held, missing = [], []
        for number in numbers:
            tile = self._tiles.held((self._owner, level, number))
            if tile is None:
                missing.append(number)
            else:
                held.append((number, tile))
        fetched = self._frames.threads.map(self._fetch, self._batches(level, missing))
        yield from heapq.merge(held, itertools.chain.from_iterable(fetched), key=lambda one: one[0])

    def _batches(self, level: int, missing: Sequence[int]) -> Iterator[_Wanted]:
        """In order, as the images of a level follow each other in its tiles' numbers."""
        shown = self._levels[level]
        for image_number, image in enumerate(shown.images):
            tiles = [number for number in missing if shown.image[number] == image_number]
            calls = self._frames.calls(len(tiles)) if tiles else 0
            for call in range(calls):
                yield _Wanted(level, image, tiles[len(tiles) * call // calls : len(tiles) * (call + 1) // calls])

    def _fetch(self, wanted: _Wanted) -> list[tuple[int, RgbImage]]:
        shown, image = self._levels[wanted.level], wanted.image
        frames = self._frames.frames(image.sop_uid, [int(shown.frame[number]) for number in wanted.tiles])
        fetched = []
        for number, frame in zip(wanted.tiles, frames, strict=True):
            tile = decode_frame(frame, shown.tile, image.photometric, compressed=image.compressed, planar=image.planar)
            self._tiles.keep((self._owner, wanted.level, number), tile)
            fetched.append((number, tile))
        return fetched


def series_name(series_uid: str) -> str:
    """What a series is called in listings: the same everywhere, and nothing that its makers put into a UID."""
    digest = hashlib.sha256(series_uid.encode("utf-8", "surrogateescape"))  # or a file's name, which need not be UTF-8
    return f"dicom-{digest.hexdigest()[:NAME_DIGITS]}"


def series_fingerprint(sop_uids: Iterable[str]) -> str:
    """SHA-256 over the sorted SOP instance UIDs joined by newlines (DESIGN.md section 4)."""
    return hashlib.sha256("\n".join(sorted(sop_uids)).encode("ascii")).hexdigest()
