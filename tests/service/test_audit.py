"""The audit trail: what is told of a request, where it goes, and what happens while nobody takes it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from certificates import Authority
from joserfc import jwt
from joserfc.jwk import ECKey
from lxml import etree
from processes import wait_until
from rsyslog import Rsyslog
from stand_ins import NumpyExecutor

from wsisam_service.access.identity import Role
from wsisam_service.access.issuer import Issuer
from wsisam_service.access.keys import StoredKey, append_key, hash_of, new_key
from wsisam_service.api.auditing import AuditMiddleware
from wsisam_service.api.middleware import ClientGone
from wsisam_service.app import create_app
from wsisam_service.audit import trail as trail_module
from wsisam_service.audit.dicom_message import dicom_message
from wsisam_service.audit.events import AuditEvent, now
from wsisam_service.audit.json_lines import JsonLines
from wsisam_service.audit.syslog import Syslog
from wsisam_service.audit.trail import AuditTrail
from wsisam_service.errors import BodyTooLarge
from wsisam_service.metrics import AUDIT_EVENTS, AUDIT_FAILING
from wsisam_service.settings import Settings
from wsisam_service.slides.catalogue import Catalogue

SCHEMA = etree.RelaxNG(etree.parse(str(Path(__file__).with_name("dicom_audit.rng"))))
BOX = {"prompts": [{"box": [600, 400, 760, 520]}]}


@asynccontextmanager
async def served(
    slides: Path, executor: NumpyExecutor | None = None, **settings: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """The service with audit settings; what waits is told when it has ended."""
    chosen = Settings(slides=(str(slides),), **settings)
    app = create_app(chosen, Catalogue(chosen.slides), executor or NumpyExecutor())
    transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=("192.0.2.7", 1234))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield client


async def slide_of(client: httpx.AsyncClient) -> str:
    return str((await client.get("/v1/slides", params={"q": "tissue"})).json()["slides"][0]["id"])


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def checked(document: bytes | str) -> etree._Element:
    """An audit message that fits the schema."""
    content = document.encode() if isinstance(document, str) else document
    root = etree.fromstring(content.removeprefix(b"\xef\xbb\xbf").strip())
    SCHEMA.assertValid(root)
    return root


async def test_a_line_tells_who_asked_what_of_which_slide_and_what_came_of_it(slides: Path, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    async with served(slides, audit_file=path) as client:
        slide = await slide_of(client)
        answer = await client.post(f"/v1/slides/{slide}/segment", json=BOX, headers={"x-request-id": "click-1"})
        assert answer.status_code == 200
        await client.post(f"/v1/slides/{slide}/segment", json={"prompts": [{"box": [9, 9, 1, 1]}]})
        await client.get("/v1/slides/Doe-John-1950/thumbnail")
        for untold in ("healthz", "readyz", "metrics", "", "docs", "v1/info", "sam/version/", "sam/progress/", "x"):
            await client.get(f"/{untold}")
    told = lines_of(path)
    assert [line["action"] for line in told] == ["start", *["request"] * 4, "stop"]
    assert [line["sequence"] for line in told] == [1, 2, 3, 4, 5, 6]
    listing, click, bad, unknown = told[1:5]
    assert listing["route"] == "GET /v1/slides"
    assert (click["route"], click["slide"]) == ("POST /v1/slides/{slide_id}/segment", slide)
    assert (click["who"], click["address"], click["request_id"]) == ("anonymous", "192.0.2.7", "click-1")
    assert (click["status"], click["outcome"]) == (200, "success")
    assert click["ms"] > 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", click["time"])
    assert (bad["status"], bad["outcome"]) == (422, "refused")
    assert (unknown["status"], unknown.get("slide")) == (404, None)
    assert "Doe" not in path.read_text()  # what a client puts into a path is not told
    assert "tissue" not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600


async def test_what_the_service_ends_before_it_is_done_is_told_as_it_is_answered(slides: Path, tmp_path: Path) -> None:
    path, executor = tmp_path / "audit.jsonl", NumpyExecutor(hold=asyncio.Event())
    async with served(slides, executor, audit_file=path) as client:
        click = asyncio.create_task(client.post(f"/v1/slides/{await slide_of(client)}/segment", json=BOX))
        await asyncio.wait_for(executor.waiting.wait(), 10)
        click.cancel()  # as the server does at the end of its grace
        await asyncio.gather(click, return_exceptions=True)
    told = lines_of(path)[2]
    assert (told["route"], told["status"], told["outcome"]) == ("POST /v1/slides/{slide_id}/segment", 503, "failed")


@pytest.mark.parametrize(
    ("error", "status", "outcome"),
    [(ClientGone(), 499, "left"), (BodyTooLarge("too large"), 413, "refused"), (KeyError(), 500, "failed")],
)
async def test_what_ends_in_an_error_is_told_as_it_is_answered(error: Exception, status: int, outcome: str) -> None:
    told: list[AuditEvent] = []

    class Heard(AuditTrail):
        def record(self, event: AuditEvent) -> None:
            told.append(event)

    async def app(*_: object) -> None:
        raise error

    scope = {"type": "http", "method": "POST", "path": "/v1/segment", "headers": []}
    with pytest.raises(type(error)):
        await AuditMiddleware(app, Heard([], max_waiting=1))(scope, app, app)  # type: ignore[arg-type]
    assert [(event.status, event.outcome) for event in told] == [(status, outcome)]


@pytest.mark.parametrize(("status", "outcome"), [(399, "success"), (400, "refused"), (498, "refused"), (500, "failed")])
def test_a_status_says_whose_fault_it_was(status: int, outcome: str) -> None:
    assert AuditEvent("request", status=status).outcome == outcome


def test_a_renamed_file_stays_as_it_is_and_a_new_one_begins(tmp_path: Path) -> None:
    path, old = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.1"
    sink = JsonLines(path)
    sink.send([AuditEvent("start", 1)])
    path.rename(old)
    sink.send([AuditEvent("request", 2), AuditEvent("request", 3)])
    path.unlink()
    sink.send([AuditEvent("stop", 4)])
    sink.close()
    assert [line["sequence"] for line in lines_of(old)] == [1]
    assert [line["sequence"] for line in lines_of(path)] == [4]


def test_a_file_only_grows_over_restarts_and_beside_others_and_one_put_in_its_place_goes_on(tmp_path: Path) -> None:
    path, old = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.1"
    first, second = JsonLines(path), JsonLines(path)
    for number, sink in enumerate((first, second, first), 1):
        sink.send([AuditEvent("request", number)])
    first.close()
    restarted = JsonLines(path)
    restarted.send([AuditEvent("lost", 4, lost=3)])
    assert [line["sequence"] for line in lines_of(path)] == [1, 2, 3, 4]
    assert lines_of(path)[-1]["lost"] == 3
    path.rename(old)
    path.touch()  # as log rotation does
    restarted.send([AuditEvent("request", 5)])
    assert [line["sequence"] for line in lines_of(path)] == [5]
    for sink in (second, restarted):
        sink.close()


@pytest.mark.parametrize("after", ["a while", "a restart", "a rotation"])
def test_a_write_cut_short_spoils_one_line_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str) -> None:
    path, write = tmp_path / "audit.jsonl", os.write
    sink = JsonLines(path)

    def half(descriptor: int, content: bytes) -> int:
        if len(content) < 40:
            raise OSError(28, "No space left on device")
        return write(descriptor, content[: len(content) // 2])

    def nothing(descriptor: int, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    for written in (half, nothing):
        monkeypatch.setattr(os, "write", written)
        with pytest.raises(OSError, match="No space"):
            sink.send([AuditEvent("start", 1)])
    monkeypatch.setattr(os, "write", write)
    if after == "a restart":
        sink.close()
        sink = JsonLines(path)
    elif after == "a rotation":
        path.rename(tmp_path / "audit.jsonl.1")
    sink.send([AuditEvent("start", 1)])
    sink.close()
    if after == "a rotation":
        (line,) = path.read_text().splitlines()
        assert json.loads(line)["sequence"] == 1
        return
    torn, whole = path.read_text().splitlines()
    with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
        json.loads(torn)
    assert json.loads(whole)["sequence"] == 1


async def test_a_sink_that_fails_is_seen_and_counted_and_clicks_go_on(
    slides: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trail_module, "CLOSE_S", 0.1)
    async with served(slides, audit_file=Path("/dev/full"), audit_waiting=3) as client:
        slide = await slide_of(client)
        for _ in range(4):
            assert (await client.post(f"/v1/slides/{slide}/segment", json=BOX)).status_code == 200
        ready = await client.get("/readyz")
        assert ready.status_code == 200
        assert re.search(r"^audit file: failing for \d+ s, 3 waiting, 3 lost$", ready.text, re.MULTILINE)
        metrics = (await client.get("/metrics")).text
        assert 'wsisam_audit_failing{sink="file"} 1.0' in metrics
        assert 'wsisam_audit_waiting{sink="file"} 3.0' in metrics


async def test_a_server_that_takes_the_connection_and_says_nothing_delays_no_click(
    slides: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trail_module, "CLOSE_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with served(slides, audit_syslog=f"127.0.0.1:{silent.getsockname()[1]}") as client:
            slide = await slide_of(client)
            started = time.monotonic()
            assert (await client.post(f"/v1/slides/{slide}/segment", json=BOX)).status_code == 200
            assert time.monotonic() - started < 5  # the handshake gets 10 s
            assert "audit syslog: " in (await client.get("/readyz")).text


class Tap:
    """A sink that can be closed off."""

    name = "tap"
    check_s: float | None = None

    def __init__(self) -> None:
        self.open, self.closed = True, False
        self.refused = 0
        self.taken: list[AuditEvent] = []
        self.batches: list[int] = []

    def send(self, events: Any) -> None:
        if not self.open:
            self.refused += 1
            raise OSError
        self.taken += events
        self.batches.append(len(events))

    def check(self) -> None: ...

    def close(self) -> None:
        self.closed = True


def test_what_waited_is_told_in_order_and_not_all_at_once() -> None:
    tap = Tap()
    tap.open = False
    trail = AuditTrail([tap], max_waiting=1_000)
    trail.start()
    for _ in range(600):
        trail.record(AuditEvent("request"))
    tap.open = True
    trail.close()
    assert [event.sequence for event in tap.taken] == list(range(1, 603))
    assert max(tap.batches) == trail_module.BATCH
    assert tap.closed


def test_a_sink_that_has_failed_for_long_is_tried_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trail_module, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(trail_module, "LONGEST_PAUSE_S", 0.002)
    tap = Tap()
    tap.open = False
    trail = AuditTrail([tap], max_waiting=5)
    trail.start()
    wait_until(lambda: tap.refused >= 30, "thirty attempts")
    tap.open = True
    trail.close()
    assert [event.action for event in tap.taken] == ["start", "stop"]


def test_what_was_lost_is_told_once_the_sink_takes_events_again() -> None:
    counters = [AUDIT_EVENTS.labels("tap", what)._value for what in ("lost", "delivered")]
    before = [counter.get() for counter in counters]
    tap = Tap()
    tap.open = False
    trail = AuditTrail([tap], max_waiting=5)
    trail.start()
    for number in range(20):
        trail.record(AuditEvent("request", request_id=str(number)))
    wait_until(lambda: "failing" in trail.states()[0], "the sink fails")
    wait_until(lambda: AUDIT_FAILING.labels("tap")._value.get() == 1, "whoever watches the metrics is told")
    tap.open = True
    wait_until(lambda: any(event.action == "lost" for event in tap.taken), "the loss is told")
    wait_until(lambda: ": ok, 0 waiting, 16 lost" in trail.states()[0], "and nothing fails any more")
    trail.close()
    assert [event.request_id for event in tap.taken if event.action == "request"] == ["0", "1", "2", "3"]
    assert [event.lost for event in tap.taken if event.action == "lost"] == [16]
    assert [counter.get() for counter in counters] == [before[0] + 16, before[1] + len(tap.taken)]
    assert AUDIT_FAILING.labels("tap")._value.get() == 0
    numbers = [event.sequence for event in tap.taken]
    assert numbers[:5] == [1, 2, 3, 4, 5]
    assert numbers[5] == 22  # the gap that 16 lost events leave


@pytest.mark.parametrize(
    ("event", "code", "subtype", "outcome"),
    [
        (AuditEvent("start"), "110100", "110120", "0"),
        (AuditEvent("stop"), "110100", "110121", "0"),
        (AuditEvent("lost", lost=3), "110113", "110133", "0"),
        (AuditEvent("request", route="GET /v1/slides"), "110112", "GET /v1/slides", "0"),
        (AuditEvent("request", route="DELETE /v1/slides/{slide_id}/cache", slide="a"), "110103", None, "0"),
        (AuditEvent("request", route="POST /v1/slides/{slide_id}/results", slide="a"), "110103", None, "0"),
        (AuditEvent("request", route="POST x/results", slide="a", transfer=True), "110104", "POST x/results", "0"),
        (AuditEvent("request", route="POST x/results", slide="a", transfer=True, status=502), "110104", None, "8"),
        (AuditEvent("request", route="POST x/results", slide="a", transfer=True, status=422), "110103", None, "4"),
        (AuditEvent("request", route="POST /sam/weights/"), "110113", "110131", "0"),
        (AuditEvent("request", route="POST /v1/segment", status=503), "110103", None, "8"),
        (AuditEvent("request", status=401), "110114", "110122", "4"),
        (AuditEvent("request", status=403), "110113", "110132", "4"),
        (AuditEvent("request", status=429, who="unknown"), "110114", "110122", "4"),
        (AuditEvent("request", status=429, role="viewer", route="GET /v1/slides"), "110112", "GET /v1/slides", "4"),
        (
            AuditEvent("request", route="GET x", who="a<b>\x00\x1b\ud800", address="::1", status=404),
            "110103",
            "GET x",
            "4",
        ),
    ],
)
def test_every_kind_of_event_is_a_valid_dicom_message(
    event: AuditEvent, code: str, subtype: str | None, outcome: str
) -> None:
    root = checked(dicom_message(event, host="gateway-1", site="St. Elsewhere"))
    about = root.find("EventIdentification")
    assert about is not None
    assert (about.find("EventID").get("csd-code"), about.get("EventOutcomeIndicator")) == (code, outcome)
    if subtype is not None:
        assert about.find("EventTypeCode").get("csd-code") == subtype
    assert root.find("AuditSourceIdentification").get("AuditEnterpriseSiteID") == "St. Elsewhere"


@pytest.mark.parametrize(
    ("route", "slide", "objects"),
    [
        ("GET /v1/slides/{slide_id}", "abc", ["abc"]),
        ("POST /v1/segment", "", ["picture"]),
        ("POST /samautomask/", "", ["picture"]),
        ("POST /sam", "", ["picture"]),
        ("DELETE /v1/slides/{slide_id}/cache", "", []),
        ("POST unmatched", "", []),
        ("POST /sam/weights/", "", []),
        ("GET /v1/slides", "", []),
    ],
)
def test_a_message_names_a_slide_or_a_picture_that_was_sent_and_nothing_else(
    route: str, slide: str, objects: list[str]
) -> None:
    root = checked(dicom_message(AuditEvent("request", route=route, slide=slide), host="gateway-1", site=""))
    assert [one.get("ParticipantObjectID") for one in root.findall("ParticipantObjectIdentification")] == objects


async def test_wrong_keys_are_told_wherever_they_knock(slides: Path, tmp_path: Path) -> None:
    path, keys = tmp_path / "audit.jsonl", tmp_path / "keys.toml"
    keys.touch()
    async with served(slides, audit_file=path, keys=keys) as client:
        for route in ("/metrics", "/v1/info", "/v1/slides"):
            assert (await client.get(route)).status_code == 401
    assert [line["route"] for line in lines_of(path)[1:-1]] == ["GET /metrics", "GET /v1/info", "GET /v1/slides"]


async def test_pictures_and_who_is_forbidden_something_are_told_too(slides: Path, tmp_path: Path) -> None:
    path, keys = tmp_path / "audit.jsonl", tmp_path / "keys.toml"
    key = new_key()
    append_key(keys, StoredKey(name="anna", role=Role.ANNOTATOR, sha256=hash_of(key)))
    async with served(slides, audit_file=path, keys=keys) as client:
        client.headers["authorization"] = f"Bearer {key}"
        for route in ("/v1/segment", "/sam/", "/sam/automask/"):
            await client.post(route, json={})
        for untold in ("/v1/info", "/sam/version/"):
            assert (await client.get(untold)).status_code == 200
        assert (await client.get("/metrics")).status_code == 403
    told = lines_of(path)[1:-1]
    assert [line["route"] for line in told] == [
        "POST /v1/segment",
        "POST /sam/",
        "POST /sam/automask/",
        "GET /metrics",
    ]
    assert {(line["who"], line["role"]) for line in told} == {("key:anna", "annotator")}


async def test_a_token_without_a_role_is_told_by_its_subject(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, key, issuer = tmp_path / "audit.jsonl", ECKey.generate_key("P-256"), "https://issuer.example"

    async def key_of(*_: object) -> ECKey:
        return key

    monkeypatch.setattr(Issuer, "key", key_of)
    claims = {"iss": issuer, "aud": "wsisam", "sub": "anna", "exp": int(time.time()) + 60}
    token = jwt.encode({"alg": "ES256"}, claims, key)
    async with served(slides, audit_file=path, oidc_issuer=issuer, oidc_audience="wsisam") as client:
        answer = await client.get("/v1/slides", headers={"authorization": f"Bearer {token}"})
        assert (answer.status_code, answer.json()["type"]) == (403, "/problems/forbidden")
    assert lines_of(path)[1]["who"] == "oidc:anna"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "certificates")


@pytest.fixture
def rsyslog(tmp_path: Path, authority: Authority) -> Iterator[Rsyslog]:
    running = Rsyslog(tmp_path, authority.ca, authority.issue("server"))
    yield running
    running.close()


def syslog_settings(rsyslog: Rsyslog, authority: Authority) -> dict[str, Any]:
    own = authority.issue("client")
    return {
        "audit_syslog": f"127.0.0.1:{rsyslog.port}",
        "audit_syslog_ca": authority.ca,
        "audit_syslog_certificate": own.certificate,
        "audit_syslog_key": own.key,
    }


async def test_rsyslog_understands_every_message(slides: Path, rsyslog: Rsyslog, authority: Authority) -> None:
    async with served(slides, audit_site="St. Elsewhere", **syslog_settings(rsyslog, authority)) as client:
        slide = await slide_of(client)
        await client.post(f"/v1/slides/{slide}/segment", json=BOX)
        await client.post(f"/v1/slides/{slide}/segment", json={"prompts": [{"box": [9, 9, 1, 1]}]})
    wait_until(lambda: len(rsyslog.messages()) == 5, "five messages arrive")
    start, listing, click, bad, stop = rsyslog.messages()
    for message in (start, listing, click, bad, stop):
        assert (message["version"], message["msgid"], message["pid"]) == ("1", "DICOM+RFC3881", str(os.getpid()))
        checked(message["msg"].lstrip("\ufeff"))
    assert [message["pri"] for message in (click, bad)] == ["85", "84"]
    assert [message["data"] for message in (start, stop)] == ['[meta sequenceId="1"]', '[meta sequenceId="5"]']
    root = checked(click["msg"].lstrip("\ufeff"))
    assert root.find("ParticipantObjectIdentification").get("ParticipantObjectID") == slide
    requestor = root.find("ActiveParticipant[@UserIsRequestor='true']")
    assert (requestor.get("UserID"), requestor.get("NetworkAccessPointID")) == ("anonymous", "192.0.2.7")


async def test_rsyslog_stopped_and_started_again_misses_nothing(
    slides: Path, rsyslog: Rsyslog, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trail_module, "LONGEST_PAUSE_S", 0.25)
    async with served(slides, **syslog_settings(rsyslog, authority)) as client:
        asked = 0

        async def ask(count: int) -> None:
            nonlocal asked
            for _ in range(count):
                assert (await client.get("/v1/slides")).status_code == 200
                asked += 1

        await ask(20)
        rsyslog.kill()  # with whatever it had not read or written yet
        await ask(20)
        waiting = (await client.get("/readyz")).text
        assert "audit syslog: " in waiting
        rsyslog.start()
        rsyslog.await_listening()
        await ask(20)
        rsyslog.terminate()
        await ask(20)
        rsyslog.start()
        rsyslog.await_listening()
        await ask(20)
    wait_until(lambda: len(sequences(rsyslog)) >= asked + 2, "every message arrives")
    assert sequences(rsyslog) == set(range(1, asked + 3))


def sequences(rsyslog: Rsyslog) -> set[int]:
    """Numbers of the messages that arrived; some arrive twice, as syslog has no acknowledgements."""
    found = (re.fullmatch(r'\[meta sequenceId="(\d+)"\]', message["data"]) for message in rsyslog.messages())
    return {int(one[1]) for one in found if one}


def test_a_server_of_another_authority_gets_nothing(tmp_path: Path, rsyslog: Rsyslog, authority: Authority) -> None:
    stranger = Authority(tmp_path / "stranger", "stranger")
    own = authority.issue("client")
    sink = Syslog("127.0.0.1", rsyslog.port, ca=stranger.ca, certificate=own.certificate, key=own.key)
    with pytest.raises(OSError, match="certificate verify failed"):
        sink.send([AuditEvent("start", 1, now())])
