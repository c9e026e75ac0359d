"""Slides read from a real Orthanc, as one that is protected by a password, and that stops in the middle of the work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from dicom_slides import JPEG, JPEG_2000, Series, Shape, write_concatenation, write_slide
from orthanc import Orthanc
from processes import wait_until
from stand_ins import NumpyExecutor

from wsisam_service.app import create_app
from wsisam_service.dicom.pacs_settings import PacsSettings
from wsisam_service.dicom.web import DicomWeb
from wsisam_service.errors import PacsUnavailable, ServiceError
from wsisam_service.settings import Settings
from wsisam_service.slides.catalogue import Catalogue
from wsisam_service.slides.items import DicomQuery
from wsisam_service.slides.opening import open_slide
from wsisam_service.slides.pixels import read_rectangle
from wsisam_service.slides.slide import Slide

USER, PASSWORD = "reader", "hush-hush"
CLICK, OTHER_CLICK = ({"prompts": [{"box": box}]} for box in ([80, 80, 160, 160], [1800, 2500, 1900, 2580]))

Tissue = npt.NDArray[np.uint8]


class Pacs:
    """An Orthanc that asks for a password, and who we are there."""

    def __init__(self, folder: Path) -> None:
        self.server = Orthanc(folder, AuthenticationEnabled=True, RegisteredUsers={USER: PASSWORD})
        self.root = f"dicomweb+{self.server.dicomweb}"

    def settings(self, **more: Any) -> PacsSettings:
        access = {"root": self.root, "user": USER, "password": PASSWORD, "refresh_s": 1, **more}
        return PacsSettings.model_validate(access)

    def store(self, folder: Path) -> None:
        """Every file below `folder`, by STOW-RS."""
        web = DicomWeb(self.settings())
        for path in folder.rglob("*"):
            if path.is_file():
                web.store([path.read_bytes()])

    def catalogue(self) -> Catalogue:
        return Catalogue([self.root], pacs=[self.settings()])


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pacs]:
    pacs = Pacs(tmp_path_factory.mktemp("orthanc"))
    yield pacs
    pacs.server.close()


def slide_of(catalogue: Catalogue, series: str) -> Slide:
    (listed,) = catalogue.list(dicom=DicomQuery(series=series)).slides
    assert listed.slide is not None, listed.problem
    return listed.slide


def stored(pacs: Pacs, folder: Path, series: str) -> tuple[Slide, Slide]:
    """The slide of the files in `folder`, and the same slide once they are stored."""
    pacs.store(folder)
    return slide_of(Catalogue([str(folder)]), series), slide_of(pacs.catalogue(), series)


@pytest.mark.parametrize(
    "shape", [Shape(), Shape(JPEG), Shape(JPEG_2000, photometric="YBR_RCT"), Shape(JPEG, sparse=True)]
)
def test_orthanc_gives_the_very_pixels_of_the_files_stored_in_it(
    pacs: Pacs, tissue: Tissue, tmp_path: Path, shape: Shape
) -> None:
    series = write_slide(tmp_path, tissue[:401, :457], shape=shape)
    here, there = stored(pacs, tmp_path, series.series)
    assert (there.fingerprint, there.info.levels, there.mpp) == (here.fingerprint, here.info.levels, here.mpp)
    for level in (0, 1):
        size = here.info.levels[level]
        both = [slide.read_region(level, -5, -5, size.width + 10, size.height + 10) for slide in (here, there)]
        assert np.array_equal(*both)


def test_a_concatenation_is_put_together_from_orthancs_instances(pacs: Pacs, tissue: Tissue, tmp_path: Path) -> None:
    series = Series()
    write_concatenation(tmp_path, tissue, series, 3, Shape(JPEG))
    here, there = stored(pacs, tmp_path, series.series)
    assert np.array_equal(there.read_region(0, 0, 0, 512, 512), here.read_region(0, 0, 0, 512, 512))


def test_views_of_a_real_slide_agree_with_the_file_that_it_was_converted_from(pacs: Pacs, shared: Path) -> None:
    series = "1.2.276.0.7230010.3.1.3.2425734838.4124713.1626788322.499658"
    _, there = stored(pacs, shared / "data/slides/dicom-cmu-1-small-region", series)
    original = open_slide(shared / "data/slides/cmu-1-small-region.svs")
    for scale in (1.0, 1.5):
        rectangle = (700.3, 900.7, 256 * scale, 256 * scale)
        a, b = (read_rectangle(slide, rectangle, (256, 256)).astype(int) for slide in (there, original))
        assert np.abs(a - b).mean() < 4  # its converter compressed anew


def test_without_the_password_there_are_no_slides_but_a_problem(pacs: Pacs) -> None:
    with pytest.raises(PacsUnavailable, match="credentials"):
        DicomWeb(pacs.settings(password="wrong")).search({}, 10)


@pytest.fixture
async def client(pacs: Pacs, shared: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A service over the PACS, with one slide in it."""
    pacs.store(shared / "data/slides/dicom-cmu-1-small-region")
    settings = Settings(slides=(pacs.root,), pacs=(pacs.settings(),))
    app = create_app(settings, Catalogue(settings.slides, pacs=settings.pacs), NumpyExecutor())
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        yield client


async def test_an_orthanc_that_stops_loses_no_warm_click_and_serves_again_once_it_is_back(
    pacs: Pacs, client: httpx.AsyncClient
) -> None:
    slides = (await client.get("/v1/slides")).json()["slides"]
    (slide_id,) = (slide["id"] for slide in slides if slide["width"] == 2220)

    async def click(body: dict[str, Any]) -> httpx.Response:
        return await client.post(f"/v1/slides/{slide_id}/segment", json=body)

    cold = await click(CLICK)
    assert cold.json()["results"][0]["cache"]["hr"] == "encoded"
    pacs.server.terminate()
    for _ in range(20):
        warm = await click(CLICK)
        assert (warm.status_code, warm.json()["results"][0]["cache"]["hr"]) == (200, "l1")
    refused = await click(OTHER_CLICK)
    assert refused.status_code == 502
    assert refused.json()["type"] == "/problems/pacs-unavailable"
    assert PASSWORD not in refused.text
    assert (await client.get("/readyz")).text == "ready\nPACS root 1 does not answer\n"
    pacs.server.restart()

    async with asyncio.timeout(30):
        while (await click(OTHER_CLICK)).status_code != 200:  # noqa: ASYNC110  # a PACS tells nobody that it is back
            await asyncio.sleep(0.1)


def test_a_slide_stored_later_appears_without_a_restart(pacs: Pacs, tissue: Tissue, tmp_path: Path) -> None:
    catalogue = pacs.catalogue()
    known = len(catalogue.list(limit=1000).slides)
    series = write_slide(tmp_path, tissue, shape=Shape(JPEG))
    pacs.store(tmp_path)

    def is_listed() -> bool:
        try:
            return slide_of(catalogue, series.series).width == 512
        except (ServiceError, ValueError, AssertionError):
            return False

    wait_until(is_listed, "the new slide is listed")
    assert len(catalogue.list(limit=1000).slides) == known + 1
