"""Decoded tiles of all open slides, bounded in bytes: neighbouring views, and a view and its wider one, share them."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from wsisam_service import metrics

DEFAULT_TILE_CACHE_BYTES = 64 << 20

TileKey = tuple[int, int, int]
"""(reader's number, level, index of the tile in its level)."""


class TileCache:
    """Least recently used tiles go first. Two threads that miss the same tile both decode it: that is cheaper than
    waiting for each other."""

    def __init__(self, max_bytes: int = DEFAULT_TILE_CACHE_BYTES) -> None:
        self.max_bytes = max_bytes
        self._tiles: OrderedDict[TileKey, npt.NDArray[np.uint8]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        metrics.CACHE_BYTES.labels("tiles").set_function(lambda: self._bytes)

    @property
    def nbytes(self) -> int:
        """Bytes of pixels held."""
        return self._bytes

    def new_reader(self) -> int:
        """A number for the keys of a newly opened slide."""
        return next(self._numbers)

    def drop(self, number: int) -> None:
        """Forget the tiles of one reader."""
        with self._lock:
            for key in [key for key in self._tiles if key[0] == number]:
                self._bytes -= self._tiles.pop(key).nbytes

    def get(self, key: TileKey, decode: Callable[[], npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
        """The tile of `key`, decoded with `decode` where it is not held."""
        tile = self.held(key)
        if tile is None:
            tile = decode()
            self.keep(key, tile)
        return tile

    def held(self, key: TileKey) -> npt.NDArray[np.uint8] | None:
        """The tile of `key`, where it is held."""
        with self._lock:
            tile = self._tiles.get(key)
            if tile is not None:
                self._tiles.move_to_end(key)
            return tile

    def keep(self, key: TileKey, tile: npt.NDArray[np.uint8]) -> None:
        """Hold `tile`; those used longest ago make room."""
        with self._lock:
            if key not in self._tiles and tile.nbytes <= self.max_bytes:
                self._tiles[key] = tile
                self._bytes += tile.nbytes
                while self._bytes > self.max_bytes:
                    self._bytes -= self._tiles.popitem(last=False)[1].nbytes
