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
        """Whose `token` it is. Raises `Unauthorized`, `NoRole`, and `NotReady` where that cannot be known now."""
        ...

    async def aclose(self) -> None: ...


def bearer_of(authorization: str | None) -> str | None:
    """The key or token in an Authorization header. Other schemes are not ours: a log-in in front passes its own on."""
    scheme, _, credentials = (authorization or "").strip().partition(" ")
    return credentials.strip() if scheme.lower() == "bearer" else None


class Gate:
    """Asks for API keys, access tokens, either, or (without both) for nothing."""

    def __init__(self, keys: KeyFile | None, tokens: Tokens | None) -> None:
        self._keys = keys
        self._tokens = tokens

    @property
    def asks(self) -> bool:
        """Whether callers are asked who they are."""
        return self._keys is not None or self._tokens is not None

    async def identify(self, bearer: str | None, path_key: str | None) -> Identity:
        """Whose credentials these are; a header's win over a key in the path. Raises what `Tokens.identity` raises."""
        if not self.asks:
            return ANONYMOUS
        if bearer is None:
            return self._of_key(path_key or "")
        if self._tokens is None or KEY.fullmatch(bearer):
            return self._of_key(bearer)
        return await self._tokens.identity(bearer)

    async def aclose(self) -> None:
        if self._tokens is not None:
            await self._tokens.aclose()

    def _of_key(self, key: str) -> Identity:
        found = self._keys.identity(key) if self._keys is not None and KEY.fullmatch(key) else None
        if found is None:
            raise Unauthorized(_REFUSED)
        return found
