"""DICOM whole slides made of real tissue, in every shape that the standard allows and this service reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.uid import UID, generate_uid

WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
IMPLICIT, UNCOMPRESSED, JPEG, JPEG_LS, JPEG_2000 = (
    f"1.2.840.10008.1.2{suffix}" for suffix in ("", ".1", ".4.50", ".4.80", ".4.90")
)
BRIGHTFIELD, EPIFLUORESCENCE = "111744", "111743"
PATIENT, ACCESSION = "Planted^Patricia", "ACC-7431"

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Series:
    """What the images of one slide share."""

    study: str = field(default_factory=generate_uid)
    series: str = field(default_factory=generate_uid)
    frame_of_reference: str = field(default_factory=generate_uid)
    accession: str = ACCESSION


@dataclass(frozen=True)
class Shape:
    """How one image is written. `planes` are focal planes, `sparse` leaves out the tiles in `left_out`."""

    syntax: str = UNCOMPRESSED
    tile: int = 128
    sparse: bool = False
    left_out: frozenset[int] = frozenset()
    planes: int = 1
    photometric: str = "RGB"
    kind: str = "VOLUME"
    light: str = BRIGHTFIELD
    offsets: str = "basic"
    undefined_lengths: bool = False
    label_in_image: str = "NO"


def instance(
    image: Image, series: Series, shape: Shape = Shape(), *, mpp: float = 0.5, frames: slice = slice(None)
) -> Dataset:
    """One instance of `image`, uint8 (height, width, 3); `frames` cuts a part of a concatenation out of it.

    Focal planes other than the middle one are inverted.
    """
    tiles, places = _tiles(image, shape)
    count = len(tiles)
    part = list(range(count))[frames]
    header = _header(image.shape[:2], series, shape, mpp)
    header.NumberOfFrames = len(part)
    if len(part) < count:
        header.ConcatenationFrameOffsetNumber = part[0]
    if shape.sparse:
        header.DimensionOrganizationType = "TILED_SPARSE"
        header.PerFrameFunctionalGroupsSequence = [_place(*places[number]) for number in part]
        if shape.undefined_lengths:
            header["PerFrameFunctionalGroupsSequence"].is_undefined_length = True
            for group in header.PerFrameFunctionalGroupsSequence:
                group.is_undefined_length_sequence_item = True
                group["PlanePositionSlideSequence"].is_undefined_length = True
    encoded = [_encode(tiles[number], shape) for number in part]
    if UID(shape.syntax).is_encapsulated:
        header.PixelData = encapsulate(encoded, has_bot=shape.offsets == "basic")
        if shape.offsets == "extended":
            header.PixelData, header.ExtendedOffsetTable, header.ExtendedOffsetTableLengths = encapsulate_extended(
                encoded
            )
        header["PixelData"].is_undefined_length = True
    else:
        pixels = b"".join(encoded)
        header.PixelData = pixels + b"\0" * (len(pixels) % 2)
    header["PixelData"].VR = "OB"
    return header


def save(dataset: Dataset, path: Path) -> Path:
    """Write a part-10 file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_slide(
    folder: Path, image: Image, series: Series | None = None, shape: Shape = Shape(), *, levels: int = 2
) -> Series:
    """A pyramid halved by area, an instance a level, called 0.dcm, 1.dcm, …"""
    series = series or Series()
    for level in range(levels):
        save(instance(reduced(image, level), series, shape, mpp=0.5 * 2**level), folder / f"{level}.dcm")
    return series


def write_concatenation(folder: Path, image: Image, series: Series, parts: int, shape: Shape = Shape()) -> list[Path]:
    """One level in several instances, in files whose names say nothing."""
    count = len(_tiles(image, shape)[0])
    size, uid = math.ceil(count / parts), generate_uid()
    paths = []
    for part in range(parts):
        dataset = instance(image, series, shape, frames=slice(part * size, (part + 1) * size))
        dataset.ConcatenationUID, dataset.InConcatenationNumber = uid, part + 1
        dataset.InConcatenationTotalNumber = parts
        paths.append(save(dataset, folder / f"{dataset.SOPInstanceUID}"))
    return paths


def reduced(image: Image, level: int) -> Image:
    """`image` halved `level` times by area."""
    for _ in range(level):
        height, width = (side // 2 for side in image.shape[:2])
        image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    return image


def _tiles(image: Image, shape: Shape) -> tuple[list[Image], list[tuple[int, int, float]]]:
    """Tiles in DICOM's order, padded with black, and (column, row, height in µm) of each, from 1."""
    height, width = image.shape[:2]
    side = shape.tile
    tiles, places = [], []
    for plane in range(shape.planes):
        shown = image if plane == shape.planes // 2 else 255 - image
        number = 0
        for y in range(0, height, side):
            for x in range(0, width, side):
                if number not in shape.left_out:
                    tile = np.zeros((side, side, 3), np.uint8)
                    piece = shown[y : y + side, x : x + side]
                    tile[: piece.shape[0], : piece.shape[1]] = piece
                    tiles.append(tile)
                    places.append((x + 1, y + 1, float(plane)))
                number += 1
    return tiles, places


def _encode(tile: Image, shape: Shape) -> bytes:
    if shape.photometric == "MONOCHROME2":
        return np.ascontiguousarray(tile[..., 0]).tobytes()
    if shape.syntax == JPEG:
        space = "RGB" if shape.photometric == "RGB" else "YCBCR"
        return bytes(imagecodecs.jpeg8_encode(tile, level=95, colorspace="RGB", outcolorspace=space))
    if shape.syntax == JPEG_2000:
        return bytes(imagecodecs.jpeg2k_encode(tile, codecformat="j2k", level=0, reversible=True, mct=True))
    if shape.syntax == JPEG_LS:
        return bytes(imagecodecs.jpegls_encode(tile))
    return tile.tobytes()


def _header(size: Sequence[int], series: Series, shape: Shape, mpp: float) -> Dataset:
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = shape.syntax
    header.SOPClassUID, header.SOPInstanceUID = WHOLE_SLIDE, generate_uid()
    header.PatientName, header.PatientID, header.PatientBirthDate = PATIENT, "PID-99", "19480229"
    header.PatientSex, header.StudyDate, header.StudyTime, header.StudyID = "F", "20260101", "120000", "S1"
    header.ReferringPhysicianName = "Planted^Referrer"
    header.StudyInstanceUID, header.SeriesInstanceUID = series.study, series.series
    header.FrameOfReferenceUID, header.AccessionNumber = series.frame_of_reference, series.accession
    header.Modality, header.SeriesNumber, header.InstanceNumber = "SM", 1, 1
    header.Manufacturer, header.ImageType = "tests", ["ORIGINAL", "PRIMARY", shape.kind, "NONE"]
    header.ContainerIdentifier = "CONTAINER-5"
    header.SpecimenLabelInImage = shape.label_in_image
    header.DimensionOrganizationType = "TILED_FULL"
    mono = shape.photometric == "MONOCHROME2"
    header.SamplesPerPixel, header.PhotometricInterpretation = (1 if mono else 3), shape.photometric
    if not mono:
        header.PlanarConfiguration = 0
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 8, 8, 7, 0
    header.Rows = header.Columns = shape.tile
    header.TotalPixelMatrixRows, header.TotalPixelMatrixColumns = size
    header.TotalPixelMatrixFocalPlanes, header.NumberOfOpticalPaths = shape.planes, 1
    volume = (float(np.float32(side * mpp / 1000)) for side in size)
    header.ImagedVolumeHeight, header.ImagedVolumeWidth = volume
    origin = Dataset()
    origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem = 11.5, 22.25
    header.TotalPixelMatrixOriginSequence = [origin]
    header.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
    measures, shared = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [mpp / 1000, mpp / 1000], 0.001
    shared.PixelMeasuresSequence = [measures]
    header.SharedFunctionalGroupsSequence = [shared]
    light, path = Dataset(), Dataset()
    light.CodeValue, light.CodingSchemeDesignator, light.CodeMeaning = shape.light, "DCM", "illumination"
    path.OpticalPathIdentifier, path.ObjectiveLensPower = "1", 20
    path.IlluminationTypeCodeSequence = [light]
    header.OpticalPathSequence = [path]
    return header


def _place(column: int, row: int, height: float) -> Dataset:
    at, group = Dataset(), Dataset()
    at.ColumnPositionInTotalImagePixelMatrix, at.RowPositionInTotalImagePixelMatrix = column, row
    at.XOffsetInSlideCoordinateSystem = at.YOffsetInSlideCoordinateSystem = 0
    at.ZOffsetInSlideCoordinateSystem = height
    group.PlanePositionSlideSequence = [at]
    return group
