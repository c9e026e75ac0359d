"""What an operator says of one DICOMweb service: who we are there, how long we wait, and which slides we list."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

SCHEMES = {"dicomweb+https": "https", "dicomweb+http": "http"}
"""Schemes of roots, and of the HTTP below them."""
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_ATTRIBUTE = re.compile(r"[A-Za-z]+|[0-9A-Fa-f]{8}")


def check_root(root: str) -> str:
    """The root without its last slash. Raises ValueError, with a message that does not quote it."""
    parts = urlsplit(root)
    if parts.scheme not in SCHEMES or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("a DICOMweb root is dicomweb+https://HOST/PATH or dicomweb+http://HOST/PATH")
    if parts.username or parts.password:
        raise ValueError("credentials of a PACS are settings of their own (docs/PACS.md), not part of a root")
    return root.rstrip("/")


def is_pacs(root: str) -> bool:
    """Whether a root is a DICOMweb service."""
    return root.partition("://")[0] in SCHEMES


class PacsSettings(BaseModel):
    """One root's. At most one of bearer token, user with password, and client certificate beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    root: str
    """The root as in `slides`: dicomweb+https://HOST/PATH."""
    token: SecretStr = SecretStr("")
    token_file: Path | None = None
    """Read anew for every request, so that it may change."""
    user: str = ""
    password: SecretStr = SecretStr("")
    password_file: Path | None = None
    certificate: Path | None = None
    """Our own certificate (PEM), for TLS on both sides."""
    key: Path | None = None
    """The key of that certificate (PEM), where it is in a file of its own."""
    ca: Path | None = None
    """Who signed the PACS's certificate (PEM); None for those that the system trusts."""
    plain: bool = False
    """Send credentials over http although others on the way can read them."""
    filters: dict[str, str] = Field(default_factory=dict)
    """QIDO-RS conditions beside Modality=SM, as {"AccessionNumber": "S26*"}."""
    refresh_s: float = Field(60.0, ge=1)
    """How old a listing may be before the PACS is asked again."""
    max_series: int = Field(10_000, ge=1)
    """Series that are listed; further ones are left out."""
    connect_s: float = Field(3.0, gt=0)
    read_s: float = Field(8.0, gt=0)
    """Longest silence within an answer."""
    total_s: float = Field(20.0, gt=0)
    """Longest time for one question, with everything that is tried again."""
    connections: int = Field(4, ge=1, le=32)
    """Requests side by side for the frames of one view."""

    @field_validator("root")
    @classmethod
    def _known_root(cls, value: str) -> str:
        return check_root(value)

    @field_validator("filters")
    @classmethod
    def _attributes(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not _ATTRIBUTE.fullmatch(name):
                raise ValueError(f"{name!r} is no DICOM attribute")
        return value

    @model_validator(mode="after")
    def _credentials_fit(self) -> Self:
        bearer, basic = bool(self.token.get_secret_value() or self.token_file), bool(self.user)
        if bearer and basic:
            raise ValueError("either a token or a user, not both")
        loopback = urlsplit(self.root).hostname in _LOOPBACK
        if (bearer or basic) and self.url.startswith("http:") and not (loopback or self.plain):
            raise ValueError("credentials would travel readable over http; take dicomweb+https, or say plain")
        return self

    @property
    def url(self) -> str:
        """Where the service is, without the last slash."""
        scheme, _, rest = self.root.partition("://")
        return f"{SCHEMES[scheme]}://{rest}"
