"""`wsisam evaluate`: Dice and boundary scores of adapters by kind of prompt, beside the frozen SAM's."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from wsisam_model.config import model_config
from wsisam_model.train.samples import KINDS, ONE_CLICK, Case
from wsisam_service.commands.flags import MODEL_SETTINGS, UsageError, add_settings, settings_of
from wsisam_service.commands.tissue_flags import add_tissue, make_folder, progress_bar, tissue_of, whole_number

if TYPE_CHECKING:
    from wsisam_model.predictor import AdapterInfo


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("evaluate", help="score adapters on annotated tissue", description=__doc__)
    add_tissue(parser)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FOLDER", help="report and pictures go there"
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND", help=", ".join(KINDS))
    parser.add_argument(
        "--clicks", type=whole_number, default=20, metavar="N", help="objects to click on, 0 for none [20]"
    )
    parser.add_argument("--finer", action="store_true", help="boxes on views one step finer than the service takes")
    parser.add_argument("--everything", action="store_true", help="score what is not held out as well")
    add_settings(parser, MODEL_SETTINGS)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from wsisam_model.evaluate import pictures
    from wsisam_model.evaluate.report import Results, write_report
    from wsisam_model.evaluate.scores import FROZEN, HR, VARIANTS, Answers, score_cases, score_clicks, score_wrong_lr
    from wsisam_model.registry import load_model
    from wsisam_model.train.cache import EmbeddingCache

    settings = settings_of(options)
    rest, held = tissue_of(options, model_config(settings.model))
    cases = [
        case
        for part in ((held, rest) if options.everything else (held,))
        for case in part.cases(options.kinds, seed=options.seed, finer=options.finer)
    ]
    if not cases:
        raise UsageError("nothing is held out: give --hold-out, --held-fraction or --everything")
    make_folder(options.output)
    make_folder(options.cache)
    model = {name: getattr(settings, name) for name in MODEL_SETTINGS if name != "model"}
    predictor = load_model(settings.model, **model)
    for warning in predictor.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    adapters = predictor.adapters
    sets = [info for info in (adapters, *predictor.own) if info is not None]
    leaks = _leaks(sets, cases)
    wide = any(info.uses_lr for info in sets)
    variants = VARIANTS if wide else (FROZEN, HR) if adapters else (FROZEN,)
    cache = EmbeddingCache(options.cache, predictor.key_prefix, predictor.encode)
    cache.fill(
        (view for case in cases for view in ((case.sample.hr, case.sample.lr) if wide else (case.sample.hr,))),
        progress_bar("encode"),
    )
    answers = Answers(predictor, cache)
    scores = list(score_cases(answers, tqdm(cases, desc="score", disable=None), variants))
    if wide:
        scores += score_wrong_lr(answers, cases)
    firsts = [case for case in cases if case.kind == ONE_CLICK][: options.clicks]
    clicks = list(score_clicks(answers, tqdm(firsts, desc="click", disable=None), variants))
    results = Results(
        model=settings.model,
        adapters=adapters.name if adapters else "none",
        scores=scores,
        clicks=clicks,
        own_adapters=[own.name for own in predictor.own],
        leaks=leaks,
        rejected=[(rejection.what, rejection.reason) for rejection in held.rejections],
    )
    write_report(results, options.output)
    best = variants[-1]
    pictures.contact_sheet(options.output / "contact_sheet.png", answers, cases, scores, best)
    pictures.calibration_plot(options.output / "calibration.png", scores, best)
    if clicks:
        pictures.click_curves(options.output / "clicks.png", clicks)
    print(f"written {options.output}/report.md, scores.json and pictures")
    return 0


def _leaks(sets: Sequence[AdapterInfo], cases: Sequence[Case]) -> dict[str, list[str]]:
    """By name of adapters the groups among `cases` that they were trained on, as their files say; told on stderr."""
    from wsisam_model.train.provenance import groups_in

    groups = {f"{case.sample.dataset}/{case.sample.group}" for case in cases}
    leaks = {info.name: found for info in sets if (found := groups_in(info.metadata.get("data", ""), groups))}
    for name, found in leaks.items():
        print(f"not held out: {name} was trained on {', '.join(found)}, as its file says", file=sys.stderr)
    return leaks
