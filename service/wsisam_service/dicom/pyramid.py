"""The images of one series as one pyramid: which belong together, and what is missing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wsisam_service.dicom.image import MAX_MATRIX_SIDE, UM_PER_MM, Heights, Part, Positions, SlideImage, tiles_in
from wsisam_service.errors import UnreadableSlide

ASPECT_TOLERANCE = 0.02
"""Levels whose sides are reduced by factors this different, beyond a pixel of rounding, show something else."""
ROUNDING_PX = 1.5


@dataclass(frozen=True, slots=True)
class DicomLevel:
    """One level: tile `i` has its upper left corner at (`x[i]`, `y[i]`) and is frame `frame[i]` of the image
    `images[image[i]]`; all tiles are of size `tile` (width, height).
    """

    matrix: tuple[int, int]
    tile: tuple[int, int]
    downsample: tuple[float, float]
    images: Sequence[SlideImage]
    x: Positions
    y: Positions
    image: Positions
    frame: Positions

    def tiles_over(self, x: int, y: int, width: int, height: int) -> Positions:
        """Numbers of the tiles that meet a rectangle of this level."""
        right, bottom = self.x + self.tile[0], self.y + self.tile[1]
        return np.flatnonzero((self.x < x + width) & (right > x) & (self.y < y + height) & (bottom > y))


def build_pyramid(images: Sequence[SlideImage]) -> list[DicomLevel]:
    """The levels, finest first. A coarser level of which parts are missing is left out, the finest one may lack none.

    Raises `UnreadableSlide`.
    """
    if not images:
        raise UnreadableSlide("The DICOM series has no image of the slide that may be shown.")
    sizes: dict[tuple[int, int], list[SlideImage]] = defaultdict(list)
    finest = max(images, key=lambda image: image.matrix[0] * image.matrix[1])
    for image in images:
        if image.pyramid_uid == finest.pyramid_uid and _begins_where(finest, image):
            sizes[image.matrix].append(image)
    levels = []
    for matrix in sorted(sizes, key=lambda size: size[0] * size[1], reverse=True):
        downsample = _downsample(finest, sizes[matrix][0])
        if downsample is None:
            continue
        level = _level(matrix, downsample, sizes[matrix], finest)
        if level is not None:
            levels.append(level)
        elif matrix == finest.matrix:
            raise UnreadableSlide("The DICOM series is incomplete: parts of its finest level are missing.")
    return levels


def _begins_where(finest: SlideImage, image: SlideImage) -> bool:
    """Whether `image` may be of the region that `finest` is of: its origin on the glass is the same, within rounding
    of its own pixels. Scanners put the pyramids of several regions into one series, not always with a UID for each.
    """
    if image.mpp is None or image.origin_mm is None or finest.origin_mm is None:
        return True
    apart_mm = max(abs(a - b) for a, b in zip(image.origin_mm, finest.origin_mm, strict=True))
    return apart_mm <= ROUNDING_PX * image.mpp / UM_PER_MM


def _level(
    matrix: tuple[int, int], downsample: tuple[float, float], images: list[SlideImage], finest: SlideImage
) -> DicomLevel | None:
    """Tiles of all instances of one size: parts of a concatenation, focal planes, or the same again."""
    images = sorted(images, key=lambda image: (image.part.number if image.part else 0, image.sop_uid))
    like = finest if matrix == finest.matrix else images[0]
    tile, origin = like.tile, like.origin_mm
    images = [image for image in images if (image.tile, image.origin_mm) == (tile, origin)]
    if _lacks_a_part([(image.part, image.count) for image in images if image.part is not None]):
        return None
    x, y, z = (np.concatenate([getattr(image, name) for image in images]) for name in ("x", "y", "z"))
    number = np.repeat(np.arange(len(images)), [len(image.x) for image in images])
    frame = np.concatenate([np.arange(len(image.x)) for image in images])
    shown = _middle_plane(y * MAX_MATRIX_SIDE + x, z)
    if images[0].every_tile and len(shown) < tiles_in(matrix, tile):
        return None
    return DicomLevel(matrix, tile, downsample, images, x[shown], y[shown], number[shown], frame[shown])


def _middle_plane(place: Positions, z: Heights) -> Positions:
    """Of the frames at each place the one at the middle height; the first, where several are at the same."""
    order = np.lexsort((z, place))  # which leaves those of the same height in their order
    place, z = place[order], z[order]
    new = np.append(True, (np.diff(place) != 0) | (np.diff(z) != 0))[: len(order)]
    order, place = order[new], place[new]
    _, start, planes = np.unique(place, return_index=True, return_counts=True)
    return np.sort(order[start + planes // 2])


def _lacks_a_part(parts: Sequence[tuple[Part, int]]) -> bool:
    """Whether a part of one of the concatenations among `parts`, each with its number of frames, is not there."""
    concatenations: dict[str, list[tuple[Part, int]]] = defaultdict(list)
    for part, count in parts:
        concatenations[part.concatenation].append((part, count))
    return not all(map(_is_whole, concatenations.values()))


def _is_whole(parts: Sequence[tuple[Part, int]]) -> bool:
    """Whether the parts of one concatenation are as many as they say, with no frame missing between them."""
    reached = 0
    for part, count in sorted(parts, key=lambda one: one[0].first):
        if part.first > reached:
            return False
        reached = max(reached, part.first + count)
    return len({part.number for part, _ in parts}) >= max(part.total or 0 for part, _ in parts)


def _downsample(full: SlideImage, reduced: SlideImage) -> tuple[float, float] | None:
    """Level-0 pixels per pixel of a level; None where `reduced` is no reduction of `full`.

    Converters and scanners reduce by whole factors and drop or round what does not fill a last pixel; quotients of
    the sizes would shift the far end by up to a pixel of the level.
    """
    x, y = (a / b for a, b in zip(full.matrix, reduced.matrix, strict=True))
    by_spacing = reduced.mpp / full.mpp if full.mpp and reduced.mpp else 0.0
    for factor in (round(by_spacing), round((x + y) / 2)):
        if factor and all(abs(a / factor - b) < 1 for a, b in zip(full.matrix, reduced.matrix, strict=True)):
            return float(factor), float(factor)
    slack = ASPECT_TOLERANCE + ROUNDING_PX / min(reduced.matrix)
    return (x, y) if abs(x / y - 1) <= slack else None
