"""Other tissue from the tissue there is: turned, mirrored and stained otherwise. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from wsisam_model.train.samples import Pixels, Sample

STAIN_SPREAD = 0.15
"""Standard deviation of the logarithm of each colour channel's factor on optical density."""

Table = npt.NDArray[np.uint8]
Image = TypeVar("Image", bound=npt.NDArray[np.generic])


def changed_copies(samples: Sequence[Sample], copies: int, *, seed: int) -> list[Sample]:
    """`samples`, and `copies` more of each: turned by quarters, mirrored, each colour's density scaled. Views of a
    sample are changed alike, so that the LR view still surrounds the HR view.
    """
    rng = np.random.default_rng([seed, copies])
    return [*samples, *(_changed(sample, rng) for _ in range(copies) for sample in samples)]


def _changed(sample: Sample, rng: np.random.Generator) -> Sample:
    quarters, mirrored = int(rng.integers(4)), bool(rng.integers(2))
    table = _stain_table(np.exp(rng.normal(0, STAIN_SPREAD, 3)))

    def turned(image: Image) -> Image:
        rotated = np.rot90(image, quarters)
        return np.ascontiguousarray(rotated[:, ::-1] if mirrored else rotated)  # type: ignore[return-value]

    def stained(image: Pixels) -> Pixels:
        return np.asarray(cv2.LUT(image, table), np.uint8)

    return replace(
        sample,
        hr=stained(turned(sample.hr)),
        lr=stained(turned(sample.lr)),
        mask=turned(sample.mask),
        lr_mask=turned(sample.lr_mask),
    )


def _stain_table(factors: npt.NDArray[np.float64]) -> Table:
    """What becomes of each grey level, (256, 1, 3), when a channel's optical density is multiplied; white stays."""
    density = -np.log((np.arange(256.0) + 1) / 256)
    levels = 256 * np.exp(-density[:, None] * factors) - 1
    return levels.round().clip(0, 255).astype(np.uint8)[:, None]
