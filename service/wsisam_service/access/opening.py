"""The gate that an operator's settings describe."""

from __future__ import annotations

from pathlib import Path

from wsisam_service.access.gate import Gate
from wsisam_service.access.keys import KeyFile


def open_gate(keys: Path | None) -> Gate:
    """Raises `KeyFileError`."""
    return Gate(None if keys is None else KeyFile(keys), None)
