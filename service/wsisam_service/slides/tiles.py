"""Decoded tiles of all open slides, bounded in bytes: neighbouring views, and a view and its wider one, share them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsisam_service import metrics

DEFAULT_TILE_CACHE_BYTES = 64 << 20


@dataclass(slots=True, eq=False)
class TileOwner:
    """Stands in the keys of tiles for the open slide that they are of. Once they are dropped it has no more."""

    dropped: bool = False


TileKey = tuple[TileOwner, int, int]
"""(owner, level, index of the tile in its level)."""


class TileCache:
    """Least recently used tiles go first. Two threads that miss the same tile both decode it: that is cheaper than
    waiting for each other."""

    def __init__(self, max_bytes: int = DEFAULT_TILE_CACHE_BYTES) -> None:
        self.max_bytes = max_bytes
        self._tiles: OrderedDict[TileKey, npt.NDArray[np.uint8]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        metrics.CACHE_BYTES.labels("tiles").set_function(lambda: self._bytes)

    @property
    def nbytes(self) -> int:
        """Bytes of pixels held."""
        return self._bytes

    def drop(self, owner: TileOwner) -> None:
        """Forget the tiles of one open slide for good: what is being read of it is not held either."""
        with self._lock:
            owner.dropped = True
            for key in [key for key in self._tiles if key[0] is owner]:
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
        """Hold `tile`, unless its owner's are dropped; those used longest ago make room."""
        with self._lock:
            if not key[0].dropped and key not in self._tiles and tile.nbytes <= self.max_bytes:
                self._tiles[key] = tile
                self._bytes += tile.nbytes
                while self._bytes > self.max_bytes:
                    self._bytes -= self._tiles.popitem(last=False)[1].nbytes
