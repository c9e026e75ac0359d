"""Fixtures that every test may use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings

from wsisam_service.slides.write import write_pyramid

REPOSITORY = Path(__file__).resolve().parents[1]

# A change is judged by the same examples every time; `pytest --hypothesis-profile wide` looks for new ones.
settings.register_profile("same", deadline=None, derandomize=True, database=None)
settings.register_profile("wide", deadline=None, max_examples=5000, print_blob=True)
settings.load_profile("same")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden vectors, captured requests and real slides that lies beside the checkout."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the folder shared/ beside the checkout (golden vectors, real slides)")
    return folder


@pytest.fixture(scope="session")
def tissue() -> npt.NDArray[np.uint8]:
    """Colon glands, IHC, uint8 (512, 512, 3), about 0.5 µm per pixel: real tissue that comes with scikit-image."""
    import skimage.data

    return np.asarray(skimage.data.immunohistochemistry(), np.uint8)


@pytest.fixture
def make_slide(tmp_path: Path, tissue: npt.NDArray[np.uint8]) -> Callable[..., Path]:
    """Writes a pyramidal slide into a folder of its own: `make_slide(name, image, mpp, levels)`."""
    folder = tmp_path / "slides"

    def make(
        name: str = "tissue.ome.tif",
        image: npt.NDArray[np.uint8] | None = None,
        mpp: float | None = 0.5,
        levels: int | None = None,
    ) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_pyramid(path, tissue if image is None else image, mpp, levels)
        return path

    return make
