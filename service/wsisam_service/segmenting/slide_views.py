"""The views of one slide as an executor asks for them: by key. Knows which view a key means, and reads its pixels."""

from __future__ import annotations

import asyncio
import time

from wsisam_service import metrics
from wsisam_service.jobs import ViewPixels
from wsisam_service.segmenting.tokens import key_fingerprint
from wsisam_service.slides.lanes import SHARED_LANE
from wsisam_service.slides.pixels import read_view
from wsisam_service.slides.slide import Slide
from wsisam_service.views import View


class SlideViews:
    """Views of `slide` for a model's `key_prefix`; `fingerprint_key` hides the slide in keys where it is given.

    `gate` bounds how many views are read at once, over all requests that share it.
    """

    def __init__(self, slide: Slide, key_prefix: str, fingerprint_key: bytes | None, gate: asyncio.Semaphore) -> None:
        self._slide = slide
        self._prefix = key_prefix
        self._fingerprint = key_fingerprint(slide.fingerprint, fingerprint_key)
        self._gate = gate
        self._views: dict[str, View] = {}

    def key(self, view: View) -> str:
        """The key of `view`; from now on its pixels can be asked for by it."""
        key = view.key(self._prefix, self._fingerprint)
        self._views[key] = view
        return key

    async def pixels(self, key: str) -> ViewPixels:
        """See `jobs.PixelSource`. Raises `UnreadableSlide`, `PacsUnavailable`, `Overloaded`."""
        lane = self._slide.lane
        if lane is not SHARED_LANE:  # a PACS's lane has a bound of its own, and pictures in memory need none
            return await lane.run(self._read, self._views[key])
        await self._gate.acquire()
        reading = asyncio.ensure_future(lane.run(self._read, self._views[key]))
        reading.add_done_callback(self._ended)
        return await asyncio.shield(reading)  # its thread reads on although nobody waits, and counts so long

    def _ended(self, reading: asyncio.Future[ViewPixels]) -> None:
        self._gate.release()
        _ = reading.cancelled() or reading.exception()  # someone has looked

    def _read(self, view: View) -> ViewPixels:
        started = time.perf_counter()
        pixels = read_view(self._slide, view)
        metrics.READ_SECONDS.observe(time.perf_counter() - started)
        return pixels
