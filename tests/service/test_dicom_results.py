"""Outlines as DICOM objects, read back with other people's software."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import traceback
import tracemalloc
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import shapely
import shapely.affinity
from dicom_objects import convert, faults, pixels_inside, read_segments, written
from pydicom.sr.codedict import codes
from shapely import MultiPolygon, Point, Polygon, box

from wsisam_service.dicom import outlines
from wsisam_service.dicom.derived import DicomResult
from wsisam_service.dicom.identity import Algorithm
from wsisam_service.dicom.outlines import MAX_VERTICES_EACH, Outline, outlines_of_collection, within_slide
from wsisam_service.dicom.results import ResultOptions, SlideGeometry, make_result
from wsisam_service.errors import InvalidRequest, OutlineWithHoles, PromptOutsideSlide, UnreadableSlide

highdicom = pytest.importorskip("highdicom")

WIDTH, HEIGHT, MPP = 1536, 1024, 0.5
SLIDE = SlideGeometry(WIDTH, HEIGHT, [(1.0, 1.0), (2.0, 2.0), (4.0, 4.0), (8.0, 8.0)], MPP)
ALGORITHM = Algorithm("lite_medsam", "default", "ab" * 32)
RING = Point(500.3, 500.7).buffer(230).difference(Point(520, 480).buffer(90))
ISLANDS = MultiPolygon([box(10.2, 20.4, 30.7, 45.1), Point(1200, 900).buffer(60)])
DISC = Point(1100.25, 300.75).buffer(150)
OUTLINES = [Outline(RING, "Tumor", 0.91), Outline(ISLANDS, "Stroma", 0.8), Outline(DISC, "Tumor", None)]


@pytest.fixture(scope="module")
def headers(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> list[pydicom.Dataset]:
    found = convert(slides / "tissue.tif", tmp_path_factory.mktemp("dicom") / "slide")
    for header in found:
        header.PatientID, header.PatientName, header.StudyDate = "PID-7", "Muster^Erika", "20260102"
        header.AccessionNumber = "ACC-9"
    return found


def made(
    headers: Sequence[pydicom.Dataset],
    outlines: Sequence[Outline] = OUTLINES,
    kind: Any = "seg",
    *,
    slide: SlideGeometry = SLIDE,
    algorithm: Algorithm = ALGORITHM,
    **options: Any,
) -> DicomResult:
    wanted = ResultOptions(kind, **options)
    return make_result(headers, slide, outlines, algorithm=algorithm, options=wanted, codes={})


def inside(area: shapely.Geometry, level: int = 0) -> Any:
    scale = 2**level
    return pixels_inside(area, WIDTH // scale, HEIGHT // scale, scale)


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("form", ["BINARY", "LABELMAP"])
def test_a_segmentation_holds_the_pixels_of_the_outlines_and_no_others(
    headers: list[pydicom.Dataset], level: int, form: str
) -> None:
    result = made(headers, level=level, segmentation_type=form)
    found = read_segments(result.content)
    assert np.array_equal(found[..., 0], inside(RING, level) | inside(DISC, level))
    assert np.array_equal(found[..., 1], inside(ISLANDS, level))


def test_a_source_of_large_tiles_gets_a_segmentation_in_smaller_ones(headers: list[pydicom.Dataset]) -> None:
    large = copy.deepcopy(headers[0])
    large.Rows = large.Columns = 2048
    result = made([large], level=0)
    assert pydicom.dcmread(io.BytesIO(result.content)).Rows == 512
    assert np.array_equal(read_segments(result.content)[..., 0], inside(RING) | inside(DISC))


def test_only_tiles_that_hold_something_are_written(headers: list[pydicom.Dataset]) -> None:
    dataset = pydicom.dcmread(io.BytesIO(made(headers, [Outline(box(300, 300, 400, 400)), Outline(DISC)]).content))
    tiles = {
        (int(place.RowPositionInTotalImagePixelMatrix), int(place.ColumnPositionInTotalImagePixelMatrix))
        for frame in dataset.PerFrameFunctionalGroupsSequence
        for place in frame.PlanePositionSlideSequence
    }
    touched = {(1, 769), (1, 1025), (257, 257), (257, 769), (257, 1025)}
    assert tiles == touched
    assert dataset.NumberOfFrames == len(touched)


def test_overlapping_classes_are_both_kept_whole(headers: list[pydicom.Dataset]) -> None:
    other = Outline(Point(600, 500).buffer(200), "Necrosis")
    result = made(headers, [OUTLINES[0], other])
    found = read_segments(result.content)
    assert np.array_equal(found[..., 0], inside(RING))
    assert np.array_equal(found[..., 1], inside(other.area))
    with pytest.raises(InvalidRequest, match="BINARY"):
        made(headers, [OUTLINES[0], other], segmentation_type="LABELMAP")


def test_classes_that_share_an_edge_share_no_pixel_and_leave_none_out(headers: list[pydicom.Dataset]) -> None:
    """At level 1, lines through odd level-0 pixels, and diagonals between them, run through pixels' centres."""
    around = box(201, 201, 601, 601) - box(301, 301, 401, 401)
    halves = [Polygon([(301, 301), (401, 401), corner]) for corner in ((401, 301), (301, 401))]
    outlines = [
        Outline(area, name) for area, name in zip((around, *halves), ("Tumor", "Stroma", "Necrosis"), strict=True)
    ]
    found = read_segments(made(headers, outlines, level=1, segmentation_type="LABELMAP").content)
    assert found.sum() == 200 * 200
    assert found.any(axis=2).sum() == 200 * 200


def test_the_level_is_the_one_nearest_to_the_masks_own_pixels(headers: list[pydicom.Dataset]) -> None:
    for mpp, level in ((0.25, 0), (1.1, 1), (2.0, 2), (64.0, 3)):
        dataset = pydicom.dcmread(io.BytesIO(made(headers, [Outline(RING, mpp=mpp)]).content))
        assert dataset.TotalPixelMatrixColumns == WIDTH // 2**level
        assert dataset.SourceImageSequence[0].ReferencedSOPInstanceUID == headers[level].SOPInstanceUID


def test_a_segmentation_belongs_to_its_slide_and_says_who_drew_it(headers: list[pydicom.Dataset]) -> None:
    result = made(headers, level=1)
    dataset, source = pydicom.dcmread(io.BytesIO(result.content)), headers[1]
    copied = (
        *("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName", "StudyDate", "AccessionNumber"),
        *("ContainerIdentifier", "ImageOrientationSlide", "TotalPixelMatrixColumns", "TotalPixelMatrixRows"),
        "TotalPixelMatrixOriginSequence",
    )
    for keyword in copied:
        assert dataset[keyword].value == source[keyword].value, keyword
    assert dataset.SeriesInstanceUID != source.SeriesInstanceUID
    segment = dataset.SegmentSequence[0]
    assert (segment.SegmentLabel, segment.SegmentAlgorithmType) == ("Tumor", "SEMIAUTOMATIC")
    algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
    assert algorithm.AlgorithmName == "WSI-SAM"
    assert algorithm.AlgorithmVersion == ALGORITHM.version
    assert "ab" * 32 in algorithm.AlgorithmParameters
    meanings = [item.SegmentedPropertyTypeCodeSequence[0].CodeMeaning for item in dataset.SegmentSequence]
    assert meanings == ["Neoplasm", "Connective tissue"]


@pytest.mark.parametrize("characters", ["ISO_IR 100", "ISO_IR 192", "\\ISO 2022 IR 87"])
def test_names_survive_whatever_characters_the_slide_was_written_in(
    headers: list[pydicom.Dataset], characters: str
) -> None:
    name = "Yamada^Tarou=山田^太郎" if "2022" in characters else "Müller^Jörg"
    named = copy.deepcopy(headers[0])
    named.SpecificCharacterSet, named.PatientName = characters, name
    file = pydicom.dcmread(io.BytesIO(written(named)))
    of_pacs = pydicom.Dataset.from_json(file.to_json_dict())
    for header in (file, of_pacs):
        result = made([header], [Outline(DISC)])
        assert pydicom.dcmread(io.BytesIO(result.content)).PatientName == name


def test_codes_of_the_settings_win_and_unknown_classes_keep_their_name(headers: list[pydicom.Dataset]) -> None:
    table = {"tumor": ("SCT 91723000 Anatomical Structure", "99LAB T1 Tumour bed")}
    outlines = [Outline(RING, "Tumor: Positive"), Outline(DISC, "Crypt")]
    result = make_result(headers, SLIDE, outlines, algorithm=ALGORITHM, options=ResultOptions("seg"), codes=table)
    first, second = pydicom.dcmread(io.BytesIO(result.content)).SegmentSequence
    assert first.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tumour bed"
    assert second.SegmentLabel == "Crypt"
    assert second.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"


def test_polygons_come_back_from_annotations_to_a_hundredth_of_a_pixel(headers: list[pydicom.Dataset]) -> None:
    far = Polygon([(1400.123456, 1000.654321), (1500.111, 1001), (1499.5, 1020.987654)])
    result = made(headers, [Outline(DISC, "Tumor", 0.75), Outline(far, "Tumor"), Outline(ISLANDS, "Stroma")], "ann")
    found = highdicom.ann.annread(io.BytesIO(result.content))
    tumor, stroma = found.get_annotation_groups()
    assert (tumor.label, tumor.algorithm_type.value, stroma.number_of_annotations) == ("Tumor", "SEMIAUTOMATIC", 2)
    for drawn, read in zip((DISC, far), tumor.get_graphic_data("2D"), strict=True):
        assert np.abs(shapely.get_coordinates(drawn)[:-1] - read).max() < 0.01
    names, values, units = tumor.get_measurements()
    area, iou = values.T
    assert [name.meaning for name in names] == ["Area", "Predicted intersection over union"]
    assert units[0].value == "um2"
    assert area == pytest.approx([DISC.area * MPP**2, far.area * MPP**2], rel=1e-5)
    assert iou[0] == pytest.approx(0.75)
    assert np.isnan(iou[1])
    assert found.ReferencedImageSequence[0].ReferencedSOPInstanceUID == headers[0].SOPInstanceUID


def test_wsidicom_reads_the_annotations_on_their_slide_to_a_hundredth_of_a_pixel(slides: Path, tmp_path: Path) -> None:
    """Beside a segmentation of the same slide, which it has no reader for and passes over."""
    wsidicom = pytest.importorskip("wsidicom")
    folder = tmp_path / "slide"
    own = convert(slides / "tissue.tif", folder)
    far = Polygon([(1400.123456, 1000.654321), (1500.111, 1001), (1499.5, 1020.987654)])
    outlines = [Outline(DISC, "Tumor", 0.75), Outline(far, "Tumor", 0.5), Outline(ISLANDS, "Stroma")]
    (folder / "annotations.dcm").write_bytes(made(own, outlines, "ann").content)
    (folder / "segmentation.dcm").write_bytes(made(own, [Outline(RING, "Tumor")]).content)
    with wsidicom.WsiDicom.open(folder) as slide:
        assert (slide.size.width, slide.size.height) == (WIDTH, HEIGHT)
        (instance,) = slide.annotations
        tumor, stroma = instance.groups
    assert instance.coordinate_type == "image"
    assert instance.slide_uids.frame_of_reference == own[0].FrameOfReferenceUID
    assert [(group.label, len(group)) for group in (tumor, stroma)] == [("Tumor", 2), ("Stroma", 2)]
    assert tumor.type_code.meaning == "Neoplasm"
    drawn = [DISC, far, *ISLANDS.geoms]
    for outline, annotation in zip(drawn, [*tumor.annotations, *stroma.annotations], strict=True):
        read = np.array(annotation.geometry.to_coords())
        assert np.abs(shapely.get_coordinates(outline)[:-1] - read).max() < 0.01
    told = [{one.code.meaning: one.value for one in annotation.measurements} for annotation in tumor.annotations]
    assert [one["Predicted intersection over union"] for one in told] == pytest.approx([0.75, 0.5])
    areas = [outline.area * MPP**2 for outline in (DISC, far)]
    assert [one["Area"] for one in told] == pytest.approx(areas, rel=1e-5)


def test_wsidicom_has_no_reader_for_a_segmentation(headers: list[pydicom.Dataset], tmp_path: Path) -> None:
    """What docs/PACS.md says of it; once this fails, wsidicom can prove segmentations too."""
    wsidicom = pytest.importorskip("wsidicom")
    (tmp_path / "segmentation.dcm").write_bytes(made(headers).content)
    with pytest.raises(wsidicom.errors.WsiDicomNotFoundError):
        wsidicom.WsiDicom.open(tmp_path)


def test_nothing_is_measured_that_is_not_known(headers: list[pydicom.Dataset]) -> None:
    unsized = replace(SLIDE, mpp=None)
    for iou, slide, expected in (
        (None, SLIDE, ["Area"]),
        (0.5, unsized, ["Predicted intersection over union"]),
        (None, unsized, []),
    ):
        result = made(headers, [Outline(DISC, "Tumor", iou)], "ann", slide=slide)
        (group,) = highdicom.ann.annread(io.BytesIO(result.content)).get_annotation_groups()
        assert [name.meaning for name in group.get_measurements()[0]] == expected


def test_a_hole_is_refused_with_a_hint(headers: list[pydicom.Dataset]) -> None:
    for holed in (RING, MultiPolygon([box(10, 10, 20, 20), RING])):
        with pytest.raises(OutlineWithHoles, match="segmentation"):
            made(headers, [Outline(DISC), Outline(holed)], "ann")


@pytest.mark.parametrize("kind", ["seg", "ann"])
def test_the_same_content_has_the_same_uids_and_other_content_others(headers: list[pydicom.Dataset], kind: Any) -> None:
    outlines = [Outline(DISC, "Tumor", 0.9)]
    once, again = made(headers, outlines, kind), made(headers, list(outlines), kind)
    assert once.sop_instance_uid == again.sop_instance_uid
    first, second = (pydicom.dcmread(io.BytesIO(result.content)) for result in (once, again))
    for dataset in (first, second):  # the moments of making are all that may differ
        for keyword in ("ContentDate", "ContentTime", "InstanceCreationDate", "InstanceCreationTime"):
            if keyword in dataset:
                delattr(dataset, keyword)
        for item in dataset.ContributingEquipmentSequence:
            item.pop("ContributionDateTime", None)
    assert written(first) == written(second)
    tile = int(headers[0].Columns)
    others = [
        made(headers, [Outline(shapely.transform(DISC, lambda p: p + 1), "Tumor", 0.9)], kind),
        made(headers, [Outline(shapely.affinity.translate(DISC, 0, tile), "Tumor", 0.9)], kind),
        made(headers, [Outline(DISC, "Stroma", 0.9)], kind),
    ]
    if kind == "seg":
        others += [made(headers, outlines, level=1), made(headers, outlines, segmentation_type="LABELMAP")]
    else:
        coarse = replace(SLIDE, mpp=2 * MPP)
        others += [made(headers, [Outline(DISC, "Tumor", 0.8)], kind), made(headers, outlines, kind, slide=coarse)]
    assert len({once.sop_instance_uid, *(other.sop_instance_uid for other in others)}) == 1 + len(others)
    assert {other.series_uid for other in others} == {once.series_uid}
    of_another = made(headers, outlines, kind, algorithm=Algorithm("lite_medsam", "default", "cd" * 32))
    assert of_another.sop_instance_uid != once.sop_instance_uid
    assert of_another.series_uid != once.series_uid


def test_dciodvfy_finds_nothing_that_it_does_not_find_in_highdicoms_own_objects(
    headers: list[pydicom.Dataset], tmp_path: Path
) -> None:
    assert faults(made(headers, level=1).content, tmp_path) <= faults(written(plain_segmentation(headers[1])), tmp_path)
    ours = made(headers, [Outline(DISC, "Tumor", 0.9), Outline(ISLANDS)], "ann")
    assert faults(ours.content, tmp_path) <= faults(written(plain_annotations(headers[0])), tmp_path)


def test_a_bare_anonymised_slide_gives_objects_without_further_faults(
    headers: list[pydicom.Dataset], tmp_path: Path
) -> None:
    bare = copy.deepcopy(headers[0])
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
        del bare[keyword]
    for keyword in ("StudyDate", "StudyTime", "ReferringPhysicianName", "TotalPixelMatrixOriginSequence"):
        del bare[keyword]
    del bare.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness
    result = made([bare], level=0)
    assert np.array_equal(read_segments(result.content)[..., 1], inside(ISLANDS))
    assert faults(result.content, tmp_path) <= faults(written(plain_segmentation(headers[0])), tmp_path)


def test_a_sparse_slide_gives_objects_like_a_full_one(headers: list[pydicom.Dataset]) -> None:
    sparse = copy.deepcopy(headers[0])
    sparse.DimensionOrganizationType = "TILED_SPARSE"
    sparse.PerFrameFunctionalGroupsSequence = [pydicom.Dataset() for _ in range(int(sparse.NumberOfFrames))]
    assert np.array_equal(read_segments(made([sparse], level=0).content)[..., 1], inside(ISLANDS))
    assert len(sparse.PerFrameFunctionalGroupsSequence) == sparse.NumberOfFrames


def test_a_whole_slide_is_never_drawn_at_once(headers: list[pydicom.Dataset]) -> None:
    huge = copy.deepcopy(headers[0])
    huge.TotalPixelMatrixColumns = huge.TotalPixelMatrixRows = 400_000
    slide = SlideGeometry(400_000, 400_000, [(1.0, 1.0)], MPP)
    spread = [Outline(Point(x, 399_990 - x / 2).buffer(40)) for x in range(1000, 390_000, 8000)]

    def make(outlines: list[Outline]) -> DicomResult:
        options = ResultOptions("seg")
        return make_result([huge], slide, outlines, algorithm=ALGORITHM, options=options, codes={})

    make(spread[:1])
    tracemalloc.start()
    result = make(spread)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pydicom.dcmread(io.BytesIO(result.content)).NumberOfFrames >= len(spread)
    assert peak < 64 << 20
    with pytest.raises(InvalidRequest, match="coarser"):
        make([Outline(box(0, 0, 400_000, 400_000))])


def test_nothing_of_the_patient_reaches_logs_warnings_or_errors(
    headers: list[pydicom.Dataset], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    planted = copy.deepcopy(headers[0])
    for keyword, vr in (("PatientBirthDate", "DA"), ("PatientSex", "CS"), ("PatientName", "PN")):
        planted[keyword] = pydicom.DataElement(keyword, vr, "Musterfrau" * 30, validation_mode=0)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with contextlib.suppress(UnreadableSlide):  # whose words are constant
            made([planted], level=0)
    assert not [str(warning.message) for warning in told if "Muster" in str(warning.message)]
    assert "Muster" not in caplog.text


@pytest.mark.parametrize(("keyword", "vr"), [("PatientID", "FD"), ("PatientID", "Pv"), ("TotalPixelMatrixRows", "FD")])
def test_a_value_that_cannot_be_read_is_a_typed_problem_that_quotes_nothing(
    headers: list[pydicom.Dataset], keyword: str, vr: str
) -> None:
    damaged = copy.deepcopy(headers[0])
    tag = pydicom.tag.Tag(keyword)
    damaged[tag] = pydicom.dataelem.RawDataElement(tag, vr, 13, b"Musterfrau-01", 0, False, True)
    with pytest.raises(UnreadableSlide) as told:
        made([damaged], level=0)
    assert "Muster" not in "".join(traceback.format_exception(told.value))


FEATURE = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9], [0, 0]]]}}


def test_features_keep_what_qupath_says_of_them() -> None:
    properties = {
        "classification": {"names": ["Tumor", "Positive"], "color": [200, 0, 0]},
        "measurements": {"Predicted IoU": 0.75},
        "metadata": {"model": "lite_medsam", "adapters": "default", "mpp": "0.5"},
    }
    collection = {"type": "FeatureCollection", "features": [FEATURE | {"properties": properties}, FEATURE]}
    full, bare = outlines_of_collection(collection)
    assert (full.label, full.predicted_iou, full.mpp) == ("Tumor: Positive", 0.75, 0.5)
    assert (full.model, full.adapters) == ("lite_medsam", "default")
    assert (bare.label, bare.predicted_iou, bare.mpp, bare.model) == (None, None, None, None)
    assert full.area.area == 40.5


@pytest.mark.parametrize(
    "geometry",
    [
        None,
        {"type": "Point", "coordinates": [1, 2]},
        {"type": "LineString", "coordinates": [[0, 0], [1, 1]]},
        {"type": "Polygon", "coordinates": []},
        {"type": "Polygon", "coordinates": [[[0, 0], [9, 9], [9, 0], [0, 9], [0, 0]]]},
        {"type": "Polygon", "coordinates": [[[0, 0], [9, 0]]]},
        {"type": "Polygon", "coordinates": [[["a", 0], [9, 0], [9, 9], [0, 0]]]},
        {"type": "Polygon", "coordinates": "x"},
        {"type": "GeometryCollection", "geometries": []},
        {"type": "Polygon", "coordinates": [[[0, 0], [1e300, 0], [9, 9e12], [0, 0]]]},
        [[]],
        7,
    ],
)
def test_a_feature_that_is_no_area_is_refused_by_its_number(geometry: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"features\[1\]"):
        outlines_of_collection({"type": "FeatureCollection", "features": [FEATURE, FEATURE | {"geometry": geometry}]})


@pytest.mark.parametrize(
    "geometry",
    [{"type": "Polygon", "coordinates": [[[10**30, 0], [9, 0], [9, 9], [0, 0]]]}, json.loads("[" * 400 + "]" * 400)],
)
def test_geometry_that_is_no_json_of_others_is_refused(geometry: Any) -> None:
    with pytest.raises(InvalidRequest):
        outlines_of_collection({"type": "FeatureCollection", "features": [FEATURE | {"geometry": geometry}]})


def test_an_outline_of_too_many_vertices_is_refused_before_it_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = [[float(x), float(x % 2)] for x in range(MAX_VERTICES_EACH)]
    geometry = {"type": "Polygon", "coordinates": [[*ring, [0.0, 9.0], ring[0]]]}
    monkeypatch.delattr(shapely, "is_valid")
    with pytest.raises(InvalidRequest, match="vertices"):
        outlines_of_collection({"type": "FeatureCollection", "features": [FEATURE | {"geometry": geometry}]})


def test_outlines_that_take_long_to_judge_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each edge of a zigzag may cross every other one of it."""
    ring = [[1e5 + x * 0.01, 1e5] if x % 2 else [x * 0.01, 0.0] for x in range(12_000)]
    geometry = {"type": "Polygon", "coordinates": [[*ring, [2e5, 1e5], [2e5, -10.0], ring[0]]]}
    is_valid, judged = shapely.is_valid, 0

    def count(areas: Any) -> Any:
        nonlocal judged
        judged += len(areas)
        return is_valid(areas)

    monkeypatch.setattr(shapely, "is_valid", count)
    monkeypatch.setattr(outlines, "JUDGING_S", 0.1)
    with pytest.raises(InvalidRequest, match="checked together"):
        outlines_of_collection({"type": "FeatureCollection", "features": [FEATURE | {"geometry": geometry}] * 9})
    assert judged == 1


def test_every_outline_is_judged_however_they_share_calls() -> None:
    teeth = [[float(x), float(x % 2)] for x in range(6_000)]
    comb = {"type": "Polygon", "coordinates": [[*teeth, [5999.0, 9.0], [0.0, 9.0], teeth[0]]]}
    bowtie = {"type": "Polygon", "coordinates": [[[0, 0], [9, 9], [9, 0], [0, 9], [0, 0]]]}
    features = [FEATURE | {"geometry": geometry} for geometry in (comb, FEATURE["geometry"], comb, comb)]
    assert len(outlines_of_collection({"type": "FeatureCollection", "features": features})) == 4
    assert outlines_of_collection({"type": "FeatureCollection", "features": []}) == []
    for number in range(4):
        mixed = [*features[:number], FEATURE | {"geometry": bowtie}, *features[number:]]
        with pytest.raises(InvalidRequest, match=rf"features\[{number}\]: the outline crosses itself"):
            outlines_of_collection({"type": "FeatureCollection", "features": mixed})


def test_outlines_are_judged_by_calls_that_let_other_threads_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapely gives its lock up for arrays only."""
    for scalar in ("is_valid", "covers", "intersection"):
        monkeypatch.setattr(shapely.Polygon, scalar, property(lambda _: pytest.fail("this holds the lock")))
    (outline,) = outlines_of_collection({"type": "FeatureCollection", "features": [FEATURE]})
    whole, cut = within_slide([outline, outline], 20, 20), within_slide([outline], 5, 20)
    assert [one.area.area for one in (*whole, *cut)] == [40.5, 40.5, 12.5]


@pytest.mark.parametrize("number", [10**400, "1e999", "nan", [], {}])
def test_a_number_that_is_none_is_left_out(number: Any) -> None:
    properties = {"measurements": {"Predicted IoU": number}, "metadata": {"mpp": number}}
    (outline,) = outlines_of_collection(
        {"type": "FeatureCollection", "features": [FEATURE | {"properties": properties}]}
    )
    assert (outline.predicted_iou, outline.mpp) == (None, None)


def test_classes_are_bounded_and_their_names_are_made_to_fit(headers: list[pydicom.Dataset]) -> None:
    with pytest.raises(InvalidRequest, match="classes"):
        made(headers, [Outline(DISC, f"class {number}") for number in range(256)])
    odd = made(headers, [Outline(DISC, "a\\b\n" + "x" * 99)])
    assert pydicom.dcmread(io.BytesIO(odd.content)).SegmentSequence[0].SegmentLabel == "a/b" + "x" * 61


def test_outlines_end_at_the_slides_border(headers: list[pydicom.Dataset]) -> None:
    over = Point(0, 500).buffer(80)
    found = read_segments(made(headers, [Outline(over)]).content)
    assert np.array_equal(found[..., 0], inside(over))
    with pytest.raises(PromptOutsideSlide):
        made(headers, [Outline(Point(-500, 500).buffer(80))])


def plain_segmentation(header: pydicom.Dataset) -> Any:
    """The least that highdicom's guide makes of a slide."""
    mask = np.zeros((int(header.TotalPixelMatrixRows), int(header.TotalPixelMatrixColumns)), np.uint8)
    mask[100:200, 100:200] = 1
    description = highdicom.seg.SegmentDescription(
        1,
        "Tumor",
        codes.SCT.MorphologicallyAbnormalStructure,
        codes.SCT.Neoplasm,
        "MANUAL",
    )
    return highdicom.seg.Segmentation([header], mask, "BINARY", [description], tile_pixel_array=True, **maker())


def plain_annotations(header: pydicom.Dataset) -> Any:
    group = highdicom.ann.AnnotationGroup(
        number=1,
        uid=highdicom.UID(),
        label="Tumor",
        annotated_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        annotated_property_type=codes.SCT.Neoplasm,
        graphic_type="POLYGON",
        graphic_data=[np.array([[1.0, 1.0], [5.0, 1.0], [5.0, 5.0]])],
        algorithm_type="MANUAL",
        measurements=[highdicom.ann.Measurements(codes.SCT.Area, np.array([8.0]), codes.UCUM.SquareMicrometer)],
    )
    return highdicom.ann.MicroscopyBulkSimpleAnnotations([header], "2D", [group], **maker())


def maker() -> dict[str, Any]:
    return {
        "series_instance_uid": highdicom.UID(),
        "series_number": 2,
        "sop_instance_uid": highdicom.UID(),
        "instance_number": 1,
        "manufacturer": "a",
        "manufacturer_model_name": "b",
        "software_versions": "1",
        "device_serial_number": "2",
    }
