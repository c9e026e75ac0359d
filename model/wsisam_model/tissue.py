"""Which tissue adapters know, by how their training views look to the frozen encoder's first layers.

A set trained on one kind of tissue is better there and worse elsewhere. So that it can serve beside another, every
file of adapters keeps how its training views looked, and a view goes to a set of one's own only where it looks like
those (docs/TRAINING.md has what that gives).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from wsisam_model.config import ModelConfig
from wsisam_model.embedding import Embedding
from wsisam_model.errors import CheckpointError
from wsisam_model.preprocessing import Pixels, resized_size
from wsisam_model.prompt_encoder import GRID

MAX_VIEWS = 256
"""Training views whose looks are kept; more of them tell nothing new."""
WHITE_DISTANCE = 0.95
"""Cells of X nearer than this to white ones, as a part of the white one's length, are glass, lumen or fat."""
MIN_CELLS = 40
"""A view with fewer cells of tissue looks like nothing."""
NEAREST = 3
USUAL = 0.9
"""The part of a set's own training views whose distance from each other counts as usual."""
REACH = 1.5
"""A view belongs to a set up to this many times the usual distance (docs/TRAINING.md)."""
MIN_REACH = 1e-6
"""The reach of looks that are all alike."""


def white_view(config: ModelConfig) -> Pixels:
    """A white view (S, S, 3) with a black corner, which keeps white what it is where the darkest and the brightest
    pixel of a view decide how it is normalised.
    """
    side = config.image_size
    view = np.full((side, side, 3), 255, np.uint8)
    view[: side // 8, : side // 8] = 0
    return view


def white_cell(embedding: Embedding) -> Tensor:
    """The early feature (C,) of white, on the CPU, of the embedding of `white_view`."""
    return embedding.early.cpu().float()[:, GRID // 2 :, GRID // 2 :].mean(dim=(1, 2))


def look_of(embedding: Embedding, white: Tensor, config: ModelConfig) -> Tensor | None:
    """How a view of `embedding` looks: mean and standard deviation (2 C,), on the CPU, of X over its cells of tissue;
    None where there are few.
    """
    height, width = (side * GRID // config.image_size for side in resized_size(embedding.view_size, config))
    cells = embedding.early[:, :height, :width].cpu().float().flatten(1)
    tissue = cells[:, (cells - white[:, None]).norm(dim=0) > WHITE_DISTANCE * white.norm()]
    if tissue.shape[1] < MIN_CELLS:
        return None
    return torch.cat((tissue.mean(dim=1), tissue.std(dim=1)))


def looks_of(views: Sequence[Pixels], embed: Callable[[Pixels], Embedding], config: ModelConfig) -> Tensor | None:
    """What a file of adapters keeps of its training views, (n, 2 C), of at most `MAX_VIEWS` of them, evenly chosen.
    None where they are too few to tell. A view that shows several objects counts once: the usual distance would be
    one from itself.
    """
    views = list({hashlib.sha256(view.tobytes()).digest(): view for view in views}.values())
    chosen = np.linspace(0, len(views) - 1, min(len(views), MAX_VIEWS)).astype(int)
    white = white_cell(embed(white_view(config)))
    looks = [look for index in chosen if (look := look_of(embed(views[index]), white, config)) is not None]
    return torch.stack(looks) if len(looks) > NEAREST else None


class TissueChoice:
    """Which of several sets a view belongs to. `own` are the kept looks (n, 2 C) of sets that are used for their own
    tissue, by name; `everywhere` those of the set that is used for all other, if they are known.
    """

    def __init__(self, own: Mapping[str, Tensor], everywhere: Tensor | None = None) -> None:
        self._own = {}
        for name, looks in own.items():
            others = [other for called, other in own.items() if called != name]
            self._own[name] = _Known(looks, others if everywhere is None else [*others, everywhere])

    def __call__(self, look: Tensor | None) -> str | None:
        """The set for a view that looks like `look` (2 C,): of those that know it the one that knows it best."""
        if look is None:
            return None
        far = {name: known.farness(look) for name, known in self._own.items()}
        nearest = min(far, key=lambda name: far[name])
        return nearest if far[nearest] <= 1 else None


class _Known:
    """The looks of one set's training views, each number in units of how much it varies among them."""

    def __init__(self, looks: Tensor, others: Sequence[Tensor]) -> None:
        self._mean, self._scale = looks.mean(dim=0), looks.std(dim=0).clamp_min(1e-6)
        self._looks = self._scaled(looks)
        self._others = [self._scaled(other) for other in others]
        between = torch.cdist(self._looks, self._looks).sort(dim=1).values[:, 1 : NEAREST + 1].mean(dim=1)
        self._reach = max(MIN_REACH, REACH * float(between.quantile(USUAL)))

    def farness(self, look: Tensor) -> float:
        """How far from the set `look` is, as a part of its reach; infinite where another set is nearer."""
        scaled = self._scaled(look)
        own = _distance(scaled, self._looks)
        if any(_distance(scaled, other) <= own for other in self._others):
            return math.inf
        return own / self._reach

    def _scaled(self, looks: Tensor) -> Tensor:
        return (looks - self._mean) / self._scale


def check_looks(looks: Tensor, early_channels: int) -> None:
    """Raise `CheckpointError` unless `looks` could be a file's `tissue.looks`: enough of them to tell, and no more than
    are kept, as each is compared with all others at every start.
    """
    fits = looks.ndim == 2 and looks.shape[1] == 2 * early_channels and NEAREST < len(looks) <= MAX_VIEWS
    if not fits or not looks.is_floating_point():
        wanted = f"(n, {2 * early_channels}) of {NEAREST + 1} to {MAX_VIEWS} views, in floats"
        raise CheckpointError(f"tissue.looks is {wanted}, not {tuple(looks.shape)} in {looks.dtype}")


def _distance(look: Tensor, looks: Tensor) -> float:
    """From `look` (2 C,) to the nearest of `looks` (n, 2 C)."""
    between = torch.cdist(look[None], looks)[0]
    return float(between.topk(NEAREST, largest=False).values.mean())
