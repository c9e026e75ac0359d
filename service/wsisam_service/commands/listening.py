"""Sockets and the HTTP server around an application, as `serve` and `worker` run it."""

from __future__ import annotations

import ipaddress
import socket

from fastapi import FastAPI

from wsisam_service.commands.flags import UsageError

BACKLOG = 2048
KEEP_ALIVE_S = 75
"""For an idle connection: longer than routers and clients keep theirs, so that they are the ones who close it."""


def bind(host: str, port: int) -> socket.socket:
    """A TCP socket at `host` and `port` that does not listen yet: until the server starts, clients are refused."""
    # asyncio sets TCP_NODELAY only where the protocol is named; without it answers in two writes wait 40 ms for an ACK.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((host, port))
    except OSError as error:
        opened.close()
        raise UsageError(f"cannot listen on {host}, port {port}: {error.strerror}") from error
    return opened


def listen(host: str, port: int) -> socket.socket:
    """A TCP socket that takes connections from now on; they wait for the server to start."""
    opened = bind(host, port)
    opened.listen(BACKLOG)
    return opened


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def serve_app(app: FastAPI, listener: socket.socket, *, grace_s: int) -> None:
    """Serve `app` until the process is asked to end; requests under way then have `grace_s`."""
    import uvicorn

    # h11: with httptools a client that offers an upgrade to HTTP/2, as Java's does, has its body lost.
    config = uvicorn.Config(
        app,
        http="h11",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=grace_s,
    )
    await uvicorn.Server(config).serve(sockets=[listener])
