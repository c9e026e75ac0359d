"""Sockets and the HTTP server around an application, as `serve` and `worker` run it."""

from __future__ import annotations

import ipaddress
import resource
import socket
import ssl

from fastapi import FastAPI

from wsisam_service.commands.flags import UsageError
from wsisam_service.settings import Settings

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


def url_of(listener: socket.socket, settings: Settings) -> str:
    host, port = listener.getsockname()[:2]
    scheme = "http" if settings.tls_certificate is None else "https"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def raise_file_limit() -> None:
    """Let this process have as many open files, connections among them, as the system allows it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def check_tls(settings: Settings) -> None:
    """Raises `UsageError` for certificate files that cannot be used; to be called before the model is loaded."""
    if settings.tls_certificate is None:
        if settings.tls_key or settings.tls_client_ca:
            raise UsageError("tls_key and tls_client_ca need tls_certificate")
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(settings.tls_certificate, settings.tls_key)
        if settings.tls_client_ca is not None:
            context.load_verify_locations(settings.tls_client_ca)
    except OSError as error:  # ssl.SSLError is one too
        raise UsageError(f"the certificate files of TLS cannot be used: {error}") from error


async def serve_app(app: FastAPI, listener: socket.socket, settings: Settings, *, grace_s: int) -> None:
    """Serve `app` until the process is asked to end; requests under way then have `grace_s`."""
    import uvicorn

    from wsisam_service.commands.connections import bounded_protocol

    raise_file_limit()
    config = uvicorn.Config(
        app,
        # h11: with httptools a client that offers an upgrade to HTTP/2, as Java's does, has its body lost.
        http=bounded_protocol(settings.max_connections),
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=grace_s,
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
        ssl_ca_certs=settings.tls_client_ca,
        ssl_cert_reqs=ssl.CERT_NONE if settings.tls_client_ca is None else ssl.CERT_REQUIRED,
    )
    await uvicorn.Server(config).serve(sockets=[listener])
