"""Every route of the OpenAPI, with requests that schemathesis makes up: no 500s, and answers that fit their schema.

Of answers that are problems the table in `errors` is the schema; routes need not name each of them.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from stand_ins import NumpyExecutor

from wsisam_service.api.schemas import ProblemAnswer
from wsisam_service.app import create_app
from wsisam_service.errors import METHOD_NOT_ALLOWED, PROBLEMS
from wsisam_service.settings import Settings
from wsisam_service.slides.catalogue import Catalogue

EXAMPLES = 12
PROBLEM = jsonschema.Draft202012Validator(ProblemAnswer.model_json_schema())
KNOWN = {problem.name: problem.status for problem in (*PROBLEMS.values(), METHOD_NOT_ALLOWED)}


def is_honest_problem(response: Any) -> bool:
    """Whether an answer is a problem of the table with its own status; `internal` is in no table."""
    if not response.headers.get("content-type", [""])[0].startswith("application/problem+json"):
        return False
    document = response.json()
    PROBLEM.validate(document)
    return KNOWN.get(document["type"].removeprefix("/problems/")) == response.status_code == document["status"]


def check(context: Any, response: Any, case: Any) -> None:
    """No 500; a problem as the table has it, on any route; all else as the route describes it."""
    if is_honest_problem(response):
        return
    for rule in (status_code_conformance, content_type_conformance, response_schema_conformance, not_a_server_error):
        rule(context, response, case)


LABELS = [
    f"{method.upper()} {path}"
    for path, methods in create_app(Settings(), Catalogue(()), NumpyExecutor()).openapi()["paths"].items()
    for method in methods
]
"""Every operation that the API describes."""


@pytest.fixture(scope="module")
def operations(slides: Path) -> dict[str, Any]:
    """The operations of a service over a small real slide, whose id half of the requests have."""
    chosen = Settings(slides=(str(slides),), max_body_bytes=1_000_000, max_image_px=1_000_000, automask_s=0.5)
    catalogue = Catalogue(chosen.slides)
    slide = next(listed.id for listed in catalogue.list("tissue").slides)
    schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(chosen, catalogue, NumpyExecutor()))
    turns = itertools.count()

    @schema.hook
    def map_path_parameters(_context: Any, parameters: dict[str, Any] | None) -> dict[str, Any] | None:
        if parameters and "slide_id" in parameters and next(turns) % 2:
            return {**parameters, "slide_id": slide}
        return parameters

    return {found.ok().label: found.ok() for found in schema.get_all_operations()}


@pytest.mark.parametrize("label", LABELS)
def test_no_request_breaks_a_route(operations: dict[str, Any], label: str) -> None:
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operations[label].as_strategy())
    def holds(case: Any) -> None:
        case.call_and_validate(checks=[check])

    holds()
