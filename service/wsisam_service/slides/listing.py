"""A listing of slides, page by page."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass

from wsisam_service.errors import InvalidRequest, ServiceError
from wsisam_service.slides.slide import Slide


@dataclass(frozen=True, slots=True)
class ListedSlide:
    """One line of a listing: the open slide, or the problem it has."""

    id: str
    name: str
    slide: Slide | None
    problem: ServiceError | None


@dataclass(frozen=True, slots=True)
class SlidePage:
    """A part of the listing; `next` is the cursor of the next one, None at the end."""

    slides: Sequence[ListedSlide]
    next: str | None


def encode_cursor(order: tuple[str, str]) -> str:
    """Where the next page begins: behind the slide of this (name, id)."""
    return base64.urlsafe_b64encode(json.dumps(order).encode()).decode("ascii")


def decode_cursor(cursor: str) -> tuple[str, str]:
    """The (name, id) of a cursor. Raises `InvalidRequest`."""
    try:
        name, slide_id = json.loads(base64.urlsafe_b64decode(cursor.encode("ascii")))
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidRequest("The cursor is not one that this service gave.") from error
    return str(name), str(slide_id)
