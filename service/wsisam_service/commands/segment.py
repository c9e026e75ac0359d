"""`wsisam segment`: outlines on one slide, in this process or by a running server, as GeoJSON that QuPath opens, or as
a DICOM object.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
from tqdm import tqdm

from wsisam_service.commands.flags import CACHE_SETTINGS, MODEL_SETTINGS, UsageError, add_settings, finite, settings_of
from wsisam_service.commands.prompt_texts import Prompt, box_prompt, points_prompt, read_prompts
from wsisam_service.commands.slide_client import RemoteSlide, SlideClient
from wsisam_service.commands.slide_local import LocalSlide
from wsisam_service.masks.geojson import DEFAULT_SIMPLIFY, feature_collection
from wsisam_service.segmenting.segmenter import MAX_PROMPTS
from wsisam_service.settings import Settings

PROGRESS_FROM = 9
"""Prompts from which on a progress bar is worth its line."""
REQUEST_PROMPTS = 32
"""Prompts in one request where there is a bar to move; up to MAX_PROMPTS are allowed."""
NOTHING_FOUND = 1
GEOJSON = "geojson"
DICOM_KINDS = {"dicom-seg": "seg", "dicom-ann": "ann"}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("segment", help="outline what boxes or points show, on one slide", description=__doc__)
    parser.add_argument("slide", metavar="SLIDE", help="a slide file or a folder of DICOM; with --url its name or id")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--box", metavar="X0,Y0,X1,Y1", action="append", help="level-0 pixels; may be repeated")
    what.add_argument("--points", metavar='"X,Y,1 X,Y,0"', help="clicks on (1) and beside (0) one object")
    what.add_argument("--prompts", metavar="FILE", type=Path, help="GeoJSON: boxes around areas, clicks for points")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="what to write [standard output]")
    parser.add_argument(
        "--format", choices=(GEOJSON, *DICOM_KINDS), help="[dicom-seg where FILE ends in .dcm, else geojson]"
    )
    parser.add_argument("--mpp", type=finite, help="µm per view pixel [from the prompt's extent]")
    parser.add_argument("--simplify", type=finite, default=DEFAULT_SIMPLIFY, help="view pixels [%(default)s]")
    parser.add_argument("--url", help="ask this server instead of loading the model here")
    add_settings(parser, ("token", *MODEL_SETTINGS, *CACHE_SETTINGS))
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    prompts = _prompts(options)
    format_ = options.format or ("dicom-seg" if options.output and options.output.suffix == ".dcm" else GEOJSON)
    # A segmentation is to hold the very pixels of the masks.
    common = {"format": "geojson", "simplify": 0.0 if format_ == "dicom-seg" else options.simplify}
    if options.mpp is not None:
        common["mpp"] = options.mpp
    with _client(options, settings_of(options)) as client:
        results = _ask(client, prompts, common)
        _tell_what_is_missing(results)
        features = [result["geojson"] for result in results if result.get("geojson")]
        collection = feature_collection(features)
        if format_ == GEOJSON:
            _write(options.output, orjson.dumps(collection, option=orjson.OPT_APPEND_NEWLINE))
        elif any("problem" in result for result in results):
            raise UsageError("no object written: it would not say which prompts failed")
        elif features:
            _write(options.output, client.result({"kind": DICOM_KINDS[format_], "geojson": collection}))
    return 0 if features else NOTHING_FOUND


def _prompts(options: argparse.Namespace) -> list[Prompt]:
    if options.box:
        return [box_prompt(text) for text in options.box]
    return [points_prompt(options.points)] if options.points is not None else read_prompts(options.prompts)


def _client(options: argparse.Namespace, settings: Settings) -> SlideClient:
    if options.url:
        return RemoteSlide(options.url, options.slide, settings.token.get_secret_value())
    return LocalSlide(Path(options.slide), settings)


def _ask(client: SlideClient, prompts: Sequence[Prompt], common: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The results of all prompts, in their order; each warning is told once."""
    results: list[dict[str, Any]] = []
    told: set[str] = set()
    size = MAX_PROMPTS if len(prompts) < PROGRESS_FROM else REQUEST_PROMPTS
    with tqdm(total=len(prompts), unit="prompt", disable=len(prompts) < PROGRESS_FROM) as bar:
        for start in range(0, len(prompts), size):
            batch = list(prompts[start : start + size])
            answer = client.segment({**common, "prompts": batch})
            results += answer["results"]
            for warning in answer["warnings"]:
                if warning not in told:
                    told.add(warning)
                    tqdm.write(f"warning: {warning}", file=sys.stderr)
            bar.update(len(batch))
    return results


def _write(path: Path | None, content: bytes) -> None:
    if path is None:
        sys.stdout.buffer.write(content)
        return
    try:
        path.write_bytes(content)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def _tell_what_is_missing(results: Sequence[Mapping[str, Any]]) -> None:
    for number, result in enumerate(results):
        name = result.get("id") or f"number {number}"
        if problem := result.get("problem"):
            print(f"prompt {name}: {problem['detail']}", file=sys.stderr)
        elif not result.get("geojson"):
            print(f"prompt {name}: nothing found", file=sys.stderr)
