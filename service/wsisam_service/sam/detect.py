"""One prompt of the extension on the picture it came with."""

from __future__ import annotations

from typing import Any

from wsisam_service.errors import InvalidLabel
from wsisam_service.jobs import Timings
from wsisam_service.masks import rle
from wsisam_service.pictures.picture import Picture
from wsisam_service.pictures.picture_slide import slide_of_picture
from wsisam_service.sam.outlines import clip_to_picture, feature
from wsisam_service.sam.requests import DetectBody
from wsisam_service.segmenting.answers import PromptAnswer, RankedMask
from wsisam_service.segmenting.prompts import PromptSpec
from wsisam_service.segmenting.segmenter import Segmenter, SegmentRequest


async def detect(
    segmenter: Segmenter, picture: Picture, body: DetectBody, *, model: str, multimask: bool, timings: Timings
) -> list[dict[str, Any]]:
    """Features in pixels of the picture, best first; none where there is no prompt or nothing is found.

    `multimask` says whether the model's three masks mean anything; where they do not, the one good mask is the answer.
    """
    prompt = prompt_of(body, picture)
    if prompt is None:
        return []
    wanted = SegmentRequest([prompt], model=model, multimask=multimask and body.multimask_output)
    answer = await segmenter.segment(slide_of_picture(picture, None), wanted, timings)
    (result,) = answer.results
    assert isinstance(result, PromptAnswer)  # a lone prompt that fails is raised
    sam_model = body.type or model
    drawn = (_feature(mask, result, picture, sam_model) for mask in masks_of(result))
    return [one for one in drawn if one is not None]


def prompt_of(body: DetectBody, picture: Picture) -> PromptSpec | None:
    """The prompt on the picture: QuPath clips nothing, so boxes reach beyond it, and all points may lie outside.

    None where nothing is left that points at an object. Raises `InvalidLabel`.
    """
    if len(body.point_labels) != len(body.point_coords) or set(body.point_labels) - {0, 1}:
        raise InvalidLabel("point_labels has a 0 or a 1 for each of point_coords")
    points = tuple(
        (x + 0.5, y + 0.5, float(label))  # a point names a pixel; its centre is meant
        for (x, y), label in zip(body.point_coords, body.point_labels, strict=True)
        if 0 <= x < picture.width and 0 <= y < picture.height
    )
    box = None if body.bbox is None else _clipped(body.bbox, picture.width, picture.height)
    if box is None and not any(label for _, _, label in points):
        return None
    return PromptSpec(box=box, points=points)


def _clipped(
    box: tuple[float, float, float, float], width: int, height: int
) -> tuple[float, float, float, float] | None:
    """The part of `box` on the picture, None where there is none. A box of no size is its pixel."""
    x0, y0, x1, y1 = box
    x1, y1 = x1 if x1 != x0 else x0 + 1, y1 if y1 != y0 else y0 + 1
    x0, x1 = max(x0, 0), min(x1, width)
    y0, y1 = max(y0, 0), min(y1, height)
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def masks_of(result: PromptAnswer) -> tuple[RankedMask, ...]:
    """Each mask with its own quality, best first."""
    return result.masks or (RankedMask(result.mask, result.predicted_iou),)


def _feature(mask: RankedMask, result: PromptAnswer, picture: Picture, sam_model: str) -> dict[str, Any] | None:
    view = result.view
    origin, scale = (view.x, view.y), view.width / view.size[0]
    clipped = clip_to_picture(rle.decode(mask.mask), origin, scale, picture.width, picture.height)
    return feature(clipped, origin, scale, quality=mask.predicted_iou, sam_model=sam_model)
