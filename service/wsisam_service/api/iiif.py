"""Slides for any viewer that speaks the IIIF Image API 3.0: level 2, deep zoom included."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from wsisam_service.access.path_keys import base_path_of
from wsisam_service.api.bodies import JSON_MEDIA_TYPE, described_problems, json_response
from wsisam_service.api.deps import ServicesDep
from wsisam_service.api.middleware import unless_client_gone
from wsisam_service.api.problems import error_response
from wsisam_service.errors import ServiceError
from wsisam_service.iiif import addresses as iiif
from wsisam_service.iiif.pictures import Pictures, etag_of

JSON_LD_MEDIA_TYPE = f'application/ld+json;profile="{iiif.CONTEXT}"'
PROFILE_LINK = f'<{iiif.PROFILE}>;rel="profile"'
PREFIX_HEADER = "x-forwarded-prefix"
_PREFIX = re.compile(r"(/[\w.~-]+)+", re.ASCII)

_PICTURES: dict[str, Any] = {"image/jpeg": {}, "image/png": {}}


class _ReadableElsewhere(APIRoute):
    """Answers, problems included, may be read by pages of the origins that the settings name."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def with_origin(request: Request) -> Response:
            try:
                response = await handle(request)
            except ServiceError as error:
                response = error_response(error)
            origins = request.app.state.services.settings.iiif_origins
            origin = request.headers.get("origin", "")
            if "*" in origins:
                response.headers["access-control-allow-origin"] = "*"
            elif origins:
                response.headers.add_vary_header("origin")
                if origin in origins:
                    response.headers["access-control-allow-origin"] = origin
            return response

        return with_origin


router = APIRouter(prefix="/v1/slides/{slide_id}/iiif", tags=["iiif"], route_class=_ReadableElsewhere)


def install(app: FastAPI, pictures: Pictures) -> None:
    """Serve the slides of `app` to IIIF viewers, drawn by `pictures`."""
    app.state.iiif_pictures = pictures
    app.include_router(router)


async def _pictures(request: Request) -> Pictures:
    pictures: Pictures = request.app.state.iiif_pictures
    return pictures


PicturesDep = Annotated[Pictures, Depends(_pictures)]


@router.get("", summary="To info.json", status_code=303, response_class=RedirectResponse)
async def redirect(request: Request) -> Response:
    """The base URI leads to the image's description."""
    return RedirectResponse(f"{_identifier(request)}/info.json", 303)


@router.get("/info.json", summary="IIIF description of a slide", responses=described_problems(404, 422, 502, 503))
async def show_information(slide_id: str, request: Request, services: ServicesDep) -> Response:
    """Size, tiles and what else can be asked for. JSON-LD where the Accept header prefers it."""
    slide = await services.catalogue.open(slide_id)
    document = iiif.information(_identifier(request).removesuffix("/info.json"), slide.width, slide.height)
    linked = "application/ld+json" in request.headers.get("accept", "")
    headers = {"vary": "accept", "link": PROFILE_LINK}
    return json_response(document, headers=headers, media_type=JSON_LD_MEDIA_TYPE if linked else JSON_MEDIA_TYPE)


@router.get(
    "/{region}/{size}/{rotation}/{quality_format}",
    summary="IIIF picture of a part of a slide",
    response_class=Response,
    responses={
        200: {"content": _PICTURES},
        304: {"description": "Unchanged"},
        **described_problems(400, 404, 422, 502, 503),
    },
)
async def show_picture(
    slide_id: str,
    request: Request,
    services: ServicesDep,
    pictures: PicturesDep,
    *,
    region: str,
    size: str,
    rotation: str,
    quality_format: str,
) -> Response:
    """A region of level 0 in the size asked for, from the best level of the pyramid."""
    slide = await services.catalogue.open(slide_id)
    wanted = iiif.parse(region, size, rotation, quality_format, (slide.width, slide.height))
    etag = etag_of(slide, wanted)
    image = _identifier(request).rsplit("/", 4)[0]
    canonical = f'<{image}/{iiif.canonical(wanted, (slide.width, slide.height))}>;rel="canonical"'
    headers = {"etag": etag, "link": f"{PROFILE_LINK}, {canonical}"}
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    picture = pictures.held(etag)
    if picture is None:
        picture = await unless_client_gone(request, pictures.draw(etag, slide, wanted))
    return Response(picture.content, media_type=picture.media_type, headers=headers)


def _identifier(request: Request) -> str:
    """The absolute URI asked for, as the client wrote it: with its key in the path, and behind a proxy that strips a
    prefix with that prefix.
    """
    prefix = request.headers.get(PREFIX_HEADER, "").rstrip("/")
    url = request.url
    path = base_path_of(request.scope) + url.path
    path = f"{prefix}{path}" if _PREFIX.fullmatch(prefix) else path
    return str(url.replace(path=path, query="", fragment=""))
