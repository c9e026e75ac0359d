"""The reference engine: eager torch, on any device and in any precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Self

import torch
from torch import Tensor, nn

from wsisam_model.decoder_batch import DecoderBatch
from wsisam_model.engines.precision import Precision
from wsisam_model.fast_decoder import Branch, DecoderOutput, DecoderView, FastDecoder
from wsisam_model.image_encoder import ImageEncoder, TinyViT


class TorchEngine:
    """`Engine` in eager torch; below float32 under torch's autocast, which keeps norms and softmax in float32.

    TinyViT computes in the lower format throughout. Under autocast its sums are of that format too, and each of its
    norms would be cast to float32 and back; the sums of a ViT are float32, which is why autocast is left to it.
    """

    name = "torch"
    captures_graphs = False

    def __init__(self, encoder: ImageEncoder, decoder: FastDecoder, device: torch.device, precision: Precision) -> None:
        self.encoder, self.decoder = encoder, decoder
        self.device = device
        self.precision = precision
        self._whole = isinstance(encoder, TinyViT) and precision.encoder != torch.float32
        if self._whole:
            encoder.to(precision.encoder)
        elif precision.encoder != torch.float32:
            _keep_products_in(encoder, precision.encoder)
        if precision.decoder != torch.float32:
            for module in decoder.decoding_modules():
                _keep_products_in(module, precision.decoder)

    @property
    def plain(self) -> Self:
        return self

    def encode(self, inputs: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        inputs = inputs.to(self.device, non_blocking=True)
        with torch.inference_mode():
            if self._whole:
                E, X = self.encoder(inputs.to(self.precision.encoder))
            else:
                with self.autocast(self.precision.encoder):
                    E, X = self.encoder(inputs)
            return E.to(dtype), X.to(dtype)

    def prepare(self, embedding: Tensor, early: Tensor, view_size: tuple[int, int]) -> DecoderView:
        with torch.inference_mode(), self.autocast(self.precision.decoder):
            return self.decoder.prepare(embedding, early, view_size, self.decoder.position.dtype)

    def fuse(self, view: DecoderView, branch: Branch) -> Tensor:
        with torch.inference_mode():
            return self.decoder.fuse(view, branch)

    def run(self, batch: DecoderBatch) -> DecoderOutput:
        inputs = batch.inputs
        if self.precision.decoder == torch.float32:  # where no autocast brings formats together
            inputs = inputs.to(self.decoder.position.dtype)  # views that OpenVINO made ready may come in less
        with torch.inference_mode(), self.autocast(self.precision.decoder):
            output: DecoderOutput = self.decoder(batch.layout, inputs)
        return output

    def beside(self, decoder: FastDecoder) -> Self:
        return type(self)(self.encoder, decoder, self.device, self.precision)

    def autocast(self, dtype: torch.dtype) -> AbstractContextManager[object]:
        """The context in which a step of that precision runs."""
        if dtype == torch.float32:
            return nullcontext()
        # Nothing to keep: what is cast is cast wherever it is used, also where a CUDA graph is captured.
        return torch.autocast(self.device.type, dtype, cache_enabled=False)


def _keep_products_in(module: nn.Module, dtype: torch.dtype) -> None:
    """Keep the weights of products in the format that they are multiplied in: autocast casts others in every call, 168
    launches of a lone encode and 134 of a lone decode.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            part.to(dtype)
