"""Number formats of the two steps, by name."""

from __future__ import annotations

from typing import NamedTuple, Self

import torch

from wsisam_model.errors import ModelError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHORT_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16"}


class Precision(NamedTuple):
    """What encoder and decoder compute in. Embeddings and logits are float32 outside of them."""

    encoder: torch.dtype
    decoder: torch.dtype

    @classmethod
    def of(cls, name: str) -> Self:
        """From "float32", "bfloat16", "float16", or two of them as "encoder/decoder". Raises `ModelError`.

        What lower precision costs in Dice is in docs/PERFORMANCE.md.
        """
        parts = name.split("/")
        if len(parts) > 2 or any(part not in DTYPES for part in parts):
            raise ModelError(f"no precision is called {name!r}; there are {', '.join(DTYPES)}, or two as a/b")
        return cls(DTYPES[parts[0]], DTYPES[parts[-1]])

    def __str__(self) -> str:
        return "/".join(str(dtype).removeprefix("torch.") for dtype in self)


EXACT = Precision(torch.float32, torch.float32)
