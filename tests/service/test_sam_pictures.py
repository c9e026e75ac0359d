"""Pictures in the extension's requests: any mode, bounded, decoded once."""

from __future__ import annotations

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from wsisam_service.errors import ImageTooLarge, InvalidRequest
from wsisam_service.pictures import picture
from wsisam_service.pictures.picture import MAX_SCANS, PictureCache, decode_picture

MAX_PX = 1_000_000


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def test_alpha_is_dropped_where_there_are_pixels_and_white_where_there_are_none() -> None:
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = 10, 20, 30, 255
    pixels = decode_picture(png(Image.fromarray(rgba)), MAX_PX).pixels
    assert pixels.shape == (2, 2, 3)
    assert pixels[0, 0].tolist() == [10, 20, 30]
    assert pixels[1, 1].tolist() == [255, 255, 255]


def test_a_jpeg_of_thousands_of_scans_is_refused_before_it_is_decoded() -> None:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "JPEG", progressive=True)
    assert decode_picture(buffer.getvalue(), MAX_PX).width == 64
    *_, last = buffer.getvalue().split(b"\xff\xda")
    scan = b"\xff\xda" + last.removesuffix(b"\xff\xd9")
    data = buffer.getvalue().removesuffix(b"\xff\xd9") + scan * MAX_SCANS + b"\xff\xd9"
    with pytest.raises(InvalidRequest, match="scans"):
        decode_picture(data, MAX_PX)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1"])
def test_other_modes_become_rgb(mode: str) -> None:
    image = Image.new("L", (3, 2), 255).convert(mode)
    assert decode_picture(png(image), MAX_PX).pixels.tolist() == [[[255] * 3] * 3] * 2


def test_sixteen_bit_grey_is_scaled() -> None:
    image = Image.fromarray(np.full((2, 2), 0x8000, np.uint16))
    assert decode_picture(png(image), MAX_PX).pixels.tolist() == [[[0x80] * 3] * 2] * 2


@pytest.mark.parametrize("side", [2_000, 50_000])
def test_too_many_pixels_are_refused_before_they_are_decoded(side: int) -> None:
    """Only the header claims them; there are no pixel data that could be decoded."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = (header, b"IDAT" + zlib.compress(b""))
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )
    with pytest.raises(ImageTooLarge):
        decode_picture(bomb, MAX_PX)


def test_a_picture_of_as_many_pixels_as_are_taken_is_taken() -> None:
    data = png(Image.new("RGB", (8, 4)))
    assert decode_picture(data, 32).width == 8
    with pytest.raises(ImageTooLarge):
        decode_picture(data, 31)


@pytest.mark.parametrize("data", [b"", b"GIF89a not taken", png(Image.new("RGB", (64, 64)))[:60]])
def test_what_is_no_picture_is_an_invalid_request(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        decode_picture(data, MAX_PX)


@pytest.mark.parametrize("wrong", ["data:image/png;base64,AAAA", "ä", "AAA", "AAAA!"])
async def test_what_is_no_base64_is_an_invalid_request(wrong: str) -> None:
    with pytest.raises(InvalidRequest, match="base64"):
        await PictureCache(1000, MAX_PX).decode(wrong)


def test_content_names_size_and_pixels_not_the_file() -> None:
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=0)
    same = decode_picture(buffer.getvalue(), MAX_PX)
    assert decode_picture(png(image), MAX_PX).content == same.content
    reshaped = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(2, 8, 3))
    assert decode_picture(png(reshaped), MAX_PX).content != same.content


async def test_the_same_text_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []

    def counting(data: bytes, max_px: int) -> picture.Picture:
        decoded.append(len(data))
        return decode_picture(data, max_px)

    monkeypatch.setattr(picture, "decode_picture", counting)
    cache = PictureCache(1_000_000, MAX_PX)
    first = await cache.decode(text(png(Image.new("RGB", (8, 8)))))
    assert await cache.decode(text(png(Image.new("RGB", (8, 8))))) is first
    assert len(decoded) == 1


async def test_the_cache_lets_go_of_the_least_recently_used() -> None:
    cache = PictureCache(2 * 8 * 8 * 3, MAX_PX)
    texts = [text(png(Image.new("RGB", (8, 8), (shade, 0, 0)))) for shade in range(3)]
    first, second = [await cache.decode(one) for one in texts[:2]]
    assert await cache.decode(texts[0]) is first
    await cache.decode(texts[2])
    assert await cache.decode(texts[0]) is first
    await cache.decode(text(png(Image.new("RGB", (12, 12)))))  # more than the cache may hold
    assert await cache.decode(texts[0]) is first
    assert await cache.decode(texts[1]) is not second
