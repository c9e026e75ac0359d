"""What a request points at: from a client's numbers to level-0 geometry, and on to a view's prompt (DESIGN.md 4, 5, 7).

Frames: *request* is what the client wrote (pixels or µm, from level 0's or the bounds' corner); all the rest are those
of `views`. Everything a client can get wrong about a prompt is judged here, before any pixel is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from wsisam_model.config import ModelConfig, PromptKind
from wsisam_model.prompts import MASK_SIDE, MAX_POINTS, Prompt
from wsisam_service.errors import (
    EmptyPrompt,
    FrameMismatch,
    InvalidBox,
    InvalidLabel,
    InvalidNumber,
    InvalidRequest,
    NoPositivePoint,
    PromptOutsideSlide,
)
from wsisam_service.jobs import Rle
from wsisam_service.masks import rle
from wsisam_service.masks.border import bounds_of
from wsisam_service.masks.geojson import GivenClass
from wsisam_service.views import FINEST_STEP, MAX_OUTSIDE, Box, View, nearest_step, step_mpp, view_for_extent

Units = Literal["px", "um"]
Frame = Literal["level0", "bounds"]
Point = tuple[float, float]

MASK_LOGIT = 10.0
"""Logit of a request's mask, + inside and - outside: as sure as the network's own masks are."""
_SAMPLES = 4
"""Samples of a request's mask along each side of a pixel of the mask prompt."""


@dataclass(frozen=True, slots=True)
class MaskSpec:
    """A COCO RLE of `size` (h, w) stretched over a rectangle in the request's frame and units."""

    size: tuple[int, int]
    counts: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class PromptSpec:
    """One prompt as the client wrote it, unjudged. Points are (x, y, label); `refine` is an earlier answer's token."""

    id: str | None = None
    box: tuple[float, float, float, float] | None = None
    points: tuple[tuple[float, float, float], ...] = ()
    mask: MaskSpec | None = None
    refine: str | None = None
    classification: GivenClass | None = None

    def kinds(self) -> frozenset[PromptKind]:
        """What models name as trained for."""
        given: dict[PromptKind, object] = {"box": self.box, "points": self.points, "mask": self.mask}
        return frozenset(kind for kind, value in given.items() if value)

    def described(self) -> str:
        """In words, without its numbers: "box, 2 points"."""
        points = f"{len(self.points)} point" + ("s" if len(self.points) > 1 else "")
        parts = {"box": self.box, points: self.points, "mask": self.mask, "correction": self.refine}
        return ", ".join(name for name, given in parts.items() if given)


@dataclass(frozen=True, slots=True)
class RequestFrame:
    """Level-0 position = `scale` * the client's + (`x`, `y`)."""

    scale: float
    x: float
    y: float

    def to_level0(self, x: float, y: float) -> Point:
        return x * self.scale + self.x, y * self.scale + self.y


def request_frame(
    size: tuple[int, int],
    bounds: tuple[int, int, int, int] | None,
    slide_mpp: float,
    *,
    units: Units,
    frame: Frame | None,
    image_size: tuple[int, int] | None,
) -> RequestFrame:
    """The frame of a request on a slide of `size` (width, height) with `bounds` (x, y, width, height) in level 0.

    Raises `FrameMismatch` where `image_size` is neither the slide's nor its bounds', `InvalidRequest` where both
    `frame` and `image_size` are given.
    """
    if frame is not None and image_size is not None:
        raise InvalidRequest("image_size decides the frame, so frame is not given with it")
    if image_size is not None:
        frame = _frame_of(image_size, size, bounds)
    scale = 1.0 if units == "px" else 1.0 / slide_mpp
    if frame != "bounds" or bounds is None:
        return RequestFrame(scale, 0.0, 0.0)
    return RequestFrame(scale, float(bounds[0]), float(bounds[1]))


def _frame_of(image_size: tuple[int, int], size: tuple[int, int], bounds: tuple[int, int, int, int] | None) -> Frame:
    if image_size == size:
        return "level0"
    if bounds is not None and image_size == bounds[2:]:
        return "bounds"
    told = f"{size[0]} x {size[1]}" + ("" if bounds is None else f", its bounds {bounds[2]} x {bounds[3]}")
    raise FrameMismatch(f"the image is {image_size[0]} x {image_size[1]} pixels for the client; the slide has {told}")


@dataclass(frozen=True, slots=True, eq=False)
class MaskTarget:
    """A request's mask over the level-0 rectangle `area`; `extent` is the level-0 bounding box of what is set.

    It is kept as it came: a few bytes may say 16 million pixels, and a request has hundreds of masks.
    """

    rle: Rle
    area: Box
    extent: Box

    def logits(self, view: View) -> npt.NDArray[np.float32]:
        """The mask prompt on `view`, float32 (256, 256): set where at least half of the pixel is."""
        steps = (np.arange(MASK_SIDE * _SAMPLES) + 0.5) / (MASK_SIDE * _SAMPLES) * view.size_level0
        origin_x, origin_y = view.origin_level0
        x0, y0, x1, y1 = self.area
        mask = rle.decode(self.rle)
        height, width = mask.shape
        columns = np.floor((origin_x + steps - x0) / (x1 - x0) * width)
        rows = np.floor((origin_y + steps - y0) / (y1 - y0) * height)
        inside_x, inside_y = (columns >= 0) & (columns < width), (rows >= 0) & (rows < height)
        sampled = np.zeros((steps.size, steps.size), bool)
        taken = mask[np.ix_(rows[inside_y].astype(np.intp), columns[inside_x].astype(np.intp))]
        sampled[np.ix_(inside_y, inside_x)] = taken
        share = sampled.reshape(MASK_SIDE, _SAMPLES, MASK_SIDE, _SAMPLES).mean(axis=(1, 3))
        return np.where(share >= 0.5, np.float32(MASK_LOGIT), np.float32(-MASK_LOGIT))


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """A judged prompt in level 0, pixel-edge frame."""

    box: Box | None
    positive: tuple[Point, ...]
    negative: tuple[Point, ...]
    mask: MaskTarget | None

    def extent(self) -> Box | None:
        """The bounding box of what belongs to the object; negative points do not, so they never widen the view."""
        boxes = [(x, y, x, y) for x, y in self.positive]
        if self.box is not None:
            boxes.append(self.box)
        if self.mask is not None:
            boxes.append(self.mask.extent)
        if not boxes:
            return None
        lefts, tops, rights, bottoms = zip(*boxes, strict=True)
        return min(lefts), min(tops), max(rights), max(bottoms)

    @property
    def clicks(self) -> int:
        """How many points of the object are all that is said, perhaps with some beside it; 0 with a box or a mask."""
        return len(self.positive) if self.box is None and self.mask is None else 0

    def prompt(self, view: View) -> Prompt:
        """As the network takes it on `view`. Negative points outside the view say nothing there and are left out."""
        negative = [point for point in self.negative if view.contains((*point, *point))]
        points = (*self.positive, *negative)
        return Prompt(
            box=None if self.box is None else view.index_box_from_level0(self.box),
            points=tuple(view.index_from_level0(x, y) for x, y in points),
            labels=(1,) * len(self.positive) + (0,) * len(negative),
            mask_hr=None if self.mask is None else self.mask.logits(view),
        )


def judge(spec: PromptSpec, frame: RequestFrame, size: tuple[int, int]) -> Target:
    """The level-0 target of `spec` on a slide of `size` (width, height).

    Raises `EmptyPrompt`, `InvalidBox`, `InvalidNumber`, `InvalidLabel`, `NoPositivePoint`, `PromptOutsideSlide`, and
    `InvalidRequest` for a mask that is none and for too many points.
    """
    if spec.box is None and not spec.points and spec.mask is None and spec.refine is None:
        raise EmptyPrompt("a prompt is a box, points, a mask or a refine token")
    if len(spec.points) > MAX_POINTS:
        raise InvalidRequest(f"a prompt has at most {MAX_POINTS} points")
    box = None if spec.box is None else _box(spec.box, frame, size)
    positive, negative = _points(spec.points, frame, size)
    mask = None if spec.mask is None else _mask(spec.mask, frame, size)
    if not (positive or spec.box or spec.mask or spec.refine):
        raise NoPositivePoint("points need at least one with label 1")
    if positive and not any(0 <= x <= size[0] and 0 <= y <= size[1] for x, y in positive):
        raise PromptOutsideSlide("every positive point lies outside the slide")
    return Target(box, positive, negative, mask)


def plan_view(
    target: Target, size: tuple[int, int], slide_mpp: float, config: ModelConfig, *, mpp: float | None
) -> View:
    """The HR view of `target`, at the request's `mpp` where it is given, on a slide of `size` (width, height). Points
    alone take the model's default for them, or a finer one where a slide is small beside that view.

    Raises `PromptOutsideSlide` where nearly all of the view would lie beyond the slide.
    """
    extent = target.extent()
    assert extent is not None  # `judge` lets nothing else pass without a refine token, which has its own view
    points_alone = target.box is None and target.mask is None
    least_mpp: list[float | None] = [None]
    if points_alone and mpp is None:
        least_mpp = [step_mpp(k) for k in range(nearest_step(config.point_mpp), FINEST_STEP - 1, -1)]
    for min_mpp in least_mpp:
        view = view_for_extent(extent, config.image_size, slide_mpp, min_mpp=min_mpp, mpp=mpp)
        if view.outside_fraction(*size) <= MAX_OUTSIDE:
            return view
    raise PromptOutsideSlide("nearly all of the view around the prompt lies outside the slide")


def check_inside(target: Target, view: View) -> None:
    """A correction stays on the view of the answer that it corrects. Raises `InvalidRequest`."""
    extent = target.extent()
    if extent is not None and not view.contains(extent):
        raise InvalidRequest("the correction lies outside the view of the answer that it refines")


def _box(box: Box, frame: RequestFrame, size: tuple[int, int]) -> Box:
    x0, y0 = _position(*box[:2], frame, size)
    x1, y1 = _position(*box[2:], frame, size)
    if x0 >= x1 or y0 >= y1:
        raise InvalidBox("a box is x0, y0, x1, y1 with x0 < x1 and y0 < y1")
    _check_overlap((x0, y0, x1, y1), size, "box")
    return x0, y0, x1, y1


def _points(
    points: tuple[tuple[float, float, float], ...], frame: RequestFrame, size: tuple[int, int]
) -> tuple[tuple[Point, ...], tuple[Point, ...]]:
    if any(label not in (0, 1) for _, _, label in points):
        raise InvalidLabel("a point's label is 1 (on the object) or 0 (beside it)")
    placed = [(_position(x, y, frame, size), label) for x, y, label in points]
    return tuple(p for p, label in placed if label == 1), tuple(p for p, label in placed if label == 0)


def _mask(spec: MaskSpec, frame: RequestFrame, size: tuple[int, int]) -> MaskTarget:
    x0, y0 = _position(spec.x, spec.y, frame, size)
    x1, y1 = _position(spec.x + spec.width, spec.y + spec.height, frame, size)
    if x0 >= x1 or y0 >= y1:
        raise InvalidBox("a mask's rectangle has a width and a height above 0")
    counted = Rle(spec.size, spec.counts)
    mask = rle.decode(counted)
    bounds = bounds_of(mask)
    if bounds is None:
        raise EmptyPrompt("the mask is empty")
    left, top, right, bottom = bounds
    height, width = mask.shape
    pitch_x, pitch_y = (x1 - x0) / width, (y1 - y0) / height
    extent = (x0 + left * pitch_x, y0 + top * pitch_y, x0 + right * pitch_x, y0 + bottom * pitch_y)
    _check_overlap(extent, size, "mask")
    return MaskTarget(counted, (x0, y0, x1, y1), extent)


def _position(x: float, y: float, frame: RequestFrame, size: tuple[int, int]) -> Point:
    """Level-0 position of a client's. Raises `InvalidNumber` beyond one slide's side outside the slide."""
    position = frame.to_level0(x, y)
    for value, side in zip(position, size, strict=True):
        if not -side <= value <= 2 * side:  # false for NaN too
            raise InvalidNumber("a coordinate is not finite, or further outside than the slide is large")
    return position


def _check_overlap(box: Box, size: tuple[int, int], what: str) -> None:
    if box[0] >= size[0] or box[1] >= size[1] or box[2] <= 0 or box[3] <= 0:
        raise PromptOutsideSlide(f"the {what} lies wholly outside the slide")
