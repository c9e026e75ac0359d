"""DICOMweb services as roots: their series are listed in the background, their frames fetched as views need them.

A PACS may hang. So nothing here waits for one but the calls that read a slide of it, in its own lane.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pydicom

from wsisam_service.dicom.header import WHOLE_SLIDE, damage_is_a_problem, is_uid
from wsisam_service.dicom.image import SlideImage, is_full, is_shown, slide_image
from wsisam_service.dicom.pacs_settings import PacsSettings
from wsisam_service.dicom.per_frame import NO_PLACES, FramePlaces
from wsisam_service.dicom.source import DicomSource
from wsisam_service.dicom.web import DicomWeb, FoundSeries, Json, value_of
from wsisam_service.errors import ServiceError, UnreadableSlide
from wsisam_service.slides.dicom_slide import DicomReader, series_fingerprint, series_name
from wsisam_service.slides.items import DicomIds, OpenedSlide, Stamp
from wsisam_service.slides.lanes import BoundedLane
from wsisam_service.slides.tiles import TileCache

AFTER_FAILURE_S = 2.0
"""A PACS that did not answer is asked for its listing again after this time."""
LANE_THREADS, LANE_WAITING, LISTING_THREADS, FRAME_THREADS = 16, 128, 4, 32
MAX_FRAMES_AT_ONCE = 32
"""Frames of one request: addresses stay short, and answers small."""
FRAMES_WORTH_A_REQUEST = 4
"""Fewer are not divided among several requests: each costs the PACS some milliseconds."""
_PER_FRAME, _PLANE_POSITION, _COLUMN, _ROW, _HEIGHT = "52009230", "0048021A", "0048021E", "0048021F", "0040074A"

logger = logging.getLogger(__name__)


def pacs_roots(locations: Sequence[str], settings: Sequence[PacsSettings]) -> list[PacsRoot]:
    """The roots at `locations`, in order, each as its settings say. Raises ValueError, OSError for bad ones."""
    by_root = {one.root: one for one in settings}
    wanted = [PacsSettings.model_validate({"root": location}) for location in locations]
    return [PacsRoot(by_root.get(one.root, one)) for one in wanted]


class PacsRoot:
    """One service. `listed`: it has answered at least once since the start."""

    def __init__(self, settings: PacsSettings, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises OSError for a certificate or a password that cannot be read."""
        self.identity = settings.root
        self.lane = BoundedLane(
            "pacs",
            threads=LANE_THREADS,
            waiting=LANE_WAITING,
            listing=LISTING_THREADS,
            refusal="Too many requests wait for the PACS.",
        )
        self.frame_threads = ThreadPoolExecutor(FRAME_THREADS, thread_name_prefix="pacs-frames")
        self.listed = False
        self.web = DicomWeb(settings)
        self.connections = settings.connections
        self._settings = settings
        self._clock = clock
        self._series: dict[str, PacsSeries] = {}
        self._times_listed = 0
        self._listing_failed = False
        self._asked_s: float | None = None
        self._refreshing: Future[None] | None = None
        self._refreshes = ThreadPoolExecutor(1, thread_name_prefix="pacs-refresh")
        self._looks = ThreadPoolExecutor(1, thread_name_prefix="pacs-look")
        self._lock = threading.Lock()

    @property
    def answers(self) -> bool:
        """Whether the last question was answered, and the last listing told something."""
        return self.web.answers and not self._listing_failed

    @property
    def refreshing(self) -> Future[None] | None:
        """The listing under way."""
        return self._refreshing if self._refreshing is not None and not self._refreshing.done() else None

    def refresh(self, max_age_s: float | None = None) -> int:
        """Begin to list again where the last listing is older than `max_age_s`, or else than the settings say. How
        often there was a listing so far.
        """
        with self._lock:
            age_s = self._settings.refresh_s if max_age_s is None else max_age_s
            if not self.answers or not self.listed:
                age_s = min(age_s, AFTER_FAILURE_S)
            now = self._clock()
            if self.refreshing is None and (self._asked_s is None or now - self._asked_s >= age_s):
                self._asked_s = now
                self._refreshing = self._refreshes.submit(self._list)
            return self._times_listed

    def items(self) -> Iterator[tuple[PacsSeries, Stamp]]:
        """The series of the last listing."""
        for series in list(self._series.values()):
            yield series, series.stamp

    def series(self, uid: str) -> PacsSeries | None:
        """One of them."""
        return self._series.get(uid)

    def _list(self) -> None:
        try:
            found = self.web.search(self._settings.filters, self._settings.max_series)
        except Exception as error:  # its text may quote the answer
            said = error.detail if isinstance(error, ServiceError) else type(error).__name__
            if not self._listing_failed:
                logger.warning("a PACS cannot be listed; what is known of its slides stays", extra={"problem": said})
            self._listing_failed = True
            return
        if self._listing_failed:
            logger.warning("the PACS can be listed again")
        self._listing_failed = False
        self._series = {one.series: self._known(one) for one in found}
        self._times_listed += 1
        self.listed = True
        for series in self._series.values():
            if series.is_to_be_looked_at():
                self._looks.submit(series.look_again)

    def _known(self, found: FoundSeries) -> PacsSeries:
        known = self._series.get(found.series)
        return known if known is not None and known.found == found else PacsSeries(self, found)


class PacsSeries:
    """A `SlideItem`: one series of a PACS.

    Where the PACS counts its instances, that tells of those that have come since it was opened. Where not, it is looked
    at again after 1, 2, 4, … listings, so that one that still comes in is not served in part for good.
    """

    def __init__(self, root: PacsRoot, found: FoundSeries) -> None:
        self.root = root
        self.found = found
        self.ids = DicomIds(found.study, found.series, found.accession)
        self.relative = f"{found.study}/{found.series}"
        self.name = series_name(found.series)
        self.lane = root.lane
        self.stamp: Stamp = (found.instances or 0, "")
        self._opened_with: str | None = None
        self._listings, self._look_after = 0, 1

    def is_to_be_looked_at(self) -> bool:
        """Asked once after each listing."""
        if self.found.instances is not None or self._opened_with is None:
            return False
        self._listings += 1
        return self._listings == self._look_after

    def look_again(self) -> None:
        """Learn whether instances have come."""
        before = self.stamp
        with contextlib.suppress(ServiceError):
            self._instances()
            self._look_after = 1 if self.stamp != before else 2 * self._look_after
        self._listings = 0

    def renewed(self) -> tuple[PacsSeries, Stamp] | None:
        now = self.root.series(self.ids.series)
        return None if now is None else (now, now.stamp)

    def open(self, tiles: TileCache) -> OpenedSlide:
        with damage_is_a_problem():
            return self._opened(tiles)

    def _opened(self, tiles: TileCache) -> OpenedSlide:
        instances = self._instances()
        images = [image for image in map(image_of_metadata, instances.values()) if image is not None]
        reader = DicomReader(images, self._source, _WebFrames(self.root, self.ids, images), tiles)
        return OpenedSlide(reader, lambda: series_fingerprint(instances))

    def _source(self, level_uids: Sequence[str]) -> DicomSource:
        """Outlives the open slide, so it holds UIDs only."""
        ids, store = self.ids, self.root.web.store
        return DicomSource(ids.study, ids.series, ids.accession, lambda: self._headers(level_uids), store)

    def _instances(self) -> dict[str, Json]:
        """Headers of the whole slide images by SOP instance UID."""
        found = {}
        for dataset in self.root.web.metadata(self.ids.study, self.ids.series):
            uid = value_of(dataset, "00080018")
            if value_of(dataset, "00080016") == WHOLE_SLIDE and isinstance(uid, str) and is_uid(uid):
                found[uid] = dataset
        if not found:
            raise UnreadableSlide("The series holds no whole slide image.")
        if self.found.instances is None:
            self._note(series_fingerprint(found))
        return found

    def _note(self, print_: str) -> None:
        """The stamp changes once the instances are others than those that the slide was first opened with."""
        if self._opened_with is None:
            self._opened_with = print_
        self.stamp = (0, "" if print_ == self._opened_with else print_)

    def _headers(self, uids: Sequence[str]) -> list[pydicom.Dataset]:
        instances = self._instances()
        if not set(uids) <= set(instances):
            raise UnreadableSlide("The series has changed; ask again.")
        return [_dataset(instances[uid]) for uid in uids]


class _WebFrames:
    """A `FrameSource` over DICOMweb."""

    def __init__(self, root: PacsRoot, ids: DicomIds, images: Sequence[SlideImage]) -> None:
        self.threads = root.frame_threads
        self._root = root
        self._ids = ids
        self._bytes = {image.sop_uid: image.tile[0] * image.tile[1] * 3 for image in images}

    def calls(self, count: int) -> int:
        side_by_side = min(math.ceil(count / FRAMES_WORTH_A_REQUEST), self._root.connections)
        return max(math.ceil(count / MAX_FRAMES_AT_ONCE), side_by_side)

    def frames(self, sop_uid: str, numbers: Sequence[int]) -> list[bytes]:
        instance = (self._ids.study, self._ids.series, sop_uid)
        return self._root.web.frames(instance, numbers, self._bytes[sop_uid])


def image_of_metadata(metadata: Json) -> SlideImage | None:
    """None for an image that may not be shown. Raises `UnreadableSlide`, `NotBrightfield`."""
    header = _dataset({tag: element for tag, element in metadata.items() if tag != _PER_FRAME})
    if not is_shown(header):
        return None
    told = value_of(metadata, "00083002")  # not by every service
    syntax = told if isinstance(told, str) else None
    if _PER_FRAME not in metadata or is_full(header):
        return slide_image(header, syntax)
    return slide_image(header, syntax, _places(metadata[_PER_FRAME]))


def _places(per_frame: Any) -> FramePlaces:
    """Where each frame lies; read straight from JSON, as pydicom takes seconds for the frames of a large slide."""
    try:
        places = [value_of(group, _PLANE_POSITION) for group in per_frame["Value"]]
        numbers = [(value_of(at, _COLUMN), value_of(at, _ROW), value_of(at, _HEIGHT) or 0) for at in places]
        return np.array(numbers, np.float64).reshape(-1, 3)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UnreadableSlide(NO_PLACES) from error


def _dataset(metadata: Json) -> pydicom.Dataset:
    """Bulk data stays where it is: an address in an answer is not one to go to."""
    try:
        return pydicom.Dataset.from_json(dict(metadata), bulk_data_uri_handler=lambda *_: None)
    except Exception as error:  # whatever JSON of the wrong kind leads to
        raise UnreadableSlide("The PACS's header of the slide is damaged.") from error
