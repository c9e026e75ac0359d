"""Who made an object, and names that follow from its content: what is made twice gets the same UID twice."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from highdicom import AlgorithmIdentificationSequence

NAME = "WSI-SAM"
MANUFACTURER = "wsisam"
_UID_NAMESPACE = uuid.UUID("6a2b3df6-1f0c-5a0e-9a57-0d3a55d1c0de")


@dataclass(frozen=True, slots=True)
class Algorithm:
    """What drew the outlines: the model, and its adapters' name and SHA-256, None for the frozen model."""

    model: str
    adapters: str | None
    adapters_sha256: str | None
    version: str = field(default_factory=lambda: version("wsisam"))

    def sequence(self) -> AlgorithmIdentificationSequence:
        """DICOM's Algorithm Identification."""
        import highdicom
        from pydicom.sr.codedict import codes

        return highdicom.AlgorithmIdentificationSequence(
            name=NAME,
            family=codes.DCM.ArtificialIntelligence,
            version=self.version,
            source=MANUFACTURER,
            parameters={"model": self.model, "adapters": self.adapters or "none", "sha256": self.adapters_sha256 or ""},
        )


def uid_of(*parts: str | bytes) -> str:
    """A UID that follows from `parts` alone, under DICOM's root for UUIDs."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "big") + raw)
    return f"2.25.{uuid.uuid5(_UID_NAMESPACE, digest.hexdigest()).int}"


def equipment(algorithm: Algorithm) -> dict[str, Any]:
    """The attributes by which an object says what software made it, as highdicom's constructors name them."""
    return {
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": NAME,
        "software_versions": algorithm.version,
        "device_serial_number": algorithm.adapters_sha256 or algorithm.model,
    }
