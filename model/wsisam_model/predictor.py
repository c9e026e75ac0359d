"""Views in, embeddings out; prompts on embeddings in, masks out. Keeps nothing between calls; callers cache."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wsisam_model.adapters import Adapters
from wsisam_model.checkpoints import AdapterWeights, BaseWeights
from wsisam_model.config import ModelConfig
from wsisam_model.decoder_batch import Decoded, DecodeRequest, collate, scatter, to_host
from wsisam_model.embedding import Embedding
from wsisam_model.engines.choice import choose_engine
from wsisam_model.engines.precision import SHORT_NAMES, Precision
from wsisam_model.engines.torch_engine import TorchEngine
from wsisam_model.errors import CheckpointError, ModelError
from wsisam_model.fast_decoder import DecoderView, FastDecoder
from wsisam_model.image_encoder import load_image_encoder
from wsisam_model.network import WsiSam
from wsisam_model.point_box import is_unsure, reread
from wsisam_model.preprocessing import Floats, resized_size, upscale_logits, write_input
from wsisam_model.prompt_tensors import check_prompt
from wsisam_model.prompts import MASK_SIDE
from wsisam_model.quality import fused_iou, stability

__all__ = ["AdapterInfo", "DecodeRequest", "Decoded", "DecoderView", "Embedding", "Predictor"]

T = TypeVar("T")
R = TypeVar("R")

_MAX_BATCH = {"cpu": 1, "cuda": 64}
"""Requests in one pass of the decoder, by kind of device. On a CPU, 1, 2, 4 and 8 boxes cost 239, 252, 276 and 293 ms
of one core each: maps of many rows leave its caches. The number for CUDA is not measured."""
_MAX_ENCODE_BATCH = {"tiny_vit": 32, "vit": 4}
"""Views in one pass of the encoder on CUDA, by kind: a ViT's maps of attention take 3 GB a view. On a CPU it is 1."""
_MAX_THREADS = 16


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


class Predictor:
    """A model on a device. Use it from one thread at a time.

    `device` is "auto", "cpu" or a CUDA device. `precision` is "auto", one of float32, bfloat16 and float16, or two of
    them as "encoder/decoder". `engine` is "auto", "torch" or "openvino", which keeps converted networks in
    `engine_cache` (by default the user's cache folder). `threads` bounds the CPU threads of the whole process.
    """

    def __init__(
        self,
        config: ModelConfig,
        base: BaseWeights,
        adapters: AdapterWeights | None = None,
        *,
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
        self._device = _resolve_device(device)
        self.device = str(self._device)
        self._precision = Precision.of(precision, self._device.type)
        self.precision = str(self._precision)
        self.max_batch = _MAX_BATCH[self._device.type]
        on_cuda = self._device.type == "cuda"
        self._max_encode_batch = _MAX_ENCODE_BATCH[config.encoder] if on_cuda else 1
        self._for_each: Callable[..., Iterable[Any]] = _in_threads() if on_cuda else _in_turn
        encoder = load_image_encoder(config, base.image_encoder).to(self._device)
        network = WsiSam.from_weights(config.image_size, base.prompt_encoder, base.mask_decoder)
        trained = None if adapters is None else Adapters.from_state(adapters.state())
        self.decoder = FastDecoder(network, trained).to(self._device).requires_grad_(False).eval()
        self._torch = TorchEngine(encoder, self.decoder, self._device, self._precision)
        self._engine, found = choose_engine(
            engine, self._torch, config.image_size, folder=engine_cache, threads=threads
        )
        self.engine = self._engine.name
        self.captures_graphs = self._engine.captures_graphs
        self.warnings: Sequence[str] = tuple(found)
        self._calibration = _arrays(trained)

    @property
    def key_prefix(self) -> str:
        """`{model}:{weights}:{pre}` of view keys.

        `pre` names the encoder's engine and precision below float32; in float32 the engines differ by rounding only.
        """
        short = SHORT_NAMES.get(self._precision.encoder)
        pre = self.config.preprocessing if short is None else f"{self.config.preprocessing}-{self.engine}-{short}"
        return f"{self.config.name}:{self.weights_hash}:{pre}"

    def encode(self, images: Sequence[npt.NDArray[np.uint8]]) -> list[Embedding]:
        """The embeddings of views in uint8 RGB (H, W, 3), float32 on the model's device."""
        embeddings: list[Embedding] = []
        for start in range(0, len(images), self._max_encode_batch):
            batch = images[start : start + self._max_encode_batch]
            E, X = self._engine.encode(self._inputs(batch))
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
        E = embedding.embedding.to(self._device, torch.float32)
        with torch.inference_mode(), self._torch.autocast(self._precision.decoder):
            return self.decoder.prepare(E, embedding.early.to(self._device), embedding.view_size)

    def decode(self, requests: Sequence[DecodeRequest]) -> list[Decoded]:
        """The masks of any mixture of requests, in their order, each as if asked alone. Raises `PromptError`.

        What a click may mean is tried one reading after another until an answer is sure; the most stable one stays.
        """
        readings = [self._readings(request) for request in requests]
        answers: dict[int, Decoded] = {}
        for turn in range(max(map(len, readings), default=0)):
            asked = [
                index
                for index, ways in enumerate(readings)
                if turn < len(ways) and (turn == 0 or is_unsure(_stability(answers[index])))
            ]
            found = self._decode_twice([(requests[index], readings[index][turn]) for index in asked])
            for index, answer in zip(asked, found, strict=True):
                if index not in answers or _stability(answer) > _stability(answers[index]):
                    answers[index] = answer
        return [answers[index] for index in range(len(requests))]

    def _decode_twice(self, pairs: Sequence[tuple[DecodeRequest, DecodeRequest]]) -> list[Decoded]:
        """The answers to readings, each beside the request that it reads; where its box was guessed, the answer to the
        box of its own first answer.
        """
        answers = self._decode_each([reading for _, reading in pairs])
        again = {
            row: second
            for row, ((request, reading), answer) in enumerate(zip(pairs, answers, strict=True))
            if (second := self._again(request, reading, answer)) is not None
        }
        for row, answer in zip(again, self._decode_each(list(again.values())), strict=True):
            answers[row] = answer
        return answers

    def _decode_each(self, requests: Sequence[DecodeRequest]) -> list[Decoded]:
        """Batch by batch. A device decodes the next one while threads judge the masks of the last."""
        alike = sorted(range(len(requests)), key=lambda index: _effort(requests[index]))
        chosen = [alike[start : start + self.max_batch] for start in range(0, len(alike), self.max_batch)]
        decoded: list[Iterable[Decoded]] = []
        running: Callable[[], Iterable[Decoded]] | None = None
        for indices in chosen:
            following = self._start([requests[index] for index in indices])
            if running is not None:
                decoded.append(running())
            running = following
        if running is not None:
            decoded.append(running())
        in_order = zip(alike, chain.from_iterable(decoded), strict=True)
        return [answer for _, answer in sorted(in_order, key=lambda pair: pair[0])]

    def _readings(self, request: DecodeRequest) -> list[DecodeRequest]:
        """What the request's clicks may mean to the adapters; the frozen SAM takes prompts as they are."""
        adapters = self.decoder.adapters
        if adapters is None or request.frozen:
            return [request]
        check_prompt(request.prompt)
        prompts = adapters.prompt.readings(request.prompt, request.hr.view_size)
        return [replace(request, prompt=prompt, said=request.prompt) for prompt in prompts]

    def _again(self, request: DecodeRequest, reading: DecodeRequest, answer: Decoded) -> DecodeRequest | None:
        """`reading` with the box of its answer, where the box was guessed from clicks."""
        if reading.prompt is request.prompt:
            return None
        mask = upscale_logits(answer.logits[:1], self.config, request.hr.view_size)[0] > 0
        prompt = reread(request.prompt, reading.prompt, mask)
        return None if prompt is None else replace(reading, prompt=prompt)

    def _start(self, requests: Sequence[DecodeRequest]) -> Callable[[], Iterable[Decoded]]:
        """Decode one batch, on CUDA without a wait for it; what is returned waits and gives the answers."""
        with torch.inference_mode():
            # Positions of prompts need float32 whatever the precision: bfloat16 holds 8 bits of them.
            batch = collate(self.decoder, requests, self.config, self._engine.fuse)
            output = to_host(self._engine.run(batch), batch.layout)
        return lambda: scatter(batch, requests, output, self._predict_iou, self._for_each)

    def _predict_iou(self, logits: Floats, request: DecodeRequest) -> Floats:
        size = resized_size(request.hr.view_size, self.config)
        height, width = (side * MASK_SIDE // self.config.image_size for side in size)
        return fused_iou(logits[:, :height, :width], request.said or request.prompt, self._calibration)


def _in_turn(function: Callable[[T], R], values: Iterable[T]) -> list[R]:
    return [function(value) for value in values]


def _in_threads() -> Callable[..., Iterable[Any]]:
    """`map` that calls its function in threads, at once, and gives the results in order."""
    return ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1), thread_name_prefix="predictor").map


def _stability(answer: Decoded) -> float:
    return float(stability(answer.logits[:1])[0])


def _effort(request: DecodeRequest) -> tuple[bool, int]:
    """Sorts requests so that a batch's rows pad little: mask prompts by themselves, then by number of tokens."""
    prompt = request.prompt
    masked = prompt.mask_hr is not None or prompt.mask_lr is not None
    return masked, len(prompt.points) + 2 * (prompt.box is not None)


def _info(adapters: AdapterWeights) -> AdapterInfo:
    uses_lr = any(bool(adapters.lr[f"hf_mlp.layers.2.{name}"].any()) for name in ("weight", "bias"))
    prompts = ("points",) if "point_box" in adapters.prompt else ()
    licence = adapters.licence or "unknown"
    return AdapterInfo(adapters.name, adapters.sha256, licence, adapters.metadata, uses_lr, prompts)


def _arrays(adapters: Adapters | None) -> dict[str, Floats]:
    """The calibration of the predicted IoU that the adapters bring."""
    return {} if adapters is None else {name: tensor.cpu().numpy() for name, tensor in adapters.iou.named_buffers()}


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
