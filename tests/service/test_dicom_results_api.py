"""DICOM objects over HTTP, with a numpy stand-in for the network and a slide whose DICOM side was converted from it."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from dicom_objects import convert, pixels_inside, read_segments, source_of
from pycocotools import mask as coco
from shapely.geometry import shape
from stand_ins import NumpyExecutor

from wsisam_service.api.bodies import MAX_JSON_BYTES
from wsisam_service.app import create_app
from wsisam_service.audit.events import AuditEvent
from wsisam_service.audit.trail import AuditTrail
from wsisam_service.errors import PacsUnavailable
from wsisam_service.segmenting import results
from wsisam_service.settings import Settings
from wsisam_service.slides.catalogue import Catalogue
from wsisam_service.slides.slide import Slide

highdicom = pytest.importorskip("highdicom")

BOX = [600, 400, 760, 520]
OTHER_BOX = [1000, 200, 1200, 400]
SQUARE = {"type": "Polygon", "coordinates": [[[300, 300], [420, 300], [420, 380], [300, 380], [300, 300]]]}
RING = {"type": "Polygon", "coordinates": [*SQUARE["coordinates"], [[310, 310], [320, 310], [320, 320], [310, 310]]]}


@pytest.fixture(scope="module")
def headers(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> list[pydicom.Dataset]:
    return convert(slides / "tissue.tif", tmp_path_factory.mktemp("dicom") / "slide")


@pytest.fixture
def stored() -> list[bytes]:
    """What the slide's PACS has been sent."""
    return []


@pytest.fixture
def slide(slides: Path, headers: list[pydicom.Dataset], stored: list[bytes]) -> tuple[Catalogue, Slide]:
    catalogue = Catalogue([str(slides)])
    slide = catalogue.list("tissue").slides[0].slide
    assert slide is not None
    slide.info = replace(slide.info, dicom=source_of(headers, stored))
    return catalogue, slide


@pytest.fixture
async def pacs(
    settings: Settings, slide: tuple[Catalogue, Slide], executor: NumpyExecutor
) -> AsyncIterator[httpx.AsyncClient]:
    """A client whose paths are relative to the slide's."""
    catalogue, found = slide
    settings = settings.model_copy(update={"max_body_bytes": 2 * MAX_JSON_BYTES})
    app = create_app(settings, catalogue, executor)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=f"http://test/v1/slides/{found.id}/") as client:
            yield client


def collection(*geometries: dict[str, Any], **properties: Any) -> dict[str, Any]:
    features = [{"type": "Feature", "geometry": geometry, "properties": properties} for geometry in geometries]
    return {"type": "FeatureCollection", "features": features}


def placed(result: dict[str, Any], columns: int, rows: int, scale: float) -> npt.NDArray[np.bool_]:
    """The mask of a segment answer on a level whose pixels are as large as the view's."""
    view, matrix = result["view"], np.zeros((rows, columns), bool)
    x, y = round(view["x"] / scale), round(view["y"] / scale)
    mask = np.pad(coco.decode(result["mask"]).astype(bool), max(0, -x, -y))  # a view may begin above the slide
    grown = max(0, -x, -y)
    top, left = grown - y if y < 0 else grown, grown - x if x < 0 else grown
    cut = mask[top : top + rows - max(0, y), left : left + columns - max(0, x)]
    matrix[max(0, y) : max(0, y) + cut.shape[0], max(0, x) : max(0, x) + cut.shape[1]] = cut
    return matrix


def type_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["type"].removeprefix("/problems/")


async def test_segment_answers_a_segmentation_of_the_very_masks(pacs: httpx.AsyncClient) -> None:
    prompts = [{"box": BOX, "classification": "Tumor"}, {"box": OTHER_BOX, "classification": "Stroma"}]
    masks = (await pacs.post("segment", json={"prompts": prompts, "mpp": 1.0})).json()["results"]
    answer = await pacs.post("segment", json={"prompts": prompts, "mpp": 1.0, "format": "dicom-seg"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/dicom")
    assert "decode" in answer.headers["server-timing"]
    found = read_segments(answer.content)
    for number, result in enumerate(masks):
        expected = placed(result, 768, 512, 2.0)
        assert expected.sum() == coco.area(result["mask"])
        assert np.array_equal(found[..., number], expected)


async def test_segment_answers_annotations_of_the_outlines(pacs: httpx.AsyncClient) -> None:
    prompt = {"box": BOX, "classification": "Tumor"}
    (result,) = (await pacs.post("segment", json={"prompts": [prompt], "format": "both"})).json()["results"]
    answer = await pacs.post("segment", json={"prompts": [prompt], "format": "dicom-ann"})
    (group,) = highdicom.ann.annread(io.BytesIO(answer.content)).get_annotation_groups()
    (corners,) = group.get_graphic_data("2D")
    assert np.abs(np.array(result["geojson"]["geometry"]["coordinates"][0])[:-1] - corners).max() < 0.01
    algorithm = group.algorithm_identification[0]
    assert "sha256=" + "0" * 64 in algorithm.AlgorithmParameters
    iou = group.get_measurements()[1][0, 1]
    assert iou == pytest.approx(result["predicted_iou"])


async def test_one_failed_prompt_fails_the_whole_object(pacs: httpx.AsyncClient) -> None:
    prompts = [{"box": BOX}, {"id": "bad", "box": [10, 10, 5, 5]}]
    answer = await pacs.post("segment", json={"prompts": prompts, "format": "dicom-seg"})
    assert type_of(answer) == (422, "invalid-box")
    assert [error["id"] for error in answer.json()["errors"]] == ["bad"]


async def test_refine_tokens_give_what_was_shown_and_store_it_once(
    pacs: httpx.AsyncClient, stored: list[bytes]
) -> None:
    request = {"prompts": [{"box": BOX}], "mpp": 1.0}
    (shown,) = (await pacs.post("segment", json=request)).json()["results"]
    kept = [{"refine": shown["refine"], "classification": "Tumor"}]
    answers = [await pacs.post("results", json={"kind": "seg", "refine": kept, "store": True}) for _ in range(2)]
    assert answers[0].status_code == 200, answers[0].text
    assert answers[0].json() == answers[1].json()
    dataset = pydicom.dcmread(io.BytesIO(stored[0]))
    assert answers[0].json()["sop_instance_uid"] == dataset.SOPInstanceUID
    assert answers[0].json()["series_uid"] == dataset.SeriesInstanceUID
    assert np.array_equal(read_segments(stored[0])[..., 0], placed(shown, 768, 512, 2.0))
    assert dataset.SegmentSequence[0].SegmentLabel == "Tumor"


@pytest.mark.parametrize("kind", ["seg", "ann"])
async def test_outlines_are_made_in_threads(
    pacs: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    made, make = set[int](), results._outline

    def noted(*args: Any) -> Any:
        made.add(threading.get_ident())
        return make(*args)

    monkeypatch.setattr(results, "_outline", noted)
    (shown,) = (await pacs.post("segment", json={"prompts": [{"box": BOX}]})).json()["results"]
    kept = {"kind": kind, "refine": [{"refine": shown["refine"]}]}
    assert (await pacs.post("results", json=kept)).status_code == 200
    asked = {"prompts": [{"box": BOX}], "format": f"dicom-{kind}"}
    assert (await pacs.post("segment", json=asked)).status_code == 200
    assert made
    assert threading.get_ident() not in made


async def test_geojson_gives_the_pixels_of_its_polygons(pacs: httpx.AsyncClient) -> None:
    geojson = collection(SQUARE, RING, classification={"name": "Necrosis"})
    body = {"kind": "seg", "geojson": geojson, "level": 1, "segmentation_type": "LABELMAP"}
    answer = await pacs.post("results", json=body)
    expected = pixels_inside(shape(SQUARE), 768, 512, 2.0)
    assert np.array_equal(read_segments(answer.content)[..., 0], expected)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"kind": "ann", "geojson": collection(RING)}, (422, "outline-with-holes")),
        ({"kind": "seg", "geojson": collection()}, (422, "invalid-request")),
        ({"kind": "seg"}, (422, "invalid-request")),
        ({"kind": "seg", "geojson": collection(SQUARE), "refine": [{"refine": "x"}]}, (422, "invalid-request")),
        ({"kind": "seg", "refine": [{"refine": "x"}]}, (410, "refine-expired")),
        ({"kind": "seg", "geojson": collection(SQUARE), "level": 9}, (422, "invalid-request")),
        ({"kind": "ann", "geojson": collection(SQUARE), "level": 0}, (422, "invalid-request")),
        ({"kind": "seg", "geojson": collection(SQUARE), "level": -1}, (422, "invalid-number")),
        ({"kind": "seg", "geojson": collection(SQUARE), "model": "none-such"}, (422, "unknown-model")),
        ({"kind": "seg", "geojson": collection({"type": "Point", "coordinates": [1, 2]})}, (422, "invalid-request")),
        ({"kind": "seg", "geojson": {"type": "Feature"}}, (422, "invalid-request")),
        ({"kind": "seg", "geojson": collection(*[SQUARE] * 10_001)}, (422, "invalid-request")),
        ({"kind": "dose", "geojson": collection(SQUARE)}, (422, "invalid-request")),
    ],
)
async def test_what_cannot_be_an_object_is_told(
    pacs: httpx.AsyncClient, body: dict[str, Any], told: tuple[int, str]
) -> None:
    assert type_of(await pacs.post("results", json=body)) == told


async def test_a_feature_is_not_signed_by_another_model(pacs: httpx.AsyncClient) -> None:
    geojson = collection(SQUARE, metadata={"model": "lite_medsam", "adapters": "none"})
    assert type_of(await pacs.post("results", json={"kind": "seg", "geojson": geojson})) == (422, "invalid-request")
    answer = await pacs.post("results", json={"kind": "seg", "geojson": geojson, "adapters": "none"})
    segment = pydicom.dcmread(io.BytesIO(answer.content)).SegmentSequence[0]
    assert "adapters=none" in segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmParameters


async def test_an_answer_of_the_frozen_model_is_not_signed_by_the_adapters(pacs: httpx.AsyncClient) -> None:
    answer = await pacs.post("segment", json={"prompts": [{"box": BOX}], "adapters": "none"})
    kept = [{"refine": answer.json()["results"][0]["refine"]}]
    assert type_of(await pacs.post("results", json={"kind": "seg", "refine": kept})) == (410, "refine-expired")
    assert (await pacs.post("results", json={"kind": "seg", "refine": kept, "adapters": "none"})).is_success


async def test_an_object_is_signed_by_the_adapters_that_drew_all_of_it(
    pacs: httpx.AsyncClient, executor: NumpyExecutor
) -> None:
    own = {"name": "kidney", "sha256": "1" * 64, "licence": "ours", "trained_prompts": [], "knows_tissue": True}
    executor.own_adapters = [own]
    click = {"points": [[200, 150, 1]]}  # which the stand-in's own adapters draw
    answer = await pacs.post("segment", json={"prompts": [{"box": BOX}, click], "format": "both"})
    box, clicked = answer.json()["results"]
    assert (box["adapters"], clicked["adapters"]) == ("numpy", "kidney")

    kept, both = [{"refine": clicked["refine"]}], [{"refine": one["refine"]} for one in (clicked, box)]
    drawn = {"type": "FeatureCollection", "features": [clicked["geojson"]]}
    for body in ({"refine": kept}, {"refine": kept, "adapters": "kidney"}, {"geojson": drawn}):
        made = await pacs.post("results", json={"kind": "seg", **body})
        algorithm = pydicom.dcmread(io.BytesIO(made.content)).SegmentSequence[0]
        assert "adapters=kidney" in algorithm.SegmentationAlgorithmIdentificationSequence[0].AlgorithmParameters
    assert type_of(await pacs.post("results", json={"kind": "seg", "refine": both})) == (410, "refine-expired")
    drawn["features"].append(box["geojson"])
    assert type_of(await pacs.post("results", json={"kind": "seg", "geojson": drawn})) == (422, "invalid-request")
    mixed = {"prompts": [{"box": BOX}, click], "format": "dicom-seg"}
    assert type_of(await pacs.post("segment", json=mixed)) == (422, "invalid-request")
    named = await pacs.post("segment", json={**mixed, "adapters": "kidney"})
    assert named.is_success, named.text


async def test_a_body_too_large_to_parse_is_refused(pacs: httpx.AsyncClient) -> None:
    content = b'{"kind": "seg", "pad": "' + b"x" * MAX_JSON_BYTES + b'"}'
    answer = await pacs.post("results", content=content, headers={"content-type": "application/json"})
    assert type_of(answer) == (413, "body-too-large")


async def test_a_slide_that_is_not_dicom_says_so(client: httpx.AsyncClient, slide_id: str) -> None:
    path = f"/v1/slides/{slide_id}"
    for answer in (
        await client.post(f"{path}/segment", json={"prompts": [{"box": BOX}], "format": "dicom-seg"}),
        await client.post(f"{path}/results", json={"kind": "seg", "geojson": collection(SQUARE)}),
    ):
        assert type_of(answer) == (422, "no-dicom-source")


async def test_a_server_that_cannot_write_dicom_says_so(
    pacs: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)
    answer = await pacs.post("results", json={"kind": "seg", "geojson": collection(SQUARE)})
    assert type_of(answer) == (501, "not-supported")


async def test_the_audit_trail_is_told_what_goes_to_the_pacs_and_what_does_not(
    pacs: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[AuditEvent] = []
    monkeypatch.setattr(AuditTrail, "record", lambda _trail, event: told.append(event))
    for store in (False, True):
        body = {"kind": "seg", "geojson": collection(SQUARE), "store": store}
        assert (await pacs.post("results", json=body)).status_code == 200
    assert [event.transfer for event in told] == [False, True]


async def test_trouble_of_the_pacs_is_told(pacs: httpx.AsyncClient, slide: tuple[Catalogue, Slide]) -> None:
    def refuse(_objects: object) -> None:
        raise PacsUnavailable("the PACS does not answer")

    body = {"kind": "seg", "geojson": collection(SQUARE), "store": True}
    source = slide[1].info.dicom
    assert source is not None
    slide[1].info = replace(slide[1].info, dicom=replace(source, store=refuse))
    assert type_of(await pacs.post("results", json=body)) == (502, "pacs-unavailable")
    slide[1].info = replace(slide[1].info, dicom=replace(source, store=None))
    assert type_of(await pacs.post("results", json=body)) == (422, "no-dicom-source")
