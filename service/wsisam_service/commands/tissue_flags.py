"""What `wsisam train` and `wsisam evaluate` share: which annotated tissue, and what of it is held out."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from wsisam_model.config import ModelConfig
from wsisam_model.train.samples import MIN_AREA_UM2
from wsisam_service.commands.flags import UsageError, finite

if TYPE_CHECKING:
    from wsisam_service.annotated.dataset import Dataset

CACHE_FOLDER = Path(".cache/embeddings")
SHOWN_REJECTIONS = 8


def add_tissue(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("annotated tissue")
    group.add_argument(
        "--data",
        nargs="+",
        required=True,
        metavar="SOURCE",
        help="folders with meta.json, images/ and masks/, or SLIDE=ANNOTATIONS.geojson (QuPath, level-0 pixels)",
    )
    group.add_argument(
        "--hold-out", nargs="*", default=[], metavar="NAME", help="DATASET/PATIENT or DATASET, kept out of training"
    )
    group.add_argument(
        "--held-fraction", type=share, default=0.0, metavar="PART", help="of the other patients, kept out too [0]"
    )
    group.add_argument(
        "--max-objects", type=whole_number, metavar="N", help="at most so many of each set, over all patients"
    )
    group.add_argument("--min-area", type=finite, default=MIN_AREA_UM2, metavar="UM2", help=f"[{MIN_AREA_UM2:.0f}]")
    group.add_argument("--seed", type=whole_number, default=0, help="of splits, prompts and training [0]")
    group.add_argument("--cache", type=Path, default=CACHE_FOLDER, metavar="FOLDER", help=f"[{CACHE_FOLDER}]")


def whole_number(text: str) -> int:
    """What a flag says where it counts something, 0 or more; argparse tells of anything else."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    return int(text)


def share(text: str) -> float:
    """What a flag says where it gives a part of a whole, 0 to 1; argparse tells of anything else."""
    part = finite(text)
    if not 0 <= part <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1")
    return part


def tissue_of(options: argparse.Namespace, config: ModelConfig) -> tuple[Dataset, Dataset]:
    """(for training, held out) of a command line; says on stderr what was left out and why."""
    from wsisam_service.annotated.dataset import load

    dataset = load(options.data, config, min_area_um2=options.min_area)
    for rejection in dataset.rejections[:SHOWN_REJECTIONS]:
        print(f"left out: {rejection.what}: {rejection.reason}", file=sys.stderr)
    if len(dataset.rejections) > SHOWN_REJECTIONS:
        print(f"left out: {len(dataset.rejections) - SHOWN_REJECTIONS} more", file=sys.stderr)
    if not dataset.size:
        raise UsageError("no annotated object is left")
    try:
        parts = dataset.split(options.hold_out, options.held_fraction, options.seed)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if options.max_objects is None:
        return parts
    training, held = (part.limited(options.max_objects, seed=options.seed) for part in parts)
    return training, held


def make_folder(path: Path) -> None:
    """`path` as a folder to write into. Raises `UsageError` where it cannot be one; to be called before the work."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UsageError(f"cannot write to {path}: {error.strerror}") from error


def progress_bar(label: str) -> Callable[[int, int], None]:
    """A tqdm bar for callers that report (done, total)."""
    bars: list[Any] = []

    def report(done: int, total: int) -> None:
        if not bars:
            bars.append(tqdm(total=total, desc=label, disable=None))
        bars[0].update(done - bars[0].n)
        if done >= total:
            bars[0].close()

    return report
