"""What a request points at: from a client's numbers to level-0 geometry, and on to a view's prompt (DESIGN.md 4, 5, 7).

Frames: *request* is what the client wrote (pixels or µm, from level 0's or the bounds' corner); all the rest are those
of `views`. Everything a client can get wrong about a prompt is judged here, before any pixel is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Units = Literal["px", "um"]
Frame = Literal["level0", "bounds"]
Classification = str | Mapping[str, object]
"""A class as QuPath writes it: a text, or an object with `name` and `color` (PROTOCOL.md 4.3)."""


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
    classification: Classification | None = None
