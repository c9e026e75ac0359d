"""The command line against servers that are busy, broken or something else: one line with what they said."""

from __future__ import annotations

import json

import httpx
import pytest

from wsisam_service import cli

BUSY = json.dumps({"type": "/problems/overloaded", "detail": "too many encodes"})
HTML = "<html>hello"
FOUND = {"name": "x.svs", "id": "abc"}
PRECOMPUTE = ("precompute", "x.svs")
SEGMENT = ("segment", "x.svs", "--box", "1,2,30,40")
SEGMENT_BY_ID = ("segment", "def", "--box", "1,2,30,40")
TOLD = {BUSY: "too many encodes", HTML: "no WSI-SAM server", "[]": "no WSI-SAM server", "{}": "no WSI-SAM server"}


@pytest.mark.parametrize(
    ("command", "path", "answer"),
    [
        *((SEGMENT, "/v1/slides", (status, BUSY)) for status in (429, 500, 503)),
        *((SEGMENT, "/v1/slides", (status, HTML)) for status in (200, 301, 502)),
        *((SEGMENT, "/v1/slides", (200, text)) for text in ("[]", "{}")),
        (SEGMENT_BY_ID, "/v1/slides/def", (503, BUSY)),
        *((SEGMENT, "/v1/slides/abc/segment", answer) for answer in ((503, BUSY), (502, HTML), (200, HTML))),
        *((PRECOMPUTE, path, (503, BUSY)) for path in ("/v1/slides/abc", "/v1/info", "/v1/slides/abc/thumbnail")),
    ],
)
def test_what_a_server_says_instead_of_an_answer_is_one_line(
    command: tuple[str, ...],
    path: str,
    answer: tuple[int, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, text = answer

    def respond(request: httpx.Request) -> httpx.Response:
        if request.url.path == path:
            return httpx.Response(status, text=text)
        models = [{"name": "lite_medsam", "adapters": None}]
        return httpx.Response(200, json={"slides": [FOUND], "models": models})

    monkeypatch.setattr(httpx, "HTTPTransport", lambda retries: httpx.MockTransport(respond))
    assert cli.main([*command, "--url", "http://server"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert TOLD[text] in error


@pytest.mark.parametrize(
    "pages", [[[FOUND, {"name": "x.svs", "id": "def"}]], [[FOUND], [{"name": "x.svs", "id": "def"}]]]
)
def test_of_several_slides_with_one_name_none_is_taken(
    pages: list[list[dict[str, str]]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def respond(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/v1/slides"
        number = int(request.url.params["cursor"] or 0)
        following = str(number + 1) if number + 1 < len(pages) else None
        return httpx.Response(200, json={"slides": pages[number], "next": following})

    monkeypatch.setattr(httpx, "HTTPTransport", lambda retries: httpx.MockTransport(respond))
    assert cli.main([*SEGMENT, "--url", "http://server"]) == 2
    assert capsys.readouterr().err.endswith("2 slides called x.svs; name one by its id: abc, def\n")
