"""From answers, refine tokens or GeoJSON to one DICOM object of a slide."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, ParamSpec, TypeVar

import shapely

from wsisam_service.dicom.codes import CodeTable
from wsisam_service.dicom.derived import DicomResult
from wsisam_service.dicom.identity import Algorithm
from wsisam_service.dicom.outlines import Outline, class_name, outlines_of_collection
from wsisam_service.dicom.results import ResultKind, ResultOptions, SlideGeometry, make_result
from wsisam_service.dicom.source import DicomSource
from wsisam_service.errors import InvalidRequest, NoDicomSource
from wsisam_service.jobs import DEFAULT_ADAPTERS, NO_ADAPTERS, Executor
from wsisam_service.masks import border, geojson, rle
from wsisam_service.masks.geojson import DEFAULT_SIMPLIFY
from wsisam_service.segmenting.answers import (
    AdaptersUsed,
    EveryPromptFailed,
    PromptAnswer,
    PromptProblem,
    Recalled,
    SegmentAnswer,
)
from wsisam_service.segmenting.offers import AdaptersOffer, model_offer
from wsisam_service.segmenting.segmenter import Segmenter, SegmentRequest
from wsisam_service.slides.slide import Slide
from wsisam_service.views import believable_mpp

P = ParamSpec("P")
T = TypeVar("T")

OBJECTS_AT_ONCE = 2
"""Objects made at once in this process, each of up to some hundred megabytes while it is made."""


@dataclass(frozen=True, slots=True)
class Kept:
    """An earlier answer to keep, by its refine token, and the class it has."""

    refine: str
    classification: str | Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ResultRequest:
    """What `POST …/results` asks: `geojson` (in level-0 pixels) or `kept`, one of them. `model` and `adapters` are
    what drew the outlines; `simplify` (view pixels) is for annotations of kept answers.
    """

    options: ResultOptions
    geojson: Mapping[str, Any] | None = None
    kept: Sequence[Kept] = ()
    model: str | None = None
    adapters: str = DEFAULT_ADAPTERS
    simplify: float = DEFAULT_SIMPLIFY


class Results:
    """Makes DICOM objects of one service. Safe for any number of requests at once, in one event loop."""

    def __init__(self, segmenter: Segmenter, executor: Executor, codes: CodeTable) -> None:
        self._segmenter = segmenter
        self._executor = executor
        self._codes = codes
        self._threads = ThreadPoolExecutor(OBJECTS_AT_ONCE, thread_name_prefix="dicom-results")

    async def of_request(self, slide: Slide, request: ResultRequest) -> DicomResult:
        """Raises what `dicom.results.make_result` and `DicomSource.headers` raise, `NoDicomSource`, `RefineExpired` and
        `UnknownModel`.
        """
        check_dicom(slide)
        offer = await model_offer(self._executor, request.model)
        algorithms = [_algorithm(offer.config.name, one) for one in offer.may_draw(request.adapters)]
        if (request.geojson is None) == (not request.kept):
            raise InvalidRequest("give either geojson or refine")
        if request.geojson is not None:
            outlines = await self._in_turn(outlines_of_collection, request.geojson)
            algorithm = _that_drew(outlines, algorithms)
        else:
            by_sha256 = {algorithm.adapters_sha256 or NO_ADAPTERS: algorithm for algorithm in algorithms}
            tokens = [kept.refine for kept in request.kept]
            recalled = await self._segmenter.recall(slide, tokens, offer, by_sha256)
            algorithm = by_sha256[recalled[0].adapters]
            simplify = request.simplify if request.options.kind == "ann" else 0.0
            labels = [kept.classification for kept in request.kept]
            outlines = await self._in_turn(_outlines, recalled, labels, simplify)
        return await self._make(slide, outlines, algorithm, request.options)

    async def of_answer(
        self, slide: Slide, request: SegmentRequest, answer: SegmentAnswer, kind: ResultKind
    ) -> DicomResult:
        """The object of an answer, at the level nearest to its views. Raises as `of_request`, and `EveryPromptFailed`
        where any prompt failed: an object does not say what it lacks.
        """
        check_dicom(slide)
        problems = [result for result in answer.results if isinstance(result, PromptProblem)]
        if problems:
            raise EveryPromptFailed(problems)
        answers = [result for result in answer.results if isinstance(result, PromptAnswer)]
        if any(result.adapters != answers[0].adapters for result in answers):
            raise InvalidRequest("the outlines were drawn by different adapters; ask with those of one name")
        algorithm = _algorithm(answer.model, answers[0].adapters)
        simplify = request.simplify if kind == "ann" else 0.0
        labels = [prompt.classification for prompt in request.prompts]
        outlines = await self._in_turn(_outlines, answers, labels, simplify)
        return await self._make(slide, outlines, algorithm, ResultOptions(kind))

    async def store(self, slide: Slide, result: DicomResult) -> None:
        """Send an object to the PACS of its slide. Safe to repeat. Raises `NoDicomSource`, `PacsUnavailable`."""
        source = check_dicom(slide)
        if source.store is None:
            raise NoDicomSource("the slide came from files, not from a PACS that could store this")
        await slide.lane.run(source.store, [result.content])

    async def _make(
        self, slide: Slide, outlines: Sequence[Outline], algorithm: Algorithm, options: ResultOptions
    ) -> DicomResult:
        source = check_dicom(slide)
        headers = await slide.lane.run(source.headers)  # before anybody's turn is taken: a PACS may be slow
        return await self._in_turn(
            make_result,
            headers,
            _geometry(slide),
            outlines,
            algorithm=algorithm,
            options=options,
            codes=self._codes,
        )

    async def _in_turn(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """What `call` returns, beside few others: ten thousand outlines take seconds to make."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(call, *args, **kwargs))


def check_dicom(slide: Slide) -> DicomSource:
    """What an object of `slide` refers to; to be asked before any work is done. Raises `NoDicomSource`."""
    if slide.info.dicom is None:
        raise NoDicomSource("the slide is no DICOM slide, so nothing in DICOM can refer to it")
    return slide.info.dicom


def _geometry(slide: Slide) -> SlideGeometry:
    scales = [(level.downsample_x, level.downsample_y) for level in slide.info.levels]
    return SlideGeometry(slide.width, slide.height, scales, slide.mpp if believable_mpp(slide.mpp) else None)


def _algorithm(model: str, adapters: AdaptersOffer | AdaptersUsed | None) -> Algorithm:
    return Algorithm(model, None, None) if adapters is None else Algorithm(model, adapters.name, adapters.sha256)


def _outlines(
    answers: Sequence[PromptAnswer | Recalled],
    classifications: Sequence[str | Mapping[str, Any] | None],
    simplify: float,
) -> list[Outline]:
    """What is not empty of `answers`, with its class."""
    found = [
        _outline(answer, class_name(classification), simplify)
        for answer, classification in zip(answers, classifications, strict=True)
    ]
    return [outline for outline in found if outline is not None]


def _outline(answer: PromptAnswer | Recalled, label: str | None, simplify: float) -> Outline | None:
    """An answer's mask in level 0, along pixel edges unless `simplify` (view pixels) is above 0; None where empty."""
    mask, view = rle.decode(answer.mask), answer.view
    scale = view.width / view.size[0]
    if simplify > 0:
        area = geojson.outline(mask, geojson.Placement(scale, view.x, view.y), simplify)
    else:
        exact = border.along_edges(mask)
        area = None if exact is None else shapely.transform(exact, lambda p: p * scale + (view.x, view.y))
    return None if area is None else Outline(area, label, answer.predicted_iou, view.mpp)


def _that_drew(outlines: Sequence[Outline], algorithms: Sequence[Algorithm]) -> Algorithm:
    """The first of `algorithms` that may have drawn all outlines. A Feature that names what drew it is not signed by
    anything else: raises `InvalidRequest`.
    """
    strangers = [_stranger(outlines, algorithm) for algorithm in algorithms]
    for algorithm, stranger in zip(algorithms, strangers, strict=True):
        if stranger is None:
            return algorithm
    raise InvalidRequest(
        f"geojson.features[{strangers[0]}] was drawn by another model or other adapters; name them in the request"
    )


def _stranger(outlines: Sequence[Outline], algorithm: Algorithm) -> int | None:
    """The first outline that says something else drew it."""
    own = algorithm.adapters or NO_ADAPTERS
    for number, outline in enumerate(outlines):
        if (outline.model or algorithm.model, outline.adapters or own) != (algorithm.model, own):
            return number
    return None
