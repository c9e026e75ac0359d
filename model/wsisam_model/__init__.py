"""The WSI-SAM network and everything that needs torch.

Importing this package imports nothing heavy. `config`, `errors`, `prompts`, `point_box` and `quality` are free of torch
and are the only modules the gateway may import; `load_model` brings in the rest when it is first asked for. Where a
script imports torch before this package, OpenVINO is a tenth slower in it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wsisam_model.registry import load_model

__all__ = ["load_model"]

if "OMP_WAIT_POLICY" not in os.environ:
    # torch's threads spin for milliseconds after each of its loops, in case another one follows, on the cores that
    # OpenVINO would compute with meanwhile: in a script a decode took a tenth longer, F a quarter. (Where several
    # threads use torch, as in the service, they spin less by themselves.) A thirtieth is enough to catch the next loop.
    # GNU's OpenMP reads it once, when torch is first imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def __getattr__(name: str) -> object:
    """Import `registry.load_model` on first use, so that the gateway does not import torch."""
    if name == "load_model":
        from wsisam_model.registry import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
