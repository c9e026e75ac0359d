"""The main job on real tissue, as a user meets it: start the service, send boxes over HTTP, look at the outlines.

Without --slide the tissue is scikit-image's immunohistochemistry image (colon glands), wrapped as a pyramidal TIFF.
Writes overlay.png and outlines.geojson into --out and prints how long each click took, cold and warm.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
from pycocotools import mask as coco

READY_TIMEOUT_S = 180
WARM_CLICKS = 5
IHC_MPP = 0.5
"""µm per pixel assumed for scikit-image's picture, whose source gives none."""
IHC_GLANDS = ((243, 296, 392, 512), (270, 0, 468, 304), (0, 0, 282, 268), (0, 140, 170, 512))
"""Boxes around the four glands of scikit-image's picture, in its pixels."""
COLOURS = ((46, 204, 113), (52, 152, 219), (231, 76, 60), (241, 196, 15), (155, 89, 182), (26, 188, 156))
OVERLAY_SIDE = 1600


def make_ihc_slide(folder: Path) -> Path:
    """scikit-image's picture of colon glands (IHC, 512 x 512) as a pyramidal TIFF with a pixel size."""
    from skimage import data

    from wsisam_service.slides.write import write_pyramid

    path = folder / "colon-glands-ihc.tif"
    write_pyramid(path, data.immunohistochemistry(), IHC_MPP)
    return path


@contextlib.contextmanager
def running_service(roots: Sequence[str], log: Path) -> Iterator[str]:
    """`wsisam serve` on a free port; yields its URL once it is ready and stops it at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "wsisam_service.cli", "serve", "--slides", *roots, "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=os.environ)
        try:
            wait_ready(url, process, log)
            yield url
        finally:
            process.terminate()
            process.wait(timeout=30)


def wait_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"the service ended at once; its last words:\n{log.read_text()[-2000:]}")
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz").status_code == httpx.codes.OK:
                return
        time.sleep(0.1)
    raise SystemExit(f"the service was not ready within {READY_TIMEOUT_S} s; see {log}")


def click(client: httpx.Client, slide_id: str, box: tuple[float, ...]) -> tuple[dict[str, Any], float, str]:
    """One box in, one outline out: the prompt's result, milliseconds on the wire, and the server's own account."""
    body = {"prompts": [{"box": box}], "format": "both"}
    start = time.perf_counter()
    response = client.post(f"/v1/slides/{slide_id}/segment", json=body)
    elapsed_ms = (time.perf_counter() - start) * 1e3
    if response.is_error:
        raise SystemExit(f"{response.status_code}: {response.text}")
    return response.json()["results"][0], elapsed_ms, response.headers["server-timing"]


def first_slide(client: httpx.Client) -> dict[str, Any]:
    """The first slide that is served; where there is none, why not ends the program."""
    listed = client.get("/v1/slides").raise_for_status().json()
    if listed["slides"]:
        return dict(listed["slides"][0])
    reasons = [f"{refused['name']}: {refused['problem']['detail']}" for refused in listed["unreadable"]]
    raise SystemExit(reasons[0] if reasons else "no slide is found there")


def central_boxes(slide: dict[str, Any]) -> list[tuple[float, ...]]:
    """Boxes for a slide nobody has looked at: one of a tenth of the slide in its middle, and its four neighbours."""
    width, height = slide["width"], slide["height"]
    side = min(width, height) / 10
    offsets = ((0, 0), (-1.5, 0), (1.5, 0), (0, -1.5), (0, 1.5))
    centres = [(width / 2 + dx * side, height / 2 + dy * side) for dx, dy in offsets]
    return [(x - side / 2, y - side / 2, x + side / 2, y + side / 2) for x, y in centres]


def draw_overlay(client: httpx.Client, slide: dict[str, Any], results: list[dict[str, Any]], path: Path) -> None:
    """The slide around the outlines, with boxes dashed thin and outlines thick, as PNG."""
    rects = [r["view"] for r in results]
    x0, y0 = max(0, min(r["x"] for r in rects)), max(0, min(r["y"] for r in rects))
    x1 = min(slide["width"], max(r["x"] + r["width"] for r in rects))
    y1 = min(slide["height"], max(r["y"] + r["height"] for r in rects))
    mpp = (slide["mpp"] or 1.0) * max(x1 - x0, y1 - y0) / OVERLAY_SIDE
    region = {"x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0, "mpp": max(mpp, 0.125), "format": "png"}
    response = client.get(f"/v1/slides/{slide['id']}/region", params=region).raise_for_status()
    picture = cv2.imdecode(np.frombuffer(response.content, np.uint8), cv2.IMREAD_COLOR)
    scale = picture.shape[1] / (x1 - x0)
    for result, colour in zip(results, COLOURS * (1 + len(results) // len(COLOURS)), strict=False):
        feature = result["geojson"]
        if feature is None:
            continue
        geometry = feature["geometry"]
        polygons = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
        for polygon in polygons:
            rings = [np.round((np.array(ring) - (x0, y0)) * scale).astype(np.int32) for ring in polygon]
            cv2.polylines(picture, rings, isClosed=True, color=colour[::-1], thickness=3, lineType=cv2.LINE_AA)
        bx0, by0, bx1, by1 = ((np.array(result["box"]) - (x0, y0, x0, y0)) * scale).round().astype(int).tolist()
        cv2.rectangle(picture, (bx0, by0), (bx1, by1), colour[::-1], 1, cv2.LINE_AA)
    cv2.imwrite(str(path), picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slide", type=Path, help="your own slide (file or folder) instead of the picture that ships")
    parser.add_argument("--boxes", help='boxes in level-0 pixels, "x0,y0,x1,y1 x0,y0,x1,y1 …"')
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.slide:
        if not options.slide.exists():
            raise SystemExit(f"{options.slide}: no such file")
        root = options.slide.resolve()
    else:
        root = make_ihc_slide(options.out)

    start = time.perf_counter()
    with (
        running_service([str(root)], options.out / "service.log") as url,
        httpx.Client(base_url=url, timeout=120) as client,
    ):
        info = client.get("/v1/info").raise_for_status().json()
        print(f"service ready after {time.perf_counter() - start:.1f} s at {url}")
        print(f"engine {info['engine']}, device {info['device']}, precision {info['precision']}")
        slide = first_slide(client)
        print(f"slide {slide['name']}: {slide['width']} x {slide['height']} px, {slide['mpp']} µm/px")
        boxes: list[tuple[float, ...]]
        if options.boxes:
            boxes = [tuple(float(n) for n in box.split(",")) for box in options.boxes.split()]
        else:
            boxes = central_boxes(slide) if options.slide else [tuple(map(float, box)) for box in IHC_GLANDS]

        results = []
        print("\n box (level-0 px)               cold ms  warm ms  IoU est.  area µm²   where the warm time went")
        for box in boxes:
            cold, cold_ms, _ = click(client, slide["id"], box)
            warm, warm_ms, timing = min(
                (click(client, slide["id"], box) for _ in range(5)), key=lambda answer: answer[1]
            )
            results.append({**warm, "box": box})
            same = coco.iou([cold["mask"]], [warm["mask"]], [0])[0][0]
            if same < 1.0:
                raise SystemExit("the warm answer differs from the cold one")
            where = ",".join(f"{n:.0f}" for n in box)
            area = warm["area_um2"] or 0.0
            print(f" {where:<28} {cold_ms:9.0f} {warm_ms:8.1f} {warm['predicted_iou']:9.2f} {area:9.0f}   {timing}")
        collection = {"type": "FeatureCollection", "features": [r["geojson"] for r in results if r["geojson"]]}
        (options.out / "outlines.geojson").write_text(json.dumps(collection, indent=1))
        draw_overlay(client, slide, results, options.out / "overlay.png")
    print(
        f"\noverlay:  {options.out / 'overlay.png'}\noutlines: {options.out / 'outlines.geojson'} (drop it onto QuPath)"
    )


if __name__ == "__main__":
    main()
