"""A real service on a real socket, with the real network."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import uvicorn
from PIL import Image

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
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        config = uvicorn.Config(build_service(settings).app, http="h11", lifespan="on", log_config=None)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the service did not start"
            thread.join(0.05)
        yield RunningService(f"http://127.0.0.1:{port}", port, slides, weights)
        server.should_exit = True
        thread.join()
