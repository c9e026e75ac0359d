"""A gateway without torch beside one worker with the real network: the same outlines as from one process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click_load import COMPARED
from local_cluster import REAL_WORKER, torchless_path
from processes import Process, free_port, wait_until

TOKEN = "a token of the test"
BOXES = [[243, 296, 392, 512], [270, 0, 468, 304], [0, 140, 170, 512]]
START_S = 500.0

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a worker, once it is ready."""
    port, folder = free_port(), tmp_path_factory.mktemp("worker")
    environment = {**os.environ, "WSISAM_WORKER_TOKEN": TOKEN}
    command = [sys.executable, *REAL_WORKER, "worker", "--port", str(port), "--adapters", "none"]
    process = Process(command, folder / "worker.log", env=environment)
    wait_until(lambda: _ready(process, port), "the worker is warm", within_s=START_S)
    yield f"http://127.0.0.1:{port}"
    process.close()


@pytest.fixture(scope="module")
def gateway(worker: str, qupath_service: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a gateway in an environment without torch, which talks to the worker directly."""
    port, folder = free_port(), tmp_path_factory.mktemp("gateway")
    program = (
        f"import sys; sys.path[:0] = {torchless_path(folder / 'site')!r}\n"
        "from wsisam_service.cli import main\nsys.exit(main())"
    )
    environment = {**os.environ, "WSISAM_WORKER_TOKEN": TOKEN, "WSISAM_WORKER_URL": worker}
    arguments = ["serve", "--slides", str(qupath_service.slides), "--port", str(port)]
    process = Process([sys.executable, "-S", "-c", program, *arguments], folder / "serve.log", env=environment)
    wait_until(lambda: _ready(process, port), "the gateway is ready", within_s=START_S)
    yield f"http://127.0.0.1:{port}"
    process.close()


def _ready(process: Process, port: int) -> bool:
    assert process.alive, process.said()
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=10).is_success
    except httpx.TransportError:
        return False


def _results(url: str, boxes: list[list[int]]) -> list[dict[str, Any]]:
    slide = httpx.get(f"{url}/v1/slides", timeout=60).json()["slides"][0]["id"]
    body = {"prompts": [{"box": box} for box in boxes]}
    answer = httpx.post(f"{url}/v1/slides/{slide}/segment", json=body, timeout=300)
    assert answer.status_code == 200, answer.text
    results: list[dict[str, Any]] = answer.json()["results"]
    return results


def test_outlines_are_those_of_one_process(gateway: str, qupath_service: Any) -> None:
    there, here = _results(gateway, BOXES), _results(qupath_service.url, BOXES)
    for remote, local in zip(there, here, strict=True):
        assert {name: remote[name] for name in COMPARED} == {name: local[name] for name in COMPARED}
    assert [result["cache"]["hr"] for result in _results(gateway, BOXES)] == ["l1"] * len(BOXES)


def test_what_the_worker_offers_is_what_the_gateway_tells(gateway: str, worker: str) -> None:
    told = httpx.get(f"{gateway}/v1/info", timeout=60).json()
    offered = httpx.get(f"{worker}/v1/info", headers={"authorization": f"Bearer {TOKEN}"}, timeout=60).json()
    assert told["models"] == offered["models"]
    assert told["models"][0]["name"] == "lite_medsam"


def test_the_environment_of_the_gateway_has_no_torch(tmp_path: Path) -> None:
    code = f"import sys; sys.path[:0] = {torchless_path(tmp_path / 'site')!r}; import torch"
    found = subprocess.run([sys.executable, "-S", "-c", code], check=False, capture_output=True, text=True)
    assert "No module named 'torch'" in found.stderr
