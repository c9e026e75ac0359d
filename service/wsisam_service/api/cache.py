"""Forgetting what was made of one slide."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from wsisam_service.api.bodies import described_problems, json_response
from wsisam_service.api.deps import ServicesDep
from wsisam_service.api.slide_answers import PurgeAnswer
from wsisam_service.iiif.pictures import Pictures
from wsisam_service.segmenting.tokens import key_fingerprint

router = APIRouter(prefix="/v1/slides", tags=["slides"])


@router.delete(
    "/{slide_id}/cache",
    summary="Forget everything made of a slide",
    responses={200: {"model": PurgeAnswer}, **described_problems(404, 422, 502, 503, 504)},
)
async def purge(slide_id: str, request: Request, services: ServicesDep) -> Response:
    """Embeddings and refine states in every tier, at every worker on the same Redis; decoded tiles and pictures of
    this process. `views` says how many embeddings went. The slide itself stays.
    """
    slide = await services.catalogue.open(slide_id)
    views = await services.executor.purge(key_fingerprint(slide.fingerprint, services.settings.fingerprint_key))
    services.catalogue.drop_tiles(slide_id)
    pictures: Pictures = request.app.state.iiif_pictures
    pictures.forget(slide.fingerprint)
    return json_response(PurgeAnswer(views=views).model_dump())
