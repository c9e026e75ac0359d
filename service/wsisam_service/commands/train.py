"""`wsisam train`: adapters from annotated tissue, one safetensors file; the backbone stays frozen."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from wsisam_model.config import model_config
from wsisam_service.commands.flags import UsageError, add_settings, settings_of
from wsisam_service.commands.tissue_flags import add_tissue, make_folder, progress_bar, tissue_of

if TYPE_CHECKING:
    from torch import Tensor

    from wsisam_model.adapters import Adapters
    from wsisam_model.checkpoints import AdapterWeights, BaseWeights
    from wsisam_model.config import ModelConfig
    from wsisam_model.network import WsiSam
    from wsisam_model.predictor import Predictor
    from wsisam_model.train.cache import Embed
    from wsisam_model.train.forward import TrainingDecoder
    from wsisam_model.train.recipe import Recipe
    from wsisam_model.train.samples import Sample
    from wsisam_model.train.trainer import Trainer
    from wsisam_service.annotated.dataset import Dataset

MODEL_SETTINGS = ("model", "weights", "engine", "precision", "device", "threads")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("train", help="train adapters on annotated tissue", description=__doc__)
    add_tissue(parser)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="the adapters' safetensors file"
    )
    parser.add_argument(
        "--run", type=Path, metavar="FOLDER", dest="run_folder", help="checkpoint, log and curve [OUTPUT.run]"
    )
    parser.add_argument(
        "--start",
        default="fresh",
        metavar="FILE",
        help='"fresh"; or what to go on from, for which few objects are enough: "default", "open" (those that ship), '
        "or a file",
    )
    parser.add_argument(
        "--licence",
        help="terms for the adapters, which the data decide; those of what they go on from stay beside them",
    )
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="NAME=VALUE", dest="changes", help="changes of the recipe of that start"
    )
    parser.add_argument("--finer", action="store_true", help="also views one step finer than the service takes")
    add_settings(parser, MODEL_SETTINGS)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from wsisam_model.checkpoints import load_adapters, load_base_weights, save_adapters
    from wsisam_model.network import WsiSam
    from wsisam_model.predictor import Predictor
    from wsisam_model.registry import base_weights_path
    from wsisam_model.tissue import looks_of
    from wsisam_model.train.augment import changed_copies
    from wsisam_model.train.calibration import OBJECTS
    from wsisam_model.train.forward import TrainingDecoder
    from wsisam_model.train.provenance import data_text, fingerprint_of, licence_text
    from wsisam_model.train.recipe import Recipe
    from wsisam_model.train.start import finished_state, part_of_the_way

    settings = settings_of(options)
    try:
        recipe = Recipe.from_settings([f"seed={options.seed}", *options.changes], further=options.start != "fresh")
    except ValueError as error:
        raise UsageError(str(error)) from error
    config = model_config(settings.model)
    dataset, held = tissue_of(options, config)
    samples = list(dataset.samples(seed=options.seed, finer=options.finer))
    print(f"{dataset.size} objects on {len(samples)} views to train on, {held.size} objects held out")
    if not samples:
        raise UsageError("nothing is left to train on: all of it is held out, or shows too little in its views")
    _make_room(options)
    views = [sample.hr for sample in samples]
    base = load_base_weights(base_weights_path(config, settings.weights), config)
    device = {name: getattr(settings, name) for name in ("engine", "precision", "device", "threads")}
    predictor = Predictor(config, base, **device)
    for warning in predictor.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    # Not the predictor's own, which may hold its weights in a lower format: gradients want float32.
    network = WsiSam.from_weights(config.image_size, base.prompt_encoder, base.mask_decoder)
    further = _further(options.start, config, base)
    adapters = _start(further, network, config, recipe).to(predictor.device)
    start = {name: tensor.clone() for name, tensor in adapters.state_dict().items()}
    fingerprint = fingerprint_of(samples, start, model=settings.model, base_sha256=base.sha256)
    samples = changed_copies(samples, recipe.copies, seed=recipe.seed)
    decoder = TrainingDecoder(network, adapters, config).to(predictor.device)
    trainer = _trainer(options, predictor, decoder, recipe, samples, fingerprint=fingerprint)
    _train(trainer)
    about: dict[str, Any] = {
        "model": settings.model,
        "base_sha256": base.sha256,
        "data": data_text((tissue.image.group_name for tissue in dataset.tissues), further),
        "licence": licence_text(options.licence, further),
        "looks": looks_of(views, trainer.embed, config),
    }
    adapters.load_state_dict(part_of_the_way(start, trainer.average, recipe.kept))
    state = finished_state(adapters.cpu(), shrink=recipe.shrink, lr_shrink=recipe.lr_shrink)
    save_adapters(options.output, state, **about)
    if dataset.size < OBJECTS and "iou.weight" in state:
        print(f"the predicted IoU stays as it was: {dataset.size} objects are too few to learn it from")
    else:
        trained = Predictor(config, base, load_adapters(options.output, config, base), **device)
        calibration = _calibration(trained, dataset.limited(OBJECTS, seed=options.seed), trainer.embed, options.seed)
        state |= {f"iou.{name}": tensor for name, tensor in calibration.items()}
        save_adapters(options.output, state, **about)
    print(f"written {options.output}; checkpoint, log and curve in {trainer.folder}")
    return 0


def _make_room(options: argparse.Namespace) -> None:
    """The folders that are written to, before the work is done. Raises `UsageError`."""
    if options.output.is_dir():
        raise UsageError(f"{options.output} is a folder, not a file for adapters")
    make_folder(options.output.parent)
    make_folder(_run_folder(options))


def _run_folder(options: argparse.Namespace) -> Path:
    folder: Path = options.run_folder or options.output.with_suffix(".run")
    return folder


def _further(choice: str, config: ModelConfig, base: BaseWeights) -> AdapterWeights | None:
    """What to go on from, None for a fresh start."""
    from wsisam_model.registry import choose_adapters

    if choice == "fresh":
        return None
    trained = choose_adapters(choice, config, base)
    if trained is None:
        raise UsageError("no adapters are shipped for this model; start fresh")
    return trained


def _start(further: AdapterWeights | None, network: WsiSam, config: ModelConfig, recipe: Recipe) -> Adapters:
    from wsisam_model.adapters import Adapters
    from wsisam_model.train.start import fresh_adapters

    if further is None:
        return fresh_adapters(network, config, seed=recipe.seed)
    return Adapters.from_state(further.state())


def _trainer(
    options: argparse.Namespace,
    predictor: Predictor,
    decoder: TrainingDecoder,
    recipe: Recipe,
    samples: list[Sample],
    *,
    fingerprint: str,
) -> Trainer:
    from wsisam_model.train.cache import EmbeddingCache, HeldEmbeddings
    from wsisam_model.train.trainer import Trainer

    on_disk = predictor.device == "cpu"
    cache = (
        EmbeddingCache(options.cache, predictor.key_prefix, predictor.encode)
        if on_disk
        else HeldEmbeddings(predictor.encode)
    )
    trainer = Trainer(decoder, samples, cache, recipe, _run_folder(options), fingerprint=fingerprint)
    try:
        resumed = trainer.resume()
    except ValueError as error:
        raise UsageError(str(error)) from error
    if resumed:
        done = trainer.step == recipe.steps
        print("this training is finished already" if done else f"resuming after step {trainer.step}")
    wide = recipe.branches != "hr"
    views = [view for sample in samples for view in ((sample.hr, sample.lr) if wide else (sample.hr,))]
    if trainer.step < recipe.steps:  # else only `shrink` or the predicted IoU is new
        cache.fill(views, progress_bar("encode"))
    return trainer


def _train(trainer: Trainer) -> None:
    from wsisam_model.evaluate.pictures import loss_curve

    (trainer.folder / "recipe.json").write_text(trainer.recipe.to_json())
    with tqdm(total=trainer.recipe.steps, initial=trainer.step, desc="train", disable=None) as bar:

        def report(row: object) -> None:
            bar.update()

        trainer.run(report)
    if trainer.log:
        loss_curve(trainer.folder / "loss.png", trainer.log)


def _calibration(predictor: Predictor, dataset: Dataset, embed: Embed, seed: int) -> dict[str, Tensor]:
    from wsisam_model.evaluate.scores import Answers
    from wsisam_model.train.calibration import calibrate

    cases = list(dataset.cases(seed=seed))
    return calibrate(Answers(predictor, embed), tqdm(cases, desc="predicted IoU", disable=None))
