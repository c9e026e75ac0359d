"""Attacks below HTTP's surface, on a real `wsisam serve`: whoever is slow, silent, endless or many starves nobody."""

from __future__ import annotations

import json
import os
import re
import resource
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest
from processes import Process, wait_until

HERE = Path(__file__).parent
HEAD_S = 1.0
MOST = 4096
PROGRAM = f"""
import sys
from stand_ins import NumpyExecutor
from wsisam_service import assembly, cli
from wsisam_service.commands import connections
connections.HEAD_S = connections.LINGER_S = {HEAD_S}
assembly.load_backend = lambda settings: None
assembly.build_executor = lambda settings, backend: NumpyExecutor()
assembly.notes_of = lambda backend: ("model of numpy",)
sys.exit(cli.main(sys.argv[1:]))
"""


class Served:
    """A running service, and a slide of it to click on."""

    def __init__(self, process: Process, url: str) -> None:
        self.process = process
        self.url = url
        self.address = (httpx.URL(url).host, httpx.URL(url).port or 0)
        self.slide = httpx.get(f"{url}/v1/slides", params={"q": "tissue"}).json()["slides"][0]["id"]

    def click(self) -> int:
        body = {"prompts": [{"box": [600, 400, 760, 520]}]}
        return httpx.post(f"{self.url}/v1/slides/{self.slide}/segment", json=body, timeout=30).status_code

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=20)


@pytest.fixture(scope="module")
def service(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        "serve",
        "--slides",
        str(slides),
        "--port",
        "0",
        "--request-timeout-s",
        "2",
    ]
    path = os.pathsep.join((str(HERE), os.environ.get("PYTHONPATH", "")))
    log = tmp_path_factory.mktemp("serve") / "serve.log"
    process = Process(command, log, env=os.environ | {"PYTHONPATH": path})

    def listens() -> bool:
        assert process.alive, process.said()
        return "listening on" in process.said()

    wait_until(listens, "the service listens")
    found = re.search(r"listening on (http://\S+)", process.said())
    assert found
    yield Served(process, found[1])
    assert process.alive
    process.close()


def answer_of(connection: socket.socket) -> bytes:
    """Everything until the other side closes; also where it does so hard."""
    received = b""
    with suppress(ConnectionError):
        while part := connection.recv(65536):
            received += part
    return received


def test_who_says_nothing_or_only_half_a_head_is_left_standing(service: Served) -> None:
    with ExitStack() as open_ones:
        waiting = [open_ones.enter_context(service.connect()) for _ in range(200)]
        for index, connection in enumerate(waiting):
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: "[: index % 40])
        started = time.monotonic()
        assert service.click() == 200
        assert [answer_of(connection) for connection in waiting] == [b""] * len(waiting)
        assert time.monotonic() - started < 15


def test_a_head_that_drips_after_a_first_request_ends_too(service: Served) -> None:
    with service.connect() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /healthz HTT")
        assert b"200 OK" not in answer_of(connection)


def test_a_body_that_drips_is_a_timeout_and_the_connection_ends(service: Served) -> None:
    head = f"POST /v1/slides/{service.slide}/segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
    with service.connect() as connection:
        connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode())
        connection.settimeout(0.2)
        answer, started = b"", time.monotonic()
        while time.monotonic() - started < 15:
            try:
                connection.sendall(b" ")
                part = connection.recv(65536)
            except TimeoutError:
                continue
            except ConnectionError:
                break
            if not part:
                break
            answer += part
        else:
            pytest.fail("the connection is still open")
    assert answer.startswith(b"HTTP/1.1 504")
    assert service.click() == 200


def test_ten_thousand_idle_connections_leave_room_for_a_click(service: Served) -> None:
    count = 10_000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count + 1000:
        pytest.skip(f"needs {count} open files; the system allows {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with ExitStack() as open_ones:
            for number in range(count):
                open_ones.enter_context(service.connect())
                if number % 2500 == 2499:
                    assert service.click() == 200
            held = len(list(Path(f"/proc/{service.process.pid}/fd").iterdir()))
            assert held < MOST + 200
            assert service.click() == 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    "head",
    [
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Big: " + b"a" * 1_000_000 + b"\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + b"".join(b"X-%d: a\r\n" % n for n in range(20_000)) + b"\r\n",
        b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=["one giant header", "twenty thousand headers", "a giant address"],
)
def test_giant_heads_are_refused(service: Served, head: bytes) -> None:
    with service.connect() as connection:
        with suppress(ConnectionError):  # it need not even read all of it
            connection.sendall(head)
        assert b"HTTP/1.1 200" not in answer_of(connection)
    assert service.click() == 200


@pytest.mark.parametrize(
    "request_",
    [
        b"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
        b"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nX Y: z\r\nHost: localhost\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_requests_that_two_servers_might_read_differently_are_refused(service: Served, request_: bytes) -> None:
    with service.connect() as connection:
        connection.sendall(request_)
        connection.shutdown(socket.SHUT_WR)
        answer = answer_of(connection)
    assert re.match(rb"HTTP/1\.1 (4\d\d|501)", answer) or answer == b""


def test_a_smuggled_second_request_is_not_answered(service: Served) -> None:
    """A length beside chunks: whoever believes the length sees a request in the body."""
    inner = b"GET /v1/info HTTP/1.1\r\nHost: localhost\r\n\r\n"
    body = b"0\r\n\r\n" + inner
    head = (
        b"POST /sam/upload/ HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: %d\r\n\r\n"
        % len(body)
    )
    with service.connect() as connection:
        connection.sendall(head + body)
        connection.shutdown(socket.SHUT_WR)
        answer = answer_of(connection)
    assert answer.startswith(b"HTTP/1.1 422 ")
    assert answer.count(b"HTTP/1.1 ") == 1


def test_deep_json_is_refused_not_followed(service: Served) -> None:
    at = f"{service.url}/v1/slides/{service.slide}/segment"
    for body in ("[" * 100_000, '{"prompts":' * 100_000, '{"prompts": ' + "[" * 5000 + "]" * 5000 + "}"):
        answer = httpx.post(at, content=body, headers={"content-type": "application/json"}, timeout=30)
        assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid-request")


def test_the_log_of_all_this_is_json_and_names_no_client_text(service: Served) -> None:
    lines = [line for line in service.process.said().splitlines() if line.startswith("{")]
    assert len(lines) > 20
    for line in lines:
        assert "Traceback" not in json.loads(line).get("exception", "")
