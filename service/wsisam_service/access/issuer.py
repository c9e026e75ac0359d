"""The keys that an OIDC issuer signs with: found by discovery, kept, and asked for again when an unknown one turns up.

Requests wait for the issuer only where its answer decides them: with a key that is known they go on whether or not the
issuer can be reached, and the keys are renewed behind their backs.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey

from wsisam_service.errors import NotReady

SigningKey = RSAKey | ECKey

FETCH_S = 5.0
"""Longest wait for the issuer: discovery and keys together."""
FRESH_S = 600.0
"""Age of the keys from which on they are renewed; so long a key that the issuer has taken back may still count."""
STALE_S = 24 * 3600.0
"""Age from which on keys count no more although the issuer cannot be asked."""
ASK_AGAIN_S = 10.0
"""Between questions, so that made-up key ids cannot make us flood the issuer."""
MAX_BYTES = 1 << 20
_DISCOVERY = "/.well-known/openid-configuration"
_KEY_TYPES: Mapping[str, type[RSAKey] | type[ECKey]] = {"RSA": RSAKey, "EC": ECKey}

logger = logging.getLogger(__name__)


class IssuerError(Exception):
    """An issuer that cannot be used as it is set; the message is for the operator."""


class _Unusable(Exception):
    """What the issuer answered is not what it should be."""


class Issuer:
    """The issuer at `url`, its `issuer` claim word by word. Used by one event loop; `clock` gives seconds.

    Raises `IssuerError` for a URL that anybody on the way could answer.
    """

    def __init__(self, url: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        if not _private(url):
            raise IssuerError("is https://… (http only on this machine)")
        self.url = url
        self._clock = clock
        self._http = httpx.AsyncClient(timeout=FETCH_S, follow_redirects=False)
        self._keys: Mapping[str, SigningKey] = {}
        self._keys_s: float | None = None
        self._asked_s: float | None = None
        self._answered = True
        self._asking: asyncio.Task[None] | None = None

    async def key(self, key_id: str) -> SigningKey | None:
        """The issuer's key of this id, None where it has none. Raises `NotReady` where it cannot be asked."""
        age_s = None if self._keys_s is None else self._clock() - self._keys_s
        known = self._keys.get(key_id)
        if known is not None and age_s is not None and age_s < STALE_S:
            if age_s >= FRESH_S and self._may_ask():
                self._ask()
            return known
        if self._asking is not None or self._may_ask():
            await asyncio.shield(self._ask())
        if not self._answered:
            raise NotReady("the issuer of access tokens cannot be reached", retry_after_s=int(ASK_AGAIN_S))
        return self._keys.get(key_id)

    async def aclose(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        await self._http.aclose()

    def _may_ask(self) -> bool:
        return self._asked_s is None or self._clock() - self._asked_s >= ASK_AGAIN_S

    def _ask(self) -> asyncio.Task[None]:
        """The question under way, or a new one: never more than one."""
        if self._asking is None:
            self._asked_s = self._clock()
            self._asking = asyncio.create_task(self._renew())
            self._asking.add_done_callback(self._asked)
        return self._asking

    def _asked(self, _task: asyncio.Task[None]) -> None:
        self._asking = None

    async def _renew(self) -> None:
        try:
            async with asyncio.timeout(FETCH_S):
                self._keys = await self._fetch()
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, _Unusable) as error:
            if self._answered:
                logger.warning("the issuer of access tokens gives no keys: %s", str(error) or type(error).__name__)
            self._answered = False
        else:
            self._answered, self._keys_s = True, self._clock()

    async def _fetch(self) -> Mapping[str, SigningKey]:
        described = await self._document(self.url.rstrip("/") + _DISCOVERY)
        if described.get("issuer") != self.url:
            raise _Unusable("it calls itself by another name")
        address = described.get("jwks_uri")
        if not isinstance(address, str) or not _private(address):
            raise _Unusable("its jwks_uri is not https")
        return signing_keys(await self._document(address))

    async def _document(self, url: str) -> dict[str, Any]:
        content = b""
        async with self._http.stream("GET", url) as answer:
            if answer.status_code != httpx.codes.OK:
                raise _Unusable(f"status {answer.status_code}")
            async for chunk in answer.aiter_bytes():
                content += chunk
                if len(content) > MAX_BYTES:
                    raise _Unusable("its answer is too large")
        try:
            document = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise _Unusable("its answer is not JSON") from error
        if not isinstance(document, dict):
            raise _Unusable("its answer is no JSON object")
        return document


def signing_keys(document: Mapping[str, Any]) -> dict[str, SigningKey]:
    """The keys of a JWK set by their ids; those that are not for signatures, or of no use to us, are left out."""
    found: dict[str, SigningKey] = {}
    listed = document.get("keys")
    for jwk in listed if isinstance(listed, list) else []:
        kind = _KEY_TYPES.get(str(jwk.get("kty"))) if isinstance(jwk, dict) else None
        if kind is not None and jwk.get("use", "sig") == "sig":
            with contextlib.suppress(JoseError, ValueError, TypeError, LookupError):  # a curve that nobody knows here
                found[str(jwk.get("kid", ""))] = kind.import_key(jwk)
    return found


def _private(url: str) -> bool:
    """Whether nobody on the way can read or change what is at `url`."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.scheme != "http":
            return parts.scheme == "https" and bool(host)
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # no URL, or no address
        return False
