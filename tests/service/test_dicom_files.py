"""Slides made of DICOM files: pixels, grouping, what is refused, and what never gets out."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import os
import re
import shutil
from pathlib import Path

import cv2
import httpx
import imagecodecs
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from dicom_slides import (
    ACCESSION,
    EPIFLUORESCENCE,
    IMPLICIT,
    JPEG,
    JPEG_2000,
    JPEG_LS,
    UNCOMPRESSED,
    Series,
    Shape,
    instance,
    reduced,
    save,
    write_concatenation,
    write_slide,
)
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from stand_ins import NumpyExecutor

from wsisam_service.app import create_app
from wsisam_service.cli import main
from wsisam_service.dicom import frames, per_frame
from wsisam_service.dicom.codec import decode_frame
from wsisam_service.errors import NotBrightfield, ServiceError, UnreadableSlide
from wsisam_service.settings import Settings
from wsisam_service.slides import dicom_files
from wsisam_service.slides.catalogue import RESCAN_S, Catalogue
from wsisam_service.slides.items import DicomQuery
from wsisam_service.slides.listing import ListedSlide
from wsisam_service.slides.opening import open_slide
from wsisam_service.slides.pixels import read_rectangle
from wsisam_service.slides.slide import Slide

Tissue = npt.NDArray[np.uint8]


@pytest.fixture
def odd(tissue: Tissue) -> Tissue:
    """Tissue whose sides no tile divides."""
    return tissue[:401, :457]


def listed(folder: Path) -> list[ListedSlide]:
    return list(Catalogue([str(folder)]).list().slides)


def only(folder: Path) -> Slide:
    (one,) = listed(folder)
    assert one.slide is not None, one.problem
    return one.slide


def problem_of(folder: Path) -> ServiceError:
    (one,) = listed(folder)
    assert one.problem is not None
    return one.problem


def whole(slide: Slide, level: int = 0) -> Tissue:
    size = slide.info.levels[level]
    return slide.read_region(level, 0, 0, size.width, size.height)


def test_views_agree_with_the_slide_that_the_series_was_converted_from(shared: Path) -> None:
    dicom = only(shared / "data/slides/dicom-cmu-1-small-region")
    original = open_slide(shared / "data/slides/cmu-1-small-region.svs")
    assert (dicom.width, dicom.height, dicom.mpp) == (original.width, original.height, pytest.approx(original.mpp))
    assert len(dicom.info.levels) == 12

    def difference(scale: float, shift: float) -> float:
        """Of two views whose places differ by `shift` level-0 pixels."""
        places = (dicom, 700.3), (original, 700.3 + shift)
        a, b = (read_rectangle(reader, (x, 900.7, 256 * scale, 256 * scale), (256, 256)) for reader, x in places)
        return float(np.abs(a.astype(int) - b).mean())

    for scale in (1.0, 1.5):
        assert difference(scale, 0) < 4  # its converter compressed anew
        assert min(difference(scale, shift) for shift in (-0.5, 0.5)) > difference(scale, 0)


def test_frames_that_a_converter_copied_give_the_very_pixels_of_the_original(shared: Path, tmp_path: Path) -> None:
    wsidicomizer = pytest.importorskip("wsidicomizer")
    path = shared / "data/slides/cmu-1-small-region.svs"
    wsidicomizer.WsiDicomizer.convert(str(path), output_path=str(tmp_path / "slide"), include_confidential=False)
    kinds = {str(pydicom.dcmread(file).ImageType[2]) for file in (tmp_path / "slide").iterdir()}
    assert "VOLUME" in kinds
    slide, original = only(tmp_path), open_slide(path)
    assert np.array_equal(whole(slide), original.read_region(0, 0, 0, original.width, original.height))
    assert slide.mpp == pytest.approx(original.mpp)


@pytest.mark.parametrize(
    ("shape", "loss"),
    [
        (Shape(UNCOMPRESSED), 0),
        (Shape(IMPLICIT), 0),
        (Shape(JPEG_2000, photometric="YBR_RCT"), 0),
        (Shape(JPEG_LS), 0),
        (Shape(JPEG, photometric="YBR_FULL_422"), 3),
        (Shape(JPEG), 3),
        (Shape(JPEG, offsets="extended"), 3),
        (Shape(JPEG, offsets="none"), 3),
    ],
)
def test_pixels_come_back_from_every_codec_and_offset_table(
    odd: Tissue, tmp_path: Path, shape: Shape, loss: int
) -> None:
    write_slide(tmp_path, odd, shape=shape)
    slide = only(tmp_path)
    assert [level.downsample for level in slide.info.levels] == [1, 2]
    assert (slide.mpp, slide.info.objective_power, slide.info.vendor) == (0.5, 20, "dicom")
    for level in (0, 1):
        assert np.abs(whole(slide, level).astype(int) - reduced(odd, level)).mean() <= loss
    outside = slide.read_region(0, -20, odd.shape[0] - 10, 40, 40)
    assert (outside[:, :20] == 255).all()
    assert (outside[10:] == 255).all()
    assert np.abs(outside[:10, 20:].astype(int) - odd[-10:, :20]).mean() <= loss


@pytest.mark.parametrize(("space", "told", "wrong"), [("RGB", "RGB", "YBR_FULL_422"), ("YCBCR", "YBR_FULL_422", "RGB")])
def test_a_jpegs_own_word_of_its_colours_counts_before_the_headers(
    tissue: Tissue, space: str, told: str, wrong: str
) -> None:
    tile = tissue[:48, :64]
    speaking = bytes(imagecodecs.jpeg8_encode(tile, level=95, colorspace="RGB", outcolorspace=space))
    assert speaking[2:4] in (b"\xff\xe0", b"\xff\xee")
    silent = speaking[:2] + speaking[4 + int.from_bytes(speaking[4:6], "big") :]
    filled = silent[:2] + b"\xff\xff" + silent[2:]
    shown = decode_frame(speaking, (64, 48), told, compressed=True)
    assert np.abs(shown.astype(int) - tile).mean() < 5
    for data, photometric in ((speaking, wrong), (silent, told), (filled, told)):
        assert np.array_equal(decode_frame(data, (64, 48), photometric, compressed=True), shown)
    assert not np.array_equal(decode_frame(silent, (64, 48), wrong, compressed=True), shown)


def test_bare_pixels_may_be_padded_to_an_even_length_and_are_no_longer_or_shorter(tissue: Tissue) -> None:
    tile = tissue[:3, :5]
    bare, planes = tile.tobytes(), tile.transpose(2, 0, 1).tobytes()
    for data, planar in ((bare, False), (bare + b"\0", False), (planes, True)):
        assert np.array_equal(decode_frame(data, (5, 3), "RGB", compressed=False, planar=planar), tile)
    for data in (bare[:-1], bare + b"\0\0"):
        with pytest.raises(UnreadableSlide, match="damaged"):
            decode_frame(data, (5, 3), "RGB", compressed=False)
    luma = cv2.cvtColor(tile, cv2.COLOR_RGB2YCrCb)[..., (0, 2, 1)].tobytes()
    shown = decode_frame(luma, (5, 3), "YBR_FULL", compressed=False)
    assert np.abs(shown.astype(int) - tile).max() <= 2


def test_a_lossless_jpeg_is_told_to_be_one_that_is_not_decoded() -> None:
    head = b"\xff\xd8\xff\xc3\x00\x11\x08\x00\x30\x00\x40\x03"
    with pytest.raises(UnreadableSlide, match="does not decode"):
        decode_frame(head + bytes(20), (64, 48), "RGB", compressed=True)


@pytest.mark.parametrize("undefined_lengths", [False, True])
@pytest.mark.parametrize(
    ("syntax", "offsets"), [(UNCOMPRESSED, "basic"), (IMPLICIT, "basic"), (JPEG_LS, "basic"), (JPEG_LS, "extended")]
)
def test_tiles_that_a_sparse_image_leaves_out_are_white_and_the_rest_is_in_place(
    odd: Tissue, tmp_path: Path, *, syntax: str, offsets: str, undefined_lengths: bool
) -> None:
    left_out = frozenset({0, 5})
    shape = Shape(syntax, sparse=True, left_out=left_out, offsets=offsets, undefined_lengths=undefined_lengths)
    save(instance(odd, Series(), shape), tmp_path / "a.dcm")
    expected = odd.copy()
    expected[:128, :128] = 255
    expected[128:256, 128:256] = 255
    assert np.array_equal(whole(only(tmp_path)), expected)


def test_where_sparse_tiles_overlap_the_later_one_is_shown_whichever_is_held(odd: Tissue, tmp_path: Path) -> None:
    dataset = instance(odd[:128, :256], Series(), Shape(sparse=True))
    place = dataset.PerFrameFunctionalGroupsSequence[1].PlanePositionSlideSequence[0]
    place.ColumnPositionInTotalImagePixelMatrix = 101
    save(dataset, tmp_path / "a.dcm")
    slide = only(tmp_path)
    slide.read_region(0, 200, 0, 10, 10)
    assert np.array_equal(slide.read_region(0, 100, 0, 28, 128), odd[:128, 128:156])


@pytest.mark.parametrize("sparse", [False, True])
def test_of_several_focal_planes_the_middle_one_is_shown(odd: Tissue, tmp_path: Path, sparse: bool) -> None:
    save(instance(odd, Series(), Shape(planes=3, sparse=sparse)), tmp_path / "a.dcm")
    assert np.array_equal(whole(only(tmp_path)), odd)


def test_each_tile_of_a_sparse_image_may_have_a_height_of_its_own(odd: Tissue, tmp_path: Path) -> None:
    dataset = instance(odd, Series(), Shape(planes=3, sparse=True))
    of_plane = len(dataset.PerFrameFunctionalGroupsSequence) // 3
    for number, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):  # as autofocus leaves them
        group.PlanePositionSlideSequence[0].ZOffsetInSlideCoordinateSystem += 10 * (number % of_plane)
    save(dataset, tmp_path / "a.dcm")
    assert np.array_equal(whole(only(tmp_path)), odd)


def test_of_focal_planes_in_instances_of_their_own_the_middle_one_is_shown(odd: Tissue, tmp_path: Path) -> None:
    series = Series()
    for number, (height, image) in enumerate([(0.0, 255 - odd), (9.5, 255 - odd), (5.0, odd)]):
        dataset = instance(image, series)
        dataset.SOPInstanceUID = f"1.2.{number}"
        dataset.TotalPixelMatrixOriginSequence[0].ZOffsetInSlideCoordinateSystem = height
        save(dataset, tmp_path / f"{number}.dcm")
    assert np.array_equal(whole(only(tmp_path)), odd)


def test_parts_of_a_concatenation_make_one_level_wherever_their_files_lie(odd: Tissue, tmp_path: Path) -> None:
    paths = write_concatenation(tmp_path / "a", odd, Series(), parts=3)
    (tmp_path / "b").mkdir()
    shutil.move(paths[1], tmp_path / "b" / "renamed.dcm")
    assert np.array_equal(whole(only(tmp_path)), odd)


def test_a_missing_part_of_the_finest_level_is_a_problem_and_of_a_coarser_one_costs_that_level(
    odd: Tissue, tmp_path: Path
) -> None:
    series = Series()
    write_concatenation(tmp_path, odd, series, parts=3)[1].unlink()
    assert "incomplete" in problem_of(tmp_path).detail
    shutil.rmtree(tmp_path)
    write_slide(tmp_path, odd, series, levels=1)
    write_concatenation(tmp_path, reduced(odd, 1), series, parts=2)[1].unlink()
    slide = only(tmp_path)
    assert len(slide.info.levels) == 1
    assert np.array_equal(whole(slide), odd)


@pytest.mark.parametrize(
    ("missing", "untold"),
    [(0, "InConcatenationTotalNumber"), (1, "InConcatenationTotalNumber"), (1, "ConcatenationUID"), (2, None)],
)
def test_a_missing_part_of_a_sparse_concatenation_is_no_white(
    odd: Tissue, tmp_path: Path, missing: int, untold: str | None
) -> None:
    paths = write_concatenation(tmp_path, odd, Series(), 3, Shape(sparse=True))
    if untold is not None:
        for path in paths:
            dataset = pydicom.dcmread(path)
            delattr(dataset, untold)
            save(dataset, path)
    assert np.array_equal(whole(only(tmp_path)), odd)
    paths[missing].unlink()
    assert "incomplete" in problem_of(tmp_path).detail


def test_a_part_that_one_of_two_concatenations_lacks_is_missing(odd: Tissue, tmp_path: Path) -> None:
    series = Series()
    paths = [write_concatenation(tmp_path / name, odd, series, 3, Shape(sparse=True)) for name in "ab"]
    assert np.array_equal(whole(only(tmp_path)), odd)
    paths[1][0].unlink()
    assert "incomplete" in problem_of(tmp_path).detail


@pytest.mark.parametrize("syntax", [UNCOMPRESSED, IMPLICIT])
def test_a_frame_whose_place_reads_like_the_end_of_the_header_ends_nothing(
    odd: Tissue, tmp_path: Path, syntax: str
) -> None:
    dataset = instance(odd, Series(), Shape(syntax, sparse=True, undefined_lengths=True))
    dataset.TotalPixelMatrixColumns = dataset.TotalPixelMatrixRows = 1_100_000
    first, second, *_ = dataset.PerFrameFunctionalGroupsSequence
    first.PlanePositionSlideSequence[0].ColumnPositionInTotalImagePixelMatrix = 0x00017FE0
    second.PlanePositionSlideSequence[0].RowPositionInTotalImagePixelMatrix = 0x00107FE0
    save(dataset, tmp_path / "a.dcm")
    slide = only(tmp_path)
    assert np.array_equal(slide.read_region(0, 0x00017FE0 - 1, 0, 128, 128), odd[:128, :128])


def test_items_without_end_are_walked_no_further_than_frames_go_and_only_once(
    odd: Tissue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_slide(tmp_path, odd, shape=Shape(JPEG, offsets="none"), levels=1)
    path = tmp_path / "0.dcm"
    data = path.read_bytes()
    first = data.rindex(b"\xe0\x7f\x10\x00OB\0\0") + 12
    path.write_bytes(data[:first] + b"\xfe\xff\x00\xe0\0\0\0\0" * 10_000)
    slide = only(tmp_path)
    looked: list[int] = []
    item = frames._item
    monkeypatch.setattr(frames, "_item", lambda read_at, offset: looked.append(offset) or item(read_at, offset))
    for _ in range(3):
        with pytest.raises(UnreadableSlide):
            slide.read_region(0, 0, 0, 10, 10)
    assert len(looked) < 32


def test_an_offset_table_without_lengths_is_none(odd: Tissue, tmp_path: Path) -> None:
    dataset = instance(odd, Series(), Shape(JPEG_LS, offsets="extended"))
    del dataset.ExtendedOffsetTableLengths
    save(dataset, tmp_path / "a.dcm")
    assert np.array_equal(whole(only(tmp_path)), odd)


def test_an_offset_table_of_fewer_frames_is_a_typed_problem(odd: Tissue, tmp_path: Path) -> None:
    dataset = instance(odd, Series(), Shape(JPEG_LS, offsets="extended"))
    dataset.ExtendedOffsetTable = dataset.ExtendedOffsetTable[:-8]
    dataset.ExtendedOffsetTableLengths = dataset.ExtendedOffsetTableLengths[:-8]
    save(dataset, tmp_path / "a.dcm")
    with pytest.raises(UnreadableSlide):
        whole(only(tmp_path))


def test_frames_without_places_lie_row_by_row_where_nothing_says_so(odd: Tissue, tmp_path: Path) -> None:
    dataset = instance(odd, Series())
    del dataset.DimensionOrganizationType
    save(dataset, tmp_path / "a.dcm")
    assert np.array_equal(whole(only(tmp_path)), odd)


def test_series_are_told_apart_by_their_uids_in_one_folder(odd: Tissue, tmp_path: Path) -> None:
    first = write_slide(tmp_path, odd)
    second = write_slide(tmp_path / "x", 255 - odd)
    for number in (0, 1):
        shutil.move(tmp_path / "x" / f"{number}.dcm", tmp_path / f"IM{number}")
    catalogue = Catalogue([str(tmp_path)])
    for series, pixels in ((first, odd), (second, 255 - odd)):
        (one,) = catalogue.list(dicom=DicomQuery(series=series.series)).slides
        assert one.slide is not None
        assert np.array_equal(whole(one.slide), pixels)


@pytest.mark.parametrize("numbers", list(itertools.permutations(range(4)))[::5])
@pytest.mark.parametrize("other_size", [(401, 457), (380, 430)])
def test_of_two_regions_in_one_series_one_is_shown_at_every_level(
    odd: Tissue, tmp_path: Path, numbers: tuple[int, ...], other_size: tuple[int, int]
) -> None:
    """Without a PyramidUID only their origins on the glass tell them apart; UIDs come in any order."""
    series = Series()
    other = 255 - odd[: other_size[0], : other_size[1]]
    files = [(image, level, x_mm) for image, x_mm in ((odd, 11.5), (other, 31.5)) for level in (0, 1)]
    for number, (image, level, x_mm) in zip(numbers, files, strict=True):
        dataset = instance(reduced(image, level), series, mpp=0.5 * 2**level)
        dataset.SOPInstanceUID = f"1.2.{number}"
        dataset.TotalPixelMatrixOriginSequence[0].XOffsetInSlideCoordinateSystem = x_mm
        save(dataset, tmp_path / f"{number}.dcm")
    slide = only(tmp_path)
    image = odd if slide.info.origin_mm == (11.5, 22.25) else other
    assert [level.downsample for level in slide.info.levels] == [1, 2]
    for level in (0, 1):
        assert np.array_equal(whole(slide, level), reduced(image, level))


def test_labels_overviews_and_thumbnails_are_never_part_of_a_slide(odd: Tissue, tmp_path: Path) -> None:
    series = write_slide(tmp_path, odd, levels=1)
    shapes = Shape(kind="LABEL"), Shape(kind="OVERVIEW"), Shape(kind="THUMBNAIL"), Shape(label_in_image="YES")
    for level, shape in enumerate(shapes, 1):
        save(instance(reduced(odd, level), series, shape, mpp=0.5 * 2**level), tmp_path / f"{level}.dcm")
    assert [(level.width, level.height) for level in only(tmp_path).info.levels] == [(457, 401)]
    (tmp_path / "0.dcm").unlink()
    assert isinstance(problem_of(tmp_path), UnreadableSlide)


@pytest.mark.parametrize("shape", [Shape(photometric="MONOCHROME2"), Shape(light=EPIFLUORESCENCE)])
def test_what_is_no_brightfield_image_is_refused_as_such(odd: Tissue, tmp_path: Path, shape: Shape) -> None:
    save(instance(odd, Series(), shape), tmp_path / "a.dcm")
    assert isinstance(problem_of(tmp_path), NotBrightfield)


def test_a_compression_that_is_not_decoded_is_refused_at_once(odd: Tissue, tmp_path: Path) -> None:
    dataset = instance(odd, Series(), Shape(JPEG))
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"  # MPEG-2
    save(dataset, tmp_path / "a.dcm")
    assert "compressed" in problem_of(tmp_path).detail


def test_real_files_that_are_incomplete_or_small_are_told_apart(shared: Path, tmp_path: Path) -> None:
    for name in ("dicom-no-imagetype.dcm", "dicom-sm-tiny.dcm", "dicom-sm-tiny-jpegls.dcm"):
        shutil.copy(shared / "data/slides" / name, tmp_path)
    found = listed(tmp_path)
    assert [one.slide.width for one in found if one.slide] == [50, 50]
    (refused,) = (one.problem for one in found if one.problem)
    assert isinstance(refused, UnreadableSlide)
    lossless, plain = (whole(one.slide) for one in found if one.slide)
    assert np.array_equal(lossless, plain)


def test_names_ids_and_what_the_source_shows_hold_nothing_of_the_patient(
    odd: Tissue, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    series = write_slide(tmp_path / "Planted Patricia", odd, levels=1)
    slide = only(tmp_path)
    assert re.fullmatch("dicom-[0-9a-f]{12}", slide.name)
    assert series.series not in slide.name
    assert main(["info", str(tmp_path / "Planted Patricia")]) == 0
    told = capsys.readouterr().out + repr(slide.info)
    assert "457 x 401 px" in told
    assert not re.search("Patricia|PID-99|19480229|Referrer|CONTAINER", told)


def test_the_source_gives_full_headers_of_each_served_level(odd: Tissue, tmp_path: Path) -> None:
    series = write_slide(tmp_path, odd)
    source = only(tmp_path).info.dicom
    assert source is not None
    assert (source.study_uid, source.series_uid, source.accession) == (series.study, series.series, ACCESSION)
    assert source.store is None
    headers = source.headers()
    assert [header.TotalPixelMatrixColumns for header in headers] == [457, 228]
    assert all(header.PatientID == "PID-99" and "PixelData" not in header for header in headers)


def test_pixels_that_are_not_square_count_with_the_area_that_they_have(odd: Tissue, tmp_path: Path) -> None:
    dataset = instance(odd, Series())
    dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [0.0009, 0.0004]
    save(dataset, tmp_path / "a.dcm")
    info = only(tmp_path).info
    assert (info.mpp, info.pixel_ratio) == (pytest.approx(0.6), pytest.approx(2.25))


def test_levels_that_do_not_tell_their_pixel_size_are_reduced_by_whole_factors_too(odd: Tissue, tmp_path: Path) -> None:
    series = Series()
    for level in (0, 1):
        dataset = instance(reduced(odd, level), series)
        del dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
        del dataset.ImagedVolumeWidth
        save(dataset, tmp_path / f"{level}.dcm")
    info = only(tmp_path).info
    assert info.mpp is None
    assert [(level.downsample_x, level.downsample_y) for level in info.levels] == [(1, 1), (2, 2)]


@pytest.mark.parametrize(("apart_mm", "levels"), [(0.0029, 2), (0.0031, 1)])
def test_a_coarser_level_begins_where_the_finest_does_within_rounding_of_its_own_pixels(
    odd: Tissue, tmp_path: Path, apart_mm: float, levels: int
) -> None:
    series = write_slide(tmp_path, odd, levels=1)
    coarser = instance(reduced(odd, 2), series, mpp=2.0)
    coarser.TotalPixelMatrixOriginSequence[0].XOffsetInSlideCoordinateSystem += apart_mm
    save(coarser, tmp_path / "1.dcm")
    assert len(only(tmp_path).info.levels) == levels


@pytest.mark.parametrize("untold", [0, 1])
def test_a_level_that_does_not_tell_where_it_begins_is_of_the_same_region(
    odd: Tissue, tmp_path: Path, untold: int
) -> None:
    write_slide(tmp_path, odd)
    dataset = pydicom.dcmread(tmp_path / f"{untold}.dcm")
    del dataset.TotalPixelMatrixOriginSequence
    save(dataset, tmp_path / f"{untold}.dcm")
    assert len(only(tmp_path).info.levels) == 2


def test_fingerprint_is_that_of_the_sorted_instance_uids(odd: Tissue, tmp_path: Path) -> None:
    write_slide(tmp_path, odd, levels=3)
    uids = sorted(str(pydicom.dcmread(path).SOPInstanceUID) for path in tmp_path.iterdir())
    assert only(tmp_path).fingerprint == hashlib.sha256("\n".join(uids).encode()).hexdigest()


def test_slides_are_found_by_study_series_and_accession(odd: Tissue, tmp_path: Path) -> None:
    first = write_slide(tmp_path / "1", odd, levels=1)
    second = write_slide(tmp_path / "2", odd, Series(study=first.study, accession="ACC-2"), levels=1)
    catalogue = Catalogue([str(tmp_path)])

    def found(**query: str) -> set[str]:
        page = catalogue.list(dicom=DicomQuery(**query))
        return {one.slide.info.dicom.series_uid for one in page.slides if one.slide and one.slide.info.dicom}

    assert found(study=first.study) == {first.series, second.series}
    assert found(study=first.study, accession="ACC-2") == {second.series}
    assert found(series=first.series) == {first.series}
    assert found(accession="ACC") == set()


def test_a_new_instance_joins_its_slide_and_unchanged_headers_are_not_read_again(
    odd: Tissue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    catalogue = Catalogue([str(tmp_path)], clock=lambda: now[0])
    series = write_slide(tmp_path, odd, levels=1)
    (before,) = catalogue.list().slides
    assert before.slide is not None
    read: list[object] = []
    identify = dicom_files.read_identifiers
    monkeypatch.setattr(dicom_files, "read_identifiers", lambda file: read.append(file) or identify(file))
    now[0] += RESCAN_S + 1
    assert catalogue.list().slides[0].slide is before.slide
    assert read == []
    save(instance(reduced(odd, 1), series, mpp=1.0), tmp_path / "later.dcm")
    now[0] += RESCAN_S + 1
    after = catalogue.get(before.id)  # also without a listing
    assert len(read) == 1
    assert len(after.info.levels) == 2
    assert after.fingerprint != before.slide.fingerprint


def test_pixels_of_a_file_that_took_anothers_name_are_not_read_under_the_old_fingerprint(
    odd: Tissue, tmp_path: Path
) -> None:
    folder = tmp_path / "slide"
    write_slide(folder, odd, levels=1)
    write_slide(tmp_path / "other", 255 - odd, levels=1)
    slide = only(folder)
    os.utime(tmp_path / "other" / "0.dcm", ns=(0, 0))
    (tmp_path / "other" / "0.dcm").replace(folder / "0.dcm")
    with pytest.raises(UnreadableSlide, match="has been replaced"):
        whole(slide)


def test_damaged_files_are_one_problem_each_and_break_no_other_slide(odd: Tissue, tmp_path: Path) -> None:
    write_slide(tmp_path, odd, levels=1)
    whole_file = (tmp_path / "0.dcm").read_bytes()
    (tmp_path / "junk.dcm").write_bytes(b"no DICOM at all")
    (tmp_path / "cut.dcm").write_bytes(whole_file[:400])
    (tmp_path / "empty.dcm").touch()
    (tmp_path / "meta.dcm").write_bytes(whole_file[:132] + bytes(4) + whole_file[136:])
    (tmp_path / "README").write_text("not meant to be DICOM")
    found = listed(tmp_path)
    assert sum(one.slide is not None for one in found) == 1
    assert [type(one.problem) for one in found if one.problem] == [UnreadableSlide] * 4


def test_objects_of_other_kinds_beside_a_slide_are_no_slides(odd: Tissue, tmp_path: Path) -> None:
    series = write_slide(tmp_path, odd, levels=1)
    other = instance(odd, series)
    other.SOPClassUID = "1.2.840.10008.5.1.4.1.1.66.4"  # a segmentation
    save(other, tmp_path / "segmentation.dcm")
    assert len(only(tmp_path).info.levels) == 1


def test_pixels_that_a_file_lacks_are_an_unreadable_slide_when_read(odd: Tissue, tmp_path: Path) -> None:
    write_slide(tmp_path, odd, shape=Shape(JPEG), levels=1)
    path = tmp_path / "0.dcm"
    path.write_bytes(path.read_bytes()[:-30_000])
    slide = only(tmp_path)
    with pytest.raises(UnreadableSlide):
        whole(slide)


def test_a_codestream_larger_than_its_tile_is_refused_before_it_is_decoded(odd: Tissue, tmp_path: Path) -> None:
    write_slide(tmp_path, odd, shape=Shape(JPEG), levels=1)
    path = tmp_path / "0.dcm"
    data = path.read_bytes()
    sides = (128).to_bytes(2, "big") * 2
    assert data.count(b"\x08" + sides) >= 16
    path.write_bytes(data.replace(b"\x08" + sides, b"\x08" + b"\xff\xff\xff\xff"))  # 65535 x 65535, 13 GB
    with pytest.raises(UnreadableSlide):
        whole(only(tmp_path))


def test_a_length_that_lies_and_a_deflated_header_are_refused_without_reading_on(odd: Tissue, tmp_path: Path) -> None:
    write_slide(tmp_path, odd, levels=1)
    path = tmp_path / "0.dcm"
    data = path.read_bytes()
    at = data.index(b"\x08\x00\x08\x00CS")  # ImageType, made an unknown value of 4 GB
    path.write_bytes(data[:at] + b"\x08\x00\x08\x00UN\0\0\xf0\xff\xff\xff" + data[at + 8 :])
    assert isinstance(problem_of(tmp_path), UnreadableSlide)
    path.write_bytes(data.replace(b"UI\x14\x001.2.840.10008.1.2.1\0", b"UI\x16\x001.2.840.10008.1.2.1.99", 1))
    assert isinstance(problem_of(tmp_path), UnreadableSlide)


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), min_size=1, max_size=12))
def test_no_change_of_a_header_gives_anything_but_pixels_or_a_typed_problem(
    tissue: Tissue, tmp_path: Path, changes: list[tuple[int, int]]
) -> None:
    path = tmp_path / "small" / "0.dcm"
    if not path.exists():
        series = Series("1.2.3", "1.2.4", "1.2.5")
        write_slide(path.parent, tissue[:20, :20], series, Shape(JPEG, tile=16, sparse=True), levels=1)
        (tmp_path / "original").write_bytes(path.read_bytes())
    data = bytearray((tmp_path / "original").read_bytes())
    for position, value in changes:
        data[128 + position % (len(data) - 128)] = value
    path.write_bytes(data)
    for one in listed(path.parent):
        if one.slide is not None and max(one.slide.width, one.slide.height) < 4096:
            with contextlib.suppress(ServiceError):
                one.slide.read_region(0, 0, 0, 64, 64)


async def test_the_api_finds_a_slide_by_its_accession_number_and_tells_where_it_begins(
    odd: Tissue, tmp_path: Path
) -> None:
    series = write_slide(tmp_path, odd)
    app = create_app(Settings(slides=(str(tmp_path),)), Catalogue([str(tmp_path)]), NumpyExecutor())
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        none = await client.get("/v1/slides", params={"accession": "another"})
        assert none.json()["slides"] == []
        found = await client.get("/v1/slides", params={"study": series.study, "accession": ACCESSION})
        (slide,) = found.json()["slides"]
        details = await client.get(f"/v1/slides/{slide['id']}")
        assert details.json()["origin_mm"] == [11.5, 22.25]
        assert details.json()["objective_power"] == 20
        assert (await client.get(f"/v1/slides/{slide['id']}/thumbnail?max=64")).status_code == 200
        told = found.text + details.text
        assert not any(secret in told for secret in (ACCESSION, series.study, series.series, "Planted", "PID-99"))


@pytest.mark.parametrize(
    ("implicit", "kind", "end", "behind"),
    [
        (False, b"SQ\0\0", b"", b"\xe0\x7f\x10\x00OW\0\0\xff\xff\xff\xff"),
        (False, b"SQ\0\0", b"", b"\xe0\x7f\x01\x00OV\0\0\x08\x00\x00\x00"),
        (True, b"", b"\xfe\xff\xdd\xe0\0\0\0\0", b"\xe0\x7f\x10\x00\x10\x00\x00\x00"),
    ],
)
def test_what_is_said_of_frames_ends_at_the_pixels_wherever_reading_was_cut(
    monkeypatch: pytest.MonkeyPatch, implicit: bool, kind: bytes, end: bytes, behind: bytes
) -> None:
    """Also where a frame's row is a number that looks like the tag of the pixels."""
    groups = b"\x48\x00\x1f\x02\x04\x00\x00\x00\xe0\x7f\x10\x00" * 2 + end
    file = io.BytesIO(b"\x00\x52\x30\x92" + kind + b"\xff" * 4 + groups + behind)
    for chunk in range(1, len(groups) + 30):
        monkeypatch.setattr(per_frame, "_CHUNK", chunk)
        file.seek(0)
        assert per_frame.take_per_frame_groups(file, implicit=implicit) == groups
        assert file.read() == behind


@pytest.mark.parametrize("level", [0, 1, 2])
def test_another_reader_sees_the_same_pixels_in_the_same_places(shared: Path, level: int) -> None:
    wsidicom = pytest.importorskip("wsidicom")
    folder = shared / "data/slides/dicom-cmu-1-small-region"
    ours = only(folder).read_region(level, 120, 130, 300, 200)
    with wsidicom.WsiDicom.open(folder) as other:
        theirs = np.asarray(other.read_region((120, 130), level, (300, 200)), np.int16)
    assert np.abs(ours - theirs).max() <= 2  # two decoders of the same JPEG
