"""What is told of one request, or of the service itself. Slides by id; never a name, a path, a prompt or a pixel."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Literal

Action = Literal["start", "stop", "lost", "request"]
Outcome = Literal["success", "refused", "failed", "left"]
"""`refused` is the caller's fault or lack of rights, `failed` the service's; who `left` did not wait for the answer."""

CLIENT_GONE_STATUS = 499
"""In logs, metrics and here only: nobody is there to be answered."""
UNKNOWN = "unknown"
"""Who asked, where nobody knows: refused before they said."""
SYSTEM = "system"
"""Who acts where no caller does."""


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """`sequence` counts the events of this process from 1: a gap is a loss, a repetition the same event again.

    `route` is the route's template with its method. `transfer` says that something was to be sent to a PACS. `lost` is
    how many events a sink had no room for.
    """

    action: Action
    sequence: int = 0
    time: datetime = datetime.min
    who: str = SYSTEM
    role: str = ""
    address: str = ""
    route: str = ""
    slide: str = ""
    transfer: bool = False
    status: int = HTTPStatus.OK
    ms: float = 0.0
    request_id: str = ""
    lost: int = 0

    @property
    def outcome(self) -> Outcome:
        if self.status == CLIENT_GONE_STATUS:
            return "left"
        if self.status < HTTPStatus.BAD_REQUEST:
            return "success"
        return "refused" if self.status < HTTPStatus.INTERNAL_SERVER_ERROR else "failed"

    @property
    def credentials_refused(self) -> bool:
        """Whether credentials were missing or wrong, or too many wrong ones came before them."""
        too_many = self.status == HTTPStatus.TOO_MANY_REQUESTS and self.who == UNKNOWN
        return self.status == HTTPStatus.UNAUTHORIZED or too_many


def now() -> datetime:
    return datetime.now(UTC)
