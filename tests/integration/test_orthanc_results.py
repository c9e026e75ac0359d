"""Outlines stored in a real Orthanc, the slide's own PACS, and read out of it with other people's software."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pydicom
import pytest
from dicom_objects import convert, pixels_inside, read_segments, written
from orthanc import Orthanc
from shapely.geometry import shape
from stand_ins import NumpyExecutor

from wsisam_service.app import create_app
from wsisam_service.settings import Settings
from wsisam_service.slides.catalogue import Catalogue
from wsisam_service.slides.write import write_pyramid

highdicom = pytest.importorskip("highdicom")
dicomweb_client = pytest.importorskip("dicomweb_client")

WIDTH, HEIGHT, MPP = 1024, 768, 0.5
BOX = [400, 300, 560, 420]
SEGMENTATION, ANNOTATIONS = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.91.1"


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    server = Orthanc(tmp_path_factory.mktemp("orthanc"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def web(orthanc: Orthanc) -> Any:
    return dicomweb_client.DICOMwebClient(orthanc.dicomweb)


@pytest.fixture(scope="module")
def slide(web: Any, tissue: np.ndarray[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> pydicom.Dataset:
    """The finest level's header of a slide that lies in Orthanc."""
    folder = tmp_path_factory.mktemp("slide")
    picture = np.tile(tissue, (3, 3, 1))[:HEIGHT, :WIDTH]
    write_pyramid(folder / "tissue.tif", picture, MPP)
    headers = convert(folder / "tissue.tif", folder / "dicom")
    files = [pydicom.dcmread(path) for path in (folder / "dicom").iterdir()]
    for file in files:
        file.SpecificCharacterSet = "ISO_IR 192"
        file.PatientName, file.PatientID, file.AccessionNumber = "Müller^Jörg", "P1", "A1"
    web.store_instances(files)
    return headers[0]


@pytest.fixture
async def client(orthanc: Orthanc, slide: pydicom.Dataset) -> AsyncIterator[httpx.AsyncClient]:
    """Paths are relative to the slide, found by its study."""
    settings = Settings(slides=(orthanc.dicomweb.replace("http://", "dicomweb+http://"),))
    app = create_app(settings, Catalogue(settings.slides, pacs=settings.pacs), NumpyExecutor())
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            (found,) = (await client.get("/v1/slides", params={"study": slide.StudyInstanceUID})).json()["slides"]
            client.base_url = f"http://test/v1/slides/{found['id']}/"
            yield client


def retrieved(web: Any, told: dict[str, str]) -> bytes:
    dataset = web.retrieve_instance(told["study_uid"], told["series_uid"], told["sop_instance_uid"])
    return written(dataset)


async def test_a_stored_segmentation_is_found_and_holds_the_masks(
    client: httpx.AsyncClient, web: Any, slide: pydicom.Dataset
) -> None:
    prompt = {"box": BOX, "classification": "Tumor"}
    answer = await client.post("segment", json={"prompts": [prompt], "format": "both", "simplify": 0, "mpp": 1.0})
    (result,) = answer.json()["results"]
    body = {"kind": "seg", "refine": [{"refine": result["refine"], "classification": "Tumor"}], "store": True}
    told = (await client.post("results", json=body)).raise_for_status().json()
    found = web.search_for_instances(
        search_filters={"SOPInstanceUID": told["sop_instance_uid"]}, study_instance_uid=str(slide.StudyInstanceUID)
    )
    assert [one["00080016"]["Value"][0] for one in found] == [SEGMENTATION]
    content = retrieved(web, told)
    drawn = pixels_inside(shape(result["geojson"]["geometry"]), WIDTH // 2, HEIGHT // 2, 2.0)
    assert np.array_equal(read_segments(content)[..., 0], drawn)
    dataset = pydicom.dcmread(io.BytesIO(content))
    assert dataset.FrameOfReferenceUID == slide.FrameOfReferenceUID
    assert (dataset.PatientName, dataset.PatientID, dataset.AccessionNumber) == ("Müller^Jörg", "P1", "A1")


async def test_stored_annotations_lie_where_the_outlines_lie(client: httpx.AsyncClient, web: Any) -> None:
    answer = await client.post("segment", json={"prompts": [{"box": BOX}]}, headers={"accept": "application/geo+json"})
    body = {"kind": "ann", "geojson": answer.json(), "store": True}
    told = (await client.post("results", json=body)).raise_for_status().json()
    assert told["sop_class_uid"] == ANNOTATIONS
    (group,) = highdicom.ann.annread(io.BytesIO(retrieved(web, told))).get_annotation_groups()
    (corners,) = group.get_graphic_data("2D")
    (feature,) = answer.json()["features"]
    assert np.abs(np.array(feature["geometry"]["coordinates"][0])[:-1] - corners).max() < 0.01


async def test_storing_again_keeps_one_object(client: httpx.AsyncClient, web: Any, slide: pydicom.Dataset) -> None:
    answer = await client.post("segment", json={"prompts": [{"box": BOX}]}, headers={"accept": "application/geo+json"})
    body = {"kind": "seg", "geojson": answer.json(), "level": 0, "store": True}
    told = [(await client.post("results", json=body)).raise_for_status().json() for _ in range(3)]
    assert told[0] == told[1] == told[2]
    study = str(slide.StudyInstanceUID)
    assert len(web.search_for_instances(study, search_filters={"SOPInstanceUID": told[0]["sop_instance_uid"]})) == 1


async def test_wsidicom_shows_the_annotations_on_the_slide(
    client: httpx.AsyncClient, web: Any, slide: pydicom.Dataset, tmp_path: Path
) -> None:
    wsidicom = pytest.importorskip("wsidicom")
    answer = await client.post("segment", json={"prompts": [{"box": BOX}]}, headers={"accept": "application/geo+json"})
    body = {"kind": "ann", "geojson": answer.json(), "store": True}
    told = (await client.post("results", json=body)).raise_for_status().json()
    for series in (str(slide.SeriesInstanceUID), told["series_uid"]):
        for number, dataset in enumerate(web.retrieve_series(told["study_uid"], series)):
            (tmp_path / f"{series}-{number}.dcm").write_bytes(written(dataset))
    with wsidicom.WsiDicom.open(tmp_path) as opened:
        assert (opened.size.width, opened.size.height) == (WIDTH, HEIGHT)
        labels = {group.label for instance in opened.annotations for group in instance.groups}
    assert labels == {"Outline"}
