"""The main job on a picture that is sent along, for images that the server does not have."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import Response

from wsisam_service.api.answers import GEOJSON_MEDIA_TYPE, segment_response, wants_feature_collection
from wsisam_service.api.bodies import described_problems, parse_body
from wsisam_service.api.deps import ServicesDep
from wsisam_service.api.middleware import unless_client_gone
from wsisam_service.api.schemas import SegmentAnswerModel, SegmentBody
from wsisam_service.errors import InvalidRequest, NoDicomSource, UnsupportedMediaType
from wsisam_service.jobs import Timings
from wsisam_service.logs import request_id
from wsisam_service.pictures.picture import decode_picture
from wsisam_service.pictures.picture_slide import slide_of_picture
from wsisam_service.slides.lanes import SENT_LANE

MAX_REQUEST_PART_BYTES = 4 << 20
_UTF_8 = (b"utf-8", b"utf8")
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["image", "request"],
    "properties": {
        "image": {"type": "string", "format": "binary", "description": "PNG or JPEG."},
        "request": {"$ref": "#/components/schemas/SegmentBody"},
    },
}
_BODY = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _SCHEMA}}}}

router = APIRouter(tags=["segment"])


async def read_form(request: Request) -> FormData:
    """A dependency that reads a multipart body; its size is bounded where it comes in."""
    media_type, options = parse_options_header(request.headers.get("content-type", ""))
    if media_type != b"multipart/form-data":
        raise UnsupportedMediaType("the body is multipart/form-data here, with the parts image and request")
    if options.get(b"charset", b"utf-8").lower() not in _UTF_8:  # Python's other codecs do more than read texts
        raise UnsupportedMediaType("the texts of a form are UTF-8 here")
    return await request.form(max_files=2, max_fields=2, max_part_size=MAX_REQUEST_PART_BYTES)


@router.post(
    "/v1/segment",
    summary="Outlines on a picture that is sent along",
    responses={
        200: {"model": SegmentAnswerModel, "content": {GEOJSON_MEDIA_TYPE: {}}},
        **described_problems(410, 413, 415, 422, 502, 503, 504),
    },
    openapi_extra=_BODY,
)
async def segment_picture(
    request: Request, services: ServicesDep, form: Annotated[FormData, Depends(read_form)]
) -> Response:
    """As on a slide, in pixels of the picture; `mpp` is here the picture's own pixel size in µm."""
    timings, start = Timings(), time.perf_counter()
    bare = wants_feature_collection(request)
    body = parse_body(SegmentBody, await _part(form, "request"))
    if body.dicom is not None:
        raise NoDicomSource("a picture is no DICOM slide, so nothing in DICOM can refer to it")
    wanted = replace(body.request(request_id(), format="geojson" if bare else None), mpp=None)
    content = await _part(form, "image")
    picture = await SENT_LANE.run(decode_picture, content, services.settings.max_image_px)
    slide = slide_of_picture(picture, body.mpp)
    answer = await unless_client_gone(request, services.segmenter.segment(slide, wanted, timings))
    timings.add("total", time.perf_counter() - start)
    return segment_response(answer, wanted.format, timings, feature_collection=bare)


async def _part(form: FormData, name: str) -> bytes:
    part = form.get(name)
    if isinstance(part, UploadFile):
        return await part.read()
    if part is None or name == "image":
        raise InvalidRequest(f"the multipart body has no {'file' if name == 'image' else 'part'} called {name}")
    return part.encode()
