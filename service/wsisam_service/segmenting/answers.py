"""What a segment request is answered, in the client's frame; `api/answers.py` writes it as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wsisam_service.errors import ServiceError, detail_of
from wsisam_service.jobs import CacheTier, Rle

Feature = Mapping[str, Any]
"""A GeoJSON Feature, ready to be written as JSON."""


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
class AdaptersUsed:
    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class PromptAnswer:
    """The answer to one prompt. `adapters` drew it, None for the frozen model.

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
    adapters: AdaptersUsed | None


@dataclass(frozen=True, slots=True)
class PromptProblem:
    """A prompt that failed among others that may not have; `error` is for `errors.problem_of` and `detail_of`."""

    id: str | None
    error: Exception


@dataclass(frozen=True, slots=True)
class SegmentAnswer:
    """`results` in the order of the prompts, at least one an answer. `adapters` are those that were asked for, None for
    the frozen model; where they leave it to how a view looks, its answer may be drawn by others.
    """

    model: str
    adapters: AdaptersUsed | None
    warnings: tuple[str, ...]
    results: tuple[PromptAnswer | PromptProblem, ...]


@dataclass(frozen=True, slots=True)
class Recalled:
    """An answer as it was given, by its refine token: `mask` covers `view`. `adapters` is the SHA-256 of those that
    drew it, "none" for the frozen model.
    """

    mask: Rle
    view: ViewRect
    predicted_iou: float
    adapters: str


class EveryPromptFailed(ServiceError):
    """No prompt has an answer: the request's problem is that of the first one, `problems[0].error`."""

    def __init__(self, problems: Sequence[PromptProblem]) -> None:
        super().__init__(detail_of(problems[0].error))
        self.problems = tuple(problems)
