"""The WSI-SAM network and everything that needs torch.

Importing this package imports nothing heavy. `config`, `errors` and `prompts` are free of torch and are the only
modules the gateway may import; `load_model` brings in the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsisam_model.predictor import Predictor

__all__ = ["load_model"]


def load_model(name: str = "lite_medsam", **options: Any) -> Predictor:
    """Load a model by registry name; see `wsisam_model.registry.load_model` for the options."""
    from wsisam_model import registry

    return registry.load_model(name, **options)
