"""What the benchmarks of the network share: weights at hand or random, the peers' decoder, the work of each stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from wsisam_model.adapters import Adapter, Adapters
from wsisam_model.checkpoints import BaseWeights, save_adapters
from wsisam_model.config import ModelConfig
from wsisam_model.decoder_batch import DecodeRequest, collate
from wsisam_model.errors import CheckpointError
from wsisam_model.image_encoder import build_image_encoder
from wsisam_model.image_encoder.vit import segment_anything_modeling
from wsisam_model.mask_decoder import MaskDecoder
from wsisam_model.predictor import Predictor
from wsisam_model.prompt_encoder import PromptEncoder
from wsisam_model.prompts import Prompt
from wsisam_model.registry import base_weights_path

BOX = Prompt(box=(60.0, 70.0, 180.0, 200.0))

Action = Callable[[], object]


class PeerDecode(nn.Module):
    """segment-anything's own prompt encoder and mask decoder: a box on an image embedding, one mask."""

    def __init__(self, base: BaseWeights, side: int) -> None:
        super().__init__()
        modeling = segment_anything_modeling()
        self.prompt_encoder = modeling.PromptEncoder(256, (64, 64), (side, side), 16)
        transformer = modeling.TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
        self.mask_decoder = modeling.MaskDecoder(transformer_dim=256, transformer=transformer)
        self.prompt_encoder.load_state_dict(dict(base.prompt_encoder))
        self.mask_decoder.load_state_dict(dict(base.mask_decoder))
        self.requires_grad_(False).eval()

    def forward(self, embedding: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
        sparse, dense = self.prompt_encoder(points=None, boxes=box, masks=None)
        masks, iou = self.mask_decoder(embedding, self.prompt_encoder.get_dense_pe(), sparse, dense, False)
        return masks, iou


def base_of(config: ModelConfig, folder: Path) -> Path:
    """The base's weights: those at hand, else seeded random ones in `folder`."""
    try:
        return base_weights_path(config)
    except CheckpointError:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{config.name}.pth"
    if not path.exists():
        torch.manual_seed(0)
        parts = {
            "image_encoder": build_image_encoder(config),
            "prompt_encoder": PromptEncoder(config.image_size),
            "mask_decoder": MaskDecoder(),
        }
        torch.save({f"{part}.{key}": value for part in parts for key, value in parts[part].state_dict().items()}, path)
    return path


def random_adapters(config: ModelConfig, base: BaseWeights, folder: Path) -> Path:
    """A file of adapters of seeded random numbers: their masks mean nothing."""
    torch.manual_seed(0)
    state = Adapters(Adapter(config.early_channels), Adapter(config.early_channels)).state_dict()
    path = folder / "adapters.safetensors"
    save_adapters(path, state, model=config.name, base_sha256=base.sha256, data="random numbers", licence="any use")
    return path


@dataclass(frozen=True, slots=True)
class Work:
    """What a stage has to do for one item: multiply-adds times two, bytes of weights, other bytes read and written."""

    flop: float
    weights: float
    moved: float

    def floor_s(self, flop_per_s: float, bytes_per_s: float, items: int = 1) -> float:
        """The least seconds that `items` together can take."""
        return max(items * self.flop / flop_per_s, (self.weights + items * self.moved) / bytes_per_s)


def work_of(predictor: Predictor, image: np.ndarray[Any, Any]) -> dict[str, Work]:
    """The work of each stage of a click on `image`."""
    config, decoder = predictor.config, predictor.decoder
    with torch.device("meta"):
        encoder = build_image_encoder(config)
        encoder.prepare_for_inference()
        blank = torch.zeros(1, 3, config.image_size, config.image_size)
    (embedding,) = predictor.encode([image])
    hr, lr = predictor.prepare(embedding), predictor.prepare(embedding)
    batches = {
        "dual decode": collate(decoder, [DecodeRequest(hr, lr, BOX)], config),
        "adapted decode, HR alone": collate(decoder, [DecodeRequest(hr, None, BOX)], config),
        "frozen decode": collate(decoder, [DecodeRequest(hr, None, BOX, frozen=True)], config),
    }
    view, logits = sum(tensor.nbytes for tensor in hr.tensors), 256 * 256 * 4
    fused, features = 32 * logits, embedding.embedding.nbytes + embedding.early.nbytes
    moved = dict(zip(batches, (2 * view + fused + 2 * logits, view + fused + 2 * logits, view + logits), strict=True))
    weights = _nbytes(decoder.network.mask_decoder)
    return {
        "encode a view": Work(_flops(lambda: encoder(blank)), _nbytes(encoder), features),
        "ready a view": Work(
            _flops(lambda: decoder.fuse(predictor.prepare(embedding), "hr")), 0.0, view + features + fused
        ),
        **{
            stage: Work(_flops(lambda batch=batch: decoder(batch.layout, batch.inputs)), weights, moved[stage])
            for stage, batch in batches.items()
        },
    }


def _flops(action: Action) -> float:
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        action()
    return float(counter.get_total_flops())


def _nbytes(module: nn.Module) -> float:
    return float(sum(parameter.nbytes for parameter in module.parameters()))
