"""Prompts as the tensors that the prompt encoder takes, for each branch in its own model frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wsisam_model.config import ModelConfig
from wsisam_model.errors import PromptError
from wsisam_model.preprocessing import Floats, lr_from_hr, to_model_frame
from wsisam_model.prompt_encoder import PADDING_KIND
from wsisam_model.prompts import MASK_SIDE, MAX_POINTS, Prompt

_CORNER_KINDS = (2, 3)
FILLER_KIND = 5
"""A slot of a padded prompt without a token; masked wherever tokens are keys."""


@dataclass(frozen=True, slots=True)
class BranchPrompt:
    """B alike prompts of one branch: the same kinds, as many points. Coordinates are pixel indices in the model frame.

    `points` (B, n, 2) with `labels` (B, n) of 1 and 0; `boxes` (B, 4) as x0 y0 x1 y1; `mask` (B, 1, 256, 256) logits.
    """

    points: Tensor | None = None
    labels: Tensor | None = None
    boxes: Tensor | None = None
    mask: Tensor | None = None


def check_prompt(prompt: Prompt) -> None:
    """Raise `PromptError` if the network cannot take `prompt`."""
    if prompt.box is None and not prompt.points and prompt.mask_hr is None:
        raise PromptError("a prompt needs a box, a point or a mask")
    if len(prompt.labels) != len(prompt.points):
        raise PromptError(f"{len(prompt.points)} points but {len(prompt.labels)} labels")
    if len(prompt.points) > MAX_POINTS:
        raise PromptError(f"a prompt has at most {MAX_POINTS} points, with those of the answers that it corrects")
    if any(label not in (0, 1) for label in prompt.labels):
        raise PromptError("a point's label is 1 (object) or 0 (background)")
    with np.errstate(over="ignore"):
        numbers = np.array([*(prompt.box or ()), *(value for point in prompt.points for value in point)], np.float32)
    if not np.isfinite(numbers).all():
        raise PromptError("a prompt's coordinates are finite numbers, also in float32")
    for mask in (prompt.mask_hr, prompt.mask_lr):
        if mask is not None and mask.shape != (MASK_SIDE, MASK_SIDE):
            raise PromptError(f"a mask prompt is ({MASK_SIDE}, {MASK_SIDE}) logits, not {mask.shape}")
        if mask is not None and not np.isfinite(mask).all():
            raise PromptError("a mask prompt's logits are finite numbers")


def branch_prompt(
    prompts: Sequence[Prompt], view_size: tuple[int, int], config: ModelConfig, *, lr: bool, like: Tensor
) -> BranchPrompt:
    """Alike `prompts`, in HR view pixels, for the HR branch or for the LR branch.

    The LR branch gets the coordinates by the authors' floor rule and only its own mask. `view_size` is (height,
    width) of either view. The tensors have the device and dtype of `like`.
    """

    def place(xy: Floats) -> Tensor:
        in_view = lr_from_hr(xy, view_size) if lr else xy
        return torch.as_tensor(to_model_frame(in_view, view_size, config)).to(like)

    points = labels = boxes = mask = None
    if prompts[0].points:
        points = place(np.array([prompt.points for prompt in prompts], np.float32))
        labels = torch.tensor([prompt.labels for prompt in prompts], device=like.device)
    if prompts[0].box is not None:
        boxes = place(np.array([prompt.box for prompt in prompts], np.float32).reshape(-1, 2, 2)).flatten(1)
    masks = [prompt.mask_lr if lr else prompt.mask_hr for prompt in prompts]
    if masks[0] is not None:
        mask = torch.as_tensor(np.stack([given for given in masks if given is not None])[:, None]).to(like)
    return BranchPrompt(points, labels, boxes, mask)


def prompt_numbers(
    prompt: Prompt, view_size: tuple[int, int], config: ModelConfig, *, lr: bool
) -> tuple[Floats, list[int]]:
    """The tokens of `prompt`, in HR view pixels, in one branch: places (N, 2) in the model frame and kinds, rows of
    `PromptEncoder.kind_table`. N is 0 for a mask alone.
    """
    places = [*prompt.points]
    kinds = [int(label) for label in prompt.labels]
    if prompt.box is not None:
        places += [prompt.box[:2], prompt.box[2:]]
        kinds += _CORNER_KINDS
    elif prompt.points:
        places.append((0.0, 0.0))
        kinds.append(PADDING_KIND)
    xy = np.array(places, np.float32).reshape(-1, 2)
    if lr:
        xy = lr_from_hr(xy, view_size)
    return to_model_frame(xy, view_size, config), kinds


def pad_prompts(prompts: Sequence[tuple[Floats, list[int]]]) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Places (R, N, 2) and kinds (R, N) of the rows' `prompt_numbers`, filled up to the longest with `FILLER_KIND`."""
    longest = max(len(kinds) for _, kinds in prompts)
    coordinates = np.zeros((len(prompts), longest, 2), np.float32)
    kinds = np.full((len(prompts), longest), FILLER_KIND, np.int64)
    for row, (places, its_kinds) in enumerate(prompts):
        coordinates[row, : len(places)] = places
        kinds[row, : len(its_kinds)] = its_kinds
    return coordinates, kinds
