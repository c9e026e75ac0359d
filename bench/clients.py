"""Warm clicks of many clients at once, against one service: median, 99th percentile, and what one client alone gets.

    python bench/clients.py [--clients 16] [--clicks 20] [--json FILE]

Each client draws boxes on views of its own that have been encoded, over one connection, the next when the last is
answered. Starts a service of its own on scikit-image's tissue.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

import httpx
import numpy as np
import skimage.data
from warm_clicks import at_once, click_ms

from wsisam_service.commands.click_costs import boxes, running_service
from wsisam_service.commands.slide_local import open_slide_file
from wsisam_service.slides.write import write_pyramid

MPP, TILES = 0.5, 8


def summary(times: list[float]) -> dict[str, float]:
    return {"p50_ms": round(statistics.median(times), 1), "p99_ms": round(float(np.quantile(times, 0.99)), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--clicks", type=int, default=20, help="of each client")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tissue.tif"
        write_pyramid(path, np.tile(skimage.data.immunohistochemistry(), (TILES, TILES, 1)), MPP)
        own = [box for box, _ in zip(boxes(open_slide_file(path)), range(options.clients), strict=False)]
        with running_service(path, []) as url, httpx.Client(base_url=url, timeout=120) as first:
            slide_id = first.get("/v1/slides").raise_for_status().json()["slides"][0]["id"]
            for box in own:
                click_ms(first, slide_id, box)
            alone = [click_ms(first, slide_id, own[0]) for _ in range(options.clicks)]
            times, per_second = at_once(url, slide_id, own, options.clicks)
    report = {
        "clients": options.clients,
        "alone": summary(alone),
        "together": summary(times),
        "p99_to_p50": round(summary(times)["p99_ms"] / summary(times)["p50_ms"], 2),
        "clicks_per_s": round(per_second, 1),
        "load": os.getloadavg()[0],
    }
    print(json.dumps(report, indent=1))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
