"""Requests to a batch of tensors for the fast decoder, and its output back to requests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wsisam_model.config import ModelConfig
from wsisam_model.fast_decoder import (
    Branch,
    DecoderInputs,
    DecoderOutput,
    DecoderView,
    FastDecoder,
    Layout,
)
from wsisam_model.mask_decoder import MASKS
from wsisam_model.preprocessing import Floats
from wsisam_model.prompt_tensors import check_prompt, pad_prompts, prompt_numbers
from wsisam_model.prompts import Prompt

Quality = Callable[[Floats, "DecodeRequest"], Floats]
"""Predicted IoU (n,) of the fused low-resolution logits (n, 256, 256) that a request led to."""
Fuse = Callable[[DecoderView, Branch], Tensor]
"""F (32, 65536) of a view under one branch's adapter."""
ForEach = Callable[[Callable[[int], "Decoded"], Iterable[int]], Iterable["Decoded"]]
"""Calls a function with each of some numbers, as `map` does: in turn, or in threads."""


@dataclass(frozen=True, slots=True, eq=False)
class DecodeRequest:
    """One prompt on one view, or on a pair of concentric views.

    `said` is what the user said, where `prompt` is a reading of it. `adapters` are those called so; None leaves it to
    how the HR view looks. `frozen` asks the SAM without adapters, on the HR view alone. `multimask` gives three masks,
    best first. `lr_mask` asks for the LR branch's own mask, `lr_sam` for its SAM logits alone (they cost a third of a
    decode).
    """

    hr: DecoderView
    lr: DecoderView | None
    prompt: Prompt
    said: Prompt | None = None
    adapters: str | None = None
    frozen: bool = False
    multimask: bool = False
    lr_mask: bool = False
    lr_sam: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """A request's answer: low-resolution logits in the model frame, float32 (256, 256) each.

    `logits` (n, 256, 256), best first in SAM's own order: one mask, or three with multimask; `predicted_iou` (n,) in
    0..1. The SAM logits are the next mask prompt of their branch; the LR ones are there if they were asked for.
    `logits` may be a part of what a whole batch gave: copy what is to be kept.
    """

    logits: Floats
    predicted_iou: Floats
    sam_logits_hr: Floats
    sam_logits_lr: Floats | None
    lr_logits: Floats | None


@dataclass(frozen=True, slots=True)
class DecoderBatch:
    """What `FastDecoder.forward` takes, and in `order` the request that each HR row belongs to."""

    order: Sequence[int]
    layout: Layout
    inputs: DecoderInputs


@dataclass(frozen=True, slots=True)
class _Row:
    view: DecoderView
    prompt: Prompt
    branch: Branch
    frozen: bool

    @property
    def mask(self) -> npt.NDArray[np.float32] | None:
        return self.prompt.mask_lr if self.branch == "lr" else self.prompt.mask_hr


def collate(
    decoder: FastDecoder, requests: Sequence[DecodeRequest], config: ModelConfig, fuse: Fuse | None = None
) -> DecoderBatch:
    """The batch of `requests`, one HR row each and a LR row where the adapters have a LR view. Raises `PromptError`.

    An F that a view does not hold yet is made by `fuse`, by default the decoder's own, and kept in the view.
    """
    frozen_model = decoder.adapters is None
    order = sorted(range(len(requests)), key=lambda index: _rank(requests[index], frozen_model))
    ranks = [_rank(requests[index], frozen_model) for index in order]
    layout = Layout(
        frozen=ranks.count(0),
        adapted=len(ranks) - ranks.count(0),
        lr_masks=ranks.count(1),
        lr_sam=ranks.count(2),
        lr_tokens=ranks.count(3),
        masks=MASKS if any(request.multimask for request in requests) else 1,
    )
    rows = [_Row(requests[i].hr, requests[i].prompt, "hr", rank == 0) for i, rank in zip(order, ranks, strict=True)]
    for index, rank in zip(order, ranks, strict=True):
        lr = requests[index].lr
        if lr is not None and rank in (1, 2, 3):
            rows.append(_Row(lr, requests[index].prompt, "lr", frozen=False))
    for request in requests:
        check_prompt(request.prompt)
    tokens, key_mask = _tokens(decoder, rows, config)
    adapted = rows[layout.frozen : len(order)]
    inputs = DecoderInputs(
        tokens,
        key_mask,
        views=[row.view.tensors for row in rows],
        dense=_dense(decoder, rows),
        fused_hr=_fused(decoder, adapted, fuse),
        fused_lr=_fused(decoder, rows[len(order) : len(order) + layout.lr_masks], fuse),
    )
    return DecoderBatch(order, layout, inputs)


def _fused(decoder: FastDecoder, rows: Sequence[_Row], fuse: Fuse | None) -> list[Tensor]:
    """Each row's F, made where its view holds none."""
    fused = []
    for row in rows:
        adapter = decoder.adapter(row.branch)
        if adapter not in row.view.fused:
            row.view.fused[adapter] = (fuse or decoder.fuse)(row.view, row.branch)
        fused.append(row.view.fused[adapter])
    return fused


@dataclass(frozen=True, slots=True)
class HostOutput:
    """`DecoderOutput` as float32 arrays, with SAM's masks added to the adapted rows' logits.

    From a device they are in the making until `wait` returns, in page-locked memory.
    """

    wait: Callable[[], None]
    fused: Floats
    """(adapted, masks, 256, 256)."""
    sam_masks: Floats
    iou: Floats
    lr_token_logits: Floats


def to_host(output: DecoderOutput, layout: Layout) -> HostOutput:
    """Begin to copy `output`, which its engine may overwrite from then on."""
    on_cuda = output.iou.is_cuda  # where the copy to the host is over before the engine can write again
    own = output.sam_masks, output.iou, output.lr_token_logits
    sam, iou, lr_token_logits = (tensor.to(torch.float32, copy=not on_cuda) for tensor in own)
    fused = output.token_logits.unsqueeze(1) + sam[layout.frozen : layout.frozen + layout.adapted]
    tensors = fused.float(), sam, iou, lr_token_logits
    if not on_cuda:
        return HostOutput(lambda: None, *(tensor.numpy() for tensor in tensors))
    arrays = [torch.empty(tensor.shape, pin_memory=True) for tensor in tensors]
    for array, tensor in zip(arrays, tensors, strict=True):
        array.copy_(tensor, non_blocking=True)
    copied = torch.cuda.current_stream(sam.device).record_event()
    return HostOutput(copied.synchronize, *(array.numpy() for array in arrays))


def scatter(
    batch: DecoderBatch,
    requests: Sequence[DecodeRequest],
    output: HostOutput,
    quality: Quality,
    for_each: ForEach = map,
) -> Iterable[Decoded]:
    """Wait for `output`; each request's answer from it, in the order of `requests`. `quality` predicts the IoU of fused
    masks.
    """
    output.wait()
    rows = {index: row for row, index in enumerate(batch.order)}

    def answer(index: int) -> Decoded:
        return _answer(rows[index], requests[index], batch.layout, output, quality)

    return for_each(answer, range(len(requests)))


def _answer(row: int, request: DecodeRequest, layout: Layout, output: HostOutput, quality: Quality) -> Decoded:
    """The answer to the request in HR row `row`."""
    picked = _pick(output.iou[row], request.multimask)
    # Copied, as the next prompt may come long after: it must not keep the whole batch. The logits are a part of it.
    sam = output.sam_masks[row, picked]
    adapted = row - layout.frozen
    if adapted < 0:
        return Decoded(sam, output.iou[row, picked].clip(0, 1), sam[0], None, None)
    logits = output.fused[adapted, picked if request.multimask else slice(1)]
    sam_lr = lr_logits = None
    if adapted < layout.lr_masks + layout.lr_sam:
        lr_row = layout.frozen + layout.adapted + adapted
        sam_lr = output.sam_masks[lr_row, _pick(output.iou[lr_row], request.multimask)[0]]
        if adapted < layout.lr_masks:
            lr_logits = output.lr_token_logits[adapted] + sam_lr
    return Decoded(logits, quality(logits, request), sam[0], sam_lr, lr_logits)


def _pick(iou: Floats, multimask: bool) -> list[int]:
    """Which of a row's SAM masks answer, best first by SAM's estimate; METHOD.md section 4."""
    return [1 + int(mask) for mask in np.argsort(-iou[1:], kind="stable")] if multimask else [0]


def _rank(request: DecodeRequest, frozen_model: bool) -> int:
    """The request's place in the order of `Layout`."""
    if request.frozen or frozen_model:
        return 0
    if request.lr is None:
        return 4
    if request.lr_mask:
        return 1
    return 2 if request.lr_sam else 3


def _dense(decoder: FastDecoder, rows: Sequence[_Row]) -> Tensor | None:
    """What the rows' mask prompts add beyond the no-mask embedding, (R, 4096, 256); None if there are none."""
    masked = [index for index, row in enumerate(rows) if row.mask is not None]
    if not masked:
        return None
    encoder = decoder.network.prompt_encoder
    position = decoder.position
    given = np.stack([mask for row in rows if (mask := row.mask) is not None])[:, None]
    masks = _copied(torch.from_numpy(given), position.device).to(position.dtype)
    added = (encoder.dense(masks) - encoder.dense(None)).flatten(2).transpose(1, 2)
    dense = position.new_zeros(len(rows), *position.shape)
    for index, one in zip(masked, added, strict=True):
        dense[index] = one
    return dense


def _tokens(decoder: FastDecoder, rows: Sequence[_Row], config: ModelConfig) -> tuple[Tensor, Tensor]:
    """The rows' input tokens (R, T, 256), padded with zeros to the longest, and which of them are tokens (R, T)."""
    coordinates, kinds = pad_prompts(
        [prompt_numbers(row.prompt, row.view.view_size, config, lr=row.branch == "lr") for row in rows]
    )
    lr, frozen = [row.branch == "lr" for row in rows], [row.frozen for row in rows]
    tokens, real = decoder.input_tokens(coordinates, kinds, lr=lr, frozen=frozen)
    return _copied(tokens, decoder.position.device), _copied(real, decoder.position.device)


def _copied(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. It goes there without a wait for what the device has still to do."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
