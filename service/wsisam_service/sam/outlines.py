"""Masks as the extension wants them: a bare array of Features in pixel edges of the sent picture (PROTOCOL.md 1.4)."""

from __future__ import annotations

from typing import Any

import numpy as np

from wsisam_service.masks import geojson
from wsisam_service.masks.rle import Mask


def clip_to_picture(mask: Mask, origin: tuple[float, float], scale: float, width: int, height: int) -> Mask:
    """`mask` without the pixels whose centre lies outside a picture of `width` x `height`.

    `origin` is the mask's upper left corner and `scale` the side of its pixels, both in picture pixels.
    """
    rows, columns = mask.shape
    x = origin[0] + (np.arange(columns) + 0.5) * scale
    y = origin[1] + (np.arange(rows) + 0.5) * scale
    clipped: Mask = mask & ((y > 0) & (y < height))[:, None] & ((x > 0) & (x < width))
    return clipped


def feature(
    mask: Mask, origin: tuple[float, float], scale: float, *, quality: float, sam_model: str
) -> dict[str, Any] | None:
    """The Feature of a mask, None for an empty one, which QuPath would make an invisible object of.

    There is no `object_idx`, which would become the object's class, and no `name`, which would hide the quality.
    """
    area = geojson.outline(mask, geojson.Placement(scale, *origin))
    if area is None:
        return None
    properties = {"quality": round(quality, 4), "label": "object", "sam_model": sam_model}
    return geojson.feature(area, classification=None, measurements={}, metadata={}) | {"properties": properties}
