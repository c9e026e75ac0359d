"""Bad input: each kind has its own problem type, and none is a 500."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from PIL import Image
from stand_ins import NumpyExecutor

from wsisam_service.errors import METHOD_NOT_ALLOWED, PROBLEMS

GOOD = {"box": [600, 400, 760, 520]}
JSON = {"content-type": "application/json"}


def check(answer: httpx.Response, status: int, problem: str) -> None:
    """A problem document of this type, whole and telling nothing of the inside."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    document = answer.json()
    assert document["type"] == f"/problems/{problem}"
    assert document["status"] == status
    assert document["title"]
    assert document["detail"]
    assert len(document["detail"]) < 300
    assert document["request_id"] == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        ({}, "empty-prompt"),
        ({"points": []}, "empty-prompt"),
        ({"box": [700, 400, 600, 520]}, "invalid-box"),
        ({"box": [600, 400, 600, 520]}, "invalid-box"),
        ({"box": [600, 400, 760]}, "invalid-box"),
        ({"box": [600, 400, 760, 520, 1]}, "invalid-box"),
        ({"box": [600, 400, 760, None]}, "invalid-number"),
        ({"box": [600, 400, 760, 1e12]}, "invalid-number"),
        ({"box": [1700, 1100, 1800, 1200]}, "prompt-outside-slide"),
        ({"box": [9000, 9000, 9100, 9100]}, "invalid-number"),
        ({"points": [[-50, 10, 1]]}, "prompt-outside-slide"),
        ({"points": [[600, 400, 0]]}, "no-positive-point"),
        ({"points": [[600, 400, 2]]}, "invalid-label"),
        ({"points": [[600, 400, 0.5]]}, "invalid-label"),
        ({"points": [[600, 400]]}, "invalid-label"),
        ({"points": [[600, 400, "1"]]}, "invalid-label"),
        ({"points": [["600", 400, 1]]}, "invalid-request"),
        ({"points": [[True, 400, 1]]}, "invalid-request"),
        ({"points": {"x": 1}}, "invalid-request"),
        ({"box": "600,400,760,520"}, "invalid-request"),
        ({**GOOD, "colour": "red"}, "invalid-request"),
        ({**GOOD, "id": 7}, "invalid-request"),
        ({**GOOD, "classification": 7}, "invalid-request"),
        ({"mask": {"size": [4, 4], "counts": "x" * 100, "x": 0, "y": 0, "width": 9, "height": 9}}, "invalid-request"),
    ],
)
async def test_bad_prompts(client: httpx.AsyncClient, slide_id: str, prompt: dict[str, Any], problem: str) -> None:
    check(await client.post(f"/v1/slides/{slide_id}/segment", json={"prompts": [prompt]}), 422, problem)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({"prompts": [GOOD] * 257}, "too-many-prompts"),
        ({"prompts": []}, "invalid-request"),
        ({}, "invalid-request"),
        ([], "invalid-request"),
        ({"prompts": [GOOD], "colour": "red"}, "invalid-request"),
        ({"prompts": [GOOD], "units": "mm"}, "invalid-request"),
        ({"prompts": [GOOD], "mpp": 0}, "invalid-number"),
        ({"prompts": [GOOD], "mpp": 65}, "invalid-number"),
        ({"prompts": [GOOD], "mpp": "0.5"}, "invalid-request"),
        ({"prompts": [GOOD], "simplify": -1}, "invalid-number"),
        ({"prompts": [GOOD], "multimask": 1}, "invalid-request"),
        ({"prompts": [GOOD], "model": "sam9"}, "unknown-model"),
        ({"prompts": [GOOD], "adapters": "mine"}, "unknown-model"),
        ({"prompts": [GOOD], "image_size": [10, 10]}, "frame-mismatch"),
        ({"prompts": [GOOD], "image_size": [1536, 1024], "frame": "level0"}, "invalid-request"),
    ],
)
async def test_bad_bodies(client: httpx.AsyncClient, slide_id: str, body: Any, problem: str) -> None:
    check(await client.post(f"/v1/slides/{slide_id}/segment", json=body), 422, problem)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "invalid-request"),
        ("{", "invalid-request"),
        ("\x00", "invalid-request"),
        ('{"prompts": ' + "[" * 100_000, "invalid-request"),
        ('{"prompts": [{"classification": {"a": ' + '{"a":' * 5000 + "1" + "}" * 5002 + "]}", "invalid-request"),
        ('{"prompts": [{"box": [1, 2, NaN, 4]}]}', "invalid-number"),
        ('{"prompts": [{"box": [1, 2, Infinity, 4]}]}', "invalid-number"),
        ('{"prompts": [{"box": [1, 2, 1e999, 4]}]}', "invalid-number"),
        ('{"prompts": [{"box": [1, 2, 30, 40]}], "mpp": NaN}', "invalid-number"),
        ('{"prompts": [{"id": "\\ud800", "box": [1, 2, 30, 40]}]}', "invalid-request"),
    ],
)
async def test_bad_json(client: httpx.AsyncClient, slide_id: str, text: str, problem: str) -> None:
    check(await client.post(f"/v1/slides/{slide_id}/segment", content=text, headers=JSON), 422, problem)


async def test_json_that_is_not_utf8(client: httpx.AsyncClient, slide_id: str) -> None:
    content = b'{"prompts": [{"id": "\xff", "box": [1, 2, 30, 40]}]}'
    answer = await client.post(f"/v1/slides/{slide_id}/segment", content=content, headers=JSON)
    check(answer, 422, "invalid-request")


async def test_unknown_slide(client: httpx.AsyncClient) -> None:
    check(await client.post("/v1/slides/nowhere/segment", json={"prompts": [GOOD]}), 404, "unknown-slide")


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
async def test_wrong_content_type(client: httpx.AsyncClient, slide_id: str, media_type: str) -> None:
    answer = await client.post(
        f"/v1/slides/{slide_id}/segment", content=json.dumps({"prompts": [GOOD]}), headers={"content-type": media_type}
    )
    check(answer, 415, "unsupported-media-type")


async def test_huge_body_with_and_without_a_length(client: httpx.AsyncClient, slide_id: str) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 100_000

    for content in (b" " * 1_000_001, endless()):
        answer = await client.post(f"/v1/slides/{slide_id}/segment", content=content, headers=JSON)
        check(answer, 413, "body-too-large")


async def test_huge_picture_body(client: httpx.AsyncClient) -> None:
    files = {"image": ("x.png", b"0" * 1_000_001, "image/png")}
    check(await client.post("/v1/segment", files=files, data={"request": REQUEST}), 413, "body-too-large")


async def test_method_and_address(client: httpx.AsyncClient, slide_id: str) -> None:
    check(await client.get(f"/v1/slides/{slide_id}/segment"), 405, "method-not-allowed")
    check(await client.get("/v1/nowhere"), 404, "not-found")
    check(await client.post("/v1/slides/../../etc/passwd", json={}), 404, "not-found")


@pytest.mark.parametrize("token", ["x", "a.b.c", "ä", "0" * 200])
async def test_forged_refine_token(client: httpx.AsyncClient, slide_id: str, token: str) -> None:
    answer = await client.post(f"/v1/slides/{slide_id}/segment", json={"prompts": [{"refine": token}]})
    check(answer, 410, "refine-expired")


async def test_expired_refine_token(client: httpx.AsyncClient, slide_id: str, executor: NumpyExecutor) -> None:
    path = f"/v1/slides/{slide_id}/segment"
    token = (await client.post(path, json={"prompts": [GOOD]})).json()["results"][0]["refine"]
    executor.refinable.clear()
    prompt = {"refine": token, "points": [[700, 450, 1]]}
    check(await client.post(path, json={"prompts": [prompt]}), 410, "refine-expired")


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def small_png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "pink").save(buffer, "PNG")
    return buffer.getvalue()


REQUEST = json.dumps({"prompts": [{"box": [10, 10, 40, 40]}]})


@pytest.mark.parametrize(
    ("image", "request_part", "status", "problem"),
    [
        (png_header(60_000, 60_000), REQUEST, 413, "image-too-large"),
        (png_header(2_000, 1_000), REQUEST, 413, "image-too-large"),
        (png_header(500, 500), REQUEST, 422, "invalid-request"),
        (b"GIF89a", REQUEST, 422, "invalid-request"),
        (b"", REQUEST, 422, "invalid-request"),
        (small_png(), "{", 422, "invalid-request"),
        (small_png(), json.dumps({"prompts": [{}]}), 422, "empty-prompt"),
        (small_png(), None, 422, "invalid-request"),
        (None, REQUEST, 422, "invalid-request"),
    ],
)
async def test_bad_pictures(
    client: httpx.AsyncClient, image: bytes | None, request_part: str | None, status: int, problem: str
) -> None:
    parts: dict[str, Any] = {}
    if image is not None:
        parts["image"] = ("x.png", image, "image/png")
    if request_part is not None:
        parts["request"] = (None, request_part, "application/json")
    check(await client.post("/v1/segment", files=parts), status, problem)


@pytest.mark.parametrize(
    ("charset", "status"),
    [("UTF-8", 200), ("unicode_escape", 415), ("utf-7", 415), ("undefined", 415), ("punycode", 415)],
)
async def test_the_texts_of_a_form_are_utf8(client: httpx.AsyncClient, charset: str, status: int) -> None:
    parts = {"image": ("x.png", small_png(), "image/png"), "request": (None, REQUEST)}
    form = httpx.Request("POST", "http://test", files=parts)
    media_type = f"{form.headers['content-type']}; charset={charset}"
    answer = await client.post("/v1/segment", content=form.read(), headers={"content-type": media_type})
    assert answer.status_code == status, answer.text


async def test_picture_in_a_body_that_is_not_multipart(client: httpx.AsyncClient) -> None:
    check(await client.post("/v1/segment", json={"prompts": [GOOD]}), 415, "unsupported-media-type")
    broken = {"content-type": "multipart/form-data"}
    check(await client.post("/v1/segment", content=b"x", headers=broken), 422, "invalid-request")


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({}, "empty-prompt"),
        ({"region": [0, 0, -1, 5]}, "invalid-box"),
        ({"region": [0, 0, 1]}, "invalid-request"),
        ({"region": [0, 0, 1e9, 1e9]}, "invalid-number"),
        ({"boxes": [[9, 9, 1, 1]]}, "invalid-box"),
        ({"points": [[-9, 9]]}, "prompt-outside-slide"),
        ({"points": [[1, 1]], "wait": "yes"}, "invalid-request"),
    ],
)
async def test_bad_prewarm(client: httpx.AsyncClient, slide_id: str, body: Any, problem: str) -> None:
    check(await client.post(f"/v1/slides/{slide_id}/prewarm", json=body), 422, problem)


async def test_every_problem_type_has_a_page(client: httpx.AsyncClient) -> None:
    for problem in (*PROBLEMS.values(), METHOD_NOT_ALLOWED):
        answer = await client.get(f"/problems/{problem.name}")
        assert answer.status_code == 200
        assert problem.name in answer.text
    check(await client.get("/problems/nonsense"), 404, "not-found")
