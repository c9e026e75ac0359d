"""Certificates of an authority made for one test: servers at 127.0.0.1 and clients, signed by openssl."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout")


@dataclass(frozen=True)
class Certificate:
    certificate: Path
    key: Path


class Authority:
    """Signs certificates; who trusts `ca` trusts them."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._own = Certificate(folder / f"{name}.pem", folder / f"{name}.key")
        usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign", "-addext", "subjectKeyIdentifier=hash")
        _openssl("req", "-x509", *_KEY, str(self._own.key), "-subj", f"/CN={name}", *usage, "-out", str(self.ca))

    @property
    def ca(self) -> Path:
        return self._own.certificate

    def issue(self, name: str) -> Certificate:
        """For 127.0.0.1 and localhost, as server and as client."""
        made = Certificate(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        request, extensions = self._folder / f"{name}.csr", self._folder / f"{name}.ext"
        extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\nauthorityKeyIdentifier=keyid\n")
        _openssl("req", "-new", *_KEY, str(made.key), "-subj", f"/CN={name}", "-out", str(request))
        signer = ("-CA", str(self.ca), "-CAkey", str(self._own.key), "-CAcreateserial", "-days", "2")
        files = ("-in", str(request), "-extfile", str(extensions), "-out", str(made.certificate))
        _openssl("x509", "-req", *signer, *files)
        return made


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
