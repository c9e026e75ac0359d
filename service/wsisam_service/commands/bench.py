"""`wsisam bench`: what a click costs on this machine, cold, warm and beside the plain ways of doing it."""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wsisam_service.commands import click_costs
from wsisam_service.commands.flags import MODEL_SETTINGS, UsageError, add_settings, flags_of, settings_of
from wsisam_service.commands.slide_local import open_slide_file
from wsisam_service.slides.write import write_pyramid

TISSUE_MPP = 0.5
TISSUE_TILES = 8


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("bench", help="measure clicks on this machine", description=__doc__)
    parser.add_argument("--slide", type=Path, help="2000 pixels or more a side; else scikit-image's picture, tiled")
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="[20]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there too")
    add_settings(parser, MODEL_SETTINGS)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from wsisam_model import load_model

    settings = settings_of(options)
    if options.rounds < 1:
        raise UsageError("--rounds is at least 1")
    model = {name: getattr(settings, name) for name in MODEL_SETTINGS if name != "model"}
    with tempfile.TemporaryDirectory() as folder:
        path = options.slide or _tiled_tissue(Path(folder))
        predictor = load_model(settings.model, **model)
        peer = load_model(settings.model, **(model | {"engine": "torch", "precision": "float32"}))
        with click_costs.running_service(path, flags_of(settings, MODEL_SETTINGS)) as url:
            load_before = os.getloadavg()[0]
            figures = click_costs.measure(
                predictor, peer, open_slide_file(path), url, rounds=options.rounds, settings=settings
            )
    adapters = "none" if predictor.adapters is None else predictor.adapters.name
    about = {
        "model": settings.model,
        "adapters": adapters,
        "device": predictor.device,
        "engine": predictor.engine,
        "precision": predictor.precision,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": [load_before, os.getloadavg()[0]],
    }
    quantiles = {name: click_costs.Quantiles.of(samples) for name, samples in figures.items()}
    _print(about, quantiles)
    if options.json:
        document = {"about": about, "ms": figures, "quantiles": {name: asdict(q) for name, q in quantiles.items()}}
        options.json.write_text(json.dumps(document, indent=1))
    return 0


def _tiled_tissue(folder: Path) -> Path:
    """scikit-image's picture of colon glands repeated to a slide large enough for cold clicks."""
    try:
        from skimage import data
    except ImportError:
        raise UsageError("give --slide, or install scikit-image for its picture of tissue") from None
    import numpy as np

    path = folder / "tissue.tif"
    picture = data.immunohistochemistry()  # type: ignore[no-untyped-call]
    write_pyramid(path, np.tile(picture, (TISSUE_TILES, TISSUE_TILES, 1)), TISSUE_MPP)
    return path


def _print(about: Mapping[str, Any], quantiles: Mapping[str, click_costs.Quantiles]) -> None:
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    print(f"\n{'milliseconds':<34}{'p50':>9}{'p95':>9}{'min':>9}")
    for name, quantile in quantiles.items():
        print(f"{name:<34}{quantile.p50:9.1f}{quantile.p95:9.1f}{quantile.minimum:9.1f}")
    print(f"\n{'ratio of medians':<34}{'measured':>9}{'at most':>9}")
    for name, (measured, most) in click_costs.ratios(quantiles).items():
        print(f"{name:<34}{measured:9.3f}{most:9.3f}")
