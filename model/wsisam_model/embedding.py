"""What the frozen encoder makes of a view, and the form in which stores and workers pass it on."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from wsisam_model.errors import CheckpointError
from wsisam_model.prompt_encoder import GRID
from wsisam_model.transformer import WIDTH

FORMAT = "wsisam-embedding/1"


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """E `embedding` (256, 64, 64) and X `early` (C, 64, 64) of one view; `view_size` is its (height, width) in pixels.

    Without anything of the adapters: any view may serve as HR and as LR.
    """

    embedding: Tensor
    early: Tensor
    view_size: tuple[int, int]

    def halved(self) -> Embedding:
        """In float16, as `from_bytes` gives it back, on the device it is on."""
        return Embedding(self.embedding.half(), self.early.half(), self.view_size)

    def to_bytes(self) -> bytes:
        """A safetensors blob of float16, which moves the logits by at most 0.01 (METHOD.md section 6)."""
        tensors = {"embedding": self.embedding, "early": self.early}
        halves = {name: tensor.to("cpu", torch.float16).contiguous() for name, tensor in tensors.items()}
        height, width = self.view_size
        return save(halves, metadata={"format": FORMAT, "view_size": f"{height}x{width}"})

    @classmethod
    def from_bytes(cls, blob: bytes) -> Embedding:
        """The embedding of a `to_bytes` blob, float16 on the CPU. `CheckpointError` if it is anything else."""
        tensors, view_size = read_blob(blob, FORMAT, torch.float16)
        return cls(tensors["embedding"], tensors["early"], view_size)


def read_blob(blob: bytes, form: str, dtype: torch.dtype) -> tuple[dict[str, Tensor], tuple[int, int]]:
    """The tensors of a blob that says it is of `form`, its two maps of `dtype`, and the view's (height, width).

    Raises `CheckpointError` for anything else.
    """
    try:
        tensors, metadata = load(blob), _metadata(blob)
        embedding, early = tensors["embedding"], tensors["early"]
        height, width = (int(side) for side in metadata["view_size"].split("x"))
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError("not the blob of an embedding") from error
    if metadata.get("format") != form:
        raise CheckpointError(f"an embedding of format {metadata.get('format')!r}, not {form!r}")
    if embedding.shape != (WIDTH, GRID, GRID) or early.ndim != 3 or early.shape[1:] != (GRID, GRID):
        raise CheckpointError(f"an embedding of shapes {tuple(embedding.shape)} and {tuple(early.shape)}")
    if embedding.dtype != dtype or early.dtype != dtype or min(height, width) < 1:
        raise CheckpointError(f"an embedding of {embedding.dtype} and {early.dtype}, view {height}x{width}")
    return tensors, (height, width)


def _metadata(blob: bytes) -> dict[str, str]:
    """The strings in a safetensors header, which begins with its length in 8 bytes."""
    header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
    return dict(header.get("__metadata__", {}))
