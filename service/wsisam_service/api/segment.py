"""The main job: prompts on a slide in, outlines out."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from wsisam_service.api.answers import GEOJSON_MEDIA_TYPE, segment_response, server_timing, wants_feature_collection
from wsisam_service.api.bodies import described_body, described_problems, json_body
from wsisam_service.api.deps import ServicesDep
from wsisam_service.api.middleware import unless_client_gone
from wsisam_service.api.results import DICOM_MEDIA_TYPE, dicom_response
from wsisam_service.api.schemas import SEGMENT_EXAMPLES, SegmentAnswerModel, SegmentBody
from wsisam_service.jobs import Timings
from wsisam_service.logs import request_id
from wsisam_service.segmenting.results import check_dicom

router = APIRouter(tags=["segment"])


@router.post(
    "/v1/slides/{slide_id}/segment",
    summary="Outlines of up to 256 prompts on one slide",
    responses={
        200: {"model": SegmentAnswerModel, "content": {GEOJSON_MEDIA_TYPE: {}, DICOM_MEDIA_TYPE: {}}},
        **described_problems(404, 410, 413, 415, 422, 501, 502, 503, 504),
    },
    openapi_extra=described_body(SegmentBody, SEGMENT_EXAMPLES),
)
async def segment(
    slide_id: str,
    request: Request,
    services: ServicesDep,
    body: Annotated[SegmentBody, Depends(json_body(SegmentBody))],
) -> Response:
    """Boxes, points, masks and corrections in any combination. A prompt that fails does not fail the others."""
    timings, start = Timings(), time.perf_counter()
    bare = wants_feature_collection(request)
    wanted = body.request(request_id(), format="geojson" if bare else None)
    slide = await services.catalogue.open(slide_id)
    if body.dicom is not None:
        check_dicom(slide)
    answer = await unless_client_gone(request, services.segmenter.segment(slide, wanted, timings))
    if body.dicom is not None and not bare:
        result = await services.results.of_answer(slide, wanted, answer, body.dicom)
        timings.add("total", time.perf_counter() - start)
        return dicom_response(result, {"server-timing": server_timing(timings)})
    timings.add("total", time.perf_counter() - start)
    return segment_response(answer, wanted.format, timings, feature_collection=bare)
