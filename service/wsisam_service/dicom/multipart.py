"""multipart/related, as DICOMweb sends frames and takes objects (RFC 2387). Bodies come here bounded."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from email.message import Message

MAX_BOUNDARY = 200
_END_OF_HEAD = b"\r\n\r\n"


def read_parts(content_type: str, body: bytes) -> list[bytes]:
    """The contents of the parts, in order; a body that is no multipart is its only part. Raises ValueError."""
    head = Message()
    head["content-type"] = content_type
    if head.get_content_maintype() != "multipart":
        return [body]
    boundary = head.get_param("boundary")
    if not isinstance(boundary, str) or not 0 < len(boundary) <= MAX_BOUNDARY:
        raise ValueError("a multipart without a boundary")
    delimiter = b"\r\n--" + boundary.encode("latin-1")
    pieces = (b"\r\n" + body).split(delimiter)
    if len(pieces) < 2 or not pieces[-1].startswith(b"--"):
        raise ValueError("a multipart that ends early")
    return [_content(piece) for piece in pieces[1:-1]]


def _content(piece: bytes) -> bytes:
    if piece.lstrip(b" \t").startswith(_END_OF_HEAD):  # no header at all
        return piece.lstrip(b" \t")[len(_END_OF_HEAD) :]
    _, found, content = piece.partition(_END_OF_HEAD)
    if not found:
        raise ValueError("a part without an end of its header")
    return content


def write_parts(part_type: str, contents: Sequence[bytes]) -> tuple[str, bytes]:
    """(content type, body) of a multipart of parts of `part_type`."""
    boundary = secrets.token_hex(16)
    head = f"--{boundary}\r\nContent-Type: {part_type}\r\n\r\n".encode("ascii")
    body = b"".join(head + content + b"\r\n" for content in contents) + f"--{boundary}--\r\n".encode("ascii")
    return f'multipart/related; type="{part_type}"; boundary={boundary}', body
