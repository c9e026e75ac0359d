"""What training and evaluation are given: one object on one pair of views. Torch-free."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsisam_model.prompts import Prompt

Pixels = npt.NDArray[np.uint8]
"""RGB pixels of a view, uint8 (S, S, 3)."""
Mask = npt.NDArray[np.bool_]
"""One object in a view, bool (S, S)."""


MIN_AREA_UM2 = 400.0
"""Smaller objects are single nuclei and specks, not what the service is for."""
NOISES = {"tight": 0.0, "box10": 0.1, "box20": 0.2}
"""Kinds of box prompts, and how noisy they are."""
POINTS = {"points1": (1, 0), "points3": (3, 0), "points5": (5, 0), "points10": (7, 3)}
"""Kinds of point prompts: positive and negative points of each."""
ONE_CLICK = "points1"
KINDS = (*NOISES, *POINTS)


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One annotated object on one HR and LR pair of views, both S x S pixels, concentric, LR twice the field.

    `mask` is the object in HR view pixels, `lr_mask` the same object in LR view pixels. `group` is the patient or
    slide: samples of one group never lie on both sides of a split. `cut` says that the image's border cuts the
    object. `fill` is the longer side of the whole object by the side of the HR view; above 1 it does not fit.
    """

    object_id: str
    dataset: str
    group: str
    hr: Pixels
    lr: Pixels
    mask: Mask
    lr_mask: Mask
    mpp: float
    """µm per HR view pixel."""
    area_um2: float
    fill: float
    cut: bool


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One question of the evaluation: `prompt` in HR view pixels (index frame) of `sample`'s own views, which were
    chosen from that prompt alone, as the service does. `wider` is the same question one step coarser, for
    clicks that may get a second look. `inner` says beyond which borders of the view (left, top, right, bottom) there
    is slide, so that a mask there may go on.
    """

    sample: Sample
    kind: str
    prompt: Prompt
    wider: Case | None = None
    inner: tuple[bool, bool, bool, bool] = (True, True, True, True)


def held_out_groups(groups: Iterable[str], hold_out: Iterable[str], fraction: float, seed: int) -> set[str]:
    """Those of `groups` (`DATASET/GROUP`, a patient or slide each) that training does not see.

    `hold_out` names groups, or whole datasets by `DATASET`. `fraction` of the other groups are held out as well, by a
    hash of their name and `seed`, so that adding data moves no group. ValueError for a name that is not there.
    """
    known, wanted = set(groups), set(hold_out)
    datasets = {group.partition("/")[0] for group in known}
    if unknown := wanted - known - datasets:
        raise ValueError(f"nothing is called {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    return {
        group
        for group in known
        if group in wanted or group.partition("/")[0] in wanted or _unit_hash(f"{seed}:{group}") < fraction
    }


def _unit_hash(text: str) -> float:
    """A number in [0, 1) that depends on `text` alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2.0**64
