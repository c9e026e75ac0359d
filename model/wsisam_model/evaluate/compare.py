"""Whether a cheaper predictor may stand in for an exact one: the gate for precisions and engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wsisam_model.evaluate.intervals import Estimate, bootstrap
from wsisam_model.evaluate.metrics import dice, iou
from wsisam_model.predictor import DecodeRequest, Predictor
from wsisam_model.preprocessing import upscale_logits
from wsisam_model.train.samples import Case, Mask

MAX_DICE_LOSS = 0.002
MIN_MASK_IOU = 0.98


@dataclass(frozen=True, slots=True)
class Comparison:
    """`dice_a` and `dice_b` are means against the ground truth, `dice_loss` is a minus b by object, `mask_iou` how
    much the two answers agree with each other.
    """

    objects: int
    dice_a: float
    dice_b: float
    dice_loss: Estimate
    mask_iou: Estimate
    worst_mask_iou: float

    @property
    def passes(self) -> bool:
        """At most 0.002 mean Dice lost, and masks alike to a mean IoU of 0.98."""
        return self.dice_loss.mean <= MAX_DICE_LOSS and self.mask_iou.mean >= MIN_MASK_IOU


def compare_predictors(cases: Sequence[Case], a: Predictor, b: Predictor, *, with_lr: bool = True) -> Comparison:
    """Compare predictor `b` with the reference `a` on `cases`, from the pixels on; without adapters, both are the
    frozen SAM. ValueError if there are no cases.
    """
    if not cases:
        raise ValueError("there is nothing to compare on")
    truths = [case.sample.mask for case in cases]
    masks_a, masks_b = (_masks(predictor, cases, with_lr) for predictor in (a, b))
    dice_a = [dice(mask, truth) for mask, truth in zip(masks_a, truths, strict=True)]
    dice_b = [dice(mask, truth) for mask, truth in zip(masks_b, truths, strict=True)]
    agreement = [iou(left, right) for left, right in zip(masks_a, masks_b, strict=True)]
    return Comparison(
        objects=len(cases),
        dice_a=float(np.mean(dice_a)),
        dice_b=float(np.mean(dice_b)),
        dice_loss=bootstrap([left - right for left, right in zip(dice_a, dice_b, strict=True)]),
        mask_iou=bootstrap(agreement),
        worst_mask_iou=min(agreement),
    )


def _masks(predictor: Predictor, cases: Sequence[Case], with_lr: bool) -> list[Mask]:
    masks = []
    for case in cases:
        sample = case.sample
        wide = with_lr and predictor.adapters is not None
        embeddings = predictor.encode([sample.hr, sample.lr] if wide else [sample.hr])
        views = [predictor.prepare(embedding) for embedding in embeddings]
        (answer,) = predictor.decode([DecodeRequest(views[0], views[1] if wide else None, case.prompt)])
        masks.append(np.asarray(upscale_logits(answer.logits[:1], predictor.config, sample.mask.shape)[0] > 0))
    return masks
