"""HTTPS in the process itself, and mutual TLS between gateway and worker: real processes, certificates of one test."""

from __future__ import annotations

import os
import re
import ssl
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import redis
from certificates import Authority, Certificate
from processes import Process, RedisServer, free_port, redis_has_tls, wait_until

from wsisam_service import cli
from wsisam_service.assembly import _tls_to_workers
from wsisam_service.cluster.remote_executor import RETRY_PAUSES_S, RemoteExecutor
from wsisam_service.errors import WorkerUnavailable
from wsisam_service.settings import Settings, SettingsError
from wsisam_service.stores.redis_store import RedisStore

TOKEN = "a token of the test"
NUMPY = str(Path(__file__).with_name("numpy_worker.py"))


@dataclass(frozen=True)
class Pair:
    """A worker that takes only its gateways, and a gateway that speaks HTTPS itself."""

    worker: str
    gateway: str
    authority: Authority
    client: Certificate


@pytest.fixture(scope="module")
def pair(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority(folder / "certificates")
    server, client = authority.issue("server"), authority.issue("client")
    both = folder / "client-with-key.pem"
    both.write_text(client.certificate.read_text() + client.key.read_text())
    tls = ["--tls-certificate", str(server.certificate), "--tls-key", str(server.key)]
    ports = free_port(), free_port()
    urls = [f"https://127.0.0.1:{port}" for port in ports]
    environment = {**os.environ, "WSISAM_WORKER_TOKEN": TOKEN}
    worker = Process(
        [sys.executable, NUMPY, "worker", "--port", str(ports[0]), *tls, "--tls-client-ca", str(authority.ca)],
        folder / "worker.log",
        env=environment,
    )
    known = ["--worker-url", urls[0], "--worker-ca", str(authority.ca), "--worker-certificate", str(both)]
    gateway = Process(
        [sys.executable, NUMPY, "serve", "--slides", str(slides), "--port", str(ports[1]), *tls, *known],
        folder / "serve.log",
        env=environment,
    )
    trusted = ssl.create_default_context(cafile=authority.ca)

    def ready() -> bool:
        assert worker.alive, worker.said()
        assert gateway.alive, gateway.said()
        with suppress(httpx.TransportError):
            return httpx.get(f"{urls[1]}/readyz", verify=trusted, timeout=30).is_success
        return False

    wait_until(ready, "the gateway reaches its worker", within_s=120)
    assert f"listening on {urls[1]}" in gateway.said()
    yield Pair(*urls, authority, client)
    gateway.close()
    worker.close()


def test_a_click_goes_through_https_and_mutual_tls(pair: Pair) -> None:
    trusted = ssl.create_default_context(cafile=pair.authority.ca)
    with httpx.Client(base_url=pair.gateway, verify=trusted, timeout=60) as client:
        slide = client.get("/v1/slides", params={"q": "tissue"}).json()["slides"][0]["id"]
        answer = client.post(f"/v1/slides/{slide}/segment", json={"prompts": [{"box": [600, 400, 760, 520]}]})
    assert answer.status_code == 200
    assert answer.json()["results"][0]["cache"]["hr"] == "encoded"


def test_a_gateway_is_believed_only_by_those_who_know_its_authority(pair: Pair) -> None:
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{pair.gateway}/healthz")
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{pair.gateway.replace('https', 'http')}/healthz")


@pytest.mark.parametrize("who", ["nobody", "of another authority"])
async def test_a_worker_refuses_who_has_no_certificate_of_its_authority(
    pair: Pair, who: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with the right token, and for probes and metrics too."""
    context = ssl.create_default_context(cafile=pair.authority.ca)
    if who != "nobody":
        stranger = Authority(tmp_path, "stranger").issue("client")
        context.load_cert_chain(stranger.certificate, stranger.key)
    async with httpx.AsyncClient(verify=context, headers={"authorization": f"Bearer {TOKEN}"}) as client:
        for path in ("/v1/info", "/readyz", "/metrics"):
            with pytest.raises(httpx.TransportError):
                await client.get(f"{pair.worker}{path}")
    monkeypatch.setattr("wsisam_service.cluster.remote_executor.RETRY_PAUSES_S", RETRY_PAUSES_S[:1])
    executor = RemoteExecutor(pair.worker, TOKEN, timeout_s=10, tls=context)
    with pytest.raises(WorkerUnavailable):
        await executor.info()
    await executor.aclose()


def test_with_its_certificate_a_gateway_is_still_asked_for_the_token(pair: Pair) -> None:
    context = ssl.create_default_context(cafile=pair.authority.ca)
    context.load_cert_chain(pair.client.certificate, pair.client.key)
    assert httpx.get(f"{pair.worker}/v1/info", verify=context).status_code == 401
    assert httpx.get(f"{pair.worker}/readyz", verify=context).status_code == 200


def test_files_that_are_no_certificates_are_the_operators_error_before_the_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("no certificate")
    with pytest.raises(SettingsError, match="worker_certificate"):
        _tls_to_workers(Settings(worker_certificate=nonsense))
    for command in ("serve", "worker"):
        for wrong in ("--tls-certificate", "--tls-client-ca"):
            assert cli.main([command, "--port", "0", wrong, str(nonsense)]) == 2
            told = capsys.readouterr()
            assert re.search(r"certificate.* TLS|tls_certificate", told.err)
            assert not told.out


@pytest.mark.redis
async def test_a_redis_that_asks_for_certificates_gets_the_workers(tmp_path: Path) -> None:
    if not redis_has_tls():
        pytest.skip("this redis-server has no TLS")
    authority = Authority(tmp_path / "certificates")
    own, client, port = authority.issue("redis"), authority.issue("worker"), free_port()
    files = ("--tls-cert-file", str(own.certificate), "--tls-key-file", str(own.key))
    asks = ("--tls-ca-cert-file", str(authority.ca), "--tls-auth-clients", "yes")
    server = RedisServer(tmp_path / "redis", "--tls-port", str(port), "--port", "0", *files, *asks, port=port)
    url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={authority.ca}"
    known = RedisStore(f"{url}&ssl_certfile={client.certificate}&ssl_keyfile={client.key}", "emb", timeout_s=10)
    await known.put("key", b"blob")
    assert await known.get("key") == b"blob"
    unknown = RedisStore(url, "emb", timeout_s=10)
    with pytest.raises(redis.RedisError):
        await unknown.get("key")
    for store in (known, unknown):
        await store.aclose()
    server.close()
