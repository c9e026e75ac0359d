"""The main job over HTTP, with a numpy stand-in for the network."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from stand_ins import NumpyExecutor

from wsisam_service.api.schemas import SegmentAnswerModel
from wsisam_service.pictures.picture_slide import PICTURE_ID
from wsisam_service.segmenting import slide_views
from wsisam_service.segmenting.segmenter import CONCURRENT_READS
from wsisam_service.slides.pixels import read_view
from wsisam_service.slides.reader import RgbImage
from wsisam_service.slides.slide import Slide
from wsisam_service.views import View

BOX = [600, 400, 760, 520]


async def segment(client: httpx.AsyncClient, slide_id: str, **body: Any) -> dict[str, Any]:
    answer = await client.post(f"/v1/slides/{slide_id}/segment", json=body)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


async def test_a_box_gives_its_outline(client: httpx.AsyncClient, slide_id: str) -> None:
    document = await segment(client, slide_id, prompts=[{"id": "a", "box": BOX}], format="both")
    SegmentAnswerModel.model_validate(document)
    (result,) = document["results"]
    view = result["view"]
    assert result["id"] == "a"
    assert result["bbox"] == pytest.approx(BOX, abs=2 * view["width"] / view["size"][0])
    assert result["area_um2"] == pytest.approx(np.pi / 4 * 160 * 120 * 0.25, rel=0.03)
    assert int(coco.area(result["mask"])) > 0
    assert result["geojson"]["geometry"]["type"] == "Polygon"
    assert result["cache"]["hr"] == "encoded"
    assert result["touches_edge"] is False


async def test_the_second_click_on_a_view_reads_and_encodes_nothing(client: httpx.AsyncClient, slide_id: str) -> None:
    await segment(client, slide_id, prompts=[{"box": BOX}])
    (result,) = (await segment(client, slide_id, prompts=[{"box": BOX}]))["results"]
    assert result["cache"]["hr"] == "l1"


async def test_neither_warm_clicks_nor_pictures_wait_for_a_slow_disk(
    client: httpx.AsyncClient, slide_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await segment(client, slide_id, prompts=[{"box": BOX}])
    loop, come, busy, reading = asyncio.get_running_loop(), threading.Event(), asyncio.Event(), list[View]()

    def read_slowly(slide: Slide, view: View) -> RgbImage:
        if slide.id == PICTURE_ID:
            return read_view(slide, view)
        reading.append(view)
        if len(reading) == CONCURRENT_READS:
            loop.call_soon_threadsafe(busy.set)
        come.wait()
        return np.zeros((view.side, view.side, 3), np.uint8)

    monkeypatch.setattr(slide_views, "read_view", read_slowly)
    corners = [(x, y) for x in range(0, 1200, 150) for y in range(0, 900, 150)]
    cold = [
        asyncio.create_task(segment(client, slide_id, mpp=0.125, prompts=[{"box": [x, y, x + 4, y + 4]}]))
        for x, y in corners
    ]
    try:
        await asyncio.wait_for(busy.wait(), timeout=10)
        prompts = [{"id": str(i), "box": BOX} for i in range(20)]
        document = await asyncio.wait_for(segment(client, slide_id, prompts=prompts, format="both"), timeout=10)
        sent = client.post(
            "/v1/segment", files=picture_part(), data={"request": '{"prompts": [{"box": [40, 30, 120, 90]}]}'}
        )
        assert (await asyncio.wait_for(sent, timeout=10)).status_code == 200
    finally:
        come.set()
        await asyncio.gather(*cold)
    assert [result["id"] for result in document["results"]] == [prompt["id"] for prompt in prompts]
    assert all(result["geojson"] for result in document["results"])


async def test_members_that_were_not_asked_for_are_absent(client: httpx.AsyncClient, slide_id: str) -> None:
    (plain,) = (await segment(client, slide_id, prompts=[{"box": BOX}]))["results"]
    (outline,) = (await segment(client, slide_id, prompts=[{"box": BOX}], format="geojson"))["results"]
    (three,) = (await segment(client, slide_id, prompts=[{"box": BOX}], multimask=True))["results"]
    assert not {"geojson", "masks", "lr", "problem"} & plain.keys()
    assert "mask" not in outline
    assert outline["geojson"]["type"] == "Feature"
    assert len(three["masks"]) == 3
    assert three["masks"][0]["mask"] == three["mask"]


async def test_results_come_in_the_order_asked(client: httpx.AsyncClient, slide_id: str) -> None:
    boxes = [[x, 300, x + 100, 420] for x in (900, 100, 500)]
    document = await segment(client, slide_id, prompts=[{"id": str(box[0]), "box": box} for box in boxes])
    assert [result["id"] for result in document["results"]] == ["900", "100", "500"]
    assert [round(result["bbox"][0], -2) for result in document["results"]] == [900, 100, 500]


async def test_um_and_pixels_mean_the_same_place(client: httpx.AsyncClient, slide_id: str) -> None:
    (pixels,) = (await segment(client, slide_id, prompts=[{"box": BOX}]))["results"]
    (um,) = (await segment(client, slide_id, prompts=[{"box": [v * 0.5 for v in BOX]}], units="um"))["results"]
    assert (um["mask"], um["bbox"]) == (pixels["mask"], pixels["bbox"])


async def test_one_bad_prompt_does_not_fail_the_others(client: httpx.AsyncClient, slide_id: str) -> None:
    prompts = [{"id": "bad", "box": [10, 10, 5, 5]}, {"id": "good", "box": BOX}]
    bad, good = (await segment(client, slide_id, prompts=prompts))["results"]
    assert (bad["id"], bad["problem"]["type"]) == ("bad", "/problems/invalid-box")
    assert "mask" in good


async def test_when_every_prompt_fails_the_request_has_the_first_ones_problem(
    client: httpx.AsyncClient, slide_id: str
) -> None:
    prompts = [{"id": "a", "box": [10, 10, 5, 5]}, {"id": "b"}]
    answer = await client.post(f"/v1/slides/{slide_id}/segment", json={"prompts": prompts})
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid-box")
    assert [(error["id"], error["type"]) for error in answer.json()["errors"]] == [
        ("a", "/problems/invalid-box"),
        ("b", "/problems/empty-prompt"),
    ]


async def test_geojson_accept_gives_a_bare_collection(client: httpx.AsyncClient, slide_id: str) -> None:
    answer = await client.post(
        f"/v1/slides/{slide_id}/segment",
        json={"prompts": [{"box": BOX}, {"box": [10, 10, 5, 5]}]},
        headers={"accept": "application/geo+json"},
    )
    assert answer.headers["content-type"] == "application/geo+json"
    assert answer.json()["type"] == "FeatureCollection"
    assert len(answer.json()["features"]) == 1


async def test_a_correction_starts_from_the_earlier_answer(client: httpx.AsyncClient, slide_id: str) -> None:
    (first,) = (await segment(client, slide_id, prompts=[{"points": [[700, 500, 1]]}]))["results"]
    correction = {"refine": first["refine"], "points": [[740, 500, 1]]}
    (second,) = (await segment(client, slide_id, prompts=[correction]))["results"]
    assert second["view"] == first["view"]
    assert second["area_um2"] > first["area_um2"]


async def test_server_timing_says_where_the_time_went(client: httpx.AsyncClient, slide_id: str) -> None:
    answer = await client.post(f"/v1/slides/{slide_id}/segment", json={"prompts": [{"box": BOX}]})
    stages = [part.split(";")[0] for part in answer.headers["server-timing"].split(", ")]
    assert stages == ["read", "queue", "encode", "decode", "mask", "total"]


async def test_a_client_that_leaves_takes_its_decode_with_it(
    client: httpx.AsyncClient, slide_id: str, executor: NumpyExecutor
) -> None:
    executor.hold = asyncio.Event()
    app = client._transport.app  # type: ignore[attr-defined]
    body = json.dumps({"prompts": [{"box": BOX}]}).encode()
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    gone = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: object) -> None:
        raise AssertionError(f"nobody is there for {message}")

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": f"/v1/slides/{slide_id}/segment",
        "raw_path": b"",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "client": ("test", 1),
        "server": ("test", 80),
        "scheme": "http",
        "root_path": "",
    }
    request = asyncio.create_task(app(scope, receive, send))
    await executor.waiting.wait()
    gone.set()
    await request
    assert executor.cancelled == 1


def picture_part(width: int = 300, height: int = 200) -> dict[str, Any]:
    pixels = np.random.default_rng(1).integers(0, 255, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return {"image": ("gland.png", buffer.getvalue(), "image/png")}


async def test_a_picture_sent_along_is_segmented_in_its_pixels(client: httpx.AsyncClient) -> None:
    request = json.dumps({"prompts": [{"box": [100, 60, 200, 140]}], "mpp": 0.5, "format": "both"})
    answer = await client.post("/v1/segment", files=picture_part(), data={"request": request})
    assert answer.status_code == 200, answer.text
    (result,) = answer.json()["results"]
    assert result["bbox"] == pytest.approx([100, 60, 200, 140], abs=3)
    assert result["area_um2"] == pytest.approx(np.pi / 4 * 100 * 80 * 0.25, rel=0.05)


async def test_prewarmed_views_are_those_that_clicks_meet(client: httpx.AsyncClient, slide_id: str) -> None:
    path = f"/v1/slides/{slide_id}/prewarm"
    body = {"boxes": [BOX], "points": [[300, 300]], "wait": True}
    first = await client.post(path, json=body)
    again = await client.post(path, json=body)
    assert first.status_code == again.status_code == 202
    assert first.json()["new"] == first.json()["views"] > 0
    assert first.json()["done"] is True
    assert again.json()["new"] == 0
    document = await segment(client, slide_id, prompts=[{"box": BOX}, {"points": [[300, 300, 1]]}])
    assert [result["cache"]["hr"] for result in document["results"]] == ["l1", "l1"]


async def test_a_prewarmed_region_covers_clicks_anywhere_in_it(client: httpx.AsyncClient, slide_id: str) -> None:
    answer = await client.post(f"/v1/slides/{slide_id}/prewarm", json={"region": [0, 0, 1536, 1024], "wait": True})
    assert answer.status_code == 202
    clicks = np.random.default_rng(2).uniform((0, 0), (1536, 1024), (20, 2)).tolist()
    document = await segment(client, slide_id, prompts=[{"points": [[x, y, 1]]} for x, y in clicks])
    assert {result["cache"]["hr"] for result in document["results"]} == {"l1"}
