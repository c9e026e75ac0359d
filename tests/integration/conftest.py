"""A real service on a real socket, with the real network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from serving import served

from wsisam_service.settings import Settings


@dataclass(frozen=True, slots=True)
class RunningService:
    """`url` without a last slash; `slides` is the folder that the service lists, `weights` the one for Register."""

    url: str
    port: int
    slides: Path
    weights: Path


@pytest.fixture(scope="session")
def qupath_service(tmp_path_factory: pytest.TempPathFactory, tissue: npt.NDArray[np.uint8]) -> Iterator[RunningService]:
    """The service as `wsisam serve` runs it, on LiteMedSAM without adapters, with one slide called tissue.png.

    Automasks have two seconds, so that the suite stays quick.
    """
    from wsisam_service.assembly import build_service

    slides = tmp_path_factory.mktemp("slides")
    Image.fromarray(tissue).save(slides / "tissue.png")
    weights = tmp_path_factory.mktemp("weights")
    settings = Settings(slides=(str(slides),), adapters="none", automask_s=2.0, sam_weights=weights)
    with served(build_service(settings).app) as port:
        yield RunningService(f"http://127.0.0.1:{port}", port, slides, weights)
