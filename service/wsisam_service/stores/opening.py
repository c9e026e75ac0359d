"""Which store a setting names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from wsisam_service.stores.embeddings import EmbeddingStore, MemoryStore, TieredStore
from wsisam_service.stores.encryption import StoreKey, encrypted
from wsisam_service.stores.folder_store import FolderStore
from wsisam_service.stores.redis_store import RedisStore


def open_store(
    spec: str,
    *,
    namespace: Literal["emb", "refine"],
    memory_bytes: int,
    folder_bytes: int,
    ttl_s: float | None = None,
    keys: Sequence[StoreKey] = (),
) -> TieredStore:
    """The store that a setting names: "memory", or "folder:PATH" or a URL of Redis with memory in front.

    `namespace` keeps embeddings and refine states apart, each with bounds of its own. `keys` encrypt what leaves this
    process. Raises `ValueError`.
    """
    kind, _, location = spec.partition(":")
    stores: list[EmbeddingStore] = [MemoryStore(memory_bytes)]
    if kind == "folder" and location:
        stores.append(encrypted(FolderStore(Path(location) / namespace, folder_bytes), keys))
    elif kind.startswith("redis") and location:
        stores.append(encrypted(RedisStore(spec, namespace), keys))
    elif spec != "memory":
        raise ValueError('the store is "memory", "folder:PATH" or "redis://HOST:PORT/DB"')
    return TieredStore(stores, ttl_s=ttl_s)
