"""Who is let in: a caller's credentials become an identity."""

from __future__ import annotations

from typing import Protocol

from wsisam_service.access.identity import ANONYMOUS, Identity
from wsisam_service.access.keys import KEY, KeyFile
from wsisam_service.errors import Unauthorized

_REFUSED = "a valid key or access token is needed, as Authorization: Bearer …"


class Tokens(Protocol):
    """What makes identities of access tokens."""

    async def identity(self, token: str) -> Identity:
        """Whose `token` it is. Raises `Unauthorized`, `Forbidden` for one without a role, and `NotReady` where that
        cannot be known now.
        """
        ...

    async def aclose(self) -> None: ...


class Gate:
    """Asks for API keys, access tokens, either, or (without both) for nothing."""

    def __init__(self, keys: KeyFile | None, tokens: Tokens | None) -> None:
        self._keys = keys
        self._tokens = tokens

    @property
    def asks(self) -> bool:
        """Whether callers are asked who they are."""
        return self._keys is not None or self._tokens is not None

    async def identify(self, authorization: str | None, path_key: str | None) -> Identity:
        """Whose credentials these are; a header wins over a key in the path. Raises what `Tokens.identity` raises."""
        if not self.asks:
            return ANONYMOUS
        if authorization is None:
            return self._of_key(path_key or "")
        scheme, _, credentials = authorization.strip().partition(" ")
        credentials = credentials.strip()
        if scheme.lower() != "bearer":
            raise Unauthorized(_REFUSED)
        if self._tokens is None or KEY.fullmatch(credentials):
            return self._of_key(credentials)
        return await self._tokens.identity(credentials)

    async def aclose(self) -> None:
        if self._tokens is not None:
            await self._tokens.aclose()

    def _of_key(self, key: str) -> Identity:
        found = self._keys.identity(key) if self._keys is not None and KEY.fullmatch(key) else None
        if found is None:
            raise Unauthorized(_REFUSED)
        return found
