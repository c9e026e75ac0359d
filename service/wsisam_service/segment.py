"""From prompts on a slide to outlines: plan views, decode them together, retry where an object does not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from wsisam_service.errors import ServiceError
from wsisam_service.jobs import DEFAULT_ADAPTERS, CacheTier, Rle
from wsisam_service.prompts import Frame, PromptSpec, Units

MaskFormat = Literal["rle", "geojson", "both"]
Feature = Mapping[str, Any]
"""A GeoJSON Feature, ready to be written as JSON."""
DEFAULT_SIMPLIFY = 0.5
MAX_PROMPTS = 256


@dataclass(frozen=True, slots=True)
class SegmentRequest:
    """What `POST …/segment` asks, in the client's numbers. `image_size` is (width, height) and excludes `frame`."""

    prompts: Sequence[PromptSpec]
    model: str | None = None
    adapters: str = DEFAULT_ADAPTERS
    mpp: float | None = None
    units: Units = "px"
    frame: Frame | None = None
    image_size: tuple[int, int] | None = None
    multimask: bool = False
    lr_mask: bool = False
    format: MaskFormat = "rle"
    simplify: float = DEFAULT_SIMPLIFY
    """Polygon tolerance in view pixels, 0 for none."""
    request_id: str = ""
    """Goes into each Feature's metadata."""


@dataclass(frozen=True, slots=True)
class ViewRect:
    """The level-0 rectangle that a mask covers; `mpp` in µm per view pixel, `size` (width, height) in view pixels."""

    x: float
    y: float
    width: float
    height: float
    mpp: float
    size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class RankedMask:
    mask: Rle
    predicted_iou: float


@dataclass(frozen=True, slots=True)
class LrAnswer:
    """The LR branch's own mask, over the LR view."""

    mask: Rle
    view: ViewRect


@dataclass(frozen=True, slots=True)
class CacheTiers:
    hr: CacheTier
    lr: CacheTier | None


@dataclass(frozen=True, slots=True)
class PromptAnswer:
    """The answer to one prompt.

    `bbox` (x0, y0, x1, y1) is in pixels of the request's frame, None for an empty mask. `geojson` is None for an empty
    mask and where it was not asked for. `masks` is None without multimask, `lr` without lr_mask.
    """

    id: str | None
    mask: Rle
    view: ViewRect
    bbox: tuple[float, float, float, float] | None
    area_um2: float
    predicted_iou: float
    touches_edge: bool
    refine: str
    cache: CacheTiers
    geojson: Feature | None
    masks: tuple[RankedMask, ...] | None
    lr: LrAnswer | None


@dataclass(frozen=True, slots=True)
class PromptProblem:
    """A prompt that failed among others that may not have; `error` is for `errors.problem_of` and `detail_of`."""

    id: str | None
    error: Exception


@dataclass(frozen=True, slots=True)
class AdaptersUsed:
    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class SegmentAnswer:
    """`results` in the order of the prompts, at least one an answer. `adapters` is None for the frozen model."""

    model: str
    adapters: AdaptersUsed | None
    warnings: tuple[str, ...]
    results: tuple[PromptAnswer | PromptProblem, ...]


class EveryPromptFailed(ServiceError):
    """No prompt has an answer: the request's problem is that of the first one, `problems[0].error`."""

    def __init__(self, problems: Sequence[PromptProblem]) -> None:
        super().__init__(str(problems[0].error))
        self.problems = tuple(problems)
