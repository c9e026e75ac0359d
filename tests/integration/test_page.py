"""The page in a real browser, in front of the service with the real network, on real tissue."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from browser import SlidePage, chromium
from PIL import Image
from pycocotools import mask as coco
from rasterio import features, transform

from wsisam_service.jobs import Rle
from wsisam_service.masks import rle

GLAND = (243.0, 296.0, 392.0, 500.0)
OTHER_GLAND = (270.0, 10.0, 468.0, 304.0)


@pytest.fixture(scope="module")
def tissue_page(qupath_service: Any) -> Iterator[SlidePage]:
    url = f"{qupath_service.url}/"
    slide_id = httpx.get(f"{url}v1/slides", params={"q": "tissue"}).json()["slides"][0]["id"]
    with chromium() as browser:
        opened = SlidePage(browser, url, slide_id, (256, 256))
        opened.wait()
        yield opened


@pytest.fixture
def page(tissue_page: SlidePage) -> SlidePage:
    """Nothing drawn, Box in hand, nothing to undo."""
    tissue_page.open_forgotten()
    tissue_page.page.click("#tool-box")
    tissue_page.complaints.clear()
    return tissue_page


def rasterised(collection: dict[str, Any], view: dict[str, Any]) -> np.ndarray[Any, Any]:
    """The outlines of `collection` in the pixels of `view`."""
    width, height = view["size"]
    to_level0 = transform.Affine(view["width"] / width, 0, view["x"], 0, view["height"] / height, view["y"])
    shapes = [feature["geometry"] for feature in collection["features"]]
    return features.rasterize(shapes, (height, width), transform=to_level0).astype(bool)


def iou(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    return float(np.count_nonzero(a & b) / np.count_nonzero(a | b))


def test_the_outline_drawn_is_the_mask_that_the_service_answered(page: SlidePage) -> None:
    asked, answer = page.answer_of(lambda: page.draw_box(GLAND))
    (prompt,), (result,) = asked["prompts"], answer["results"]
    assert np.abs(np.subtract(prompt["box"], GLAND)).max() <= 1.5
    mask = rle.decode(Rle(tuple(result["mask"]["size"]), result["mask"]["counts"]))
    assert mask.any()
    exported = json.loads(page.export("#export-geojson").read_text())
    assert iou(rasterised(exported, result["view"]), mask) >= 0.99
    facts = page.page.locator("#card").inner_text()
    assert f"{round(result['area_um2']):,} µm²" in facts
    assert f"{result['predicted_iou']:.2f}" in facts
    assert ("the frozen SAM" if result["adapters"] == "none" else result["adapters"]) in facts
    assert page.complaints == []


def test_a_negative_point_corrects_and_undo_brings_the_outline_back(page: SlidePage) -> None:
    _, first = page.answer_of(lambda: page.draw_box(GLAND))
    before = json.loads(page.export("#export-geojson").read_text())
    page.page.keyboard.press("n")
    asked, second = page.answer_of(lambda: page.click((310, 400)))
    (prompt,) = asked["prompts"]
    assert prompt["refine"] == first["results"][0]["refine"]
    assert len(prompt["points"]) == 1
    assert prompt["points"][0][2] == 0
    assert second["results"][0]["area_um2"] != first["results"][0]["area_um2"]
    page.page.keyboard.press("Control+z")
    assert json.loads(page.export("#export-geojson").read_text()) == before
    page.page.keyboard.press("Control+y")
    assert json.loads(page.export("#export-geojson").read_text()) != before
    assert len(page.rows()) == 1


def test_objects_outlive_a_reload_and_come_back_from_a_file(page: SlidePage) -> None:
    page.answer_of(lambda: page.draw_box(GLAND))
    page.page.keyboard.press("4")
    page.answer_of(lambda: page.draw_box(OTHER_GLAND))
    exported = page.export("#export-geojson")
    rows = page.rows()
    assert len(rows) == 2
    page.page.reload()
    page.wait()
    assert page.rows() == rows
    page.open_forgotten()
    assert page.rows() == []
    page.page.set_input_files("#import-file", {"name": "a.geojson", "mimeType": "", "buffer": exported.read_bytes()})
    page.page.wait_for_selector("#objects li")
    assert page.rows() == rows
    assert json.loads(page.export("#export-geojson").read_text()) == json.loads(exported.read_text())


def test_all_exports_hold_the_same_objects(page: SlidePage, tmp_path: Path) -> None:
    page.answer_of(lambda: page.draw_box(GLAND))
    page.page.keyboard.press("4")
    page.answer_of(lambda: page.draw_box(OTHER_GLAND))
    whole = {"x": 0, "y": 0, "width": 512, "height": 512, "size": [512, 512]}
    outlines = json.loads(page.export("#export-geojson").read_text())
    document = json.loads(page.export("#export-coco").read_text())
    labels = np.asarray(Image.open(page.export("#export-png")))
    assert labels.shape == (512, 512)
    assert [category["name"] for category in document["categories"]] == ["None", "Gland"]
    for number, annotation in enumerate(document["annotations"], start=1):
        mask = coco.decode(annotation["segmentation"]).astype(bool)
        one = {"features": [outlines["features"][number - 1]]}
        np.testing.assert_array_equal(labels == number, mask & (labels == number))
        assert iou(labels == number, mask) > 0.99
        assert iou(rasterised(one, whole), mask) > 0.995
        assert annotation["area"] == pytest.approx(mask.sum(), rel=0.01)
