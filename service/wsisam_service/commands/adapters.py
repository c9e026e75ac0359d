"""`wsisam adapters`: what an adapters file is and whether it fits; a pair of .pth files as one safetensors file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from wsisam_model.config import model_config
from wsisam_service.commands.flags import UsageError, add_settings, settings_of

if TYPE_CHECKING:
    from wsisam_model.checkpoints import AdapterWeights, BaseWeights

PAIR = 2


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("adapters", help="inspect or convert adapters", description=__doc__)
    parser.add_argument(
        "files", metavar="FILE", nargs="*", type=Path, help="a safetensors file, or net_high.pth net_low.pth [shipped]"
    )
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="write them as one safetensors file")
    parser.add_argument("--data", help="with -o: what they were trained on")
    parser.add_argument("--licence", help="with -o: under what terms they may be used")
    add_settings(parser, ("model", "weights"))
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    if len(options.files) > PAIR:
        raise UsageError("adapters are one safetensors file, or the pair net_high.pth net_low.pth")
    if options.output and not (options.data and options.licence):
        raise UsageError("-o needs --data and --licence, which go into the file")
    adapters, base = _load(options)
    if adapters is None:
        print("no adapters are shipped for this model: it answers with the frozen SAM, and says so")
        return 0
    print(f"{'name':<12} {adapters.name}\n{'sha256':<12} {adapters.sha256}")
    for name, value in adapters.metadata.items():
        print(f"{name:<12} {value}")
    if options.output:
        _write(options, adapters, base)
    return 0


def _load(options: argparse.Namespace) -> tuple[AdapterWeights | None, BaseWeights]:
    from wsisam_model.checkpoints import load_base_weights
    from wsisam_model.registry import AdapterChoice, base_weights_path, choose_adapters

    settings = settings_of(options)
    config = model_config(settings.model)
    base = load_base_weights(base_weights_path(config, settings.weights), config)
    choice: AdapterChoice = "default"
    if options.files:
        choice = options.files[0] if len(options.files) < PAIR else tuple(options.files)
    return choose_adapters(choice, config, base), base


def _write(options: argparse.Namespace, adapters: AdapterWeights, base: BaseWeights) -> None:
    from wsisam_model.checkpoints import save_adapters

    model = settings_of(options).model
    save_adapters(
        options.output,
        adapters.state(),
        model=model,
        base_sha256=base.sha256,
        data=options.data,
        licence=options.licence,
        looks=adapters.looks,
    )
    print(f"{'written':<12} {options.output}")
