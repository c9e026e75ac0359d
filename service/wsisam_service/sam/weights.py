"""Registering weights from the extension's dialog: from a folder of the operator, or from hosts the operator allows.

The extension shows the answer word by word, so a refusal is a sentence and not an error (PROTOCOL.md 1.6).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

import httpx

from wsisam_model.errors import ModelError
from wsisam_service.errors import ServiceError
from wsisam_service.sam.offer import MODEL_OF_TYPE

MAX_WEIGHTS_BYTES = 4 << 30
"""Largest download; ViT-H in float32 has 2.4 GiB."""
MAX_REDIRECTS = 5
SUFFIXES = (".pth", ".pt", ".safetensors")
CHUNK_BYTES = 1 << 20
TIMEOUT = httpx.Timeout(30.0)

_log = logging.getLogger(__name__)

Install = Callable[[str, Path], Awaitable[None]]
"""Loads a model's weights and serves them. Raises `ModelError` for a file that does not fit."""


class Refusal(ServiceError):
    """Why weights are not registered, in one sentence."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What the extension's progress dialog shows; no message and a negative percentage leave it as it is."""

    message: str | None = None
    percent: int = -1


class WeightsRegister:
    """Weights registered since the start, by model. One registration at a time.

    `folder` holds files that may be registered by name and takes downloads, None for neither. `hosts` are those that
    may be downloaded from, over https only. `install` is None where this process has no models of its own.
    """

    def __init__(
        self,
        folder: Path | None,
        hosts: Collection[str],
        install: Install | None,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._folder = folder
        self._hosts = frozenset(host.lower() for host in hosts)
        self._install = install
        self._transport = transport
        self._names: dict[str, str] = {}
        self._running: asyncio.Task[None] | None = None
        self._cancelled = False
        self.progress = Progress()

    @property
    def names(self) -> dict[str, str]:
        """Names given to the registered weights, by model."""
        return dict(self._names)

    async def register(self, type_: str, name: str, url: str, installed: Collection[str]) -> str:
        """Register the weights at `url` (a file's name in the folder, or an address) and say what became of it."""
        if self._running is not None:
            return "Not registered: another registration is running."
        self._cancelled = False
        self._running = asyncio.create_task(self._register(type_, name.strip(), url.strip(), installed))
        try:
            await self._running
        except (Refusal, ModelError) as error:
            return f"Not registered: {error}"
        except asyncio.CancelledError:
            if not self._cancelled:  # the client has gone, and the task ended with this one
                raise
            return "Cancelled: nothing was registered."
        finally:
            self._running = None
            self.progress = Progress()
        return f"Registered: {name.strip()} now answers for {type_}, until the server restarts."

    def cancel(self) -> str:
        """End the registration that runs."""
        if self._running is None:
            return "Nothing to cancel."
        self._cancelled = True
        self._running.cancel()
        return "Cancelling."

    async def _register(self, type_: str, name: str, url: str, installed: Collection[str]) -> None:
        model = MODEL_OF_TYPE.get(type_)
        if self._install is None or self._folder is None:
            raise Refusal("this server takes no weights from outside.")
        if model is None:
            raise Refusal("weights can be registered for vit_t, vit_b, vit_l and vit_h.")
        if not name or not url:
            raise Refusal("a name and a file or address are needed.")
        if model in installed:
            raise Refusal(f"this server has weights of {type_} already, and serves one set of each.")
        if "://" in url:
            await self._download_and_install(model, url, self._folder)
        else:
            await self._load(self._install, model, self._local_file(url, self._folder))
        self._names[model] = name

    def _local_file(self, name: str, folder: Path) -> Path:
        """The file called `name` in the folder. What lies outside does not exist for a client."""
        try:
            path = (folder / name).resolve()
            found = path.is_relative_to(folder.resolve()) and path.suffix in SUFFIXES and path.is_file()
        except (OSError, ValueError):  # no file can have this name
            found = False
        if not found:
            raise Refusal("the server's weights folder has no such file.")
        return path

    async def _download_and_install(self, model: str, url: str, folder: Path) -> None:
        assert self._install is not None
        kept = folder / f"{secrets.token_hex(4)}-{_file_name(url)}"
        part = folder / f".{secrets.token_hex(8)}.part"
        try:
            await self._download(url, part)
            part.rename(kept)  # without a wait in which a cancel would leave the file
        except OSError as error:
            _log.warning("a download of weights cannot be kept: %s", type(error).__name__)
            raise Refusal("the server's weights folder takes no file now.") from error
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
        try:
            await self._load(self._install, model, kept)
        except BaseException:
            kept.unlink(missing_ok=True)
            raise

    async def _load(self, install: Install, model: str, path: Path) -> None:
        self.progress = Progress("Reading the weights", 99)
        await install(model, path)

    async def _download(self, url: str, part: Path) -> None:
        async with httpx.AsyncClient(timeout=TIMEOUT, transport=self._transport, follow_redirects=False) as client:
            for _ in range(MAX_REDIRECTS):
                self._check_address(url)
                try:
                    further = await self._fetch(client, url, part)
                except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
                    _log.info("download of weights failed: %s", type(error).__name__)
                    raise Refusal("the address could not be reached.") from error
                if further is None:
                    return
                url = further
        raise Refusal("the address redirects too often.")

    async def _fetch(self, client: httpx.AsyncClient, url: str, part: Path) -> str | None:
        """Bring what is at `url` into `part`, or give the address that it redirects to."""
        async with client.stream("GET", url) as response:
            if response.has_redirect_location:
                return urljoin(url, response.headers["location"])
            if response.status_code != httpx.codes.OK:
                raise Refusal(f"the address answers {response.status_code}.")
            await self._receive(response, part)
        return None

    async def _receive(self, response: httpx.Response, part: Path) -> None:
        length = response.headers.get("content-length", "")
        total = int(length) if length.isdecimal() else 0
        received = 0
        with contextlib.closing(await asyncio.to_thread(part.open, "wb")) as file:
            async for chunk in response.aiter_bytes(CHUNK_BYTES):
                received += len(chunk)
                if received > MAX_WEIGHTS_BYTES:
                    raise Refusal("the file is too large.")
                await asyncio.to_thread(file.write, chunk)
                percent = min(98, 98 * received // total) if total else -1
                self.progress = Progress(f"Downloading, {received >> 20} MiB", percent)

    def _check_address(self, url: str) -> None:
        parts = _split(url)
        if parts.scheme != "https" or (parts.hostname or "").lower() not in self._hosts:
            raise Refusal("this server does not download from that address.")


def _split(url: str) -> SplitResult:
    """The parts of `url`, its port looked at too."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise Refusal("that is no address.") from error
    return parts


def _file_name(url: str) -> str:
    """The last part of an address as a harmless file name."""
    name = PurePosixPath(unquote(_split(url).path)).name
    kept = "".join(c for c in name if c.isascii() and (c.isalnum() or c in "._-")).lstrip(".")[-80:]
    if not kept.endswith(SUFFIXES):
        raise Refusal(f"the address does not end in {', '.join(SUFFIXES)}.")
    return kept
