"""OIDC access tokens (JWTs): signature, issuer, audience, times, and the role that a claim gives."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import orjson
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.util import urlsafe_b64decode

from wsisam_service.access.grants import Grant, strongest
from wsisam_service.access.identity import Identity
from wsisam_service.access.issuer import Issuer
from wsisam_service.errors import Forbidden, Unauthorized

ALGORITHMS = frozenset(("RS256", "ES256"))
"""Never "none", and never HS256, with which the public key would be the secret."""
TYPES = frozenset(("at+jwt", "application/at+jwt", "jwt"))
MAX_TOKEN = 16 * 1024
MAX_SUBJECT = 255
_MALFORMED = (JoseError, ValueError, TypeError, OverflowError, RecursionError)


class NoRole(Forbidden):
    """A valid access token, of the caller `who`, that gives no role here."""

    def __init__(self, who: str) -> None:
        super().__init__("the access token gives no role here")
        self.who = who


class AccessTokens:
    """Judges access tokens of `issuer` for `audience`.

    `roles_claim` names the claim with the issuer's roles, by its own name or as a path with dots; `grants` says what
    each of them gives here. Clocks may differ by `skew_s`; `now` gives seconds since 1970.
    """

    def __init__(
        self,
        issuer: Issuer,
        audience: str,
        *,
        roles_claim: str,
        grants: Mapping[str, Grant],
        skew_s: int,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._issuer = issuer
        self._roles_claim = roles_claim
        self._grants = grants
        self._claims = jwt.JWTClaimsRegistry(
            now=lambda: int(now()),
            leeway=skew_s,
            iss={"essential": True, "value": issuer.url},
            aud={"essential": True, "value": audience},
            exp={"essential": True},
            sub={"essential": True},
        )

    async def identity(self, token: str) -> Identity:
        """See `gate.Tokens`. What is wrong with a token is not told, for the one who asks may have made it."""
        claims = await self._verified(token)
        subject = claims["sub"]
        if not subject.isprintable() or len(subject) > MAX_SUBJECT:
            raise Unauthorized("the access token is not valid")
        who = f"oidc:{subject}"
        names = _names(claims, self._roles_claim)
        granted = strongest(self._grants[name] for name in names if name in self._grants)
        if granted is None:
            raise NoRole(who)
        role, roots = granted
        return Identity(who, role, roots)

    async def aclose(self) -> None:
        await self._issuer.aclose()

    async def _verified(self, token: str) -> dict[str, Any]:
        try:
            header = _header(token)
            algorithm, key_id = header.get("alg"), header.get("kid", "")
            if algorithm not in ALGORITHMS or str(header.get("typ", "jwt")).lower() not in TYPES:
                raise ValueError("not such a token")
            key = await self._issuer.key(str(key_id))
            if key is None:
                raise ValueError("unknown key")
            claims = jwt.decode(token, key, algorithms=[algorithm]).claims
            self._claims.validate(claims)
        except _MALFORMED:
            raise Unauthorized("the access token is not valid") from None
        return claims


def _header(token: str) -> dict[str, Any]:
    """The token's header, not verified yet: it names the key. Raises ValueError."""
    if len(token) > MAX_TOKEN or token.count(".") != 2:
        raise ValueError("not a signed JWT")
    header = orjson.loads(urlsafe_b64decode(token.partition(".")[0].encode()))
    if not isinstance(header, dict):
        raise ValueError("the header is no object")
    return header


def _names(claims: Mapping[str, Any], claim: str) -> list[str]:
    """The texts in the claim: a list, or one text with blanks between them. Claims' own names may hold dots."""
    value: Any = claims.get(claim)
    if value is None:
        value = claims
        for part in claim.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, str):
        return value.split()
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []
