"""Tissue as a DICOM slide, made by other people's converter, and what a reader of DICOM objects finds in them."""

from __future__ import annotations

import io
import shutil
import subprocess
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
import shapely

from wsisam_service.dicom.source import DicomSource


def convert(slide: Path, folder: Path, *, tile_size: int = 256) -> list[pydicom.Dataset]:
    """`slide` as DICOM files in `folder`; their headers, finest level first."""
    wsidicomizer = pytest.importorskip("wsidicomizer", exc_type=ImportError)
    assert slide.is_file()  # so that what is not found below is the converter's
    folder.mkdir(parents=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wsidicomizer.WsiDicomizer.convert(str(slide), output_path=str(folder), tile_size=tile_size)
    except FileNotFoundError as error:
        pytest.skip(f"the converter misses a library: {error}")
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in folder.iterdir()]
    return sorted(headers, key=lambda header: -int(header.TotalPixelMatrixColumns))


def source_of(headers: Sequence[pydicom.Dataset], stored: list[bytes] | None = None) -> DicomSource:
    """The DICOM side of a slide with these headers; what is stored goes into `stored`."""
    first = headers[0]
    store = None if stored is None else stored.extend
    return DicomSource(str(first.StudyInstanceUID), str(first.SeriesInstanceUID), None, lambda: headers, store)


def read_segments(content: bytes) -> npt.NDArray[np.bool_]:
    """The whole matrix of a segmentation as highdicom reads it: (rows, columns, segments)."""
    import highdicom

    segmentation = highdicom.seg.segread(io.BytesIO(content))
    stacked = segmentation.get_total_pixel_matrix(combine_segments=False)
    return np.asarray(stacked, bool)


def pixels_inside(area: shapely.Geometry, columns: int, rows: int, scale: float) -> npt.NDArray[np.bool_]:
    """Pixels (rows, columns) of a level whose centres lie in `area` (level 0), by shapely alone."""
    x, y = np.meshgrid((np.arange(columns) + 0.5) * scale, (np.arange(rows) + 0.5) * scale)
    shapely.prepare(area)
    return np.asarray(shapely.contains_xy(area, x, y), bool)


def faults(content: bytes, folder: Path) -> set[str]:
    """What dciodvfy calls an error in an object; skips without it."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy (dicom3tools) is not installed")
    file = folder / "object.dcm"
    file.write_bytes(content)
    told = subprocess.run(["dciodvfy", str(file)], capture_output=True, text=True, check=False)
    return {line for line in (told.stdout + told.stderr).splitlines() if line.startswith("Error")}


def written(dataset: Any) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
