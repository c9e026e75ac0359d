"""Encoding views before they are asked for."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from wsisam_service.access.identity import ANONYMOUS, identity_of
from wsisam_service.api.bodies import described_body, described_problems, json_body, json_response
from wsisam_service.api.deps import ServicesDep
from wsisam_service.api.middleware import unless_client_gone
from wsisam_service.api.schemas import PrewarmAnswer, PrewarmBody
from wsisam_service.jobs import Timings
from wsisam_service.segmenting.offers import model_offer
from wsisam_service.segmenting.prewarm import views_to_prewarm

router = APIRouter(tags=["segment"])


@router.post(
    "/v1/slides/{slide_id}/prewarm",
    summary="Encode views before they are asked for",
    status_code=HTTPStatus.ACCEPTED,
    responses={202: {"model": PrewarmAnswer}, **described_problems(404, 413, 415, 422, 502, 503, 504)},
    openapi_extra=described_body(PrewarmBody),
)
async def prewarm(
    slide_id: str,
    request: Request,
    services: ServicesDep,
    body: Annotated[PrewarmBody, Depends(json_body(PrewarmBody))],
) -> Response:
    """The views of boxes and clicks to come, or of clicks anywhere in a region, low-resolution ones included."""
    slide = await services.catalogue.open(slide_id)
    offer = await model_offer(services.executor, None)
    planned = await asyncio.to_thread(views_to_prewarm, body.request(), slide, offer.config)
    views = services.segmenter.views(slide, offer)
    wider = [] if offer.adapters is None else [view.coarser() for view in planned]
    keys = await asyncio.to_thread(lambda: list(dict.fromkeys(map(views.key, [*planned, *wider]))))
    new = await services.executor.missing(keys)
    if body.wait:
        await unless_client_gone(request, services.executor.encode(new, views.pixels, Timings()))
    elif new:
        identity = identity_of(request.scope)
        services.encodes.start(new, views.pixels, None if identity is None or identity is ANONYMOUS else identity.id)
    answer = PrewarmAnswer(views=len(keys), new=len(new), done=body.wait or not new)
    return json_response(answer.model_dump(), status=HTTPStatus.ACCEPTED)
