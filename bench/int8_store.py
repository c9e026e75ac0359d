"""Whether embeddings can be stored in int8: Dice against ground truth, from float16 and from int8 per channel.

The frozen LiteMedSAM on tight boxes around objects of an annotated set (--data DIR with images/ and masks/). Each
channel of both maps is kept in int8 with a scale of its own (`wsisam_model.int8_embedding`). Writes
bench/results/int8_store.json.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from wsisam_model import load_model
from wsisam_model.decoder_batch import DecodeRequest
from wsisam_model.int8_embedding import Int8Embedding
from wsisam_model.preprocessing import upscale_logits
from wsisam_model.prompts import Prompt

REPOSITORY = Path(__file__).resolve().parents[1]
SIDE = 256
MIN_AREA_PX = 1000
FILL = 0.4
"""Part of the view's side that an object fills."""


def objects(data: Path, count: int) -> list[tuple[np.ndarray, np.ndarray, tuple[float, float, float, float]]]:
    """(view, truth in the view, tight box) of random objects, each filling `FILL` of its view."""
    chosen = []
    images = sorted((data / "images").iterdir())
    random.Random(0).shuffle(images)
    for image in images:
        pixels = np.asarray(Image.open(image).convert("RGB"), np.uint8)
        labels = np.asarray(Image.open(data / "masks" / f"{image.stem}.png"))
        found = [label for label in np.unique(labels) if label and (labels == label).sum() >= MIN_AREA_PX]
        if not found:
            continue
        mask = (labels == random.Random(image.stem).choice(found)).astype(np.uint8)
        ys, xs = np.nonzero(mask)
        side = round(max(np.ptp(xs), np.ptp(ys)) / FILL)
        left, top = (int(xs.min() + xs.max()) - side) // 2, (int(ys.min() + ys.max()) - side) // 2
        view = cv2.resize(_cut(pixels, left, top, side, 255), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        truth = cv2.resize(_cut(mask, left, top, side, 0), (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
        ys, xs = np.nonzero(truth)
        box = (float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max()))
        chosen.append((view, truth.astype(bool), box))
        if len(chosen) == count:
            break
    return chosen


def _cut(image: np.ndarray, left: int, top: int, side: int, outside: int) -> np.ndarray:
    """The square at (left, top), with `outside` beyond the image."""
    border = side
    padded = cv2.copyMakeBorder(image, *[border] * 4, cv2.BORDER_CONSTANT, value=[outside] * 3)
    return padded[top + border : top + border + side, left + border : left + border + side]


def dice(mask: np.ndarray, truth: np.ndarray) -> float:
    return float(2 * (mask & truth).sum() / max(1, mask.sum() + truth.sum()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--objects", type=int, default=40)
    options = parser.parse_args()
    model = load_model("lite_medsam", adapters="none")
    scores: dict[str, list[float]] = {"float16": [], "int8": []}
    agreement = []
    for view, truth, box in objects(options.data, options.objects):
        (exact,) = model.encode([view])
        masks = {}
        for name, embedding in (
            ("float16", exact.halved()),
            ("int8", Int8Embedding.of(exact).restored()),
        ):
            request = DecodeRequest(model.prepare(embedding), None, Prompt(box=box), frozen=True)
            logits = upscale_logits(model.decode([request])[0].logits, model.config, (SIDE, SIDE))
            masks[name] = logits[0] > 0
            scores[name].append(dice(masks[name], truth))
        agreement.append(dice(masks["float16"], masks["int8"]))
    sizes = {"float16": len(exact.to_bytes()), "int8": len(Int8Embedding.of(exact).to_bytes())}
    report = {
        "objects": len(agreement),
        "mean_dice": {name: round(float(np.mean(values)), 5) for name, values in scores.items()},
        "lost_mean": round(float(np.mean(scores["float16"]) - np.mean(scores["int8"])), 5),
        "lost_worst": round(max(a - b for a, b in zip(scores["float16"], scores["int8"], strict=True)), 5),
        "dice_between_both": {"mean": round(float(np.mean(agreement)), 5), "worst": round(min(agreement), 5)},
        "bytes": sizes,
    }
    print(json.dumps(report, indent=1))
    (REPOSITORY / "bench" / "results" / "int8_store.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
