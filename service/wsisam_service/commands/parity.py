"""`wsisam parity`: this implementation against golden vectors of the authors' network; exit code 1 when one is over."""

from __future__ import annotations

import argparse
from pathlib import Path

from wsisam_service.commands.flags import UsageError, add_settings, settings_of

OVER = 1


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("parity", help="compare this implementation with golden vectors", description=__doc__)
    parser.add_argument("file", metavar="FILE.npz", type=Path)
    add_settings(parser, ("model", "weights", "device", "precision", "engine"))
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from wsisam_model.parity import run_parity

    if not options.file.is_file():
        raise UsageError(f"there is no file {options.file}")
    settings = settings_of(options)
    rows = run_parity(
        options.file,
        model=settings.model,
        device=settings.device,
        precision="float32" if settings.precision == "auto" else settings.precision,
        engine=settings.engine,
        weights=settings.weights,
    )
    print(f"{'':<4} {'case':<16} {'form':<8} {'quantity':<28} {'error':>9} {'allowed':>9}")
    for row in rows:
        mark = "ok" if row.passed else "OVER"
        print(f"{mark:<4} {row.case:<16} {row.form:<8} {row.quantity:<28} {row.error:9.1e} {row.tolerance:9.1e}")
    over = sum(not row.passed for row in rows)
    print(f"{len(rows)} comparisons, {over} over what is allowed")
    return OVER if over else 0
