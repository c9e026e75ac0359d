"""What routes are given: the parts of the service that `create_app` was given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from wsisam_service.access.identity import identity_of
from wsisam_service.access.visible import VisibleSlides
from wsisam_service.jobs import Executor
from wsisam_service.pixel_caches import PixelCaches
from wsisam_service.segmenting.prewarm import BackgroundEncodes
from wsisam_service.segmenting.results import Results
from wsisam_service.segmenting.segmenter import Segmenter
from wsisam_service.settings import Settings


@dataclass(frozen=True, slots=True)
class Services:
    settings: Settings
    catalogue: VisibleSlides
    pixel_caches: PixelCaches
    executor: Executor
    segmenter: Segmenter
    encodes: BackgroundEncodes
    results: Results


async def services_of(request: Request) -> Services:
    """The service's parts, with the slides that the request's caller sees and no others.

    Dependencies are coroutines: FastAPI runs plain functions in threads, and a click would wait for two switches.
    """
    services: Services = request.app.state.services
    return replace(services, catalogue=services.catalogue.seen_by(identity_of(request.scope)))


ServicesDep = Annotated[Services, Depends(services_of)]
