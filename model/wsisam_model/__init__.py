"""The WSI-SAM network and everything that needs torch.

Importing this package imports nothing heavy. `config`, `errors` and `prompts` are free of torch and are the only
modules the gateway may import; `load_model` brings in the rest when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wsisam_model.registry import load_model

__all__ = ["load_model"]


def __getattr__(name: str) -> object:
    """Import `registry.load_model` on first use, so that the gateway does not import torch."""
    if name == "load_model":
        from wsisam_model.registry import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
