"""Views: squares of S x S pixels at one step of the mpp ladder (DESIGN.md section 5), and where a prompt puts them.

Frames: *level 0* is the slide's full-resolution pixel-edge frame. *View edge* is the view's own pixel-edge frame.
*View index* is the network's: the centre of view pixel i is at i, that is edge minus 0.5. Every conversion between
them is here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

FINEST_STEP = -1
BASE_MPP = 0.25
"""µm per view pixel at step 0; step k has BASE_MPP * 2**k."""
MIN_REQUEST_MPP, MAX_REQUEST_MPP = 0.125, 64.0
EXTENT_FRACTION = 0.5
"""Most of the view's side that a prompt may fill: tighter views lose Dice (docs/ARCHITECTURE.md)."""
MAX_OUTSIDE = 0.99
"""A view with a larger part outside the slide than this is refused."""
MIN_SLIDE_MPP, MAX_SLIDE_MPP = 0.05, 20.0
"""Pixel sizes outside this range are not believed."""

Box = tuple[float, float, float, float]


def step_mpp(k: int) -> float:
    """µm per view pixel at ladder step `k`."""
    return BASE_MPP * 2.0**k


def nearest_step(mpp: float) -> int:
    """The ladder step nearest to `mpp` (µm per pixel) in log2."""
    return max(FINEST_STEP, round(math.log2(mpp / BASE_MPP)))


def step_for_extent(extent_um: float, side: int) -> int:
    """The finest step at which `extent_um` fills at most half of a view of `side` pixels."""
    smallest_mpp = extent_um / (EXTENT_FRACTION * side)
    if smallest_mpp <= step_mpp(FINEST_STEP):
        return FINEST_STEP
    return math.ceil(math.log2(smallest_mpp / BASE_MPP) - 1e-9)


def believable_mpp(mpp: float | None) -> bool:
    """Whether a slide's own pixel size can be used."""
    return mpp is not None and MIN_SLIDE_MPP <= mpp <= MAX_SLIDE_MPP


@dataclass(frozen=True, slots=True)
class View:
    """A view of `side` x `side` pixels at ladder step `k`.

    (`cx`, `cy`) is the centre in units of side/4 pixels of the finest step, from the slide's upper left corner;
    whole numbers at every step. `slide_mpp` is µm per level-0 pixel.
    """

    side: int
    k: int
    cx: int
    cy: int
    slide_mpp: float

    @property
    def mpp(self) -> float:
        """µm per view pixel."""
        return step_mpp(self.k)

    @property
    def scale(self) -> float:
        """Level-0 pixels per view pixel."""
        return self.mpp / self.slide_mpp

    @property
    def size_level0(self) -> float:
        """Side of the view in level-0 pixels."""
        return self.side * self.scale

    @property
    def centre_level0(self) -> tuple[float, float]:
        unit = _unit_level0(self.side, self.slide_mpp)
        return self.cx * unit, self.cy * unit

    @property
    def origin_level0(self) -> tuple[float, float]:
        """Upper left corner in level 0; negative where the view reaches over the slide's border."""
        x, y = self.centre_level0
        half = self.size_level0 / 2
        return x - half, y - half

    def coarser(self) -> View:
        """Same centre, one step coarser: the LR view of this one, and its HR view when the object does not fit."""
        return replace(self, k=self.k + 1)

    def index_from_level0(self, x: float, y: float) -> tuple[float, float]:
        """A level-0 position in the view-index frame."""
        x0, y0 = self.origin_level0
        return (x - x0) / self.scale - 0.5, (y - y0) / self.scale - 0.5

    def index_box_from_level0(self, box: Box) -> Box:
        """A level-0 box in the view-index frame."""
        return (*self.index_from_level0(*box[:2]), *self.index_from_level0(*box[2:]))

    def level0_from_edge(self, x: float, y: float) -> tuple[float, float]:
        """A view-edge position in level 0."""
        x0, y0 = self.origin_level0
        return x0 + x * self.scale, y0 + y * self.scale

    def contains(self, box: Box) -> bool:
        """Whether a level-0 box lies wholly inside the view."""
        x0, y0 = self.origin_level0
        size = self.size_level0
        return x0 <= box[0] and y0 <= box[1] and box[2] <= x0 + size and box[3] <= y0 + size

    def outside_fraction(self, width: int, height: int) -> float:
        """Part of the view's area that lies outside a slide of `width` x `height` level-0 pixels."""
        x0, y0 = self.origin_level0
        size = self.size_level0
        inside_x = max(0.0, min(x0 + size, width) - max(x0, 0.0))
        inside_y = max(0.0, min(y0 + size, height) - max(y0, 0.0))
        return 1.0 - inside_x * inside_y / (size * size)

    def inner_borders(self, width: int, height: int) -> tuple[bool, bool, bool, bool]:
        """Which borders (left, top, right, bottom) have slide beyond them, so that a mask there may go on."""
        x0, y0 = self.origin_level0
        size = self.size_level0
        return x0 > 0, y0 > 0, x0 + size < width, y0 + size < height

    def key(self, prefix: str, fingerprint: str) -> str:
        """The view key (DESIGN.md section 5); `prefix` is `{model}:{weights}:{pre}`."""
        return f"{prefix}:{fingerprint}:{self.k}:{self.cx}:{self.cy}"


def slide_part(key: str) -> str:
    """The slide's part of a view key: its fingerprint, or what hides it."""
    return key.rsplit(":", 4)[1]


def snapped_view(centre: tuple[float, float], k: int, side: int, slide_mpp: float, *, lone_point: bool) -> View:
    """The view at step `k` whose centre is nearest to `centre` (level 0) on the grid.

    The grid is a quarter of the side, so that the prompt stays inside the middle three quarters; for lone points it
    is half the side, the lattice that `precompute` encodes.
    """
    unit = _unit_level0(side, slide_mpp)
    pitch = 2 ** (k - FINEST_STEP + (1 if lone_point else 0))
    cx, cy = (round(c / (unit * pitch)) * pitch for c in centre)
    return View(side, k, cx, cy, slide_mpp)


def view_for_extent(
    extent: Box, side: int, slide_mpp: float, *, min_mpp: float | None = None, mpp: float | None = None
) -> View:
    """The HR view of a prompt whose level-0 bounding box is `extent`; a lone point has an extent of no size.

    `mpp` is the request's wish, taken to the nearest step and made coarser only until the extent fits.
    `min_mpp` keeps views of points alone from becoming finer than the object they stand for.
    """
    x0, y0, x1, y1 = extent
    centre = ((x0 + x1) / 2, (y0 + y1) / 2)
    lone_point = x0 == x1 and y0 == y1
    if mpp is not None:
        k = nearest_step(mpp)
    else:
        k = step_for_extent(max(x1 - x0, y1 - y0) * slide_mpp, side)
        if min_mpp is not None:
            k = max(k, nearest_step(min_mpp))
    view = snapped_view(centre, k, side, slide_mpp, lone_point=lone_point)
    while not view.contains(extent):
        k += 1
        view = snapped_view(centre, k, side, slide_mpp, lone_point=lone_point)
    return view


def _unit_level0(side: int, slide_mpp: float) -> float:
    """The unit of view centres, side/4 pixels of the finest step, in level-0 pixels."""
    return side / 4 * step_mpp(FINEST_STEP) / slide_mpp
