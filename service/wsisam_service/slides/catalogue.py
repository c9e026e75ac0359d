"""Which slides there are: opaque ids over one or several roots, and open readers that many requests share.

What is not async here may block on a disk or a network: callers on the event loop use a thread.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from wsisam_service.dicom.pacs_settings import PacsSettings, is_pacs
from wsisam_service.errors import PacsUnavailable, ServiceError, UnknownSlide, UnreadableSlide
from wsisam_service.slides.items import EVERY_SLIDE, DicomQuery, OpenedSlide, SlideItem, Stamp
from wsisam_service.slides.lanes import LISTING_LANE, OPENING_LANE, READINESS_LANE, own_lane
from wsisam_service.slides.listing import ListedSlide, SlidePage, decode_cursor, encode_cursor
from wsisam_service.slides.pacs import PacsRoot, pacs_roots
from wsisam_service.slides.reader import SlideReader
from wsisam_service.slides.roots import Root
from wsisam_service.slides.slide import Slide
from wsisam_service.slides.source import REPLACED
from wsisam_service.slides.tiles import DEFAULT_TILE_CACHE_BYTES, TileCache

RESCAN_S = 2.0
"""Roots are listed again at most this often."""
FRESH_S = 1.0
"""For this long a file counts as unchanged without a look at the disk."""
PROBLEM_S = 30.0
"""A slide that could not be opened is tried again after this time, for the network may be back."""
LISTING_THREADS = 8
LISTING_WAIT_S = 3.0
"""A listing waits this long for a PACS; what it has not told by then is named with that problem."""
ID_LENGTH = 20
"""Base32 characters of a slide id: 100 bits."""


@dataclass(slots=True)
class _Entry:
    """A slide known to the catalogue, and what came of opening it."""

    id: str
    item: SlideItem
    stamp: Stamp
    checked_s: float
    lock: threading.Lock = field(default_factory=threading.Lock)
    slide: Slide | None = None
    problem: ServiceError | None = None
    problem_s: float = 0.0
    told: Future[ListedSlide | None] | None = None
    """What a listing waits for, where a PACS has to be asked."""
    asked: asyncio.Future[Slide] | None = None
    """The look at it and the opening under way, for all on the event loop who ask meanwhile."""

    def lies_in(self, roots: AbstractSet[str] | None) -> bool:
        """Whether the file's root is one of `roots`; None is all."""
        return roots is None or self.item.root.identity in roots

    @property
    def order(self) -> tuple[str, str]:
        return self.item.name.casefold(), self.id


class Catalogue:
    """The slides of `roots`: folders, single files, fsspec URLs or DICOMweb services, the latter as `pacs` says.
    `clock` gives seconds.
    """

    def __init__(
        self,
        roots: Sequence[str],
        *,
        tile_cache_bytes: int = DEFAULT_TILE_CACHE_BYTES,
        open_slides: int = 64,
        pacs: Sequence[PacsSettings] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pacs = pacs_roots([location for location in roots if is_pacs(location)], pacs)
        of_pacs = iter(self._pacs)
        self._roots = [next(of_pacs) if is_pacs(location) else Root(location) for location in roots]
        self._tiles = TileCache(tile_cache_bytes)
        self._open_slides = open_slides
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        self._pacs_listed: list[int] = []
        self._scanned_s: float | None = None
        self._scanning = threading.Lock()
        self._readers: OrderedDict[tuple[str, Stamp], SlideReader] = OrderedDict()
        self._readers_lock = threading.Lock()
        self._looking: asyncio.Future[bool] | None = None

    def readable(self) -> bool:
        """Whether every root of files can be listed now."""
        return all(root.readable() for root in self._roots if isinstance(root, Root))

    async def is_readable(self) -> bool:
        """As `readable`, for the event loop: one look for all who ask meanwhile, so that no crowd keeps others out."""
        if self._looking is None:
            self._looking = asyncio.ensure_future(READINESS_LANE.run(self.readable))
            self._looking.add_done_callback(self._looked)
        return await asyncio.shield(self._looking)

    @property
    def root_names(self) -> Sequence[str]:
        """What the roots are called, in the order given."""
        return [root.identity for root in self._roots]

    def pacs_states(self) -> Sequence[str]:
        """A line for each PACS that does not answer; its slides do not count for `readable`, others go on."""
        return [f"PACS root {number} does not answer" for number, pacs in enumerate(self._pacs, 1) if not pacs.answers]

    async def open(self, slide_id: str, roots: AbstractSet[str] | None = None) -> Slide:
        """As `get`, for the event loop. Whoever asks for a slide that is being looked at or opened waits for that, and
        takes no thread; a slide of a PACS is waited for in that PACS's lane, one that nobody knows yet where listings
        wait. Also `Overloaded`.
        """
        if self._entry(slide_id, roots) is None:
            await LISTING_LANE.run(self._look_for, slide_id, roots)
        entry = self._entry(slide_id, roots)
        if entry is None:
            raise UnknownSlide("There is no slide with this id any more.")
        if entry.slide is not None and self._is_fresh(entry):
            return entry.slide
        if entry.asked is None:
            entry.asked = asyncio.ensure_future(self._ask(entry))
            entry.asked.add_done_callback(_look_at)
        return await asyncio.shield(entry.asked)

    def get(self, slide_id: str, roots: AbstractSet[str] | None = None) -> Slide:
        """The slide of `slide_id` as it is now, if it lies in a root named in `roots` (None: any). Raises
        `UnknownSlide`, also after the same time for one in another root, `UnreadableSlide`, `NotBrightfield`, and
        `PacsUnavailable`, also where it may lie in a PACS that has never answered.
        """
        self._look_for(slide_id, roots)
        return self._opened(self._current(slide_id))

    def list(
        self,
        q: str = "",
        limit: int = 100,
        cursor: str | None = None,
        roots: AbstractSet[str] | None = None,
        dicom: DicomQuery = EVERY_SLIDE,
    ) -> SlidePage:
        """Slides whose names contain `q` in any case and that `dicom` means, by name, from `cursor` on; those of the
        roots named in `roots`, of all with None. Raises `InvalidRequest`.
        """
        after = None if cursor is None else decode_cursor(cursor)
        if dicom != EVERY_SLIDE:  # asked for by name: it may have come to the PACS a moment ago
            for pacs in self._pacs:
                pacs.refresh(max_age_s=RESCAN_S)
        self.rescan()
        self._await_pacs(roots, all_=dicom != EVERY_SLIDE)
        wanted = q.casefold()
        known = list(self._entries.values())  # another request may find a file gone meanwhile
        seen = (entry for entry in known if entry.lies_in(roots) and dicom.means(entry.item.ids))
        entries = sorted((entry for entry in seen if wanted in entry.item.name.casefold()), key=lambda e: e.order)
        rest = [entry for entry in entries if after is None or entry.order > after]
        page = rest[: max(1, limit)]
        told = self._ask_pacs(page)
        here = [entry for entry in page if entry.id not in told]
        with ThreadPoolExecutor(LISTING_THREADS, thread_name_prefix="listing") as threads:
            told |= zip((entry.id for entry in here), threads.map(self._listed, here), strict=True)
        slides = [listed for entry in page if (listed := told[entry.id]) is not None]
        return SlidePage(slides, encode_cursor(page[-1].order) if len(rest) > len(page) else None)

    def fingerprints(self) -> set[str]:
        """Of the slides that have been opened."""
        return {entry.slide.fingerprint for entry in list(self._entries.values()) if entry.slide is not None}

    def drop_tiles(self, fingerprints: AbstractSet[str]) -> None:
        """Forget decoded pixels of the slides with these fingerprints, with those that are being read. The slides are
        opened again for whoever reads next.
        """
        entries = list(self._entries.values())
        ids = {entry.id for entry in entries if entry.slide is not None and entry.slide.fingerprint in fingerprints}
        with self._readers_lock:
            gone = [self._readers.pop(known) for known in list(self._readers) if known[0] in ids]
        for reader in gone:
            reader.drop_tiles()

    def rescan(self) -> None:
        """List the files, unless that was done a moment ago, and take over what the PACS's have told. A root that
        cannot be listed keeps its slides.
        """
        with self._scanning:
            now = self._clock()
            due = self._scanned_s is None or now - self._scanned_s >= RESCAN_S
            listed = [pacs.refresh() for pacs in self._pacs]
            if not due and listed == self._pacs_listed:
                return
            found: dict[str, _Entry] = {}
            seen: Counter[str] = Counter()
            for root in self._roots:
                seen[root.identity] += 1
                if due or isinstance(root, PacsRoot):
                    found |= self._scan(root, f"{root.identity}#{seen[root.identity]}", now)
                else:
                    found |= self._of_root(root)
            self._entries, self._pacs_listed = found, listed
            self._drop_readers()
            if due:
                self._scanned_s = self._clock()

    def _scan(self, root: Root | PacsRoot, identity: str, now: float) -> dict[str, _Entry]:
        found: dict[str, _Entry] = {}
        try:
            for item, stamp in root.items():
                slide_id = _slide_id(identity, item.relative)
                known = self._entries.get(slide_id)
                entry = known if known is not None and known.stamp == stamp else _Entry(slide_id, item, stamp, now)
                entry.item, entry.checked_s = item, now
                found[slide_id] = entry
        except OSError:
            return self._of_root(root)
        return found

    def _of_root(self, root: Root | PacsRoot) -> dict[str, _Entry]:
        return {entry.id: entry for entry in list(self._entries.values()) if entry.item.root is root}

    def _look_for(self, slide_id: str, roots: AbstractSet[str] | None) -> None:
        """Learn of `slide_id` where nobody knows it yet. Raises `UnknownSlide` and `PacsUnavailable`."""
        if self._entry(slide_id, roots) is None:
            self.rescan()
        if self._entry(slide_id, roots) is None:
            self._await_pacs(roots)
        if self._entry(slide_id, roots) is None:
            if any(not pacs.listed and (roots is None or pacs.identity in roots) for pacs in self._pacs):
                raise PacsUnavailable("A PACS that may have this slide has not answered yet.")
            raise UnknownSlide("There is no slide with this id.")

    def _await_pacs(self, roots: AbstractSet[str] | None, *, all_: bool = False) -> None:
        """Wait a moment for the listings under way of each PACS that has never been listed, or of all."""
        asked = [pacs for pacs in self._pacs if roots is None or pacs.identity in roots]
        if waited := [pacs.refreshing for pacs in asked if pacs.refreshing and (all_ or not pacs.listed)]:
            wait(waited, timeout=LISTING_WAIT_S)
        if self._pacs:  # also where the listing was done before anybody waited
            self.rescan()

    def _ask_pacs(self, entries: Sequence[_Entry]) -> dict[str, ListedSlide | None]:
        """What comes of opening slides of a PACS, as far as it is told soon; asking goes on behind the answer."""
        asked: dict[str, Future[ListedSlide | None]] = {}
        for entry in entries:
            threads = entry.item.lane.listing
            if threads is not None:
                if entry.told is None or (entry.told.done() and entry.slide is None):
                    entry.told = threads.submit(self._listed, entry)
                asked[entry.id] = entry.told
        wait(asked.values(), timeout=LISTING_WAIT_S)
        late = PacsUnavailable("The PACS has not told of this slide yet; ask again.")
        return {
            entry.id: told.result() if told.done() else ListedSlide(entry.id, entry.item.name, None, late)
            for entry in entries
            if (told := asked.get(entry.id)) is not None
        }

    def _entry(self, slide_id: str, roots: AbstractSet[str] | None) -> _Entry | None:
        entry = self._entries.get(slide_id)
        return entry if entry is not None and entry.lies_in(roots) else None

    def _current(self, slide_id: str) -> _Entry:
        """The entry of `slide_id`, renewed where its file has changed. Raises `UnknownSlide`."""
        entry = self._entries.get(slide_id)
        if entry is None:
            raise UnknownSlide("There is no slide with this id.")
        if self._is_fresh(entry):
            return entry
        now = self._clock()
        try:
            renewed = entry.item.renewed()
        except OSError as error:
            raise UnreadableSlide("The slide's file cannot be reached.") from error
        if renewed is None:
            self._entries.pop(slide_id, None)
            self._drop_readers()
            raise UnknownSlide("There is no slide with this id any more.")
        item, stamp = renewed
        if stamp != entry.stamp:
            entry = self._entries[slide_id] = _Entry(slide_id, item, stamp, now)
            self._drop_readers()
        entry.item, entry.checked_s = item, now
        return entry

    def _looked(self, looking: asyncio.Future[bool]) -> None:
        self._looking = None
        _look_at(looking)

    def _is_fresh(self, entry: _Entry) -> bool:
        return self._clock() - entry.checked_s < FRESH_S

    async def _ask(self, entry: _Entry) -> Slide:
        """What `get` does: a look in the threads of the slide's lane, and files are opened in others."""
        try:
            current = await entry.item.lane.run(self._current, entry.id)
            if current.slide is not None:
                return current.slide
            return await own_lane(OPENING_LANE, current.item.lane).run(self._opened, current)
        finally:
            entry.asked = None

    def _opened(self, entry: _Entry) -> Slide:
        with entry.lock:
            if entry.problem is not None and self._clock() - entry.problem_s < PROBLEM_S:
                raise entry.problem.anew()
            if entry.slide is None:
                entry.slide = self._open(entry)
            return entry.slide

    def _listed(self, entry: _Entry) -> ListedSlide | None:
        try:
            return ListedSlide(entry.id, entry.item.name, self.get(entry.id), None)
        except UnknownSlide:
            return None
        except ServiceError as problem:
            return ListedSlide(entry.id, entry.item.name, None, problem.anew())

    def _open(self, entry: _Entry) -> Slide:
        entry.problem = None
        try:
            opened = entry.item.open(self._tiles)
            print_ = opened.fingerprint()
        except OSError as error:
            entry.problem, entry.problem_s = UnreadableSlide("The slide's file cannot be read."), self._clock()
            raise entry.problem.anew() from error
        except PacsUnavailable:
            raise  # nothing is wrong with the slide, and the PACS knows how long it is left alone
        except ServiceError as problem:
            entry.problem, entry.problem_s = problem.anew(), self._clock()
            raise
        self._keep(entry, opened)
        info, lane = opened.reader.info, entry.item.lane
        return Slide(entry.id, entry.item.name, print_, info, lambda: self._reader(entry), lane=lane)

    def _reader(self, entry: _Entry) -> SlideReader:
        """The open reader of `entry`, opened again where it had to make room."""
        with entry.lock:
            with self._readers_lock:
                reader = self._readers.get((entry.id, entry.stamp))
                if reader is not None:
                    self._readers.move_to_end((entry.id, entry.stamp))
                    return reader
            try:
                renewed = entry.item.renewed()
                if renewed is None or renewed[1] != entry.stamp:
                    raise UnreadableSlide(REPLACED)
                opened = entry.item.open(self._tiles)
            except OSError as error:
                raise UnreadableSlide("The slide's file cannot be read.") from error
            self._keep(entry, opened)
            return opened.reader

    def _keep(self, entry: _Entry, opened: OpenedSlide) -> None:
        with self._readers_lock:
            self._readers[entry.id, entry.stamp] = opened.reader
        self._drop_readers()

    def _drop_readers(self) -> None:
        """Those of slides that are gone or others by now, and those used longest ago where there are too many.

        They are dropped, not closed: whoever still reads from one keeps it alive. Their tiles go with them: nobody
        would find those again, and no purge either.
        """
        gone = []
        with self._readers_lock:
            for slide_id, stamp in list(self._readers):
                entry = self._entries.get(slide_id)
                if entry is None or entry.stamp != stamp:
                    gone.append(self._readers.pop((slide_id, stamp)))
            while len(self._readers) > self._open_slides:
                gone.append(self._readers.popitem(last=False)[1])
        for reader in gone:
            reader.drop_tiles()


def _look_at(asked: asyncio.Future[Any]) -> None:
    """Whoever waited may be gone, and asyncio tells of what nobody has looked at."""
    _ = asked.cancelled() or asked.exception()


def _slide_id(identity: str, relative: str) -> str:
    told = f"{identity}\n{relative}".encode("utf-8", "surrogateescape")  # a file's name need not be UTF-8
    digest = hashlib.sha256(told).digest()
    return base64.b32encode(digest).decode("ascii").lower()[:ID_LENGTH]
