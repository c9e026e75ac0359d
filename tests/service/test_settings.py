"""Settings: who wins, what is refused, what is printed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

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
        ({}, "colour = 1", "colour"),
        ({}, "port = ", "TOML"),
    ],
)
def test_a_bad_setting_is_named_in_one_line(
    tmp_path: Path, flags: dict[str, object], text: str | None, named: str
) -> None:
    config = None
    if text is not None:
        config = tmp_path / "wsisam.toml"
        config.write_text(text)
    with pytest.raises(SettingsError, match=named) as caught:
        load_settings(flags, config)
    assert "\n" not in str(caught.value)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1  # type: ignore[misc]


def test_description_shows_no_secret_and_no_password() -> None:
    described = Settings(secret="hush", store="redis://user:pass@cache:6379/0").describe()  # type: ignore[arg-type]
    assert "hush" not in described
    assert "pass@" not in described
    assert "cache:6379" in described


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
