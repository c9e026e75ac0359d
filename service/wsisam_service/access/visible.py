"""The slides that one identity sees: those of its roots. Others answer as slides that do not exist."""

from __future__ import annotations

from collections.abc import Sequence

from wsisam_service.access.identity import Identity
from wsisam_service.slides.catalogue import Catalogue
from wsisam_service.slides.items import EVERY_SLIDE, DicomQuery
from wsisam_service.slides.listing import SlidePage
from wsisam_service.slides.slide import Slide


class VisibleSlides:
    """A catalogue as `identity` sees it; who is None sees nothing."""

    def __init__(self, catalogue: Catalogue, identity: Identity | None) -> None:
        self._catalogue = catalogue
        self._roots = frozenset[str]() if identity is None else identity.roots

    def seen_by(self, identity: Identity | None) -> VisibleSlides:
        """The same catalogue for somebody else."""
        return VisibleSlides(self._catalogue, identity)

    async def open(self, slide_id: str) -> Slide:
        """See `Catalogue.open`."""
        return await self._catalogue.open(slide_id, self._roots)

    def list(
        self, q: str = "", limit: int = 100, cursor: str | None = None, dicom: DicomQuery = EVERY_SLIDE
    ) -> SlidePage:
        """See `Catalogue.list`."""
        return self._catalogue.list(q, limit, cursor, self._roots, dicom)

    def pacs_states(self) -> Sequence[str]:
        """See `Catalogue.pacs_states`."""
        return self._catalogue.pacs_states()

    async def is_readable(self) -> bool:
        """Whether every root can be listed now, also those that the identity does not see."""
        return await self._catalogue.is_readable()
