"""Views in, embeddings out; prompts on embeddings in, masks out. Keeps nothing between calls; callers cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from wsisam_model.adapters import Adapters
from wsisam_model.checkpoints import AdapterWeights, BaseWeights
from wsisam_model.config import ModelConfig
from wsisam_model.decoder_batch import Decoded, DecodeRequest, collate, scatter
from wsisam_model.embedding import Embedding
from wsisam_model.errors import CheckpointError, ModelError
from wsisam_model.fast_decoder import DecoderView, FastDecoder
from wsisam_model.image_encoder import load_image_encoder
from wsisam_model.network import WsiSam
from wsisam_model.preprocessing import Floats, resized_size, to_input
from wsisam_model.prompts import MASK_SIDE
from wsisam_model.quality import fused_iou

__all__ = ["AdapterInfo", "DecodeRequest", "Decoded", "DecoderView", "Embedding", "Predictor"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SHORT_NAMES = {"bfloat16": "bf16", "float16": "fp16"}
_MAX_BATCH = {"cpu": 1, "cuda": 16}
"""Requests in one pass of the decoder, by kind of device. On a CPU, 1, 2, 4 and 8 boxes cost 239, 252, 276 and 293 ms
of one core each: maps of many rows leave its caches. The number for CUDA is not measured."""
_MAX_ENCODE_BATCH = {"cpu": 1, "cuda": 8}


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """Which adapters a model carries. `licence` is "unknown" where their file does not say."""

    name: str
    sha256: str
    licence: str
    metadata: Mapping[str, str]


class Predictor:
    """A model on a device. Use it from one thread at a time.

    `device` is "auto", "cpu" or a CUDA device. `precision` is "auto", one of float32, bfloat16 and float16, or two of
    them as "encoder/decoder". `engine` is "auto" or "torch". `threads` bounds the CPU threads of the whole process.
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
        threads: int | None = None,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        if engine not in ("auto", "torch"):
            raise ModelError(f"no engine is called {engine!r}; there is torch")
        self.config = config
        self.weights_hash = base.sha256[:12]
        self.engine = "torch"
        self.warnings: Sequence[str] = ()
        self.adapters = None if adapters is None else _info(adapters)
        self._device = _resolve_device(device)
        self.device = str(self._device)
        self._encoder_precision, self._decoder_precision = _resolve_precision(precision)
        self.precision = f"{self._encoder_precision}/{self._decoder_precision}"
        self.max_batch = _MAX_BATCH[self._device.type]
        self._encoder = load_image_encoder(config, base.image_encoder).to(self._device)
        network = WsiSam.from_weights(config.image_size, base.prompt_encoder, base.mask_decoder)
        trained = None if adapters is None else Adapters.from_state(adapters.state())
        self.decoder = FastDecoder(network, trained).to(self._device).requires_grad_(False).eval()
        self._calibration = _arrays(trained)

    @property
    def key_prefix(self) -> str:
        """`{model}:{weights}:{pre}` of view keys; names the encoder's precision where it is not float32."""
        short = _SHORT_NAMES.get(self._encoder_precision)
        pre = self.config.preprocessing if short is None else f"{self.config.preprocessing}-{short}"
        return f"{self.config.name}:{self.weights_hash}:{pre}"

    def encode(self, images: Sequence[npt.NDArray[np.uint8]]) -> list[Embedding]:
        """The embeddings of views in uint8 RGB (H, W, 3), float32 on the model's device."""
        embeddings: list[Embedding] = []
        step = _MAX_ENCODE_BATCH[self._device.type]
        for start in range(0, len(images), step):
            batch = images[start : start + step]
            inputs = torch.from_numpy(np.stack([to_input(image, self.config) for image in batch]))
            with torch.inference_mode(), self._autocast(self._encoder_precision):
                E, X = self._encoder(inputs.to(self._device))
            sizes = [(image.shape[0], image.shape[1]) for image in batch]
            embeddings += map(Embedding, E.float(), X.float(), sizes)
        return embeddings

    def prepare(self, embedding: Embedding) -> DecoderView:
        """The view ready for decoding with this model and its adapters. `CheckpointError` if it is another model's."""
        channels = embedding.early.shape[0]
        if channels != self.config.early_channels:
            raise CheckpointError(f"an embedding with {channels} early channels is not one of {self.config.name}")
        E = embedding.embedding.to(self._device, torch.float32)
        with torch.inference_mode(), self._autocast(self._decoder_precision):
            return self.decoder.prepare(E, embedding.early.to(self._device), embedding.view_size)

    def decode(self, requests: Sequence[DecodeRequest]) -> list[Decoded]:
        """The masks of any mixture of requests, in their order, each as if asked alone. Raises `PromptError`."""
        answers: dict[int, Decoded] = {}
        alike = sorted(range(len(requests)), key=lambda index: _effort(requests[index]))
        for start in range(0, len(alike), self.max_batch):
            chosen = alike[start : start + self.max_batch]
            answers |= zip(chosen, self._decode_batch([requests[index] for index in chosen]), strict=True)
        return [answers[index] for index in range(len(requests))]

    def _decode_batch(self, requests: Sequence[DecodeRequest]) -> list[Decoded]:
        with torch.inference_mode():
            # Positions of prompts need float32 whatever the precision: bfloat16 holds 8 bits of them.
            batch = collate(self.decoder, requests, self.config)
            with self._autocast(self._decoder_precision):
                output = self.decoder(batch.layout, batch.inputs)
        return scatter(batch, requests, output, self._predict_iou)

    def _predict_iou(self, logits: Floats, view_size: tuple[int, int]) -> Floats:
        height, width = (side * MASK_SIDE // self.config.image_size for side in resized_size(view_size, self.config))
        return fused_iou(logits[:, :height, :width], self._calibration)

    def _autocast(self, precision: str) -> AbstractContextManager[object]:
        if precision == "float32":
            return nullcontext()
        return torch.autocast(self._device.type, _DTYPES[precision])


def _effort(request: DecodeRequest) -> tuple[bool, int]:
    """Sorts requests so that a batch's rows pad little: mask prompts by themselves, then by number of tokens."""
    prompt = request.prompt
    masked = prompt.mask_hr is not None or prompt.mask_lr is not None
    return masked, len(prompt.points) + 2 * (prompt.box is not None)


def _info(adapters: AdapterWeights) -> AdapterInfo:
    return AdapterInfo(adapters.name, adapters.sha256, adapters.licence or "unknown", adapters.metadata)


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


def _resolve_precision(name: str) -> tuple[str, str]:
    """(encoder, decoder) of a precision's name."""
    parts = ["float32"] if name == "auto" else name.split("/")
    encoder, decoder = parts if len(parts) == 2 else (parts[0], parts[0])
    for part in (encoder, decoder):
        if part not in _DTYPES:
            raise ModelError(f"no precision is called {name!r}; there are {', '.join(_DTYPES)}, or two as a/b")
    return encoder, decoder
