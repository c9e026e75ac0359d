"""Errors become RFC 9457 documents here and nowhere else."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from wsisam_model.errors import ModelError
from wsisam_service.errors import (
    INTERNAL,
    METHOD_NOT_ALLOWED,
    PROBLEMS,
    InvalidBox,
    InvalidLabel,
    InvalidNumber,
    InvalidRequest,
    NotFound,
    Problem,
    ServiceError,
    TooManyPrompts,
    Unauthorized,
    detail_of,
    problem_of,
)
from wsisam_service.logs import current_request
from wsisam_service.metrics import REFUSALS
from wsisam_service.segmenting.answers import EveryPromptFailed

MEDIA_TYPE = "application/problem+json"
_NUMBER_ERRORS = frozenset(
    ("finite_number", "greater_than", "greater_than_equal", "less_than", "less_than_equal", "int_from_float")
)
_BOX = re.compile(r"prompts\[\d+\]\.box(\[\d+\])?")
_LABEL = re.compile(r"prompts\[\d+\]\.points\[\d+\]\[2\]")

logger = logging.getLogger(__name__)
router = APIRouter(tags=["problems"])


def problem_response(problem: Problem, detail: str, *, headers: Mapping[str, str] = {}, **extra: Any) -> Response:
    """The document of `problem`, with the request's id in it."""
    REFUSALS.labels(problem.name).inc()
    ids = current_request.get()
    request_id = {"request_id": ids.request_id} if ids else {}
    content = orjson.dumps(problem.document(detail, **request_id, **extra))
    return Response(content, problem.status, headers, MEDIA_TYPE)


def error_response(error: Exception) -> Response:
    """The answer to any exception; one that nobody foresaw is logged with its traceback and tells nothing."""
    if isinstance(error, EveryPromptFailed):
        first = error.problems[0].error
        errors = [problem_entry(failed.error) | {"id": failed.id} for failed in error.problems]
        return problem_response(problem_of(first), detail_of(first), headers=_headers(first), errors=errors)
    problem = problem_of(error)
    if problem is INTERNAL:
        logger.error("unexpected error", exc_info=error)
    return problem_response(problem, detail_of(error), headers=_headers(error))


def problem_entry(error: Exception) -> dict[str, Any]:
    """The document of one prompt's error among other prompts' answers."""
    problem = problem_of(error)
    if problem is INTERNAL:
        logger.error("unexpected error in one prompt", exc_info=error)
    return problem.document(detail_of(error))


def schema_error(errors: Sequence[ErrorDetails] | ValidationError) -> ServiceError:
    """The error of a body or query that does not fit its schema: the first fault, named by its place."""
    found = errors.errors(include_url=False) if isinstance(errors, ValidationError) else errors
    first = found[0]
    place = _place(first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    detail = f"{place}: {message[0].lower()}{message[1:]}" if place else message
    return _schema_error_type(first, place)(detail)


def _schema_error_type(error: ErrorDetails, place: str) -> type[ServiceError]:
    """The most telling error of a schema fault; `null` is what JavaScript writes for NaN."""
    kind = error["type"]
    if kind == "too_long" and place == "prompts":
        return TooManyPrompts
    if kind in _NUMBER_ERRORS or (kind == "float_type" and error["input"] is None):
        return InvalidNumber
    if kind in ("missing", "too_long") and _BOX.fullmatch(place):
        return InvalidBox
    return InvalidLabel if _LABEL.fullmatch(place) else InvalidRequest


def install(app: FastAPI) -> None:
    """Let `app` answer every error with a problem document."""
    app.add_exception_handler(ServiceError, _typed)
    app.add_exception_handler(ModelError, _typed)
    app.add_exception_handler(RequestValidationError, _invalid_query)
    app.add_exception_handler(HTTPException, _http)
    app.include_router(router)


@router.get("/problems/{name}", summary="What a problem type means", response_class=PlainTextResponse)
async def describe_problem(name: str) -> PlainTextResponse:
    """A short text for the URI that a problem document gives as its `type`."""
    for problem in (*PROBLEMS.values(), METHOD_NOT_ALLOWED, INTERNAL):
        if problem.name == name:
            return PlainTextResponse(f"{problem.name}: {problem.title}. Status {problem.status}. See docs/API.md.\n")
    raise NotFound("there is no problem type of this name")


async def _typed(_request: Request, error: Exception) -> Response:
    return error_response(error)


async def _invalid_query(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(schema_error(error.errors()))


async def _http(request: Request, error: Exception) -> Response:
    """What the router itself refuses."""
    assert isinstance(error, HTTPException)
    if error.status_code == HTTPStatus.NOT_FOUND:
        return error_response(NotFound("there is nothing at this address"))
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        detail = f"{request.method} is not allowed here"
        return problem_response(METHOD_NOT_ALLOWED, detail, headers=error.headers or {})
    return error_response(InvalidRequest("the request cannot be understood"))


def _headers(error: Exception) -> dict[str, str]:
    if isinstance(error, Unauthorized):
        return {"www-authenticate": "Bearer"}
    if isinstance(error, ServiceError) and error.retry_after_s is not None:
        return {"retry-after": str(error.retry_after_s)}
    return {}


def _place(loc: Sequence[int | str]) -> str:
    """`("body", "prompts", 0, "box")` as `prompts[0].box`."""
    place = ""
    for part in loc:
        if isinstance(part, int):
            place += f"[{part}]"
        elif part not in ("body", "query", "path"):
            place += f".{part}" if place else part
    return place
