"""What a gateway holds of slides' pixels: decoded tiles, and pictures for viewers."""

from __future__ import annotations

from collections.abc import Collection

from wsisam_service.iiif.pictures import Pictures
from wsisam_service.segmenting.tokens import key_fingerprint
from wsisam_service.slides.catalogue import Catalogue


class PixelCaches:
    """`key` hides fingerprints in view keys, None where they are plain."""

    def __init__(self, catalogue: Catalogue, pictures: Pictures, key: bytes | None) -> None:
        self._catalogue = catalogue
        self._pictures = pictures
        self._key = key

    def forget(self, slides: Collection[str]) -> None:
        """Forget the slides with these key fingerprints. It looks at every open slide: on the event loop, in a
        thread.
        """
        held = self._catalogue.fingerprints() | self._pictures.fingerprints()
        purged = {fingerprint for fingerprint in held if key_fingerprint(fingerprint, self._key) in slides}
        self._catalogue.drop_tiles(purged)
        self._pictures.forget(purged)
