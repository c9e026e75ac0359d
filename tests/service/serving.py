"""An application on a real socket, in a thread of this process."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

GRACE_S = 10
"""For what a test left open: without a bound the end of the suite would wait for it for ever."""


@contextlib.contextmanager
def served(app: FastAPI) -> Iterator[int]:
    """The port of loopback at which `app` is served, as `wsisam serve` does it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, http="h11", lifespan="on", log_config=None, timeout_graceful_shutdown=GRACE_S)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the service did not start"
            thread.join(0.05)
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()
