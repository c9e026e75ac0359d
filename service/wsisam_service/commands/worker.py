"""`wsisam worker`: the executor behind HTTP, for gateways that run `wsisam serve --worker-url`."""

from __future__ import annotations

import argparse
import asyncio
import socket
from contextlib import suppress
from importlib.metadata import version

from fastapi import FastAPI

from wsisam_service.commands.flags import CACHE_SETTINGS, MODEL_SETTINGS, UsageError, add_settings, settings_of
from wsisam_service.commands.listening import bind, check_tls, is_loopback, serve_app, url_of
from wsisam_service.logs import configure_logging
from wsisam_service.settings import Settings

DEFAULT_PORT = 8100
GRACE_S = 25
"""For calls under way when the process is asked to end: more than an encode takes on the slowest device in use."""
_LIMIT_SETTINGS = ("max_encodes", "max_decodes", "max_body_bytes", "request_timeout_s", "store_ttl_s", "refine_ttl_s")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("worker", help="run the model for gateways elsewhere", description=__doc__)
    parser.set_defaults(run=run)
    own = ("host", "port", "worker_token", "insecure", "tls_certificate", "tls_key", "tls_client_ca", "max_connections")
    caches = (name for name in CACHE_SETTINGS if name != "tile_cache_bytes")
    add_settings(parser, (*own, *MODEL_SETTINGS, *caches, *_LIMIT_SETTINGS))


def run(options: argparse.Namespace) -> int:
    settings = settings_of(options)
    if not settings.insecure and not settings.worker_token.get_secret_value() and not is_loopback(settings.host):
        raise UsageError(
            f"without a token anybody could call this worker, so {settings.host} is refused: "
            "give --worker-token, or set WSISAM_WORKER_TOKEN, the same as for the gateways"
        )
    check_tls(settings)
    print(f"wsisam {version('wsisam')} worker\n{settings.describe()}", flush=True)
    configure_logging()
    port = settings.port if "port" in settings.model_fields_set else DEFAULT_PORT
    with bind(settings.host, port) as listener:
        app = _build(settings, listener)  # before the event loop, which would keep Ctrl-C until all is loaded
        with suppress(KeyboardInterrupt):
            asyncio.run(serve_app(app, listener, settings, grace_s=GRACE_S))
    return 0


def _build(settings: Settings, listener: socket.socket) -> FastAPI:
    from wsisam_service.assembly import build_worker

    worker = build_worker(settings)
    print("\n".join((*worker.notes, f"for gateways at {url_of(listener, settings)}, once warm")), flush=True)
    return worker.app
