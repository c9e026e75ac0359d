"""Masks as GeoJSON that every QuPath from 0.4 reads (qupath/PROTOCOL.md section 4).

Outlines pass through the middles of pixel edges, or follow the edges where the tolerance is smaller than the corners
that this cuts; holes and separate parts are kept. They are simplified in view pixels, then put into the client's frame
and rounded to the 0.01 px that QuPath keeps. What is not valid then is drawn again, with less tolerance and at last
with none: pixel corners that differ stay different under that rounding, unless view pixels are smaller than it.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import shapely
from shapely import MultiPolygon, Polygon

from wsisam_service.errors import InvalidRequest
from wsisam_service.masks.border import CORNER_DEPTH, Area, along_edges, between_edges
from wsisam_service.masks.rle import Mask

GivenClass: TypeAlias = str | Mapping[str, object]
"""A class as a client writes it, as QuPath does: a text, or an object with `name` and `color` (PROTOCOL.md 4.3)."""
Classification: TypeAlias = str | dict[str, object] | None
"""A class that QuPath reads."""

DEFAULT_SIMPLIFY = 0.5
"""Tolerance of outlines, view pixels."""
DECIMALS = 2
_GRID = 10.0**-DECIMALS
_RECTANGLE_CUT = 0.1
"""View pixels cut from a rectangle's corner: QuPath makes a rectangle object of an exact one."""


@dataclass(frozen=True, slots=True)
class Placement:
    """From view-edge pixels to the frame that the client reads: `scale` * position + (`x`, `y`)."""

    scale: float = 1.0
    x: float = 0.0
    y: float = 0.0

    def __call__(self, positions: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Positions (n, 2), rounded to what QuPath keeps."""
        return np.round(positions * self.scale + (self.x, self.y), DECIMALS)


def outline(mask: Mask, placement: Placement, simplify: float = DEFAULT_SIMPLIFY) -> Area | None:
    """The outline of `mask` (h, w) in the client's frame: valid, rounded, never a rectangle; None where it is empty.

    It stays within `simplify` view pixels of the pixel edges; less is used where that much would cross lines. Up to
    the default tolerance no pixel's centre changes sides, so rasterising the outline gives the mask back.
    """
    for tolerance in (simplify, simplify / 2):
        area = _simplified(mask, tolerance)
        if area is None:
            return None
        placed = shapely.transform(area, placement)
        if placed.is_valid and not placed.is_empty:
            return _not_a_rectangle(placed, placement.scale)
    return _exactly_placed(mask, placement)


def feature(
    area: Area,
    *,
    classification: Classification,
    measurements: Mapping[str, float],
    metadata: Mapping[str, str],
) -> dict[str, Any]:
    """An annotation of QuPath. Numbers that are not finite are left out, since JSON has none."""
    properties: dict[str, Any] = {"objectType": "annotation"}
    if classification is not None:
        properties["classification"] = classification
    properties["measurements"] = {name: value for name, value in measurements.items() if math.isfinite(value)}
    properties["metadata"] = dict(metadata)
    return {"type": "Feature", "id": str(uuid.uuid4()), "geometry": _geometry(area), "properties": properties}


def feature_collection(members: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {"type": "FeatureCollection", "features": list(members)}


def checked_classification(value: GivenClass | None) -> Classification:
    """A class that QuPath reads, None for none. A name without a colour gets the null colour that QuPath wants.

    Raises `InvalidRequest` for what would make QuPath refuse the whole answer.
    """
    if not value:
        if value == "":
            raise InvalidRequest("a classification's name is empty")
        return None
    if isinstance(value, str):
        return value
    name, names, colour = value.get("name"), value.get("names"), value.get("color")
    named = isinstance(name, str) and name != ""
    listed = isinstance(names, (list, tuple)) and len(names) > 0 and all(isinstance(n, str) and n for n in names)
    if named == listed or set(value) - {"name", "names", "color"} or not _is_colour(colour):
        raise InvalidRequest("a classification is a text or an object of a name (or names) and a color [r, g, b]")
    return {"name": name, "color": colour} if named else {"names": names, "color": colour}


def _is_colour(colour: object) -> bool:
    if colour is None:
        return True
    return (
        isinstance(colour, (list, tuple))
        and len(colour) in (3, 4)
        and all(isinstance(c, int) and not isinstance(c, bool) and 0 <= c <= 255 for c in colour)
    )


def _simplified(mask: Mask, tolerance: float) -> Area | None:
    """The outline of `mask` with fewer vertices, within `tolerance` of the exact one."""
    if tolerance >= CORNER_DEPTH:
        cut = between_edges(mask)
        return None if cut is None else cut.simplify(tolerance - CORNER_DEPTH, preserve_topology=False)
    exact = along_edges(mask)
    return exact if exact is None or tolerance == 0 else exact.simplify(tolerance, preserve_topology=True)


def _exactly_placed(mask: Mask, placement: Placement) -> Area | None:
    """Every corner kept, unless view pixels are smaller than the grid and fall together."""
    exact = along_edges(mask)
    placed = shapely.transform(exact, placement)
    if not placed.is_valid:
        unrounded = shapely.transform(exact, lambda p: p * placement.scale + (placement.x, placement.y))
        placed = polygons_of(shapely.set_precision(unrounded, _GRID))
    return None if placed is None or placed.is_empty else _not_a_rectangle(placed, placement.scale)


def _not_a_rectangle(area: Area, scale: float) -> Area:
    """`area`, with one corner cut where it is an axis-aligned rectangle."""
    if isinstance(area, MultiPolygon) or area.interiors:
        return area
    left, top, right, bottom = area.bounds
    width, height = right - left, bottom - top
    if area.area < (1 - 1e-9) * width * height:
        return area
    cut = max(round(min(_RECTANGLE_CUT * scale, width / 4, height / 4), DECIMALS), _GRID)
    corners = [(left + cut, top), (right, top), (right, bottom), (left, bottom), (left, top + cut)]
    return Polygon(np.round(corners, DECIMALS))


def polygons_of(geometry: shapely.Geometry) -> Area | None:
    """The polygons of what was brought onto the grid, where any are left."""
    parts = [part for part in shapely.get_parts(geometry) if isinstance(part, Polygon) and not part.is_empty]
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else MultiPolygon(parts)


def _geometry(area: Area) -> dict[str, Any]:
    """GeoJSON of an area."""
    parts = shapely.get_parts(area)
    polygons = [[shapely.get_coordinates(ring).tolist() for ring in shapely.get_rings(part)] for part in parts]
    if isinstance(area, Polygon):
        return {"type": "Polygon", "coordinates": polygons[0]}
    return {"type": "MultiPolygon", "coordinates": polygons}
