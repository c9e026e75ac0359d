"""Encoding a whole slide ahead: tissue only, in the places where clicks will look, and again only what is missing."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from stand_ins import NumpyExecutor

from wsisam_service.app import create_app
from wsisam_service.cli import main
from wsisam_service.errors import Overloaded
from wsisam_service.jobs import CacheTier, PixelSource, Timings
from wsisam_service.settings import Settings
from wsisam_service.slides.catalogue import Catalogue
from wsisam_service.slides.tissue import tissue_centres, tissue_mask
from wsisam_service.slides.write import write_pyramid


class Busy(NumpyExecutor):
    """Refuses every third call."""

    calls = 0

    async def encode(self, views: list[str], pixels: PixelSource, timings: Timings) -> dict[str, CacheTier]:  # type: ignore[override]
        self.calls += 1
        if self.calls % 3 == 0:
            raise Overloaded("too many encodes are waiting", retry_after_s=1)
        return dict(await super().encode(views, pixels, timings))


@pytest.fixture
def executor() -> NumpyExecutor:
    return Busy()


@pytest.fixture
def server(tmp_path: Path, tissue: np.ndarray, executor: NumpyExecutor) -> Iterator[str]:
    """A slide with tissue in its upper left quarter: at 1 µm a view covers 512 level-0 pixels."""
    image = np.full((2048, 2048, 3), 244, np.uint8)
    image[:1024, :1024] = np.tile(tissue, (2, 2, 1))
    write_pyramid(tmp_path / "biopsy.tif", image, 0.5)
    app = create_app(Settings(slides=(str(tmp_path),)), Catalogue([str(tmp_path)]), executor)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        running = uvicorn.Server(uvicorn.Config(app, http="h11", lifespan="on", log_config=None))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not running.started:
            assert thread.is_alive(), "the service did not start"
            thread.join(0.05)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        running.should_exit = True
        thread.join()


def test_a_slides_tissue_is_encoded_once_and_its_background_not_at_all(
    server: str, executor: NumpyExecutor, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["precompute", "biopsy.tif", "--url", server, "--dry-run"]) == 0
    assert executor.views == {}
    told = capsys.readouterr().out
    assert (planned := re.match(r"(\d+) views and as many wide ones at 1 µm show tissue, up to ([\d.]+) GB", told))
    assert int(planned[1]) == 25  # centres every 256 pixels, from 0 to 1024 in both directions

    assert main(["precompute", "biopsy.tif", "--url", server, "--concurrency", "3"]) == 0
    told = capsys.readouterr().out
    assert "about " in told
    assert f"{len(executor.views)} embeddings were new" in told
    steps = [int(key.split(":")[4]) for key in executor.views]
    assert steps.count(2) == 25
    assert steps.count(3) == 25

    assert main(["precompute", "biopsy.tif", "--url", server]) == 0
    assert "0 embeddings were new" in capsys.readouterr().out


def test_a_click_on_the_slide_finds_its_views_encoded(server: str, executor: NumpyExecutor, tmp_path: Path) -> None:
    assert main(["precompute", "biopsy.tif", "--url", server]) == 0
    before = set(executor.views)
    point, out = "311,487,1", str(tmp_path / "out.geojson")
    assert main(["segment", "biopsy.tif", "--url", server, "--points", point, "-o", out]) == 0
    assert set(executor.views) - before <= {key for key in executor.views if int(key.split(":")[4]) > 3}


def test_a_pixel_size_that_the_server_does_not_believe_is_not_planned_with(
    server: str, tmp_path: Path, tissue: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pyramid(tmp_path / "coarse.tif", tissue, 30.0)
    assert main(["precompute", "coarse.tif", "--url", server, "--dry-run"]) == 0
    assert int(capsys.readouterr().out.split()[0]) <= 25  # centres every 128 pixels of 1 µm


def test_an_unknown_slide_and_no_server_are_one_line(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["precompute", "nothing.svs", "--url", server]) == 2
    assert main(["precompute", "biopsy.tif", "--url", "http://127.0.0.1:9"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "no slide called nothing.svs" in lines[0]


def test_grey_background_shading_is_no_tissue(tissue: np.ndarray) -> None:
    shaded = np.linspace(225, 250, 512).astype(np.uint8)[None, :, None] * np.ones((512, 512, 3), np.uint8)
    assert not tissue_mask(np.asarray(shaded, np.uint8)).any()
    assert tissue_mask(tissue).mean() > 0.5
    assert list(tissue_centres(np.asarray(shaded, np.uint8), (8192, 8192), 0.25, side=256, k=2)) == []


def test_the_lattice_has_a_centre_near_every_point_of_the_tissue(tissue: np.ndarray) -> None:
    centres = list(tissue_centres(tissue, (5120, 5120), 0.25, side=256, k=2))
    xs, ys = (sorted({centre[axis] for centre in centres}) for axis in (0, 1))
    assert xs == ys == [512.0 * index for index in range(11)]
