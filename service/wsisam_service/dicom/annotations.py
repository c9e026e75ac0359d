"""Outlines as DICOM Microscopy Bulk Simple Annotations: polygons in pixels of the finest level, with measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import shapely
from shapely import Polygon

from wsisam_service.dicom.codes import CodedClass, Term
from wsisam_service.dicom.derived import DicomResult, quietly, source_image, to_result
from wsisam_service.dicom.identity import NAME, Algorithm, equipment, uid_of
from wsisam_service.errors import OutlineWithHoles
from wsisam_service.masks.border import Area

if TYPE_CHECKING:
    import highdicom
    import pydicom

SERIES_NUMBER = 9002
_AREA = Term("SCT", "42798000", "Area"), Term("UCUM", "um2", "Square Micrometer")
_IOU = Term("99WSISAM", "PREDICTED_IOU", "Predicted intersection over union"), Term("UCUM", "1", "no units")


@dataclass(frozen=True, slots=True, eq=False)
class Annotated:
    """One object: its area in level-0 pixel edges, and its predicted IoU where the model gave one."""

    area: Area
    predicted_iou: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """A class and its objects."""

    coded: CodedClass
    objects: Sequence[Annotated]


def annotation_object(
    header: pydicom.Dataset, mpp: float | None, groups: Sequence[Group], algorithm: Algorithm
) -> DicomResult:
    """The annotations on the finest level, whose header is `header`; `mpp` is µm per pixel where it is believed.

    Coordinates are doubles, so that nothing is rounded. An object of several parts becomes as many polygons. Raises
    `OutlineWithHoles`, as a simple annotation has none, and `UnreadableSlide`.
    """
    if any(polygon.interiors for group in groups for one in group.objects for polygon in _polygons(one.area)):
        raise OutlineWithHoles("an outline has a hole, which these annotations cannot say; ask for a segmentation")
    with quietly():
        return to_result(_dataset(header, mpp, groups, algorithm))


def _dataset(
    header: pydicom.Dataset, mpp: float | None, groups: Sequence[Group], algorithm: Algorithm
) -> pydicom.Dataset:
    import highdicom

    image = source_image(header)
    content = [part for group in groups for part in _content(group)]
    uid = uid_of("ANN", image.SOPInstanceUID, str(algorithm), str(mpp), *content)
    annotations = highdicom.ann.MicroscopyBulkSimpleAnnotations(
        [image],
        annotation_coordinate_type=highdicom.ann.AnnotationCoordinateTypeValues.SCOORD,
        annotation_groups=[_group(number, group, mpp, algorithm, uid) for number, group in enumerate(groups, 1)],
        series_instance_uid=uid_of("ANN series", image.SeriesInstanceUID, image.FrameOfReferenceUID, str(algorithm)),
        series_number=SERIES_NUMBER,
        sop_instance_uid=uid,
        instance_number=1,
        content_label="OUTLINES",
        content_description="Outlines of what a person pointed at",
        series_description=f"{NAME} annotations",
        **equipment(algorithm),
    )
    # highdicom leaves it out where coordinates are pixels; readers find the slide's other levels by it.
    annotations.FrameOfReferenceUID = image.FrameOfReferenceUID
    annotations.PositionReferenceIndicator = image.get("PositionReferenceIndicator")
    return annotations


def _group(
    number: int, group: Group, mpp: float | None, algorithm: Algorithm, uid: str
) -> highdicom.ann.AnnotationGroup:
    import highdicom

    parts = [(polygon, one.predicted_iou) for one in group.objects for polygon in _polygons(one.area)]
    measurements = []
    if mpp is not None:
        measurements.append(_measured(_AREA, [polygon.area * mpp**2 for polygon, _ in parts]))
    if any(iou is not None for _, iou in parts):
        measurements.append(_measured(_IOU, [np.nan if iou is None else iou for _, iou in parts]))
    return highdicom.ann.AnnotationGroup(
        number=number,
        uid=uid_of("ANN group", uid, str(number)),
        label=group.coded.label,
        annotated_property_category=group.coded.category.code(),
        annotated_property_type=group.coded.type.code(),
        graphic_type=highdicom.ann.GraphicTypeValues.POLYGON,
        graphic_data=[_corners(polygon) for polygon, _ in parts],
        algorithm_type=highdicom.ann.AnnotationGroupGenerationTypeValues.SEMIAUTOMATIC,
        algorithm_identification=algorithm.sequence(),
        measurements=measurements,
    )


def _measured(what: tuple[Term, Term], values: Sequence[float]) -> highdicom.ann.Measurements:
    import highdicom

    name, unit = what
    return highdicom.ann.Measurements(name.code(), np.array(values, np.float64), unit.code())


def _content(group: Group) -> Sequence[str | bytes]:
    """What makes this group this group, for its object's UID."""
    parts = [part for one in group.objects for part in (shapely.to_wkb(one.area), str(one.predicted_iou))]
    return [str(group.coded), *parts]


def _polygons(area: Area) -> Sequence[Polygon]:
    return [part for part in shapely.get_parts(area) if isinstance(part, Polygon)]


def _corners(polygon: Polygon) -> npt.NDArray[np.float64]:
    """Corners (n, 2), each once: here a polygon does not repeat its first one."""
    return np.asarray(shapely.get_coordinates(polygon.exterior), np.float64)[:-1]
