"""Torch on CUDA with captured graphs: one launch in place of some hundred, for batches of a few fixed sizes.

Batches are padded to the next size by repeating their last row. Rare batches (mask prompts, several masks, LR masks,
mixtures, many tokens) run eagerly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wsisam_model.decoder_batch import DecoderBatch
from wsisam_model.engines.torch_engine import TorchEngine
from wsisam_model.fast_decoder import DecoderInputs, DecoderOutput, Layout, ViewTensors

ENCODE_SIZES = (1, 2, 4, 8)
DECODE_SIZES = (1, 2, 4, 8, 16, 32, 64)
TOKEN_SIZES = (8, 12, 15)
"""Tokens of a captured decode: a box or a point alone, a few points, and the most that the short form takes."""

Outputs = tuple[Tensor, ...]


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


def decode_shape(layout: Layout, tokens: int, dense: bool) -> DecodeShape | None:
    """The captured decode that holds a batch, or None if it has to run eagerly."""
    mixed = (layout.frozen and layout.adapted) or layout.lr_tokens not in (0, layout.adapted)
    rare = dense or layout.masks > 1 or layout.lr_masks or layout.lr_sam
    prompts, length = bucket(layout.frozen + layout.adapted, DECODE_SIZES), bucket(tokens, TOKEN_SIZES)
    if mixed or rare or prompts is None or length is None:
        return None
    return DecodeShape(layout.adapted > 0, layout.lr_tokens > 0, prompts, length)


def source_rows(shape: DecodeShape, prompts: int) -> list[int]:
    """For each row of a captured decode the row of a batch with `prompts` HR rows (and as many LR rows) it shows."""
    hr = [min(row, prompts - 1) for row in range(shape.prompts)]
    return [*hr, *(prompts + row for row in hr)] if shape.dual else hr


class Captured:
    """A function of tensors as a CUDA graph; `inputs` are its own, written before each `replay`."""

    def __init__(self, function: Callable[..., Outputs], inputs: Sequence[Tensor]) -> None:
        self.inputs = inputs
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call] # torch leaves it untyped
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # lets libraries choose their kernels outside of the capture
                function(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._outputs = function(*inputs)

    def replay(self) -> Outputs:
        """The outputs for what the inputs hold now; the next replay overwrites them."""
        self._graph.replay()
        return self._outputs


class CudaEngine:
    """`Engine` on CUDA around a torch engine. Graphs are captured when first needed and kept."""

    name = "cuda-graphs"

    def __init__(self, plain: TorchEngine) -> None:
        self._plain = plain
        self._encodes: dict[int, Captured] = {}
        self._decodes: dict[DecodeShape, Captured] = {}

    def encode(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        count = len(inputs)
        size = bucket(count, ENCODE_SIZES)
        if size is None:
            return self._plain.encode(inputs)
        with torch.inference_mode():
            if size not in self._encodes:
                own = torch.zeros(size, *inputs.shape[1:], device=self._plain.device)
                self._encodes[size] = Captured(self._plain.encode, [own])
            captured = self._encodes[size]
            captured.inputs[0][:count].copy_(inputs.pin_memory(), non_blocking=True)
            E, X = captured.replay()
            return E[:count].clone(), X[:count].clone()

    def run(self, batch: DecoderBatch) -> DecoderOutput:
        inputs = batch.inputs
        shape = decode_shape(batch.layout, inputs.tokens.shape[1], inputs.dense is not None)
        if shape is None:
            return self._plain.run(batch)
        with torch.inference_mode():
            if shape not in self._decodes:
                self._decodes[shape] = self._capture(shape, inputs)
            captured = self._decodes[shape]
            prompts = batch.layout.frozen + batch.layout.adapted
            fill(captured.inputs, inputs, source_rows(shape, prompts))
            output = DecoderOutput(*captured.replay())
        adapted = batch.layout.adapted
        return DecoderOutput(
            output.token_logits[:adapted],
            output.sam_masks[:prompts],
            output.iou[:prompts],
            output.lr_token_logits,
            output.tokens[:adapted],
        )

    def _capture(self, shape: DecodeShape, like: DecoderInputs) -> Captured:
        def decode(tokens: Tensor, key_mask: Tensor, *rest: Tensor) -> Outputs:
            fused = list(rest[4]) if shape.adapted else []
            inputs = DecoderInputs(tokens, key_mask, ViewTensors(*rest[:4]), None, fused, [])
            return tuple(self._plain.run(DecoderBatch([], shape.layout, inputs)))

        return Captured(decode, static_inputs(shape, like))


def static_inputs(shape: DecodeShape, like: DecoderInputs) -> list[Tensor]:
    """What a captured decode reads, on the device of `like`: tokens, their mask, the views, F of the HR rows."""
    rows = shape.prompts * (2 if shape.dual else 1)
    tokens = like.tokens.new_zeros(rows, shape.tokens, like.tokens.shape[2])
    mask = like.key_mask.new_ones(rows, shape.tokens)
    views = [part.new_zeros(rows, *part.shape) for part in like.views[0]]
    fused = [like.fused_hr[0].new_zeros(shape.prompts, *like.fused_hr[0].shape)] if shape.adapted else []
    return [tokens, mask, *views, *fused]


def fill(static: Sequence[Tensor], inputs: DecoderInputs, rows: Sequence[int]) -> None:
    """Write a batch into a captured decode's inputs, `rows[i]` of it into row i, tokens padded and masked."""
    tokens, mask, *rest = static
    length = inputs.tokens.shape[1]
    index = torch.tensor(rows, device=tokens.device)
    tokens[:, :length].copy_(inputs.tokens[index])
    tokens[:, length:].zero_()
    mask[:, :length].copy_(inputs.key_mask[index])
    mask[:, length:].zero_()
    for part, own in enumerate(rest[:4]):
        torch.stack([inputs.views[row][part] for row in rows], out=own)
    for own in rest[4:]:
        torch.stack([inputs.fused_hr[row] for row in rows[: len(own)]], out=own)
