"""The segmenter on a stand-in network: answers in order, retries, frames, corrections, failures apart."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import shapely
from shapely.geometry import shape
from stand_ins import NumpyExecutor

from wsisam_model.config import MODELS
from wsisam_service.errors import (
    InvalidBox,
    InvalidRequest,
    NoPositivePoint,
    Overloaded,
    RefineExpired,
    ServiceError,
    TooManyPrompts,
    UnknownModel,
    UnreadableSlide,
    WorkerUnavailable,
)
from wsisam_service.jobs import DecodedMask, DecodeJob, DecodeResult, PixelSource, Timings
from wsisam_service.masks import geojson, rle
from wsisam_service.segmenting import slide_views
from wsisam_service.segmenting.answers import EveryPromptFailed, PromptAnswer, PromptProblem, SegmentAnswer
from wsisam_service.segmenting.offers import model_offer
from wsisam_service.segmenting.prompts import MaskSpec, PromptSpec
from wsisam_service.segmenting.segmenter import MAX_MASK_CHARACTERS, Segmenter, SegmentRequest
from wsisam_service.settings import Settings
from wsisam_service.slides.reader import Level, RgbImage, SlideInfo, SlideReader
from wsisam_service.slides.slide import Slide
from wsisam_service.views import View

MPP = 0.5
BOX = PromptSpec(id="box", box=(2000, 2000, 2100, 2120))


class _GreySlide(SlideReader):
    def __init__(self, info: SlideInfo, broken: bool) -> None:
        self.info = info
        self._broken = broken

    def read_region(self, level: int, x: int, y: int, width: int, height: int) -> RgbImage:
        if self._broken:
            raise UnreadableSlide("a broken tile")
        return np.full((height, width, 3), 128, np.uint8)


def slide(
    *, mpp: float | None = MPP, bounds: tuple[int, int, int, int] | None = None, broken: bool = False, name: str = "s"
) -> Slide:
    info = SlideInfo((Level(8192, 8192),), mpp=mpp, bounds=bounds)
    return Slide(name, name, name * 64, info, lambda: _GreySlide(info, broken))


@dataclass
class DiscExecutor(NumpyExecutor):
    """Outlines one disc that lies on the slide, whatever the prompt; `calls` are the jobs of each decode."""

    disc: tuple[float, float, float] = (2048, 2048, 50)
    calls: list[list[DecodeJob]] = field(default_factory=list)

    async def decode(
        self, jobs: Sequence[DecodeJob], pixels: PixelSource, timings: Timings
    ) -> list[DecodeResult | Exception]:
        self.calls.append(list(jobs))
        return await super().decode(jobs, pixels, timings)

    async def _decode(self, job: DecodeJob, pixels: PixelSource) -> DecodeResult:
        result = await super()._decode(job, pixels)
        view = View(256, *(int(part) for part in job.hr.split(":")[-3:]), MPP)
        steps = np.arange(256) + 0.5
        x0, y0 = view.origin_level0
        x, y, radius = self.disc
        mask = np.hypot(x0 + steps[None] * view.scale - x, y0 + steps[:, None] * view.scale - y) <= radius
        touches = bool(mask[:, 0].any()), bool(mask[0].any()), bool(mask[:, -1].any()), bool(mask[-1].any())
        return replace(result, masks=[DecodedMask(rle.encode(mask), 0.9)] * len(result.masks), touches=touches)


async def segment(
    executor: NumpyExecutor, request: SegmentRequest, on: Slide | None = None, **settings: Any
) -> SegmentAnswer:
    return await Segmenter(executor, Settings(**settings)).segment(on or slide(), request, Timings())


async def answer_of(executor: NumpyExecutor, request: SegmentRequest, on: Slide | None = None) -> PromptAnswer:
    (result,) = (await segment(executor, request, on)).results
    assert isinstance(result, PromptAnswer)
    return result


async def test_a_box_gives_an_outline_around_its_object() -> None:
    executor = NumpyExecutor()
    request = SegmentRequest([replace(BOX, classification="Gland")], format="both", request_id="r1")
    whole = await segment(executor, request)
    (result,) = whole.results
    assert isinstance(result, PromptAnswer)
    assert whole.model == "lite_medsam"
    assert whole.adapters is not None
    assert whole.adapters.name == "numpy"
    assert result.id == "box"
    assert result.geojson is not None
    outline = shape(result.geojson["geometry"])
    np.testing.assert_allclose(outline.bounds, BOX.box, atol=2)
    np.testing.assert_allclose(result.bbox, BOX.box, atol=2)
    np.testing.assert_allclose(result.area_um2, np.pi * 50 * 60 * MPP**2, rtol=0.02)
    np.testing.assert_allclose(outline.area * MPP**2, result.area_um2, rtol=0.01)
    assert not result.touches_edge
    assert result.cache.hr == result.cache.lr == "encoded"
    properties = result.geojson["properties"]
    assert properties["classification"] == "Gland"
    assert properties["measurements"] == {"Area µm²": result.area_um2, "Predicted IoU": 0.9}
    assert properties["metadata"] == {
        "model": "lite_medsam",
        "adapters": "numpy",
        "prompt": "box",
        "mpp": "0.5",
        "request": "r1",
    }


async def test_mask_and_view_agree_with_the_outline() -> None:
    result = await answer_of(NumpyExecutor(), SegmentRequest([BOX], format="both", simplify=0))
    mask, view = rle.decode(result.mask), result.view
    rows, columns = np.nonzero(mask)
    scale = view.width / view.size[0]
    assert result.geojson is not None
    outline = shape(result.geojson["geometry"])
    centres = shapely.points(view.x + (columns + 0.5) * scale, view.y + (rows + 0.5) * scale)
    assert shapely.contains(outline, centres).all()
    np.testing.assert_allclose(outline.area, mask.sum() * scale**2, rtol=1e-6)
    np.testing.assert_allclose(result.bbox, outline.bounds)


async def test_bounds_and_micrometres_come_back_in_pixels_of_the_bounds() -> None:
    on = slide(bounds=(1000, 500, 6000, 6000))
    plain = await answer_of(NumpyExecutor(), SegmentRequest([BOX], format="both"), on)
    micrometres = PromptSpec(box=(500, 750, 550, 810))
    shifted = await answer_of(
        NumpyExecutor(), SegmentRequest([micrometres], units="um", frame="bounds", format="both"), on
    )
    assert shifted.view == plain.view
    assert shifted.mask == plain.mask
    assert plain.bbox is not None
    np.testing.assert_allclose(shifted.bbox, np.subtract(plain.bbox, (1000, 500, 1000, 500)))


async def test_an_object_that_does_not_fit_is_decoded_coarser_in_one_call_a_round() -> None:
    executor = DiscExecutor(disc=(2048, 2048, 150))
    small = PromptSpec(box=(2030, 2030, 2070, 2070))
    whole = await segment(executor, SegmentRequest([small, replace(small, id="again")]))
    for result in whole.results:
        assert isinstance(result, PromptAnswer)
        assert not result.touches_edge
        assert result.view.mpp == 1.0
        np.testing.assert_allclose(result.area_um2, np.pi * 150**2 * MPP**2, rtol=0.02)
    assert [len(call) for call in executor.calls] == [2, 2, 2]
    assert not any(job.prompt.wider for call in executor.calls for job in call), "a box says how large its object is"
    first, second = executor.calls[0][0], executor.calls[1][0]
    assert second.hr == first.lr


@dataclass
class GuessingExecutor(NumpyExecutor):
    """Knows how stable the masks of each look at a click are; `asked` are the jobs of each round."""

    stabilities: tuple[float | Exception, ...] = (0.5, 0.9)
    prompts: tuple[str, ...] = ("points",)
    asked: list[DecodeJob] = field(default_factory=list)

    async def info(self) -> Mapping[str, Any]:
        (model,) = (await super().info())["models"]
        return {"models": [model | {"adapters": model["adapters"] | {"trained_prompts": self.prompts}}]}

    async def decode(
        self, jobs: Sequence[DecodeJob], pixels: PixelSource, timings: Timings
    ) -> list[DecodeResult | Exception]:
        coming = self.stabilities[len(self.asked)]
        if isinstance(coming, Overloaded | WorkerUnavailable):
            raise coming  # a failure of the whole call
        return await super().decode(jobs, pixels, timings)

    async def _decode(self, job: DecodeJob, pixels: PixelSource) -> DecodeResult:
        stability = self.stabilities[len(self.asked)]
        self.asked.append(job)
        result = await super()._decode(job, pixels)
        if isinstance(stability, Exception):
            raise stability
        told = None if job.stability_offset is None else stability
        return replace(result, masks=[replace(mask, stability=told) for mask in result.masks])


CLICK = PromptSpec(points=((2048, 2048, 1),))
SPREAD_CLICKS = PromptSpec(points=((2048, 2048, 1), (2148, 2048, 1), (2048, 2168, 1), (1950, 2048, 0)))
"""Three clicks over 120 of 256 µm: the box that they stand for is as wide as a view of 1 µm a pixel."""


@pytest.mark.parametrize("spec", [CLICK, SPREAD_CLICKS], ids=["one", "three"])
@pytest.mark.parametrize(
    ("stabilities", "looks", "mpp"),
    [
        ((0.5, 0.9), 2, 2.0),
        ((0.5, 0.6), 2, 2.0),
        ((0.5, 0.5), 2, 1.0),
        ((0.5, 0.4), 2, 1.0),
        ((0.5, UnreadableSlide("away")), 2, 1.0),
        ((0.95,), 1, 1.0),
    ],
)
async def test_clicks_have_a_second_look_where_they_are_unsure_and_the_more_stable_answer_stays(
    spec: PromptSpec, stabilities: tuple[float | Exception, ...], looks: int, mpp: float
) -> None:
    executor = GuessingExecutor(stabilities=stabilities)
    result = await answer_of(executor, SegmentRequest([spec]))
    assert result.view.mpp == mpp
    assert [job.prompt.wider for job in executor.asked] == [False, True][:looks]
    first, *second = executor.asked
    assert all(job.hr == first.lr for job in second)


@pytest.mark.parametrize("failure", [Overloaded("busy"), WorkerUnavailable("gone")])
async def test_where_a_second_look_fails_the_first_answer_is_given(failure: ServiceError) -> None:
    result = await answer_of(GuessingExecutor(stabilities=(0.5, failure)), SegmentRequest([CLICK]))
    assert result.view.mpp == 1.0
    with pytest.raises(type(failure)):
        await answer_of(GuessingExecutor(stabilities=(failure,)), SegmentRequest([CLICK]))


async def test_adapters_that_take_clicks_as_clicks_have_no_second_look() -> None:
    executor = GuessingExecutor(stabilities=(0.5,), prompts=())
    await answer_of(executor, SegmentRequest([CLICK]))
    assert len(executor.asked) == 1


@pytest.mark.parametrize(
    "request_",
    [
        SegmentRequest([CLICK], mpp=1.0),
        SegmentRequest([CLICK], adapters="none"),
        SegmentRequest([PromptSpec(points=((2048, 2048, 1), (2060, 2048, 1)))]),
        SegmentRequest([BOX]),
    ],
    ids=["the scale is named", "the frozen SAM", "two clicks close by", "a box"],
)
async def test_nothing_else_has_a_second_look(request_: SegmentRequest) -> None:
    executor = GuessingExecutor(stabilities=(0.5,))
    await answer_of(executor, request_)
    assert len(executor.asked) == 1


async def test_a_view_nearly_all_of_which_lies_outside_gets_no_second_look() -> None:
    info = SlideInfo((Level(60, 60),), mpp=MPP)  # 30 µm, of the 512 of a second look
    stamp = Slide("s", "s", "s" * 64, info, lambda: _GreySlide(info, False))
    executor = GuessingExecutor(stabilities=(0.5,))
    result = await answer_of(executor, SegmentRequest([PromptSpec(points=((30, 30, 1),))]), stamp)
    assert len(executor.asked) == 1
    assert result.view.mpp == 1.0


async def test_a_correction_stays_on_the_view_of_the_look_that_it_corrects() -> None:
    executor = GuessingExecutor(stabilities=(0.5, 0.9, 0.1))
    first = await answer_of(executor, SegmentRequest([CLICK]))
    second = await answer_of(executor, SegmentRequest([PromptSpec(refine=first.refine, points=((2060, 2048, 1),))]))
    assert second.view == first.view
    assert len(executor.asked) == 3
    assert executor.asked[-1].stability_offset is None, "it has a view, so there is nothing to guess"


async def test_after_two_retries_the_answer_says_that_it_still_touches() -> None:
    executor = DiscExecutor(disc=(2048, 2048, 2000))
    result = await answer_of(executor, SegmentRequest([PromptSpec(box=(2030, 2030, 2070, 2070))]))
    assert len(executor.calls) == 3
    assert result.touches_edge
    correction = PromptSpec(refine=result.refine, points=((2040, 2040, 1),))
    corrected = await answer_of(executor, SegmentRequest([correction]))
    assert len(executor.calls) == 4, "a correction stays on its view although its mask is cut"
    assert corrected.view == result.view
    assert corrected.touches_edge


async def test_the_border_of_the_slide_is_no_reason_to_retry() -> None:
    executor = DiscExecutor(disc=(-64, 2048, 40))
    result = await answer_of(executor, SegmentRequest([PromptSpec(box=(0, 2020, 30, 2080))]))
    assert result.view.x == -64
    assert rle.decode(result.mask)[:, 0].any()
    assert len(executor.calls) == 1
    assert not result.touches_edge


async def test_a_bad_prompt_does_not_fail_the_others() -> None:
    prompts = [PromptSpec(id="bad", box=(9, 9, 3, 3)), BOX, PromptSpec(points=((5, 5, 0),))]
    bad, good, pointless = (await segment(NumpyExecutor(), SegmentRequest(prompts))).results
    assert isinstance(bad, PromptProblem)
    assert bad.id == "bad"
    assert isinstance(bad.error, InvalidBox)
    assert isinstance(good, PromptAnswer)
    assert isinstance(pointless, PromptProblem)
    assert isinstance(pointless.error, NoPositivePoint)


async def test_an_outline_that_cannot_be_made_does_not_fail_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    feature = geojson.feature

    def of_good_ones(area: Any, **options: Any) -> Any:
        if options["classification"] is not None:
            raise ZeroDivisionError
        return feature(area, **options)

    monkeypatch.setattr(geojson, "feature", of_good_ones)
    prompts = [replace(BOX, id="bad", classification="Gland"), BOX]
    bad, good = (await segment(NumpyExecutor(), SegmentRequest(prompts, format="geojson"))).results
    assert isinstance(bad, PromptProblem)
    assert bad.id == "bad"
    assert isinstance(good, PromptAnswer)


async def test_when_every_prompt_fails_the_first_error_leads() -> None:
    prompts = [PromptSpec(points=((5, 5, 0),)), PromptSpec(box=(9, 9, 3, 3))]
    with pytest.raises(EveryPromptFailed) as failed:
        await segment(NumpyExecutor(), SegmentRequest(prompts))
    assert [type(problem.error) for problem in failed.value.problems] == [NoPositivePoint, InvalidBox]


async def test_a_slide_that_cannot_be_read_is_the_problem_of_the_prompt() -> None:
    with pytest.raises(EveryPromptFailed) as failed:
        await segment(NumpyExecutor(), SegmentRequest([BOX]), slide(broken=True))
    assert isinstance(failed.value.problems[0].error, UnreadableSlide)


async def test_a_full_queue_fails_the_request() -> None:
    class Full(NumpyExecutor):
        async def decode(self, *_: object) -> list[DecodeResult | Exception]:
            raise Overloaded("busy", retry_after_s=1)

    with pytest.raises(Overloaded):
        await segment(Full(), SegmentRequest([BOX]))


async def test_without_adapters_no_wider_view_is_read() -> None:
    executor = DiscExecutor()
    whole = await segment(executor, SegmentRequest([BOX], adapters="none", lr_mask=True))
    (result,) = whole.results
    assert isinstance(result, PromptAnswer)
    assert whole.adapters is None
    assert result.cache.lr is None
    assert result.lr is None
    assert executor.calls[0][0].lr is None
    assert len(executor.views) == 1
    assert any("lr_mask" in warning for warning in whole.warnings)


async def test_an_empty_mask_has_no_outline() -> None:
    executor = DiscExecutor(disc=(7000, 7000, 10))
    result = await answer_of(executor, SegmentRequest([BOX], format="both"))
    assert result.geojson is None
    assert result.bbox is None
    assert result.area_um2 == 0


async def test_multimask_and_lr_mask_are_given_where_asked() -> None:
    plain = await answer_of(NumpyExecutor(), SegmentRequest([BOX]))
    assert plain.masks is None
    assert plain.lr is None
    both = await answer_of(NumpyExecutor(), SegmentRequest([BOX], multimask=True, lr_mask=True))
    assert both.masks is not None
    assert len(both.masks) == 3
    assert both.masks[0].mask == both.mask
    assert both.lr is not None
    assert both.lr.view.mpp == 2 * both.view.mpp
    assert both.lr.view.width == 2 * both.view.width


async def test_a_correction_adds_its_points_on_the_same_view() -> None:
    executor = DiscExecutor(disc=(2048, 2048, 150))
    segmenter, on = Segmenter(executor, Settings()), slide()

    async def ask(prompt: PromptSpec) -> PromptAnswer:
        (result,) = (await segmenter.segment(on, SegmentRequest([prompt]), Timings())).results
        assert isinstance(result, PromptAnswer)
        return result

    first = await ask(BOX)
    second = await ask(PromptSpec(refine=first.refine, points=((2010, 2010, 0),)))
    assert second.view == first.view
    assert executor.calls[-1][0].refine_from is not None
    assert executor.calls[-1][0].prompt.labels == (0,)
    third = await ask(PromptSpec(refine=second.refine, points=((2050, 2060, 1),)))
    assert third.view == first.view
    with pytest.raises(EveryPromptFailed) as outside:
        await ask(PromptSpec(refine=first.refine, points=((8000, 8000, 1),)))
    assert isinstance(outside.value.problems[0].error, InvalidRequest)
    with pytest.raises(EveryPromptFailed) as foreign:
        await segmenter.segment(slide(name="t"), SegmentRequest([PromptSpec(refine=first.refine)]), Timings())
    assert isinstance(foreign.value.problems[0].error, RefineExpired)
    other_model = Segmenter(NumpyExecutor(model="vit_b"), Settings())
    with pytest.raises(EveryPromptFailed) as of_another:
        await other_model.segment(on, SegmentRequest([PromptSpec(refine=first.refine)]), Timings())
    assert "another slide or model" in str(of_another.value)


async def test_answers_are_recalled_in_order_and_only_for_their_slide_model_and_adapters() -> None:
    executor, on = NumpyExecutor(), slide()
    segmenter = Segmenter(executor, Settings())
    boxes = [replace(BOX, box=(2000, 2000, 2100 + 4 * number, 2120)) for number in range(3)]
    given = (await segmenter.segment(on, SegmentRequest(boxes), Timings())).results
    tokens = [one.refine for one in given if isinstance(one, PromptAnswer)] * 100
    offer, drew = await model_offer(executor, None), {"0" * 64}
    recalled = await segmenter.recall(on, tokens, offer, drew)
    assert [one.mask for one in recalled] == [one.mask for one in given if isinstance(one, PromptAnswer)] * 100
    for where, what, by in (
        (slide(name="t"), offer, drew),
        (on, replace(offer, config=MODELS["vit_b"]), drew),
        (on, offer, {"1" * 64}),
    ):
        with pytest.raises(RefineExpired, match="is of"):
            await segmenter.recall(where, tokens[:1], what, by)
    executor.given.clear()
    with pytest.raises(RefineExpired, match="gone"):
        await segmenter.recall(on, tokens[:1], offer, drew)


async def test_what_the_frozen_model_drew_it_corrects() -> None:
    segmenter, on = Segmenter(NumpyExecutor(), Settings()), slide()
    (first,) = (await segmenter.segment(on, SegmentRequest([BOX], adapters="none"), Timings())).results
    assert isinstance(first, PromptAnswer)
    again = SegmentRequest([PromptSpec(refine=first.refine, points=((2010, 2010, 0),))])
    (second,) = (await segmenter.segment(on, again, Timings())).results
    assert isinstance(second, PromptAnswer)
    assert (first.adapters, second.adapters) == (None, None)


async def test_masks_of_a_request_are_bounded_together() -> None:
    mask = MaskSpec((4096, 4096), rle.encode(np.ones((4096, 4096), bool)).counts, 2000, 2000, 100, 100)
    with pytest.raises(InvalidRequest, match="pixels in all"):
        await segment(NumpyExecutor(), SegmentRequest([PromptSpec(mask=mask)] * 17))
    wordy = MaskSpec((4096, 4096), "1" * (MAX_MASK_CHARACTERS // 2 + 1), 2000, 2000, 100, 100)
    with pytest.raises(InvalidRequest, match="characters in all"):
        await segment(NumpyExecutor(), SegmentRequest([PromptSpec(mask=wordy)] * 2))


async def test_a_read_counts_as_long_as_its_thread_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, come, begun, reads = asyncio.get_running_loop(), threading.Event(), asyncio.Event(), list[View]()

    def read_slowly(slide: Slide, view: View) -> RgbImage:
        reads.append(view)
        loop.call_soon_threadsafe(begun.set)
        come.wait()
        return np.zeros((256, 256, 3), np.uint8)

    monkeypatch.setattr(slide_views, "read_view", read_slowly)
    gate = asyncio.Semaphore(1)
    views = slide_views.SlideViews(slide(), "m", None, gate)
    first, second = (views.key(View(256, 0, cx, 8, MPP)) for cx in (8, 12))
    leaves = asyncio.create_task(views.pixels(first))
    await begun.wait()
    leaves.cancel()
    await asyncio.wait([leaves])
    assert gate.locked()
    come.set()
    await views.pixels(second)
    assert len(reads) == 2
    assert not gate.locked()


async def test_warnings_tell_what_not_to_rely_on() -> None:
    point = PromptSpec(points=((2050, 2050, 1),))
    whole = await segment(NumpyExecutor(), SegmentRequest([point, BOX], multimask=True), slide(mpp=None))
    told = " ".join(whole.warnings)
    assert "no pixel size" in told
    assert "answers to points" in told
    assert "multimask is of no use" in told
    assert (await segment(NumpyExecutor(), SegmentRequest([BOX]))).warnings == ()


async def test_adapters_trained_for_points_silence_the_warning() -> None:
    class Trained(NumpyExecutor):
        async def info(self) -> dict[str, Any]:
            (model,) = (await super().info())["models"]
            return {"models": [model | {"adapters": model["adapters"] | {"trained_prompts": ["points"]}}]}

    point = PromptSpec(points=((2050, 2050, 1),))
    assert (await segment(Trained(), SegmentRequest([point]))).warnings == ()
    assert (await segment(Trained(), SegmentRequest([point], adapters="none"))).warnings != ()


KIDNEY = {"name": "kidney", "sha256": "1" * 64, "licence": "ours", "trained_prompts": [], "knows_tissue": True}


async def test_every_answer_says_which_adapters_drew_it() -> None:
    """One request may be answered by several, of which the look of each view decides."""
    executor = NumpyExecutor(own_adapters=[KIDNEY])
    click = PromptSpec(points=((2050, 2050, 1),))
    whole = await segment(executor, SegmentRequest([BOX, click], format="both"))
    answers = [result for result in whole.results if isinstance(result, PromptAnswer)]
    assert [one.adapters and one.adapters.name for one in answers] == ["numpy", "kidney"]
    assert [one.geojson and one.geojson["properties"]["metadata"]["adapters"] for one in answers] == ["numpy", "kidney"]
    assert whole.adapters is not None
    assert whole.adapters.name == "numpy", "what was asked for"
    for named in ("kidney", "numpy"):
        (answer,) = (await segment(executor, SegmentRequest([click], adapters=named))).results
        assert isinstance(answer, PromptAnswer)
        assert answer.adapters is not None
        assert answer.adapters.name == named
        correction = PromptSpec(points=((2060, 2060, 0),), refine=answer.refine)
        (corrected,) = (await segment(executor, SegmentRequest([correction]))).results
        assert isinstance(corrected, PromptAnswer)
        assert corrected.adapters == answer.adapters, "a correction stays with those that drew what it corrects"


async def test_an_older_worker_names_nobody_and_its_answers_are_those_of_the_adapters_that_were_asked() -> None:
    class Older(NumpyExecutor):
        async def info(self) -> Mapping[str, Any]:
            (model,) = (await super().info())["models"]
            return {"models": [{name: value for name, value in model.items() if name != "own_adapters"}]}

        async def _decode(self, job: DecodeJob, pixels: PixelSource) -> DecodeResult:
            assert job.adapters in ("default", "none"), "it knows no other names"
            return replace(await super()._decode(job, pixels), adapters="")

    for asked, drawn_by in (("default", "numpy"), ("numpy", "numpy"), ("none", None)):
        answer = await answer_of(Older(), SegmentRequest([BOX], adapters=asked))
        assert (answer.adapters and answer.adapters.name) == drawn_by


async def test_what_is_not_on_offer_is_unknown() -> None:
    with pytest.raises(UnknownModel):
        await segment(NumpyExecutor(), SegmentRequest([BOX], model="vit_h"))
    with pytest.raises(UnknownModel):
        await segment(NumpyExecutor(), SegmentRequest([BOX], adapters="mine"))
    with pytest.raises(TooManyPrompts):
        await segment(NumpyExecutor(), SegmentRequest([BOX] * 257))


async def test_a_secret_keeps_the_fingerprint_out_of_view_keys() -> None:
    executor = DiscExecutor()
    await segment(executor, SegmentRequest([BOX]), secret="hush")
    assert not any("s" * 64 in key for key in executor.views)


async def test_two_views_are_read_side_by_side() -> None:
    meeting = threading.Barrier(2, timeout=20)

    class Meeting(_GreySlide):
        def read_region(self, level: int, x: int, y: int, width: int, height: int) -> RgbImage:
            meeting.wait()  # breaks where the other view is not being read meanwhile
            return super().read_region(level, x, y, width, height)

    class Both(NumpyExecutor):
        async def _decode(self, job: DecodeJob, pixels: PixelSource) -> DecodeResult:
            assert job.lr is not None
            await asyncio.gather(self._fetch(job.hr, pixels), self._fetch(job.lr, pixels))
            return await super()._decode(job, pixels)

    info = SlideInfo((Level(8192, 8192),), mpp=MPP)
    on = Slide("s", "s", "s" * 64, info, lambda: Meeting(info, False))
    assert (await answer_of(Both(), SegmentRequest([BOX]), on)).cache.hr == "l1"
