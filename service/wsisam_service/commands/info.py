"""`wsisam info`: what a slide is, and what would be served of it."""

from __future__ import annotations

import argparse
from pathlib import Path

from wsisam_model.config import model_config
from wsisam_service.commands.flags import add_settings, settings_of
from wsisam_service.commands.slide_local import open_slide_file
from wsisam_service.slides.slide import Slide


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("info", help="what a slide is, and what would be served of it", description=__doc__)
    parser.add_argument("slide", metavar="SLIDE", type=Path)
    add_settings(parser, ("model",))
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    config = model_config(settings_of(options).model)
    slide = open_slide_file(options.slide)
    slide_mpp, warnings = slide.slide_mpp(config.default_mpp)
    for name, value in _facts(slide):
        print(f"{name:<12} {value}")
    print(f"{'counts with':<12} {slide_mpp:g} µm per level-0 pixel")
    print(f"{'views':<12} {config.image_size} x {config.image_size} px for {config.name}")
    for warning in warnings:
        print(f"{'warning':<12} {warning}")
    return 0


def _facts(slide: Slide) -> list[tuple[str, str]]:
    info = slide.info
    facts = [
        ("name", slide.name),
        ("size", f"{slide.width} x {slide.height} px"),
        ("mpp", f"{info.mpp:g} µm" if info.mpp is not None else "not given"),
        ("bounds", "{} {} {} {}".format(*info.bounds) if info.bounds else "none"),
        ("vendor", info.vendor or "unknown"),
        ("objective", f"{info.objective_power:g}x" if info.objective_power else "unknown"),
        ("fingerprint", slide.fingerprint),
    ]
    levels = [f"{level.width} x {level.height} px, 1:{level.downsample:g}" for level in info.levels]
    return facts + [(f"level {number}", level) for number, level in enumerate(levels)]
