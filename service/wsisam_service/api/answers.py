"""How the domain's answers are written: the JSON document of segment, the bare FeatureCollection, Server-Timing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from wsisam_service.api.bodies import JSON_MEDIA_TYPE, json_response
from wsisam_service.api.problems import problem_entry
from wsisam_service.jobs import NO_ADAPTERS, Timings
from wsisam_service.masks import geojson
from wsisam_service.segmenting.answers import PromptAnswer, PromptProblem, SegmentAnswer
from wsisam_service.segmenting.segmenter import MaskFormat

GEOJSON_MEDIA_TYPE = "application/geo+json"
STAGES = ("read", "queue", "encode", "decode", "mask", "total")


def wants_feature_collection(request: Request) -> bool:
    """Whether the client asks for bare GeoJSON and does not take JSON as well."""
    accepted = {part.partition(";")[0].strip().lower() for part in request.headers.get("accept", "").split(",")}
    return GEOJSON_MEDIA_TYPE in accepted and JSON_MEDIA_TYPE not in accepted


def segment_response(
    answer: SegmentAnswer, format: MaskFormat, timings: Timings, *, feature_collection: bool = False
) -> Response:
    """The answer to a segment request, in the form that was asked for."""
    headers = {"server-timing": server_timing(timings), "cache-control": "no-store"}
    if feature_collection:
        return json_response(_feature_collection(answer), headers=headers, media_type=GEOJSON_MEDIA_TYPE)
    return json_response(segment_document(answer, format), headers=headers)


def segment_document(answer: SegmentAnswer, format: MaskFormat) -> dict[str, Any]:
    """`answer` as DESIGN section 7 writes it; members that were not asked for are absent."""
    return {
        "model": answer.model,
        "adapters": answer.adapters or NO_ADAPTERS,
        "warnings": answer.warnings,
        "results": [_result(result, format) for result in answer.results],
    }


def server_timing(timings: Timings) -> str:
    """The `Server-Timing` header, milliseconds by stage."""
    seconds: Mapping[str, float] = timings.seconds
    return ", ".join(f"{stage};dur={seconds.get(stage, 0.0) * 1e3:.2f}" for stage in STAGES)


def _result(result: PromptAnswer | PromptProblem, format: MaskFormat) -> dict[str, Any]:
    if isinstance(result, PromptProblem):
        return {"id": result.id, "problem": problem_entry(result.error)}
    document: dict[str, Any] = {
        "id": result.id,
        "mask": result.mask,
        "view": result.view,
        "bbox": result.bbox,
        "area_um2": result.area_um2,
        "predicted_iou": result.predicted_iou,
        "touches_edge": result.touches_edge,
        "refine": result.refine,
        "cache": result.cache,
        "adapters": result.adapters.name if result.adapters else NO_ADAPTERS,
    }
    if format == "geojson":
        del document["mask"]
    if format != "rle":
        document["geojson"] = result.geojson
    if result.masks is not None:
        document["masks"] = result.masks
    if result.lr is not None:
        document["lr"] = result.lr
    return document


def _feature_collection(answer: SegmentAnswer) -> dict[str, Any]:
    """Objects with an outline only: QuPath refuses a Feature without a geometry, and with it the whole file."""
    answered = (result for result in answer.results if isinstance(result, PromptAnswer))
    return geojson.feature_collection(r.geojson for r in answered if r.geojson is not None)
