"""A real rsyslog on loopback that takes RFC 5424 over TLS, and writes what it understood of each message as JSON."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from certificates import Certificate
from processes import Server, free_port

_DRIVERS = ("/usr/lib/x86_64-linux-gnu/rsyslog", "/usr/lib/aarch64-linux-gnu/rsyslog", "/usr/lib/rsyslog")
_FIELDS = {
    "pri": "pri",
    "version": "protocol-version",
    "time": "timereported",
    "host": "hostname",
    "app": "app-name",
    "pid": "procid",
    "msgid": "msgid",
    "data": "structured-data",
    "msg": "msg",
}


def rsyslog_path() -> str:
    """Skips without rsyslog and its driver for TLS by OpenSSL."""
    found = shutil.which("rsyslogd") or shutil.which("rsyslogd", path="/usr/sbin")
    if found is None or not any(Path(folder, "lmnsd_ossl.so").exists() for folder in _DRIVERS):
        pytest.skip("needs rsyslog and rsyslog-openssl")
    return found


class Rsyslog(Server):
    """Clients need a certificate of the same authority."""

    def __init__(self, folder: Path, ca: Path, own: Certificate) -> None:
        program = rsyslog_path()
        self.port = free_port()
        self._messages = folder / "messages.json"
        properties = "\n".join(
            f'  property(outname="{name}" name="{field}" format="jsonf"'
            + (' dateFormat="rfc3339")' if field == "timereported" else ")")
            for name, field in _FIELDS.items()
        )
        configuration = folder / "rsyslog.conf"
        configuration.write_text(
            f'''global(workDirectory="{folder}" defaultNetstreamDriver="ossl" defaultNetstreamDriverCAFile="{ca}"
       defaultNetstreamDriverCertFile="{own.certificate}" defaultNetstreamDriverKeyFile="{own.key}")
module(load="imtcp" StreamDriver.Name="ossl" StreamDriver.Mode="1" StreamDriver.AuthMode="x509/certvalid")
input(type="imtcp" address="127.0.0.1" port="{self.port}")
template(name="understood" type="list" option.jsonf="on") {{
{properties}
}}
action(type="omfile" file="{self._messages}" template="understood")
'''
        )
        command = [program, "-n", "-f", str(configuration), "-i", str(folder / "rsyslog.pid")]
        super().__init__(command, folder / "rsyslog.log")
        self.await_listening()

    def messages(self) -> list[dict[str, Any]]:
        """Those that clients sent; rsyslog's own are left out."""
        if not self._messages.exists():
            return []
        lines = [json.loads(line) for line in self._messages.read_text().splitlines()]
        return [line for line in lines if line["app"] == "wsisam"]
