"""What surrounds every request: ids, limits, time-outs, clients that leave, errors nobody foresaw."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.types import Message

from wsisam_service.api import problems
from wsisam_service.api.middleware import LimitsMiddleware, RequestMiddleware, unless_client_gone
from wsisam_service.errors import Overloaded
from wsisam_service.logs import JsonFormatter, RequestIds, current_request

MAX_BODY_BYTES = 1000


@pytest.fixture
def app() -> FastAPI:
    """A few routes inside the middleware that the service has."""
    app = FastAPI()
    problems.install(app)
    app.add_middleware(LimitsMiddleware, max_body_bytes=MAX_BODY_BYTES, timeout_s=0.2)
    app.add_middleware(RequestMiddleware)

    @app.post("/length")
    async def length(request: Request) -> int:
        return len(await request.body())

    @app.get("/never")
    async def never() -> None:
        await asyncio.Event().wait()

    @app.get("/bug")
    async def bug() -> None:
        raise KeyError("the secret inside")

    @app.get("/busy")
    async def busy() -> None:
        raise Overloaded("too many views are waiting", retry_after_s=3)

    @app.get("/ids")
    async def ids() -> dict[str, str]:
        current = current_request.get()
        assert current is not None
        return current.headers()

    return app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client


def problem_of(answer: httpx.Response) -> str:
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert document["status"] == answer.status_code
    assert document["request_id"] == answer.headers["x-request-id"]
    return str(document["type"]).removeprefix("/problems/")


async def chunks(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b"x" * 100


async def test_body_within_the_limit_passes_with_and_without_a_length(client: httpx.AsyncClient) -> None:
    assert (await client.post("/length", content=b"x" * MAX_BODY_BYTES)).json() == MAX_BODY_BYTES
    assert (await client.post("/length", content=chunks(10))).json() == MAX_BODY_BYTES


async def test_body_over_the_limit_is_refused_with_and_without_a_length(client: httpx.AsyncClient) -> None:
    for content in (b"x" * (MAX_BODY_BYTES + 1), chunks(11)):
        answer = await client.post("/length", content=content)
        assert (answer.status_code, problem_of(answer)) == (413, "body-too-large")


async def test_endless_body_is_refused_while_it_streams(client: httpx.AsyncClient) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 100
            yield b"x" * 100

    answer = await client.post("/length", content=endless())
    assert answer.status_code == 413
    assert sent <= MAX_BODY_BYTES + 200


async def test_work_beyond_the_deadline_answers_504(client: httpx.AsyncClient) -> None:
    answer = await client.get("/never")
    assert (answer.status_code, problem_of(answer)) == (504, "timeout")


async def test_unexpected_error_tells_nothing_and_logs_the_request(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await client.get("/bug", headers={"x-request-id": "abc"})
    assert (answer.status_code, problem_of(answer)) == (500, "internal")
    assert "secret" not in answer.text
    assert any(record.exc_info and "the secret inside" in str(record.exc_info[1]) for record in caplog.records)


async def test_refusal_says_when_to_come_back(client: httpx.AsyncClient) -> None:
    answer = await client.get("/busy")
    assert (answer.status_code, answer.headers["retry-after"], problem_of(answer)) == (503, "3", "overloaded")


async def test_request_id_and_trace_travel(client: httpx.AsyncClient) -> None:
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    answer = await client.get("/ids", headers={"x-request-id": "abc-1", "traceparent": trace})
    assert answer.headers["x-request-id"] == "abc-1"
    assert answer.json() == {"x-request-id": "abc-1", "traceparent": trace}


@pytest.mark.parametrize("hostile", ["", "a b", 'x"y', "a" * 200])
async def test_ill_formed_request_id_is_replaced(client: httpx.AsyncClient, hostile: str) -> None:
    answer = await client.get("/ids", headers={"x-request-id": hostile, "traceparent": "nonsense"})
    assert answer.headers["x-request-id"] != hostile
    assert "traceparent" not in answer.json()


async def test_unknown_address_and_method_are_problems(client: httpx.AsyncClient) -> None:
    unknown, wrong = await client.get("/nowhere"), await client.put("/bug")
    assert (unknown.status_code, problem_of(unknown)) == (404, "not-found")
    assert (wrong.status_code, problem_of(wrong), wrong.headers["allow"]) == (405, "method-not-allowed", "GET")


async def test_client_that_leaves_takes_its_work_with_it() -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()
    gone = asyncio.Event()

    async def receive() -> Message:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def work() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def app(scope: dict[str, object], receive: object, send: object) -> None:
        await unless_client_gone(Request(scope, receive), work())  # type: ignore[arg-type]

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    request = asyncio.create_task(RequestMiddleware(app)(scope, receive, send))  # type: ignore[arg-type]
    await started.wait()
    gone.set()
    await request
    assert cancelled.is_set()
    assert sent == []


async def test_a_request_that_outlives_the_service_is_answered_with_a_problem() -> None:
    started = asyncio.Event()

    async def app(scope: object, receive: object, send: object) -> None:
        started.set()
        await asyncio.Event().wait()

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    request = asyncio.create_task(RequestMiddleware(app)(scope, app, send))  # type: ignore[arg-type]
    await started.wait()
    request.cancel()  # as uvicorn does at the end of its grace
    with pytest.raises(asyncio.CancelledError):
        await request
    assert sent[0]["status"] == 503
    assert json.loads(sent[1]["body"])["type"] == "/problems/not-ready"


async def test_log_line_names_the_request(caplog: pytest.LogCaptureFixture, client: httpx.AsyncClient) -> None:
    caplog.set_level("INFO", "wsisam.access")
    await client.post("/length", content=b"x")
    record = next(record for record in caplog.records if record.name == "wsisam.access")
    token = current_request.set(RequestIds("r1"))
    line = json.loads(JsonFormatter().format(record))
    current_request.reset(token)
    assert (line["route"], line["status"], line["method"], line["x-request-id"]) == ("/length", 200, "POST", "r1")
