"""Bodies that nobody would write: what is parsed of them, and what is told of their faults, is bounded."""

from __future__ import annotations

import json

import pytest
from pydantic import BaseModel, ValidationError

from wsisam_model.prompts import MAX_POINTS
from wsisam_service.api.bodies import MAX_FAULTS, MAX_VALUES, parse_body
from wsisam_service.api.results import MAX_RESULT_VALUES
from wsisam_service.api.schemas import PrewarmBody, ResultBody, SegmentBody
from wsisam_service.dicom.outlines import MAX_VERTICES
from wsisam_service.errors import BodyTooLarge, InvalidRequest
from wsisam_service.sam.requests import DetectBody
from wsisam_service.segmenting.segmenter import MAX_PROMPTS


@pytest.mark.parametrize(
    ("model", "around"),
    [
        (SegmentBody, '{"prompts": %s}'),
        (SegmentBody, '{"prompts": [{"points": %s}]}'),
        (PrewarmBody, '{"boxes": %s}'),
        (PrewarmBody, '{"points": %s}'),
        (ResultBody, '{"kind": "seg", "refine": %s}'),
        (DetectBody, '{"b64img": "", "point_coords": %s}'),
        (DetectBody, '{"b64img": "", "point_labels": %s}'),
    ],
)
def test_a_list_of_faults_ends_at_the_first(model: type[BaseModel], around: str) -> None:
    with pytest.raises(ValidationError) as caught:
        model.model_validate_json(around % json.dumps([None] * 200))
    assert caught.value.error_count() == 1


def test_thousands_of_unknown_fields_are_counted_and_not_told_one_by_one() -> None:
    unknown = dict.fromkeys(map(str, range(MAX_FAULTS + 1)), 0)
    with pytest.raises(InvalidRequest, match=f"{MAX_FAULTS + 1} faults"):
        parse_body(SegmentBody, json.dumps({"prompts": [{"box": [0, 0, 9, 9]}], **unknown}).encode())


@pytest.mark.parametrize("element", ["1,", "[],", "{},", "["])
def test_values_without_end_are_refused_before_they_are_parsed(element: str) -> None:
    with pytest.raises(BodyTooLarge, match="values"):
        parse_body(SegmentBody, b'{"prompts": [' + element.encode() * (MAX_VALUES + 1))


def test_the_largest_requests_that_are_allowed_are_parsed() -> None:
    prompt = {"box": [0.5, 0.5, 99.5, 99.5], "points": [[1.5, 2.5, 1]] * MAX_POINTS}
    body = parse_body(SegmentBody, json.dumps({"prompts": [prompt] * MAX_PROMPTS}).encode())
    assert sum(len(prompt.points) for prompt in body.prompts) == MAX_PROMPTS * MAX_POINTS

    ring = b"[%s]" % b",".join([b"[1,2]"] * MAX_VERTICES)
    whole = b'{"kind": "seg", "geojson": {"coordinates": %s}}' % ring
    result = parse_body(ResultBody, whole, MAX_RESULT_VALUES)
    assert result.geojson is not None
    assert len(result.geojson["coordinates"]) == MAX_VERTICES
