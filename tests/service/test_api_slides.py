"""The catalogue over HTTP."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from stand_ins import NumpyExecutor
from tiffslide import TiffSlide

from wsisam_service.app import create_app
from wsisam_service.settings import Settings
from wsisam_service.slides import pixels
from wsisam_service.slides.catalogue import FRESH_S, Catalogue
from wsisam_service.slides.items import OpenedSlide
from wsisam_service.slides.lanes import PICTURE_LANE
from wsisam_service.slides.reader import RgbImage
from wsisam_service.slides.roots import SlideFile
from wsisam_service.slides.tiles import TileCache


async def test_listing_has_what_a_client_needs_to_find_its_slide(client: httpx.AsyncClient, slides: Path) -> None:
    page = (await client.get("/v1/slides")).json()
    content = (slides / "tissue.tif").read_bytes()
    size, mib = len(content), 1 << 20
    digest = hashlib.sha256(b"%d\n" % size + content[:mib] + content[max(0, size - mib) :]).hexdigest()
    (slide,) = page["slides"]
    assert {key: slide[key] for key in ("name", "width", "height", "mpp", "fingerprint")} == {
        "name": "tissue.tif",
        "width": 1536,
        "height": 1024,
        "mpp": 0.5,
        "fingerprint": digest,
    }
    assert page["next"] is None


async def test_what_cannot_be_served_is_named_with_its_problem(client: httpx.AsyncClient) -> None:
    (broken,) = (await client.get("/v1/slides")).json()["unreadable"]
    assert (broken["name"], broken["problem"]["type"]) == ("broken.svs", "/problems/unreadable-slide")
    answer = await client.get(f"/v1/slides/{broken['id']}")
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/unreadable-slide")


async def test_listing_goes_page_by_page(client: httpx.AsyncClient) -> None:
    names, cursor = [], ""
    for _ in range(3):
        page = (await client.get("/v1/slides", params={"limit": 1, "cursor": cursor})).json()
        names += [entry["name"] for entry in page["slides"] + page["unreadable"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert sorted(names) == ["broken.svs", "tissue.tif"]


async def test_one_slide_has_levels_and_warnings(client: httpx.AsyncClient, slide_id: str) -> None:
    slide = (await client.get(f"/v1/slides/{slide_id}")).json()
    assert [level["width"] for level in slide["levels"]][:2] == [1536, 768]
    assert slide["bounds"] is None
    assert slide["warnings"] == []


async def test_thumbnail_keeps_the_shape(client: httpx.AsyncClient, slide_id: str) -> None:
    answer = await client.get(f"/v1/slides/{slide_id}/thumbnail", params={"max": 150})
    assert answer.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(answer.content)).size == (150, 100)


async def test_region_is_the_slides_pixels(client: httpx.AsyncClient, slide_id: str) -> None:
    where = {"x": 100, "y": 200, "width": 64, "height": 32, "format": "png"}
    answer = await client.get(f"/v1/slides/{slide_id}/region", params=where)
    picture = np.asarray(Image.open(io.BytesIO(answer.content)))
    y, x = np.mgrid[200:232, 100:164]
    assert picture.shape == (32, 64, 3)
    np.testing.assert_array_equal(picture[..., 2], (x + y) % 256)


async def test_region_at_an_mpp_has_that_scale(client: httpx.AsyncClient, slide_id: str) -> None:
    where = {"x": 0, "y": 0, "width": 512, "height": 256, "mpp": 2}
    answer = await client.get(f"/v1/slides/{slide_id}/region", params=where)
    assert Image.open(io.BytesIO(answer.content)).size == (128, 64)


@pytest.mark.parametrize(
    ("params", "status", "problem"),
    [
        ({"x": "nan", "y": 0, "width": 1, "height": 1}, 422, "invalid-number"),
        ({"x": 0, "y": 0, "width": -1, "height": 1}, 422, "invalid-number"),
        ({"x": 0, "y": 0, "width": "wide", "height": 1}, 422, "invalid-request"),
        ({"x": 0, "y": 0, "width": 1}, 422, "invalid-request"),
        ({"x": 0, "y": 0, "width": 1, "height": 1, "mpp": 100}, 422, "invalid-number"),
        ({"x": 0, "y": 0, "width": 1, "height": 1, "format": "bmp"}, 422, "invalid-request"),
        ({"x": 0, "y": 0, "width": 1e5, "height": 1e5}, 413, "image-too-large"),
    ],
)
async def test_bad_regions_are_refused(
    client: httpx.AsyncClient, slide_id: str, params: dict[str, object], status: int, problem: str
) -> None:
    answer = await client.get(f"/v1/slides/{slide_id}/region", params=params)  # type: ignore[arg-type]
    assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{problem}")


@pytest.mark.parametrize("path", ["x", "..", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "..%2Ftissue.tif", "tissue.tif", "%00"])
async def test_no_id_leads_out_of_the_catalogue(client: httpx.AsyncClient, path: str) -> None:
    for tail in ("", "/thumbnail"):
        answer = await client.get(f"/v1/slides/{path}{tail}")
        assert answer.status_code == 404
        assert answer.json()["type"] in ("/problems/unknown-slide", "/problems/not-found")


async def test_pictures_are_for_the_browsers_own_cache_only(client: httpx.AsyncClient, slide_id: str) -> None:
    for path in ("", f"/{slide_id}", f"/{slide_id}/thumbnail", f"/{slide_id}/region?x=0&y=0&width=9&height=9"):
        assert (await client.get(f"/v1/slides{path}")).headers["cache-control"] == "private, no-cache"


async def test_a_crowd_of_pictures_holds_up_no_click_and_no_tile_and_who_leaves_has_none_drawn(
    client: httpx.AsyncClient, slide_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, go, begun, drawn = asyncio.get_running_loop(), threading.Event(), asyncio.Event(), list[RgbImage]()

    def draw_slowly(*_: Any, **__: Any) -> RgbImage:
        loop.call_soon_threadsafe(begun.set)
        go.wait()
        drawn.append(np.zeros((8, 8, 3), np.uint8))
        return drawn[-1]

    monkeypatch.setattr(pixels, "read_region_image", draw_slowly)
    region = f"/v1/slides/{slide_id}/region?x=0&y=0&width=9&height=9"
    crowd = [asyncio.create_task(client.get(region)) for _ in range(60)]
    try:
        await asyncio.wait_for(begun.wait(), timeout=10)
        click = client.post(f"/v1/slides/{slide_id}/segment", json={"prompts": [{"box": [100, 100, 200, 200]}]})
        assert (await asyncio.wait_for(click, timeout=10)).status_code == 200
        tile = client.get(f"/v1/slides/{slide_id}/iiif/0,0,64,64/max/0/default.jpg")
        assert (await asyncio.wait_for(tile, timeout=10)).status_code == 200
    finally:
        for task in crowd:
            task.cancel()
        await asyncio.wait(crowd)
        go.set()
    await PICTURE_LANE.run(lambda: None)
    assert len(drawn) < 16  # one for each thread


async def test_slides_that_open_slowly_hold_up_no_click_on_an_open_one_and_no_readiness(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        shutil.copy(slides / "tissue.tif", tmp_path / f"{number}.tif")
    open_now, loop, go = SlideFile.open, asyncio.get_running_loop(), threading.Event()
    opened, begun = Counter[str](), asyncio.Event()

    def open_slowly(item: SlideFile, tiles: TileCache) -> OpenedSlide:
        if item.name != "0.tif":
            opened[item.name] += 1
            loop.call_soon_threadsafe(begun.set)
            go.wait()
        return open_now(item, tiles)

    settings, now = Settings(slides=(str(tmp_path),)), [0.0]
    open_id, *slow_ids = (
        one.id for one in sorted(Catalogue(settings.slides).list().slides, key=lambda one: int(one.name[:-4]))
    )
    monkeypatch.setattr(SlideFile, "open", open_slowly)
    app = create_app(settings, Catalogue(settings.slides, clock=lambda: now[0]), NumpyExecutor())
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        assert (await client.get(f"/v1/slides/{open_id}")).status_code == 200
        crowd = [asyncio.create_task(client.get(f"/v1/slides/{slide_id}")) for slide_id in slow_ids * 3]
        try:
            await asyncio.wait_for(begun.wait(), timeout=10)
            now[0] += FRESH_S  # the file is looked at again
            click = client.post(f"/v1/slides/{open_id}/segment", json={"prompts": [{"box": [100, 100, 200, 200]}]})
            assert (await asyncio.wait_for(click, timeout=10)).status_code == 200
            assert (await asyncio.wait_for(client.get("/readyz"), timeout=10)).status_code == 200
        finally:
            go.set()
            answers = await asyncio.gather(*crowd)
    assert {answer.status_code for answer in answers} == {200}
    assert set(opened.values()) == {1}


async def test_a_jpeg_is_as_large_as_a_jpeg_can_be(client: httpx.AsyncClient, slide_id: str) -> None:
    region = f"/v1/slides/{slide_id}/region?x=0&y=0&width=70000&height=3"
    assert (await client.get(region)).json()["type"] == "/problems/image-too-large"
    assert (await client.get(f"{region}&format=png")).status_code == 200


async def test_bad_cursor_is_refused(client: httpx.AsyncClient) -> None:
    for cursor in ("!!", base64.urlsafe_b64encode(b"[" * 3000).decode()):
        answer = await client.get("/v1/slides", params={"cursor": cursor})
        assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid-request")


async def test_label_and_macro_pictures_are_part_of_no_slide(shared: Path) -> None:
    """They carry names. The file has both; none of them may be a level, an answer's member or an address."""
    path = shared / "data" / "slides" / "cmu-1-small-region.svs"
    hidden = {picture.size for picture in TiffSlide(path).associated_images.values()}
    assert len(hidden) >= 2
    settings = Settings(slides=(str(path),))
    app = create_app(settings, Catalogue(settings.slides), NumpyExecutor())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        (listed,) = (await client.get("/v1/slides")).json()["slides"]
        answer = await client.get(f"/v1/slides/{listed['id']}")
        assert not hidden & {(level["width"], level["height"]) for level in answer.json()["levels"]}
        assert not {"label", "macro"} & set(answer.json())
        for name in ("label", "macro", "associated/label"):
            assert (await client.get(f"/v1/slides/{listed['id']}/{name}")).status_code == 404
