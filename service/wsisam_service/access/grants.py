"""What an issuer's role gives here: a role of ours, and the slide roots that go with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from wsisam_service.access.identity import Role
from wsisam_service.access.rules import RANK


class Grant(BaseModel):
    """Written `"annotator"`, or `{role = "annotator", roots = ["colon"]}`; without roots it is every root."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role
    roots: tuple[str, ...] | None = None

    def __repr__(self) -> str:
        return self.role.value if self.roots is None else f"{self.role.value} on {', '.join(self.roots) or 'no root'}"

    @model_validator(mode="before")
    @classmethod
    def _a_word_is_a_role(cls, value: Any) -> Any:
        return {"role": value} if isinstance(value, str) else value


SAME_NAMES: Mapping[str, Grant] = {role.value: Grant(role=role) for role in (Role.VIEWER, Role.ANNOTATOR, Role.ADMIN)}
"""Where the issuer's roles are called as ours are."""


def strongest(grants: Iterable[Grant]) -> tuple[Role, frozenset[str] | None] | None:
    """The strongest role among `grants`, with the roots of those that give it; weaker ones add nothing, since a role
    holds on all roots that it sees.
    """
    best = max(grants := list(grants), key=lambda grant: RANK[grant.role], default=None)
    if best is None:
        return None
    roots: frozenset[str] = frozenset()
    for grant in grants:
        if grant.role is best.role:
            if grant.roots is None:
                return best.role, None
            roots |= frozenset(grant.roots)
    return best.role, roots
