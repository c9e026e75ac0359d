"""One object's prompt, as the network takes it. Torch-free: the gateway makes these, the worker decodes them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MASK_SIDE = 256
"""Side of a mask prompt and of the decoder's low-resolution logits, for every backbone (METHOD.md 2.1)."""
MAX_POINTS = 256
"""Points of a prompt, those of answers that it corrects among them. Each is a token that every one of the 4,096 image
positions looks at: 4,000 took the frozen SAM ten seconds and two gigabytes.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """A prompt in HR view pixels, pixel-index frame: the centre of pixel i is at i (edge coordinate minus 0.5).

    `box` is (x0, y0, x1, y1). `points` are (x, y), `labels` 1 (object) or 0 (background), one for each point.
    `mask_hr` and `mask_lr` are float32 logits (256, 256) in the model frame of their own branch (METHOD.md 3.3).
    At least one of box, points and mask_hr is given. `wider` says of clicks alone that this is their second look,
    on a view one step coarser than the first (`point_box.worth_a_wider_look`).
    """

    box: tuple[float, float, float, float] | None = None
    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()
    mask_hr: npt.NDArray[np.float32] | None = None
    mask_lr: npt.NDArray[np.float32] | None = None
    wider: bool = False
