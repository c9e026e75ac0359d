"""What 500 outlines on the screen cost while the slide is panned: script per frame, and frames a second.

    wsisam serve --slides DIR &
    python bench/page.py http://127.0.0.1:8000 --out bench/results/page.json

Real Chromium without a GPU. The outlines are polygons of 120 corners over the largest slide. Script time is what the
browser's own clock counts (Performance.getMetrics), OpenSeadragon's drawing of tiles included.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx

COUNT, CORNERS = 500, 120
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
COUNT_FRAMES = """() => {
  window.frames_ = [];
  const step = time => { window.frames_.push(time); window.going_ = requestAnimationFrame(step); };
  requestAnimationFrame(step);
}"""


def outlines(width: int, height: int) -> dict[str, Any]:
    """A GeoJSON file of wavy discs on a grid over the slide."""
    columns = math.ceil(math.sqrt(COUNT * width / height))
    pitch = width / columns
    features = []
    for number in range(COUNT):
        x, y = (number % columns + 0.5) * pitch, (number // columns + 0.5) * pitch
        ring = []
        for corner in range(CORNERS):
            angle = 2 * math.pi * corner / CORNERS
            radius = pitch * (0.4 + 0.05 * math.sin(9 * angle))
            ring.append([round(x + radius * math.cos(angle), 2), round(y + radius * math.sin(angle), 2)])
        properties = {"objectType": "annotation", "classification": {"name": "Gland" if number % 2 else "Stroma"}}
        geometry = {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    return {"type": "FeatureCollection", "features": features}


def measure(page: Any, seconds: float) -> dict[str, float]:
    """Pan in circles; script milliseconds a frame and frames a second."""
    devtools = page.context.new_cdp_session(page)
    devtools.send("Performance.enable")

    def script_s() -> float:
        metrics = {one["name"]: one["value"] for one in devtools.send("Performance.getMetrics")["metrics"]}
        return float(metrics["ScriptDuration"])

    box = page.locator("#viewer").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.keyboard.press("v")
    page.mouse.move(x, y)
    page.mouse.down()
    page.evaluate(COUNT_FRAMES)
    before = script_s()
    for step in range(int(seconds * 60)):
        page.mouse.move(x + 60 * math.sin(step / 20), y + 60 * math.cos(step / 20) - 60)
    script = script_s() - before
    times = page.evaluate("() => { cancelAnimationFrame(window.going_); return window.frames_; }")
    page.mouse.up()
    return {
        "frames": len(times),
        "script_ms_per_frame": script * 1e3 / len(times),
        "frames_per_s": (len(times) - 1) / (times[-1] - times[0]) * 1e3,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    url = options.url.rstrip("/")
    slide = max(httpx.get(f"{url}/v1/slides").json()["slides"], key=lambda one: one["width"] * one["height"])
    file = {
        "name": "outlines.geojson",
        "mimeType": "application/geo+json",
        "buffer": json.dumps(outlines(slide["width"], slide["height"])).encode(),
    }
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        page.goto(f"{url}/#slide={slide['id']}")
        page.wait_for_selector("#magnification:not(:empty)")
        without = measure(page, options.seconds)
        page.set_input_files("#import-file", file)
        page.wait_for_function(f"() => document.querySelectorAll('#objects li').length === {COUNT}")
        page.click("#home")
        page.wait_for_timeout(1000)
        with_outlines = measure(page, options.seconds)
        version = browser.version
        browser.close()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    result = {
        "commit": commit,
        "browser": f"Chromium {version}, no GPU",
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "window": [1280, 720],
        "no_outlines": without,
        f"{COUNT}_outlines": with_outlines,
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
