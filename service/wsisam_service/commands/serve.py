"""`wsisam serve`: the gateway with the executor in its process."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import socket
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from wsisam_service.commands.flags import UsageError, add_settings, settings_of
from wsisam_service.logs import configure_logging
from wsisam_service.settings import Settings

GRACE_S = 10
"""For requests under way when the process is asked to end."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("serve", help="serve slides over HTTP", description=__doc__)
    add_settings(parser, Settings.model_fields)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    settings = settings_of(options)
    if not settings.slides:
        raise UsageError("no slides to serve: give --slides DIR_OR_URL, or set WSISAM_SLIDES")
    for root in settings.slides:
        if "://" not in root and not Path(root).exists():
            raise UsageError(f"there is no folder or file {root}")
    if not settings.insecure and not _is_loopback(settings.host):
        raise UsageError(
            f"nothing authenticates callers yet, so {settings.host} is refused: "
            "listen on 127.0.0.1, or give --insecure if something in front of it does"
        )
    print(f"wsisam {version('wsisam')}\n{settings.describe()}", flush=True)
    configure_logging()
    with _listen(settings.host, settings.port) as listener, suppress(KeyboardInterrupt):
        asyncio.run(_serve(settings, listener))
    return 0


async def _serve(settings: Settings, listener: socket.socket) -> None:
    import uvicorn

    from wsisam_service.assembly import build_service

    service = build_service(settings)
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    print("\n".join((*service.notes, f"listening on {url} (try {url}/docs)")), flush=True)
    # h11: with httptools a client that offers an upgrade to HTTP/2, as Java's does, has its body lost.
    config = uvicorn.Config(
        service.app,
        http="h11",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
    )
    await uvicorn.Server(config).serve(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise UsageError(f"cannot listen on {host}, port {port}: {error.strerror}") from error


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
