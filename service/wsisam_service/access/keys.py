"""API keys: random texts, of which the service keeps hashes in a file that it reads again when it changes.

The file is TOML, one `[[key]]` a key: `name`, `role`, `roots` (absent: every root), `expires` (absent: never) and
`sha256`. Keys have 256 random bits, so a plain SHA-256 cannot be turned round; salt and stretching would add nothing.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from wsisam_service.access.identity import Identity, Role

KEY_PREFIX = "wsk_"
"""Tells a key from an access token, and lets scanners find one that went where it should not be."""
KEY_BYTES = 32
KEY = re.compile(KEY_PREFIX + r"[A-Za-z0-9_-]{43}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
LOOK_S = 1.0
"""A change of the file counts after at most this time."""

logger = logging.getLogger(__name__)


class KeyFileError(Exception):
    """The file of keys cannot be used; the message is for the operator and shows nothing of a key."""


class StoredKey(BaseModel):
    """A key as the file has it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
    role: Role
    roots: tuple[str, ...] | None = None
    expires: AwareDatetime | None = None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

    @property
    def identity(self) -> Identity:
        return Identity(f"key:{self.name}", self.role, None if self.roots is None else frozenset(self.roots))


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")

    key: tuple[StoredKey, ...] = ()


@dataclass(frozen=True, slots=True)
class _Stamp:
    mtime_ns: int
    size: int
    inode: int


class KeyFile:
    """The keys in a file. Taking a key out of the file ends it; so does losing the file. A file that cannot be
    understood changes nothing but the log. `clock` gives seconds.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises `KeyFileError` where the file cannot be read or understood."""
        self._path = path
        self._clock = clock
        self._stamp = _stamp(path)
        self._told: _Stamp | None = None
        """Of the file that could not be used, where the log has it."""
        self._keys = read_keys(path)
        self._looked_s = clock()

    @property
    def keys(self) -> Sequence[StoredKey]:
        """The keys as the file has them now."""
        if self._clock() - self._looked_s >= LOOK_S:
            self._look()
        return self._keys

    def identity(self, key: str) -> Identity | None:
        """Whose `key` it is; None where it is nobody's, or has expired."""
        digest = hash_of(key)
        found: StoredKey | None = None
        for stored in self.keys:  # all of them, so that the time tells nothing
            if hmac.compare_digest(stored.sha256, digest):
                found = stored
        if found is None or (found.expires is not None and found.expires <= datetime.now(UTC)):
            return None
        return found.identity

    def _look(self) -> None:
        self._looked_s = self._clock()
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        if stamp is None:
            logger.error("the file of API keys is gone; no key is valid")
            self._keys, self._stamp = (), None
            return
        try:
            self._keys = read_keys(self._path)
        except KeyFileError:  # tried again at every look, for what hinders it need not be in the stamp
            if stamp != self._told:
                logger.exception("the file of API keys has changed and cannot be used; the keys of before stay valid")
            self._told = stamp
        else:
            self._stamp, self._told = stamp, None
            logger.info("API keys read again", extra={"keys": len(self._keys)})


def _stamp(path: Path) -> _Stamp | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return _Stamp(status.st_mtime_ns, status.st_size, status.st_ino)


def read_keys(path: Path) -> tuple[StoredKey, ...]:
    """The keys in the file. Raises `KeyFileError`."""
    try:
        return _Document.model_validate(tomllib.loads(path.read_text("utf-8"))).key
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise KeyFileError(f"{path} is not TOML: {error}") from error
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise KeyFileError(f"{path}, {place}: {first['msg']}") from None


def hash_of(key: str) -> str:
    """What the file keeps of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def new_key() -> str:
    return KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)


def key_block(key: StoredKey) -> str:
    """What stands for `key` in the file."""
    lines = ["[[key]]", f"name = {_text(key.name)}", f"role = {_text(key.role)}"]
    if key.roots is not None:
        lines.append(f"roots = [{', '.join(map(_text, key.roots))}]")
    if key.expires is not None:
        lines.append(f"expires = {key.expires.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}")
    return "\n".join([*lines, f"sha256 = {_text(key.sha256)}", ""])


def append_key(path: Path, key: StoredKey) -> None:
    """Add `key` to the file, which is made where there is none, readable by its owner alone. Raises OSError, and leaves
    the file as it was.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    with open(descriptor, "r+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed, so that nobody's key is cut off with half of ours
        content = file.read()
        gap = b"\n" if content.endswith(b"\n") else b"\n\n" if content else b""
        block = gap + key_block(key).encode()
        try:
            if file.write(block) != len(block):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)  # some disks say only then that they are full
        except OSError:
            file.truncate(len(content))
            raise


def _text(value: str) -> str:
    """A TOML string; JSON's is one where nothing is escaped that need not be."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
