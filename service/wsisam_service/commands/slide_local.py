"""A slide file that this process opens, and a model that it loads: the same code as a server's, without HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from wsisam_service.api.answers import segment_document
from wsisam_service.api.bodies import parse_body, to_json
from wsisam_service.api.problems import problem_entry
from wsisam_service.api.schemas import ResultBody, SegmentBody
from wsisam_service.commands.info import open_slide_file
from wsisam_service.jobs import Executor, Timings
from wsisam_service.segmenting.answers import EveryPromptFailed
from wsisam_service.segmenting.results import Results
from wsisam_service.segmenting.segmenter import Segmenter
from wsisam_service.settings import Settings
from wsisam_service.slides.slide import Slide


class LocalSlide:
    """A `SlideClient` of the slide in a file."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self._slide: Slide = open_slide_file(path)
        self._settings = settings
        self._loop = asyncio.Runner()
        self._executor: Executor

    def __enter__(self) -> Self:
        self._loop.run(self._load())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop.run(self._executor.aclose())
        self._loop.close()

    def segment(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """See `SlideClient`."""
        request = parse_body(SegmentBody, orjson.dumps(body)).request("")
        try:
            answer = self._loop.run(self._segmenter.segment(self._slide, request, Timings()))
        except EveryPromptFailed as failed:
            results = [{"id": p.id, "problem": problem_entry(p.error)} for p in failed.problems]
            return {"warnings": [], "results": results}
        document: dict[str, Any] = orjson.loads(to_json(segment_document(answer, request.format)))
        return document

    def result(self, body: Mapping[str, Any]) -> bytes:
        """See `SlideClient`."""
        request = parse_body(ResultBody, orjson.dumps(body)).request()
        results = Results(self._segmenter, self._executor, self._settings.dicom_codes)
        return self._loop.run(results.of_request(self._slide, request)).content

    async def _load(self) -> None:
        from wsisam_service.assembly import build_executor, load_backend

        self._executor = build_executor(self._settings, load_backend(self._settings))
        self._segmenter = Segmenter(self._executor, self._settings)
