"""Settings as flags: every setting that a command uses is a flag of the same name."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from pathlib import Path

from wsisam_service.settings import Settings, load_settings

MODEL_SETTINGS = ("model", "adapters", "own_adapters", "weights", "engine", "precision", "device", "threads")
CACHE_SETTINGS = (
    *("store", "store_format", "store_keys", "store_memory_bytes", "store_folder_bytes"),
    *("l1_bytes", "tile_cache_bytes", "engine_cache"),
)

_SEVERAL = ("slides", "own_adapters")


class UsageError(Exception):
    """What the user of the command line got wrong, in one line."""


def finite(text: str) -> float:
    """What a flag says where it measures something; argparse tells of anything else."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r} is no number")
    return number


def add_settings(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """Add a flag for each of the settings called `names`, and `--config`."""
    group = parser.add_argument_group("settings", "also WSISAM_… variables and keys of the settings file (TOML)")
    group.add_argument("--config", type=Path, metavar="FILE", help="settings file; also WSISAM_CONFIG")
    for name in names:
        field = Settings.model_fields[name]
        flag = _flag(name)
        help_text = " ".join((field.description or "").replace("%", "%%").split())
        if field.annotation is bool:
            group.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=help_text)
            continue
        shown = field.default if isinstance(field.default, int | float) or field.default else None
        default = f" [{shown}]" if isinstance(shown, str | int | float) else ""
        nargs = "+" if name in _SEVERAL else None
        metavar = name.rsplit("_", maxsplit=1)[-1].upper()
        group.add_argument(flag, nargs=nargs, metavar=metavar, default=argparse.SUPPRESS, help=help_text + default)


def settings_of(options: argparse.Namespace) -> Settings:
    """The settings of this command line; raises `SettingsError`."""
    given = {name: value for name, value in vars(options).items() if name in Settings.model_fields}
    return load_settings(given, options.config)


def flags_of(settings: Settings, names: Iterable[str]) -> list[str]:
    """The flags that give another `wsisam` the settings called `names`; none of them is a yes or no."""
    flags: list[str] = []
    for name in names:
        value = getattr(settings, name)
        if value is not None and value != ():
            flags += [_flag(name), *map(str, value if name in _SEVERAL else [value])]
    return flags


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
