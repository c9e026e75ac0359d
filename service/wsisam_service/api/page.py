"""The page for people at `/`: built from web/ into static files, which are read once and served from memory."""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, FastAPI
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from wsisam_service.errors import NotFound

PAGE_FOLDER = Path(__file__).resolve().parents[1] / "page"
"""Where web/'s build goes; package data of wheel and image."""
INDEX = "index.html"
NOT_BUILT = """WSI-SAM serves its API here; the page for people is not built into this installation.

The API: v1/info, v1/slides, openapi.json; docs/API.md explains it.
The page: run `make page` in the source folder (needs npm) and start the service again.
"""
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
IMMUTABLE = "public, max-age=31536000, immutable"
"""For files whose names hold a hash of their content: all but the index."""


@dataclass(frozen=True, slots=True)
class PageFile:
    content: bytes
    compressed: bytes
    media_type: str
    etag: str

    @classmethod
    def read(cls, path: Path) -> PageFile:
        content = path.read_bytes()
        media_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        return cls(content, gzip.compress(content, mtime=0), media_type, etag)


def read_page(folder: Path) -> Mapping[str, PageFile]:
    """The built files by their path under `folder`; none where nothing is built."""
    return {
        path.relative_to(folder).as_posix(): PageFile.read(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }


def install(app: FastAPI, folder: Path) -> None:
    """Serve the page built into `folder` at the root of `app`, or say there that it is not built."""
    files = read_page(folder)
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def show_index(request: Request) -> Response:
        if INDEX not in files:
            return PlainTextResponse(NOT_BUILT)
        return _answer(request, files[INDEX], "no-cache")

    @router.get("/page/{name}")
    async def show_file(name: str, request: Request) -> Response:
        file = files.get(f"page/{name}")
        if file is None:
            raise NotFound("the page has no such file")
        return _answer(request, file, IMMUTABLE)

    app.include_router(router)


def _answer(request: Request, file: PageFile, cache_control: str) -> Response:
    headers = HEADERS | {"etag": file.etag, "cache-control": cache_control, "vary": "accept-encoding"}
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(file.compressed, media_type=file.media_type, headers=headers | {"content-encoding": "gzip"})
    return Response(file.content, media_type=file.media_type, headers=headers)
