"""One DICOM object of outlines on a slide: which level, which segments, which kind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from wsisam_service.dicom.annotations import Annotated, Group, annotation_object
from wsisam_service.dicom.codes import CodedClass, CodeTable, coded_class
from wsisam_service.dicom.derived import DicomResult, require_highdicom
from wsisam_service.dicom.identity import Algorithm
from wsisam_service.dicom.outlines import Outline, within_slide
from wsisam_service.dicom.segmentation import Segment, SegmentationType, segmentation_object
from wsisam_service.errors import InvalidRequest

if TYPE_CHECKING:
    import pydicom

MAX_CLASSES = 255
"""Of one object: segments are numbered in a byte while they are drawn."""

ResultKind = Literal["seg", "ann"]


@dataclass(frozen=True, slots=True)
class ResultOptions:
    """What is to be made. `level` counts from the finest; None is the one nearest to the outlines' own pixel size."""

    kind: ResultKind
    level: int | None = None
    segmentation_type: SegmentationType = "BINARY"


@dataclass(frozen=True, slots=True)
class SlideGeometry:
    """A slide as far as a result needs it: level-0 size, level-0 pixels per pixel of each level in x and y, finest
    first, and µm per level-0 pixel where that is believed.
    """

    width: int
    height: int
    scales: Sequence[tuple[float, float]]
    mpp: float | None


def make_result(
    headers: Sequence[pydicom.Dataset],
    slide: SlideGeometry,
    outlines: Sequence[Outline],
    *,
    algorithm: Algorithm,
    options: ResultOptions,
    codes: CodeTable,
) -> DicomResult:
    """The object of `outlines` on the slide with these `headers`, one for each level. Made for a thread: the work may
    take a second.

    Raises `NotSupported`, `InvalidRequest`, `PromptOutsideSlide`, `OutlineWithHoles`, `UnreadableSlide`.
    """
    require_highdicom()
    if not outlines:
        raise InvalidRequest("there is no outline to write")
    level = _level(slide, outlines, options)
    inside = within_slide(outlines, slide.width, slide.height)
    classes = _by_class(inside, codes)
    if len(classes) > MAX_CLASSES:
        raise InvalidRequest(f"one object holds at most {MAX_CLASSES} classes")
    if options.kind == "ann":
        groups = [Group(coded, [Annotated(o.area, o.predicted_iou) for o in some]) for coded, some in classes.items()]
        return annotation_object(headers[0], slide.mpp, groups, algorithm)
    segments = [Segment(coded, [outline.area for outline in some]) for coded, some in classes.items()]
    return segmentation_object(headers[level], slide.scales[level], segments, algorithm, options.segmentation_type)


def _level(slide: SlideGeometry, outlines: Sequence[Outline], options: ResultOptions) -> int:
    """The level asked for, or the one nearest (in log2) to the finest mask among the outlines, else the finest."""
    if options.level is not None:
        if options.kind == "ann":
            raise InvalidRequest("annotations lie on level 0; level is for a segmentation")
        if options.level >= len(slide.scales):
            raise InvalidRequest(f"the slide has {len(slide.scales)} levels, counted from 0")
        return options.level
    drawn = [outline.mpp for outline in outlines if outline.mpp is not None]
    if not drawn or slide.mpp is None:
        return 0
    wanted = math.log2(min(drawn) / slide.mpp)
    return min(range(len(slide.scales)), key=lambda i: abs(math.log2(slide.scales[i][0]) - wanted))


def _by_class(outlines: Sequence[Outline], codes: CodeTable) -> dict[CodedClass, list[Outline]]:
    """The outlines of each class, in the order in which classes first appear."""
    classes: dict[CodedClass, list[Outline]] = {}
    for outline in outlines:
        classes.setdefault(coded_class(outline.label, codes), []).append(outline)
    return classes
