"""The API's description: FastAPI's own, and the models of bodies and problems that routes read or write themselves."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from wsisam_service.api.schemas import PrewarmBody, ProblemAnswer, SegmentBody

_REFERENCE = "#/components/schemas/{model}"


def install(app: FastAPI) -> None:
    """Let `app.openapi()` describe them too; built once, on the first request for it."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _, definitions = models_json_schema(
                [(SegmentBody, "validation"), (PrewarmBody, "validation"), (ProblemAnswer, "validation")],
                ref_template=_REFERENCE,
            )
            schemas = describe().setdefault("components", {}).setdefault("schemas", {})
            for name, schema in definitions["$defs"].items():
                schemas.setdefault(name, schema)
        return describe()

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it
