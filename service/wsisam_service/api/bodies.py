"""Reading bodies and writing answers: JSON in by pydantic's own parser, which tells where a fault is; out by orjson."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from wsisam_service.api.problems import MEDIA_TYPE as PROBLEM_MEDIA_TYPE
from wsisam_service.api.problems import schema_error
from wsisam_service.errors import BodyTooLarge, InvalidRequest, UnsupportedMediaType

Body = TypeVar("Body", bound=BaseModel)

JSON_MEDIA_TYPE = "application/json"
MAX_JSON_BYTES = 16 << 20
"""Of a body that holds no picture. Parsed, GeoJSON takes some twenty times as much memory."""
MAX_VALUES = 500_000
"""Values of a body: parsed, each holds up everybody for 50 ns and takes 32 bytes, and the largest request for
outlines that is allowed has 270,000. Pictures and masks are texts, which cost nothing.
"""
MAX_FAULTS = 10_000
"""Beyond this many, telling the first of a body's faults takes longer than parsing it did."""
_ANSWER_OPTIONS = orjson.OPT_SERIALIZE_NUMPY


def parse_body(model: type[Body], content: bytes, max_values: int | None = MAX_VALUES) -> Body:
    """`content` as `model`; raises the typed error of the first thing that does not fit. Without `max_values` it may
    hold as many as it likes: what did not come from outside.
    """
    # Every value but the first follows a comma or opens a list or an object, and the parser refuses deep nesting.
    values = content.count(b",") + content.count(b"[") + content.count(b"{")
    if max_values is not None and values > max_values:
        raise BodyTooLarge(f"a body has at most {max_values} values here")
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        if error.error_count() > MAX_FAULTS:
            raise InvalidRequest(f"the body has {error.error_count()} faults") from None
        raise schema_error(error) from error


def json_body(
    model: type[Body], *, max_bytes: int | None = MAX_JSON_BYTES, max_values: int = MAX_VALUES
) -> Callable[[Request], Awaitable[Body]]:
    """A dependency that reads the request's JSON body, of `max_bytes` at most where the service allows more; None is
    what the service allows.
    """

    async def read(request: Request) -> Body:
        # A page elsewhere can post without saying what, and is not asked for a preflight then; browsers say "origin".
        unsaid = "" if "origin" in request.headers else JSON_MEDIA_TYPE
        media_type = request.headers.get("content-type", unsaid).partition(";")[0].strip().lower()
        if media_type != JSON_MEDIA_TYPE and not (
            media_type.startswith("application/") and media_type.endswith("+json")
        ):
            raise UnsupportedMediaType(f"the body is {JSON_MEDIA_TYPE} here")
        content = await request.body()
        if max_bytes is not None and len(content) > max_bytes:
            raise BodyTooLarge(f"a body has at most {max_bytes} bytes here")
        return parse_body(model, content, max_values)

    return read


def to_json(content: object) -> bytes:
    """`content` as JSON, dataclasses and numpy numbers included."""
    return orjson.dumps(content, option=_ANSWER_OPTIONS)


def json_response(
    content: object, *, status: int = 200, headers: Mapping[str, str] | None = None, media_type: str = JSON_MEDIA_TYPE
) -> Response:
    """`content` as a JSON answer."""
    return Response(to_json(content), status, headers, media_type)


def described_body(model: type[BaseModel], examples: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """`openapi_extra` of a route whose body `json_body(model)` reads."""
    content: dict[str, Any] = {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}
    if examples:
        content["examples"] = examples
    return {"requestBody": {"required": True, "content": {JSON_MEDIA_TYPE: content}}}


def described_problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route that may answer these problem statuses."""
    reference = {"schema": {"$ref": "#/components/schemas/ProblemAnswer"}}
    return {status: {"description": "Problem", "content": {PROBLEM_MEDIA_TYPE: reference}} for status in statuses}
