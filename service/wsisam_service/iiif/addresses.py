"""The grammar and geometry of the IIIF Image API 3.0, level 2: what a request for a picture of a slide means.

Sources: https://iiif.io/api/image/3.0/ and its compliance page. Regions and sizes are whole pixels of level 0.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal, cast

from wsisam_service.errors import InvalidImageRequest
from wsisam_service.slides.pixels import MAX_JPEG_SIDE, MAX_REGION_PIXELS

TILE_SIDE = 512
MAX_SIDE = MAX_JPEG_SIDE
"""Of a PNG too, so that `max` means one size."""
CONTEXT = "http://iiif.io/api/image/3/context.json"
PROFILE = "http://iiif.io/api/image/3/level2.json"
EXTRA_FEATURES = ("canonicalLinkHeader", "mirroring", "profileLinkHeader", "sizeUpscaling")
EXTRA_QUALITIES = ("bitonal", "color", "gray")

Quality = Literal["default", "color", "gray", "bitonal"]
Format = Literal["jpg", "png"]

_TOO_LARGE = f"a picture has at most {MAX_REGION_PIXELS} pixels, and {MAX_SIDE} a side"
_NUMBER = r"\d+(?:\.\d*)?|\.\d+"
_REGION = re.compile(rf"(pct:)?({_NUMBER}),({_NUMBER}),({_NUMBER}),({_NUMBER})", re.ASCII)
_SIDES = re.compile(r"(\d{1,9})?,(\d{1,9})?", re.ASCII)
_PERCENT = re.compile(rf"pct:({_NUMBER})", re.ASCII)
_ROTATION = re.compile(rf"(!)?({_NUMBER})", re.ASCII)
_QUALITY_FORMAT = re.compile(r"(default|color|gray|bitonal)\.(jpg|png)")


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """`region` (x, y, width, height) of level 0, inside the slide, drawn in `size` (width, height), then mirrored
    left to right where asked, then turned clockwise by `quarter_turns`.
    """

    region: tuple[int, int, int, int]
    size: tuple[int, int]
    mirrored: bool
    quarter_turns: int
    quality: Quality
    format: Format


def parse(region: str, size: str, rotation: str, quality_format: str, slide: tuple[int, int]) -> ImageRequest:
    """The four parts of a request's path, for a slide of (width, height). Raises `InvalidImageRequest`."""
    x, y, width, height = _region(region, slide)
    mirrored, quarter_turns = _rotation(rotation)
    parts = _QUALITY_FORMAT.fullmatch(quality_format)
    if parts is None:
        raise InvalidImageRequest("quality is default, color, gray or bitonal, and format jpg or png")
    quality, format = cast(tuple[Quality, Format], parts.groups())
    drawn = _size(size, (width, height))
    return ImageRequest((x, y, width, height), drawn, mirrored, quarter_turns, quality, format)


def canonical(request: ImageRequest, slide: tuple[int, int]) -> str:
    """The one spelling of a request's path that all who ask for the same picture share (section 4.7)."""
    x, y, width, height = request.region
    region = "full" if request.region == (0, 0, *slide) else f"{x},{y},{width},{height}"
    larger = "^" if request.size[0] > width or request.size[1] > height else ""
    spelled = f"{larger}{request.size[0]},{request.size[1]}"
    size = next((word for word in ("max", "^max") if _size(word, (width, height)) == request.size), spelled)
    rotation = f"{'!' if request.mirrored else ''}{request.quarter_turns * 90}"
    quality = "default" if request.quality == "color" else request.quality
    return f"{region}/{size}/{rotation}/{quality}.{request.format}"


def information(identifier: str, width: int, height: int) -> dict[str, Any]:
    """The document info.json of a slide; `identifier` is the absolute URI of its image service."""
    factors = _scale_factors(width, height)
    sizes = [(math.ceil(width / factor), math.ceil(height / factor)) for factor in reversed(factors)]
    return {
        "@context": CONTEXT,
        "id": identifier,
        "type": "ImageService3",
        "protocol": "http://iiif.io/api/image",
        "profile": "level2",
        "width": width,
        "height": height,
        "maxWidth": MAX_SIDE,  # and height, where that is not told
        "maxArea": MAX_REGION_PIXELS,
        "sizes": [{"width": w, "height": h} for w, h in sizes if _fits(w, h)],
        "tiles": [{"width": TILE_SIDE, "height": TILE_SIDE, "scaleFactors": factors}],
        "preferredFormats": ["jpg"],
        "extraFeatures": list(EXTRA_FEATURES),
        "extraQualities": list(EXTRA_QUALITIES),
    }


def _scale_factors(width: int, height: int) -> list[int]:
    """Powers of two up to the one that puts the whole slide on one tile."""
    last = max(0, math.ceil(math.log2(max(width, height) / TILE_SIDE)))
    return [2**power for power in range(last + 1)]


def _region(text: str, slide: tuple[int, int]) -> tuple[int, int, int, int]:
    slide_width, slide_height = slide
    if text == "full":
        return 0, 0, slide_width, slide_height
    if text == "square":
        side = min(slide)
        return (slide_width - side) // 2, (slide_height - side) // 2, side, side
    parts = _REGION.fullmatch(text)
    if parts is None:
        raise InvalidImageRequest("a region is full, square, x,y,w,h or pct:x,y,w,h")
    x, y, width, height = map(float, parts.groups()[1:])
    if parts[1]:
        x, y = x * slide_width / 100, y * slide_height / 100
        width, height = width * slide_width / 100, height * slide_height / 100
    elif not all(side.isdigit() for side in parts.groups()[1:]):
        raise InvalidImageRequest("a region in pixels has whole numbers")
    left, top = round(min(x, slide_width)), round(min(y, slide_height))
    right, bottom = round(min(x + width, slide_width)), round(min(y + height, slide_height))
    if left >= right or top >= bottom:
        raise InvalidImageRequest("the region is empty or outside the image")
    return left, top, right - left, bottom - top


def _size(text: str, region: tuple[int, int]) -> tuple[int, int]:
    """Width and height of the picture of a region of (width, height), before it is turned."""
    enlarges, form = text.startswith("^"), text.removeprefix("^")
    width, height = _asked_size(form, region, enlarges=enlarges)
    if width < 1 or height < 1:
        raise InvalidImageRequest("the picture would have no pixels")
    if not enlarges and (width > region[0] or height > region[1]):
        raise InvalidImageRequest("the picture would be larger than the region; ask for ^ to enlarge")
    if not _fits(width, height):
        raise InvalidImageRequest(_TOO_LARGE)
    return width, height


def _fits(width: int, height: int) -> bool:
    return width * height <= MAX_REGION_PIXELS and max(width, height) <= MAX_SIDE


def _asked_size(form: str, region: tuple[int, int], *, enlarges: bool) -> tuple[int, int]:
    """The size that `form` names, without its ^."""
    width, height = region
    if form == "max":
        scale = min(math.sqrt(MAX_REGION_PIXELS / (width * height)), MAX_SIDE / max(region))
        return _scaled(region, scale if enlarges else min(1.0, scale), round_to=math.floor)
    if percent := _PERCENT.fullmatch(form):
        return _scaled(region, float(percent[1]) / 100)
    sides = _SIDES.fullmatch(form.removeprefix("!"))
    if sides is None or sides[0] == "," or (form.startswith("!") and None in sides.groups()):
        raise InvalidImageRequest("a size is max, w, or ,h or w,h or !w,h or pct:n, after ^ where it may enlarge")
    if form.startswith("!"):
        scale = min(int(sides[1]) / width, int(sides[2]) / height)
        return _scaled(region, scale if enlarges else min(1.0, scale))
    if sides[2] is None:
        return int(sides[1]), max(1, round(height * int(sides[1]) / width))
    if sides[1] is None:
        return max(1, round(width * int(sides[2]) / height)), int(sides[2])
    return int(sides[1]), int(sides[2])


def _scaled(region: tuple[int, int], scale: float, round_to: Any = round) -> tuple[int, int]:
    """`region` (width, height) times `scale`; thin ones keep a pixel."""
    if scale <= 0:
        raise InvalidImageRequest("the picture would have no pixels")
    if scale > MAX_SIDE:  # not multiplied: the product may be beyond what a float can hold
        raise InvalidImageRequest(_TOO_LARGE)
    return max(1, round_to(region[0] * scale)), max(1, round_to(region[1] * scale))


def _rotation(text: str) -> tuple[bool, int]:
    parts = _ROTATION.fullmatch(text)
    degrees = float(parts[2]) if parts else math.nan
    if parts is None or degrees > 360 or degrees % 90:
        raise InvalidImageRequest("a rotation is 0, 90, 180 or 270 degrees, after ! where mirrored")
    return parts[1] is not None, int(degrees // 90) % 4
