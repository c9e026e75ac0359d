"""A slide file that this process opens, and a model that it loads: the same code as a server's, without HTTP."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from wsisam_service.api.answers import segment_document
from wsisam_service.api.bodies import parse_body, to_json
from wsisam_service.api.problems import problem_entry
from wsisam_service.api.schemas import ResultBody, SegmentBody
from wsisam_service.commands.flags import UsageError
from wsisam_service.jobs import Executor, Timings
from wsisam_service.segmenting.answers import EveryPromptFailed
from wsisam_service.segmenting.results import Results
from wsisam_service.segmenting.segmenter import Segmenter
from wsisam_service.settings import Settings
from wsisam_service.slides.catalogue import Catalogue
from wsisam_service.slides.slide import Slide


def open_slide_file(path: Path) -> Slide:
    """The slide in this file or folder of DICOM; raises `UsageError` where there is none, and what the catalogue
    raises.
    """
    if not path.exists():
        raise UsageError(f"there is no file {path}")
    listed = Catalogue([str(path)]).list().slides
    if not listed:
        raise UsageError(f"{path} is not named like a slide")
    if len(listed) > 1:
        raise UsageError(f"{path} holds {len(listed)} slides; name one of them")
    if listed[0].slide is None:
        raise UsageError(f"{path}: {listed[0].problem}")
    return listed[0].slide


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
        request = parse_body(SegmentBody, orjson.dumps(body), max_values=None).request("")
        try:
            answer = self._loop.run(self._segmenter.segment(self._slide, request, Timings()))
        except EveryPromptFailed as failed:
            results = [{"id": p.id, "problem": problem_entry(p.error)} for p in failed.problems]
            return {"warnings": [], "results": results}
        document: dict[str, Any] = orjson.loads(to_json(segment_document(answer, request.format)))
        return document

    def result(self, body: Mapping[str, Any]) -> bytes:
        """See `SlideClient`."""
        request = parse_body(ResultBody, orjson.dumps(body), max_values=None).request()
        results = Results(self._segmenter, self._executor, self._settings.dicom_codes)
        return self._loop.run(results.of_request(self._slide, request)).content

    async def _load(self) -> None:
        from wsisam_service.assembly import build_executor, load_backend

        backend = load_backend(self._settings)
        for warning in backend.warnings:
            print(f"wsisam: warning: {warning}", file=sys.stderr)
        self._executor = build_executor(self._settings, backend)
        self._segmenter = Segmenter(self._executor, self._settings)
