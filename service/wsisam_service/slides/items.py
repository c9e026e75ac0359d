"""What a root offers: slides before they are opened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from wsisam_service.slides.lanes import Lane
from wsisam_service.slides.reader import SlideReader
from wsisam_service.slides.tiles import TileCache

Stamp = tuple[int, str]
"""A size, and whatever changes when the content changes."""


@dataclass(frozen=True, slots=True)
class DicomIds:
    """How a PACS knows a slide. Never logged; `accession` names an order, so it is never answered either."""

    study: str
    series: str
    accession: str | None


@dataclass(frozen=True, slots=True)
class DicomQuery:
    """Which slides are meant by their DICOM identifiers; empty texts mean any."""

    study: str = ""
    series: str = ""
    accession: str = ""

    def means(self, ids: DicomIds | None) -> bool:
        """Whether this is about the slide with `ids`; a slide that is no DICOM has none."""
        if ids is None:
            return self == EVERY_SLIDE
        asked = ((self.study, ids.study), (self.series, ids.series), (self.accession, ids.accession))
        return all(not wanted or wanted == told for wanted, told in asked)


EVERY_SLIDE = DicomQuery()


@dataclass(frozen=True, slots=True)
class OpenedSlide:
    """An open slide, and what computes the fingerprint of the content that it was opened on (may raise OSError)."""

    reader: SlideReader
    fingerprint: Callable[[], str]


class RootName(Protocol):
    """What a slide says of the root that it lies in."""

    @property
    def identity(self) -> str:
        """Goes into slide ids; no credentials, no host's path."""
        ...


class SlideItem(Protocol):
    """A slide that a root lists. `relative` is its place in the root, the same for everybody who lists it."""

    @property
    def root(self) -> RootName: ...

    @property
    def relative(self) -> str: ...

    @property
    def name(self) -> str:
        """What clients read."""
        ...

    @property
    def ids(self) -> DicomIds | None: ...

    @property
    def lane(self) -> Lane:
        """Where to wait for it."""
        ...

    def renewed(self) -> tuple[SlideItem, Stamp] | None:
        """The slide as it is now, and its stamp; None where it is gone. Raises OSError."""
        ...

    def open(self, tiles: TileCache) -> OpenedSlide:
        """Raises `ServiceError`, OSError."""
        ...
