"""What surrounds every request: ids, limits, time-outs, clients that leave, errors nobody foresaw."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.types import ASGIApp, Message

from wsisam_service.api import problems
from wsisam_service.api.middleware import LimitsMiddleware, RequestMiddleware, unless_client_gone
from wsisam_service.errors import Overloaded, UnknownSlide
from wsisam_service.logs import JsonFormatter, RequestIds, current_request
from wsisam_service.metrics import REFUSALS
from wsisam_service.segmenting.answers import EveryPromptFailed, PromptProblem

MAX_BODY_BYTES = 1000


@pytest.fixture
def app() -> FastAPI:
    """A few routes inside the middleware that the service has."""
    app = FastAPI()
    problems.install(app)
    longer_s = {"/slow": 60.0}
    app.add_middleware(LimitsMiddleware, max_body_bytes=MAX_BODY_BYTES, timeout_s=0.2, longer_s=longer_s)
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


@pytest.mark.parametrize("path", ["/slow", "/slow/"])
async def test_what_may_take_longer_does(app: FastAPI, client: httpx.AsyncClient, path: str) -> None:
    done = asyncio.Event()

    @app.get(path)
    async def slow() -> int:
        await done.wait()
        return 7

    asking = asyncio.create_task(client.get(path))
    assert (await client.get("/never")).status_code == 504  # begun later
    done.set()
    assert (await asking).json() == 7


async def test_a_time_out_of_something_else_is_not_the_requests(app: FastAPI, client: httpx.AsyncClient) -> None:
    @app.get("/broken")
    async def broken() -> None:
        raise TimeoutError

    answer = await client.get("/broken")
    assert (answer.status_code, problem_of(answer)) == (500, "internal")


@pytest.mark.parametrize("length", ["-1", "+5", "1e2", "5, 5", "", "\xb2"])
async def test_a_length_that_is_none_is_refused(client: httpx.AsyncClient, length: str) -> None:
    answer = await client.post("/length", content=b"x" * 5, headers={b"content-length": length.encode("latin-1")})
    assert (answer.status_code, problem_of(answer)) == (413, "body-too-large")


async def test_a_body_with_two_ends_is_refused_and_its_connection_closed(client: httpx.AsyncClient) -> None:
    two_ends = {"content-length": "5", "transfer-encoding": "chunked"}
    answer = await client.post("/length", content=b"x" * 5, headers=two_ends)
    assert (answer.status_code, problem_of(answer), answer.headers["connection"]) == (422, "invalid-request", "close")
    assert "connection" not in (await client.post("/length", content=b"x")).headers


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


async def test_when_every_prompt_is_refused_it_is_counted_and_says_when_to_come_back(
    app: FastAPI, client: httpx.AsyncClient
) -> None:
    @app.get("/prompts")
    async def prompts() -> None:
        busy = Overloaded("too many views are waiting", retry_after_s=3)
        raise EveryPromptFailed([PromptProblem("a", busy), PromptProblem("b", UnknownSlide("no such slide"))])

    counter = REFUSALS.labels("overloaded")._value
    before = counter.get()
    answer = await client.get("/prompts")
    assert (answer.status_code, answer.headers["retry-after"], problem_of(answer)) == (503, "3", "overloaded")
    assert [(one["id"], one["status"]) for one in answer.json()["errors"]] == [("a", 503), ("b", 404)]
    assert counter.get() == before + 1


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


async def test_client_that_leaves_takes_its_work_with_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "wsisam.access")
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
    assert [record.__dict__["status"] for record in caplog.records] == [499]


def asked_of(app: ASGIApp) -> tuple[asyncio.Task[None], list[Message]]:
    """A request to `app` behind the middleware, under way, and what is sent for it."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("nobody reads the body")

    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    return asyncio.create_task(RequestMiddleware(app)(scope, receive, send)), sent


async def test_a_request_that_outlives_the_service_is_answered_with_a_problem() -> None:
    started = asyncio.Event()

    async def app(scope: object, receive: object, send: object) -> None:
        started.set()
        await asyncio.Event().wait()

    request, sent = asked_of(app)
    await started.wait()
    request.cancel()  # as uvicorn does at the end of its grace
    with pytest.raises(asyncio.CancelledError):
        await request
    assert sent[0]["status"] == 503
    assert json.loads(sent[1]["body"])["type"] == "/problems/not-ready"


@pytest.mark.parametrize("how", ["ended", "bug"])
async def test_an_answer_that_has_begun_is_not_followed_by_a_problem(how: str) -> None:
    begun = asyncio.Event()

    async def app(scope: object, receive: object, send: Callable[[Message], Awaitable[None]]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        begun.set()
        if how == "bug":
            raise KeyError("the secret inside")
        await asyncio.Event().wait()

    request, sent = asked_of(app)
    await begun.wait()
    if how == "ended":
        request.cancel()
    with pytest.raises(KeyError if how == "bug" else asyncio.CancelledError):
        await request
    assert [message["type"] for message in sent] == ["http.response.start"]


async def test_log_line_names_the_request(caplog: pytest.LogCaptureFixture, client: httpx.AsyncClient) -> None:
    caplog.set_level("INFO", "wsisam.access")
    await client.post("/length", content=b"x")
    record = next(record for record in caplog.records if record.name == "wsisam.access")
    token = current_request.set(RequestIds("r1"))
    line = json.loads(JsonFormatter().format(record))
    current_request.reset(token)
    assert (line["route"], line["status"], line["method"], line["x-request-id"]) == ("/length", 200, "POST", "r1")
