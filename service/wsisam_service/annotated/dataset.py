"""Samples and test cases cut from annotated tissue by the service's own views and readers, so that training sees what
inference sees: the same ladder, the same grid, the same white outside.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from wsisam_model.config import ModelConfig
from wsisam_model.point_box import may_be_wider
from wsisam_model.prompts import Prompt
from wsisam_model.train import draws
from wsisam_model.train.samples import (
    KINDS,
    MIN_AREA_UM2,
    NOISES,
    POINTS,
    Case,
    Pixels,
    Sample,
    held_out_groups,
)
from wsisam_service.annotated import annotation_checks as checks
from wsisam_service.annotated.annotations import AnnotatedImage, AnnotatedObject, Rejection, read_source
from wsisam_service.errors import ServiceError
from wsisam_service.slides.opening import open_slide
from wsisam_service.slides.pixels import read_view
from wsisam_service.slides.reader import SlideReader
from wsisam_service.views import Box, View, view_for_extent

CHECKED_PIXELS = 4096
"""Whole images up to this many pixels a side are looked at for black borders and shifted masks."""
Click = tuple[tuple[float, float], int]
"""A point in level 0, and 1 where it lies on the object, 0 beside it."""
MIN_VISIBLE = 0.2
"""A view that shows less of the object than this tells nothing about it."""


@dataclass(slots=True)
class Tissue:
    """One annotated image, opened, and the views cut from it so far."""

    image: AnnotatedImage
    reader: SlideReader
    mpp: float
    views: dict[View, Pixels] = field(default_factory=dict)

    def pixels(self, view: View) -> Pixels:
        """RGB pixels of `view`; objects side by side share their views."""
        if view not in self.views:
            self.views[view] = read_view(self.reader, view)
        return self.views[view]

    def sample(self, item: AnnotatedObject, view: View) -> Sample:
        """`item` on `view` and its LR view."""
        wide = view.coarser()
        x0, y0, x1, y1 = item.bounds
        return Sample(
            object_id=item.object_id,
            dataset=self.image.dataset,
            group=self.image.group,
            hr=self.pixels(view),
            lr=self.pixels(wide),
            mask=item.in_view(view),
            lr_mask=item.in_view(wide),
            mpp=view.mpp,
            area_um2=item.outline.area * self.mpp**2,
            fill=max(x1 - x0, y1 - y0) / view.size_level0,
            cut=item.cut,
        )


@dataclass(frozen=True, slots=True)
class Dataset:
    """What passed the checks, and what did not."""

    tissues: tuple[Tissue, ...]
    rejections: tuple[Rejection, ...]
    config: ModelConfig

    @property
    def size(self) -> int:
        """How many objects there are."""
        return sum(len(tissue.image.objects) for tissue in self.tissues)

    def limited(self, most: int, *, seed: int = 0) -> Dataset:
        """At most `most` objects of each set, spread evenly over its groups; which ones depends on `seed` alone."""
        chosen: set[str] = set()
        for dataset in dict.fromkeys(tissue.image.dataset for tissue in self.tissues):
            chosen |= _spread([t for t in self.tissues if t.image.dataset == dataset], most, seed)
        tissues = tuple(
            Tissue(
                replace(t.image, objects=tuple(o for o in t.image.objects if o.object_id in chosen)), t.reader, t.mpp
            )
            for t in self.tissues
        )
        return replace(self, tissues=tuple(tissue for tissue in tissues if tissue.image.objects))

    def split(self, hold_out: Iterable[str], fraction: float, seed: int) -> tuple[Dataset, Dataset]:
        """Training and held-out parts, by patient or slide (see `samples.held_out_groups`)."""
        held = held_out_groups({t.image.group_name for t in self.tissues}, hold_out, fraction, seed)
        parts = [tuple(t for t in self.tissues if (t.image.group_name in held) == side) for side in (False, True)]
        return replace(self, tissues=parts[0]), replace(self, tissues=parts[1])

    def samples(self, *, seed: int = 0, finer: bool = False) -> Iterator[Sample]:
        """For training: every object on the views of a tight box, a noisy box, one point and three points.

        `finer` adds the tight box's view one step finer, where the object fills half to all of it and what is around
        it is seen in the LR view only.
        """
        for tissue in self.tissues:
            for item in tissue.image.objects:
                rng = _object_rng(item, seed)
                views = dict.fromkeys(self._training_views(tissue, item, rng, finer))
                for view in views:
                    sample = tissue.sample(item, view)
                    if _visible(sample, view):
                        yield sample

    def cases(self, kinds: Sequence[str] = KINDS, *, seed: int = 0, finer: bool = False) -> Iterator[Case]:
        """For evaluation: one prompt of each kind for every object, on the view which that prompt alone leads to;
        `finer` takes the view one ladder step finer than the service would.
        """
        for tissue in self.tissues:
            for item in tissue.image.objects:
                for kind in kinds:
                    yield self._case(tissue, item, kind, seed, finer)

    def _case(self, tissue: Tissue, item: AnnotatedObject, kind: str, seed: int, finer: bool) -> Case:
        rng = _object_rng(item, seed, kind)
        if kind in NOISES:
            box = draws.noisy_box(item.bounds, NOISES[kind], rng)
            view = self._view(box, tissue)
            if finer:
                view = view_for_extent(box, self.config.image_size, tissue.mpp, mpp=view.mpp / 2)
            return Case(tissue.sample(item, view), kind, Prompt(box=view.index_box_from_level0(box)))
        positive, negative = POINTS[kind]
        found = self._points(tissue, item, positive, negative, rng)
        clicks = [place for place, label in found if label]
        x0, y0, x1, y1 = extent = _extent(clicks)
        view = self._view(extent, tissue, points=True)
        inner = view.inner_borders(tissue.reader.width, tissue.reader.height)
        first = Case(tissue.sample(item, view), kind, _clicked(view, found), inner=inner)
        if not may_be_wider(max(x1 - x0, y1 - y0) / view.size_level0, len(clicks)):
            return first
        wide = view.coarser()
        return replace(first, wider=Case(tissue.sample(item, wide), kind, replace(_clicked(wide, found), wider=True)))

    def _training_views(
        self, tissue: Tissue, item: AnnotatedObject, rng: np.random.Generator, finer: bool
    ) -> Iterator[View]:
        tight = self._view(item.bounds, tissue)
        yield tight
        yield self._view(draws.noisy_box(item.bounds, max(NOISES.values()), rng), tissue)
        for count in (1, 3):
            places = [place for place, _ in self._points(tissue, item, count, 0, rng)]
            yield self._view(_extent(places), tissue, points=True)
        if finer:
            yield view_for_extent(item.bounds, self.config.image_size, tissue.mpp, mpp=tight.mpp / 2)

    def _view(self, extent: Box, tissue: Tissue, *, points: bool = False) -> View:
        min_mpp = self.config.point_mpp if points else None
        return view_for_extent(extent, self.config.image_size, tissue.mpp, min_mpp=min_mpp)

    def _points(
        self, tissue: Tissue, item: AnnotatedObject, positive: int, negative: int, rng: np.random.Generator
    ) -> list[Click]:
        """Points in level 0 with their labels, drawn in the tight box's view."""
        view = self._view(item.bounds, tissue)
        places = draws.places(item.in_view(view))
        drawn = [(p, 1) for p in draws.some(places.inside, positive, rng)]
        drawn += [(p, 0) for p in draws.some(places.beside, negative, rng)]
        return [(view.level0_from_edge(x + 0.5, y + 0.5), label) for (x, y), label in drawn]


def load(sources: Iterable[str], config: ModelConfig, *, min_area_um2: float = MIN_AREA_UM2) -> Dataset:
    """Open and check the annotated images of `sources` (see `annotations.read_source`). Every object has an id of its
    own: older QuPath gives many the same, and two sources may be of one slide.
    """
    tissues: list[Tissue] = []
    rejections: list[Rejection] = []
    seen: dict[str, int] = {}
    for source in sources:
        opened = [_open(_with_own_ids(image, seen), rejections) for image in read_source(source)]
        kept = _aligned([tissue for tissue in opened if tissue is not None], rejections)
        tissues += [_with_objects(tissue, config, min_area_um2, rejections) for tissue in kept]
    return Dataset(tuple(tissues), tuple(rejections), config)


def _with_own_ids(image: AnnotatedImage, seen: dict[str, int]) -> AnnotatedImage:
    """`image` with a number behind each id that is taken. `seen` counts the objects of each id so far."""
    objects = []
    for item in image.objects:
        name = item.object_id
        while name in seen:
            seen[item.object_id] += 1
            name = f"{item.object_id}-{seen[item.object_id]}"
        seen[name] = 1
        objects.append(replace(item, object_id=name))
    return replace(image, objects=tuple(objects))


def _open(image: AnnotatedImage, rejections: list[Rejection]) -> Tissue | None:
    """The image with its reader, or None and the reason."""
    name = f"{image.dataset}/{image.name}"
    try:
        reader = open_slide(image.path)
    except ServiceError as error:
        rejections.append(Rejection(name, error.detail))
        return None
    mpp = image.mpp if image.mpp is not None else reader.mpp
    problem = checks.pixel_size_problem(mpp)
    if problem is None and image.labels is not None:
        problem = checks.label_size_problem(image.labels, reader.width, reader.height)
    if problem is None and max(reader.width, reader.height) <= CHECKED_PIXELS:
        problem = checks.black_border_problem(_whole(reader))
    if problem is None and not image.objects:
        problem = "it has no annotated area"
    if problem is not None or mpp is None:
        rejections.append(Rejection(name, problem or "it has no pixel size"))
        return None
    return Tissue(image, reader, mpp)


def _aligned(tissues: list[Tissue], rejections: list[Rejection]) -> list[Tissue]:
    """All images of a source, or none when their masks lie beside the tissue they belong to."""
    fits = [
        checks.edge_fit(_whole(tissue.reader), tissue.image.labels, tissue.mpp)
        for tissue in tissues
        if tissue.image.labels is not None and max(tissue.image.labels.shape) <= CHECKED_PIXELS
    ]
    problem = checks.shift_problem(fits) if fits else None
    if problem is None:
        return tissues
    rejections += [Rejection(f"{tissue.image.dataset}/{tissue.image.name}", problem) for tissue in tissues]
    return []


def _with_objects(tissue: Tissue, config: ModelConfig, min_area_um2: float, rejections: list[Rejection]) -> Tissue:
    """`tissue` with only the objects that can be used."""
    image = tissue.image
    slide: Box = (0.0, 0.0, float(tissue.reader.width), float(tissue.reader.height))
    kept = []
    for item in image.objects:
        problem = _object_problem(item, slide, tissue.mpp, config, min_area_um2)
        if problem is None:
            kept.append(item)
        else:
            rejections.append(Rejection(item.object_id, problem))
    return Tissue(replace(image, objects=tuple(kept), labels=None), tissue.reader, tissue.mpp)


def _object_problem(item: AnnotatedObject, slide: Box, mpp: float, config: ModelConfig, min_area: float) -> str | None:
    area = item.outline.area * mpp**2
    if area < min_area:
        return f"its area of {area:.0f} µm² is under {min_area:.0f}"
    if item.outline.is_empty:
        return "it encloses nothing"
    x0, y0, x1, y1 = item.bounds
    if x1 <= slide[0] or y1 <= slide[1] or x0 >= slide[2] or y0 >= slide[3]:
        return "it lies outside the slide"
    if not item.in_view(view_for_extent(item.bounds, config.image_size, mpp)).any():
        return "its mask is empty in the view it leads to"
    return None


def _spread(tissues: Sequence[Tissue], most: int, seed: int) -> set[str]:
    """Up to `most` object ids, taken from the groups in turn."""
    rng = np.random.default_rng(seed)
    by_group: dict[str, list[str]] = {}
    for tissue in tissues:
        by_group.setdefault(tissue.image.group, []).extend(item.object_id for item in tissue.image.objects)
    queues = [list(rng.permutation(sorted(ids))) for ids in by_group.values()]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*queues))
    return set(itertools.islice((str(name) for name in turns if name is not None), most))


def _visible(sample: Sample, view: View) -> bool:
    shown = int(sample.mask.sum()) * view.mpp**2
    return shown >= MIN_VISIBLE * sample.area_um2


def _clicked(view: View, found: Sequence[Click]) -> Prompt:
    """`found` on `view`; as in the service, points beside the object that lie outside the view are left out."""
    shown = [(place, label) for place, label in found if label or view.contains((*place, *place))]
    return Prompt(
        points=tuple(view.index_from_level0(*place) for place, _ in shown), labels=tuple(label for _, label in shown)
    )


def _extent(places: Sequence[tuple[float, float]]) -> Box:
    xs, ys = zip(*places, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _object_rng(item: AnnotatedObject, seed: int, kind: str = "") -> np.random.Generator:
    """Draws that depend on the object, the kind and the seed, not on what else is in the data."""
    return np.random.default_rng([seed, *f"{item.object_id}:{kind}".encode()])


def _whole(reader: SlideReader) -> Pixels:
    """The whole image, uint8 (H, W, 3)."""
    return reader.read_region(0, 0, 0, reader.width, reader.height)
