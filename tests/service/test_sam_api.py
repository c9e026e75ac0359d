"""The extension's routes, with a numpy stand-in for the network."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import shapely
import shapely.geometry
from fastapi import FastAPI
from PIL import Image
from stand_ins import NumpyExecutor

from wsisam_service.errors import Overloaded
from wsisam_service.jobs import DecodedMask, DecodeJob, DecodeResult, PixelSource, Timings
from wsisam_service.masks import rle
from wsisam_service.pictures.picture import Picture
from wsisam_service.sam.detect import prompt_of
from wsisam_service.sam.requests import DetectBody
from wsisam_service.segmenting.prompts import PromptSpec

JSON = {"content-type": "application/json"}
WIDTH, HEIGHT = 300, 200
BOX = [60, 50, 160, 120]


def picture(mode: str = "RGB", size: tuple[int, int] = (WIDTH, HEIGHT)) -> str:
    y, x = np.mgrid[: size[1], : size[0]]
    image = Image.fromarray(np.stack([x % 256, y % 256, (x + y) % 256], -1).astype(np.uint8)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


async def detect(client: httpx.AsyncClient, path: str = "/sam/", **body: Any) -> list[dict[str, Any]]:
    answer = await client.post(path, json={"type": "vit_l", "b64img": picture(), "multimask_output": False} | body)
    assert answer.status_code == 200, answer.text
    features: list[dict[str, Any]] = answer.json()
    return features


def area(feature: dict[str, Any]) -> shapely.Geometry:
    return shapely.geometry.shape(feature["geometry"])


async def test_a_box_gives_one_feature_in_pixels_of_the_picture(client: httpx.AsyncClient) -> None:
    (feature,) = await detect(client, bbox=BOX)
    assert area(feature).bounds == pytest.approx(BOX, abs=1)
    assert feature["properties"] == {"quality": 0.9, "label": "object", "sam_model": "vit_l"}


@pytest.mark.parametrize("path", ["/sam", "/sam/"])
async def test_detection_answers_with_and_without_the_last_slash(client: httpx.AsyncClient, path: str) -> None:
    assert len(await detect(client, path, bbox=BOX)) == 1


@pytest.mark.parametrize("word", ["weights", "progress", "version", "weights/cancel"])
@pytest.mark.parametrize("form", ["/sam/{}/", "/sam/{}", "/sam{}/"])
async def test_other_words_answer_in_every_form_that_a_typed_address_makes(
    client: httpx.AsyncClient, form: str, word: str
) -> None:
    assert (await client.get(form.format(word))).status_code == 200


@pytest.mark.parametrize("mode", ["RGBA", "L", "LA", "P"])
async def test_pictures_of_other_modes_are_understood(client: httpx.AsyncClient, mode: str) -> None:
    assert len(await detect(client, b64img=picture(mode), bbox=BOX)) == 1


@pytest.mark.parametrize(
    ("bbox", "bounds"),
    [
        ([-40, -20, 80, 70], (0, 0, 80, 70)),
        ([200, 120, 400, 900], (200, 120, WIDTH, HEIGHT)),
        ([-500, -500, 900, 900], (0, 0, WIDTH, HEIGHT)),
    ],
)
async def test_boxes_that_reach_beyond_the_picture_are_clipped(
    client: httpx.AsyncClient, bbox: list[int], bounds: tuple[int, ...]
) -> None:
    (feature,) = await detect(client, bbox=bbox)
    assert area(feature).bounds == pytest.approx(bounds, abs=2)


@pytest.mark.parametrize(
    "prompt",
    [
        {},
        {"bbox": [-90, -90, -10, -10]},
        {"bbox": [WIDTH, 10, WIDTH + 50, 60]},
        {"point_coords": [[-5, 10], [10, 900]], "point_labels": [1, 1]},
        {"point_coords": [[20, 20]], "point_labels": [0]},
    ],
)
async def test_without_a_prompt_on_the_picture_the_answer_is_empty(
    client: httpx.AsyncClient, prompt: dict[str, Any]
) -> None:
    assert await detect(client, **prompt) == []


async def test_a_box_of_no_size_is_its_pixel(client: httpx.AsyncClient) -> None:
    (feature,) = await detect(client, bbox=[50, 60, 50, 60])
    assert shapely.box(49, 59, 52, 62).covers(area(feature))


@pytest.mark.parametrize(
    ("bbox", "clicks", "expected"),
    [
        ((7, 9, 7, 9), [], PromptSpec(box=(7, 9, 8, 10))),
        ((7, 9, 7, 20), [], PromptSpec(box=(7, 9, 8, 20))),
        ((WIDTH - 1, HEIGHT - 1, WIDTH - 1, HEIGHT - 1), [], PromptSpec(box=(WIDTH - 1, HEIGHT - 1, WIDTH, HEIGHT))),
        ((-5, -7, 9, HEIGHT + 50), [], PromptSpec(box=(0, 0, 9, HEIGHT))),
        ((10, HEIGHT, 20, HEIGHT + 9), [], None),
        ((20, 30, 10, 40), [], None),
        (None, [(0, 0, 1), (WIDTH - 1, HEIGHT - 1, 1)], PromptSpec(points=((0.5, 0.5, 1), (299.5, 199.5, 1)))),
        (None, [(WIDTH, 3, 1), (3, HEIGHT, 1), (-1, 3, 1), (3, -1, 1)], None),
        (None, [(3, 4, 1), (WIDTH, 3, 1), (5, 6, 0)], PromptSpec(points=((3.5, 4.5, 1), (5.5, 6.5, 0)))),
        (None, [(5, 6, 0)], None),
        ((10, 20, 30, 40), [(5, 6, 0)], PromptSpec(box=(10, 20, 30, 40), points=((5.5, 6.5, 0),))),
    ],
)
def test_boxes_are_edges_points_are_pixels_and_what_lies_beside_the_picture_is_left_out(
    bbox: tuple[float, float, float, float] | None, clicks: list[tuple[float, float, int]], expected: PromptSpec | None
) -> None:
    coords, labels = [(x, y) for x, y, _ in clicks], [label for *_, label in clicks]
    body = DetectBody(b64img="", bbox=bbox, point_coords=tuple(coords), point_labels=tuple(labels))
    assert prompt_of(body, Picture(np.zeros((HEIGHT, WIDTH, 3), np.uint8), "c" * 64)) == expected


async def test_a_point_means_the_centre_of_its_pixel(client: httpx.AsyncClient) -> None:
    """The stand-in draws a disc around the click."""
    (feature,) = await detect(client, point_coords=[[100, 80], [10, 10]], point_labels=[1, 0])
    assert area(feature).centroid.distance(shapely.Point(100.5, 80.5)) < 1


class ThreeMasks(NumpyExecutor):
    """A model of three masks: nested boxes, each with a quality of its own, best first; the first is a rectangle."""

    async def decode(
        self, jobs: Sequence[DecodeJob], pixels: PixelSource, timings: Timings
    ) -> list[DecodeResult | Exception]:
        results = []
        for job, result in zip(jobs, await super().decode(jobs, pixels, timings), strict=True):
            assert isinstance(result, DecodeResult)
            x0, y0, x1, y1 = (round(side) for side in job.prompt.box or (0, 0, 0, 0))
            masks = []
            for shrink, quality in ((0, 0.95), (40, 0.7), (80, 0.4))[: len(result.masks)]:
                mask = np.zeros(result.masks[0].mask.size, bool)
                mask[y0 + shrink : y1 - shrink, x0 + shrink : x1 - shrink] = True
                masks.append(DecodedMask(rle.encode(mask), quality))
            results.append(DecodeResult(masks, (False,) * 4, None, "", "l1", None, "none"))
        return results


class TestThreeMasks:
    @pytest.fixture
    def executor(self) -> NumpyExecutor:
        return ThreeMasks(model="vit_b")

    async def test_each_quality_stays_with_its_own_mask(self, client: httpx.AsyncClient) -> None:
        features = await detect(client, type="vit_b", bbox=BOX, multimask_output=True)
        qualities = [feature["properties"]["quality"] for feature in features]
        areas = [area(feature).area for feature in features]
        assert qualities == [0.95, 0.7, 0.4]
        assert areas == sorted(areas, reverse=True)
        assert areas[0] > 1.3 * areas[2]

    async def test_a_single_mask_is_the_best_one(self, client: httpx.AsyncClient) -> None:
        (feature,) = await detect(client, type="vit_b", bbox=BOX)
        assert feature["properties"]["quality"] == 0.95

    async def test_a_rectangular_mask_does_not_become_a_rectangle_object(self, client: httpx.AsyncClient) -> None:
        (feature,) = await detect(client, type="vit_b", bbox=BOX)
        assert area(feature).area < area(feature).envelope.area


async def test_where_three_masks_mean_nothing_the_good_one_is_the_answer(client: httpx.AsyncClient) -> None:
    """QuPath's default keeps the smallest of three, and LiteMedSAM's other masks were never trained."""
    assert len(await detect(client, bbox=BOX, multimask_output=True)) == 1


async def test_a_second_click_on_the_same_picture_reads_and_encodes_nothing(
    client: httpx.AsyncClient, executor: NumpyExecutor
) -> None:
    await detect(client, bbox=BOX)
    views = dict(executor.views)
    executor.views.update({key: np.empty(0) for key in views})  # reading again would replace these
    await detect(client, bbox=[58, 52, 158, 122])
    assert {key: view.size for key, view in executor.views.items()} == dict.fromkeys(views, 0)


async def test_the_same_pixels_in_another_file_meet_the_same_embeddings(
    client: httpx.AsyncClient, executor: NumpyExecutor
) -> None:
    await detect(client, bbox=BOX)
    known = set(executor.views)
    await detect(client, b64img=picture("RGBA"), bbox=BOX)
    assert set(executor.views) == known


async def test_unknown_fields_and_missing_ones_are_no_error(client: httpx.AsyncClient) -> None:
    body = {"b64img": picture(), "bbox": BOX, "builderAsGroovyScript": "…", "checkpoint_url": "https://x.example/y"}
    answer = await client.post("/sam/", json=body)
    assert answer.json()[0]["properties"]["sam_model"] == "lite_medsam"


@pytest.mark.parametrize("type_", ["sam2_l", "sam3", "what"])
async def test_types_that_are_not_offered_are_told_so(client: httpx.AsyncClient, type_: str) -> None:
    answer = await client.post("/sam/", json={"type": type_, "b64img": picture(), "bbox": BOX})
    assert answer.status_code == 501
    assert answer.json()["type"] == "/problems/not-supported"
    assert answer.json()["detail"] == f"This server does not offer {type_}; choose vit_t, vit_b, vit_l or vit_h."


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"b64img": "!!!", "bbox": BOX}, 422),
        ({"bbox": BOX}, 422),
        ({"b64img": picture(), "bbox": [0, 0, "NaN", 3]}, 422),
        ({"b64img": picture(), "point_coords": [[1, 1]], "point_labels": [3]}, 422),
        ({"b64img": picture(), "point_coords": [[1, 1]], "point_labels": []}, 422),
        ({"b64img": picture(size=(1001, 1000)), "bbox": BOX}, 413),
    ],
)
async def test_bad_requests_say_why_in_one_line(client: httpx.AsyncClient, body: dict[str, Any], status: int) -> None:
    """The extension prints status and body in QuPath's log."""
    answer = await client.post("/sam/", json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["detail"]
    assert "\n" not in answer.text


@pytest.mark.parametrize("odd", [{"stability_score_offset": 1e308}, {"min_mask_region_area": 10**400}])
async def test_what_no_mask_could_have_is_refused(client: httpx.AsyncClient, odd: dict[str, Any]) -> None:
    answer = await client.post("/sam/automask/", content=json.dumps({"b64img": picture(), **odd}), headers=JSON)
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid-number")


class Busy(NumpyExecutor):
    async def decode(
        self, jobs: Sequence[DecodeJob], pixels: PixelSource, timings: Timings
    ) -> list[DecodeResult | Exception]:
        raise Overloaded("too many decodes are waiting", retry_after_s=90)


class TestBusy:
    @pytest.fixture
    def executor(self) -> NumpyExecutor:
        return Busy()

    @pytest.mark.parametrize("path", ["/sam/", "/sam/automask/"])
    async def test_a_busy_server_asks_to_come_again_soon(self, client: httpx.AsyncClient, path: str) -> None:
        """QuPath sleeps for all of Retry-After, so a long one would disable its window."""
        answer = await client.post(path, json={"b64img": picture(), "bbox": BOX})
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) <= 5


@pytest.mark.parametrize("type_", ["vit_t", "vit_h", "sam2_t", "sam3", "", "x" * 500])
async def test_the_weights_list_has_an_entry_for_every_type(client: httpx.AsyncClient, type_: str) -> None:
    entries = (await client.get("/sam/weights/", params={"type": type_})).json()
    assert entries
    assert all(set(entry) == {"type", "name", "url"} for entry in entries)


async def test_progress_is_an_integer_when_nothing_runs(client: httpx.AsyncClient) -> None:
    assert (await client.get("/sam/progress/")).json() == {"message": None, "percent": -1}


async def test_plain_gets_may_offer_an_upgrade(client: httpx.AsyncClient) -> None:
    headers = [("Upgrade", "TLS/1.2"), ("Connection", "keep-alive"), ("Connection", "Upgrade")]
    assert (await client.get("/sam/version/", headers=headers)).status_code == 200


@pytest.mark.parametrize("name", ["../../../etc/cron.d/x", "/etc/x", "00.jpg", "..\\x.jpg", "a\0b.jpg"])
async def test_frames_are_refused_and_nothing_is_written(
    client: httpx.AsyncClient, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The body is dropped unread, so that no name in it can do harm."""
    monkeypatch.chdir(tmp_path)
    files = {"file": (name, b"\xff\xd8\xff", "image/jpeg")}
    answer = await client.post("/sam/upload/", data={"dirname": "../.."}, files=files)
    assert answer.status_code == 501
    assert answer.json()["detail"] == "This server has no video model."
    assert not os.listdir(tmp_path)


async def test_a_second_automask_is_told_to_come_again(
    client: httpx.AsyncClient, executor: NumpyExecutor, app: FastAPI
) -> None:
    executor.hold = asyncio.Event()
    body = {"b64img": picture(), "points_per_side": 2}
    first = asyncio.create_task(client.post("/sam/automask/", json=body))
    await executor.waiting.wait()
    second = await client.post("/sam/automask/", json=body)
    assert (second.status_code, second.headers["retry-after"]) == (503, "5")
    executor.hold.set()
    assert (await first).status_code == 200
    executor.hold = None
    assert (await client.post("/sam/automask/", json=body)).status_code == 200
