"""`wsisam bench` as it is typed, with the real network."""

from __future__ import annotations

import json
from pathlib import Path

from wsisam_model.registry import SHIPPED_WEIGHTS
from wsisam_service.cli import main


def test_bench_measures_the_service_that_its_settings_describe(tmp_path: Path) -> None:
    own, figures = SHIPPED_WEIGHTS / "lite_medsam-open.safetensors", tmp_path / "figures.json"
    assert main(["bench", "--rounds", "1", "--own-adapters", str(own), "--json", str(figures)]) == 0
    written = json.loads(figures.read_text())
    assert written["about"]["adapters"] == "lite_medsam-default"
    ms = {row: sample for row, (sample,) in written["ms"].items()}
    assert ms["cold click"] > ms["warm click"]
    assert ms["plain dual form"] > ms["SAM decode"]
