"""Readers of what comes from outside, with bytes that nobody would write: a typed problem at once, nothing else."""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import imagecodecs
import numpy as np
import pytest
import tifffile
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wsisam_model.prompts import Prompt
from wsisam_service.cluster.wire import (
    DecodeCall,
    EncodeCall,
    read_decode_call,
    read_decode_reply,
    read_encode_call,
    read_encode_reply,
    write_decode_call,
    write_encode_call,
)
from wsisam_service.dicom.outlines import outlines_of_collection
from wsisam_service.errors import ServiceError, UnreadableSlide
from wsisam_service.jobs import DecodeJob
from wsisam_service.slides.opening import open_slide

TILE = 256
GREY = np.full((TILE, TILE, 3), 128, np.uint8)
FUZZ = settings(suppress_health_check=list(HealthCheck))


def write_tile(path: Path, data: bytes, compression: str, side: int = TILE) -> Path:
    """A TIFF of one tile, whose data is taken as it is."""
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(
            iter([data]),
            shape=(side, side, 3),
            dtype=np.uint8,
            tile=(side, side),
            photometric="rgb",
            compression=compression,
            metadata=None,
        )
    return path


def deflated() -> bytes:
    """A gigabyte of nothing: one block of 16 MB, again and again."""
    packer = zlib.compressobj(wbits=-15)
    block = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)
    return b"\x78\xda" + block * 64 + packer.flush()


def jpeg() -> bytes:
    """Small, and says that it has 1.6 gigapixels."""
    stream = bytearray(imagecodecs.jpeg8_encode(GREY))
    at = stream.index(b"\xff\xc0")
    stream[at + 5 : at + 9] = struct.pack(">HH", 40_000, 40_000)
    return bytes(stream)


def jpeg2000() -> bytes:
    """The same in JPEG 2000: size of the image and of its one tile."""
    stream = bytearray(imagecodecs.jpeg2k_encode(GREY, codecformat="j2k"))
    at = stream.index(b"\xff\x51")
    for place in (6, 22):
        stream[at + place : at + place + 8] = struct.pack(">II", 40_000, 40_000)
    return bytes(stream)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("compression", "make"), [("zlib", deflated), ("jpeg", jpeg), ("jpeg2000", jpeg2000)], ids=["zlib", "jpeg", "j2k"]
)
def test_a_tile_that_unpacks_to_gigabytes_is_refused_at_once(
    compression: str, make: Callable[[], bytes], tmp_path: Path
) -> None:
    slide = open_slide(write_tile(tmp_path / "bomb.tif", make(), compression))
    with pytest.raises(UnreadableSlide, match="damaged"):
        slide.read_region(0, 0, 0, 16, 16)


def test_tiles_too_large_to_decode_are_refused_when_the_slide_is_opened(tmp_path: Path) -> None:
    with pytest.raises(UnreadableSlide, match="pixels"):
        open_slide(write_tile(tmp_path / "large.tif", b"", "zlib", 16_000))


@pytest.fixture(scope="module")
def post(slides: Path) -> Callable[[bytes, str], httpx.Response]:
    """Sends a body to POST /v1/segment of a service that has started."""
    from stand_ins import NumpyExecutor

    from wsisam_service.app import create_app
    from wsisam_service.settings import Settings
    from wsisam_service.slides.catalogue import Catalogue

    chosen = Settings(slides=(str(slides),), max_body_bytes=1_000_000, max_image_px=1_000_000)
    app: FastAPI = create_app(chosen, Catalogue(chosen.slides), NumpyExecutor())

    async def send(body: bytes, content_type: str) -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post("/v1/segment", content=body, headers={b"content-type": content_type.encode()})

    return lambda body, content_type: asyncio.run(send(body, content_type))


PIECES = st.sampled_from(
    [
        b"--b\r\n",
        b"--b--\r\n",
        b"--b",
        b"\r\n",
        b"\r\n\r\n",
        b'Content-Disposition: form-data; name="image"; filename="a.png"\r\n',
        b'Content-Disposition: form-data; name="request"\r\n',
        b"Content-Disposition: form-data; name=\"\xff\xfe\"; filename*=utf-8''%00%2e%2e%2f\r\n",
        b"Content-Disposition: form-data\r\n",
        b"Content-Type: image/png\r\n",
        b"Content-Transfer-Encoding: base64\r\n",
        b": \r\n",
        b'{"prompts": [{"box": [1, 2, 30, 40]}]}',
        b"\x89PNG\r\n\x1a\n",
        b"\0" * 100,
    ]
)


@FUZZ
@given(pieces=st.lists(st.one_of(PIECES, st.binary(max_size=20)), max_size=30))
def test_any_multipart_body_is_an_answer_or_a_problem(
    post: Callable[[bytes, str], httpx.Response], pieces: list[bytes]
) -> None:
    answer = post(b"".join(pieces), "multipart/form-data; boundary=b")
    assert answer.status_code in (200, 413, 415, 422), answer.text


@pytest.mark.parametrize(
    "content_type",
    ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=" + "b" * 5000],
)
def test_a_boundary_that_is_none_is_a_problem(post: Callable[[bytes, str], httpx.Response], content_type: str) -> None:
    answer = post(b'--b\r\nContent-Disposition: form-data; name="request"\r\n\r\n{}\r\n--b--\r\n', content_type)
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid-request")


def test_thousands_of_parts_and_of_part_headers_are_refused(post: Callable[[bytes, str], httpx.Response]) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="p%d"\r\n\r\nx\r\n'
    headers = (
        b'--b\r\nContent-Disposition: form-data; name="request"\r\n' + b"X: y\r\n" * 20_000 + b"\r\n{}\r\n--b--\r\n"
    )
    for body in (b"".join(part % number for number in range(5000)) + b"--b--\r\n", headers):
        answer = post(body, "multipart/form-data; boundary=b")
        assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid-request")


NUMBERS = st.one_of(st.integers(-(10**12), 10**12), st.floats(), st.sampled_from([0, 1, 100, 1e308, None, "1"]))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=4)),
    max_leaves=20,
)
POSITION = st.lists(NUMBERS, max_size=3)
RING = st.lists(POSITION, max_size=6)
GEOMETRY = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["Polygon", "MultiPolygon", "Point", "GeometryCollection", "", None]),
        "coordinates": st.one_of(
            RING, st.lists(RING, max_size=2), st.lists(st.lists(RING, max_size=2), max_size=2), JSON
        ),
    }
)
FEATURE = st.fixed_dictionaries(
    {"type": st.sampled_from(["Feature", "x", None]), "geometry": st.one_of(GEOMETRY, JSON), "properties": JSON}
)
COLLECTION = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["FeatureCollection", "Feature", None]),
        "features": st.one_of(st.lists(FEATURE, max_size=3), JSON),
    }
)


@FUZZ
@given(document=st.one_of(COLLECTION, FEATURE, st.dictionaries(st.text(max_size=5), JSON, max_size=4)))
def test_any_geojson_is_outlines_or_a_problem(document: dict[str, object]) -> None:
    with suppress(ServiceError):
        outlines_of_collection(document)


CALLS = [
    write_decode_call(DecodeCall([DecodeJob("a:b:c:d:1:2:3", None, Prompt(box=(1, 2, 3, 4)))], {"k": GREY[:8, :8]})),
    write_encode_call(EncodeCall(["a:b:c:d:1:2:3"], {"k": GREY[:8, :8]})),
]


@FUZZ
@given(
    call=st.sampled_from(CALLS),
    cuts=st.lists(st.tuples(st.integers(0, 600), st.integers(0, 40), st.binary(max_size=20)), max_size=4),
)
def test_any_call_to_a_worker_is_read_or_refused(call: bytes, cuts: list[tuple[int, int, bytes]]) -> None:
    for at, length, new in cuts:
        call = call[:at] + new + call[at + length :]
    for read in (read_decode_call, read_encode_call, read_decode_reply, read_encode_reply):
        with suppress(ServiceError):
            read(call)
