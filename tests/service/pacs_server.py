"""A small DICOMweb service on loopback, that answers as it should or as badly as a test wants."""

from __future__ import annotations

import contextlib
import io
import json
import math
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pydicom
from pydicom.encaps import generate_frames
from pydicom.uid import UID

from wsisam_service.dicom.multipart import read_parts, write_parts

ROOT, JSON = "/dicom-web", "application/dicom+json"
_SERIES_TAGS = ("Modality", "StudyInstanceUID", "SeriesInstanceUID", "AccessionNumber")


@dataclass
class Asked:
    """One request. `began`, and `ended` just before the answer goes out, in seconds of the monotonic clock."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...]
    headers: dict[str, str]
    body: bytes
    began: float
    ended: float = math.inf


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    pacs: PacsServer

    def answer(
        self, status: int, body: bytes = b"", content_type: str = "application/dicom+json", **headers: str
    ) -> None:
        self.asked.ended = time.monotonic()
        self.send_response(status)
        for name, value in {"content-type": content_type, "content-length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:  # the name that http.server calls
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""

    def _serve(self) -> None:
        began = time.monotonic()
        parts = urlsplit(self.path)
        self.route, self.query = parts.path.removeprefix(ROOT), tuple(parse_qsl(parts.query))
        self.body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.asked = Asked(self.command, self.route, self.query, headers, self.body, began)
        self.pacs.asked.append(self.asked)  # before the answer, after which a test may look
        try:
            (self.pacs.fault or self.pacs.serve)(self)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
            self.close_connection = True


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[Handler]) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def hang_up(self) -> None:
        """End connections that are kept alive, as the end of a process does."""
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class PacsServer:
    """Serves `datasets`. `fault`, where set, answers in its place; `delay_s` comes before every answer.

    `stars`: whether it knows transfer-syntax=*; `pages`: whether it heeds limit and offset; `most`: series that it
    gives at most in one answer; `counts`: whether it tells how many instances a series has; `beyond`: what it answers
    where it has no series.
    """

    def __init__(self, *datasets: pydicom.Dataset, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.datasets = list(datasets)
        self.asked: list[Asked] = []
        self.fault: Callable[[Handler], None] | None = None
        self.delay_s = 0.0
        self.stars = self.pages = self.counts = True
        self.most, self.beyond = 1000, 204
        handler = type("PacsHandler", (Handler,), {"pacs": self})
        self._http = _Http(("127.0.0.1", port), handler)
        self._scheme = "dicomweb+http"
        if tls is not None:
            self._scheme = "dicomweb+https"
            self._http.socket = tls.wrap_socket(self._http.socket, server_side=True)
        self.port: int = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def root(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}{ROOT}"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._http.hang_up()
        self._thread.join()

    def paths(self, part: str) -> list[str]:
        """Those asked for that contain `part`."""
        return [asked.path for asked in self.asked if part in asked.path]

    def serve(self, request: Handler) -> None:
        time.sleep(self.delay_s)
        names = request.route.strip("/").split("/")
        if request.command == "POST":
            self.datasets += [_read(part) for part in read_parts(request.headers["content-type"], request.body)]
            request.answer(200, b"{}")
        elif names == ["series"]:
            self._search(request)
        elif names[-1] == "metadata":
            found = [json.loads(metadata_of(one)) for one in self.datasets if one.SeriesInstanceUID == names[3]]
            request.answer(200 if found else 404, json.dumps(found).encode())
        elif names[-2] == "frames":
            self._frames(request, names)
        else:
            request.answer(404)

    def _search(self, request: Handler) -> None:
        query = dict(request.query)
        series: dict[str, pydicom.Dataset] = {}
        for dataset in self.datasets:
            if all(dataset.get(name) == value for name, value in query.items() if name in _SERIES_TAGS):
                found = series.setdefault(dataset.SeriesInstanceUID, pydicom.Dataset())
                for name in _SERIES_TAGS:
                    setattr(found, name, dataset.get(name))
                if self.counts:
                    found.NumberOfSeriesRelatedInstances = (found.get("NumberOfSeriesRelatedInstances") or 0) + 1
        listed = list(series.values())
        if self.pages:
            listed = listed[int(query.get("offset", 0)) :][: min(int(query.get("limit", 1000)), self.most)]
        request.answer(200 if listed else self.beyond, json.dumps([one.to_json_dict() for one in listed]).encode())

    def _frames(self, request: Handler, names: list[str]) -> None:
        if "transfer-syntax=*" in request.headers["accept"] and not self.stars:
            request.answer(406)
            return
        (dataset,) = (one for one in self.datasets if one.SOPInstanceUID == names[5])
        frames = stored_frames(dataset)
        content_type, body = write_parts("application/octet-stream", [frames[int(n) - 1] for n in names[7].split(",")])
        request.answer(200, body, content_type)


def stored_frames(dataset: pydicom.Dataset) -> list[bytes]:
    """The frames of an instance as it holds them."""
    count = int(dataset.NumberOfFrames)
    if UID(dataset.file_meta.TransferSyntaxUID).is_encapsulated:
        return list(generate_frames(dataset.PixelData, number_of_frames=count))
    length = dataset.Rows * dataset.Columns * dataset.SamplesPerPixel
    return [dataset.PixelData[n * length : (n + 1) * length] for n in range(count)]


def metadata_of(dataset: pydicom.Dataset) -> str:
    """An instance's header in the DICOM JSON model."""
    header = pydicom.Dataset()
    header.update(dataset)
    for name in ("PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
        if name in header:
            del header[name]
    return header.to_json()


def _read(part10: bytes) -> pydicom.Dataset:
    return pydicom.dcmread(io.BytesIO(part10))
