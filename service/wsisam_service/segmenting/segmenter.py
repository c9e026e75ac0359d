"""From prompts on a slide to outlines: plan views, decode them together, retry where an object does not fit."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeVar

import numpy as np

from wsisam_model.prompts import Prompt
from wsisam_model.quality import OFFSET
from wsisam_service.errors import EmptyPrompt, InvalidRequest, RefineExpired, ServiceError, TooManyPrompts
from wsisam_service.jobs import (
    DEFAULT_ADAPTERS,
    NO_ADAPTERS,
    DecodeJob,
    DecodeResult,
    Executor,
    Timings,
)
from wsisam_service.masks import geojson, rle
from wsisam_service.segmenting.answers import (
    AdaptersUsed,
    CacheTiers,
    EveryPromptFailed,
    Feature,
    LrAnswer,
    PromptAnswer,
    PromptProblem,
    RankedMask,
    Recalled,
    SegmentAnswer,
    ViewRect,
)
from wsisam_service.segmenting.offers import AdaptersOffer, ModelOffer, model_offer, option_warnings, prompt_warnings
from wsisam_service.segmenting.plans import Plan, Planner
from wsisam_service.segmenting.prompts import Frame, PromptSpec, Units, request_frame
from wsisam_service.segmenting.slide_views import SlideViews
from wsisam_service.segmenting.tokens import RefineToken, TokenSigner
from wsisam_service.settings import Settings
from wsisam_service.slides.slide import Slide
from wsisam_service.views import View

T = TypeVar("T")
R = TypeVar("R")

MaskFormat = Literal["rle", "geojson", "both"]
MAX_PROMPTS = 256
MAX_MASK_PIXELS = MAX_PROMPTS * 1024 * 1024
"""Of all masks that come with a request: as many of SAM's own size as it may have prompts."""
MAX_MASK_CHARACTERS = 4 << 20
"""Of all masks of a request; that of an intricate object has some ten thousand, and each costs a microsecond."""
MAX_RETRIES = 2
"""How often a prompt is decoded again, one step coarser each time."""
FEW_POINTS = 8
"""A lone prompt of so many points at most is planned in the event loop."""
ANSWER_THREADS = 2
"""For prompts and outlines: Python's work mostly, which more threads would only hand to and fro."""
ITEMS_AT_A_TIME = 16
"""Of one request, before those of others have their turn: some ten milliseconds of outlines."""
CONCURRENT_READS = 8
"""Views read from slides at once in this process; each holds some megabytes of decoded tiles."""


@dataclass(frozen=True, slots=True)
class SegmentRequest:
    """What `POST …/segment` asks, in the client's numbers. `image_size` is (width, height) and excludes `frame`."""

    prompts: Sequence[PromptSpec]
    model: str | None = None
    adapters: str = DEFAULT_ADAPTERS
    mpp: float | None = None
    units: Units = "px"
    frame: Frame | None = None
    image_size: tuple[int, int] | None = None
    multimask: bool = False
    lr_mask: bool = False
    format: MaskFormat = "rle"
    simplify: float = geojson.DEFAULT_SIMPLIFY
    """Polygon tolerance in view pixels, 0 for none."""
    request_id: str = ""
    """Goes into each Feature's metadata."""


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    """What the stages of one request share. `adapters` is None for the frozen SAM."""

    slide: Slide
    request: SegmentRequest
    offer: ModelOffer
    adapters: AdaptersOffer | None
    planner: Planner
    views: SlideViews


@dataclass(frozen=True, slots=True, eq=False)
class _Decoded:
    plan: Plan
    result: DecodeResult


class Segmenter:
    """Answers segment requests with one executor. Safe for any number of requests at once, in one event loop."""

    def __init__(self, executor: Executor, settings: Settings) -> None:
        self._executor = executor
        self._fingerprint_key = settings.fingerprint_key
        self._signer = TokenSigner(settings.token_key, settings.refine_ttl_s)
        self._reading = asyncio.Semaphore(CONCURRENT_READS)
        self._threads = ThreadPoolExecutor(ANSWER_THREADS, thread_name_prefix="answers")

    def views(self, slide: Slide, offer: ModelOffer) -> SlideViews:
        """The views of `slide` for a model, read under the same bound as those of all requests."""
        return SlideViews(slide, offer.key_prefix, self._fingerprint_key, self._reading)

    async def segment(self, slide: Slide, request: SegmentRequest, timings: Timings) -> SegmentAnswer:
        """The answer to each prompt, in order. One that fails does not fail the others.

        Raises `EveryPromptFailed`, `UnknownModel`, `FrameMismatch`, `TooManyPrompts`, `Overloaded` and other errors
        of the whole request.
        """
        _check_count(request.prompts)
        offer = await model_offer(self._executor, request.model)
        call, warnings = self._call(slide, request, offer)
        planned = await self._each(call.planner.try_plan, request.prompts, quick=_quickly_planned(request.prompts))
        plans = {i: plan for i, plan in enumerate(planned) if isinstance(plan, Plan)}
        decoded = await self._decode(call, plans, timings)
        failed = {i: error for i, error in enumerate(planned) if isinstance(error, Exception)}
        started = time.perf_counter()
        outcomes = decoded | failed
        asked = [(spec, outcomes[index]) for index, spec in enumerate(request.prompts)]
        results = await self._each(partial(self._result, call), asked, quick=_quickly_answered(request))
        timings.span("mask", started, time.perf_counter())
        problems = [result for result in results if isinstance(result, PromptProblem)]
        if len(problems) == len(results):
            raise EveryPromptFailed(problems)
        kinds = {kind for plan in plans.values() for kind in plan.spec.kinds()}
        warnings += prompt_warnings(offer, call.adapters, kinds)
        return SegmentAnswer(offer.config.name, _used(call.adapters), tuple(warnings), tuple(results))

    async def recall(
        self, slide: Slide, tokens: Sequence[str], offer: ModelOffer, adapters: Collection[str]
    ) -> list[Recalled]:
        """The answers that `tokens` stand for, in order; one of `adapters`, SHA-256s or "none", drew all of them.
        Raises `RefineExpired` where one is gone, or of another slide, model or adapters.
        """
        views = self.views(slide, offer)
        earlier = await self._each(self._signer.verify, tokens, quick=len(tokens) == 1)
        for token in earlier:
            if (token.model, token.fingerprint) != (offer.config.name, slide.fingerprint):
                raise RefineExpired("the refine token is of another slide or model")
            if token.adapters not in adapters or token.adapters != earlier[0].adapters:
                raise RefineExpired("the refine token is of other adapters; name those that drew the outline")
        recalled: list[Recalled] = []
        for start in range(0, len(earlier), MAX_PROMPTS):
            piece = earlier[start : start + MAX_PROMPTS]
            jobs = [
                DecodeJob(views.key(token.view), None, Prompt(), refine_from=token.refine_id, recall=True)
                for token in piece
            ]
            found = await self._executor.decode(jobs, views.pixels, Timings())
            for token, result in zip(piece, found, strict=True):
                if isinstance(result, Exception):
                    raise result
                first = result.masks[0]
                recalled.append(Recalled(first.mask, _rect(token.view), first.predicted_iou, token.adapters))
        return recalled

    def _call(self, slide: Slide, request: SegmentRequest, offer: ModelOffer) -> tuple[_Call, list[str]]:
        adapters = offer.adapters_for(request.adapters)
        slide_mpp, warnings = slide.slide_mpp(offer.config.default_mpp)
        frame = request_frame(
            (slide.width, slide.height),
            slide.info.bounds,
            slide_mpp,
            units=request.units,
            frame=request.frame,
            image_size=request.image_size,
        )
        planner = Planner(slide, offer.config, slide_mpp, frame, request.mpp, self._signer)
        options = option_warnings(offer, adapters, multimask=request.multimask, lr_mask=request.lr_mask)
        call = _Call(slide, request, offer, adapters, planner, self.views(slide, offer))
        return call, [*warnings, *options]

    async def _decode(
        self, call: _Call, plans: Mapping[int, Plan], timings: Timings
    ) -> dict[int, _Decoded | Exception]:
        """Every plan decoded, those again that deserve a wider view; all of a round in one call. Of clicks' answers
        the more stable one stays, of others the wider one.
        """
        done: dict[int, _Decoded | Exception] = {}
        waiting = dict(plans)
        for retry in range(1 + MAX_RETRIES):
            if not waiting:
                break
            quick = _quickly_planned([plan.spec for plan in waiting.values()])
            jobs = await self._each(partial(_job, call), list(waiting.values()), quick=quick)
            try:
                results = await self._executor.decode(jobs, call.views.pixels, timings)
            except ServiceError:
                if not done:
                    raise
                break  # the answers that there are will do
            wider: dict[int, Plan] = {}
            for (index, plan), result in zip(waiting.items(), results, strict=True):
                if isinstance(result, Exception):
                    done.setdefault(index, result)  # the finer view's answer is better than none
                    continue
                earlier = done.get(index)
                if isinstance(earlier, _Decoded) and _is_steadier(earlier.result, result):
                    continue
                done[index] = _Decoded(plan, result)
                if retry < MAX_RETRIES and call.planner.deserves_a_wider_view(plan, result):
                    wider[index] = plan.on_wider_view()
            waiting = wider
        return done

    def _result(self, call: _Call, asked: tuple[PromptSpec, _Decoded | Exception]) -> PromptAnswer | PromptProblem:
        spec, decoded = asked
        if isinstance(decoded, Exception):
            return PromptProblem(spec.id, decoded)
        try:
            return self._answer(call, decoded)
        except Exception as error:  # a bug in one outline must not take the other prompts' answers along
            return PromptProblem(spec.id, error)

    def _answer(self, call: _Call, decoded: _Decoded) -> PromptAnswer:
        plan, result, view = decoded.plan, decoded.result, decoded.plan.view
        first = result.masks[0]
        mask = rle.decode(first.mask)
        area_um2 = float(np.count_nonzero(mask)) * view.mpp**2
        drawn_by = _drawn_by(call, result)
        adapters = NO_ADAPTERS if drawn_by is None else drawn_by.sha256
        token = RefineToken(result.refine_id, call.offer.config.name, call.slide.fingerprint, view, adapters)
        ranked = tuple(RankedMask(one.mask, one.predicted_iou) for one in result.masks)
        return PromptAnswer(
            id=plan.spec.id,
            mask=first.mask,
            view=_rect(view),
            bbox=call.planner.bbox(mask, view),
            area_um2=area_um2,
            predicted_iou=first.predicted_iou,
            touches_edge=call.planner.is_cut(view, result.touches),
            refine=self._signer.sign(token),
            cache=CacheTiers(result.cache_hr, result.cache_lr),
            geojson=_feature(call, decoded, mask, area_um2),
            masks=ranked if call.request.multimask else None,
            lr=None if result.lr_mask is None else LrAnswer(result.lr_mask, _rect(view.coarser())),
            adapters=_used(drawn_by),
        )

    async def _each(self, function: Callable[[T], R], items: Sequence[T], *, quick: bool) -> list[R]:
        """`function` of every item, in threads, or where we are if it is `quick`: to hand it over takes a quarter of a
        millisecond.
        """
        if quick:
            return _of_each(function, items)
        results: list[R] = []
        for start in range(0, len(items), ITEMS_AT_A_TIME):
            piece = items[start : start + ITEMS_AT_A_TIME]
            run = partial(contextvars.copy_context().run, _of_each, function, piece)
            results += await asyncio.get_running_loop().run_in_executor(self._threads, run)
        return results


def _of_each(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    return [function(item) for item in items]


def _check_count(prompts: Sequence[PromptSpec]) -> None:
    if not prompts:
        raise EmptyPrompt("a request has at least one prompt")
    if len(prompts) > MAX_PROMPTS:
        raise TooManyPrompts(f"a request has at most {MAX_PROMPTS} prompts")
    masks = [prompt.mask for prompt in prompts if prompt.mask is not None]
    if sum(abs(mask.size[0] * mask.size[1]) for mask in masks) > MAX_MASK_PIXELS:
        raise InvalidRequest(f"the masks of a request have at most {MAX_MASK_PIXELS} pixels in all")
    if sum(len(mask.counts) for mask in masks) > MAX_MASK_CHARACTERS:
        raise InvalidRequest(f"the masks of a request have at most {MAX_MASK_CHARACTERS} characters in all")


def _quickly_planned(specs: Sequence[PromptSpec]) -> bool:
    """A box or a few clicks take a tenth of a millisecond; to place a mask on its view takes several."""
    return len(specs) == 1 and specs[0].mask is None and len(specs[0].points) <= FEW_POINTS


def _quickly_answered(request: SegmentRequest) -> bool:
    """It is the outline of a mask that takes milliseconds."""
    return len(request.prompts) == 1 and request.format == "rle"


def _job(call: _Call, plan: Plan) -> DecodeJob:
    adapters = NO_ADAPTERS if call.adapters is None else _asked(call, plan)
    frozen = adapters == NO_ADAPTERS
    guess = not frozen and call.adapters is not None and call.adapters.guess_sizes and plan.guesses
    return DecodeJob(
        hr=call.views.key(plan.view),
        lr=None if frozen else call.views.key(plan.view.coarser()),
        prompt=replace(plan.target.prompt(plan.view), wider=guess and plan.wider),
        adapters=adapters,
        multimask=call.request.multimask,
        lr_mask=call.request.lr_mask and not frozen,
        refine_from=None if plan.earlier is None else plan.earlier.refine_id,
        stability_offset=OFFSET if guess else None,
    )


def _asked(call: _Call, plan: Plan) -> str:
    """The adapters that a job asks for: those that drew the answer which it corrects, where the request names none."""
    wanted = call.request.adapters
    if wanted == DEFAULT_ADAPTERS and plan.earlier is not None and plan.earlier.adapters == NO_ADAPTERS:
        return NO_ADAPTERS
    if not call.offer.own:
        return DEFAULT_ADAPTERS  # a worker that is a version older knows no names
    if plan.earlier is None:
        return wanted
    drew = (one.name for one in call.offer.may_draw(wanted) if one is not None and one.sha256 == plan.earlier.adapters)
    return next(drew, wanted)


def _is_steadier(earlier: DecodeResult, later: DecodeResult) -> bool:
    """Whether the earlier mask is at least as stable as the later one; False where nobody asked."""
    before, after = earlier.masks[0].stability, later.masks[0].stability
    return before is not None and after is not None and before >= after


def _drawn_by(call: _Call, result: DecodeResult) -> AdaptersOffer | None:
    """The adapters of an answer, None for the frozen SAM."""
    if result.adapters == NO_ADAPTERS:
        return None
    may = call.offer.may_draw(call.request.adapters)
    return next((one for one in may if one is not None and one.name == result.adapters), call.adapters)


def _used(adapters: AdaptersOffer | None) -> AdaptersUsed | None:
    return None if adapters is None else AdaptersUsed(adapters.name, adapters.sha256)


def _rect(view: View) -> ViewRect:
    x, y = view.origin_level0
    return ViewRect(x, y, view.size_level0, view.size_level0, view.mpp, (view.side, view.side))


def _feature(call: _Call, decoded: _Decoded, mask: rle.Mask, area_um2: float) -> Feature | None:
    if call.request.format == "rle":
        return None
    plan, drawn_by = decoded.plan, _drawn_by(call, decoded.result)
    area = geojson.outline(mask, call.planner.placement(plan.view), call.request.simplify)
    if area is None:
        return None
    metadata = {
        "model": call.offer.config.name,
        "adapters": NO_ADAPTERS if drawn_by is None else drawn_by.name,
        "prompt": plan.spec.described(),
        "mpp": f"{plan.view.mpp:g}",
        "request": call.request.request_id,
    }
    measurements = {"Area µm²": area_um2, "Predicted IoU": decoded.result.masks[0].predicted_iou}
    return geojson.feature(area, classification=plan.classification, measurements=measurements, metadata=metadata)
