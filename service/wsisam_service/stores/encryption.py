"""A store whose blobs nobody can read, nor change, nor put under another name: AES-256-GCM around any other store.

A blob is magic, key id, nonce and ciphertext; magic, id and the blob's name are authenticated with it. The id is part
of the name in the store below too, so that what no key here opens is simply not there.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import os
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from wsisam_service.jobs import CacheTier, Purges
from wsisam_service.stores.embeddings import Claim, EmbeddingStore, SharedStore, Unclaimed

KEY_BYTES = 32
_MAGIC = b"wsisam-aes-1\n"
_ID_BYTES = 8
_NONCE_BYTES = 12
_HEADER_BYTES = len(_MAGIC) + _ID_BYTES + _NONCE_BYTES


class StoreKey:
    """One AES-256 key. Its id, the beginning of its SHA-256, tells it from others and nothing of itself."""

    def __init__(self, key: bytes) -> None:
        """Raises `ValueError` for anything but 32 bytes."""
        if len(key) != KEY_BYTES:
            raise ValueError(f"a store key is {KEY_BYTES} bytes")
        self._id = hashlib.sha256(key).digest()[:_ID_BYTES]
        self.id = self._id.hex()
        self._cipher = AESGCM(key)

    def seal(self, name: str, blob: bytes) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        return _MAGIC + self._id + nonce + self._cipher.encrypt(nonce, blob, self._bound(name))

    def open(self, name: str, sealed: bytes) -> bytes | None:
        """The blob; None where it was sealed by another key or for another name, or is damaged."""
        if not sealed.startswith(_MAGIC + self._id) or len(sealed) < _HEADER_BYTES:
            return None
        nonce = sealed[_HEADER_BYTES - _NONCE_BYTES : _HEADER_BYTES]
        try:
            return self._cipher.decrypt(nonce, memoryview(sealed)[_HEADER_BYTES:], self._bound(name))
        except InvalidTag:
            return None

    def _bound(self, name: str) -> bytes:
        return _MAGIC + self._id + name.encode()


def parse_keys(text: str) -> list[StoreKey]:
    """Keys of a setting: base64 of 32 bytes each, separated by commas. Raises `ValueError`."""
    try:
        return [StoreKey(base64.b64decode(part, validate=True)) for part in text.split(",") if part.strip()]
    except binascii.Error as error:
        raise ValueError("a store key is base64 of 32 bytes") from error


def encrypted(store: EmbeddingStore, keys: Sequence[StoreKey]) -> EmbeddingStore:
    """`store` with its blobs sealed: the first of `keys` seals, all of them open. Without keys `store` as it is."""
    if not keys:
        return store
    return _SharedEncrypted(store, keys, store) if isinstance(store, SharedStore) else _Encrypted(store, keys)


class _Encrypted:
    """See `EmbeddingStore`. Ciphers run in threads: 3 MB take milliseconds."""

    def __init__(self, store: EmbeddingStore, keys: Sequence[StoreKey]) -> None:
        self._store = store
        self._keys = tuple(keys)
        self.tier: CacheTier = store.tier

    @property
    def size_bytes(self) -> int:
        return self._store.size_bytes

    async def get(self, key: str) -> bytes | None:
        for one in self._keys:
            sealed = await self._store.get(_name(one, key))
            if sealed is not None:
                return await asyncio.to_thread(one.open, key, sealed)
        return None

    async def put(self, key: str, blob: bytes, ttl_s: float | None = None) -> None:
        first = self._keys[0]
        await self._store.put(_name(first, key), await asyncio.to_thread(first.seal, key, blob), ttl_s)

    async def contains(self, key: str) -> bool:
        for one in self._keys:
            if await self._store.contains(_name(one, key)):
                return True
        return False

    async def delete_matching(self, part: str) -> int:
        return await self._store.delete_matching(part)

    async def aclose(self) -> None:
        await self._store.aclose()


class _SharedEncrypted(_Encrypted):
    """See `SharedStore`. `shared` is the same store again, for what it can do besides."""

    def __init__(self, store: EmbeddingStore, keys: Sequence[StoreKey], shared: SharedStore) -> None:
        super().__init__(store, keys)
        self._shared = shared

    async def claim(self, key: str) -> bytes | Claim:
        first = self._keys[0]
        claimed = await self._shared.claim(_name(first, key))
        if not isinstance(claimed, bytes):
            return claimed
        blob = await asyncio.to_thread(first.open, key, claimed)
        return Unclaimed() if blob is None else blob  # a damaged one is made again

    async def announce_purge(self, part: str) -> bool:
        return await self._shared.announce_purge(part)

    async def purges_since(self, mark: str | None, *, by_others: bool) -> Purges:
        return await self._shared.purges_since(mark, by_others=by_others)


def _name(key: StoreKey, name: str) -> str:
    return f"{key.id}:{name}"
