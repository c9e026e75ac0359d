"""Which reader a slide's file gets."""

from __future__ import annotations

import os
from pathlib import Path

from wsisam_service.errors import UnreadableSlide
from wsisam_service.slides.picture import PictureReader
from wsisam_service.slides.reader import SlideReader
from wsisam_service.slides.source import ByteSource, LocalBytes
from wsisam_service.slides.tiff import TiffReader
from wsisam_service.slides.tiles import TileCache

SLIDE_SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".qptiff", ".scn", ".bif", ".png", ".jpg", ".jpeg")
"""Names that are listed as slides. The reader is chosen by content."""

_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PICTURE_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")


def open_slide(source: ByteSource | Path | str, tiles: TileCache | None = None) -> SlideReader:
    """The reader that fits the content of a local file or of any other source of bytes.

    `tiles` is a cache to share with other slides. Raises `UnreadableSlide` or `NotBrightfield`.
    """
    tiles = TileCache() if tiles is None else tiles
    try:
        source = LocalBytes(os.fspath(source)) if isinstance(source, str | Path) else source
        head = source.read_at(0, 16)
    except OSError as error:
        raise UnreadableSlide("The slide's file cannot be read.") from error
    if not head:
        raise UnreadableSlide("The slide's file is empty.")
    if head.startswith(_TIFF_MAGIC):
        return TiffReader(source, tiles)
    if head.startswith(_PICTURE_MAGIC):
        return PictureReader(source, tiles)
    raise UnreadableSlide("The slide's file is of no format that this service reads.")
