"""DICOM audit messages to a syslog server: RFC 5424 over TLS with octet counting (RFC 5425), as PS3.15 A.6 asks.

Syslog has no acknowledgements: what was sent shortly before a connection ended may have been lost, so it is sent once
more over the next one. A collector knows it again by PROCID and `sequenceId`.
"""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from wsisam_service.audit.dicom_message import dicom_message
from wsisam_service.audit.events import AuditEvent, Outcome

TIMEOUT_S = 10.0
"""To connect, and for the server to take a batch."""
UNSURE_S = 15.0
"""For this long a message that was sent may be lost with its connection."""
MAX_UNSURE = 2048
"""Messages held for this."""
MSGID = "DICOM+RFC3881"
_AUTHPRIV = 10
_SEVERITIES: Mapping[Outcome, int] = {"success": 5, "left": 5, "refused": 4, "failed": 3}
"""notice, warning, error."""
_BOM = b"\xef\xbb\xbf"


class Syslog:
    """A TLS connection to `host` and `port`, made when there is something to send."""

    name = "syslog"
    check_s: float | None = 1.0

    def __init__(
        self,
        host: str,
        port: int,
        *,
        ca: Path | None = None,
        certificate: Path | None = None,
        key: Path | None = None,
        site: str = "",
    ) -> None:
        """`ca` is who signed the server's certificate, None for those the system trusts; `certificate` and `key` say
        who we are where the server asks. Raises `OSError` and `ssl.SSLError` for files that cannot be used.
        """
        self._address = host, port
        self._site = site
        self._host = socket.gethostname()[:255] or "-"
        self._context = ssl.create_default_context(cafile=ca)
        if certificate is not None:
            self._context.load_cert_chain(certificate, key)
        self._connection: ssl.SSLSocket | None = None
        self._unsure: deque[tuple[float, bytes]] = deque(maxlen=MAX_UNSURE)

    def send(self, events: Sequence[AuditEvent]) -> None:
        """Raises `OSError` where the server cannot be reached or goes."""
        self.check()
        frames = [self._frame(event) for event in events]
        connection = self._connected()
        try:
            connection.sendall(b"".join(frames))
        except OSError:
            self.close()
            raise
        sent = time.monotonic()
        self._unsure.extend((sent, frame) for frame in frames)

    def check(self) -> None:
        """Notice that the server has gone, and send again what may be lost with it. Raises `OSError`."""
        if self._connection is not None and self._gone(self._connection):
            self.close()
        if self._connection is None:
            if self._unsure:
                self._connected()
            return
        settled = time.monotonic() - UNSURE_S
        while self._unsure and self._unsure[0][0] < settled:
            self._unsure.popleft()

    def close(self) -> None:
        if self._connection is not None:
            with suppress(OSError):
                self._connection.unwrap().close()
            self._connection.close()
            self._connection = None

    def _connected(self) -> ssl.SSLSocket:
        """The connection; a new one starts with what may be lost."""
        if self._connection is None:
            plain = socket.create_connection(self._address, TIMEOUT_S)
            try:
                connection = self._context.wrap_socket(plain, server_hostname=self._address[0])
                again = list(self._unsure)
                connection.sendall(b"".join(frame for _, frame in again))
            except OSError:
                plain.close()
                raise
            sent = time.monotonic()
            self._unsure.clear()
            self._unsure.extend((sent, frame) for _, frame in again)
            self._connection = connection
        return self._connection

    @staticmethod
    def _gone(connection: ssl.SSLSocket) -> bool:
        """Whether the server has closed the connection. It never says anything else."""
        connection.setblocking(False)
        try:
            return not connection.recv(1)
        except (ssl.SSLWantReadError, BlockingIOError):
            return False
        except OSError:
            return True
        finally:
            with suppress(OSError):
                connection.settimeout(TIMEOUT_S)

    def _frame(self, event: AuditEvent) -> bytes:
        """`LENGTH SPACE MESSAGE`, the length in octets."""
        priority = _AUTHPRIV * 8 + _SEVERITIES[event.outcome]
        at = event.time.isoformat(timespec="milliseconds")
        count = f'[meta sequenceId="{event.sequence}"]'
        head = f"<{priority}>1 {at} {self._host} wsisam {os.getpid()} {MSGID} {count} "
        message = head.encode("ascii", "replace") + _BOM + dicom_message(event, host=self._host, site=self._site)
        return str(len(message)).encode("ascii") + b" " + message
