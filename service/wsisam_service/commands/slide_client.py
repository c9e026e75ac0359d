"""One slide to ask about: opened in this process, or held by a running server. Both speak the API's documents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import quote

import httpx

from wsisam_service.commands.flags import UsageError

TIMEOUT_S = 120.0
RETRIES = 5
PAGE = 100


class SlideClient(Protocol):
    """Answers segment requests on one slide; a context manager that lets go of what it holds."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def segment(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer document of `POST …/segment`. Where every prompt failed, results that are all problems."""
        ...

    def result(self, body: Mapping[str, Any]) -> bytes:
        """The DICOM object of `POST …/results`."""
        ...


class RemoteSlide:
    """A slide of the server at `url`, given by its name or id there. `token` is a key or access token, if any."""

    def __init__(self, url: str, slide: str, token: str = "") -> None:
        transport = httpx.HTTPTransport(retries=RETRIES)
        headers = {"authorization": f"Bearer {token}"} if token else {}
        try:
            self._http = httpx.Client(base_url=url.rstrip("/"), timeout=TIMEOUT_S, transport=transport, headers=headers)
        except httpx.InvalidURL as error:
            raise UsageError(f"--url: {error}") from error
        self._slide = slide
        self._path = ""

    def __enter__(self) -> Self:
        self._path = f"/v1/slides/{quote(self._find(), safe='')}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._http.close()

    def segment(self, body: Mapping[str, Any]) -> dict[str, Any]:
        answer = self._call("POST", f"{self._path}/segment", json=body)
        if not answer.is_success and "errors" in (document := _json_object(answer)):
            failed = [{"id": error.get("id"), "problem": error} for error in document["errors"]]
            return {"warnings": [], "results": failed}
        return document_of(answer)

    def result(self, body: Mapping[str, Any]) -> bytes:
        return _content_of(self._call("POST", f"{self._path}/results", json=body))

    def facts(self) -> dict[str, Any]:
        """The document of the slide."""
        return document_of(self._call("GET", self._path))

    def thumbnail(self, max_side: int) -> bytes:
        """JPEG of the whole slide."""
        return _content_of(self._call("GET", f"{self._path}/thumbnail", params={"max": max_side}))

    def prewarm(self, body: Mapping[str, Any]) -> httpx.Response:
        """Whatever the server answers to `POST …/prewarm`."""
        return self._call("POST", f"{self._path}/prewarm", json=body)

    def server_info(self) -> dict[str, Any]:
        """The document of `GET /v1/info`."""
        return document_of(self._call("GET", "/v1/info"))

    def _find(self) -> str:
        """The id of the one slide of this name, or of this id."""
        name, cursor = Path(self._slide).name, ""
        found: list[str] = []
        while True:
            answer = self._call("GET", "/v1/slides", params={"q": name, "limit": PAGE, "cursor": cursor})
            page = document_of(answer)
            if not isinstance(page.get("slides"), list):
                raise _not_ours(answer)
            found += (str(slide["id"]) for slide in page["slides"] if slide["name"] == name)
            if not (cursor := page.get("next") or ""):
                break
        if len(found) > 1:  # of several patients, maybe
            raise UsageError(
                f"the server has {len(found)} slides called {name}; name one by its id: {', '.join(found)}"
            )
        if found:
            return found[0]
        answer = self._call("GET", f"/v1/slides/{quote(self._slide, safe='')}")
        if answer.status_code == httpx.codes.NOT_FOUND:
            raise UsageError(f"the server has no slide called {name}")
        document_of(answer)
        return self._slide

    def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        """The answer; only 401 and 403, which no caller can do anything about, are errors here."""
        try:
            answer = self._http.request(method, path, **options)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UsageError(f"cannot reach the server: {error}") from error
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            raise UsageError("the server asks for a key: give --token, or set WSISAM_TOKEN")
        if answer.status_code == httpx.codes.FORBIDDEN:
            raise UsageError("the server refuses: the key does not allow this")
        return answer


def document_of(answer: httpx.Response) -> dict[str, Any]:
    """The JSON object that a success is. Raises `UsageError` with what the server says instead."""
    _check(answer)
    return _json_object(answer)


def _content_of(answer: httpx.Response) -> bytes:
    _check(answer)
    return answer.content


def _check(answer: httpx.Response) -> None:
    if not answer.is_success:
        raise UsageError(f"the server refuses: {_json_object(answer).get('detail', answer.reason_phrase)}")


def _json_object(answer: httpx.Response) -> dict[str, Any]:
    try:
        document = answer.json()
    except (ValueError, RecursionError) as error:
        raise _not_ours(answer) from error
    if not isinstance(document, dict):
        raise _not_ours(answer)
    return document


def _not_ours(answer: httpx.Response) -> UsageError:
    said = f"{answer.status_code} {answer.reason_phrase}"
    return UsageError(f"what answers at --url ({said}) is no WSI-SAM server, or stands in front of one")
