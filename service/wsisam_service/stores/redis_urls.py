"""Connections to Redis from one URL: a single server, Sentinel or a cluster, with TLS and ACL users.

    redis://USER:PASSWORD@HOST:PORT/DB                 rediss:// with TLS
    redis+sentinel://USER:PASSWORD@HOST:PORT,…/SERVICE/DB
    redis+cluster://USER:PASSWORD@HOST:PORT,…

`rediss+sentinel` and `rediss+cluster` use TLS, whose files go into the query:
`?ssl_ca_certs=…&ssl_certfile=…&ssl_keyfile=…`. Nothing else does, so that a query never holds a password.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.retry import Retry
from redis.sentinel import Sentinel

SCHEMES = tuple(f"{base}{kind}" for base in ("redis", "rediss") for kind in ("", "+sentinel", "+cluster"))
_TLS_OPTIONS = frozenset(("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname"))
_PLAIN_PLACE = re.compile(r"([^:\s]*|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[0-9]*)?")
_READ_BYTES = 1 << 20
"""Bytes asked of a socket at once; redis-py's 64 KiB cost an embedding of 3.4 MB half again as much time."""


def check_url(url: str) -> None:
    """Raises `ValueError` for a URL that `connect` would not take; as it may hold a password, it is not quoted."""
    parts = urlsplit(url)
    kind = parts.scheme.partition("+")[2]
    if parts.scheme not in SCHEMES:
        raise ValueError(f"a Redis URL begins with {', '.join(SCHEMES)}")
    if "@" in parts.path or parts.fragment:
        raise ValueError("in USER and PASSWORD of a Redis URL %2F, %3F and %23 stand for /, ? and #")
    if kind:
        _hosts(parts)
    elif not _PLAIN_PLACE.fullmatch(parts.netloc.rpartition("@")[2] + parts.path):
        raise ValueError("a Redis URL of one server is redis://USER:PASSWORD@HOST:PORT/DB")
    _tls(parts)
    if kind == "sentinel" and not re.fullmatch(r"/[^/]+(/[0-9]*)?", parts.path):
        raise ValueError("a Sentinel URL ends with /SERVICE or /SERVICE/DB")


def connect(url: str, *, timeout_s: float, max_connections: int) -> Any:
    """A client for `url`, a `redis.Redis` or a `RedisCluster`, thread-safe and with pooled sockets.

    Nothing is sent before the first command, except to a cluster. Raises `ValueError` for a URL that is none.
    """
    check_url(url)
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "socket_keepalive": True,
        # One more try at once, for a pooled socket that the server has closed meanwhile; the rest is the breaker's.
        "retry": Retry(NoBackoff(), 1),
        "max_connections": max_connections,
    }
    parts = urlsplit(url)
    base, _, kind = parts.scheme.partition("+")
    if not kind:
        return redis.Redis.from_url(url, socket_read_size=_READ_BYTES, **options)
    hosts = _hosts(parts)
    tls = {"ssl": True, **_tls(parts)} if base == "rediss" else {}
    options |= _login(parts) | tls
    if kind == "cluster":
        nodes = [ClusterNode(host, port) for host, port in hosts]  # type: ignore[no-untyped-call]
        return RedisCluster(startup_nodes=nodes, **options)
    service, _, database = parts.path.strip("/").partition("/")
    sentinel = Sentinel(hosts, sentinel_kwargs={"socket_timeout": timeout_s, **tls}, **options)  # type: ignore[no-untyped-call]
    return sentinel.master_for(service, db=int(database or 0))  # type: ignore[no-untyped-call]


def _hosts(parts: SplitResult) -> list[tuple[str, int]]:
    """(host, port) of each of the hosts that commas separate."""
    hosts = []
    for place in parts.netloc.rpartition("@")[2].split(","):
        host, separator, port = place.rpartition(":")
        if not separator or not host or not port.isdigit():
            raise ValueError("each host of a Redis URL is HOST:PORT")
        hosts.append((host.strip("[]"), int(port)))
    return hosts


def _login(parts: SplitResult) -> dict[str, str]:
    login, separator, _ = parts.netloc.rpartition("@")
    if not separator:
        return {}
    user, _, password = login.partition(":")
    named = {"username": unquote(user), "password": unquote(password)}
    return {name: value for name, value in named.items() if value}


def _tls(parts: SplitResult) -> dict[str, Any]:
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    if not given.keys() <= (_TLS_OPTIONS if parts.scheme.startswith("rediss") else frozenset()):
        raise ValueError(f"a Redis URL has no options but, with rediss, {', '.join(sorted(_TLS_OPTIONS))}")
    check = given.pop("ssl_check_hostname", None)
    return {**given, **({} if check is None else {"ssl_check_hostname": check.lower() in ("1", "true", "yes")})}
