"""One answer after another against the ground truth."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from wsisam_model.evaluate.metrics import boundary_f, dice, iou
from wsisam_model.point_box import worth_a_wider_look
from wsisam_model.predictor import Decoded, DecodeRequest, DecoderView, Predictor
from wsisam_model.preprocessing import upscale_logits
from wsisam_model.prompts import Prompt
from wsisam_model.quality import stability
from wsisam_model.specks import without_specks
from wsisam_model.train import draws
from wsisam_model.train.cache import Embed
from wsisam_model.train.samples import Case, Mask, Pixels, Sample

FROZEN, HR, HR_LR, WRONG_LR = "frozen", "HR", "HR+LR", "HR+wrong LR"
VARIANTS = (FROZEN, HR, HR_LR)
MAX_CLICKS = 20
CLICK_TARGETS = (0.85, 0.90)
_KEPT_VIEWS = 16
"""Decoder-ready views kept; up to 20 MB each."""


@dataclass(frozen=True, slots=True)
class Score:
    """One answer. Dice, IoU and boundary F within the HR view; `fill` above 1 is an object that does not fit it."""

    object_id: str
    dataset: str
    group: str
    kind: str
    variant: str
    adapters: str
    """Those that drew the answer, "none" for the frozen SAM."""
    dice: float
    iou: float
    boundary_f: float
    predicted_iou: float
    area_um2: float
    fill: float
    cut: bool


@dataclass(frozen=True, slots=True)
class Clicks:
    """Dice after each click on one object, up to `MAX_CLICKS`; the last value holds on where a mask became right."""

    object_id: str
    dataset: str
    group: str
    variant: str
    dice: tuple[float, ...]

    def needed(self, target: float) -> int | None:
        """Clicks until Dice reached `target`, None if never."""
        return next((i + 1 for i, value in enumerate(self.dice) if value >= target), None)


class Answers:
    """A predictor with a few prepared views at hand."""

    def __init__(self, predictor: Predictor, embed: Embed) -> None:
        self.predictor, self._embed = predictor, embed
        self._views: OrderedDict[int, tuple[Pixels, DecoderView]] = OrderedDict()

    def decode(self, sample: Sample, prompt: Prompt, variant: str, *, wrong_lr: Pixels | None = None) -> Decoded:
        """The answer of one variant; `wrong_lr` takes the place of the LR view. As in the service, a set that does not
        use the LR view draws without it.
        """
        request = DecodeRequest(self._view(sample.hr), None, prompt, frozen=variant == FROZEN)
        drawn_by = self.predictor.adapters_of(request)
        if variant in (HR_LR, WRONG_LR) and drawn_by is not None and drawn_by.uses_lr:
            lr = sample.lr if variant == HR_LR else wrong_lr
            assert lr is not None
            request = replace(request, lr=self._view(lr), lr_sam=True)
        return self.predictor.decode([request])[0]

    def drawn_by(self, case: Case, variant: str) -> str:
        """Name of the adapters that answer `case`, "none" for the frozen SAM."""
        request = DecodeRequest(self._view(case.sample.hr), None, case.prompt, frozen=variant == FROZEN)
        adapters = self.predictor.adapters_of(request)
        return "none" if adapters is None else adapters.name

    def answer(self, case: Case, variant: str) -> tuple[Case, Decoded, Mask]:
        """What the service answers, and on which view: for clicks the wider one where that answer is more stable. The
        mask still has the specks that the service does not draw. Unlike the service this goes no further where that
        answer is cut as well, and stays on the view of a box whose mask is.
        """
        decoded = self.decode(case.sample, case.prompt, variant)
        mask = self.mask(decoded, case.sample)
        if case.wider is None or variant == FROZEN:
            return case, decoded, mask
        (first,) = stability(decoded.logits[:1])
        if worth_a_wider_look(first, _is_cut(mask, case)):
            second = self.decode(case.wider.sample, case.wider.prompt, variant)
            if stability(second.logits[:1])[0] > first:
                return case.wider, second, self.mask(second, case.wider.sample)
        return case, decoded, mask

    def mask(self, decoded: Decoded, sample: Sample) -> Mask:
        """The answer's mask in view pixels."""
        logits = upscale_logits(decoded.logits[:1], self.predictor.config, sample.mask.shape)
        return np.asarray(logits[0] > 0)

    def _view(self, pixels: Pixels) -> DecoderView:
        key = id(pixels)
        if key not in self._views:
            # The pixels are kept along with the view, so that their id is not given to others meanwhile.
            self._views[key] = (pixels, self.predictor.prepare(self._embed(pixels)))
            if len(self._views) > _KEPT_VIEWS:
                self._views.popitem(last=False)
        self._views.move_to_end(key)
        return self._views[key][1]


def _is_cut(mask: Mask, case: Case) -> bool:
    """Whether `mask`, as the service draws it, meets a border of the view of `case` with slide beyond."""
    drawn = without_specks(mask, case.prompt)
    borders = drawn[:, 0], drawn[0], drawn[:, -1], drawn[-1]
    return any(inner and bool(border.any()) for inner, border in zip(case.inner, borders, strict=True))


def score_cases(answers: Answers, cases: Iterable[Case], variants: Sequence[str] = VARIANTS) -> Iterator[Score]:
    """Scores of every case by every variant, on the same views; of clicks the frozen SAM has the first look only."""
    for case in cases:
        for variant in variants:
            asked, decoded, mask = answers.answer(case, variant)
            yield _score(asked, variant, answers.drawn_by(asked, variant), decoded, mask)


def score_wrong_lr(answers: Answers, cases: Sequence[Case]) -> Iterator[Score]:
    """HR+LR with another object's LR view in place of the right one, on the view of the right answer: what the LR view
    is really worth. Nothing where there is one object only.
    """
    for number, case in enumerate(cases):
        start = number + len(cases) // 2
        others = (cases[(start + step) % len(cases)] for step in range(len(cases)))
        other = next((one for one in others if one.sample.object_id != case.sample.object_id), None)
        if other is None:
            return
        asked, _, _ = answers.answer(case, HR_LR)
        decoded = answers.decode(asked.sample, asked.prompt, WRONG_LR, wrong_lr=other.sample.lr)
        yield _score(asked, WRONG_LR, answers.drawn_by(asked, WRONG_LR), decoded, answers.mask(decoded, asked.sample))


def score_clicks(answers: Answers, cases: Iterable[Case], variants: Sequence[str] = VARIANTS) -> Iterator[Clicks]:
    """A user who clicks where the answer is most wrong, from the object's middle on, on the views of one-click `cases`.
    As `refine` does, each click adds to the earlier ones on the view of the first answer, with SAM's logits of the last
    answer.
    """
    for case in cases:
        for variant in variants:
            values = tuple(_click_through(answers, _in_the_middle(case), variant))
            full = values + (values[-1],) * (MAX_CLICKS - len(values))
            yield Clicks(case.sample.object_id, case.sample.dataset, case.sample.group, variant, full)


def _in_the_middle(case: Case) -> Case:
    """`case` with its click in the middle of the object, on the wider view too."""
    mask = case.sample.mask
    click = draws.next_click(mask, np.zeros_like(mask))
    assert click is not None, "a case shows its object"
    (x, y), label = click
    asked = replace(case, prompt=Prompt(points=((x, y),), labels=(label,)))
    if case.wider is None:
        return asked
    centre = (len(mask) - 1) / 2
    wide = Prompt(points=((centre + (x - centre) / 2, centre + (y - centre) / 2),), labels=(label,), wider=True)
    return replace(asked, wider=replace(case.wider, prompt=wide))


def _click_through(answers: Answers, case: Case, variant: str) -> Iterator[float]:
    asked, decoded, answer = answers.answer(case, variant)
    sample, prompt = asked.sample, replace(asked.prompt, wider=False)
    yield dice(answer, sample.mask)
    for _ in range(MAX_CLICKS - 1):
        click = draws.next_click(sample.mask, answer)
        if click is None:
            return
        place, label = click
        prompt = replace(prompt, points=(*prompt.points, place), labels=(*prompt.labels, label))
        prompt = replace(prompt, mask_hr=decoded.sam_logits_hr, mask_lr=decoded.sam_logits_lr)
        decoded = answers.decode(sample, prompt, variant)
        answer = answers.mask(decoded, sample)
        yield dice(answer, sample.mask)


def _score(case: Case, variant: str, adapters: str, decoded: Decoded, mask: Mask) -> Score:
    sample = case.sample
    return Score(
        object_id=sample.object_id,
        dataset=sample.dataset,
        group=sample.group,
        kind=case.kind,
        variant=variant,
        adapters=adapters,
        dice=dice(mask, sample.mask),
        iou=iou(mask, sample.mask),
        boundary_f=boundary_f(mask, sample.mask),
        predicted_iou=float(decoded.predicted_iou[0]),
        area_um2=sample.area_um2,
        fill=sample.fill,
        cut=sample.cut,
    )
