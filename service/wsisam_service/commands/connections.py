"""HTTP connections that cannot be used to starve others: each says what it wants in time, and idle ones make room."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 15.0
"""From a connection, or the first byte of a further request, to the end of its head."""
LINGER_S = 2.0
"""For a client that was answered before it had sent its whole body to read the answer."""
_BUSY = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


def bounded_protocol(max_connections: int) -> type[H11Protocol]:
    """The protocol of one server. Beyond `max_connections` the one idle for longest is closed; where all are busy, the
    new one is refused. Bodies are bounded in time by the application.
    """
    idle: dict[H11Protocol, None] = {}

    class BoundedProtocol(H11Protocol):
        _limit: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > max_connections:
                _make_room(idle, self)
            idle[self] = None
            self._close_in(HEAD_S)

        def connection_lost(self, exc: Exception | None) -> None:
            self._take_time()
            idle.pop(self, None)
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            super().data_received(data)
            state = self.conn.their_state
            if state is h11.IDLE:
                if self._limit is None:
                    self._close_in(HEAD_S)
            elif not self._answered_early():
                self._take_time()
                idle.pop(self, None)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self._answered_early():
                self._close_in(LINGER_S)
            elif not self.transport.is_closing():
                idle[self] = None

        def send_400_response(self, msg: str) -> None:
            super().send_400_response(msg)
            if self.cycle is not None:  # its head was right and its body is not: the application has nobody to answer
                self.cycle.disconnected = True
                self.cycle.message_event.set()

        def _answered_early(self) -> bool:
            return self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY

        def _close_in(self, seconds: float) -> None:
            self._take_time()
            self._limit = self.loop.call_later(seconds, self.transport.close)

        def _take_time(self) -> None:
            if self._limit is not None:
                self._limit.cancel()
                self._limit = None

    return BoundedProtocol


def _make_room(idle: dict[H11Protocol, None], newcomer: H11Protocol) -> None:
    longest: Any = next(iter(idle), None)
    if longest is None:
        newcomer.transport.write(_BUSY)
        newcomer.transport.close()
        return
    del idle[longest]
    longest.transport.close()
