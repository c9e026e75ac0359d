"""Access as `wsisam serve` has it: a key in the path shows nowhere, a runaway script starves nobody."""

from __future__ import annotations

import os
import re
import socket
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from processes import Process, wait_until

from wsisam_service import cli
from wsisam_service.access.identity import Identity, Role
from wsisam_service.access.keys import KeyFile, StoredKey, append_key, hash_of, new_key
from wsisam_service.commands import serve

HERE = Path(__file__).parent
CONNECTIONS = 20


class Guarded(Process):
    """A gateway with the numpy network in its process, which asks for keys; its output is in `log`."""

    def __init__(self, folder: Path, slides: Path, **environment: str) -> None:
        self.audit = folder / "audit.jsonl"
        self.environment = os.environ | {
            "PYTHONPATH": str(HERE),
            "WSISAM_KEYS": str(folder / "keys.toml"),
            "WSISAM_SLIDES": str(slides),
            "WSISAM_PORT": "0",
            "WSISAM_AUDIT_FILE": str(self.audit),
            **environment,
        }
        self.keys = {name: new_key() for name in ("one", "many")}
        for name, key in self.keys.items():
            append_key(folder / "keys.toml", StoredKey(name=name, role=Role.ANNOTATOR, sha256=hash_of(key)))
        command = [sys.executable, str(HERE / "numpy_worker.py"), "serve"]
        super().__init__(command, folder / "serve.log", env=self.environment)
        wait_until(lambda: "listening on" in self.said() or not self.alive, "the gateway listens")
        found = re.search(r"listening on (http://\S+)", self.said())
        assert found, self.said()
        self.url = found[1]

    def client(self, name: str, **options: Any) -> httpx.Client:
        headers = {"authorization": f"Bearer {self.keys[name]}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, **options)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, slides: Path) -> Iterator[Guarded]:
    times = {"WSISAM_TEST_ENCODE_S": "0.005", "WSISAM_TEST_DECODE_S": "0.005"}
    server = Guarded(tmp_path_factory.mktemp("guarded"), slides, **times)
    yield server
    server.close()


def test_a_key_in_the_path_is_in_no_log_metric_error_or_audit_record(guarded: Guarded) -> None:
    key = guarded.keys["one"]
    answers = []
    with httpx.Client(base_url=f"{guarded.url}/k/{key}", timeout=60) as client:
        slide = next(one["id"] for one in client.get("/v1/slides").json()["slides"])
        box = {"prompts": [{"box": [600, 400, 760, 520]}]}
        for method, path, body in (
            ("GET", "/sam/version/", None),
            ("GET", "/samversion/", None),
            ("POST", "/sam/", {"nonsense": True}),
            ("POST", "/sam/sam3/", {}),
            ("GET", "/nowhere", None),
            ("DELETE", "/v1/info", None),
            ("GET", f"/k/{key}/v1/info", None),
            ("GET", "/v1/slides/unknown", None),
            ("POST", f"/v1/slides/{slide}/segment", box),
            ("POST", f"/v1/slides/{slide}/segment", {"prompts": []}),
            ("DELETE", f"/v1/slides/{slide}/cache", None),
            ("GET", f"/v1/slides/{slide}/region?x=nan", None),
        ):
            answers.append(client.request(method, path, json=body))
        answers += [client.get(f"{guarded.url}/k/{odd}/v1/info") for odd in (f"{key}x", f"{key}%2F..", f"%2F{key}")]
    assert {200, 401, 403, 404, 405, 422, 501} <= {answer.status_code for answer in answers}
    _say(guarded.url, f"GET /k/{key}/sam/version/ HTTP/9.9\r\n\r\n")
    _say(guarded.url, f"GET /k/{key}/sam/version/ HTTP/1.1\r\nno header\r\n\r\n")
    _say(guarded.url, f"POST /k/{key}/sam/ HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{{")
    _say(guarded.url, f"GET /k/{key}/sam/version/ HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n")
    with guarded.client("one") as client:
        answers.append(client.get("/metrics"))
    metrics = answers[-1].text
    wait_until(lambda: guarded.said().count('"route": "/metrics"') > 0, "the last request is in the log")
    told = [guarded.said(), guarded.audit.read_text(), metrics, *(f"{one.headers} {one.text}" for one in answers)]
    assert len(guarded.said().splitlines()) > len(answers), "the log was read"
    assert '"key:one"' in guarded.audit.read_text(), "the audit trail says who, not by which key"
    for text in told:
        assert key.removeprefix("wsk_")[:12] not in text


def _say(url: str, request: str) -> None:
    """Send bytes that are no proper request and hang up."""
    address = httpx.URL(url)
    with socket.create_connection((address.host, address.port or 0), timeout=30) as connection:
        connection.sendall(request.encode())
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass


def test_behind_a_proxy_each_client_has_its_own_wrong_keys(tmp_path: Path, slides: Path) -> None:
    """The address is the one that the audit trail has: a trusted proxy's word for it."""
    server = Guarded(tmp_path, slides, WSISAM_WRONG_CREDENTIALS_PER_MINUTE="2")

    def status(client: httpx.Client, address: str, key: str) -> int:
        headers = {"authorization": f"Bearer {key}", "x-forwarded-for": address}
        return client.get("/v1/info", headers=headers).status_code

    with httpx.Client(base_url=server.url, timeout=60) as client:
        assert [status(client, "203.0.113.1", new_key()) for _ in range(3)] == [401, 401, 429]
        assert status(client, "203.0.113.2", server.keys["one"]) == 200
        assert status(client, "203.0.113.2", new_key()) == 401
    wait_until(lambda: server.audit.read_text().count("203.0.113.1") == 3, "the audit trail has them")
    server.close()


def test_a_runaway_script_on_20_connections_leaves_anothers_click_served(guarded: Guarded) -> None:
    stop, statuses = threading.Event(), list[int]()
    with guarded.client("one") as client:
        slide = next(one["id"] for one in client.get("/v1/slides").json()["slides"])
        path = f"/v1/slides/{slide}/segment"

        def run_away() -> None:
            boxes = [{"box": [x, y, x + 40, y + 40]} for x in range(20, 1400, 360) for y in range(20, 900, 180)]
            with guarded.client("many") as runaway:
                while not stop.is_set():
                    statuses.append(runaway.post(path, json={"prompts": boxes}).status_code)

        threads = [threading.Thread(target=run_away) for _ in range(CONNECTIONS)]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: statuses.count(429) > CONNECTIONS, "the runaway is slowed down")
            clicks = [client.post(path, json={"prompts": [{"box": [600, 400, 760, 520]}]}) for _ in range(5)]
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert [click.status_code for click in clicks] == [200] * 5
    assert 200 in statuses, "and gets its share"
    assert set(statuses) <= {200, 429}


@pytest.mark.parametrize(
    ("settings", "served"),
    [
        ([], False),
        (["--insecure"], True),
        (["--keys", "keys.toml"], True),
        (["--oidc-issuer", "https://issuer.example", "--oidc-audience", "wsisam"], True),
    ],
)
def test_beyond_loopback_it_serves_only_where_callers_are_asked_or_somebody_else_asks(
    settings: list[str], served: bool, slides: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started = []

    async def nothing(*_: object, **__: object) -> None:
        """In place of serving."""

    monkeypatch.setattr(serve, "is_loopback", lambda host: False)
    monkeypatch.setattr(serve, "configure_logging", lambda: None)  # this process is pytest's
    monkeypatch.setattr(serve, "_build", lambda *_: started.append(True))
    monkeypatch.setattr(serve, "serve_app", nothing)
    assert cli.main(["serve", "--slides", str(slides), "--port", "0", *settings]) == (0 if served else 2)
    assert bool(started) is served
    if not served:
        refusal = capsys.readouterr().err
        assert refusal.count("\n") == 1
        assert "WSISAM_KEYS" in refusal
        assert "wsisam key new" in refusal


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--oidc-issuer", "http://issuer.example", "--oidc-audience", "wsisam"], "https"),
        (["--oidc-issuer", "https://[issuer", "--oidc-audience", "wsisam"], "https"),
        (["--oidc-issuer", "https://issuer.example"], "oidc_audience"),
        (["--oidc-roles", '{"a": "boss"}'], "oidc_roles"),
        (["--oidc-roles", "{"], "oidc_roles"),
        (["--keys", "nowhere.toml"], "keys"),
        (["--slides", "foo://bar"], "slides"),
    ],
)
def test_settings_that_cannot_be_used_are_named_in_one_line(
    arguments: list[str], named: str, slides: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("wsisam_service.assembly.load_backend", lambda settings: None)
    monkeypatch.setattr("wsisam_service.assembly.build_executor", lambda settings, backend: object())
    monkeypatch.setattr("wsisam_service.assembly.notes_of", lambda backend: ())
    monkeypatch.setattr(serve, "configure_logging", lambda: None)
    assert cli.main(["serve", "--slides", str(slides), "--port", "0", *arguments]) == 2
    refusal = capsys.readouterr().err
    assert refusal.count("\n") == 1
    assert named in refusal


def test_the_command_line_sends_its_token_and_says_where_there_is_none(
    guarded: Guarded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outlines = tmp_path / "out.geojson"
    command = ["segment", "tissue.tif", "--box", "600,400,760,520", "--url", guarded.url, "-o", str(outlines)]
    assert cli.main(command) == 2
    refusal = capsys.readouterr().err
    assert refusal.count("\n") == 1
    assert "--token" in refusal
    monkeypatch.setenv("WSISAM_TOKEN", guarded.keys["one"])
    assert cli.main(command) == 0
    assert outlines.exists()


def test_a_key_is_printed_once_and_lets_its_owner_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys.toml"
    monkeypatch.setenv("WSISAM_KEYS", str(file))
    wanted = ["key", "new", "--name", "anna", "--role", "annotator"]
    assert cli.main([*wanted, "--roots", "colon, breast", "--days", "30"]) == 0
    first = capsys.readouterr().out.strip()
    assert cli.main(wanted) == 0
    second = capsys.readouterr().out.strip()
    keys = KeyFile(file)
    assert keys.identity(first) == Identity("key:anna", Role.ANNOTATOR, frozenset({"colon", "breast"}))
    assert keys.identity(second) == Identity("key:anna", Role.ANNOTATOR), "a second one, so that keys can be renewed"
    (ends,) = [key.expires for key in keys.keys if key.expires is not None]
    assert timedelta(days=29) < ends - datetime.now(UTC) <= timedelta(days=30)
    for wrong in (["--name", "an na"], ["--role", "boss"], *(["--days", days] for days in ("-5", "0", "99999999999"))):
        assert _exit_code([*wanted, *wrong]) == 2
    assert cli.main([*wanted, "--print"]) == 0
    printed = capsys.readouterr()
    with file.open("a") as appended:
        appended.write(printed.out)
    assert KeyFile(file).identity(printed.err.splitlines()[-1]) == Identity("key:anna", Role.ANNOTATOR)
    file.write_text("not a file of keys")
    assert cli.main(wanted) == 2
    assert file.read_text() == "not a file of keys"


def _exit_code(arguments: list[str]) -> int | str | None:
    try:
        return cli.main(arguments)
    except SystemExit as end:
        return end.code
