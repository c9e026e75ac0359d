"""Whether the process lives, whether it can serve, what it offers, and its metrics."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from wsisam_service.api.bodies import described_problems, json_response
from wsisam_service.api.deps import ServicesDep
from wsisam_service.api.slide_answers import InfoAnswer
from wsisam_service.audit.trail import AuditTrail
from wsisam_service.errors import NotReady
from wsisam_service.pictures.picture_slide import PICTURE_MODE
from wsisam_service.segmenting.segmenter import MAX_PROMPTS
from wsisam_service.views import MAX_REQUEST_MPP, MAX_SLIDE_MPP, MIN_REQUEST_MPP, MIN_SLIDE_MPP

router = APIRouter(tags=["service"])


@router.get(
    "/healthz",
    summary="Does the process live?",
    response_class=PlainTextResponse,
    responses=described_problems(503),
)
async def healthz(services: ServicesDep) -> PlainTextResponse:
    """200 as long as the event loop turns and a restart would mend nothing; 503 once the device has failed for good."""
    if not await services.executor.healthy():
        raise NotReady("the device has failed, only a restart helps")
    return PlainTextResponse("ok\n")


@router.get(
    "/readyz",
    summary="Can it serve?",
    response_class=PlainTextResponse,
    responses=described_problems(503),
)
async def readyz(request: Request, services: ServicesDep) -> PlainTextResponse:
    """200 once the model is loaded and warm and every slide root can be read; with the state of audit sinks and
    PACS's, which do not count.
    """
    if not await services.executor.ready():
        raise NotReady("the model is not loaded yet", retry_after_s=2)
    if not await services.catalogue.is_readable():
        raise NotReady("a root of the slides cannot be read", retry_after_s=5)
    trail: AuditTrail = request.app.state.audit
    return PlainTextResponse("\n".join(("ready", *trail.states(), *services.catalogue.pacs_states(), "")))


@router.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
async def metrics() -> Response:
    """Every metric of this process; names start with wsisam_."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/info", summary="Models, device and limits", responses={200: {"model": InfoAnswer}})
async def info(services: ServicesDep) -> Response:
    """Version, models with the prompts they were trained for, adapters, engine, device, precision, limits."""
    settings = services.settings
    limits = {
        "max_prompts": MAX_PROMPTS,
        "max_body_bytes": settings.max_body_bytes,
        "max_image_px": settings.max_image_px,
        "request_timeout_s": settings.request_timeout_s,
        "refine_ttl_s": settings.refine_ttl_s,
        "mpp": [MIN_REQUEST_MPP, MAX_REQUEST_MPP],
        "slide_mpp": [MIN_SLIDE_MPP, MAX_SLIDE_MPP],
    }
    offered = await services.executor.info()
    return json_response({"version": version("wsisam"), **offered, "pictures": PICTURE_MODE, "limits": limits})
