"""A DICOMweb service as a client: QIDO-RS, WADO-RS and STOW-RS, with every answer bounded in time and bytes.

Requests run on an event loop in a thread of their own, because only there a limit of time holds for all of an answer:
a server may send its header byte by byte. Nothing of an answer decides where the next request goes: redirects and
bulk data URIs are not followed. No message here, and no log line, names the service, a patient or a UID.
"""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import orjson
import pydicom

from wsisam_service.dicom.header import is_uid
from wsisam_service.dicom.multipart import read_parts, write_parts
from wsisam_service.dicom.pacs_settings import PacsSettings
from wsisam_service.errors import NotSupported, PacsUnavailable, UnreadableSlide
from wsisam_service.metrics import PACS_ERRORS, PACS_SECONDS
from wsisam_service.stores.breaker import Breaker, CircuitOpen

T = TypeVar("T")
Json = Mapping[str, Any]
"""A data set in the DICOM JSON model."""

MAX_LISTING_BYTES = 32 << 20
MAX_METADATA_BYTES = 256 << 20
"""A sparse level of a large slide has some hundred bytes per tile."""
MAX_STORED_ANSWER_BYTES = 4 << 20
FRAME_SLACK = 1 << 16
"""Bytes that a frame may have over those of its pixels, its part's header included."""
PAGE = 100
"""Series asked for at a time. Some services refuse more, and some give fewer."""

_BACKOFF_S = (0.2, 0.6)
"""Pauses before a question is asked again."""
_TRY_AGAIN = {429, 502, 503, 504}
_FAILURES, _PAUSE_S = 2, 2.0
"""Questions in a row that may fail before the PACS is left alone, and for how long."""

_INSTANCES = "00201209"
"""Number of a series' instances."""
_FAILED, _FAILED_UID, _REASON = "00081198", "00081155", "00081197"
"""Sequence of the objects that were not stored; each one's UID, and why."""
_THERE_ALREADY = (0x0111, 0xB00E)
"""Reasons: the standard's for a duplicate, and that of Azure's service."""
_OTHER_WAY = {400, 406, 415}
"""Answers of a service that does not know the way in which frames are asked for."""
MAX_DIGITS = 10
_DICOM_JSON = "application/dicom+json"
_AS_STORED = (
    'multipart/related; type="application/octet-stream"; transfer-syntax=*',
    # for services that do not know the asterisk
    ", ".join(
        f'multipart/related; type="{media}"; transfer-syntax={syntax}'
        for media, syntax in (
            ("image/jpeg", "1.2.840.10008.1.2.4.50"),
            ("image/jp2", "1.2.840.10008.1.2.4.90"),
            ("image/jp2", "1.2.840.10008.1.2.4.91"),
            ("image/jls", "1.2.840.10008.1.2.4.80"),
            ("image/jls", "1.2.840.10008.1.2.4.81"),
            ("application/octet-stream", "1.2.840.10008.1.2.1"),
        )
    ),
)
"""What is asked for, one after the other until the service takes one: frames as they are stored. Anything else would
be compressed anew, once per frame, and larger."""

_GONE = "The PACS does not answer."
_RUBBISH = "The PACS answers what is not DICOMweb."

logging.getLogger("httpx").setLevel(logging.WARNING)  # its info lines have URLs, and so UIDs


@dataclass(frozen=True, slots=True)
class FoundSeries:
    """A series that a QIDO-RS search gave; `instances` as far as it says."""

    study: str
    series: str
    accession: str | None
    instances: int | None


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    content_type: str
    body: bytes


class DicomWeb:
    """One service; safe for concurrent use. Everything blocks, at most `total_s` of its settings."""

    def __init__(self, settings: PacsSettings) -> None:
        """Raises OSError for a certificate or a password that cannot be read."""
        self._settings = settings
        self._http = httpx.AsyncClient(
            base_url=settings.url,
            verify=_tls(settings) if settings.url.startswith("https:") else False,
            timeout=httpx.Timeout(settings.read_s, connect=settings.connect_s, pool=settings.total_s),
            limits=httpx.Limits(max_connections=64, max_keepalive_connections=32, keepalive_expiry=60),
            follow_redirects=False,
            trust_env=False,  # no proxy and no .netrc that nobody set here
            headers={"accept-encoding": "identity", "user-agent": "wsisam"},
        )
        self._breaker = Breaker(failures=_FAILURES, pause_s=_PAUSE_S)
        self._as_stored = 0
        self.answers = True
        """Whether the last question was answered."""
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="dicomweb", daemon=True).start()
        self._authorization()  # a password file that is missing is told at start

    def search(self, conditions: Mapping[str, str], at_most: int) -> list[FoundSeries]:
        """Series of slides that meet `conditions`, page by page. Raises `PacsUnavailable`."""
        found: dict[str, FoundSeries] = {}
        asked = 0
        while len(found) < at_most:
            try:
                page = self._search_page(conditions, asked)
            except UnreadableSlide:  # 404, as some say beyond their last page
                if not asked:
                    raise
                break
            series = [one for one in map(_found, page) if one is not None]
            new = {one.series: one for one in series if one.series not in found}
            if not new:  # some services know no pages and give everything each time
                break
            found |= new
            asked += len(page)
        return list(found.values())[:at_most]

    def _search_page(self, conditions: Mapping[str, str], offset: int) -> list[Json]:
        fields = ("AccessionNumber", "NumberOfSeriesRelatedInstances")
        query = [("Modality", "SM"), *conditions.items(), *(("includefield", field) for field in fields)]
        answer = self._ask(
            "search",
            "GET",
            "/series",
            params=[*query, ("limit", str(PAGE)), ("offset", str(offset))],
            headers={"accept": _DICOM_JSON},
            max_bytes=MAX_LISTING_BYTES,
        )
        beyond_the_last = offset > 0 and answer.status == httpx.codes.BAD_REQUEST
        if answer.status == httpx.codes.NO_CONTENT or beyond_the_last:
            return []
        return self._datasets(answer)

    def metadata(self, study: str, series: str) -> list[Json]:
        """The headers of a series' instances. Raises `PacsUnavailable`, `UnreadableSlide`."""
        answer = self._ask(
            "metadata",
            "GET",
            f"/studies/{study}/series/{series}/metadata",
            headers={"accept": _DICOM_JSON},
            max_bytes=MAX_METADATA_BYTES,
        )
        return self._datasets(answer)

    def frames(self, instance: tuple[str, str, str], numbers: Sequence[int], frame_bytes: int) -> list[bytes]:
        """Frames (counted from 0) of the instance (study, series, SOP instance UID) as stored, each at most of
        `frame_bytes`. One request, once it is known what the service takes. Raises `PacsUnavailable`,
        `UnreadableSlide`.
        """
        study, series, sop = instance
        path = f"/studies/{study}/series/{series}/instances/{sop}/frames/{','.join(str(n + 1) for n in numbers)}"
        max_bytes = len(numbers) * (frame_bytes + FRAME_SLACK)
        for way in range(self._as_stored, len(_AS_STORED)):
            answer = self._ask("frames", "GET", path, headers={"accept": _AS_STORED[way]}, max_bytes=max_bytes)
            if answer.status == httpx.codes.OK:
                self._as_stored = way
                break
            if answer.status not in _OTHER_WAY:
                raise PacsUnavailable(_RUBBISH)
        else:
            raise UnreadableSlide("The PACS does not give this slide's image as it is stored.")
        parts = self._understood(lambda: read_parts(answer.content_type, answer.body))
        if len(parts) != len(numbers):
            raise PacsUnavailable(_RUBBISH)
        return parts

    def store(self, objects: Sequence[bytes]) -> None:
        """Send part-10 files. What is there already counts as stored, since a request may be repeated.

        Raises `PacsUnavailable`, and `NotSupported` where the PACS refuses one.
        """
        content_type, body = write_parts("application/dicom", objects)
        answer = self._ask(
            "store",
            "POST",
            "/studies",
            headers={"accept": _DICOM_JSON, "content-type": content_type},
            content=body,
            max_bytes=MAX_STORED_ANSWER_BYTES,
        )
        failed: list[Any] = []
        readable = not answer.body or answer.content_type.partition(";")[0] in (_DICOM_JSON, "application/json")
        if answer.body and readable:
            document = self._understood(lambda: orjson.loads(answer.body))
            failed = values_of(document, _FAILED) if isinstance(document, dict) else []
        # The body of 202 may name what was not stored.
        stored = answer.status == httpx.codes.OK or (answer.status == httpx.codes.ACCEPTED and readable)
        if not (all(_is_there(one, objects) for one in failed) if failed else stored):
            raise NotSupported("The PACS refused to store the object.")

    def _datasets(self, answer: _Answer) -> list[Json]:
        if answer.status != httpx.codes.OK:
            raise PacsUnavailable(_RUBBISH)
        document = self._understood(lambda: orjson.loads(answer.body))
        if not isinstance(document, list) or not all(isinstance(dataset, dict) for dataset in document):
            raise PacsUnavailable(_RUBBISH)
        return document

    def _understood(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except ValueError as error:
            raise PacsUnavailable(_RUBBISH) from error

    def _ask(self, question: str, method: str, path: str, *, max_bytes: int, **request: Any) -> _Answer:
        """One question, asked again while the PACS has troubles of its own and there is time. Raises
        `PacsUnavailable`, `UnreadableSlide` where it knows nothing of what is asked for.
        """
        started = time.monotonic()
        try:
            self._breaker.check()
            asking = self._in_time(method, path, max_bytes, request)
            answer = asyncio.run_coroutine_threadsafe(asking, self._loop).result()
        except CircuitOpen as error:
            raise PacsUnavailable(_GONE, retry_after_s=int(_PAUSE_S)) from error
        except (httpx.HTTPError, _Troubled, TimeoutError, OSError) as error:
            self._breaker.failed()
            self.answers = False
            PACS_ERRORS.labels(question).inc()
            raise PacsUnavailable(_GONE, retry_after_s=int(_PAUSE_S)) from error
        self._breaker.succeeded()
        self.answers = True
        PACS_SECONDS.labels(question).observe(time.monotonic() - started)
        return _judged(answer)

    async def _in_time(self, method: str, path: str, max_bytes: int, request: Mapping[str, Any]) -> _Answer:
        async with asyncio.timeout(self._settings.total_s):
            for pause_s in _BACKOFF_S:
                try:
                    return await self._once(method, path, max_bytes, request)
                except (httpx.HTTPError, _Troubled):
                    await asyncio.sleep(pause_s)
            return await self._once(method, path, max_bytes, request)

    async def _once(self, method: str, path: str, max_bytes: int, request: Mapping[str, Any]) -> _Answer:
        headers = {**request["headers"], **self._authorization()}
        async with self._http.stream(method, path, **{**request, "headers": headers}) as response:
            if response.status_code in _TRY_AGAIN:
                raise _Troubled
            if response.headers.get("content-encoding", "identity") != "identity":
                raise PacsUnavailable(_RUBBISH)  # not asked for, and could inflate to anything
            body = bytearray()
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > max_bytes:
                    raise PacsUnavailable("The PACS's answer is larger than it can be.")
            return _Answer(response.status_code, response.headers.get("content-type", ""), bytes(body))

    def _authorization(self) -> dict[str, str]:
        settings = self._settings
        if token := _secret(settings.token.get_secret_value(), settings.token_file):
            return {"authorization": f"Bearer {token}"}
        if settings.user:
            password = _secret(settings.password.get_secret_value(), settings.password_file)
            pair = base64.b64encode(f"{settings.user}:{password}".encode()).decode("ascii")
            return {"authorization": f"Basic {pair}"}
        return {}


class _Troubled(Exception):
    """The PACS answered that it cannot answer now."""


def _judged(answer: _Answer) -> _Answer:
    """`answer` where it is one to go on with: a success, a refusal to give what was asked for, or of what was sent."""
    if answer.status in (401, 403):
        raise PacsUnavailable("The PACS refuses the credentials that this service has.")
    if answer.status in (404, 410):
        raise UnreadableSlide("The PACS does not have this slide any more.")
    if answer.status >= 500:
        raise PacsUnavailable("The PACS reports a fault of its own.")
    if 300 <= answer.status < 400:
        raise PacsUnavailable("The PACS sends to another place, which is not followed.")
    return answer


def _found(dataset: Json) -> FoundSeries | None:
    """None where the UIDs are missing or none: they become parts of addresses."""
    study, series = str(value_of(dataset, "0020000D")), str(value_of(dataset, "0020000E"))
    if not (is_uid(study) and is_uid(series)):
        return None
    count = str(value_of(dataset, _INSTANCES))
    return FoundSeries(
        study,
        series,
        accession=str(value_of(dataset, "00080050") or "").strip() or None,
        instances=int(count) if count.isascii() and count.isdigit() and len(count) < MAX_DIGITS else None,
    )


def _is_there(failed: Any, objects: Sequence[bytes]) -> bool:
    """Whether `failed` is one of `objects` that was not stored only because it is there already."""
    if not isinstance(failed, dict) or value_of(failed, _REASON) not in _THERE_ALREADY:
        return False
    headers = (pydicom.dcmread(io.BytesIO(one), specific_tags=["SOPInstanceUID"]) for one in objects)
    return value_of(failed, _FAILED_UID) in [str(header.SOPInstanceUID) for header in headers]


def values_of(dataset: Json, tag: str) -> list[Any]:
    """The values of an attribute; empty where there are none."""
    element = dataset.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return values if isinstance(values, list) else []


def value_of(dataset: Json, tag: str) -> Any:
    """The first value of an attribute; None where there is none."""
    values = values_of(dataset, tag)
    return values[0] if values else None


def _secret(text: str, file: Path | None) -> str:
    """Raises OSError for a file that cannot be read, or is no text."""
    if file is None:
        return text
    try:
        return file.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise OSError("not a text file") from error


def _tls(settings: PacsSettings) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=None if settings.ca is None else str(settings.ca))
    if settings.certificate is not None:
        context.load_cert_chain(settings.certificate, settings.key)
    return context
