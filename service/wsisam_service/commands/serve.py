"""`wsisam serve`: the gateway, with the executor in its process or in workers elsewhere."""

from __future__ import annotations

import argparse
import asyncio
import socket
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI

from wsisam_service.commands.flags import UsageError, add_settings, settings_of
from wsisam_service.commands.listening import check_tls, is_loopback, listen, serve_app, url_of
from wsisam_service.logs import configure_logging
from wsisam_service.settings import Settings

NO_SLIDES = "no slides: only pictures sent with requests are outlined, until --slides DIR_OR_URL names some"
GRACE_S = 10
"""For requests under way when the process is asked to end."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("serve", help="serve slides over HTTP", description=__doc__)
    add_settings(parser, Settings.model_fields)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    settings = settings_of(options)
    for root in settings.slides:
        if "://" not in root and not Path(root).exists():
            raise UsageError(f"there is no folder or file {root}")
    if not (settings.asks_callers or settings.insecure or is_loopback(settings.host)):
        raise UsageError(
            f"nobody would be asked who they are, so {settings.host} is refused: set WSISAM_KEYS to a file of keys "
            "(wsisam key new) or WSISAM_OIDC_ISSUER, or give --insecure if something in front of it asks"
        )
    check_tls(settings)
    print(f"wsisam {version('wsisam')}\n{settings.describe()}", flush=True)
    configure_logging()
    with listen(settings.host, settings.port) as listener:
        app = _build(settings, listener)  # before the event loop, which would keep Ctrl-C until all is loaded
        with suppress(KeyboardInterrupt):
            asyncio.run(serve_app(app, listener, settings, grace_s=GRACE_S))
    return 0


def _build(settings: Settings, listener: socket.socket) -> FastAPI:
    from wsisam_service.api import local_hosts
    from wsisam_service.assembly import build_service

    service = build_service(settings)
    if not (settings.asks_callers or settings.insecure):
        local_hosts.install(service.app)
    url = url_of(listener, settings)
    notes = service.notes if settings.slides else (*service.notes, NO_SLIDES)
    print("\n".join((*notes, f"listening on {url} (try {url}/docs)")), flush=True)
    return service.app
