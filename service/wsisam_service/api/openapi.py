"""The API's description: FastAPI's own, and the models of bodies and problems that routes read or write themselves."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from pydantic.json_schema import models_json_schema
from starlette.responses import HTMLResponse, Response

from wsisam_service.access.rules import need_of
from wsisam_service.api.bodies import described_problems, json_response
from wsisam_service.api.schemas import PrewarmBody, ProblemAnswer, ResultBody, SegmentBody

_BEARER = {
    "type": "http",
    "scheme": "bearer",
    "description": "An API key or an OIDC access token, where the server asks for one.",
}
_REFERENCE = "#/components/schemas/{model}"


def install(app: FastAPI) -> None:
    """Let `app.openapi()` describe them too; built once, on the first request for it. Serve it, and a page over it."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _, definitions = models_json_schema(
                [(model, "validation") for model in (SegmentBody, ResultBody, PrewarmBody, ProblemAnswer)],
                ref_template=_REFERENCE,
            )
            schemas = describe().setdefault("components", {}).setdefault("schemas", {})
            for name, schema in definitions["$defs"].items():
                schemas.setdefault(name, schema)
            _describe_access(describe())
        return describe()

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it
    router = APIRouter(include_in_schema=False)

    @router.get("/openapi.json")
    async def show_openapi() -> Response:
        return json_response(app.openapi())

    @router.get("/docs")
    async def show_docs() -> HTMLResponse:
        page = get_swagger_ui_html(openapi_url="openapi.json", title=app.title)
        page.headers["referrer-policy"] = "no-referrer"  # the path may hold a key
        return page

    app.include_router(router)


def _describe_access(document: dict[str, Any]) -> None:
    """What each operation asks of its caller, and how it refuses those who do not have it."""
    document["components"].setdefault("securitySchemes", {})["bearer"] = _BEARER
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            role = need_of(method.upper(), path).role
            if role is None:
                continue
            told = operation.get("description", "")
            operation["description"] = f"{told}\n\nAsks for the role `{role}`.".strip()
            operation["security"] = [{"bearer": []}]
            for status, described in described_problems(401, 403, 429).items():
                operation["responses"].setdefault(str(status), described)
