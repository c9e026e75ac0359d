"""What the extension sends, any version from 0.3 to 0.9 (PROTOCOL.md 1.3, 1.5, 1.6). Unknown fields are ignored."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

OutputType = Literal[
    "Single mask",
    "Multi-mask (all)",
    "Multi-mask (largest)",
    "Multi-mask (smallest)",
    "Multi-mask (best quality)",
]

MAX_LOGIT = 1000.0
"""Beyond what any of the networks says, and within what their numbers can hold."""
MAX_AREA = 2**31
"""Pixels; more than any picture has that is taken."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class PictureBody(_Body):
    """A model, the picture, and the `url` of an entry of the weights list. Without a type the default model answers."""

    type: str = ""
    b64img: str
    checkpoint_url: str | None = None


class DetectBody(PictureBody):
    """`bbox` (x0, y0, x1, y1) has exclusive ends; a point means the pixel of that index. Neither is clipped."""

    bbox: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat] | None = None
    point_coords: tuple[tuple[FiniteFloat, FiniteFloat], ...] = Field((), fail_fast=True)
    point_labels: tuple[int, ...] = Field((), fail_fast=True)
    multimask_output: bool = False


class AutomaskBody(PictureBody):
    """Defaults are samapi's; crops and the batch size have no meaning here. Areas are in pixels of the picture."""

    points_per_side: int = Field(32, ge=1)
    pred_iou_thresh: FiniteFloat = 0.88
    stability_score_thresh: FiniteFloat = 0.95
    stability_score_offset: FiniteFloat = Field(1.0, ge=0, le=MAX_LOGIT)
    box_nms_thresh: FiniteFloat = 0.7
    min_mask_region_area: int = Field(0, ge=0, le=MAX_AREA)
    output_type: OutputType = "Single mask"
    include_image_edge: bool = False


class RegisterBody(_Body):
    """Free text from a dialog; any of it may be empty."""

    type: str = ""
    name: str = ""
    url: str = ""
