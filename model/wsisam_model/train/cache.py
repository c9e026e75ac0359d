"""Embeddings of training views, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from wsisam_model.embedding import Embedding
from wsisam_model.errors import CheckpointError
from wsisam_model.train.samples import Pixels

Encode = Callable[[Sequence[Pixels]], Sequence[Embedding]]
Embed = Callable[[Pixels], Embedding]
"""The embedding of a view, from a cache or from the encoder."""
BATCH = 4
HELD_BATCH = 64


def _silent(done: int, total: int) -> None:
    """Progress that nobody watches."""


class EmbeddingCache:
    """Embeddings in float16, one file each, named by the encoder's `prefix` and the view's pixels.

    Whatever else differs between runs (prompts, adapters, splits), the same pixels are encoded once.
    """

    def __init__(self, folder: Path, prefix: str, encode: Encode) -> None:
        self._folder, self._prefix, self._encode = folder, prefix, encode
        folder.mkdir(parents=True, exist_ok=True)

    def fill(self, views: Iterable[Pixels], progress: Callable[[int, int], None] = _silent) -> None:
        """Encode those of `views` that are not there yet; `progress` hears how many of how many are done."""
        wanted = {self.path(view): view for view in views}
        missing = [(path, view) for path, view in wanted.items() if not path.exists()]
        for start in range(0, len(missing), BATCH):
            part = missing[start : start + BATCH]
            for (path, _), embedding in zip(part, self._encode([view for _, view in part]), strict=True):
                _write(path, embedding)
            progress(start + len(part), len(missing))

    def __call__(self, view: Pixels) -> Embedding:
        """The embedding of one view, encoded now if need be; float16 on the CPU."""
        path = self.path(view)
        try:
            return Embedding.from_bytes(path.read_bytes())
        except (FileNotFoundError, CheckpointError):  # not there yet, or damaged
            _write(path, self._encode([view])[0])
        return Embedding.from_bytes(path.read_bytes())

    def path(self, view: Pixels) -> Path:
        """The file of a view's embedding."""
        name = hashlib.sha256(self._prefix.encode() + repr(view.shape).encode() + view.tobytes()).hexdigest()[:32]
        return self._folder / f"{name}.safetensors"


class HeldEmbeddings:
    """Embeddings in float16 on the encoder's device, for machines that encode faster than they read from disk.

    A view is known by its array, so it has to stay what it is while this is in use.
    """

    def __init__(self, encode: Encode) -> None:
        self._encode = encode
        self._held: dict[int, tuple[Pixels, Embedding]] = {}

    def fill(self, views: Iterable[Pixels], progress: Callable[[int, int], None] = _silent) -> None:
        """Encode those of `views` that are not there yet; `progress` hears how many of how many are done."""
        missing = list({id(view): view for view in views if id(view) not in self._held}.values())
        for start in range(0, len(missing), HELD_BATCH):
            part = missing[start : start + HELD_BATCH]
            for view, embedding in zip(part, self._encode(part), strict=True):
                self._held[id(view)] = view, embedding.halved()
            progress(start + len(part), len(missing))

    def __call__(self, view: Pixels) -> Embedding:
        """The embedding of one view, encoded now if need be."""
        if id(view) not in self._held:
            self.fill([view])
        return self._held[id(view)][1]


def _write(path: Path, embedding: Embedding) -> None:
    """All or nothing, so that an interrupted run leaves no half file."""
    partial = path.with_suffix(f".{os.getpid()}.part")
    partial.write_bytes(embedding.to_bytes())
    partial.replace(path)
