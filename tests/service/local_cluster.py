"""A whole cluster as plain processes on loopback, from the very files that are deployed.

Commands and environment come from docker-compose.yml, the router's configuration from deploy/k8s/base/envoy.yaml; only
names and ports of hosts are replaced. Workers have an address each (127.0.1.1, …) and one port, as pods have, and the
router finds them by DNS. Gateways run in an environment that holds what `wsisam[gateway]` requires and nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import httpx
import yaml
from packaging.requirements import Requirement
from processes import Process, RedisServer, Server, free_port, wait_until
from prometheus_client.parser import text_string_to_metric_families

REPOSITORY = Path(__file__).resolve().parents[2]
TOKEN, SECRET = "a token of the test", "a secret of the test"
REAL_WORKER = ("-m", "wsisam_service.cli")
NUMPY_WORKER = (str(Path(__file__).with_name("numpy_worker.py")),)
START_S = 240.0
"""For a process to start: seconds on an idle machine, minutes on one that does much else."""
_RESOLVER = "envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig"


class NameServer:
    """Answers every question with the addresses in `addresses`, as the DNS of a headless service does."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self.addresses = list(addresses)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                question, client = self._socket.recvfrom(512)
                self._socket.sendto(self._answer(question), client)
            except OSError:
                return

    def _answer(self, question: bytes) -> bytes:
        end = question.index(b"\0", 12) + 5  # the name's end, type and class
        wants_a = question[end - 4 : end - 2] == b"\0\1"
        addresses = self.addresses if wants_a else []
        head = question[:2] + struct.pack("!HHHHH", 0x8180, 1, len(addresses), 0, 0)
        records = b"".join(b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4" + socket.inet_aton(address) for address in addresses)
        return head + question[12:end] + records


def torchless_path(folder: Path) -> list[str]:
    """Import path of an environment with what `wsisam[gateway]` requires; made in `folder` of links to this one's."""
    folder.mkdir(parents=True)
    site = Path(sysconfig.get_paths()["purelib"])
    for name in _closure("wsisam", frozenset(("gateway",))):
        for file in distribution(name).files or ():
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not top.endswith(".pth") and not (folder / top).exists():
                (folder / top).symlink_to(site / top)
    return [str(REPOSITORY / "model"), str(REPOSITORY / "service"), str(folder)]


def _closure(name: str, extras: frozenset[str]) -> set[str]:
    """Installed distributions that `name` with `extras` needs; of wsisam itself only what the extras name."""
    found: set[str] = set()
    waiting = [(name, extras)]
    while waiting:
        current, chosen = waiting.pop()
        try:
            lines = distribution(current).requires or []
        except PackageNotFoundError:
            continue
        found.add(current)
        environments = [{"extra": extra} for extra in chosen] if current == "wsisam" else [{"extra": ""}]
        for requirement in map(Requirement, lines):
            applies = requirement.marker is None or any(requirement.marker.evaluate(one) for one in environments)
            plain_wsisam = current == "wsisam" and requirement.marker is None
            if applies and not plain_wsisam and requirement.name not in found:
                waiting.append((requirement.name, frozenset(requirement.extras)))
    return found


class LocalCluster:
    """Redis, workers, router and gateways. `worker` is what Python runs in place of the image's entry point."""

    def __init__(
        self,
        folder: Path,
        slides: Path,
        *,
        workers: int = 3,
        gateways: int = 2,
        worker: Sequence[str] = NUMPY_WORKER,
        worker_environment: Mapping[str, str] | None = None,
        redis_bytes: int = 1 << 30,
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._compose = compose_services()
        self._worker, self._worker_environment = tuple(worker), dict(worker_environment or {})
        self.redis = RedisServer(folder / "redis", max_bytes=redis_bytes)
        self.worker_port = free_port()
        self.addresses = [f"127.0.1.{index + 1}" for index in range(workers)]
        self.names = NameServer(self.addresses)
        with ThreadPoolExecutor() as pool:
            self.workers = list(pool.map(self.start_worker, self.addresses))
        self.envoy = self._start_envoy()
        self._slides, self._path = slides, torchless_path(folder / "gateway-site")
        with ThreadPoolExecutor() as pool:
            self.gateways = list(pool.map(self.start_gateway, range(gateways)))

    def close(self) -> None:
        for process in (*self.gateways, self.envoy, *self.workers, self.redis):
            process.close()
        self.names.close()

    @property
    def urls(self) -> list[str]:
        return [f"http://127.0.0.1:{gateway.port}" for gateway in self.gateways]

    def start_worker(self, address: str) -> Server:
        """A worker at `address`, once it is ready."""
        environment = self._environment("worker", {"WSISAM_HOST": address, "WSISAM_PORT": str(self.worker_port)})
        command = [sys.executable, *self._worker, *self._compose["worker"]["command"]]
        server = Server(command, self.folder / f"worker-{address}.log", env=environment | self._worker_environment)
        server.port = self.worker_port
        wait_until(
            lambda: _answers(server, f"http://{address}:{self.worker_port}/readyz"),
            "a worker is ready",
            within_s=START_S,
        )
        return server

    def start_gateway(self, number: int) -> Server:
        """A gateway, once it is ready."""
        port = free_port()
        places = {"WSISAM_HOST": "127.0.0.1", "WSISAM_PORT": str(port), "WSISAM_SLIDES": str(self._slides)}
        program = f"import sys; sys.path[:0] = {self._path!r}; from wsisam_service.cli import main; sys.exit(main())"
        command = [sys.executable, "-S", "-c", program, *self._compose["gateway"]["command"]]
        server = Server(command, self.folder / f"gateway-{number}.log", env=self._environment("gateway", places))
        server.port = port
        wait_until(lambda: _answers(server, f"http://127.0.0.1:{port}/readyz"), "a gateway is ready", within_s=START_S)
        return server

    def worker_metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples over all workers that answer."""
        return sum(self._metrics_of(address, name, labels) for address in self.addresses)

    def encodes(self) -> float:
        """Views encoded by all workers together, those of their warm-up not counted."""
        return self.worker_metric("wsisam_batch_size_sum", kind="encode") - len(self.addresses)

    def _metrics_of(self, address: str, name: str, labels: Mapping[str, str]) -> float:
        answer = httpx.get(f"http://{address}:{self.worker_port}/metrics", timeout=10)
        return sum(
            sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def _start_envoy(self) -> Server:
        port, file = free_port(), self.folder / "envoy.yaml"
        file.write_text(yaml.safe_dump(self._router_config(port)))
        found = shutil.which("envoy") or str(Path(sys.executable).with_name("envoy"))
        command = [found, "-c", str(file), "--concurrency", "1", "--use-dynamic-base-id", "--log-level", "warning"]
        server = Server(command, self.folder / "envoy.log")
        server.port = port
        headers = {"authorization": f"Bearer {TOKEN}"}
        wait_until(lambda: _answers(server, f"http://127.0.0.1:{port}/v1/info", headers), "the router finds workers")
        return server

    def _router_config(self, port: int) -> dict[str, Any]:
        """The deployed configuration with this cluster's ports and name server."""
        config: dict[str, Any] = yaml.safe_load((REPOSITORY / "deploy/k8s/base/envoy.yaml").read_text())
        self.admin_port, metrics_port = free_port(), free_port()
        config["admin"]["address"]["socket_address"]["port_value"] = self.admin_port
        listeners, clusters = config["static_resources"]["listeners"], config["static_resources"]["clusters"]
        for listener, own in zip(listeners, (port, metrics_port), strict=True):
            listener["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": own}
        workers, admin = clusters
        _endpoint(workers)["port_value"] = self.worker_port
        _endpoint(admin)["port_value"] = self.admin_port
        resolver = {"socket_address": {"address": "127.0.0.1", "port_value": self.names.port}}
        workers["typed_dns_resolver_config"] = {
            "name": "envoy.network.dns_resolver.cares",
            "typed_config": {"@type": f"type.googleapis.com/{_RESOLVER}", "resolvers": [resolver]},
        }
        return config

    def _environment(self, service: str, places: Mapping[str, str]) -> dict[str, str]:
        """The environment that compose gives to `service`, with this cluster's places in it. Nobody is asked for a key:
        its clients are many, and none of them anybody.
        """
        given = {**self._compose[service]["environment"], **places}
        given.pop("WSISAM_KEYS", None)
        hosts = {"redis:6379": f"127.0.0.1:{self.redis.port}"}
        if hasattr(self, "envoy"):
            hosts["envoy:8200"] = f"127.0.0.1:{self.envoy.port}"
        for name, place in hosts.items():
            given = {key: value.replace(name, place) for key, value in given.items()}
        system = {key: value for key, value in os.environ.items() if not key.startswith("WSISAM_")}
        return system | given | {"OMP_NUM_THREADS": "1"}


def compose_services() -> dict[str, Any]:
    """The services of docker-compose.yml as compose itself reads it."""
    found = shutil.which("docker-compose") or str(Path(sys.executable).with_name("docker-compose"))
    values = {"WSISAM_WORKER_TOKEN": TOKEN, "WSISAM_SECRET": SECRET, "PATH": os.environ["PATH"]}
    command = [found, "-f", str(REPOSITORY / "docker-compose.yml"), "config", "--format", "json"]
    config = subprocess.run(command, check=True, capture_output=True, env=values)
    services: dict[str, Any] = json.loads(config.stdout)["services"]
    return services


def _endpoint(cluster: dict[str, Any]) -> dict[str, Any]:
    place: dict[str, Any] = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]
    address: dict[str, Any] = place["socket_address"]
    return address


def _answers(server: Process, url: str, headers: Mapping[str, str] | None = None) -> bool:
    assert server.alive, server.said()
    try:
        return httpx.get(url, headers=headers, timeout=5).is_success
    except httpx.TransportError:
        return False


def running_cluster(*arguments: Any, **options: Any) -> Iterator[LocalCluster]:
    """A cluster for a fixture, ended with it."""
    cluster = LocalCluster(*arguments, **options)
    try:
        yield cluster
    finally:
        cluster.close()
