"""Where a DICOM slide came from: what an object derived from it has to refer to, and where that object may go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pydicom


@dataclass(frozen=True, slots=True)
class DicomSource:
    """The DICOM side of a slide; carries a patient's data only behind `headers`.

    `headers()` gives one dataset without pixel data per served level, finest first: every attribute of its first
    instance, patient and study included, so it is never logged nor answered. Blocks on a disk or a network; raises
    `UnreadableSlide`, or `PacsUnavailable` where a PACS does not answer.
    `store(objects)` sends part-10 files to the place that the slide came from, all or an error; None where that place
    takes none (a folder). Raises `PacsUnavailable`, or `NotSupported` where the PACS refuses them.
    `accession` is None where the study has none.
    """

    study_uid: str
    series_uid: str
    accession: str | None
    headers: Callable[[], Sequence[pydicom.Dataset]]
    store: Callable[[Sequence[bytes]], None] | None = None
