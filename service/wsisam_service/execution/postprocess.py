"""From a prompt's logits to what an answer carries: masks in view pixels, and which borders they reach."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsisam_model.prompts import Prompt
from wsisam_model.quality import stability
from wsisam_model.specks import without_specks
from wsisam_service.execution.backend import Backend, Decoded, E, V
from wsisam_service.jobs import DecodedMask, Rle
from wsisam_service.masks import rle


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """`masks` best first, `touches` (left, top, right, bottom) of the first."""

    masks: list[DecodedMask]
    touches: tuple[bool, bool, bool, bool]
    lr_mask: Rle | None


def draw(
    backend: Backend[E, V],
    decoded: Decoded,
    view_size: tuple[int, int],
    prompt: Prompt,
    *,
    stability_offset: float | None = None,
) -> Drawn:
    """Masks of `view_size` (h, w) where the upscaled logits are above 0, without specks that `prompt`, in pixels of the
    view, does not point at. Made for a thread: it takes milliseconds.
    """
    masks = [without_specks(mask, prompt) for mask in backend.upscale(decoded.logits, view_size) > 0]
    stable = [None] * len(masks) if stability_offset is None else stability(decoded.logits, stability_offset).tolist()
    ious = np.clip(decoded.predicted_iou, 0.0, 1.0)
    lr_mask = None
    if decoded.lr_logits is not None:
        lr_mask = rle.encode(backend.upscale(decoded.lr_logits[None], view_size)[0] > 0)
    return Drawn(
        [DecodedMask(rle.encode(mask), float(iou), s) for mask, iou, s in zip(masks, ious, stable, strict=True)],
        touched_borders(masks[0]),
        lr_mask,
    )


def touched_borders(mask: npt.NDArray[np.bool_]) -> tuple[bool, bool, bool, bool]:
    """Whether a mask (h, w) reaches the (left, top, right, bottom) border."""
    return bool(mask[:, 0].any()), bool(mask[0].any()), bool(mask[:, -1].any()), bool(mask[-1].any())
