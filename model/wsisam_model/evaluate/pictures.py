"""Pictures of an evaluation and of a training: contact sheet, click curves, calibration, loss curve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from wsisam_model.evaluate.scores import Answers, Clicks, Score
from wsisam_model.train.samples import Case, Mask, Pixels
from wsisam_model.train.trainer import StepLog

mpl.use("Agg")

TRUTH_COLOUR, ANSWER_COLOUR = (0, 160, 0), (220, 0, 0)
POSITIVE_COLOUR, NEGATIVE_COLOUR, BOX_COLOUR = (0, 90, 255), (255, 140, 0), (0, 0, 0)
_ENLARGED = 2
_SMOOTHED = 50


def contact_sheet(path: Path, answers: Answers, cases: Sequence[Case], scores: Sequence[Score], variant: str) -> None:
    """Best, median and worst cases of each prompt kind, a row a kind: truth green, answer red, prompt in blue, orange
    (negative) and black.
    """
    by_case = {(case.sample.object_id, case.kind): case for case in cases}
    rows = []
    for kind in dict.fromkeys(case.kind for case in cases):
        chosen = sorted((s for s in scores if s.kind == kind and s.variant == variant), key=lambda s: s.dice)
        count = len(chosen)
        if count < 3:
            continue
        middle = count // 2
        picked = [*chosen[-1:-3:-1], *chosen[middle - 1 : middle + 1], *reversed(chosen[:2])]
        tiles = []
        for score in picked:
            case, _, mask = answers.answer(by_case[score.object_id, kind], variant)
            tiles.append(_tile(case, mask, f"{kind} {score.dice:.2f} {score.dataset}"))
        rows.append(np.concatenate(tiles, axis=1))
    if rows:
        cv2.imwrite(str(path), cv2.cvtColor(np.concatenate(rows), cv2.COLOR_RGB2BGR))


def click_curves(path: Path, clicks: Sequence[Clicks]) -> None:
    """Mean Dice after each click, a line a variant."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for variant in dict.fromkeys(item.variant for item in clicks):
        means = np.mean([item.dice for item in clicks if item.variant == variant], axis=0)
        axes.plot(np.arange(1, len(means) + 1), means, marker=".", label=variant)
    axes.set(xlabel="clicks", ylabel="mean Dice", ylim=(0, 1))
    axes.legend()
    figure.savefig(path, dpi=110)


def calibration_plot(path: Path, scores: Sequence[Score], variant: str) -> None:
    """Predicted against true IoU of every answer of `variant`, a colour a prompt kind."""
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot((0, 1), (0, 1), color="grey", linewidth=1)
    chosen = [score for score in scores if score.variant == variant]
    for kind in dict.fromkeys(score.kind for score in chosen):
        inside = [score for score in chosen if score.kind == kind]
        axes.scatter([s.predicted_iou for s in inside], [s.iou for s in inside], s=9, alpha=0.6, label=kind)
    axes.set(xlabel="predicted IoU", ylabel="IoU with the ground truth", xlim=(0, 1), ylim=(0, 1))
    axes.legend()
    figure.savefig(path, dpi=110)


def loss_curve(path: Path, log: Sequence[StepLog]) -> None:
    """Running means of the losses over the steps."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name in ("box_loss", "point_loss"):
        values = np.array([getattr(row, name) for row in log])
        steps = np.array([row.step for row in log])[np.isfinite(values)]
        values = values[np.isfinite(values)]
        width = max(1, min(_SMOOTHED, len(values)))
        if len(values):
            axes.plot(steps[width - 1 :], np.convolve(values, np.ones(width) / width, "valid"), label=name)
    axes.set(xlabel="step", ylabel=f"loss, mean of {_SMOOTHED} steps")
    axes.legend()
    figure.savefig(path, dpi=110)


def _tile(case: Case, answer: Mask, title: str) -> Pixels:
    size = tuple(_ENLARGED * side for side in case.sample.mask.shape)
    image = cv2.resize(case.sample.hr, size[::-1], interpolation=cv2.INTER_CUBIC)
    for mask, colour in ((case.sample.mask, TRUTH_COLOUR), (answer, ANSWER_COLOUR)):
        large = cv2.resize(mask.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST)
        contours, _ = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(image, contours, -1, colour, 2)
    prompt = case.prompt
    if prompt.box is not None:
        x0, y0, x1, y1 = (round(_ENLARGED * (value + 0.5)) for value in prompt.box)
        cv2.rectangle(image, (x0, y0), (x1, y1), BOX_COLOUR, 1)
    for (x, y), label in zip(prompt.points, prompt.labels, strict=True):
        colour = POSITIVE_COLOUR if label else NEGATIVE_COLOUR
        cv2.circle(image, (round(_ENLARGED * (x + 0.5)), round(_ENLARGED * (y + 0.5))), 5, colour, -1)
    cv2.putText(image, title, (6, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 3)
    cv2.putText(image, title, (6, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1)
    return np.asarray(image, np.uint8)
