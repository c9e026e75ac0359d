"""The one settings object. Built once by the command line, passed down, never changed; nothing else reads the
environment. Flags win over `WSISAM_…` variables, which win over the settings file (TOML), which wins over defaults.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from wsisam_service.access.grants import SAME_NAMES, Grant
from wsisam_service.dicom.codes import parse_term
from wsisam_service.dicom.pacs_settings import PacsSettings, check_root, is_pacs

ENV_PREFIX = "WSISAM_"
CONFIG_VARIABLE = "WSISAM_CONFIG"
"""Path of the settings file, where no flag gives it."""
MIB = 1024 * 1024
MAX_PORT = 65535
GUARDS = ("keys", "tls_certificate", "tls_client_ca")
"""Files that keep others out: setting them to nothing is no way to let everybody in."""

_ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
_PROCESS_KEY = secrets.token_bytes(32)


class SettingsError(Exception):
    """A setting that cannot be used; the message names it and is for the operator."""


class Settings(BaseSettings):
    """What an operator can choose. Units are in the names."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid", use_attribute_docstrings=True)

    slides: Annotated[tuple[str, ...], NoDecode] = ()
    """Roots of the slides: folders, fsspec URLs or dicomweb+https://HOST/PATH. In the environment separated by
    commas."""
    pacs: Annotated[tuple[PacsSettings, ...], NoDecode] = ()
    """Credentials, filters and limits of DICOMweb roots, in the settings file or as JSON (docs/PACS.md)."""
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=MAX_PORT)
    insecure: bool = False
    """Listen beyond loopback, and answer to any host name, although nobody is asked who they are, because something in
    front of the service asks."""

    keys: Path | None = None
    """File of API keys, which `wsisam key new` writes; with it every caller is asked who they are."""
    oidc_issuer: str = ""
    """OpenID Connect issuer, as the `iss` claim of its access tokens has it; with it too every caller is asked."""
    oidc_audience: str = ""
    """What the tokens' `aud` claim must hold: this service's name at the issuer."""
    oidc_roles_claim: str = "roles"
    """Claim with the caller's roles at the issuer; dots lead into objects, as in realm_access.roles."""
    oidc_roles: Annotated[Mapping[str, Grant], NoDecode] = SAME_NAMES
    """What those roles give here, as JSON or TOML: {"pathologists": "annotator", "guests": {"role": "viewer", "roots":
    ["colon"]}}. The strongest counts. By default they are called viewer, annotator and admin as here."""
    oidc_skew_s: int = Field(30, ge=0, le=300)
    """How far the issuer's clock may be from ours."""
    identity_requests_per_minute: int = Field(6000, ge=0)
    """Requests of one identity; a viewer asks for some 50 tiles at a time. 0 is no limit."""
    identity_work: int = Field(3, ge=1)
    """Requests of one identity for the model that are under way at a time. One takes up to a quarter of the queues, so
    that with three of them the next caller's click is still let in."""
    wrong_credentials_per_minute: int = Field(60, ge=0)
    """Wrong keys and tokens from one address, beyond which credentials from there are not looked at. 0 is no limit."""
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    """Origins, as https://viewer.example.org, whose pages may call the whole service from a browser (CORS)."""
    token: SecretStr = SecretStr("")
    """Key or access token that `segment --url` and `precompute` send to the server."""

    tls_certificate: Path | None = None
    """Certificate (PEM, with what leads to its authority) for HTTPS in this process. None: plain HTTP."""
    tls_key: Path | None = None
    """Its key (PEM), where that is in a file of its own."""
    tls_client_ca: Path | None = None
    """Authority (PEM) whose certificates clients must have (mTLS); for a worker, that of its gateways."""
    max_connections: int = Field(4096, ge=1)
    """Connections at once; beyond them the one idle for longest is closed."""

    model: str = "lite_medsam"
    adapters: str = "default"
    """The shipped "default" (if any) or "open" (trained on CC0 data alone), "none" (the frozen SAM), or a file."""
    own_adapters: Annotated[tuple[Path, ...], NoDecode] = ()
    """Files of further adapters, each for views that look like those it was trained on, or by name. In the environment
    separated by commas."""
    weights: Path | None = None
    """Folder or file of base weights that do not come with a package (vit_tiny, vit_b, vit_l, vit_h)."""
    engine: str = "auto"
    """"auto" (OpenVINO on CPU where installed, captured graphs on CUDA), "openvino", or "torch"."""
    engine_cache: Path | None = None
    """Folder of converted networks; None is wsisam/engines in the user's cache folder."""
    precision: str = "auto"
    """"auto" (float16 on CUDA, bfloat16 where OpenVINO has it and the model passed, else float32), or as in
    docs/PERFORMANCE.md."""
    device: str = "auto"
    threads: int | None = Field(None, ge=1)
    """Threads of the network; None leaves it to the engine."""

    store: str = "memory"
    """Embedding store: "memory", "folder:PATH" or "redis://HOST:PORT/DB"; docs/SCALING.md has Redis's other URLs."""
    store_format: Literal["float16", "int8"] = "float16"
    """How embeddings are kept and used; "int8" halves every store and its network at no Dice seen (docs/SCALING.md)."""
    store_memory_bytes: int = Field(256 * MIB, ge=0)
    """Byte budget of embeddings in memory; one LiteMedSAM view is 3.3 MB."""
    store_folder_bytes: int = Field(10 * 1024 * MIB, ge=0)
    """Byte budget of a folder store."""
    store_ttl_s: int = Field(7 * 24 * 3600, ge=1)
    """Life of an embedding in the store."""
    store_keys: SecretStr = SecretStr("")
    """AES-256 keys, base64 of 32 bytes each, separated by commas, that encrypt folder and Redis stores: the first
    encrypts, all of them decrypt. Empty: blobs lie there as they are."""
    l1_bytes: int = Field(1024 * MIB, ge=0)
    """Byte budget of decoder-ready views in device memory."""
    tile_cache_bytes: int = Field(256 * MIB, ge=0)
    """Byte budget of decoded slide tiles."""
    iiif_cache_bytes: int = Field(64 * MIB, ge=0)
    """Byte budget of encoded tiles for viewers; a JPEG tile has some 50 kB."""
    iiif_origins: Annotated[tuple[str, ...], NoDecode] = ("*",)
    """Origins whose pages may read tiles (CORS). IIIF wants all; empty for none but the service's own page."""
    open_slides: int = Field(64, ge=1)
    """Slides held open at once."""
    refine_ttl_s: int = Field(3600, ge=1)
    """Life of a refine token: a coffee break, not a night."""

    worker_url: str = ""
    """Worker, or router of workers, that runs the model for `serve`; empty: it runs in the gateway's process."""
    worker_token: SecretStr = SecretStr("")
    """What gateways and workers share so that workers answer nobody else."""

    worker_ca: Path | None = None
    """Who signed the certificates of workers at an https URL (PEM); None for those that the system trusts."""
    worker_certificate: Path | None = None
    """The gateway's certificate (PEM, with its key) for workers that ask for one."""

    max_encodes: int = Field(64, ge=2)
    """Views at the encoder, waiting ones included, before requests are refused: on two cores some 20 s of work. A lone
    click may need two.
    """
    max_decodes: int = Field(1024, ge=1)
    """Prompts at the decoder, waiting ones included, before requests are refused; four full requests."""
    max_body_bytes: int = Field(64 * MIB, ge=1)
    max_image_px: int = Field(20_000_000, ge=1)
    """Pixels of a picture sent with a request; decoded it takes three bytes each."""
    request_timeout_s: float = Field(60.0, gt=0)

    picture_cache_bytes: int = Field(64 * MIB, ge=0)
    """Byte budget of decoded pictures of QuPath's SAM extension, which sends a view again with every click."""
    automask_points_per_side: int = Field(32, ge=1)
    """Finest grid of an automask; the extension's window has no limit, and work grows with the square."""
    automask_s: float = Field(120.0, gt=0)
    """Seconds an automask goes on asking; its answer is what was found by then."""
    sam_weights: Path | None = None
    """Folder whose files the extension's Register dialog may name, and where its downloads go. None: neither."""
    sam_weights_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Hosts that the Register dialog may download from, over https."""

    audit_file: Path | None = None
    """File that gets a JSON line for each request: who asked what of which slide, when, from where, what came of it."""
    audit_syslog: str = ""
    """HOST:PORT of a syslog server that gets the same as DICOM audit messages over TLS."""
    audit_syslog_ca: Path | None = None
    """Who signed that server's certificate (PEM); None for those that the system trusts."""
    audit_syslog_certificate: Path | None = None
    """Our own certificate (PEM), where that server asks for one."""
    audit_syslog_key: Path | None = None
    """The key of that certificate (PEM), where it is in a file of its own."""
    audit_site: str = ""
    """The hospital's name for this place (AuditEnterpriseSiteID)."""
    audit_waiting: int = Field(10_000, ge=1)
    """Audit events that wait while a sink cannot be reached, some 10 MB; further ones are lost and counted."""

    dicom_codes: Annotated[dict[str, tuple[str, str]], NoDecode] = {}
    """QuPath class → category and type of its segments in DICOM, each "SCHEME VALUE MEANING"; beside the usual ones."""

    secret: SecretStr = SecretStr("")
    """Signs refine tokens and hides fingerprints in view keys. If empty, a random one signs the tokens of this
    process only, and the fingerprints are not hidden."""

    @field_validator("slides", "own_adapters", "sam_weights_hosts", "iiif_origins", "cors_origins", mode="before")
    @classmethod
    def _split_list(cls, value: object) -> object:
        """Environment variables hold one text; commas separate its parts."""
        if isinstance(value, list | tuple) and "" in value:
            raise ValueError("one of them is empty")  # as a path it would be the current folder
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("*", mode="before")
    @classmethod
    def _empty_path_is_none(cls, value: object, info: ValidationInfo) -> object:
        """A variable that is set to nothing, as with ${X:-}, names no path; as one it would be the current folder."""
        name = info.field_name or ""
        if value != "" or cls.model_fields[name].annotation != Path | None:
            return value
        if name in GUARDS:
            raise ValueError("is empty: leave it out to do without")
        return None

    @field_validator("adapters")
    @classmethod
    def _some_adapters(cls, value: str) -> str:
        if not value:
            raise ValueError('is empty: "default", "open", "none" or a file')
        return value

    @field_validator("slides")
    @classmethod
    def _usable_roots(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_root(root) if is_pacs(root) else root for root in value)

    @field_validator("cors_origins", "iiif_origins")
    @classmethod
    def _are_origins(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        for origin in value:
            # "*" for tiles alone: whoever has a key would send it to the rest from any page
            if not (_ORIGIN.fullmatch(origin) or (origin == "*" and info.field_name == "iiif_origins")):
                raise ValueError("an origin is written as a browser sends it: https://viewer.example.org")
        return value

    @field_validator("token", "worker_token")
    @classmethod
    def _fits_a_header(cls, value: SecretStr) -> SecretStr:
        text = value.get_secret_value()
        if not (text.isascii() and text.isprintable() and text == text.strip()):
            raise ValueError("is of visible ASCII characters, without spaces at its ends")
        return value

    @field_validator("worker_url")
    @classmethod
    def _is_http(cls, value: str) -> str:
        if value and not _is_http_url(value):
            raise ValueError("is http://HOST:PORT or https://HOST:PORT")
        return value

    @field_validator("pacs", "dicom_codes", "oidc_roles", mode="before")
    @classmethod
    def _read_json(cls, value: object) -> object:
        """Environment variables and flags hold one text."""
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError("is not JSON") from error

    @field_validator("pacs")
    @classmethod
    def _of_a_root(cls, value: tuple[PacsSettings, ...], info: ValidationInfo) -> tuple[PacsSettings, ...]:
        for one in value:
            if one.root not in info.data.get("slides", ()):
                raise ValueError(f"{one.root} is not among the roots of slides")
        return value

    @field_validator("dicom_codes")
    @classmethod
    def _known_codes(cls, value: dict[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
        for texts in value.values():
            for text in texts:
                parse_term(text)
        return value

    @field_validator("store")
    @classmethod
    def _known_store(cls, value: str) -> str:
        kind, _, rest = value.partition(":")
        if value == "memory" or (kind == "folder" and rest):
            return value
        if kind.startswith("redis"):
            from wsisam_service.stores.redis_urls import check_url

            check_url(value)
            return value
        raise ValueError('is "memory", "folder:PATH" or "redis://HOST:PORT/DB"')

    @field_validator("store_keys")
    @classmethod
    def _known_keys(cls, value: SecretStr) -> SecretStr:
        if value.get_secret_value():
            from wsisam_service.stores.encryption import parse_keys

            parse_keys(value.get_secret_value())
        return value

    @field_validator("audit_syslog")
    @classmethod
    def _host_and_port(cls, value: str) -> str:
        if value:
            matched = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:\s]+):([0-9]{1,5})", value)
            if matched is None or not 0 < int(matched[2]) <= MAX_PORT:
                raise ValueError("is HOST:PORT")
        return value

    @property
    def asks_callers(self) -> bool:
        """Whether callers are asked who they are."""
        return self.keys is not None or bool(self.oidc_issuer)

    @property
    def token_key(self) -> bytes:
        """What refine tokens are signed with; random for this process where no secret is set."""
        return self.secret.get_secret_value().encode() or _PROCESS_KEY

    @property
    def fingerprint_key(self) -> bytes | None:
        """What fingerprints in view keys are hidden with, or None for plain fingerprints."""
        return self.secret.get_secret_value().encode() or None

    def describe(self) -> str:
        """Every setting on a line of its own, secrets hidden; printed at start."""
        shown = {name: getattr(self, name) for name in type(self).model_fields}
        shown = {name: without_password(value) if isinstance(value, str) else value for name, value in shown.items()}
        shown["pacs"] = ", ".join(one.root for one in self.pacs) or "(none)"
        shown["slides"] = ", ".join(map(without_password, self.slides)) or "(none)"
        shown["own_adapters"] = ", ".join(map(str, self.own_adapters)) or "(none)"
        shown["secret"] = "set" if self.fingerprint_key else "random for this process; refine tokens end with it"
        width = max(map(len, shown))
        return "\n".join(f"  {name:<{width}}  {value}" for name, value in shown.items())

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, environment, settings file; no .env file is read behind the operator's back."""
        return (init_settings, env_settings, TomlConfigSettingsSource(settings_cls))


def load_settings(flags: Mapping[str, object], config: Path | None = None) -> Settings:
    """Settings of `flags` (those given), the environment, and the file `config` or the one `WSISAM_CONFIG` names.

    Raises `SettingsError` with one line that names the setting.
    """
    path = config or (Path(named) if (named := os.environ.get(CONFIG_VARIABLE)) else None)
    if path is not None and not path.is_file():
        raise SettingsError(f"there is no settings file {path}")
    try:
        return _settings_class(path)(**dict(flags))  # type: ignore[arg-type]  # pydantic checks the values
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or "settings"
        raise SettingsError(f"setting {name}: {first['msg'].removeprefix('Value error, ')}") from error


def _settings_class(path: Path | None) -> type[Settings]:
    class FileSettings(Settings):
        model_config = SettingsConfigDict(toml_file=path)

    return FileSettings


def without_password(url: str) -> str:
    """`url` as it may be shown. A password may hold anything, so that all before the last @ is hidden, and a query may
    be one.
    """
    return re.sub(r"(?s)(://[^?]*)\?.*", r"\1?…", re.sub(r"(?s)://.*@", "://…@", url))


def _is_http_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        at_a_port = parts.port is None or parts.port > 0
    except ValueError:
        return False
    plain = text.isascii() and text.isprintable() and " " not in text
    nothing_else = "@" not in parts.path and not parts.query and not parts.fragment
    return parts.scheme in ("http", "https") and bool(parts.hostname) and at_a_port and plain and nothing_else
