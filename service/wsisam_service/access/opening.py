"""The gate that an operator's settings describe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from wsisam_service.access.gate import Gate
from wsisam_service.access.grants import Grant
from wsisam_service.access.issuer import Issuer, IssuerError
from wsisam_service.access.keys import KeyFile
from wsisam_service.access.tokens import AccessTokens


def open_gate(
    keys: Path | None, *, issuer: str, audience: str, roles_claim: str, roles: Mapping[str, Grant], skew_s: int
) -> Gate:
    """A gate for the API keys in the file `keys` and for access tokens of `issuer`, where there are such.

    Raises `KeyFileError`, `IssuerError`.
    """
    tokens = None
    if issuer:
        if not audience:
            raise IssuerError("needs oidc_audience: without it, tokens made for other services would do")
        tokens = AccessTokens(Issuer(issuer), audience, roles_claim=roles_claim, grants=roles, skew_s=skew_s)
    return Gate(None if keys is None else KeyFile(keys), tokens)
