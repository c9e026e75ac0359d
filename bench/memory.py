"""Peak memory of the service over many different views, beside what it may take.

    python bench/memory.py [--views 1000] [--json FILE]

Every view is encoded, decoded on and never asked for again, so that every cache fills and turns over. The bound is
the size of the weights, every byte budget of the settings, and 500 MB (DESIGN.md section 11). Linux: reads /proc.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np
import skimage.data
from tqdm import tqdm

from wsisam_model.config import model_config
from wsisam_model.registry import base_weights_path
from wsisam_service.assembly import REFINE_MEMORY_BYTES
from wsisam_service.commands.click_costs import announced_url, boxes, wait_ready
from wsisam_service.commands.slide_local import open_slide_file
from wsisam_service.settings import MIB, load_settings
from wsisam_service.slides.write import write_pyramid

SLIDE_MPP = 0.5
TILES = 14
"""Copies of the 512 pixel picture along each side."""
MODEL = "lite_medsam"
OVERHEAD_MB = 500


def peak_mb(pid: int) -> float:
    """The most resident memory that the process has had."""
    status = Path(f"/proc/{pid}/status").read_text()
    return float(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024


def budget_mb() -> float:
    """Weights, and every budget that the defaults give."""
    settings = load_settings({})
    budgets = (
        settings.store_memory_bytes,
        settings.l1_bytes,
        settings.tile_cache_bytes,
        settings.iiif_cache_bytes,
        settings.picture_cache_bytes,
        REFINE_MEMORY_BYTES,
        base_weights_path(model_config(MODEL), None).stat().st_size,
    )
    return sum(budgets) / MIB


def report_of(peaks: Sequence[tuple[int, float]]) -> dict[str, object]:
    """Most resident memory after so many views, beside the bound."""
    return {
        "views": peaks[-1][0],
        "peak_mb": round(peaks[-1][1]),
        "bound_mb": round(budget_mb() + OVERHEAD_MB),
        "peaks_mb": [(number, round(peak)) for number, peak in peaks],
    }


def write(peaks: Sequence[tuple[int, float]], path: Path | None) -> None:
    """Written as it grows, so that a run cut off tells what it had."""
    if path:
        path.write_text(json.dumps(report_of(peaks), indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tissue.tif"
        write_pyramid(path, np.tile(skimage.data.immunohistochemistry(), (TILES, TILES, 1)), SLIDE_MPP)
        command = [sys.executable, "-m", "wsisam_service.cli", "serve", "--slides", str(path), "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as service:
            try:
                url = announced_url(service)
                wait_ready(url)
                peaks = [(0, peak_mb(service.pid))]
                with httpx.Client(base_url=url, timeout=120) as client:
                    slide_id = client.get("/v1/slides").raise_for_status().json()["slides"][0]["id"]
                    wanted = itertools.islice(boxes(open_slide_file(path)), options.views)
                    for number, box in enumerate(tqdm(wanted, total=options.views, unit="view"), start=1):
                        answer = client.post(f"/v1/slides/{slide_id}/segment", json={"prompts": [{"box": box}]})
                        cache = answer.raise_for_status().json()["results"][0]["cache"]
                        assert cache["hr"] == "encoded", "a view was met twice"
                        if number % 50 == 0 or number == options.views:
                            peaks.append((number, peak_mb(service.pid)))
                            write(peaks, options.json)
            finally:
                service.terminate()
                service.communicate()
    print(json.dumps(report_of(peaks), indent=1))


if __name__ == "__main__":
    main()
