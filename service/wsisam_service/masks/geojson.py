"""Masks as GeoJSON that every QuPath from 0.4 reads (qupath/PROTOCOL.md section 4).

Outlines follow pixel edges, with holes and separate parts kept. They are traced and simplified in view pixels, then
put into the client's frame and rounded to the 0.01 px that QuPath keeps. Pixel corners that differ stay different
under that rounding, so an unsimplified outline is always valid; a simplified one is checked.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import orjson
import shapely
from rasterio import features
from shapely import MultiPolygon, Polygon

from wsisam_service.errors import InvalidRequest

Mask = npt.NDArray[np.bool_]
Area: TypeAlias = Polygon | MultiPolygon
Classification: TypeAlias = str | dict[str, object] | None
"""A class that QuPath reads."""

DEFAULT_SIMPLIFY = 0.5
"""Tolerance of outlines, view pixels."""
CORNER_DEPTH = 0.5**1.5
"""How far a corner lies from the line that cuts it half a pixel along both edges."""
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
    exact = trace(mask)
    if exact is None:
        return None
    for tolerance in (simplify, simplify / 2):
        placed = shapely.transform(_simplified(exact, tolerance), placement)
        if placed.is_valid and not placed.is_empty:
            return _not_a_rectangle(placed, placement.scale)
    return _exactly_placed(exact, placement)


def trace(mask: Mask) -> Area | None:
    """The exact outline in view-edge pixels, corners only; None for an empty mask.

    Pixels that meet at a corner only are separate parts, so that no ring touches itself.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return None
    top, left = int(rows[0]), int(columns[0])
    crop = np.ascontiguousarray(mask[top : rows[-1] + 1, left : columns[-1] + 1]).view(np.uint8)
    shapes = features.shapes(crop, mask=crop.view(np.bool_), connectivity=4)
    parts = [_polygon([np.array(ring) for ring in shape["coordinates"]]) for shape, _ in shapes]
    area = parts[0] if len(parts) == 1 else MultiPolygon(parts)
    return shapely.transform(area, lambda positions: np.add(positions, (left, top)))


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


def checked_classification(value: str | Mapping[str, object] | None) -> Classification:
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


def _polygon(rings: list[npt.NDArray[np.float64]]) -> Polygon:
    """From rings (n, 2), the exterior first."""
    return Polygon(rings[0], rings[1:])


def _simplified(exact: Area, tolerance: float) -> Area:
    """`exact` with fewer vertices. Cutting every corner first makes straight lines of staircases."""
    if tolerance < CORNER_DEPTH:
        return exact.simplify(tolerance, preserve_topology=True) if tolerance > 0 else exact
    return _without_corners(exact).simplify(tolerance - CORNER_DEPTH, preserve_topology=False)


def _without_corners(exact: Area) -> Area:
    """Each corner cut half a pixel along both its edges: edges of one pixel shrink to their middle."""
    parts = exact.geoms if isinstance(exact, MultiPolygon) else [exact]
    kind, corners, (ring_starts, part_starts) = shapely.to_ragged_array(list(parts))
    edges = np.delete(np.arange(len(corners)), ring_starts[1:] - 1)  # by first corner; a ring repeats its first one
    start, end = corners[edges], corners[edges + 1]
    step = 0.5 * np.sign(end - start)
    ends_of_edges = np.stack((start + step, end - step), axis=1).reshape(-1, 2)
    open_starts = 2 * (ring_starts - np.arange(len(ring_starts)))
    closed = np.insert(ends_of_edges, open_starts[1:], ends_of_edges[open_starts[:-1]], axis=0)
    cut = shapely.from_ragged_array(kind, closed, (open_starts + np.arange(len(ring_starts)), part_starts))
    return cut[0] if len(cut) == 1 else MultiPolygon(list(cut))


def _exactly_placed(exact: Area, placement: Placement) -> Area | None:
    """Every corner kept, unless view pixels are smaller than the grid and fall together."""
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
    """GeoJSON of an area; written by GEOS, which is much faster than Python on masks of many parts."""
    geometry: dict[str, Any] = orjson.loads(shapely.to_geojson(area))
    return geometry
