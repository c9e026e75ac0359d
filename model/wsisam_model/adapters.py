"""What WSI-SAM trains: one set of 25 tensors for each branch (METHOD.md section 2.4)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Self

import torch
from torch import Tensor, nn

from wsisam_model.errors import CheckpointError
from wsisam_model.layers import LayerNorm2d
from wsisam_model.mask_decoder import FEATURES, ThreeLayerMlp
from wsisam_model.point_box import LONE_SIDE, SPREAD, check_point_box, readings
from wsisam_model.prompts import Prompt
from wsisam_model.quality import check_calibration
from wsisam_model.transformer import WIDTH

_PADDING = 4
_KIND_ROWS = {f"point_embeddings.{row}.weight": row for row in range(4)} | {"not_a_point_embed.weight": _PADDING}
"""Vectors of the prompt encoder that may be trained too, and their rows in its `kind_table`."""
_POINT_BOX = "point_box"


class Adapter(nn.Module):
    """The trained tensors of one branch, under their checkpoint names.

    `early_channels` is C of the backbone's early feature X.
    """

    def __init__(self, early_channels: int) -> None:
        super().__init__()
        self.hf_token = nn.Embedding(1, WIDTH)
        self.hf_mlp = ThreeLayerMlp(FEATURES)
        self.compress_vit_feat = _upscaling(early_channels, 256)
        self.embedding_encoder = _upscaling(WIDTH, 64)
        self.embedding_maskfeature = nn.Sequential(
            nn.Conv2d(FEATURES, 64, 3, padding=1),
            LayerNorm2d(64),
            nn.GELU(),
            nn.Conv2d(64, FEATURES, 3, padding=1),
        )

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        """The adapter holding exactly the 25 tensors of `state`; `CheckpointError` names one that does not fit."""
        try:
            adapter = cls(state["compress_vit_feat.0.weight"].shape[0])
        except KeyError as error:
            raise CheckpointError(f"the adapter has no {error.args[0]}") from None
        _load_exactly(adapter, state)
        return adapter

    @property
    def early_channels(self) -> int:
        """C, channels of X."""
        return self.compress_vit_feat.get_parameter("0.weight").shape[0]

    def fuse(self, embedding: Tensor, early: Tensor) -> Tensor:
        """F (B, 32, 256, 256) of a view's E (B, 256, 64, 64), without a dense prompt, and X (B, C, 64, 64)."""
        fused: Tensor = self.embedding_encoder(embedding) + self.compress_vit_feat(early)
        return fused

    def mask_features(self, u: Tensor, fused: Tensor) -> Tensor:
        """G (B, 32, 256, 256) of SAM's upscaled features `u` and the view's F, both (B, 32, 256, 256)."""
        features: Tensor = self.embedding_maskfeature(u) + fused
        return features

    def token(self, Q: Tensor) -> Tensor:
        """The updated token t (B, 32) of the branch's output token `Q` (B, 256)."""
        t: Tensor = self.hf_mlp(Q)
        return t


class TrainedPrompt(nn.Module):
    """Those vectors of the prompt encoder that were trained along with the adapters, under its own key names, and
    `point_box` (2,), its spread and lone side, if the adapters were trained to see a box around clicks (`point_box`).
    """

    def __init__(self, names: Collection[str] = ()) -> None:
        super().__init__()
        rows = sorted(_row_of(name) for name in names if name != _POINT_BOX)
        self.point_box: Tensor | None
        self._numbers: tuple[float, float] | None = None
        self.register_buffer(_POINT_BOX, torch.tensor([SPREAD, LONE_SIDE]) if _POINT_BOX in names else None)
        self.point_embeddings = nn.ModuleDict({str(row): nn.Embedding(1, WIDTH) for row in rows if row != _PADDING})
        self.not_a_point_embed = nn.Embedding(1, WIDTH) if _PADDING in rows else None

    def kind_table(self, frozen: Tensor) -> Tensor:
        """`PromptEncoder.kind_table()` (5, 256) with the trained rows in place of the frozen ones."""
        rows = [frozen[row : row + 1] for row in range(len(frozen))]
        for row in self.point_embeddings:
            rows[int(row)] = self.point_embeddings.get_parameter(f"{row}.weight")
        if self.not_a_point_embed is not None:
            rows[_PADDING] = self.not_a_point_embed.weight
        return torch.cat(rows)

    def readings(self, prompt: Prompt, view_size: tuple[int, int]) -> list[Prompt]:
        """What `prompt`, in HR view pixels, may mean (`point_box.readings`); itself if clicks are taken as such."""
        if self.point_box is None:
            return [prompt]
        return readings(prompt, view_size, *self._box_numbers())

    def _box_numbers(self) -> tuple[float, float]:
        """`point_box`, read from the device once: every such read waits for all that runs there."""
        if self._numbers is None:
            assert self.point_box is not None
            spread, lone_side = self.point_box.tolist()
            self._numbers = (spread, lone_side)
        return self._numbers


class IouCalibration(nn.Module):
    """Tensors that turn numbers of a fused mask into its predicted IoU (see `quality`); none if not trained."""

    def __init__(self, tensors: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        check_calibration({name: tuple(tensor.shape) for name, tensor in (tensors or {}).items()})
        for name, tensor in (tensors or {}).items():
            self.register_buffer(name, tensor.clone())


class Adapters(nn.Module):
    """Both branches. The state dict is a file of ours: `hr.*`, `lr.*`, optionally `prompt.*` and `iou.*`."""

    def __init__(
        self, hr: Adapter, lr: Adapter, prompt: TrainedPrompt | None = None, iou: IouCalibration | None = None
    ) -> None:
        super().__init__()
        self.hr, self.lr = hr, lr
        self.prompt = prompt or TrainedPrompt()
        self.iou = iou or IouCalibration()

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        """The adapters of a flat `state`; `CheckpointError` names a key that is missing, unknown, or of wrong shape or
        range.
        """
        parts: dict[str, dict[str, Tensor]] = {"hr": {}, "lr": {}, "prompt": {}, "iou": {}}
        for key, tensor in state.items():
            part, _, name = key.partition(".")
            if part not in parts:
                raise CheckpointError(f"{key} is not a tensor of adapters")
            parts[part][name] = tensor
        prompt = TrainedPrompt(parts["prompt"])
        _load_exactly(prompt, parts["prompt"])
        if prompt.point_box is not None:
            check_point_box(*prompt.point_box.tolist())
        return cls(
            Adapter.from_state(parts["hr"]), Adapter.from_state(parts["lr"]), prompt, IouCalibration(parts["iou"])
        )


def _row_of(name: str) -> int:
    try:
        return _KIND_ROWS[name]
    except KeyError:
        raise CheckpointError(f"prompt.{name} is not a vector that adapters may replace") from None


def _upscaling(channels: int, middle: int) -> nn.Sequential:
    """(B, channels, 64, 64) -> (B, 32, 256, 256), without an activation at the end."""
    return nn.Sequential(
        nn.ConvTranspose2d(channels, middle, 2, stride=2),
        LayerNorm2d(middle),
        nn.GELU(),
        nn.ConvTranspose2d(middle, FEATURES, 2, stride=2),
    )


def _load_exactly(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load `state`, refusing with the key's name what is missing, unknown, of wrong shape or not finite."""
    own = module.state_dict()
    for key in sorted(own.keys() ^ state.keys()):
        raise CheckpointError(f"the adapter {'has no' if key in own else 'has an unknown tensor'} {key}")
    for key, tensor in state.items():
        if tensor.shape != own[key].shape:
            raise CheckpointError(f"{key} has shape {tuple(tensor.shape)}, not {tuple(own[key].shape)}")
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{key} holds numbers that are not finite")
    module.load_state_dict(dict(state))
