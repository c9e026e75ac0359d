"""Health, info, metrics, the OpenAPI description, and what importing the application brings in."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from stand_ins import NumpyExecutor

from wsisam_service.errors import INTERNAL, METHOD_NOT_ALLOWED, PROBLEMS
from wsisam_service.slides.catalogue import Catalogue


async def test_ready_only_while_the_model_is_warm(client: httpx.AsyncClient, executor: NumpyExecutor) -> None:
    assert (await client.get("/readyz")).status_code == 200
    executor.warm = False
    answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()["type"]) == (503, "/problems/not-ready")
    assert answer.headers["retry-after"]
    assert (await client.get("/healthz")).status_code == 200
    executor.broken = True
    assert (await client.get("/healthz")).status_code == 503


async def test_a_crowd_that_asks_for_readiness_keeps_no_probe_out(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, begun, go, looks = asyncio.get_running_loop(), asyncio.Event(), threading.Event(), list[Catalogue]()

    def look_slowly(catalogue: Catalogue) -> bool:
        looks.append(catalogue)
        loop.call_soon_threadsafe(begun.set)
        assert go.wait(60)
        return True

    monkeypatch.setattr(Catalogue, "readable", look_slowly)
    is_readable, asked, all_asked = Catalogue.is_readable, 0, asyncio.Event()

    async def ask(catalogue: Catalogue) -> bool:
        nonlocal asked
        asked += 1
        if asked == 31:
            all_asked.set()
        return await is_readable(catalogue)

    monkeypatch.setattr(Catalogue, "is_readable", ask)
    first = asyncio.create_task(client.get("/readyz"))
    await begun.wait()
    crowd = [asyncio.create_task(client.get("/readyz")) for _ in range(30)]
    await all_asked.wait()
    go.set()
    assert {answer.status_code for answer in await asyncio.gather(first, *crowd)} == {200}
    assert len(looks) == 1
    assert (await client.get("/readyz")).status_code == 200
    assert len(looks) == 2


async def test_info_has_version_models_and_limits(client: httpx.AsyncClient) -> None:
    info = (await client.get("/v1/info")).json()
    assert info["version"]
    assert info["models"][0]["name"] == "lite_medsam"
    assert info["models"][0]["trained_prompts"] == ["box"]
    assert info["limits"]["max_prompts"] == 256
    assert info["limits"]["slide_mpp"] == [0.05, 20]


async def test_metrics_count_by_route_template_and_never_by_slide(client: httpx.AsyncClient, slide_id: str) -> None:
    await client.get(f"/v1/slides/{slide_id}")
    await client.get("/nowhere/at/all")
    text = (await client.get("/metrics")).text
    assert 'wsisam_requests_total{route="/v1/slides/{slide_id}",status="200"}' in text
    assert 'wsisam_requests_total{route="unmatched",status="404"}' in text
    assert slide_id not in text


async def test_openapi_describes_every_route_and_resolves(client: httpx.AsyncClient) -> None:
    description = (await client.get("/openapi.json")).json()
    schemas = description["components"]["schemas"]
    for reference in references(description):
        assert reference.removeprefix("#/components/schemas/") in schemas
    body = description["paths"]["/v1/slides/{slide_id}/segment"]["post"]["requestBody"]["content"]["application/json"]
    assert {"box", "points", "um"} <= body["examples"].keys()
    assert schemas["SegmentBody"]["properties"]["prompts"]["maxItems"] == 256
    assert {"/v1/segment", "/v1/slides/{slide_id}/prewarm", "/v1/slides/{slide_id}/region"} <= description[
        "paths"
    ].keys()


async def test_the_page_over_the_description_runs_one_script_that_is_known_by_its_hash(
    client: httpx.AsyncClient,
) -> None:
    """It is somebody else's, and the page's path or tab may hold a key."""
    page = await client.get("/docs")
    assert page.status_code == 200
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert "unsafe" not in policy["script-src"]
    foreign = re.findall(r"<(?:script|link)[^>]*https://[^>]*>", page.text)
    assert len(foreign) == 2
    for tag in foreign:
        assert re.search(r'integrity="sha384-[A-Za-z0-9+/]{64}"', tag)
        assert 'crossorigin="anonymous"' in tag
    (own,) = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy["script-src"]


def references(node: Any) -> list[str]:
    """Every `$ref` within a JSON document."""
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [found for value in node.values() for found in references(value)]
    return [found for item in node for found in references(item)] if isinstance(node, list) else []


def test_the_application_starts_and_ends_its_executor(app: FastAPI, executor: NumpyExecutor) -> None:
    from starlette.testclient import TestClient

    with TestClient(app) as client:
        assert client.get("/healthz").text == "ok\n"
        assert executor.warm
    assert not executor.warm


def test_the_documentation_has_every_problem_with_its_status() -> None:
    text = (Path(__file__).parents[2] / "docs" / "API.md").read_text()
    told = set(re.findall(r"^\| `/problems/([a-z0-9-]+)` \| (\d{3}) \|", text, re.MULTILINE))
    assert told == {(p.name, str(p.status)) for p in (*PROBLEMS.values(), METHOD_NOT_ALLOWED, INTERNAL)}
