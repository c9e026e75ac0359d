"""A slide of the catalogue: an id, a name, a content, and pixels from whichever reader is open."""

from __future__ import annotations

from collections.abc import Callable

from wsisam_service.slides.lanes import SHARED_LANE, Lane
from wsisam_service.slides.reader import RgbImage, SlideInfo, SlideReader
from wsisam_service.views import believable_mpp

SQUARE_TOLERANCE = 1.02
"""Longer sides of pixels over shorter up to which nobody is warned."""


class Slide(SlideReader):
    """A slide of the catalogue, readable like its reader. `name` is the file's name without folders. What reads it
    from the event loop does so in its `lane`.

    It stays bound to the content that `fingerprint` names: once the file is replaced, reading raises
    `UnreadableSlide`, and `Catalogue.get` gives the new one.
    """

    def __init__(
        self,
        slide_id: str,
        name: str,
        print_: str,
        info: SlideInfo,
        reader: Callable[[], SlideReader],
        *,
        lane: Lane = SHARED_LANE,
    ) -> None:
        self.id = slide_id
        self.name = name
        self.fingerprint = print_
        self.info = info
        self.lane = lane
        self._reader = reader

    def read_region(self, level: int, x: int, y: int, width: int, height: int) -> RgbImage:
        return self._reader().read_region(level, x, y, width, height)

    def opened(self) -> SlideReader:
        return self._reader()

    def slide_mpp(self, default: float) -> tuple[float, list[str]]:
        """µm per level-0 pixel to count with, and the warnings that every answer gives where it is `default`, or not
        the same in both directions.
        """
        mpp, ratio = self.info.mpp, self.info.pixel_ratio
        if mpp is not None and believable_mpp(mpp):
            if ratio <= SQUARE_TOLERANCE:
                return mpp, []
            return mpp, [
                f"The slide's pixels are not square, but {ratio - 1:.0%} longer one way; lengths are uncertain."
            ]
        said = (
            "The slide gives no pixel size" if mpp is None else f"The slide's pixel size of {mpp:g} µm is not believed"
        )
        return default, [f"{said}; one pixel counts as {default:g} µm, and areas in µm² are not to be relied on."]
