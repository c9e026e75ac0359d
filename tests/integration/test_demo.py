"""`make demo` on slides of one's own, with a numpy stand-in for the network."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
from serving import served
from stand_ins import NumpyExecutor

from wsisam_service.app import create_app
from wsisam_service.settings import Settings
from wsisam_service.slides.catalogue import Catalogue

PROGRAM = Path(__file__).resolve().parents[2] / "demo" / "demo.py"


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program as a module; what it starts is a service in this process."""

    @contextmanager
    def running_service(roots: Sequence[str], log: Path) -> Iterator[str]:
        settings = Settings(slides=tuple(roots))
        with served(create_app(settings, Catalogue(settings.slides), NumpyExecutor())) as port:
            yield f"http://127.0.0.1:{port}"

    spec = importlib.util.spec_from_file_location("demo", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "running_service", running_service)
    return module


def test_a_folder_of_dicom_files_is_outlined(
    demo: ModuleType, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As is a slide on another disk: neither can be linked."""
    slide = shared / "data/slides/dicom-cmu-1-small-region"
    monkeypatch.setattr(sys, "argv", ["demo.py", "--slide", str(slide), "--out", str(tmp_path)])
    demo.main()
    assert (tmp_path / "overlay.png").is_file()


def test_a_slide_that_is_refused_ends_with_the_reason(
    demo: ModuleType, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = shutil.copy(shared / "data/slides/vectra-fluorescence.qptiff", tmp_path)
    monkeypatch.setattr(sys, "argv", ["demo.py", "--slide", str(slide), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=r"vectra-fluorescence\.qptiff: .*luorescence"):
        demo.main()
