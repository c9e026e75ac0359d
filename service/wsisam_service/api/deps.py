"""What routes are given: the parts of the service that `create_app` was given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from wsisam_service.jobs import Executor
from wsisam_service.segmenting.prewarm import BackgroundEncodes
from wsisam_service.segmenting.segmenter import Segmenter
from wsisam_service.settings import Settings
from wsisam_service.slides.catalogue import Catalogue


@dataclass(frozen=True, slots=True)
class Services:
    settings: Settings
    catalogue: Catalogue
    executor: Executor
    segmenter: Segmenter
    encodes: BackgroundEncodes


def services_of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(services_of)]
