"""Slides as IIIF images: what level 2 demands, read by a plain client and by the IIIF's own validator."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import numpy.typing as npt
import pytest
import uvicorn
from fastapi import FastAPI
from PIL import Image
from stand_ins import NumpyExecutor

from wsisam_service.app import create_app
from wsisam_service.iiif.addresses import ImageRequest, parse
from wsisam_service.iiif.pictures import Pictures, etag_of
from wsisam_service.settings import Settings
from wsisam_service.slides.catalogue import Catalogue
from wsisam_service.slides.pixels import read_rectangle
from wsisam_service.slides.write import write_pyramid

WIDTH, HEIGHT = 1536, 1024
Picture = npt.NDArray[np.uint8]


def slide_pixels() -> Picture:
    """What the fixture `slides` wrote."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([128 + 100 * np.sin(x / 50), 128 + 100 * np.cos(y / 40), (x + y) % 256], -1).astype(np.uint8)


async def fetch(client: httpx.AsyncClient, slide_id: str, request: str) -> Picture:
    answer = await client.get(f"/v1/slides/{slide_id}/iiif/{request}")
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(io.BytesIO(answer.content)))


@pytest.mark.parametrize(
    ("region", "rectangle"),
    [
        ("full", (0, 0, 1536, 1024)),
        ("square", (256, 0, 1024, 1024)),
        ("100,200,64,32", (100, 200, 64, 32)),
        ("1500,1000,500,500", (1500, 1000, 36, 24)),
        ("pct:25,50,12.5,25", (384, 512, 192, 256)),
    ],
)
async def test_regions_are_the_slides_pixels(
    client: httpx.AsyncClient, slide_id: str, region: str, rectangle: tuple[int, int, int, int]
) -> None:
    x, y, width, height = rectangle
    picture = await fetch(client, slide_id, f"{region}/max/0/default.png")
    np.testing.assert_array_equal(picture, slide_pixels()[y : y + height, x : x + width])


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("300,", (300, 200)),
        (",256", (384, 256)),
        ("300,100", (300, 100)),
        ("pct:25", (384, 256)),
        ("!300,300", (300, 200)),
        ("!9000,9000", (1536, 1024)),
        ("max", (1536, 1024)),
        ("^3072,", (3072, 2048)),
        ("^!3072,3072", (3072, 2048)),
    ],
)
async def test_sizes(client: httpx.AsyncClient, slide_id: str, size: str, expected: tuple[int, int]) -> None:
    picture = await fetch(client, slide_id, f"full/{size}/0/default.jpg")
    assert picture.shape[1::-1] == expected


@pytest.mark.parametrize(("rotation", "mirrored", "turns"), [("90", False, 1), ("180", False, 2), ("!270", True, 3)])
async def test_mirrored_first_then_turned_clockwise(
    client: httpx.AsyncClient, slide_id: str, rotation: str, mirrored: bool, turns: int
) -> None:
    picture = await fetch(client, slide_id, f"10,20,64,32/max/{rotation}/default.png")
    expected = slide_pixels()[20:52, 10:74]
    np.testing.assert_array_equal(picture, np.rot90(expected[:, ::-1] if mirrored else expected, -turns))


async def test_qualities(client: httpx.AsyncClient, slide_id: str) -> None:
    where = "0,0,64,64/max/0"
    assert (await fetch(client, slide_id, f"{where}/color.jpg")).ndim == 3
    assert (await fetch(client, slide_id, f"{where}/gray.jpg")).ndim == 2
    assert set(np.unique(await fetch(client, slide_id, f"{where}/bitonal.png"))) == {False, True}


@pytest.mark.parametrize(
    "request_path",
    [
        "10,10,10/max/0/default.jpg",
        "10.5,0,10,10/max/0/default.jpg",
        "-1,0,10,10/max/0/default.jpg",
        "0,0,0,10/max/0/default.jpg",
        "1536,0,10,10/max/0/default.jpg",
        "pct:100,0,1,1/max/0/default.jpg",
        "full/full/0/default.jpg",
        "full/,/0/default.jpg",
        "full/0,/0/default.jpg",
        "full/!20,/0/default.jpg",
        "full/2000,/0/default.jpg",
        "full/pct:101/0/default.jpg",
        "full/^99999,99999/0/default.jpg",
        f"full/^pct:1{'0' * 308}/0/default.jpg",
        "0,0,1,1/^65501,1/0/default.jpg",
        "full/max/45/default.jpg",
        "full/max/450/default.jpg",
        "full/max/0/native.jpg",
        "full/max/0/default.tif",
    ],
)
async def test_what_is_not_understood_answers_400(client: httpx.AsyncClient, slide_id: str, request_path: str) -> None:
    answer = await client.get(f"/v1/slides/{slide_id}/iiif/{request_path}")
    assert (answer.status_code, answer.json()["type"]) == (400, "/problems/invalid-image-request")
    assert answer.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(
    ("region", "size", "drawn"),
    [
        ("0,0,1000,1", "pct:10", (100, 1)),
        ("0,0,1,1000", "pct:10", (1, 100)),
        ("0,0,1000,1", "100,", (100, 1)),
        ("0,0,1,1000", ",100", (1, 100)),
    ],
)
def test_something_thin_keeps_a_pixel(region: str, size: str, drawn: tuple[int, int]) -> None:
    assert parse(region, size, "0", "default.jpg", (WIDTH, HEIGHT)).size == drawn


async def test_the_largest_picture_of_something_thin_is_as_long_as_a_jpeg_can_be(
    client: httpx.AsyncClient, slide_id: str
) -> None:
    picture = await fetch(client, slide_id, "0,0,1,1000/^max/0/default.jpg")
    assert picture.shape[:2] == (65_500, 65)
    assert (await client.get(f"/v1/slides/{slide_id}/iiif/info.json")).json()["maxWidth"] == 65_500


async def test_unknown_slides_have_no_image_service(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/slides/nowhere/iiif/info.json")).status_code == 404


@pytest.mark.parametrize("factor", [1, 2])
async def test_tiles_that_the_description_offers_make_up_the_slide(
    client: httpx.AsyncClient, slide_id: str, factor: int
) -> None:
    info = (await client.get(f"/v1/slides/{slide_id}/iiif/info.json")).json()
    (tiles,) = info["tiles"]
    assert (info["width"], info["height"], tiles["scaleFactors"]) == (WIDTH, HEIGHT, [1, 2, 4])
    whole = np.zeros((HEIGHT // factor, WIDTH // factor, 3), np.uint8)
    step = tiles["width"] * factor
    for top in range(0, HEIGHT, step):
        for left in range(0, WIDTH, step):
            width, height = min(step, WIDTH - left), min(step, HEIGHT - top)
            request = f"{left},{top},{width},{height}/{width // factor},{height // factor}/0/default.png"
            tile = await fetch(client, slide_id, request)
            whole[top // factor :, left // factor :][: tile.shape[0], : tile.shape[1]] = tile
    # The third channel jumps from 255 to 0, where levels of a pyramid may differ from means.
    means = slide_pixels().reshape(HEIGHT // factor, factor, WIDTH // factor, factor, 3).mean((1, 3))[..., :2]
    assert np.abs(whole[..., :2] - means).mean() < 1.0


async def test_a_client_that_has_the_tile_is_told_so(client: httpx.AsyncClient, slide_id: str) -> None:
    address = f"/v1/slides/{slide_id}/iiif/0,0,512,512/256,256/0/default.jpg"
    first = await client.get(address)
    again = await client.get(address, headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    other = await client.get(address.replace("256,256", "255,255"), headers={"if-none-match": first.headers["etag"]})
    assert other.status_code == 200


@pytest.mark.parametrize(
    ("asked", "canonical"),
    [
        ("0,0,1536,1024/1536,/0/color.jpg", "full/max/0/default.jpg"),
        ("square/pct:50/!360/default.png", "256,0,1024,1024/512,512/!0/default.png"),
        ("pct:0,0,50,50/^1536,/90/gray.jpg", "0,0,768,512/^1536,1024/90/gray.jpg"),
    ],
)
async def test_every_picture_tells_its_canonical_address(
    client: httpx.AsyncClient, slide_id: str, asked: str, canonical: str
) -> None:
    image = f"/v1/slides/{slide_id}/iiif"
    answer = await client.get(f"{image}/{asked}")
    profile, told = answer.headers["link"].split(", ")
    assert profile == '<http://iiif.io/api/image/3/level2.json>;rel="profile"'
    assert told == f'<http://test{image}/{canonical}>;rel="canonical"'
    assert (await client.get(f"{image}/{canonical}")).content == answer.content


async def test_description_is_json_or_json_ld_and_names_itself(client: httpx.AsyncClient, slide_id: str) -> None:
    address = f"/v1/slides/{slide_id}/iiif"
    moved = await client.get(address)
    assert (moved.status_code, moved.headers["location"]) == (303, f"http://test{address}/info.json")
    plain = await client.get(f"{address}/info.json")
    linked = await client.get(f"{address}/info.json", headers={"accept": "application/ld+json"})
    proxied = await client.get(f"{address}/info.json", headers={"x-forwarded-prefix": "/pathology"})
    assert plain.headers["content-type"] == "application/json"
    assert linked.headers["content-type"].startswith("application/ld+json")
    assert plain.json()["id"] == f"http://test{address}"
    assert proxied.json()["id"] == f"http://test/pathology{address}"


async def test_only_pages_of_named_origins_may_read(slides: Path, executor: NumpyExecutor) -> None:
    settings = Settings(slides=(str(slides),), iiif_origins=("https://viewer.example",))
    app = create_app(settings, Catalogue(settings.slides), executor)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        for origin, allowed in (("https://viewer.example", "https://viewer.example"), ("https://else.example", None)):
            answer = await client.get("/v1/slides/x/iiif/info.json", headers={"origin": origin})
            assert answer.headers.get("access-control-allow-origin") == allowed


async def test_pictures_in_memory_stay_within_their_budget(slides: Path) -> None:
    slide = Catalogue((str(slides),)).list("tissue").slides[0].slide
    assert slide is not None
    requests = [parse(f"{x},0,256,256", "max", "0", "default.jpg", (WIDTH, HEIGHT)) for x in (0, 256, 512)]
    etags = [etag_of(slide, request) for request in requests]
    largest = max(len(content) for content in [await _drawn(slide, request) for request in requests])
    pictures = Pictures(max_bytes=2 * largest + largest // 2)
    for etag, request in zip(etags, requests, strict=True):
        await pictures.draw(etag, slide, request)
    assert [pictures.held(etag) is not None for etag in etags] == [False, True, True]


@pytest.mark.parametrize(
    ("region", "size"),
    [("1,0,512,512", "256,256"), ("0,1,512,512", "256,256"), ("0,0,512,512", "256,512"), ("0,0,512,512", "512,256")],
)
async def test_what_is_no_piece_of_a_level_as_it_stands_is_resampled(slides: Path, region: str, size: str) -> None:
    slide = Catalogue((str(slides),)).list("tissue").slides[0].slide
    assert slide is not None
    request = parse(region, size, "0", "default.png", (WIDTH, HEIGHT))
    x, y, width, height = map(float, request.region)
    drawn = np.asarray(Image.open(io.BytesIO(await _drawn(slide, request))))
    np.testing.assert_array_equal(drawn, read_rectangle(slide, (x, y, width, height), request.size))


async def _drawn(slide: object, request: ImageRequest) -> bytes:
    return (await Pictures(max_bytes=0).draw("", slide, request)).content  # type: ignore[arg-type]


@pytest.fixture
def squares_service(tmp_path: Path) -> Iterator[str]:
    """Host and port, and the path, of the validator's own test image: a hundred squares of known colours."""
    validator = pytest.importorskip("iiif_validator.validator", reason="needs iiif-validator and libmagic")
    colours = np.array(validator.ValidationInfo().colorInfo, np.uint8).transpose(1, 0, 2)
    write_pyramid(tmp_path / "squares.ome.tif", colours.repeat(100, 0).repeat(100, 1), 0.5, 2)
    settings = Settings(slides=(str(tmp_path),))
    app: FastAPI = create_app(settings, Catalogue(settings.slides), NumpyExecutor())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, http="h11", log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        host = f"127.0.0.1:{listener.getsockname()[1]}"
        slide_id = httpx.get(f"http://{host}/v1/slides").json()["slides"][0]["id"]
        yield f"{host} v1/slides/{slide_id}"
        server.should_exit = True
        thread.join()


STRICTER_THAN_THE_SPECIFICATION = {"size_noup"}
"""Wants !w,h beyond the region refused, which the specification wants answered with the region's own size."""


def test_the_iiifs_own_validator_finds_level_2(squares_service: str) -> None:
    from iiif_validator.validator import ImageAPI, TestSuite, ValidationInfo

    server, prefix = squares_service.split()
    suite = TestSuite(ValidationInfo())
    named = {name for name, facts in suite.list_tests("3.0").items() if facts["level"] <= 2}
    assert len(named) > 30
    failures = {}
    for name in sorted(named - STRICTER_THAN_THE_SPECIFICATION):
        result = suite.run_test(name, ImageAPI("iiif", server, prefix, "http", "", "3.0", debug=False))
        if getattr(result, "exception", None):
            failures[name] = str(result.exception)
    assert failures == {}
