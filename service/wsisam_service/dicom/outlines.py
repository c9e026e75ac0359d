"""Outlines that are to become a DICOM object, and how a GeoJSON FeatureCollection of QuPath becomes them."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import shapely
from shapely import MultiPolygon, Polygon

from wsisam_service.errors import InvalidRequest, PromptOutsideSlide
from wsisam_service.masks.border import Area
from wsisam_service.masks.geojson import polygons_of

MAX_OUTLINES = 10_000
MAX_VERTICES = 1_000_000
MAX_VERTICES_EACH = 50_000
"""To ask whether an outline crosses itself can take a time that grows with their square: then a minute."""
JUDGING_S = 20.0
"""Processor time for a collection's outlines, after which no further one is asked. An ordinary million of vertices
takes a second.
"""
_VERTICES_AT_ONCE = 10_000
FARTHEST = 2.0**31
"""Pixels from the slide's corner, in any direction."""
PREDICTED_IOU = "Predicted IoU"
"""The measurement's name in the Features that this service writes."""


@dataclass(frozen=True, slots=True, eq=False)
class Outline:
    """One object. `area` is in level-0 pixel edges; `label` is QuPath's class. `mpp` is µm per pixel of the mask that
    it was traced from, `model` and `adapters` the names of what drew it; None where nobody says.
    """

    area: Area
    label: str | None = None
    predicted_iou: float | None = None
    mpp: float | None = None
    model: str | None = None
    adapters: str | None = None


def outlines_of_collection(collection: Mapping[str, Any]) -> list[Outline]:
    """The areas of a FeatureCollection in level-0 pixels, as QuPath exports one.

    Raises `InvalidRequest` for anything that is no valid area: an object that a user chose is never left out.
    """
    features = collection.get("features")
    if collection.get("type") != "FeatureCollection" or not isinstance(features, list):
        raise InvalidRequest("geojson is a FeatureCollection")
    if len(features) > MAX_OUTLINES:
        raise InvalidRequest(f"one object holds at most {MAX_OUTLINES} features")
    if not all(isinstance(feature, dict) and feature.get("type") == "Feature" for feature in features):
        raise InvalidRequest("geojson.features has something that is no Feature")
    try:
        texts = [orjson.dumps(feature.get("geometry")).decode() for feature in features]
    except TypeError as error:  # numbers beyond 64 bits, or too deep
        raise InvalidRequest("geojson has a geometry that is none") from error
    areas = shapely.from_geojson(texts, on_invalid="ignore")
    _check_vertices(areas)
    return [
        _outline(number, *feature)
        for number, feature in enumerate(zip(features, areas.tolist(), _are_valid(areas), strict=True))
    ]


def within_slide(outlines: Sequence[Outline], width: int, height: int) -> list[Outline]:
    """The parts of `outlines` on a slide of `width` x `height` level-0 pixels: beyond its border is no tissue.

    Raises `PromptOutsideSlide` for one that lies wholly outside.
    """
    slide = shapely.box(0, 0, width, height)
    whole = shapely.covers(slide, [outline.area for outline in outlines])
    return [outline if inside else _cut(outline, slide) for outline, inside in zip(outlines, whole, strict=True)]


def _cut(outline: Outline, slide: Polygon) -> Outline:
    (shared,) = shapely.intersection([outline.area], slide)  # in a list for others' sake, as in `_are_valid`
    inside = polygons_of(shared)
    if inside is None:
        raise PromptOutsideSlide("an outline lies outside the slide")
    return replace(outline, area=inside)


def _outline(number: int, feature: Mapping[str, Any], area: shapely.Geometry | None, valid: bool) -> Outline:
    if not isinstance(area, Polygon | MultiPolygon) or area.is_empty:
        raise InvalidRequest(f"geojson.features[{number}]: the geometry is a Polygon or MultiPolygon")
    if area.has_z or not valid:
        raise InvalidRequest(f"geojson.features[{number}]: the outline crosses itself or is not flat")
    if max(map(abs, area.bounds)) > FARTHEST:
        raise InvalidRequest(f"geojson.features[{number}]: no slide reaches as far")
    properties = _member(feature, "properties")
    metadata = _member(properties, "metadata")
    mpp = _number(metadata.get("mpp"))
    iou = _number(_member(properties, "measurements").get(PREDICTED_IOU))
    return Outline(
        area,
        label=class_name(properties.get("classification")),
        predicted_iou=iou if iou is not None and 0 <= iou <= 1 else None,
        mpp=mpp if mpp is not None and mpp > 0 else None,
        model=_text(metadata.get("model")),
        adapters=_text(metadata.get("adapters")),
    )


def class_name(classification: object) -> str | None:
    """The class as QuPath shows it: a text, or an object of a name or names."""
    if isinstance(classification, Mapping):
        names = classification.get("names")
        if isinstance(names, list | tuple):
            return ": ".join(str(name) for name in names) or None
        classification = classification.get("name")
    return _text(classification)


def _check_vertices(areas: npt.NDArray[np.object_]) -> None:
    counts = shapely.get_num_coordinates(areas)
    if counts.sum() > MAX_VERTICES:
        raise InvalidRequest(f"one object holds at most {MAX_VERTICES} vertices")
    if counts.max(initial=0) > MAX_VERTICES_EACH:
        raise InvalidRequest(f"one outline has at most {MAX_VERTICES_EACH} vertices")


def _are_valid(areas: npt.NDArray[np.object_]) -> npt.NDArray[np.bool_]:
    """Which of them cross themselves nowhere. Raises `InvalidRequest` where that takes too long.

    Some at a time: shapely lets other threads run only while it works on an array, and is not to be interrupted.
    """
    until = time.thread_time() + JUDGING_S
    parts = np.cumsum(shapely.get_num_coordinates(areas)) // _VERTICES_AT_ONCE
    valid = []
    for some in np.split(areas, np.flatnonzero(np.diff(parts)) + 1):
        if time.thread_time() > until:
            raise InvalidRequest("the outlines of the geojson have too many edges side by side to be checked together")
        valid.append(shapely.is_valid(some))
    return np.concatenate(valid)


def _member(holder: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = holder.get(name)
    return value if isinstance(value, Mapping) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _number(value: object) -> float | None:
    """QuPath writes metadata as texts."""
    try:
        number = float(value)  # type: ignore[arg-type]  # anything else is a TypeError
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
