"""Log lines as JSON, each with the request it belongs to. They carry ids and times, never names, paths or pixels."""

from __future__ import annotations

import json
import logging
import re
import sys
import uuid
from contextvars import ContextVar
from dataclasses import dataclass

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_PLAIN_RECORD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


@dataclass(frozen=True, slots=True)
class RequestIds:
    """What names a request everywhere it goes: our id, and the caller's W3C trace where it sent one."""

    request_id: str
    traceparent: str | None = None

    @classmethod
    def of_headers(cls, request_id: str | None, traceparent: str | None) -> RequestIds:
        """The caller's own ids where they are well formed (they end up in logs and headers), else a new id."""
        known = request_id if request_id and _REQUEST_ID.fullmatch(request_id) else uuid.uuid4().hex
        return cls(known, traceparent if traceparent and _TRACEPARENT.fullmatch(traceparent) else None)

    def headers(self) -> dict[str, str]:
        """To be sent along with every call made on behalf of this request."""
        headers = {"x-request-id": self.request_id}
        return headers | {"traceparent": self.traceparent} if self.traceparent else headers


current_request: ContextVar[RequestIds | None] = ContextVar("current_request", default=None)


def request_id() -> str:
    """The id of the request that is being answered; empty outside of one."""
    ids = current_request.get()
    return ids.request_id if ids else ""


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, what `extra` gave, request id and trace."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _PLAIN_RECORD}
        if ids := current_request.get():
            line |= ids.headers()
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """QuPath's SAM extension offers TLS with every GET, ten times a second; uvicorn warns twice and answers all the
    same.
    """
    return not record.getMessage().startswith(("Unsupported upgrade request", "No supported WebSocket library"))


def configure_logging() -> None:
    """JSON lines on stderr for this process; uvicorn's own access log is replaced by ours."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    handler.addFilter(_is_worth_a_line)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
