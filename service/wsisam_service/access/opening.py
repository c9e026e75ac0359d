"""The gate that an operator's settings describe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from wsisam_service.access.gate import Gate
from wsisam_service.access.issuer import Issuer, IssuerError
from wsisam_service.access.keys import KeyFile, StoredKey
from wsisam_service.access.tokens import AccessTokens
from wsisam_service.settings import Settings


def open_gate(settings: Settings) -> Gate:
    """A gate for API keys, and for access tokens of an issuer, where the settings name such.

    Raises `KeyFileError`, `IssuerError`.
    """
    tokens = None
    if settings.oidc_issuer:
        if not settings.oidc_audience:
            raise IssuerError("needs oidc_audience: without it, tokens made for other services would do")
        tokens = AccessTokens(
            Issuer(settings.oidc_issuer),
            settings.oidc_audience,
            roles_claim=settings.oidc_roles_claim,
            grants=settings.oidc_roles,
            skew_s=settings.oidc_skew_s,
        )
    return Gate(None if settings.keys is None else KeyFile(settings.keys), tokens)


def access_notes(keys: Sequence[StoredKey] | None, issuer: str, root_names: Sequence[str]) -> tuple[str, ...]:
    """What an operator should read of who is let in to these roots."""
    if keys is None and not issuer:
        return ("nobody is asked who they are",)
    asked = [] if keys is None else [f"one of {len(keys)} keys"]
    asked += [f"an access token of {issuer}"] if issuer else []
    notes = [f"callers need {' or '.join(asked)}; the roots are called {', '.join(dict.fromkeys(root_names))}"]
    notes += [
        f"warning: {number} roots are called {name}; who sees one of them sees all"
        for name, number in Counter(root_names).items()
        if number > 1
    ]
    notes += [
        f"warning: the key of {key.name} is for the root {root}, which is not served"
        for key in keys or ()
        for root in key.roots or ()
        if root not in root_names
    ]
    return tuple(notes)
