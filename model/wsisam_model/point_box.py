"""Clicks turned into a box, for a base that was trained on boxes alone. Torch-free.

Measured with the frozen LiteMedSAM (docs/TRAINING.md): five points as such 0.39 mean Dice, the box they suggest 0.75,
both together 0.47. So the points that the box stands for are left out, and only those that it cannot express stay.
"""

from __future__ import annotations

import math
from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt

from wsisam_model.errors import CheckpointError
from wsisam_model.prompts import Prompt

SPREAD = 3.5
"""n points drawn from an object span about 1 / (1 + SPREAD / n) of its sides: the median of 180 glands, tumour nests
and glomeruli is 2.3, 1.7, 1.5 and 1.35 times the extent of 3, 5, 7 and 10 points."""
LONE_SIDE = 0.5
"""Part of the view's side that a lone point's box has: the median object in the view that one click leads to."""

MAX_SPREAD, MAX_LONE_SIDE = 100.0, 2.0
"""What adapters may bring in place of the two above; boxes far beyond the view are no guess."""

LONE_SIDES, WIDER_SIDES = (1.4, 0.75), (1.0, 0.5)
"""What one click may mean, as multiples of the lone side, on the first view and on a wider one; the second of each is
tried where the first leads to no sure mask."""
UNSURE = 0.85
"""A mask that clicks led to, less stable than this, may be not what was meant: worth another size, a wider look."""
NARROW = 0.5
"""A view is narrow for clicks whose box takes more of its side than this; a box given as such avoids such views."""

Mask = npt.NDArray[np.bool_]
Box = tuple[float, float, float, float]
Point = tuple[float, float]


def with_point_box(
    prompt: Prompt, view_size: tuple[int, int], spread: float = SPREAD, lone_side: float = LONE_SIDE
) -> Prompt:
    """`prompt` with its clicks turned into a box; prompts without points stay as they are.

    The box is the extent of the n positive points times 1 + `spread` / n about its middle, no side shorter than
    `lone_side` / √n of the view's longer side; where the mask prompt of an earlier answer lies under positive points,
    it is what holds that part and all of them instead. It ends halfway to negative points beside the extent. A box
    that was given is kept, and widened to hold the positive points. Left are the negative points inside the box; the
    positive ones and the mask prompt are not. `view_size` is (height, width).
    """
    if not prompt.points:
        return prompt
    pairs = list(zip(prompt.points, prompt.labels, strict=True))
    positive = [point for point, label in pairs if label]
    negative = [point for point, label in pairs if not label]
    if prompt.box is not None:
        box = _around([*positive, prompt.box[:2], prompt.box[2:]])
    elif positive:
        extent = _around(positive)
        if (earlier := _earlier(prompt, positive, view_size)) is not None:
            guess = _around([*positive, earlier[:2], earlier[2:]])
        else:
            guess = _grown(extent, 1 + spread / len(positive), lone_side * max(view_size) / math.sqrt(len(positive)))
        box = _cut(guess, extent, negative)
    else:
        return prompt
    inside = tuple(point for point in negative if box[0] < point[0] < box[2] and box[1] < point[1] < box[3])
    return replace(prompt, box=box, points=inside, labels=(0,) * len(inside), mask_hr=None, mask_lr=None)


def check_point_box(spread: float, lone_side: float) -> None:
    """Raise `CheckpointError` unless these could be a file's `prompt.point_box`."""
    if not (0 <= spread <= MAX_SPREAD and 0 < lone_side <= MAX_LONE_SIDE):
        wanted = f"a spread of 0 to {MAX_SPREAD:g} and a lone side above 0, {MAX_LONE_SIDE:g} at most"
        raise CheckpointError(f"prompt.point_box is {wanted}, not {spread:g} and {lone_side:g}")


def readings(prompt: Prompt, view_size: tuple[int, int], spread: float, lone_side: float) -> list[Prompt]:
    """What `prompt` may mean, to be tried in turn, each `with_point_box`: several boxes for one click, else one."""
    lone = prompt.box is None and prompt.mask_hr is None and sum(prompt.labels) == 1
    sides = (1.0,) if not lone else WIDER_SIDES if prompt.wider else LONE_SIDES
    return [with_point_box(prompt, view_size, spread, lone_side * side) for side in sides]


def is_unsure(stability: float) -> bool:
    """Whether a mask of this stability (at logits ±1), which clicks led to, asks for another try."""
    return stability < UNSURE


def may_be_wider(extent: float, clicks: int) -> bool:
    """Whether `clicks` on an object, whose extent takes this part of the view's side, may mean more than the view shows
    well: one always, several where the box that they stand for takes more than half of it.
    """
    return clicks == 1 or extent * (1 + SPREAD / clicks) > NARROW


def worth_a_wider_look(stability: float, cut: bool) -> bool:
    """Whether clicks that `may_be_wider` are decoded on the next coarser view too, after an answer of this stability
    which the view's border does or does not cut. The more stable of both answers stays.
    """
    return cut or is_unsure(stability)


def reread(prompt: Prompt, read: Prompt, answer: Mask) -> Prompt | None:
    """`read`, made of the clicks of `prompt`, with the box of the positive ones and of what `answer` (H, W) found under
    them in place of the guess; None where the box was given, or nothing was found.
    """
    positive = [point for point, label in zip(prompt.points, prompt.labels, strict=True) if label]
    if prompt.box is not None or not positive:
        return None
    box = _found(answer, positive)
    return None if box is None else replace(read, box=_around([*positive, box[:2], box[2:]]))


def _earlier(prompt: Prompt, positive: list[Point], view_size: tuple[int, int]) -> Box | None:
    """The box of what the mask prompt has under the positive points, in view pixels."""
    if prompt.mask_hr is None:
        return None
    scale = max(view_size) / len(prompt.mask_hr)
    box = _found(prompt.mask_hr > 0, [((x + 0.5) / scale - 0.5, (y + 0.5) / scale - 0.5) for x, y in positive])
    if box is None:
        return None
    x0, y0, x1, y1 = ((edge + 0.5) * scale - 0.5 for edge in box)
    return x0, y0, x1, y1


def _found(mask: Mask, places: list[Point]) -> Box | None:
    """The box around the pieces of `mask` (H, W) under `places`, None if there are none."""
    _, pieces = cv2.connectedComponents(mask.astype(np.uint8))
    height, width = mask.shape
    pixels = [(min(max(round(y), 0), height - 1), min(max(round(x), 0), width - 1)) for x, y in places]
    found = {int(pieces[pixel]) for pixel in pixels} - {0}
    if not found:
        return None
    ys, xs = np.nonzero(np.isin(pieces, list(found)))
    return float(xs.min()) - 0.5, float(ys.min()) - 0.5, float(xs.max()) + 0.5, float(ys.max()) + 0.5


def _around(points: list[Point]) -> Box:
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _grown(extent: Box, growth: float, least: float) -> Box:
    x0, y0, x1, y1 = extent
    half_x, half_y = max((x1 - x0) * growth, least) / 2, max((y1 - y0) * growth, least) / 2
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    return x - half_x, y - half_y, x + half_x, y + half_y


def _cut(box: Box, extent: Box, negative: list[Point]) -> Box:
    """`box` ending halfway between `extent` and each negative point, along the axis on which that takes least away."""
    sides = list(box)
    for point in negative:
        if not (sides[0] < point[0] < sides[2] and sides[1] < point[1] < sides[3]):
            continue
        cuts = []
        for axis in (0, 1):
            low, high = extent[axis], extent[axis + 2]
            length = sides[axis + 2] - sides[axis]
            if point[axis] < low:
                cuts.append(((point[axis] - sides[axis]) / length, axis, (point[axis] + low) / 2))
            elif point[axis] > high:
                cuts.append(((sides[axis + 2] - point[axis]) / length, axis + 2, (point[axis] + high) / 2))
        if cuts:
            _, side, place = min(cuts)
            sides[side] = place
    return sides[0], sides[1], sides[2], sides[3]
