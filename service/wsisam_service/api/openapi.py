"""The API's description: FastAPI's own, and the models of bodies and problems that routes read or write themselves."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from fastapi import APIRouter, FastAPI
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
_SWAGGER = "https://cdn.jsdelivr.net/npm/swagger-ui-dist@5.35.0/"
_START = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true})'
_PAGE = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>WSI-SAM</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="{_SWAGGER}swagger-ui.css" crossorigin="anonymous"
integrity="sha384-WlYgdmXYOOBWL5apwjDEZwN+U3HmXSSu5R6V5aGxEcf7z+KuRNwBhoxKVN1i3D5I">
</head>
<body>
<div id="swagger-ui">What this page shows is drawn by swagger-ui, which comes from the network; the description itself
is <a href="openapi.json">openapi.json</a>.</div>
<script src="{_SWAGGER}swagger-ui-bundle.js" crossorigin="anonymous"
integrity="sha384-gjRm0bEPMeTmMh5jT2cHccIwCUZSTd8YC+j0d0sXw0MdGEfScduGpSyF3ZSSLkX9"></script>
<script>{_START}</script>
</body>
</html>
"""
_START_HASH = base64.b64encode(hashlib.sha256(_START.encode()).digest()).decode("ascii")
_PAGE_HEADERS = {
    # Somebody else's script on a page whose path or tab may hold a key: only the one that is known by its hash runs,
    # and it reaches nobody but this service.
    "content-security-policy": f"default-src 'none'; script-src {_SWAGGER} 'sha256-{_START_HASH}'; "
    f"style-src {_SWAGGER} 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


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
        return HTMLResponse(_PAGE, headers=_PAGE_HEADERS)

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
