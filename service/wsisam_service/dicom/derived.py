"""What an object derived from a slide takes over from it, and how it becomes bytes."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wsisam_service.dicom.per_frame import PER_FRAME_GROUPS
from wsisam_service.errors import NotSupported, ServiceError, UnreadableSlide

if TYPE_CHECKING:
    import pydicom

_log = logging.getLogger(__name__)

_EMPTY_IF_ABSENT = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
"""Attributes that the standard wants in every object, with no value where none is known."""


@dataclass(frozen=True, slots=True)
class DicomResult:
    """A part-10 file, and the UIDs under which a PACS keeps it."""

    content: bytes
    study_uid: str
    series_uid: str
    sop_class_uid: str
    sop_instance_uid: str


def require_highdicom() -> None:
    """Raises `NotSupported` where the extra that writes DICOM is not installed."""
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise NotSupported("this server writes no DICOM: it was installed without wsisam[pacs]") from error


def source_image(header: pydicom.Dataset) -> pydicom.Dataset:
    """A copy of a level's header as other objects may be derived from it: with what anonymisers take away put back as
    empty, and the origin of the pixel matrix at the slide's corner where the header names none.

    Raises `UnreadableSlide` where it has no frame of reference or pixel size.
    """
    import pydicom

    # What it says of each frame is of no use here, nor anything behind that, and large for a sparse slide.
    image = copy.deepcopy(header[:PER_FRAME_GROUPS])
    image.walk(_decode_names)
    image.SpecificCharacterSet = "ISO_IR 192"  # holds any name, whatever the slide was written with
    for keyword in _EMPTY_IF_ABSENT:
        if keyword not in image:
            setattr(image, keyword, None)
    if "TotalPixelMatrixOriginSequence" not in image:
        origin = pydicom.Dataset()
        origin.XOffsetInSlideCoordinateSystem = "0"
        origin.YOffsetInSlideCoordinateSystem = "0"
        image.TotalPixelMatrixOriginSequence = [origin]
    groups = image.get("SharedFunctionalGroupsSequence")
    if "FrameOfReferenceUID" not in image or not groups or "PixelMeasuresSequence" not in groups[0]:
        raise UnreadableSlide("the slide's DICOM headers lack what an object derived from it refers to")
    measures = groups[0].PixelMeasuresSequence[0]
    if "SliceThickness" not in measures:
        measures.SliceThickness = measures.PixelSpacing[0]  # the standard wants one above 0, and nobody knows it
    return image


def _decode_names(_dataset: pydicom.Dataset, element: pydicom.DataElement) -> None:
    """Names as texts, which forget the bytes that they were read from and so are written anew."""
    if element.VR == "PN" and element.value is not None:
        element.value = [str(name) for name in element.value] if element.VM > 1 else str(element.value)


@contextmanager
def quietly() -> Iterator[None]:
    """Nothing that pydicom or highdicom complains of reaches a log: their words quote a patient's data.

    Raises `UnreadableSlide` for whatever they refuse, without their own error: that quotes values, too.
    """
    for name in ("pydicom", "highdicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except ServiceError:
            raise
        except Exception as error:  # a damaged value raises on first sight, in many ways
            _log.warning("no DICOM object can be derived: %s", type(error).__name__)  # its words may quote a patient
            raise UnreadableSlide("no object can be derived from the slide's DICOM headers") from None


def to_result(dataset: pydicom.Dataset) -> DicomResult:
    """The file of `dataset`."""
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return DicomResult(
        buffer.getvalue(),
        str(dataset.StudyInstanceUID),
        str(dataset.SeriesInstanceUID),
        str(dataset.SOPClassUID),
        str(dataset.SOPInstanceUID),
    )
