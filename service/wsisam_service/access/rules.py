"""Which role each route asks for: the one table. A route that is not in it is for admins only, and a test says so."""

from __future__ import annotations

from dataclasses import dataclass

from wsisam_service.access.identity import Role


@dataclass(frozen=True, slots=True)
class Need:
    """`role` is the least that a caller must have, None for routes that are open to all. `work` marks what keeps the
    model busy, of which an identity has only so many requests under way.
    """

    role: Role | None
    work: bool = False


OPEN = Need(None)
VIEW = Need(Role.VIEWER)
ANNOTATE = Need(Role.ANNOTATOR)
WORK = Need(Role.ANNOTATOR, work=True)
ADMINISTER = Need(Role.ADMIN)
MEASURE = Need(Role.METRICS)

NEEDS = {
    # The page has nothing in it but code, and must be there to ask for a key.
    "GET /": OPEN,
    "GET /page/{name}": OPEN,
    "GET /healthz": OPEN,
    "GET /readyz": OPEN,
    "GET /problems/{name}": OPEN,
    "GET /metrics": MEASURE,
    "GET /docs": VIEW,
    "GET /openapi.json": VIEW,
    "GET /v1/info": VIEW,
    "GET /v1/slides": VIEW,
    "GET /v1/slides/{slide_id}": VIEW,
    "GET /v1/slides/{slide_id}/thumbnail": VIEW,
    "GET /v1/slides/{slide_id}/region": VIEW,
    "GET /v1/slides/{slide_id}/iiif": VIEW,
    "GET /v1/slides/{slide_id}/iiif/info.json": VIEW,
    "GET /v1/slides/{slide_id}/iiif/{region}/{size}/{rotation}/{quality_format}": VIEW,
    "POST /v1/slides/{slide_id}/segment": WORK,
    "POST /v1/slides/{slide_id}/prewarm": WORK,
    "POST /v1/slides/{slide_id}/results": WORK,
    "POST /v1/segment": WORK,
    "DELETE /v1/slides/{slide_id}/cache": ADMINISTER,
    "POST /sam/": WORK,
    "POST /sam/automask/": WORK,
    "GET /sam/weights/": ANNOTATE,
    "POST /sam/weights/": ADMINISTER,
    "GET /sam/weights/cancel/": ADMINISTER,
    "GET /sam/progress/": ANNOTATE,
    "GET /sam/version/": ANNOTATE,
    "POST /sam/upload/": ANNOTATE,
    "POST /sam/video/": ANNOTATE,
    "POST /sam/sam3/": ANNOTATE,
    "POST /sam/sam3video/": ANNOTATE,
}
"""By method and route template; under /sam in the spelling with both slashes, which stands for the others."""

RANK = {Role.METRICS: 0, Role.VIEWER: 1, Role.ANNOTATOR: 2, Role.ADMIN: 3}
"""How strong the roles are; what `metrics` may is none of the others' but admin's."""


def need_of(method: str, route: str) -> Need:
    """What `method` on the route of this template asks for."""
    if route.startswith("/sam"):
        word = route.removeprefix("/sam").strip("/")
        route = f"/sam/{word}/" if word else "/sam/"
    return NEEDS.get(f"{method} {route}", ADMINISTER)


def suffices(role: Role, needed: Role) -> bool:
    """Whether `role` may do what `needed` may."""
    if Role.METRICS in (role, needed):
        return role in (needed, Role.ADMIN)
    return RANK[role] >= RANK[needed]
