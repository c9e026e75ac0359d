"""Views in, embeddings out; prompts on embeddings in, masks out. Keeps nothing between calls; callers cache."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wsisam_model.adapted_decoder import AdaptedDecoder
from wsisam_model.adapters import Adapters
from wsisam_model.checkpoints import AdapterWeights, BaseWeights
from wsisam_model.config import ModelConfig
from wsisam_model.decoder_batch import Decoded, DecodeRequest
from wsisam_model.embedding import Embedding
from wsisam_model.engines import Engine
from wsisam_model.engines.choice import choose_engine, choose_precision, engine_beside
from wsisam_model.engines.precision import SHORT_NAMES
from wsisam_model.errors import CheckpointError, ModelError, UnknownModelError
from wsisam_model.fast_decoder import DecoderView, FastDecoder
from wsisam_model.image_encoder import load_image_encoder
from wsisam_model.network import WsiSam
from wsisam_model.preprocessing import write_input
from wsisam_model.tissue import TissueChoice, look_of, white_cell, white_view

__all__ = ["AdapterInfo", "DecodeRequest", "Decoded", "DecoderView", "Embedding", "Predictor"]

T = TypeVar("T")
R = TypeVar("R")

_MAX_BATCH = {"cpu": 1, "cuda": 64}
"""Requests in one pass of the decoder, by kind of device. On a CPU, 1, 2, 4 and 8 boxes cost 239, 252, 276 and 293 ms
of one core each: maps of many rows leave its caches. The number for CUDA is not measured."""
_MAX_ENCODE_BATCH = {"tiny_vit": 32, "vit": 4}
"""Views in one pass of the encoder on CUDA, by kind: a ViT's maps of attention take 3 GB a view. On a CPU it is 1."""
_MAX_THREADS = 16
_RESERVED_NAMES = ("default", "none")
"""What requests say for the adapters that a view calls for, and for the frozen SAM."""


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """Which adapters a model carries. `licence` is "unknown" where their file does not say."""

    name: str
    sha256: str
    licence: str
    metadata: Mapping[str, str]
    uses_lr: bool
    """False where the LR token was not trained: it is zero then, and the LR view changes no HR mask."""
    prompts: tuple[str, ...]
    """Kinds of prompt that they were trained for, beyond the base's own."""
    knows_tissue: bool
    """Whether their file keeps how its training views look, so that other views of such tissue are recognised."""


class Predictor:
    """A model on a device. Use it from one thread at a time.

    `own` are further adapters, each for views that look like those it was trained on, or by name; all other views are
    for `adapters`.

    `device` is "auto", "cpu" or a CUDA device. `precision` is "auto" (`choose_precision`), one of float32, bfloat16 and
    float16, or two of them as "encoder/decoder". `engine` is "auto", "torch" or "openvino", which keeps converted
    networks in `engine_cache` (by default the user's cache folder). `threads` bounds the CPU threads of the whole
    process.
    """

    def __init__(
        self,
        config: ModelConfig,
        base: BaseWeights,
        adapters: AdapterWeights | None = None,
        *,
        own: Sequence[AdapterWeights] = (),
        device: str = "auto",
        precision: str = "auto",
        engine: str = "auto",
        engine_cache: Path | None = None,
        threads: int | None = None,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.config = config
        self.weights_hash = base.sha256[:12]
        self.adapters = None if adapters is None else _info(adapters)
        self.own = _all_infos(self.adapters, own)
        self._device = _resolve_device(device)
        self.device = str(self._device)
        self._precision = choose_precision(precision, engine, self._device, config)
        self.precision = str(self._precision)
        on_cuda = self._device.type == "cuda"
        self._max_encode_batch = _MAX_ENCODE_BATCH[config.encoder] if on_cuda else 1
        self._for_each: Callable[..., Iterable[Any]] = _in_threads() if on_cuda else _in_turn
        encoder = load_image_encoder(config, base.image_encoder).to(self._device)
        network = WsiSam.from_weights(config.image_size, base.prompt_encoder, base.mask_decoder)
        self.decoder = self._on_device(network, adapters)
        self._engine, found = choose_engine(
            engine,
            encoder,
            self.decoder,
            device=self._device,
            precision=self._precision,
            side=config.image_size,
            folder=engine_cache,
            threads=threads,
        )
        self.engine = self._engine.name
        self.captures_graphs = self._engine.captures_graphs
        self._everywhere = self._adapted(self.decoder, self._engine)
        self._own: dict[str, AdaptedDecoder] = {}
        for weights in own:
            decoder = self._on_device(network, weights)
            beside, warnings = engine_beside(self._engine, decoder)
            self._own[weights.name] = self._adapted(decoder, beside)
            found = [*found, *warnings]
        self.warnings: Sequence[str] = tuple(found)
        looks = {weights.name: weights.looks for weights in own if weights.looks is not None}
        self._choose = TissueChoice(looks, None if adapters is None else adapters.looks) if looks else None
        self._white = white_cell(self.encode([white_view(config)])[0]) if looks else None

    @property
    def key_prefix(self) -> str:
        """`{model}:{weights}:{pre}` of view keys.

        `pre` names the encoder's engine and precision below float32; in float32 the engines differ by rounding only.
        """
        short = SHORT_NAMES.get(self._precision.encoder)
        pre = self.config.preprocessing if short is None else f"{self.config.preprocessing}-{self.engine}-{short}"
        return f"{self.config.name}:{self.weights_hash}:{pre}"

    def encode(self, images: Sequence[npt.NDArray[np.uint8]], *, halved: bool = False) -> list[Embedding]:
        """The embeddings of views in uint8 RGB (H, W, 3), on the model's device in float32, or `halved` in float16."""
        dtype = torch.float16 if halved else torch.float32
        embeddings: list[Embedding] = []
        for start in range(0, len(images), self._max_encode_batch):
            batch = images[start : start + self._max_encode_batch]
            E, X = self._engine.encode(self._inputs(batch), dtype)
            sizes = [(image.shape[0], image.shape[1]) for image in batch]
            embeddings += map(Embedding, E, X, sizes)
        return embeddings

    def _inputs(self, images: Sequence[npt.NDArray[np.uint8]]) -> Tensor:
        """The encoder's inputs (B, 3, S, S) on the CPU, page-locked on their way to a device."""
        side = self.config.image_size
        inputs = torch.empty(len(images), 3, side, side, pin_memory=self._device.type == "cuda")
        rows = inputs.numpy()

        def write(index: int) -> None:
            write_input(images[index], self.config, rows[index])

        deque(self._for_each(write, range(len(images))), maxlen=0)
        return inputs

    def prepare(self, embedding: Embedding) -> DecoderView:
        """The view ready for decoding with this model and its adapters. `CheckpointError` if it is another model's."""
        channels = embedding.early.shape[0]
        if channels != self.config.early_channels:
            raise CheckpointError(f"an embedding with {channels} early channels is not one of {self.config.name}")
        E, X = embedding.embedding.to(self._device), embedding.early.to(self._device)
        view = self._engine.prepare(E, X, embedding.view_size)
        if self._choose is not None and self._white is not None:
            view.own = self._choose(look_of(embedding, self._white, self.config))
        return view

    def adapters_of(self, request: DecodeRequest) -> AdapterInfo | None:
        """Those that answer `request`, None for the frozen SAM. Raises `UnknownModelError`."""
        if request.frozen or self.adapters is None:
            return None
        name = self._name_of(request)
        return next((info for info in self.own if info.name == name), self.adapters)

    def decode(self, requests: Sequence[DecodeRequest]) -> list[Decoded]:
        """The masks of any mixture of requests, in their order, each as if asked alone. Raises `PromptError`, and
        `UnknownModelError` for adapters that are not here.
        """
        by_name: dict[str | None, list[int]] = {}
        for index, request in enumerate(requests):
            by_name.setdefault(self._name_of(request), []).append(index)
        answers: dict[int, Decoded] = {}
        for name, indices in by_name.items():
            decoder = self._everywhere if name is None else self._own[name]
            answers.update(zip(indices, decoder.decode([requests[index] for index in indices]), strict=True))
        return [answers[index] for index in range(len(requests))]

    def _name_of(self, request: DecodeRequest) -> str | None:
        """Which of one's own adapters answer, None for those that are for all tissue and for the frozen SAM."""
        if request.frozen:
            return None
        name = request.hr.own if request.adapters is None else request.adapters
        if name is None or (self.adapters is not None and name == self.adapters.name):
            return None
        if name not in self._own:
            raise UnknownModelError(f"no adapters here are called {name!r}")
        return name

    def _on_device(self, network: WsiSam, adapters: AdapterWeights | None) -> FastDecoder:
        trained = None if adapters is None else Adapters.from_state(adapters.state())
        return FastDecoder(network, trained).to(self._device).requires_grad_(False).eval()

    def _adapted(self, decoder: FastDecoder, engine: Engine) -> AdaptedDecoder:
        max_batch = _MAX_BATCH[self._device.type]
        return AdaptedDecoder(decoder, engine, self.config, max_batch=max_batch, for_each=self._for_each)


def _in_turn(function: Callable[[T], R], values: Iterable[T]) -> list[R]:
    return [function(value) for value in values]


def _in_threads() -> Callable[..., Iterable[Any]]:
    """`map` that calls its function in threads, at once, and gives the results in order; a lone call is made here."""
    threads = ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1), thread_name_prefix="predictor")

    def for_each(function: Callable[[T], R], values: Sequence[T]) -> Iterable[R]:
        return threads.map(function, values) if len(values) > 1 else _in_turn(function, values)

    return for_each


def _info(adapters: AdapterWeights) -> AdapterInfo:
    uses_lr = any(bool(adapters.lr[f"hf_mlp.layers.2.{name}"].any()) for name in ("weight", "bias"))
    prompts = ("points",) if "point_box" in adapters.prompt else ()
    licence = adapters.licence or "unknown"
    knows_tissue = adapters.looks is not None
    return AdapterInfo(adapters.name, adapters.sha256, licence, adapters.metadata, uses_lr, prompts, knows_tissue)


def _all_infos(everywhere: AdapterInfo | None, own: Sequence[AdapterWeights]) -> tuple[AdapterInfo, ...]:
    """What the sets of `own` are. Raises `CheckpointError` where a request could not tell them apart."""
    if own and everywhere is None:
        raise CheckpointError("adapters of one's own serve beside others that are for all tissue, and there are none")
    infos = tuple(map(_info, own))
    taken = [*_RESERVED_NAMES, *(info.name for info in (everywhere, *infos) if info is not None)]
    for info in infos:
        if taken.count(info.name) > 1:
            raise CheckpointError(f"{info.name}: give this file of adapters another name")
    return infos


def _resolve_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"no device is called {name!r}") from error
    if device.type not in _MAX_BATCH or (device.type == "cuda" and not torch.cuda.is_available()):
        raise ModelError(f"the device {name!r} is not there or not supported; use cpu or cuda")
    if device.type == "cuda":
        # TF32 would leave 10 bits of mantissa in what is called float32 here.
        torch.backends.cudnn.allow_tf32 = False
    return device
