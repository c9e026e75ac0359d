"""What snapping views to the grid costs in Dice: each box's own view against the one centred exactly on it.

    python bench/snapping.py DATA … [--objects 36] [--cache DIR] [--json FILE]

Same step, same prompt; only the centre differs, by up to an eighth of the view's side. Frozen SAM and shipped adapters
on tight boxes and boxes with 20 % noise. Positive differences: the exact centre was better.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from wsisam_model import load_model
from wsisam_model.evaluate.intervals import bootstrap
from wsisam_model.evaluate.metrics import dice
from wsisam_model.evaluate.scores import FROZEN, HR, Answers
from wsisam_model.prompts import Prompt
from wsisam_model.train import draws
from wsisam_model.train.cache import EmbeddingCache
from wsisam_model.train.samples import NOISES, Case
from wsisam_service.annotated import dataset
from wsisam_service.annotated.annotations import AnnotatedObject
from wsisam_service.annotated.dataset import Tissue
from wsisam_service.views import Box, View, view_for_extent

KINDS = ("tight", "box20")


def centred(view: View, box: Box) -> View:
    """`view` moved so that its centre is the box's, off the grid."""
    x, y = view.centre_level0
    unit = (view.cx / x if x else view.cy / y) if x or y else 1.0
    return replace(view, cx=unit * (box[0] + box[2]) / 2, cy=unit * (box[1] + box[3]) / 2)  # type: ignore[arg-type]


def case_of(tissue: Tissue, item: AnnotatedObject, view: View, box: Box, kind: str) -> Case:
    return Case(tissue.sample(item, view), kind, Prompt(box=view.index_box_from_level0(box)))


def pairs(data: dataset.Dataset) -> Iterator[tuple[Case, Case]]:
    """Every object and kind of box on its snapped and on its centred view."""
    for tissue in data.tissues:
        for number, item in enumerate(tissue.image.objects):
            for kind in KINDS:
                box = draws.noisy_box(item.bounds, NOISES[kind], np.random.default_rng([number, len(kind)]))
                view = view_for_extent(box, data.config.image_size, tissue.mpp)
                yield tuple(case_of(tissue, item, one, box, kind) for one in (view, centred(view, box)))  # type: ignore[misc]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+")
    parser.add_argument("--objects", type=int, default=36, help="of each set")
    parser.add_argument("--cache", type=Path, default=Path("out/embeddings"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = load_model()
    data = dataset.load(options.data, model.config).limited(options.objects)
    answers = Answers(model, EmbeddingCache(options.cache, model.key_prefix, model.encode))
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    groups: dict[tuple[str, str], list[str]] = {}
    for both in tqdm(list(pairs(data)), unit="box"):
        for variant in (FROZEN, HR):
            scores = []
            for case in both:
                answer = answers.mask(answers.decode(case.sample, case.prompt, variant), case.sample)
                scores.append(dice(answer, case.sample.mask))
            key = variant, both[0].kind
            found.setdefault(key, []).append((scores[0], scores[1]))
            groups.setdefault(key, []).append(both[0].sample.group)
    report = {}
    for (variant, kind), scores in found.items():
        snapped, exact = np.transpose(scores)
        report[f"{variant}, {kind}"] = {
            "boxes": len(scores),
            "snapped": round(float(snapped.mean()), 4),
            "centred": round(float(exact.mean()), 4),
            "cost": asdict(bootstrap(list(exact - snapped), groups[variant, kind])),
        }
    print(json.dumps(report, indent=1))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
