"""Where training starts from, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from wsisam_model.adapters import Adapter, Adapters, TrainedPrompt
from wsisam_model.config import ModelConfig
from wsisam_model.network import WsiSam

TRAINED_VECTORS = ("point_embeddings.0.weight",)
"""Vectors of the prompt encoder that are trained along: the one that says "background point", which LiteMedSAM never
learned. The box corners stay frozen, and "object point" and "no box" are never said, since clicks become a box."""


def fresh_adapters(base: WsiSam, config: ModelConfig, *, seed: int) -> Adapters:
    """Adapters that see a box around clicks and otherwise answer as the frozen SAM does: the HR and LR tokens start as
    mask token 0 and the last layer of their MLP at zero. The rest of each branch starts at random.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapters = Adapters(
            Adapter(config.early_channels),
            Adapter(config.early_channels),
            TrainedPrompt((*TRAINED_VECTORS, "point_box")),
        )
    with torch.no_grad():
        for branch in (adapters.hr, adapters.lr):
            branch.hf_token.weight.copy_(base.mask_decoder.mask_tokens.weight[:1])
            last = branch.hf_mlp.layers[-1]
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        frozen = base.prompt_encoder.state_dict()
        adapters.prompt.load_state_dict({name: frozen[name] for name in TRAINED_VECTORS}, strict=False)
    return adapters


def part_of_the_way(start: Mapping[str, Tensor], end: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """The tensors `share` of the way from `start` to `end`, which have the same names and shapes."""
    return {key: torch.lerp(start[key], tensor, share) for key, tensor in end.items()}


def finished_state(adapters: Adapters, *, shrink: float = 1.0, lr_shrink: float = 1.0) -> dict[str, Tensor]:
    """The tensors to save, the HR token's part of the mask at `shrink` of what it is, the LR token's at `lr_shrink`.

    The LR branch's fusion and mask features carry no loss (its token does), so it gets those of the HR branch: they
    make the LR mask from the same sum of tokens.
    """
    state = {key: tensor.detach().clone() for key, tensor in adapters.state_dict().items()}
    for branch, share in (("hr", shrink), ("lr", lr_shrink)):
        for name in ("weight", "bias"):
            state[f"{branch}.hf_mlp.layers.2.{name}"] *= share  # the mask is linear in the tokens
    for key in list(state):
        if key.startswith("lr.") and not key.startswith(("lr.hf_token", "lr.hf_mlp")):
            state[key] = state["hr." + key.removeprefix("lr.")].clone()
    return state
