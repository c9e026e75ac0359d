"""Which slides there are: opaque ids over one or several roots, and open readers that many requests share.

Everything here may block on a disk or a network: callers on the event loop use a thread.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from wsisam_service.errors import InvalidRequest, ServiceError, UnknownSlide, UnreadableSlide
from wsisam_service.slides.opening import open_slide
from wsisam_service.slides.reader import RgbImage, SlideInfo, SlideReader
from wsisam_service.slides.roots import Root, SlideFile, Stamp
from wsisam_service.slides.source import fingerprint
from wsisam_service.slides.tiles import DEFAULT_TILE_CACHE_BYTES, TileCache
from wsisam_service.views import believable_mpp

RESCAN_S = 2.0
"""Roots are listed again at most this often."""
FRESH_S = 1.0
"""For this long a file counts as unchanged without a look at the disk."""
PROBLEM_S = 30.0
"""A slide that could not be opened is tried again after this time, for the network may be back."""
LISTING_THREADS = 8
ID_LENGTH = 20
"""Base32 characters of a slide id: 100 bits."""


class Slide(SlideReader):
    """A slide of the catalogue, readable like its reader. `name` is the file's name without folders.

    It stays bound to the content that `fingerprint` names: once the file is replaced, reading raises
    `UnreadableSlide`, and `Catalogue.get` gives the new one.
    """

    def __init__(
        self, slide_id: str, name: str, print_: str, info: SlideInfo, reader: Callable[[], SlideReader]
    ) -> None:
        self.id = slide_id
        self.name = name
        self.fingerprint = print_
        self.info = info
        self._reader = reader

    def read_region(self, level: int, x: int, y: int, width: int, height: int) -> RgbImage:
        return self._reader().read_region(level, x, y, width, height)

    def slide_mpp(self, default: float) -> tuple[float, list[str]]:
        """µm per level-0 pixel to count with, and the warnings that every answer gives where it is `default`."""
        mpp = self.info.mpp
        if mpp is not None and believable_mpp(mpp):
            return mpp, []
        said = (
            "The slide gives no pixel size" if mpp is None else f"The slide's pixel size of {mpp:g} µm is not believed"
        )
        return default, [f"{said}; one pixel counts as {default:g} µm, and areas in µm² are not to be relied on."]


@dataclass(frozen=True, slots=True)
class ListedSlide:
    """One line of a listing: the open slide, or the problem it has."""

    id: str
    name: str
    slide: Slide | None
    problem: ServiceError | None


@dataclass(frozen=True, slots=True)
class SlidePage:
    """A part of the listing; `next` is the cursor of the next one, None at the end."""

    slides: Sequence[ListedSlide]
    next: str | None


@dataclass(slots=True)
class _Entry:
    """A file known to the catalogue, and what came of opening it."""

    id: str
    file: SlideFile
    stamp: Stamp
    checked_s: float
    lock: threading.Lock = field(default_factory=threading.Lock)
    slide: Slide | None = None
    problem: ServiceError | None = None
    problem_s: float = 0.0

    def lies_in(self, roots: AbstractSet[str] | None) -> bool:
        """Whether the file's root is one of `roots`; None is all."""
        return roots is None or self.file.root.identity in roots

    @property
    def order(self) -> tuple[str, str]:
        return self.file.name.casefold(), self.id


class Catalogue:
    """The slides of `roots`: folders, single files or fsspec URLs. `clock` gives seconds."""

    def __init__(
        self,
        roots: Sequence[str],
        *,
        tile_cache_bytes: int = DEFAULT_TILE_CACHE_BYTES,
        open_slides: int = 64,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._roots = [Root(location) for location in roots]
        self._tiles = TileCache(tile_cache_bytes)
        self._open_slides = open_slides
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        self._scanned_s: float | None = None
        self._scanning = threading.Lock()
        self._readers: OrderedDict[tuple[str, Stamp], SlideReader] = OrderedDict()
        self._readers_lock = threading.Lock()

    def readable(self) -> bool:
        """Whether every root can be listed now."""
        return all(root.readable() for root in self._roots)

    @property
    def root_names(self) -> Sequence[str]:
        """What the roots are called, in the order given."""
        return [root.identity for root in self._roots]

    def get(self, slide_id: str, roots: AbstractSet[str] | None = None) -> Slide:
        """The slide of `slide_id` as its file is now, if it lies in a root named in `roots` (None: any). Raises
        `UnknownSlide`, also after the same time for one in another root, `UnreadableSlide`, `NotBrightfield`.
        """
        if self._entry(slide_id, roots) is None:
            self.rescan()
        if self._entry(slide_id, roots) is None:
            raise UnknownSlide("There is no slide with this id.")
        entry = self._current(slide_id)
        with entry.lock:
            if entry.problem is not None and self._clock() - entry.problem_s < PROBLEM_S:
                raise type(entry.problem)(entry.problem.detail)
            if entry.slide is None:
                entry.slide = self._open(entry)
            return entry.slide

    def list(
        self, q: str = "", limit: int = 100, cursor: str | None = None, roots: AbstractSet[str] | None = None
    ) -> SlidePage:
        """Slides whose names contain `q` in any case, by name, from `cursor` on; those of the roots named in `roots`,
        of all with None. Raises `InvalidRequest`.
        """
        after = None if cursor is None else _decode_cursor(cursor)
        self.rescan()
        wanted = q.casefold()
        seen = (entry for entry in self._entries.values() if entry.lies_in(roots))
        entries = sorted((entry for entry in seen if wanted in entry.file.name.casefold()), key=lambda e: e.order)
        rest = [entry for entry in entries if after is None or entry.order > after]
        page = rest[: max(1, limit)]
        with ThreadPoolExecutor(LISTING_THREADS, thread_name_prefix="listing") as threads:
            slides = [listed for listed in threads.map(self._listed, page) if listed is not None]
        return SlidePage(slides, _encode_cursor(page[-1].order) if len(rest) > len(page) else None)

    def drop_tiles(self, slide_id: str) -> None:
        """Forget decoded pixels of a slide; it stays open."""
        with self._readers_lock:
            readers = [reader for (known, _), reader in self._readers.items() if known == slide_id]
        for reader in readers:
            reader.drop_tiles()

    def rescan(self) -> None:
        """List the roots, unless that was done a moment ago. A root that cannot be listed keeps its slides."""
        with self._scanning:
            now = self._clock()
            if self._scanned_s is not None and now - self._scanned_s < RESCAN_S:
                return
            found: dict[str, _Entry] = {}
            seen: Counter[str] = Counter()
            for root in self._roots:
                seen[root.identity] += 1
                found |= self._scan(root, f"{root.identity}#{seen[root.identity]}", now)
            self._entries = found
            self._scanned_s = self._clock()

    def _scan(self, root: Root, identity: str, now: float) -> dict[str, _Entry]:
        found: dict[str, _Entry] = {}
        try:
            for file, stamp in root.files():
                slide_id = _slide_id(identity, file.relative)
                known = self._entries.get(slide_id)
                entry = known if known is not None and known.stamp == stamp else _Entry(slide_id, file, stamp, now)
                entry.checked_s = now
                found[slide_id] = entry
        except OSError:
            return {slide_id: entry for slide_id, entry in self._entries.items() if entry.file.root is root}
        return found

    def _entry(self, slide_id: str, roots: AbstractSet[str] | None) -> _Entry | None:
        entry = self._entries.get(slide_id)
        return entry if entry is not None and entry.lies_in(roots) else None

    def _current(self, slide_id: str) -> _Entry:
        """The entry of `slide_id`, renewed where its file has changed. Raises `UnknownSlide`."""
        entry = self._entries.get(slide_id)
        if entry is None:
            raise UnknownSlide("There is no slide with this id.")
        now = self._clock()
        if now - entry.checked_s < FRESH_S:
            return entry
        try:
            stamp = entry.file.stamp()
        except OSError as error:
            raise UnreadableSlide("The slide's file cannot be reached.") from error
        if stamp is None:
            self._entries.pop(slide_id, None)
            raise UnknownSlide("There is no slide with this id any more.")
        if stamp != entry.stamp:
            entry = self._entries[slide_id] = _Entry(slide_id, entry.file, stamp, now)
        entry.checked_s = now
        return entry

    def _listed(self, entry: _Entry) -> ListedSlide | None:
        try:
            return ListedSlide(entry.id, entry.file.name, self.get(entry.id), None)
        except UnknownSlide:
            return None
        except ServiceError as problem:
            return ListedSlide(entry.id, entry.file.name, None, problem)

    def _open(self, entry: _Entry) -> Slide:
        entry.problem = None
        try:
            source = entry.file.open()
            reader = open_slide(source, self._tiles)
            print_ = fingerprint(source)
        except OSError as error:
            entry.problem = UnreadableSlide("The slide's file cannot be read.")
            entry.problem_s = self._clock()
            raise entry.problem from error
        except ServiceError as problem:
            entry.problem, entry.problem_s = problem, self._clock()
            raise
        self._keep(entry, reader)
        return Slide(entry.id, entry.file.name, print_, reader.info, lambda: self._reader(entry))

    def _reader(self, entry: _Entry) -> SlideReader:
        """The open reader of `entry`, opened again where it had to make room."""
        with entry.lock:
            with self._readers_lock:
                reader = self._readers.get((entry.id, entry.stamp))
                if reader is not None:
                    self._readers.move_to_end((entry.id, entry.stamp))
                    return reader
            try:
                if entry.file.stamp() != entry.stamp:
                    raise UnreadableSlide("The slide's file has been replaced; ask again.")
                reader = open_slide(entry.file.open(), self._tiles)
            except OSError as error:
                raise UnreadableSlide("The slide's file cannot be read.") from error
            self._keep(entry, reader)
            return reader

    def _keep(self, entry: _Entry, reader: SlideReader) -> None:
        """Readers that have to go are dropped, not closed: whoever still reads from one keeps it alive."""
        with self._readers_lock:
            self._readers[entry.id, entry.stamp] = reader
            while len(self._readers) > self._open_slides:
                self._readers.popitem(last=False)


def _slide_id(identity: str, relative: str) -> str:
    digest = hashlib.sha256(f"{identity}\n{relative}".encode()).digest()
    return base64.b32encode(digest).decode("ascii").lower()[:ID_LENGTH]


def _encode_cursor(order: tuple[str, str]) -> str:
    return base64.urlsafe_b64encode(json.dumps(order).encode()).decode("ascii")


def _decode_cursor(cursor: str) -> tuple[str, str]:
    try:
        name, slide_id = json.loads(base64.urlsafe_b64decode(cursor.encode("ascii")))
    except (ValueError, TypeError, binascii.Error) as error:
        raise InvalidRequest("The cursor is not one that this service gave.") from error
    return str(name), str(slide_id)
