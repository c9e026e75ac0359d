"""Clicks turned into a box as well: a base that was trained on boxes alone then has something to go by. Torch-free."""

from __future__ import annotations

import math
from dataclasses import replace

from wsisam_model.prompts import Prompt

SPREAD = 3.5
"""n points drawn from an object span about 1 / (1 + SPREAD / n) of its sides: the median of 180 glands, tumour nests
and glomeruli is 2.3, 1.7, 1.5 and 1.35 times the extent of 3, 5, 7 and 10 points."""
LONE_SIDE = 0.5
"""Part of the view's side that a lone point's box has: the median object in the view that one click leads to."""


def with_point_box(
    prompt: Prompt, view_size: tuple[int, int], spread: float = SPREAD, lone_side: float = LONE_SIDE
) -> Prompt:
    """`prompt` with a box around its positive points, if it has points and no box; else `prompt` itself.

    The box is the extent of the n points times 1 + `spread` / n, about its middle; no side is shorter than
    `lone_side` / √n of the view's longer side. `view_size` is (height, width).
    """
    positive = [point for point, label in zip(prompt.points, prompt.labels, strict=True) if label]
    if prompt.box is not None or not positive:
        return prompt
    least = lone_side * max(view_size) / math.sqrt(len(positive))
    corners = []
    for values in zip(*positive, strict=True):
        low, high = min(values), max(values)
        half = max((high - low) * (1 + spread / len(positive)), least) / 2
        corners.append(((low + high) / 2 - half, (low + high) / 2 + half))
    (x0, x1), (y0, y1) = corners
    return replace(prompt, box=(x0, y0, x1, y1))
