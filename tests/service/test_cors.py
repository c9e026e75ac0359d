"""Pages of other origins: those that the settings name may call the service with a key, others may not."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from browser import chromium, serving
from stand_ins import NumpyExecutor
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Route

from wsisam_service.access.identity import Role
from wsisam_service.access.keys import StoredKey, append_key, hash_of, new_key
from wsisam_service.app import create_app
from wsisam_service.settings import Settings, SettingsError, load_settings
from wsisam_service.slides.catalogue import Catalogue

VIEWER, ELSEWHERE = "https://viewer.example.org", "https://elsewhere.example.org"
BOX = {"prompts": [{"box": [600, 400, 760, 520]}]}


class Guarded:
    """An application that asks for a key and lets pages of some origins call it."""

    def __init__(self, folder: Path, slides: Path, **settings: Any) -> None:
        self.key = new_key()
        append_key(folder / "keys.toml", StoredKey(name="a", role=Role.ANNOTATOR, sha256=hash_of(self.key)))
        self.settings = Settings(slides=(str(slides),), keys=folder / "keys.toml", **settings)
        self.app = create_app(self.settings, Catalogue(self.settings.slides), NumpyExecutor())

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with (
            self.app.router.lifespan_context(self.app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            yield client


def preflight(origin: str, method: str = "POST", headers: str = "authorization,content-type") -> dict[str, str]:
    return {
        "origin": origin,
        "access-control-request-method": method,
        "access-control-request-headers": headers,
    }


async def test_a_preflight_of_a_named_origin_is_answered_without_a_key(tmp_path: Path, slides: Path) -> None:
    async with Guarded(tmp_path, slides, cors_origins=(VIEWER,)).client() as client:
        for path in ("/v1/slides", f"/v1/slides/{'a' * 20}/segment", f"/v1/slides/{'a' * 20}/iiif/info.json"):
            answer = await client.options(path, headers=preflight(VIEWER))
            assert answer.status_code == 200, path
            assert answer.headers["access-control-allow-origin"] == VIEWER
            assert "authorization" in answer.headers["access-control-allow-headers"].lower()
            assert "origin" in answer.headers["vary"].lower()
        for refused in (
            preflight(ELSEWHERE),
            preflight("null"),
            preflight(VIEWER + ".evil.example"),
            preflight(VIEWER.replace("https", "http")),
            preflight(VIEWER, method="PUT"),
            preflight(VIEWER, headers="authorization,x-forwarded-for"),
        ):
            assert (await client.options("/v1/slides", headers=refused)).status_code == 400, refused
        for origin in (ELSEWHERE, "null", VIEWER + ".evil.example"):
            answer = await client.options("/v1/slides", headers=preflight(origin))
            assert "access-control-allow-origin" not in answer.headers


async def test_answers_and_refusals_may_be_read_there_and_nowhere_else(tmp_path: Path, slides: Path) -> None:
    guarded = Guarded(tmp_path, slides, cors_origins=(VIEWER,), max_body_bytes=1000)
    right = {"authorization": f"Bearer {guarded.key}"}
    async with guarded.client() as client:
        slide = (await client.get("/v1/slides", headers=right)).json()["slides"][0]["id"]
        click = f"/v1/slides/{slide}/segment"
        for status, headers, body in ((200, right, BOX), (401, {}, BOX), (413, right, {"prompts": "x" * 2000})):
            answer = await client.post(click, json=body, headers={"origin": VIEWER, **headers})
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == VIEWER
            assert "access-control-allow-credentials" not in answer.headers
            exposed = answer.headers["access-control-expose-headers"].lower().split(", ")
            assert {"server-timing", "etag", "retry-after"} <= set(exposed)
            answer = await client.post(click, json=body, headers={"origin": ELSEWHERE, **headers})
            assert answer.status_code == status, "it is the browser that keeps the answer from the page"
            assert "access-control-allow-origin" not in answer.headers
            assert "origin" in answer.headers["vary"].lower()


async def test_tiles_are_for_every_page_but_tell_a_named_one_by_name(tmp_path: Path, slides: Path) -> None:
    guarded = Guarded(tmp_path, slides, cors_origins=(VIEWER,))
    async with guarded.client() as client:
        for origin, allowed in ((VIEWER, VIEWER), (ELSEWHERE, "*")):
            answer = await client.get(f"/k/{guarded.key}/v1/slides/x/iiif/info.json", headers={"origin": origin})
            assert answer.headers["access-control-allow-origin"] == allowed
            assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("said", [{}, {"content-type": "text/plain"}, {"content-type": "multipart/form-data"}])
async def test_what_a_page_may_post_without_a_preflight_is_refused(said: dict[str, str], settings: Settings) -> None:
    """Where nobody is asked who they are, the page needs no key."""
    app = create_app(settings, Catalogue(settings.slides), NumpyExecutor())
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        slide = (await client.get("/v1/slides")).json()["slides"][0]["id"]
        for path in (f"/v1/slides/{slide}/segment", f"/v1/slides/{slide}/results", "/sam/weights/", "/sam/"):
            answer = await client.post(path, content=json.dumps(BOX), headers={"origin": ELSEWHERE, **said})
            assert answer.status_code == 415, path


async def test_by_default_no_page_elsewhere_may_call(tmp_path: Path, slides: Path) -> None:
    async with Guarded(tmp_path, slides).client() as client:
        answer = await client.options("/v1/slides", headers=preflight(VIEWER))
        assert not answer.is_success
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "https://*.example.org",
        "https://viewer.example.org/",
        "viewer.example.org",
        "null",
        "https://a.b/c",
        "https://A.b",
    ],
)
def test_what_is_no_origin_is_refused_at_the_start(origin: str) -> None:
    with pytest.raises(SettingsError, match="cors_origins"):
        load_settings({"cors_origins": f"{VIEWER},{origin}"})
    assert load_settings({"cors_origins": f"{VIEWER}, http://[::1]:8080"}).cors_origins[1] == "http://[::1]:8080"


def test_a_page_in_a_browser_outlines_with_a_key_where_its_origin_is_named(tmp_path: Path, slides: Path) -> None:
    pages = Starlette(routes=[Route("/", lambda request: HTMLResponse("<p>a viewer</p>"))])
    script = """async ([url, key, body]) => {
        const headers = {"authorization": `Bearer ${key}`, "content-type": "application/json"};
        try {
            const listed = await (await fetch(`${url}v1/slides`, {headers})).json();
            const click = `${url}v1/slides/${listed.slides[0].id}/segment`;
            const answer = await fetch(click, {method: "POST", headers, body: JSON.stringify(body)});
            return [answer.status, answer.headers.get("server-timing")];
        } catch (error) {
            return [0, String(error)];
        }
    }"""
    with chromium() as browser, serving(pages) as named, serving(pages) as other:
        guarded = Guarded(tmp_path, slides, cors_origins=(named.rstrip("/"),))
        with serving(guarded.app) as url:
            answers = []
            for place in (named, other):
                page = browser.new_page()
                page.goto(place)
                answers.append(page.evaluate(script, [url, guarded.key, BOX]))
    assert answers[0][0] == 200
    assert "decode" in answers[0][1]
    assert answers[1][0] == 0, "the browser asked first, and was refused"
