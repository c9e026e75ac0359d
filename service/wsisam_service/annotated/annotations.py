"""Annotated tissue for training and evaluation: outlines in level-0 pixels, from label images or QuPath GeoJSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import rasterio.features
import shapely
import shapely.geometry
from affine import Affine
from shapely.geometry.base import BaseGeometry

from wsisam_service.errors import InvalidRequest
from wsisam_service.views import Box, View

Labels = npt.NDArray[np.uint16]
"""Instance labels (H, W), 0 is background."""
MAX_COORDINATE = 1e9
"""No slide has as many pixels along a side."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """Something left out of training, and why."""

    what: str
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class AnnotatedObject:
    """`outline` is a polygon or several, in level-0 pixel edges; `cut` where the image's border cuts it."""

    object_id: str
    outline: BaseGeometry
    cut: bool

    @property
    def bounds(self) -> Box:
        x0, y0, x1, y1 = self.outline.bounds
        return x0, y0, x1, y1

    def in_view(self, view: View) -> npt.NDArray[np.bool_]:
        """Pixels of `view` whose centre lies in the object, bool (S, S)."""
        x0, y0 = view.origin_level0
        transform = Affine(view.scale, 0.0, x0, 0.0, view.scale, y0)
        shape = (view.side, view.side)
        burnt = rasterio.features.rasterize([(self.outline, 1)], out_shape=shape, transform=transform, dtype="uint8")
        return np.asarray(burnt, bool)


@dataclass(frozen=True, slots=True, eq=False)
class AnnotatedImage:
    """One slide or image with its objects. `mpp` overrides the file's own pixel size where it has none."""

    name: str
    dataset: str
    group: str
    path: Path
    mpp: float | None
    objects: tuple[AnnotatedObject, ...]
    labels: Labels | None = None
    """The label image the objects come from, to check its size and place against the pixels."""

    @property
    def group_name(self) -> str:
        """Name of the patient or slide in splits."""
        return f"{self.dataset}/{self.group}"


def read_source(source: str) -> list[AnnotatedImage]:
    """The annotated images of one `--data` argument.

    `SLIDE=FILE.geojson` pairs a slide with QuPath annotations. A folder holds `meta.json`, `images/` and `masks/`
    with instance labels, as the shared data do. Raises `InvalidRequest` for anything else.
    """
    if "=" in source:
        slide, _, annotations = source.rpartition("=")
        return [read_geojson(Path(slide), Path(annotations))]
    folder = Path(source)
    if not (folder / "meta.json").is_file():
        raise InvalidRequest(f"{folder.name!r} has no meta.json; give such a folder, or SLIDE=ANNOTATIONS.geojson")
    return read_label_folder(folder)


def read_label_folder(folder: Path) -> list[AnnotatedImage]:
    """Images with instance label PNGs. The patient, or else the group, or else the whole set is the unit of splits.
    Raises `InvalidRequest` where `meta.json` or a mask is not as it should be.
    """
    meta = _read_json(folder / "meta.json")
    try:
        mpp = None if meta.get("microns_per_pixel") is None else float(meta["microns_per_pixel"])
        entries = [
            (folder / entry["image"], folder / entry["mask"], str(entry.get("patient", entry.get("group", "all"))))
            for entry in meta["images"]
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        wanted = "microns_per_pixel and a list of images, each with its image and mask"
        raise InvalidRequest(f"meta.json of {folder.name} has not what it needs: {wanted}") from error
    images = []
    for path, mask, group in entries:
        read = cv2.imread(str(mask), cv2.IMREAD_UNCHANGED)
        if read is None or read.ndim != 2 or read.dtype not in (np.uint8, np.uint16):
            raise InvalidRequest(f"{mask.name} of {folder.name} is not an image of instance labels")
        labels = np.asarray(read, np.uint16)
        images.append(
            AnnotatedImage(
                name=path.stem,
                dataset=folder.name,
                group=group,
                path=path,
                mpp=mpp,
                objects=tuple(objects_of_labels(labels, f"{folder.name}/{path.stem}")),
                labels=labels,
            )
        )
    return images


def objects_of_labels(labels: Labels, prefix: str) -> Iterator[AnnotatedObject]:
    """One object per label, its outline along pixel edges."""
    height, width = labels.shape
    boxes = label_boxes(labels)
    for label, (x0, y0, x1, y1) in boxes.items():
        crop = (labels[y0:y1, x0:x1] == label).astype(np.uint8)
        shapes = rasterio.features.shapes(crop, mask=crop > 0, transform=Affine.translation(x0, y0))
        outline = shapely.union_all([shapely.geometry.shape(geometry) for geometry, _ in shapes])
        yield AnnotatedObject(f"{prefix}/{label}", outline, cut=x0 == 0 or y0 == 0 or x1 == width or y1 == height)


def label_boxes(labels: Labels) -> dict[int, tuple[int, int, int, int]]:
    """Bounding box (x0, y0, x1, y1) of every label but 0."""
    ys, xs = np.nonzero(labels)
    values = labels[ys, xs]
    order = np.argsort(values, kind="stable")
    ys, xs, values = ys[order], xs[order], values[order]
    names, starts = np.unique(values, return_index=True)
    ends = np.append(starts, values.size)[1:]
    return {
        int(name): (
            int(xs[start:end].min()),
            int(ys[start:end].min()),
            int(xs[start:end].max()) + 1,
            int(ys[start:end].max()) + 1,
        )
        for name, start, end in zip(names, starts, ends, strict=True)
    }


def read_geojson(slide: Path, annotations: Path) -> AnnotatedImage:
    """A slide with the areas of a QuPath GeoJSON (a FeatureCollection, a list, or one Feature), in level-0 pixels.

    Lines and points are passed over; an area without an id has its number. The slide is its own unit of splits. Raises
    `InvalidRequest` for any other file, and for a slide that is a folder of DICOM.
    """
    if slide.is_dir():
        raise InvalidRequest(f"{slide.name} is a folder; slides to train on are files, not folders of DICOM")
    document = _read_json(annotations)
    objects = []
    try:
        features = document.get("features", [document]) if isinstance(document, dict) else document
        for number, feature in enumerate(features):
            geometry = feature.get("geometry") or {}
            if geometry.get("type") not in ("Polygon", "MultiPolygon"):
                continue
            outline = _area(shapely.geometry.shape(geometry))
            name = number if feature.get("id") is None else feature["id"]
            objects.append(AnnotatedObject(f"{slide.stem}/{name}", outline, cut=False))
    except (AttributeError, KeyError, TypeError, ValueError, shapely.errors.ShapelyError) as error:
        raise InvalidRequest(f"{annotations.name} is no GeoJSON as QuPath exports it") from error
    return AnnotatedImage(slide.stem, slide.stem, slide.stem, slide, None, tuple(objects))


def _area(drawn: BaseGeometry) -> BaseGeometry:
    """What the polygon or polygons `drawn` enclose: without spikes, which are lines, and without a hole where several
    overlap. ValueError for places that are on no slide.
    """
    if any(abs(edge) > MAX_COORDINATE for edge in drawn.bounds):
        raise ValueError("a coordinate is too large")
    valid = shapely.make_valid(shapely.get_parts(drawn))
    parts = shapely.get_parts(shapely.get_parts(valid))  # a collection holds lines and polygons, or several of them
    return shapely.union_all(parts[shapely.get_dimensions(parts) == 2])


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path.name} cannot be read as JSON: {error}") from error
