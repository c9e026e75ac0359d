"""Prompts as the command line gives them: texts of boxes and points, or the objects of a GeoJSON file."""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from wsisam_service.commands.flags import UsageError

Prompt = dict[str, Any]
"""A prompt as the API's JSON writes it."""


def box_prompt(text: str) -> Prompt:
    """The prompt of "x0,y0,x1,y1"."""
    return {"box": _numbers(text, 4, "a box is x0,y0,x1,y1")}


def points_prompt(text: str) -> Prompt:
    """The prompt of "x,y,label x,y,label …"; label 1 is on the object, 0 beside it."""
    points = [_numbers(part, 3, "a point is x,y,1 or x,y,0") for part in text.split()]
    if not points:
        raise UsageError("--points needs at least one x,y,label")
    return {"points": points}


def read_prompts(path: Path) -> list[Prompt]:
    """A prompt for every area (its bounding box) and every point object of a GeoJSON file, in level-0 pixels.

    Id and classification of the objects are carried over. Raises `UsageError`.
    """
    try:
        document = orjson.loads(path.read_bytes().removeprefix(codecs.BOM_UTF8))  # strict: no NaN, no infinity
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except orjson.JSONDecodeError as error:
        raise UsageError(f"{path} is not JSON: {error}") from error
    prompts = [_feature_prompt(feature, number, path) for number, feature in enumerate(_features(document))]
    if not prompts:
        raise UsageError(f"{path} holds no object")
    return prompts


def _features(document: Any) -> list[Any]:
    if isinstance(document, Mapping):
        features = document.get("features", [document])
        return features if isinstance(features, list) else []
    return document if isinstance(document, list) else []


def _feature_prompt(feature: Any, number: int, path: Path) -> Prompt:
    try:
        geometry = feature["geometry"]
        positions = list(_positions(geometry["coordinates"]))
        kind = geometry["type"]
        classification = (feature.get("properties") or {}).get("classification")
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UsageError(f"object {number} of {path} has no geometry or properties that can be read") from error
    if not positions:
        raise UsageError(f"object {number} of {path} is empty")
    prompt: Prompt = {"id": str(feature.get("id", number))}
    if kind in ("Point", "MultiPoint"):
        prompt["points"] = [(x, y, 1) for x, y in positions]
    else:
        xs, ys = zip(*positions, strict=True)
        prompt["box"] = (min(xs), min(ys), max(xs), max(ys))
    if classification:
        prompt["classification"] = classification
    return prompt


def _positions(coordinates: Any) -> Iterator[tuple[float, float]]:
    """Every (x, y) in nested GeoJSON coordinates."""
    if not isinstance(coordinates[0], list):
        yield float(coordinates[0]), float(coordinates[1])
        return
    for part in coordinates:
        yield from _positions(part)


def _numbers(text: str, count: int, form: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"{form}, not {text!r}") from error
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise UsageError(f"{form}, not {text!r}")
    return numbers
