"""WSI-SAM's dual decoder in its plain, readable form: the oracle that the fast form is tested against.

Follows METHOD.md sections 1.2, 2.4 and 4 step by step: one view pair and B alike prompts at a time. The image encoder
is apart from it (`image_encoder`); what comes out of that is cached.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from wsisam_model.adapters import Adapter, Adapters
from wsisam_model.mask_decoder import HF_ROW, IOU_ROW, MASK_ROWS, MaskDecoder
from wsisam_model.prompt_encoder import PromptEncoder
from wsisam_model.prompt_tensors import BranchPrompt


@dataclass(frozen=True, slots=True)
class ViewFeatures:
    """What the image encoder makes of one view: E (256, 64, 64) and X (C, 64, 64)."""

    embedding: Tensor
    early: Tensor


@dataclass(frozen=True, slots=True)
class Branch:
    """One branch's pass over B prompts."""

    sparse: Tensor
    """Prompt tokens (B, N, 256)."""
    tokens: Tensor
    """Output tokens Q (B, 5 or 6 + N, 256)."""
    iou: Tensor
    """SAM's estimate for its own four masks (B, 4)."""
    upscaled: Tensor
    """u (B, 32, 256, 256)."""
    sam_masks: Tensor
    """Z_0 to Z_3 (B, 4, 256, 256)."""

    def sam_mask(self, multimask: bool) -> Tensor:
        """Z_sam (B, 256, 256): mask 0 or, with `multimask`, the one of masks 1 to 3 that this branch rates highest."""
        if not multimask:
            return self.sam_masks[:, 0]
        best = 1 + self.iou[:, 1:].argmax(dim=1)
        return self.sam_masks[torch.arange(len(best), device=best.device), best]


@dataclass(frozen=True, slots=True)
class DualDecoded:
    """Both branches' passes and what becomes of them; maps are (B, 256, 256) logits, tokens (B, 32)."""

    hr: Branch
    lr: Branch | None
    token_hr: Tensor
    token_lr: Tensor | None
    token: Tensor
    """The fused token t = t_H + t_L, or t_H alone without a LR view."""
    features_hr: Tensor
    """G_H (B, 32, 256, 256)."""
    own_hr: Tensor
    """<t_H, G_H>."""
    ours_hr: Tensor
    """<t, G_H>: the fused token's logits, before SAM's are added."""
    logits_hr: Tensor
    """Z_H, the result."""
    logits_lr: Tensor | None
    """Z_L."""


class WsiSam(nn.Module):
    """Frozen prompt encoder and mask decoder of a SAM with input side `image_size`; adapters come with each decode."""

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.prompt_encoder = PromptEncoder(image_size)
        self.mask_decoder = MaskDecoder()

    @classmethod
    def from_weights(
        cls, image_size: int, prompt_encoder: Mapping[str, Tensor], mask_decoder: Mapping[str, Tensor]
    ) -> Self:
        """The network with the base's tensors, whose keys come without their part's prefix; all of it is frozen."""
        network = cls(image_size)
        network.prompt_encoder.load_state_dict(dict(prompt_encoder))
        network.mask_decoder.load_state_dict(dict(mask_decoder))
        return network.requires_grad_(False).eval()

    def sam_decode(self, view: ViewFeatures, prompt: BranchPrompt, *, multimask: bool = False) -> tuple[Tensor, Tensor]:
        """The frozen SAM alone: mask 0, or masks 1 to 3, as (B, 1 or 3, 256, 256) logits and their IoU (B, 1 or 3)."""
        branch = self._pass(view, prompt, None, self.prompt_encoder.kind_table())
        wanted = slice(1, 4) if multimask else slice(0, 1)
        return branch.sam_masks[:, wanted], branch.iou[:, wanted]

    def dual_decode(
        self,
        adapters: Adapters,
        hr: ViewFeatures,
        prompt_hr: BranchPrompt,
        lr: ViewFeatures | None,
        prompt_lr: BranchPrompt | None,
        *,
        multimask: bool = False,
    ) -> DualDecoded:
        """Decode B prompts on one pair of views; each row is independent of the others."""
        kinds = adapters.prompt.kind_table(self.prompt_encoder.kind_table())
        branch_hr = self._pass(hr, prompt_hr, adapters.hr, kinds)
        token = token_hr = adapters.hr.token(branch_hr.tokens[:, HF_ROW])
        branch_lr = token_lr = logits_lr = None
        if lr is not None and prompt_lr is not None:
            branch_lr = self._pass(lr, prompt_lr, adapters.lr, kinds)
            token_lr = adapters.lr.token(branch_lr.tokens[:, HF_ROW])
            token = token_hr + token_lr
            features_lr = _mask_features(adapters.lr, lr, branch_lr)
            logits_lr = _product(token, features_lr) + branch_lr.sam_mask(multimask)
        features_hr = _mask_features(adapters.hr, hr, branch_hr)
        ours = _product(token, features_hr)
        return DualDecoded(
            hr=branch_hr,
            lr=branch_lr,
            token_hr=token_hr,
            token_lr=token_lr,
            token=token,
            features_hr=features_hr,
            own_hr=_product(token_hr, features_hr),
            ours_hr=ours,
            logits_hr=ours + branch_hr.sam_mask(multimask),
            logits_lr=logits_lr,
        )

    def _pass(self, view: ViewFeatures, prompt: BranchPrompt, adapter: Adapter | None, kinds: Tensor) -> Branch:
        decoder = self.mask_decoder
        sparse = self.prompt_encoder.sparse(prompt.points, prompt.labels, prompt.boxes, kinds)
        dense = self.prompt_encoder.dense(prompt.mask)
        tokens = decoder.tokens(sparse, None if adapter is None else adapter.hf_token.weight)
        K = (view.embedding + dense).flatten(2).transpose(1, 2).expand(len(tokens), -1, -1)
        P = self.prompt_encoder.pe_layer.grid().flatten(1).transpose(0, 1)
        Q, K = decoder.transformer(tokens, K, P)
        upscaled = decoder.upscale(K)
        sam_masks = torch.einsum("bmc,bchw->bmhw", decoder.mask_weights(Q[:, MASK_ROWS]), upscaled)
        return Branch(sparse, Q, decoder.predicted_iou(Q[:, IOU_ROW]), upscaled, sam_masks)


def _mask_features(adapter: Adapter, view: ViewFeatures, branch: Branch) -> Tensor:
    return adapter.mask_features(branch.upscaled, adapter.fuse(view.embedding[None], view.early[None]))


def _product(token: Tensor, features: Tensor) -> Tensor:
    """<t, G> for each prompt: (B, 32) and (B, 32, 256, 256) to (B, 256, 256)."""
    return torch.einsum("bc,bchw->bhw", token, features)
