"""Scores against values computed by hand, intervals, calibration, the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from wsisam_model.config import model_config
from wsisam_model.decoder_batch import Decoded, DecodeRequest
from wsisam_model.embedding import Embedding
from wsisam_model.errors import CheckpointError
from wsisam_model.evaluate.intervals import bootstrap, spearman
from wsisam_model.evaluate.metrics import boundary_f, dice, iou
from wsisam_model.evaluate.report import Results, write_report
from wsisam_model.evaluate.scores import (
    FROZEN,
    HR,
    HR_LR,
    MAX_CLICKS,
    WRONG_LR,
    Answers,
    Clicks,
    Score,
    score_cases,
    score_clicks,
    score_wrong_lr,
)
from wsisam_model.predictor import AdapterInfo, Predictor
from wsisam_model.prompts import Prompt
from wsisam_model.quality import CLICKS, GIVEN, LONE, asked_as, fused_iou, mask_numbers
from wsisam_model.train.calibration import fit_calibration
from wsisam_model.train.samples import Case, Sample


def square(x0: int, x1: int, y0: int = 10, y1: int = 30) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    mask = np.zeros((64, 64), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_dice_and_iou_of_overlapping_squares() -> None:
    a, b = square(10, 30), square(20, 40)
    assert dice(a, b) == pytest.approx(0.5)
    assert iou(a, b) == pytest.approx(1 / 3)
    empty = np.zeros_like(a)
    assert dice(empty, empty) == iou(empty, empty) == 1.0
    assert dice(a, empty) == iou(a, empty) == 0.0


def test_the_boundary_score_forgives_two_pixels_and_no_more() -> None:
    truth = square(10, 30)
    assert boundary_f(square(12, 32), truth) == pytest.approx(1.0)
    assert boundary_f(square(20, 40, 40, 60), truth) == 0.0
    # Moved by 5: of the 76 border pixels, the stretches of upper and lower edge that both have and their ends remain.
    assert 0.3 < boundary_f(square(15, 35), truth) < 0.75
    assert boundary_f(np.zeros_like(truth), truth) == 0.0


@pytest.mark.parametrize(("x", "y", "near"), [(2, 0, True), (1, 1, True), (2, 1, False), (1, 2, False), (2, 2, False)])
def test_two_pixels_are_two_pixels_in_every_direction(x: int, y: int, near: bool) -> None:
    here, there = np.zeros((2, 16, 16), bool)
    here[5, 5] = there[5 + y, 5 + x] = True
    assert boundary_f(here, there) == near


def test_a_border_that_the_view_cuts_is_no_border() -> None:
    assert boundary_f(square(0, 30, 0, 30), square(0, 30, 0, 30)) == 1.0
    assert boundary_f(np.ones((64, 64), bool), np.ones((64, 64), bool)) == 1.0
    assert boundary_f(np.zeros((64, 64), bool), np.ones((64, 64), bool)) == 0.0


def test_patients_make_wider_intervals_than_objects() -> None:
    values = [0.5] * 20 + [0.9] * 20 + [0.7] * 20
    patients = ["a"] * 20 + ["b"] * 20 + ["c"] * 20
    by_object, by_patient = bootstrap(values), bootstrap(values, patients)
    assert by_object.mean == by_patient.mean == pytest.approx(0.7)
    assert by_object.low < 0.7 < by_object.high
    assert (by_patient.low, by_patient.high) == (pytest.approx(0.5), pytest.approx(0.9))
    assert by_object.high - by_object.low < 0.15


def test_one_patient_alone_has_no_interval() -> None:
    told = bootstrap([0.2, 0.9, 0.5], ["a"] * 3)
    assert told.mean == pytest.approx(1.6 / 3)
    assert np.isnan([told.low, told.high]).all()


def test_spearman_ranks_and_shares_ties() -> None:
    assert spearman([1, 2, 3, 10], [0.1, 0.4, 0.5, 0.6]) == pytest.approx(1.0)
    assert spearman([1, 2, 2, 3], [1, 3, 2, 4]) == pytest.approx(0.9487, abs=1e-4)
    assert np.isnan(spearman([1, 1, 1], [1, 2, 3]))


ONE = Prompt(points=((3.0, 4.0),), labels=(1,))
PROMPTS = {
    "a box": Prompt(box=(1.0, 2.0, 30.0, 40.0)),
    "one click": ONE,
    "three clicks": Prompt(points=((3.0, 4.0), (9.0, 9.0), (5.0, 8.0)), labels=(1, 1, 1)),
    "ten clicks": Prompt(points=((3.0, 4.0),) * 10, labels=(1,) * 10),
}


def test_each_kind_of_prompt_has_a_calibration_of_its_own() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1, (240, 64, 64)).astype(np.float32) * rng.uniform(0.2, 4, (240, 1, 1)).astype(np.float32)
    asked = [list(PROMPTS.values())[row % 4] for row in range(240)]
    kinds = [asked_as(prompt) for prompt in asked]
    base = {GIVEN: 0.3, LONE: 0.1, CLICKS: 0.25}
    stable = mask_numbers(logits)
    truth = np.array([base[kind] + 0.6 * row[0] - 0.3 * n for row, (kind, n) in zip(stable, kinds, strict=True)])
    numbers = np.column_stack((stable, [n for _, n in kinds]))
    fitted = fit_calibration(numbers, [kind for kind, _ in kinds], truth)
    tensors = {name: tensor.numpy() for name, tensor in fitted.items()}
    told = [fused_iou(mask[None], prompt, tensors)[0] for mask, prompt in zip(logits, asked, strict=True)]
    np.testing.assert_allclose(told, truth.clip(0.03, 0.97), atol=0.05)
    assert ((fused_iou(logits * 50, ONE, tensors) >= 0) & (fused_iou(logits * 50, ONE, tensors) <= 1)).all()


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (PROMPTS["a box"], (GIVEN, 0)),
        (replace(ONE, box=(1.0, 2.0, 30.0, 40.0)), (GIVEN, 0)),
        (Prompt(mask_hr=np.zeros((256, 256), np.float32)), (GIVEN, 0)),
        (ONE, (LONE, 1)),
        (Prompt(points=((3.0, 4.0), (9.0, 9.0)), labels=(1, 0)), (LONE, 0.5)),
        (replace(ONE, mask_hr=np.zeros((256, 256), np.float32)), (CLICKS, 1)),
        (PROMPTS["ten clicks"], (CLICKS, 0.1)),
    ],
    ids=["box", "box and click", "mask", "one click", "one on it, one beside", "a correction", "ten"],
)
def test_what_is_said_decides_which_calibration_counts(prompt: Prompt, expected: tuple[int, float]) -> None:
    assert asked_as(prompt) == expected


def test_a_mask_without_a_pixel_has_numbers_too_and_is_not_expected_to_be_right() -> None:
    empty = np.full((1, 64, 64), -5, np.float32)
    assert np.isfinite(mask_numbers(empty)).all()
    sure = {"weight": np.zeros((3, 9), np.float32), "bias": np.full(3, 3, np.float32)}
    assert fused_iou(empty, ONE, sure) == 0
    assert fused_iou(-empty, ONE, sure) == pytest.approx(1 / (1 + np.exp(-3)))


def test_no_calibration_overflows() -> None:
    logits = np.full((1, 64, 64), 5, np.float32)
    for bias in (-1e4, 1e4):
        told = fused_iou(logits, ONE, {"weight": np.zeros((3, 9), np.float32), "bias": np.full(3, bias, np.float32)})
        assert told == (bias > 0)


def test_a_calibration_of_another_shape_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"iou\.weight"):
        fused_iou(np.zeros((1, 8, 8), np.float32), ONE, {"weight": np.zeros(8, np.float32), "bias": np.zeros(1)})


def test_the_report_pairs_variants_by_object(tmp_path: Path) -> None:
    def score(name: str, variant: str, value: float) -> Score:
        drawn_by = "none" if variant == FROZEN else {"a1": "mine", "b1": "kidney"}[name]
        values = (value, value, value, value)
        return Score(name, "glas", name[0], "tight", variant, drawn_by, *values, 5000.0, 0.4, cut=False)

    scores = [score("a1", FROZEN, 0.5), score("a1", HR, 0.6), score("b1", FROZEN, 0.9), score("b1", HR, 0.8)]
    clicks = [Clicks("a1", "glas", "a", HR, (0.5, 0.86, 0.91) + (0.91,) * 17)]
    rejected = [("glas/x", "it is black all over")]
    own, leaks = ["kidney", "liver"], {"kidney": ["glas/a", "glas/b"]}
    write_report(Results("lite_medsam", "mine", scores, clicks, rejected, own_adapters=own, leaks=leaks), tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "**Not held out**: kidney was trained on glas/a, glas/b, as its file says." in text
    assert "on the same views" not in text, "clicks may be answered on a wider one"
    assert "| tight | +0.000 [-0.100 to +0.100; -0.100 to +0.100] |" in text
    assert "| HR | 0.500 | 0.860 | 0.910 | 0.910 | 0.910 | 0.910 | 2.0 (0%) | 3.0 (0%) |" in text
    assert (
        "| set | answers | mine | kidney | liver |\n|---|---|---|---|---|\n| glas | 2 | 50.0% | 50.0% | 0.0% |" in text
    )
    assert "glas/x: it is black all over" in text
    told = json.loads((tmp_path / "scores.json").read_text())
    assert told["scores"][1]["dice"] == 0.6
    assert told["leaks"] == leaks
    write_report(Results("lite_medsam", "mine", [*scores[:2], replace(scores[1], object_id="a2")]), tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "| tight | 0.500 [one object; one patient] | 0.600 [0.600 to 0.600; one patient] |" in text


def disc_logits(x: float, y: float, radius: float, height: float) -> np.ndarray[tuple[int, int, int], Any]:
    """A disc in logits of +-`height`: above 1 it is as stable as can be, below 1 not at all."""
    rows, columns = np.mgrid[:256, :256]
    inside = np.hypot(columns - x, rows - y) <= radius
    return np.where(inside, height, -height).astype(np.float32)[None]


@dataclass
class TwoLooks:
    """A predictor with one answer for the first look at a click and one for the wider; `prompts` is what it heard."""

    first: np.ndarray[Any, Any]
    second: np.ndarray[Any, Any]
    prompts: list[Prompt] = field(default_factory=list)
    config = model_config("lite_medsam")

    def prepare(self, embedding: object) -> object:
        return embedding

    def adapters_of(self, request: DecodeRequest) -> None:
        return None

    def decode(self, requests: Sequence[DecodeRequest]) -> list[Decoded]:
        (request,) = requests
        self.prompts.append(request.prompt)
        logits = self.second if request.prompt.wider else self.first
        return [Decoded(logits, np.array([0.5], np.float32), logits[0], None, None)]


def click_case(radius: int = 100) -> Case:
    """One click on a disc at (150, 120), on a view and on the one twice as wide around the same centre."""
    pixels = np.zeros((256, 256, 3), np.uint8)
    near, wide = (disc_logits(*place, 1)[0] > 0 for place in ((150, 120, radius), (138.75, 123.75, radius / 2)))
    sample = Sample("o", "set", "1", pixels, pixels, near, near, 1.0, 1e4, 0.5, cut=False)
    second = replace(sample, hr=pixels.copy(), mask=wide, mpp=2.0)
    prompts = (
        Prompt(points=((150.0, 120.0),), labels=(1,)),
        Prompt(points=((138.75, 123.75),), labels=(1,), wider=True),
    )
    return Case(sample, "points1", prompts[0], Case(second, "points1", prompts[1]))


@pytest.mark.parametrize(
    ("first", "second", "looks", "mpp"),
    [
        (disc_logits(150, 120, 60, 0.5), disc_logits(139, 124, 50, 5), 2, 2.0),
        (disc_logits(150, 120, 140, 5), disc_logits(139, 124, 50, 0.5), 2, 1.0),
        (disc_logits(150, 120, 60, 5), disc_logits(139, 124, 50, 5), 1, 1.0),
    ],
    ids=["unsure", "cut, but surer than the second", "sure"],
)
def test_one_click_is_scored_on_the_view_of_the_answer_that_the_service_gives(
    first: np.ndarray[Any, Any], second: np.ndarray[Any, Any], looks: int, mpp: float
) -> None:
    predictor = TwoLooks(first, second)
    answers = Answers(cast("Predictor", predictor), lambda view: cast("Embedding", view))
    asked, decoded, mask = answers.answer(click_case(), HR)
    assert len(predictor.prompts) == looks
    assert asked.sample.mpp == mpp
    assert (mask == (decoded.logits[0] > 0)).all()
    case, _, _ = answers.answer(click_case(), FROZEN)
    assert case.sample.mpp == 1.0


def with_speck(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    logits[0, 0, 40:43] = 5
    return logits


@pytest.mark.parametrize(
    ("first", "inner", "looks"),
    [
        (disc_logits(150, 60, 70, 5), (False, True, False, False), 2),
        (disc_logits(150, 60, 70, 5), (True, False, True, True), 1),
        (with_speck(disc_logits(150, 120, 60, 5)), (True, True, True, True), 1),
    ],
    ids=["goes on above", "ends with the slide", "a speck at the border"],
)
def test_an_answer_is_cut_where_what_the_service_draws_goes_on(
    first: np.ndarray[Any, Any], inner: tuple[bool, bool, bool, bool], looks: int
) -> None:
    predictor = TwoLooks(first, disc_logits(139, 124, 50, 5))
    answers = Answers(cast("Predictor", predictor), lambda view: cast("Embedding", view))
    answers.answer(replace(click_case(), inner=inner), HR)
    assert len(predictor.prompts) == looks


def test_clicking_goes_on_where_the_first_answer_lies() -> None:
    predictor = TwoLooks(disc_logits(150, 120, 60, 0.5), disc_logits(139, 124, 20, 5))
    answers = Answers(cast("Predictor", predictor), lambda view: cast("Embedding", view))
    (clicks,) = score_clicks(answers, [click_case()], [HR])
    first, second, third, *_ = predictor.prompts
    assert first.points == ((150.0, 120.0),)
    assert second.points == ((138.75, 123.75),), "the middle of the object, on the wider view"
    assert third.points[0] == second.points[0]
    assert third.labels == (1, 1), "the second look missed a ring around it"
    assert not third.wider
    assert len(clicks.dice) == MAX_CLICKS


class KnowsItsContext(TwoLooks):
    """A predictor that is right where both views are of one object (all their pixels have its number). Of its sets of
    adapters one does not use the LR view: it draws on views of object 9.
    """

    def adapters_of(self, request: DecodeRequest) -> AdapterInfo:
        uses_lr = cast("np.ndarray[Any, Any]", request.hr)[0, 0, 0] != 9
        return AdapterInfo("own", "", "", {}, uses_lr=bool(uses_lr), prompts=(), knows_tissue=True)

    def decode(self, requests: Sequence[DecodeRequest]) -> list[Decoded]:
        (request,) = requests
        hr, lr = (None if view is None else cast("Any", view)[0, 0, 0] for view in (request.hr, request.lr))
        logits = self.first if lr in (hr, None) else -self.first
        return [Decoded(logits, np.array([0.5], np.float32), logits[0], None, None)]


@pytest.mark.parametrize("count", [2, 3])
def test_a_wrong_lr_view_is_that_of_another_object(count: int) -> None:
    disc = disc_logits(150, 120, 60, 5)
    views = [np.full((256, 256, 3), number, np.uint8) for number in range(count)]
    samples = [
        Sample(str(number), "set", "1", view, view, disc[0] > 0, disc[0] > 0, 1.0, 1e4, 0.5, cut=False)
        for number, view in enumerate(views)
    ]
    cases = [Case(sample, "tight", Prompt(box=(90.0, 60.0, 210.0, 180.0))) for sample in samples]
    answers = Answers(cast("Predictor", KnowsItsContext(disc, disc)), lambda view: cast("Embedding", view))
    right, wrong = list(score_cases(answers, cases, [HR_LR])), list(score_wrong_lr(answers, cases))
    assert [score.dice for score in right] == [1.0] * count
    assert [(score.object_id, score.variant, score.dice) for score in wrong] == [
        (sample.object_id, WRONG_LR, 0.0) for sample in samples
    ]


def test_an_objects_own_lr_view_is_never_the_wrong_one() -> None:
    disc = disc_logits(150, 120, 60, 5)
    answers = Answers(cast("Predictor", KnowsItsContext(disc, disc)), lambda view: cast("Embedding", view))
    views = [np.full((256, 256, 3), number, np.uint8) for number in range(2)]
    first, second = (
        Sample(str(number), "set", "1", view, view, disc[0] > 0, disc[0] > 0, 1.0, 1e4, 0.5, cut=False)
        for number, view in enumerate(views)
    )
    box = Prompt(box=(90.0, 60.0, 210.0, 180.0))
    three = [Case(sample, kind, box) for sample, kind in ((first, "tight"), (second, "tight"), (first, "box20"))]
    assert [score.dice for score in score_wrong_lr(answers, three)] == [0.0] * 3
    assert not list(score_wrong_lr(answers, [three[0], three[2]])), "there is no other object"


@pytest.mark.parametrize(("number", "dice_of_wrong"), [(1, 0.0), (9, 1.0)], ids=["uses it", "does not"])
def test_the_set_that_draws_decides_whether_the_lr_view_counts(number: int, dice_of_wrong: float) -> None:
    disc = disc_logits(150, 120, 60, 5)
    right, wrong = (np.full((256, 256, 3), value, np.uint8) for value in (number, 2))
    sample = Sample("o", "set", "1", right, wrong, disc[0] > 0, disc[0] > 0, 1.0, 1e4, 0.5, cut=False)
    answers = Answers(cast("Predictor", KnowsItsContext(disc, disc)), lambda view: cast("Embedding", view))
    (score,) = score_cases(answers, [Case(sample, "tight", Prompt(box=(90.0, 60.0, 210.0, 180.0)))], [HR_LR])
    assert score.dice == dice_of_wrong


def test_clicks_needed() -> None:
    clicks = Clicks("a", "set", "p", HR, (0.2, 0.86, 0.84) + (0.84,) * 17)
    assert clicks.needed(0.85) == 2
    assert clicks.needed(0.9) is None
