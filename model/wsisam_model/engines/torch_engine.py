"""The reference engine: eager torch, on any device and in any precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Self

import torch
from torch import Tensor

from wsisam_model.decoder_batch import DecoderBatch
from wsisam_model.engines.precision import Precision
from wsisam_model.fast_decoder import Branch, DecoderOutput, DecoderView, FastDecoder
from wsisam_model.image_encoder import ImageEncoder


class TorchEngine:
    """`Engine` in eager torch; below float32 under torch's autocast, which keeps norms and softmax in float32."""

    name = "torch"
    captures_graphs = False

    def __init__(self, encoder: ImageEncoder, decoder: FastDecoder, device: torch.device, precision: Precision) -> None:
        self.encoder, self.decoder = encoder, decoder
        self.device = device
        self.precision = precision

    def encode(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(), self.autocast(self.precision.encoder):
            E, X = self.encoder(inputs.to(self.device, non_blocking=True))
        return E.float(), X.float()

    def fuse(self, view: DecoderView, branch: Branch) -> Tensor:
        with torch.inference_mode():
            return self.decoder.fuse(view, branch)

    def run(self, batch: DecoderBatch) -> DecoderOutput:
        with torch.inference_mode(), self.autocast(self.precision.decoder):
            output: DecoderOutput = self.decoder(batch.layout, batch.inputs)
        return output

    def beside(self, decoder: FastDecoder) -> Self:
        return type(self)(self.encoder, decoder, self.device, self.precision)

    def autocast(self, dtype: torch.dtype) -> AbstractContextManager[object]:
        """The context in which a step of that precision runs."""
        if dtype == torch.float32:
            return nullcontext()
        # Nothing to keep: frozen weights are cast wherever they are used, also where a CUDA graph is captured.
        return torch.autocast(self.device.type, dtype, cache_enabled=False)
