"""Outlines kept: one DICOM object of them, answered or stored in the slide's PACS."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from wsisam_service.api.auditing import note_transfer
from wsisam_service.api.bodies import described_body, described_problems, json_body, json_response
from wsisam_service.api.deps import ServicesDep
from wsisam_service.api.middleware import unless_client_gone
from wsisam_service.api.schemas import ResultBody, StoredAnswer
from wsisam_service.dicom.derived import DicomResult

DICOM_MEDIA_TYPE = "application/dicom"
MAX_RESULT_VALUES = 4_000_000
"""A million vertices have three million."""

router = APIRouter(tags=["segment"])
_read_body = json_body(ResultBody, max_values=MAX_RESULT_VALUES)


@router.post(
    "/v1/slides/{slide_id}/results",
    summary="One DICOM object of outlines on a slide",
    responses={
        200: {"model": StoredAnswer, "content": {DICOM_MEDIA_TYPE: {}}},
        **described_problems(404, 410, 413, 415, 422, 501, 502, 503, 504),
    },
    openapi_extra=described_body(ResultBody),
)
async def make_result(
    slide_id: str,
    request: Request,
    services: ServicesDep,
    body: Annotated[ResultBody, Depends(_read_body)],
) -> Response:
    """A segmentation or bulk annotations, from GeoJSON or from refine tokens. The same content has the same UIDs, so
    that a request can be repeated.
    """
    slide = await services.catalogue.open(slide_id)
    result = await unless_client_gone(request, services.results.of_request(slide, body.request()))
    if not body.store:
        return dicom_response(result)
    note_transfer(request.scope)
    await services.results.store(slide, result)
    stored = StoredAnswer(
        study_uid=result.study_uid,
        series_uid=result.series_uid,
        sop_class_uid=result.sop_class_uid,
        sop_instance_uid=result.sop_instance_uid,
    )
    return json_response(stored.model_dump())


def dicom_response(result: DicomResult, headers: dict[str, str] | None = None) -> Response:
    """The object itself."""
    return Response(
        result.content, headers={"cache-control": "no-store", **(headers or {})}, media_type=DICOM_MEDIA_TYPE
    )
