"""The gateway as an ASGI application. Nothing happens at import, and torch is never imported here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import Depends, FastAPI
from starlette.middleware.cors import CORSMiddleware

from wsisam_service.access.failures import Failures
from wsisam_service.access.opening import open_gate
from wsisam_service.access.path_keys import KeyInPath
from wsisam_service.access.shares import Shares
from wsisam_service.access.visible import VisibleSlides
from wsisam_service.api import (
    cache,
    health,
    iiif,
    image,
    openapi,
    page,
    prewarm,
    problems,
    results,
    sam,
    segment,
    slides,
)
from wsisam_service.api.admission import Admission, admit
from wsisam_service.api.auditing import AuditMiddleware
from wsisam_service.api.deps import Services
from wsisam_service.api.middleware import LimitsMiddleware, RequestMiddleware
from wsisam_service.audit.opening import open_trail
from wsisam_service.audit.trail import AuditTrail
from wsisam_service.iiif.pictures import Pictures
from wsisam_service.jobs import Executor
from wsisam_service.pixel_caches import PixelCaches
from wsisam_service.purges import follow
from wsisam_service.sam.weights import Install
from wsisam_service.segmenting.prewarm import BackgroundEncodes
from wsisam_service.segmenting.results import Results
from wsisam_service.segmenting.segmenter import Segmenter
from wsisam_service.settings import Settings
from wsisam_service.slides.catalogue import Catalogue

DESCRIPTION = """Outlines what a pathologist points at on a whole-slide image. Coordinates are level-0 pixels in the
pixel-edge frame. Errors are RFC 9457 problem documents."""


def create_app(
    settings: Settings, catalogue: Catalogue, executor: Executor, install_weights: Install | None = None
) -> FastAPI:
    """The application over `catalogue` and `executor`, which it warms up at start and closes at the end.

    `install_weights` serves weights that a client registers under /sam, None where they are refused.
    Raises `KeyFileError` and `IssuerError` for keys and an issuer that cannot be used.
    """

    encodes = BackgroundEncodes(executor)
    pictures = Pictures(settings.iiif_cache_bytes)
    pixel_caches = PixelCaches(catalogue, pictures, settings.fingerprint_key)
    trail = open_trail(settings)
    gate = open_gate(settings)

    async def forget_pixels(slides: Sequence[str]) -> None:
        await asyncio.to_thread(pixel_caches.forget, slides)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        trail.start()
        following = asyncio.create_task(follow(executor.purges, forget_pixels))
        try:
            await executor.warm_up()
            yield
        finally:
            following.cancel()
            await gate.aclose()
            await encodes.aclose()
            await executor.aclose()
            await asyncio.to_thread(trail.close)

    app = FastAPI(
        title="WSI-SAM",
        description=DESCRIPTION,
        version=version("wsisam"),
        lifespan=lifespan,
        openapi_url=None,  # and so no docs either: openapi.install serves both, to callers that may see them
        redirect_slashes=False,
        telemetry={"tracing": False},  # outside of KeyInPath; FastAPI before 0.142 has none, and keeps this unused
        dependencies=[Depends(admit)],
    )
    nobody = VisibleSlides(catalogue, None)
    app.state.admission = Admission(
        gate,
        Shares(per_minute=settings.identity_requests_per_minute, work=settings.identity_work),
        Failures(settings.wrong_credentials_per_minute),
    )
    segmenter = Segmenter(executor, settings)
    results_of = Results(segmenter, executor, settings.dicom_codes)
    app.state.services = Services(settings, nobody, pixel_caches, executor, segmenter, encodes, results_of)
    for routes in (slides, cache, segment, results, prewarm, image, health):
        app.include_router(routes.router)
    iiif.install(app, pictures)
    page.install(app, page.PAGE_FOLDER)
    sam.install(app, settings, install_weights)
    problems.install(app)
    openapi.install(app)
    app.state.audit = trail
    _add_middleware(app, settings, trail)
    return app


def _add_middleware(app: FastAPI, settings: Settings, trail: AuditTrail) -> None:
    """What surrounds every request, from the innermost on."""
    app.add_middleware(
        LimitsMiddleware,
        max_body_bytes=settings.max_body_bytes,
        timeout_s=settings.request_timeout_s,
        longer_s=sam.longer_timeouts(settings),
    )
    app.add_middleware(AuditMiddleware, trail=trail)
    app.add_middleware(RequestMiddleware)
    if settings.cors_origins:  # outside of what refuses requests, so that pages can read refusals
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("authorization", "content-type", "if-none-match", "x-request-id", "traceparent"),
            expose_headers=("server-timing", "etag", "retry-after", "x-request-id", "www-authenticate", "link"),
        )
    app.add_middleware(KeyInPath)
