"""Frozen image encoders: normalised images in, image embedding E and early feature X out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from wsisam_model.config import ModelConfig
from wsisam_model.image_encoder.tiny_vit import TinyViT
from wsisam_model.image_encoder.vit import VIT_SIZES, ViT

__all__ = ["ImageEncoder", "TinyViT", "ViT", "build_image_encoder", "load_image_encoder"]

ImageEncoder = TinyViT | ViT


def build_image_encoder(config: ModelConfig) -> ImageEncoder:
    """The encoder of a model with random weights, in eval mode.

    Its forward gives (E, X): (B, 256, 64, 64) and (B, C, 64, 64), C being `config.early_channels`.
    """
    return TinyViT(config.image_size) if config.encoder == "tiny_vit" else ViT(VIT_SIZES[config.name])


def load_image_encoder(config: ModelConfig, weights: Mapping[str, Tensor]) -> ImageEncoder:
    """The frozen encoder with the weights of `checkpoints.load_base_weights`, made ready for inference.

    It runs in channels-last memory format, a tenth faster on CPU; E and X come out in that format.
    """
    encoder = build_image_encoder(config)
    encoder.load_state_dict(weights)
    encoder.requires_grad_(False)
    encoder.prepare_for_inference()
    encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's overloads leave it out
    return encoder
