"""Settings: who wins, what is refused, what is printed."""

from __future__ import annotations

import argparse
import base64
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from wsisam_service.assembly import build_service
from wsisam_service.commands import segment, worker
from wsisam_service.commands.flags import MODEL_SETTINGS, add_settings, flags_of, settings_of
from wsisam_service.settings import Settings, SettingsError, load_settings


def test_flags_win_over_environment_over_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "wsisam.toml"
    config.write_text('slides = ["from-file"]\nport = 1\nthreads = 1\nmax_body_bytes = 1\n')
    monkeypatch.setenv("WSISAM_PORT", "2")
    monkeypatch.setenv("WSISAM_THREADS", "2")
    settings = load_settings({"threads": 3}, config)
    assert (settings.slides, settings.max_body_bytes, settings.port, settings.threads) == (("from-file",), 1, 2, 3)


def test_environment_splits_lists_at_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSISAM_SLIDES", "/slides/a, s3://bucket/b")
    assert load_settings({}).slides == ("/slides/a", "s3://bucket/b")
    monkeypatch.setenv("WSISAM_OWN_ADAPTERS", "kidney.safetensors, liver.safetensors")
    assert [path.stem for path in load_settings({}).own_adapters] == ["kidney", "liver"]


def test_settings_file_is_found_through_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "wsisam.toml"
    config.write_text("port = 9")
    monkeypatch.setenv("WSISAM_CONFIG", str(config))
    assert load_settings({}).port == 9


@pytest.mark.parametrize(
    ("flags", "text", "named"),
    [
        ({"store": "floppy"}, None, "store"),
        ({"port": 70000}, None, "port"),
        *(({"worker_url": url}, None, "worker_url") for url in ("nope", "http://[x", "http://h:99999", "https://h h")),
        *(({"audit_syslog": place}, None, "audit_syslog") for place in ("host:99999", "host:0")),
        *(({"iiif_origins": f"*, https://{origin}"}, None, "iiif_origins") for origin in ("a.example/", "*")),
        *(({name: ""}, None, f"{name}: is empty") for name in ("keys", "tls_certificate", "tls_client_ca", "adapters")),
        *(({name: [""]}, None, f"{name}: one of them is empty") for name in ("slides", "own_adapters")),
        *(({name: "sécret"}, None, name) for name in ("token", "worker_token")),
        ({}, "colour = 1", "colour"),
        ({}, "port = ", "TOML"),
        ({}, "store = 'folder:M\udcfcnchen'", "TOML"),
    ],
)
def test_a_bad_setting_is_named_in_one_line(
    tmp_path: Path, flags: dict[str, object], text: str | None, named: str
) -> None:
    config = None
    if text is not None:
        config = tmp_path / "wsisam.toml"
        config.write_text(text, "utf-8", "surrogateescape")
    with pytest.raises(SettingsError, match=named) as caught:
        load_settings(flags, config)
    assert "\n" not in str(caught.value)


def test_a_path_set_to_nothing_is_not_the_current_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sam_weights", "audit_file", "weights", "engine_cache", "worker_ca"):
        monkeypatch.setenv(f"WSISAM_{name.upper()}", "")
    settings = load_settings({})
    assert settings.model_dump() == Settings.model_construct().model_dump()


def test_json_is_read_from_flags_and_environment_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = {"Tumor": ("SCT 49755003 Abnormal", "SCT 108369006 Neoplasm")}
    assert load_settings({"dicom_codes": json.dumps(codes)}).dicom_codes == codes
    monkeypatch.setenv("WSISAM_DICOM_CODES", json.dumps(codes))
    assert load_settings({}).dicom_codes == codes
    monkeypatch.setenv("WSISAM_PACS", "abc")
    with pytest.raises(SettingsError, match="setting pacs: is not JSON"):
        load_settings({})


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    "given",
    [
        {"secret": "hunter2"},
        {"store": "redis://user:hunter2@cache:6379/0"},
        {"store": "redis://user:a@hunter2@cache:6379/0"},
        {"worker_url": "http://user:hunter2@cache:6379"},
        {"slides": "ftp://user:hun/hunter2@cache:6379/slides"},
        {"slides": "https://cache:6379/slides?sig=hunter2"},
        {"cors_origins": "https://user:hunter2@cache:6379"},
    ],
)
def test_what_is_printed_shows_no_secret_and_no_password(given: dict[str, Any]) -> None:
    try:
        described = load_settings(given).describe()
    except SettingsError as error:
        described = str(error)
    assert "hunter2" not in described
    assert given.keys() & {"secret", "cors_origins"} or "cache:6379" in described


def test_a_gateways_notes_show_no_password_of_its_worker() -> None:
    service = build_service(Settings(worker_url="http://user:hunter2@worker:8100"))
    assert service.notes[0] == "the model runs behind http://…@worker:8100"


def test_without_a_secret_tokens_are_signed_but_fingerprints_stay_plain() -> None:
    settings = Settings()
    assert len(settings.token_key) == 32
    assert settings.fingerprint_key is None
    assert "random for this process" in settings.describe()


@pytest.mark.parametrize(
    "given",
    [{}, {"adapters": "none", "threads": 2}, {"own_adapters": ("kidney.safetensors", "liver.safetensors")}],
)
def test_flags_give_another_process_the_same_settings(given: dict[str, Any]) -> None:
    settings, parser = load_settings(given), argparse.ArgumentParser()
    add_settings(parser, MODEL_SETTINGS)
    other = settings_of(parser.parse_args(flags_of(settings, MODEL_SETTINGS)))
    assert other.model_dump() == settings.model_dump()


@pytest.mark.parametrize("command", [["worker"], ["segment", "x.svs", "--box", "1,2,3,4"]])
def test_what_opens_a_store_has_all_flags_of_stores(command: list[str]) -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    for module in (segment, worker):
        module.add_parser(commands)
    keys = base64.b64encode(bytes(32)).decode()
    given = ("--store-format", "int8", "--store-keys", keys, "--engine-cache", "engines")
    settings = settings_of(parser.parse_args([*command, *given]))
    assert (settings.store_format, settings.store_keys.get_secret_value()) == ("int8", keys)
    assert settings.engine_cache == Path("engines")
