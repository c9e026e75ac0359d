"""`wsisam serve` as a process: real sockets, real signals, a numpy stand-in for the network."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from wsisam_service.commands.listening import listen

HERE = Path(__file__).parent
PROGRAM = """
import sys
from stand_ins import NumpyExecutor
from wsisam_service import assembly, cli
assembly.load_backend = lambda settings: None
assembly.build_executor = lambda settings, backend: NumpyExecutor()
assembly.notes_of = lambda backend: ("model of numpy",)
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture
def server(slides: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running server and its URL."""
    with serving("--slides", str(slides)) as (process, url, _):
        yield process, url


@contextmanager
def serving(*flags: str) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """A running server, its URL, and the lines it printed before it listened."""
    command = [sys.executable, "-c", PROGRAM, "serve", "--port", "0", *flags]
    environment = os.environ | {"PYTHONPATH": str(HERE)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    url, told = "", []
    for line in process.stdout:
        told.append(line.rstrip())
        if found := re.search(r"listening on (http://\S+)", line):
            url = found[1]
            break
    assert url, process.stderr.read() if process.stderr else ""
    try:
        yield process, url, told
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        if process.stderr:
            process.stderr.close()


def test_where_nobody_is_asked_a_foreign_name_is_refused(server: tuple[subprocess.Popen[str], str]) -> None:
    """DNS rebinding: a page elsewhere whose name leads here is, to the browser, a page of this service."""
    _, url = server
    port = httpx.URL(url).port
    for host in ("evil.example", f"evil.example:{port}", "localhost.evil.example", "127.0.0.1.evil.example", "", "["):
        answer = httpx.get(f"{url}/v1/slides", headers={"host": host})
        assert answer.status_code == 403, host
        assert answer.json()["type"] == "/problems/forbidden"
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", "[::1]:8000", "LOCALHOST"):
        assert httpx.get(f"{url}/v1/slides", headers={"host": host}).status_code == 200, host


def test_the_refusal_of_a_foreign_name_leaves_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with serving("--audit-file", str(path)) as (process, url, _):
        answer = httpx.get(url, headers={"host": "evil.example", "x-request-id": "evil-1"})
        assert (answer.status_code, answer.headers["x-request-id"]) == (403, "evil-1")
        assert answer.json()["request_id"] == "evil-1"
        process.send_signal(signal.SIGINT)
        _, log = process.communicate(timeout=30)
    logged = [json.loads(line) for line in log.splitlines()]
    told = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["status"] for line in logged if line.get("x-request-id") == "evil-1"] == [403]
    assert [line["status"] for line in told if line.get("request_id") == "evil-1"] == [403]


def test_what_stands_in_front_may_bring_any_name(slides: Path) -> None:
    with serving("--slides", str(slides), "--insecure") as (_, url, _):
        assert httpx.get(f"{url}/v1/slides", headers={"host": "slides.example"}).status_code == 200


def test_it_serves_and_ends_cleanly_at_ctrl_c(server: tuple[subprocess.Popen[str], str]) -> None:
    process, url = server
    assert httpx.get(f"{url}/readyz").status_code == 200
    process.send_signal(signal.SIGINT)
    _, log = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "Traceback" not in log
    lines = [json.loads(line) for line in log.splitlines()]
    access = next(line for line in lines if line["logger"] == "wsisam.access")
    assert (access["route"], access["status"]) == ("/readyz", 200)
    assert access["x-request-id"]


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_ctrl_c_while_the_model_loads_ends_it_there(command: str) -> None:
    heard = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's "&" has it ignored
    interrupting = heard + PROGRAM.replace(
        "assembly.load_backend = lambda settings: None",
        "assembly.load_backend = lambda settings: signal.raise_signal(signal.SIGINT)",
    )
    ended = subprocess.run(
        [sys.executable, "-c", interrupting, command, "--port", "0"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(HERE), os.environ.get("PYTHONPATH", "")))},
    )
    assert (ended.returncode, ended.stderr) == (130, "")
    assert "model of numpy" not in ended.stdout


def test_it_serves_qupath_without_slides() -> None:
    with serving() as (_, url, told):
        assert any(line.startswith("no slides: only pictures") for line in told)
        assert httpx.get(f"{url}/v1/slides").json()["slides"] == []
        assert httpx.get(f"{url}/sam/version/").status_code == 200


def test_a_client_that_offers_http2_keeps_its_body(server: tuple[subprocess.Popen[str], str]) -> None:
    """As Java's HttpClient does by default."""
    _, url = server
    slide_id = httpx.get(f"{url}/v1/slides").json()["slides"][0]["id"]
    body = json.dumps({"prompts": [{"box": [600, 400, 760, 520]}]})
    head = (
        f"POST /v1/slides/{slide_id}/segment HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        "Upgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    address = httpx.URL(url)
    assert address.port is not None
    with socket.create_connection((address.host, address.port), timeout=30) as connection:
        connection.sendall((head + body).encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_a_port_in_use_is_a_users_error(server: tuple[subprocess.Popen[str], str], slides: Path) -> None:
    _, url = server
    command = [sys.executable, "-c", PROGRAM, "serve", "--slides", str(slides), "--port", url.rpartition(":")[2]]
    answer = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(HERE)}, check=False
    )
    assert answer.returncode == 2
    assert answer.stderr.count("\n") == 1
    assert "in use" in answer.stderr


async def test_answers_do_not_wait_for_acknowledgements() -> None:
    """Without TCP_NODELAY the second write of an answer waits for the client's delayed ACK, 40 ms."""
    accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def look(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        accepted.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    with listen("127.0.0.1", 0) as listener:
        server = await asyncio.start_server(look, sock=listener)
        _, client = await asyncio.open_connection(*listener.getsockname())
        assert await accepted == 1
        client.close()
        server.close()
