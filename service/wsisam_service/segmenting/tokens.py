"""What the service signs: refine tokens, and the names of slides in view keys."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from dataclasses import dataclass

from wsisam_service.errors import RefineExpired
from wsisam_service.jobs import NO_ADAPTERS
from wsisam_service.views import View

_SIGNATURE_BYTES = 16
_HIDDEN_FINGERPRINT = 32
"""Hex digits of a fingerprint's HMAC that go into view keys."""


@dataclass(frozen=True, slots=True)
class RefineToken:
    """An answer that can be corrected: the state's id at the executor, and the model, slide and HR view it is of.

    `adapters` is the SHA-256 of those that drew it, "none" for the frozen model.
    """

    refine_id: str
    model: str
    fingerprint: str
    view: View
    adapters: str = NO_ADAPTERS


class TokenSigner:
    """Makes and checks refine tokens. `clock` gives seconds since the epoch."""

    def __init__(self, key: bytes, ttl_s: float, clock: Callable[[], float] = time.time) -> None:
        self._key = key
        self._ttl_s = ttl_s
        self._clock = clock

    def sign(self, token: RefineToken) -> str:
        """An opaque, URL-safe text."""
        view = token.view
        expires = int(self._clock() + self._ttl_s)
        members = [
            *(token.refine_id, token.model, token.fingerprint, token.adapters, expires),
            *(view.side, view.k, view.cx, view.cy, view.slide_mpp),
        ]
        payload = json.dumps(members, separators=(",", ":")).encode()
        return _as_text(self._signature(payload) + payload)

    def verify(self, text: str) -> RefineToken:
        """The token that `sign` made `text` of. Raises `RefineExpired` for any other text, and after its time."""
        try:
            raw = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except (UnicodeEncodeError, binascii.Error) as error:
            raise RefineExpired("the refine token is none of this server's") from error
        # Base64 has several texts of the same bytes: "+" read as "-", spare bits of the last character. One is ours.
        if _as_text(raw) != text:
            raise RefineExpired("the refine token is none of this server's")
        signature, payload = raw[:_SIGNATURE_BYTES], raw[_SIGNATURE_BYTES:]
        if not hmac.compare_digest(signature, self._signature(payload)):
            raise RefineExpired("the refine token is none of this server's")
        try:
            refine_id, model, fingerprint, adapters, expires, *numbers = json.loads(payload)
            view = View(*numbers)
        except (ValueError, TypeError) as error:
            raise RefineExpired("the refine token is of another version of this server") from error
        if self._clock() > expires:
            raise RefineExpired("the refine token has expired; send the whole prompt")
        return RefineToken(refine_id, model, fingerprint, view, adapters)

    def _signature(self, payload: bytes) -> bytes:
        return hmac.digest(self._key, payload, "sha256")[:_SIGNATURE_BYTES]


def _as_text(raw: bytes) -> str:
    """URL-safe base64 without padding (RFC 4648, section 5)."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def key_fingerprint(fingerprint: str, key: bytes | None) -> str:
    """A slide's fingerprint as view keys hold it: hidden where there is a key, so that stores name no slide."""
    if key is None:
        return fingerprint
    return hmac.new(key, fingerprint.encode(), hashlib.sha256).hexdigest()[:_HIDDEN_FINGERPRINT]
