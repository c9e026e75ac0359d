"""What lower precision costs in Dice: float32 against each other format, on annotated tissue.

    python bench/precision.py DATA … [--of encoder] [--objects 100] [--cache DIR] [--json FILE]

A format may be on by default only if it loses at most 0.002 mean Dice and its masks agree with float32's to a mean IoU
of 0.98, tight and noisy boxes together. Where the decoder's format alone changes, the embeddings are float32's, kept in
`--cache` between runs; else every view is encoded again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from wsisam_model import load_model
from wsisam_model.embedding import Embedding
from wsisam_model.evaluate.intervals import Estimate, bootstrap
from wsisam_model.evaluate.metrics import dice, iou
from wsisam_model.predictor import DecodeRequest, Predictor
from wsisam_model.preprocessing import upscale_logits
from wsisam_model.train.cache import EmbeddingCache
from wsisam_model.train.samples import Case, Mask, Pixels
from wsisam_service.annotated import dataset

KINDS = ("tight", "box20")
FORMATS = ("bfloat16", "float16")
MAX_DICE_LOSS = 0.002
MIN_MASK_IOU = 0.98

Embed = Callable[[Pixels], Embedding]


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


def views_of(predictor: Predictor, case: Case) -> list[Pixels]:
    """The HR view, and the LR view where there are adapters that use it."""
    wide = predictor.adapters is not None and predictor.adapters.uses_lr
    return [case.sample.hr, case.sample.lr] if wide else [case.sample.hr]


def mask_of(predictor: Predictor, embed: Embed, case: Case) -> Mask:
    """The predictor's answer, in view pixels."""
    sample = case.sample
    hr, *lr = (predictor.prepare(embed(view)) for view in views_of(predictor, case))
    (answer,) = predictor.decode([DecodeRequest(hr, lr[0] if lr else None, case.prompt)])
    return np.asarray(upscale_logits(answer.logits[:1], predictor.config, sample.mask.shape)[0] > 0)


def compare(cases: Sequence[Case], reference: Sequence[Mask], other: Sequence[Mask]) -> Comparison:
    """`other` against the masks of the reference and against the truth."""
    truths = [case.sample.mask for case in cases]
    of_reference = [dice(mask, truth) for mask, truth in zip(reference, truths, strict=True)]
    of_other = [dice(mask, truth) for mask, truth in zip(other, truths, strict=True)]
    agreement = [iou(left, right) for left, right in zip(reference, other, strict=True)]
    groups = [case.sample.group for case in cases]
    return Comparison(
        objects=len({case.sample.object_id for case in cases}),
        dice_a=float(np.mean(of_reference)),
        dice_b=float(np.mean(of_other)),
        dice_loss=bootstrap([a - b for a, b in zip(of_reference, of_other, strict=True)], groups),
        mask_iou=bootstrap(agreement, groups),
        worst_mask_iou=min(agreement),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+")
    parser.add_argument("--of", choices=("decoder", "encoder", "both"), default="decoder", help="whose format changes")
    parser.add_argument("--objects", type=int, default=100, help="of each set")
    parser.add_argument("--cache", type=Path, default=Path("out/embeddings"))
    parser.add_argument("--cached-only", action="store_true", help="leave out objects whose views are not in --cache")
    parser.add_argument("--engine", default="auto", help="torch computes formats that the CPU has no instructions for")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    reference = load_model(engine=options.engine, precision="float32")
    tissue = dataset.load(options.data, reference.config).limited(options.objects)
    cases = list(tissue.cases(KINDS))
    exact = EmbeddingCache(options.cache, reference.key_prefix, reference.encode)
    if options.cached_only:
        cases = [case for case in cases if all(exact.path(view).exists() for view in views_of(reference, case))]
    masks = [mask_of(reference, exact, case) for case in cases]
    results = {}
    for name in options.formats:
        precision = {"encoder": f"{name}/float32", "decoder": f"float32/{name}", "both": name}[options.of]
        other = load_model(precision=precision, engine=options.engine)
        embed = (lambda view, other=other: other.encode([view])[0]) if options.of != "decoder" else exact
        compared = compare(cases, masks, [mask_of(other, embed, case) for case in cases])
        results[other.precision] = asdict(compared) | {"passes": compared.passes, "engine": other.engine}
        print(
            f"{other.precision}: {compared.objects} objects, Dice {compared.dice_a:.4f} -> {compared.dice_b:.4f}, "
            f"loss {compared.dice_loss.mean:.5f}, IoU with float32 {compared.mask_iou.mean:.4f} "
            f"(worst {compared.worst_mask_iou:.4f}), {'passes' if compared.passes else 'fails'}",
            flush=True,
        )
    sets = {
        name: len({case.sample.object_id for case in group})
        for name, group in itertools.groupby(cases, key=lambda case: case.sample.dataset)
    }
    about = {
        "commit": subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip(),
        "reference": f"{reference.engine} {reference.precision} on {reference.device}",
        "adapters": None if reference.adapters is None else reference.adapters.name,
        "kinds": KINDS,
        "objects": sets,
    }
    if options.json:
        options.json.write_text(json.dumps({"about": about, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
