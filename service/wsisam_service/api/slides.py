"""Which slides there are, and pictures of them. Never label or macro images: they carry names."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from PIL import Image
from starlette.requests import Request
from starlette.responses import Response

from wsisam_model.config import model_config
from wsisam_service.api.bodies import described_problems, json_response
from wsisam_service.api.deps import Services, ServicesDep
from wsisam_service.api.middleware import unless_client_gone
from wsisam_service.api.problems import problem_entry
from wsisam_service.api.slide_answers import SlideDetailsAnswer, SlidesAnswer
from wsisam_service.errors import ImageTooLarge
from wsisam_service.slides import pixels
from wsisam_service.slides.items import DicomQuery
from wsisam_service.slides.lanes import LISTING_LANE, PICTURE_LANE, own_lane
from wsisam_service.slides.listing import ListedSlide
from wsisam_service.slides.reader import RgbImage
from wsisam_service.slides.slide import Slide
from wsisam_service.views import MAX_REQUEST_MPP, MIN_REQUEST_MPP

DEFAULT_PAGE, MAX_PAGE = 100, 1000
DEFAULT_THUMBNAIL, MAX_THUMBNAIL = 512, 4096
JPEG_QUALITY = 90

PictureFormat = Literal["jpeg", "png"]
Finite = Annotated[float, Query(allow_inf_nan=False)]
Extent = Annotated[float, Query(gt=0, allow_inf_nan=False)]

_PICTURES: dict[str, Any] = {"image/jpeg": {}, "image/png": {}}

router = APIRouter(prefix="/v1/slides", tags=["slides"])


@router.get("", summary="Which slides there are", responses={200: {"model": SlidesAnswer}, **described_problems(422)})
async def list_slides(
    services: ServicesDep,
    *,
    q: Annotated[str, Query(max_length=1000, description="Part of the name, in any case.")] = "",
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = DEFAULT_PAGE,
    cursor: Annotated[str, Query(max_length=4096, description="`next` of the page before.")] = "",
    study: Annotated[str, Query(max_length=64, description="Study instance UID of a DICOM slide.")] = "",
    series: Annotated[str, Query(max_length=64, description="Series instance UID of a DICOM slide.")] = "",
    accession: Annotated[str, Query(max_length=64, description="Accession number of a DICOM slide.")] = "",
) -> Response:
    """Slides by name, page by page. Files that look like slides and cannot be served are named under `unreadable`."""
    dicom = DicomQuery(study, series, accession)
    page = await LISTING_LANE.run(services.catalogue.list, q, limit, cursor or None, dicom)
    return json_response(
        {
            "slides": [_summary(listed.slide) for listed in page.slides if listed.slide],
            "unreadable": [_unreadable(listed) for listed in page.slides if not listed.slide],
            "next": page.next,
        }
    )


@router.get(
    "/{slide_id}",
    summary="One slide",
    responses={200: {"model": SlideDetailsAnswer}, **described_problems(404, 422, 502, 503)},
)
async def show_slide(slide_id: str, services: ServicesDep) -> Response:
    """Size, pixel size, levels, bounds, objective power, and what every answer on this slide will warn of."""
    slide = await services.catalogue.open(slide_id)
    _, warnings = slide.slide_mpp(_default_mpp(services))
    info = slide.info
    bounds = dict(zip(("x", "y", "width", "height"), info.bounds, strict=True)) if info.bounds else None
    details = {
        "levels": [{"width": lv.width, "height": lv.height, "downsample": lv.downsample} for lv in info.levels],
        "bounds": bounds,
        "objective_power": info.objective_power,
        "origin_mm": info.origin_mm,
        "warnings": warnings,
    }
    return json_response(_summary(slide) | details)


@router.get(
    "/{slide_id}/thumbnail",
    summary="The whole slide as a small picture",
    response_class=Response,
    responses={200: {"content": {"image/jpeg": {}}}, **described_problems(404, 422, 502, 503)},
)
async def show_thumbnail(
    slide_id: str,
    request: Request,
    services: ServicesDep,
    max_side: Annotated[int, Query(alias="max", ge=1, le=MAX_THUMBNAIL)] = DEFAULT_THUMBNAIL,
) -> Response:
    """JPEG with at most `max` pixels on its longer side."""

    slide = await services.catalogue.open(slide_id)

    def draw() -> bytes:
        return _encode(pixels.thumbnail(slide, max_side), "jpeg")

    return await _picture(request, slide, draw, "jpeg")


@router.get(
    "/{slide_id}/region",
    summary="A rectangle of the slide as a picture",
    response_class=Response,
    responses={200: {"content": _PICTURES}, **described_problems(404, 413, 422, 502, 503)},
)
async def show_region(
    slide_id: str,
    request: Request,
    services: ServicesDep,
    *,
    x: Finite,
    y: Finite,
    width: Extent,
    height: Extent,
    mpp: Annotated[float | None, Query(ge=MIN_REQUEST_MPP, le=MAX_REQUEST_MPP, allow_inf_nan=False)] = None,
    format: PictureFormat = "jpeg",
) -> Response:
    """Level-0 rectangle at `mpp` µm per pixel, full resolution where absent; white outside the slide."""

    slide = await services.catalogue.open(slide_id)

    def draw() -> bytes:
        slide_mpp, _ = slide.slide_mpp(_default_mpp(services))
        rectangle = (x, y, width, height)
        return _encode(pixels.read_region_image(slide, rectangle, slide_mpp=slide_mpp, mpp=mpp), format)

    return await _picture(request, slide, draw, format)


async def _picture(request: Request, slide: Slide, draw: Callable[[], bytes], format: PictureFormat) -> Response:
    """What `draw` gives, as long as somebody waits for it."""
    content = await unless_client_gone(request, own_lane(PICTURE_LANE, slide.lane).run(draw))
    return Response(content, media_type=f"image/{format}")


def _default_mpp(services: Services) -> float:
    return model_config(services.settings.model).default_mpp


def _summary(slide: Slide) -> dict[str, Any]:
    return {
        "id": slide.id,
        "name": slide.name,
        "width": slide.width,
        "height": slide.height,
        "mpp": slide.mpp,
        "vendor": slide.info.vendor,
        "fingerprint": slide.fingerprint,
    }


def _unreadable(listed: ListedSlide) -> dict[str, Any]:
    assert listed.problem is not None
    return {"id": listed.id, "name": listed.name, "problem": problem_entry(listed.problem)}


def _encode(picture: RgbImage, format: PictureFormat) -> bytes:
    buffer = io.BytesIO()
    if format == "jpeg":
        if max(picture.shape) > pixels.MAX_JPEG_SIDE:
            most = pixels.MAX_JPEG_SIDE
            raise ImageTooLarge(f"A JPEG has at most {most} pixels a side; ask for a PNG or a larger mpp.")
        Image.fromarray(picture).save(buffer, "JPEG", quality=JPEG_QUALITY)
    else:
        Image.fromarray(picture).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
