"""A small real slide, and the whole application in this process with a numpy stand-in for the network."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from stand_ins import NumpyExecutor

from wsisam_service.app import create_app
from wsisam_service.settings import Settings
from wsisam_service.slides.catalogue import Catalogue
from wsisam_service.slides.write import write_pyramid

SLIDE_SIZE = (1536, 1024)
SLIDE_MPP = 0.5


@pytest.fixture(scope="session")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pyramidal slide of `SLIDE_SIZE` (width, height) at `SLIDE_MPP`, and a text named like a slide."""
    folder = tmp_path_factory.mktemp("slides")
    width, height = SLIDE_SIZE
    y, x = np.mgrid[:height, :width]
    image = np.stack([128 + 100 * np.sin(x / 50), 128 + 100 * np.cos(y / 40), (x + y) % 256], -1).astype(np.uint8)
    write_pyramid(folder / "tissue.tif", image, SLIDE_MPP)
    (folder / "broken.svs").write_text("not a slide")
    return folder


@pytest.fixture
def settings(slides: Path) -> Settings:
    return Settings(slides=(str(slides),), max_body_bytes=1_000_000, max_image_px=1_000_000)


@pytest.fixture
def executor() -> NumpyExecutor:
    return NumpyExecutor()


@pytest.fixture
def app(settings: Settings, executor: NumpyExecutor) -> FastAPI:
    return create_app(settings, Catalogue(settings.slides), executor)


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """Speaks to `app` without a socket; the application has started."""
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client


@pytest.fixture
async def slide_id(client: httpx.AsyncClient) -> str:
    return str((await client.get("/v1/slides", params={"q": "tissue"})).json()["slides"][0]["id"])
