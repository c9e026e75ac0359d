"""Forgetting what was made of one slide."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from starlette.responses import Response

from wsisam_service.api.bodies import described_problems, json_response
from wsisam_service.api.deps import ServicesDep
from wsisam_service.api.slide_answers import PurgeAnswer
from wsisam_service.segmenting.tokens import key_fingerprint

router = APIRouter(prefix="/v1/slides", tags=["slides"])


@router.delete(
    "/{slide_id}/cache",
    summary="Forget everything made of a slide",
    responses={200: {"model": PurgeAnswer}, **described_problems(404, 422, 502, 503, 504)},
)
async def purge(slide_id: str, services: ServicesDep) -> Response:
    """Embeddings and refine states in every tier, decoded tiles and pictures for viewers; at every worker and gateway
    on the same Redis, the others within seconds. `views` says how many embeddings went. The slide itself stays.
    """
    slide = await services.catalogue.open(slide_id)
    hidden = key_fingerprint(slide.fingerprint, services.settings.fingerprint_key)
    try:
        views = await services.executor.purge(hidden)
    finally:  # also where a store cannot be reached; at the end, so that what is read until then goes too
        await asyncio.to_thread(services.pixel_caches.forget, (hidden,))
    return json_response(PurgeAnswer(views=views).model_dump())
