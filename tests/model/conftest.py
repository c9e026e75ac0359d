"""Small networks with random weights, for tests that need no checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wsisam_model.adapters import Adapter, Adapters
from wsisam_model.network import ViewFeatures, WsiSam
from wsisam_model.prompts import Prompt


@pytest.fixture(scope="module")
def random_network() -> WsiSam:
    """A frozen decoder for 256-pixel inputs with random weights, float64."""
    torch.manual_seed(1)
    return WsiSam(256).double().requires_grad_(False).eval()


@pytest.fixture(scope="module")
def random_adapters() -> Adapters:
    """Adapters with random weights, their token large enough to weigh as much as SAM's logits, float64."""
    torch.manual_seed(2)
    adapters = Adapters(Adapter(8), Adapter(8)).double()
    with torch.no_grad():
        for branch in (adapters.hr, adapters.lr):
            branch.hf_mlp.layers[-1].weight *= 20
            branch.embedding_maskfeature[-1].weight *= 5
    return adapters


@pytest.fixture(scope="module")
def random_views() -> tuple[ViewFeatures, ViewFeatures]:
    """An HR and a LR view's features, float64, with 8 early channels."""
    generator = torch.Generator().manual_seed(3)

    def feature(channels: int) -> torch.Tensor:
        return torch.randn(channels, 64, 64, generator=generator, dtype=torch.float64)

    return ViewFeatures(feature(256), feature(8)), ViewFeatures(feature(256), feature(8))


@pytest.fixture(scope="session")
def prompts() -> dict[str, Prompt]:
    """One prompt of each kind, in pixels of a 256-pixel view."""
    mask_hr, mask_lr = np.random.default_rng(4).normal(0, 5, (2, 256, 256)).astype(np.float32)
    box = (40.0, 60.5, 180.0, 200.0)
    points = ((100.0, 120.0), (30.0, 200.25), (110.0, 90.0))
    return {
        "box": Prompt(box=box),
        "points": Prompt(points=points, labels=(1, 0, 1)),
        "points and box": Prompt(box=box, points=points, labels=(1, 0, 1)),
        "many points": Prompt(points=points * 5, labels=(1, 0, 1) * 5),
        "mask": Prompt(mask_hr=mask_hr),
        "masks and point": Prompt(points=points[:1], labels=(1,), mask_hr=mask_hr, mask_lr=mask_lr),
    }
