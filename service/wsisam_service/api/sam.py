"""The routes of QuPath's SAM extension. It takes 200 for success and nothing else, and shows users very little:
PROTOCOL.md 1.1 to 1.8 is why each of these answers as it does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from wsisam_model.config import model_config
from wsisam_service.api.answers import server_timing
from wsisam_service.api.bodies import json_body, json_response
from wsisam_service.api.deps import Services, ServicesDep
from wsisam_service.api.middleware import unless_client_gone
from wsisam_service.errors import NotSupported, Overloaded
from wsisam_service.jobs import Timings
from wsisam_service.pictures.picture import PictureCache
from wsisam_service.pictures.picture_slide import slide_of_picture
from wsisam_service.sam.automask import Scene, features, find_all
from wsisam_service.sam.detect import detect
from wsisam_service.sam.offer import serving_model, weights_list
from wsisam_service.sam.requests import AutomaskBody, DetectBody, RegisterBody
from wsisam_service.sam.weights import Install, WeightsRegister
from wsisam_service.segmenting.offers import model_offer
from wsisam_service.settings import Settings
from wsisam_service.slides.lanes import SENT_LANE

SAMAPI_VERSION = "0.7.1"
"""The server whose protocol this is."""
LONGEST_WAIT_S = 5
"""The extension sleeps for as long as Retry-After says, with its Run button disabled."""
PREFIX = "/sam"
REGISTRATION_S = 3600.0
"""Longest download of weights, which has progress and can be cancelled."""

router = APIRouter(tags=["QuPath's SAM extension"])


@dataclass(frozen=True, slots=True)
class Extension:
    """What the routes keep between requests. `automask` lets one automask run at a time."""

    pictures: PictureCache
    register: WeightsRegister
    automask: asyncio.Semaphore


def install(app: FastAPI, settings: Settings, install_weights: Install | None) -> None:
    """Add the routes to `app`. `install_weights` loads and serves registered weights, None where nothing can."""
    app.state.extension = Extension(
        PictureCache(settings.picture_cache_bytes, settings.max_image_px),
        WeightsRegister(settings.sam_weights, settings.sam_weights_hosts, install_weights),
        asyncio.Semaphore(1),
    )
    app.include_router(router)


def longer_timeouts(settings: Settings) -> dict[str, float]:
    """Seconds that requests to these paths may take where it is more than others may."""
    seconds = {"automask": settings.automask_s + settings.request_timeout_s, "weights": REGISTRATION_S}
    return {path: limit for word, limit in seconds.items() for path in (f"{PREFIX}/{word}", f"{PREFIX}{word}")}


async def extension_of(request: Request) -> Extension:
    extension: Extension = request.app.state.extension
    return extension


ExtensionDep = Annotated[Extension, Depends(extension_of)]
Endpoint = Callable[..., Coroutine[Any, Any, Response]]


def route(
    method: str, word: str, summary: str, response_class: type[Response] = JSONResponse
) -> Callable[[Endpoint], Endpoint]:
    """`word` under /sam, with and without the last slash, and glued to it as old versions do when a user forgets the
    slash in the server's URL.
    """

    def add(endpoint: Endpoint) -> Endpoint:
        paths = [f"{PREFIX}/{word}/", f"{PREFIX}/{word}", f"{PREFIX}{word}/"] if word else [f"{PREFIX}/", PREFIX]
        for path in paths:
            router.add_api_route(
                path,
                endpoint,
                methods=[method],
                summary=summary,
                response_class=response_class,
                include_in_schema=path == paths[0],
            )
        return endpoint

    return add


@route("POST", "", "Outline of one prompt on a picture")
async def detection(
    request: Request,
    services: ServicesDep,
    extension: ExtensionDep,
    body: Annotated[DetectBody, Depends(json_body(DetectBody, max_bytes=None))],
) -> Response:
    """Features in pixels of the picture; an empty list where nothing is found or nothing was asked."""
    timings, start = Timings(), time.perf_counter()
    model = serving_model(body.type, body.checkpoint_url, await _installed(services), services.settings.model)
    picture = await extension.pictures.decode(body.b64img)
    timings.add("read", time.perf_counter() - start)
    multimask = model_config(model).multimask
    work = detect(services.segmenter, picture, body, model=model, multimask=multimask, timings=timings)
    features = await _small_retry_after(unless_client_gone(request, work))
    timings.add("total", time.perf_counter() - start)
    return json_response(features, headers={"server-timing": server_timing(timings)})


@route("POST", "automask", "Outlines of everything in a picture")
async def automask(
    request: Request,
    services: ServicesDep,
    extension: ExtensionDep,
    body: Annotated[AutomaskBody, Depends(json_body(AutomaskBody, max_bytes=None))],
) -> Response:
    """Features in pixels of the picture, best first. One at a time: a second one is told to come again."""
    settings = services.settings
    model = serving_model(body.type, body.checkpoint_url, await _installed(services), settings.model)
    if extension.automask.locked():
        raise Overloaded("another automask is running", retry_after_s=LONGEST_WAIT_S)
    async with extension.automask:
        picture = await extension.pictures.decode(body.b64img)
        offer = await model_offer(services.executor, model)
        views = services.segmenter.views(slide_of_picture(picture, None), offer)
        scene = Scene(services.executor, views, offer, (picture.width, picture.height))
        points_per_side = min(body.points_per_side, settings.automask_points_per_side)
        bounded = body.model_copy(update={"points_per_side": points_per_side})
        work = find_all(scene, bounded, budget_s=settings.automask_s)
        found = await _small_retry_after(unless_client_gone(request, work))
    return json_response(await SENT_LANE.run(features, found, body.type or model))


@route("GET", "weights", "Weights on offer, never none")
async def list_weights(services: ServicesDep, extension: ExtensionDep, type: str = "") -> Response:
    """What the extension lists for a model name; also for names that are not offered."""
    names = dict.fromkeys(await _installed(services), "default") | extension.register.names
    return json_response(weights_list(type, names, services.settings.model))


@route("POST", "weights", "Register weights", PlainTextResponse)
async def register_weights(
    request: Request,
    services: ServicesDep,
    extension: ExtensionDep,
    body: Annotated[RegisterBody, Depends(json_body(RegisterBody))],
) -> PlainTextResponse:
    """Answers when it is done. Refusals are 200 and a sentence: the extension shows it word by word."""
    work = extension.register.register(body.type, body.name, body.url, await _installed(services))
    return PlainTextResponse(await unless_client_gone(request, work))


@route("GET", "weights/cancel", "Cancel the registration that runs", PlainTextResponse)
async def cancel_registration(extension: ExtensionDep) -> PlainTextResponse:
    return PlainTextResponse(extension.register.cancel())


@route("GET", "progress", "Progress of the registration that runs")
async def show_progress(extension: ExtensionDep) -> Response:
    """Always 200 and at once: anything else closes the progress dialog."""
    return json_response(extension.register.progress)


@route("GET", "version", "Version", PlainTextResponse)
async def show_version() -> PlainTextResponse:
    return PlainTextResponse(f"{SAMAPI_VERSION}+wsi-sam.{version('wsisam')}")


@route("POST", "upload", "Frames of a sequence: not offered")
@route("POST", "video", "SAM 2 on a sequence: not offered")
@route("POST", "sam3video", "SAM 3 on a sequence: not offered")
async def refuse_video(request: Request) -> Response:
    """The body is read and dropped, for clients that read no answer before they have sent everything."""
    await _drop_body(request)
    raise NotSupported("This server has no video model.")


@route("POST", "sam3", "SAM 3: not offered")
async def refuse_sam3(request: Request) -> Response:
    await _drop_body(request)
    raise NotSupported("This server does not offer sam3; draw boxes or points and choose vit_t, vit_b, vit_l or vit_h.")


async def _installed(services: Services) -> list[str]:
    """Names of the models that the executor has."""
    return [facts["name"] for facts in (await services.executor.info())["models"]]


async def _drop_body(request: Request) -> None:
    async for _ in request.stream():
        pass


async def _small_retry_after(work: Coroutine[Any, Any, list[Any]]) -> list[Any]:
    try:
        return await work
    except Overloaded as error:
        wait = min(error.retry_after_s or LONGEST_WAIT_S, LONGEST_WAIT_S)
        raise Overloaded(error.detail, retry_after_s=wait) from error
