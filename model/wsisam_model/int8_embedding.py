"""Embeddings in a byte a number, for stores whose memory and network are short (docs/SCALING.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from safetensors.torch import save
from torch import Tensor

from wsisam_model.embedding import Embedding, read_blob
from wsisam_model.errors import CheckpointError

FORMAT = "wsisam-embedding-int8/1"
_LARGEST = 127


@dataclass(frozen=True, slots=True, eq=False)
class Int8Embedding:
    """Both maps of an `Embedding` in int8, with a float32 scale for each channel (C, 1, 1)."""

    embedding: Tensor
    early: Tensor
    embedding_scale: Tensor
    early_scale: Tensor
    view_size: tuple[int, int]

    @classmethod
    def of(cls, exact: Embedding) -> Self:
        """`exact` to within half a scale, on its device."""
        embedding, embedding_scale = _quantised(exact.embedding)
        early, early_scale = _quantised(exact.early)
        return cls(embedding, early, embedding_scale, early_scale, exact.view_size)

    def restored(self) -> Embedding:
        """What a decoder takes, float16."""
        embedding, early = self.embedding * self.embedding_scale, self.early * self.early_scale
        return Embedding(embedding.half(), early.half(), self.view_size)

    def to_bytes(self) -> bytes:
        """A safetensors blob, half as large as `Embedding.to_bytes`."""
        tensors = {
            "embedding": self.embedding,
            "early": self.early,
            "embedding_scale": self.embedding_scale,
            "early_scale": self.early_scale,
        }
        height, width = self.view_size
        metadata = {"format": FORMAT, "view_size": f"{height}x{width}"}
        return save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, metadata=metadata)

    @classmethod
    def from_bytes(cls, blob: bytes) -> Self:
        """The embedding of a `to_bytes` blob, on the CPU. `CheckpointError` if it is anything else."""
        tensors, view_size = read_blob(blob, FORMAT, torch.int8)
        maps = tensors["embedding"], tensors["early"]
        scales = [tensors.get("embedding_scale"), tensors.get("early_scale")]
        if any(s is None or s.shape != (len(m), 1, 1) for m, s in zip(maps, scales, strict=True)):
            raise CheckpointError("an embedding whose scales do not fit its channels")
        return cls(*maps, tensors["embedding_scale"], tensors["early_scale"], view_size)


def _quantised(values: Tensor) -> tuple[Tensor, Tensor]:
    """`values` (C, h, w) in int8, and the scale of each channel that gives them back."""
    values = values.float()
    scale = (values.abs().amax(dim=(1, 2), keepdim=True) / _LARGEST).clamp(min=1e-12)
    return (values / scale).round().to(torch.int8), scale
