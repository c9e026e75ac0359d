"""Torch on CUDA with captured graphs: one launch in place of some hundred, for batches of a few fixed sizes.

A batch takes the first rows of the next size; what earlier batches left in the others is computed along and thrown
away. Rare batches (mask prompts, several masks, LR masks, mixtures, many tokens) run eagerly, and so do those whose
graph cannot be captured.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from wsisam_model.decoder_batch import DecoderBatch
from wsisam_model.engines.torch_engine import TorchEngine
from wsisam_model.fast_decoder import (
    Branch,
    DecoderInputs,
    DecoderOutput,
    DecoderView,
    FastDecoder,
    Layout,
    ViewTensors,
)

_log = logging.getLogger(__name__)

ENCODE_SIZES = (1, 2, 4, 8, 16, 32)
DECODE_SIZES = (1, 2, 4, 8, 16, 32, 64)
TOKEN_SIZES = (8, 12, 15)
"""Tokens of a captured decode: a box or a point alone, a few points, and the most that the short form takes."""

Outputs = tuple[Tensor, ...]
Shared = dict[tuple[int, int], Tensor]
"""Room for one part of the views of a batch, by part and number of rows."""
_F_PART = len(ViewTensors._fields)


def bucket(size: int, sizes: Sequence[int]) -> int | None:
    """The smallest of the ascending `sizes` that holds `size`, or None if it is larger than all of them."""
    return next((one for one in sizes if one >= size), None)


@dataclass(frozen=True, slots=True)
class DecodeShape:
    """A captured decode: `prompts` of one kind, frozen or adapted, with a LR row each if `dual`; `tokens` a row."""

    adapted: bool
    dual: bool
    prompts: int
    tokens: int

    @property
    def layout(self) -> Layout:
        adapted, lr = (self.prompts if part else 0 for part in (self.adapted, self.dual))
        return Layout(self.prompts - adapted, adapted, lr_masks=0, lr_sam=0, lr_tokens=lr, masks=1)

    @property
    def rows(self) -> int:
        return self.prompts * (2 if self.dual else 1)


def decode_shape(layout: Layout, tokens: int, dense: bool) -> DecodeShape | None:
    """The captured decode that holds a batch, or None if it has to run eagerly."""
    mixed = (layout.frozen and layout.adapted) or layout.lr_tokens not in (0, layout.adapted)
    rare = dense or layout.masks > 1 or layout.lr_masks or layout.lr_sam
    prompts, length = bucket(layout.frozen + layout.adapted, DECODE_SIZES), bucket(tokens, TOKEN_SIZES)
    if mixed or rare or prompts is None or length is None:
        return None
    return DecodeShape(layout.adapted > 0, layout.lr_tokens > 0, prompts, length)


class Captured:
    """A function of tensors as a CUDA graph; `inputs` are its own, written before each `replay`.

    Graphs of one `pool` share their memory, also that of their outputs: what a replay gives is to be read or copied
    before any of them is replayed again.
    """

    def __init__(
        self, function: Callable[..., Outputs], inputs: Sequence[Tensor], device: torch.device, pool: Any
    ) -> None:
        self.inputs = inputs
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(device):
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call] # torch leaves it untyped
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(2):  # lets libraries choose their kernels outside of the capture
                    function(*inputs)
            # Other threads may use the device meanwhile: embeddings on their way to a store are copied from it.
            with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                self._outputs = function(*inputs)

    def replay(self) -> Outputs:
        """The outputs for what the inputs hold now."""
        self._graph.replay()
        return self._outputs


class CudaEngine:
    """`Engine` on CUDA around a torch engine. Graphs are captured when first needed and kept."""

    name = "cuda-graphs"
    captures_graphs = True

    def __init__(self, plain: TorchEngine) -> None:
        self.plain = plain
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[int | DecodeShape, Captured | None] = {}
        self._shared: Shared = {}

    def beside(self, decoder: FastDecoder) -> Self:
        """Graphs of its own, in the same memory: both are used from one thread, one call after the other."""
        other = copy.copy(self)
        other.plain, other._graphs = self.plain.beside(decoder), {}
        return other

    def encode(self, inputs: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        count = len(inputs)
        size = bucket(count, ENCODE_SIZES)
        if size is None:
            return self.plain.encode(inputs, dtype)
        with torch.inference_mode():
            captured = self._captured(size, lambda: self._capture_encode(inputs.new_zeros(size, *inputs.shape[1:])))
            if captured is None:
                return self.plain.encode(inputs, dtype)
            captured.inputs[0][:count].copy_(inputs, non_blocking=True)
            E, X = captured.replay()
            return E[:count].to(dtype, copy=True), X[:count].to(dtype, copy=True)

    def prepare(self, embedding: Tensor, early: Tensor, view_size: tuple[int, int]) -> DecoderView:
        return self.plain.prepare(embedding, early, view_size)

    def fuse(self, view: DecoderView, branch: Branch) -> Tensor:
        return self.plain.fuse(view, branch)

    def run(self, batch: DecoderBatch) -> DecoderOutput:
        inputs = batch.inputs
        shape = decode_shape(batch.layout, inputs.tokens.shape[1], inputs.dense is not None)
        if shape is None:
            return self.plain.run(batch)
        with torch.inference_mode():
            captured = self._captured(shape, lambda: self._capture_decode(shape, inputs))
            if captured is None:
                return self.plain.run(batch)
            prompts, adapted = batch.layout.frozen + batch.layout.adapted, batch.layout.adapted
            fill(captured.inputs, shape, inputs, prompts)
            output = DecoderOutput(*captured.replay())
        return DecoderOutput(
            output.token_logits[:adapted],
            output.sam_masks[:prompts],
            output.iou[:prompts],
            output.lr_token_logits,
            output.tokens[:adapted],
        )

    def _captured(self, key: int | DecodeShape, capture: Callable[[], Captured]) -> Captured | None:
        """The graph of that size or shape; None where capturing has failed, for want of memory or otherwise."""
        if key not in self._graphs:
            try:
                self._graphs[key] = capture()
            except RuntimeError as error:
                _log.warning("no graph for %s, which will run eagerly: %s", key, error)
                self._graphs[key] = None
        return self._graphs[key]

    def _capture_encode(self, like: Tensor) -> Captured:
        return Captured(self.plain.encode, [like.to(self.plain.device)], self.plain.device, self._pool)

    def _capture_decode(self, shape: DecodeShape, like: DecoderInputs) -> Captured:
        def decode(tokens: Tensor, key_mask: Tensor, *maps: Tensor) -> Outputs:
            inputs = captured_inputs(tokens, key_mask, *maps)
            return tuple(self.plain.run(DecoderBatch([], shape.layout, inputs)))

        return Captured(decode, static_inputs(shape, like, self._shared), self.plain.device, self._pool)


def static_inputs(shape: DecodeShape, like: DecoderInputs, shared: Shared) -> list[Tensor]:
    """What a captured decode reads, on the device of `like`: tokens, their mask, the views, F of the HR rows.

    Views and F, 19 MB a prompt, are the same tensors for all shapes of as many rows: `shared`, which is added to.
    """

    def room(part: int, rows: int, like: Tensor) -> Tensor:
        if (part, rows) not in shared:
            shared[part, rows] = like.new_zeros(rows, *like.shape)
        return shared[part, rows]

    tokens = like.tokens.new_zeros(shape.rows, shape.tokens, like.tokens.shape[2])
    mask = like.key_mask.new_ones(shape.rows, shape.tokens)
    views = [room(part, shape.rows, tensor) for part, tensor in enumerate(like.views[0])]
    fused = [room(_F_PART, shape.prompts, like.fused_hr[0])] if shape.adapted else []
    return [tokens, mask, *views, *fused]


def captured_inputs(tokens: Tensor, key_mask: Tensor, *maps: Tensor) -> DecoderInputs:
    """`static_inputs` as the decoder takes them."""
    views, fused = ViewTensors(*maps[:_F_PART]), maps[_F_PART:]
    return DecoderInputs(tokens, key_mask, views, None, fused[0] if fused else [], [])


def fill(static: Sequence[Tensor], shape: DecodeShape, inputs: DecoderInputs, prompts: int) -> None:
    """Write a batch of `prompts` into a captured decode's inputs: its HR rows from the first, its LR rows from the
    first of those. The other rows keep what they had, as no row sees another.
    """
    assert not isinstance(inputs.views, ViewTensors)
    tokens, mask, *maps = static
    length = inputs.tokens.shape[1]
    for branch in range(shape.rows // shape.prompts):
        given = slice(branch * prompts, (branch + 1) * prompts)
        own = slice(branch * shape.prompts, branch * shape.prompts + prompts)
        tokens[own, :length].copy_(inputs.tokens[given])
        mask[own, :length].copy_(inputs.key_mask[given])
        mask[own, length:].zero_()
        for part, room in enumerate(maps[:_F_PART]):
            torch.stack([view[part] for view in inputs.views[given]], out=room[own])
    for room in maps[_F_PART:]:
        torch.stack(list(inputs.fused_hr), out=room[:prompts])
