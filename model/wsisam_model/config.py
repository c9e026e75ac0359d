"""What models there are, in numbers. Torch-free, so that the gateway can plan views without the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wsisam_model.errors import UnknownModelError

PromptKind = Literal["box", "points", "mask"]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One backbone. Variants differ by numbers only (METHOD.md sections 2.1, 3.1 and 7)."""

    name: str
    image_size: int
    """Side S of the square model input in pixels; also the side of a view."""
    early_channels: int
    """C, channels of the early feature X (C, 64, 64)."""
    encoder: Literal["tiny_vit", "vit"]
    normalisation: Literal["minmax", "imagenet"]
    trained_prompts: frozenset[PromptKind]
    """Prompt kinds the frozen base was trained for; others run, with a warning in the answer."""
    multimask: bool
    """Whether masks 1 to 3 mean anything (METHOD.md section 4)."""
    default_mpp: float = 1.0
    """µm per level-0 pixel taken for slides that do not say theirs."""
    point_mpp: float = 1.0
    """Ladder step of a view around lone points, µm per view pixel."""
    passes_in_bfloat16: bool = False
    """Whether its masks in bfloat16 passed the gate on annotated tissue (docs/PERFORMANCE.md)."""
    preprocessing: str = "2"
    """Version of view reading and preprocessing; part of every view key."""


_SAM_PROMPTS: frozenset[PromptKind] = frozenset(("box", "points", "mask"))

MODELS: dict[str, ModelConfig] = {
    config.name: config
    for config in (
        ModelConfig(
            "lite_medsam",
            256,
            160,
            "tiny_vit",
            "minmax",
            frozenset(("box",)),
            multimask=False,
            passes_in_bfloat16=True,
        ),
        ModelConfig("vit_tiny", 1024, 160, "tiny_vit", "imagenet", _SAM_PROMPTS, multimask=True),
        ModelConfig("vit_b", 1024, 768, "vit", "imagenet", _SAM_PROMPTS, multimask=True),
        ModelConfig("vit_l", 1024, 1024, "vit", "imagenet", _SAM_PROMPTS, multimask=True),
        ModelConfig("vit_h", 1024, 1280, "vit", "imagenet", _SAM_PROMPTS, multimask=True),
    )
}


def model_config(name: str) -> ModelConfig:
    """The configuration called `name`; raises `UnknownModelError` with the names there are."""
    try:
        return MODELS[name]
    except KeyError:
        raise UnknownModelError(f"no model is called {name!r}; there are {', '.join(MODELS)}") from None
