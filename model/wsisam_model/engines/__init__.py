"""What runs the network: torch as the reference, OpenVINO on CPU, captured graphs on CUDA, behind one interface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

import torch
from torch import Tensor

from wsisam_model.decoder_batch import DecoderBatch
from wsisam_model.fast_decoder import Branch, DecoderOutput, DecoderView, FastDecoder

if TYPE_CHECKING:
    from wsisam_model.engines.torch_engine import TorchEngine


class Engine(Protocol):
    """The heavy steps of a predictor; used from one thread at a time. Tensors are on the predictor's device."""

    name: str
    captures_graphs: bool
    """Whether the first batch of each size costs much more than the next ones."""

    @property
    def plain(self) -> TorchEngine:
        """Eager torch, for what this engine leaves to it."""
        ...

    def encode(self, inputs: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """E (B, 256, 64, 64) and X (B, C, 64, 64) as `dtype`, of normalised views (B, 3, S, S) on the CPU."""
        ...

    def prepare(self, embedding: Tensor, early: Tensor, view_size: tuple[int, int]) -> DecoderView:
        """`FastDecoder.prepare` of maps in any format."""
        ...

    def fuse(self, view: DecoderView, branch: Branch) -> Tensor:
        """F (32, 65536) of a view under one branch's adapter, in the format that this engine keeps views in."""
        ...

    def run(self, batch: DecoderBatch) -> DecoderOutput:
        """The decoder's output for a batch. It may lie in buffers that the next call overwrites."""
        ...

    def beside(self, decoder: FastDecoder) -> Self:
        """The same for `decoder`, with the same encoder. Raises what making an engine of this kind raises."""
        ...
