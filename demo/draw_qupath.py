"""Draws the picture of QUPATH.md from a running service's real answers: `python demo/draw_qupath.py URL`.

The tissue is scikit-image's: colon glands, IHC. Boxes are yellow, outlines black on white.
"""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path
from typing import Any

import httpx
import skimage.data
from PIL import Image, ImageDraw

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
BOXES = [(250, 303, 386, 508), (262, 0, 464, 298)]
MAGNIFIED = 1.25


def ask(url: str, picture: Image.Image, box: tuple[int, ...]) -> list[dict[str, Any]]:
    """What the extension gets for a rectangle on `picture`."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    body = {"type": "vit_l", "b64img": base64.b64encode(buffer.getvalue()).decode("ascii"), "bbox": box}
    features: list[dict[str, Any]] = httpx.post(url + "/sam/", json=body, timeout=300).raise_for_status().json()
    return features


def draw(picture: Image.Image, features: list[dict[str, Any]], boxes: list[tuple[int, ...]], name: str) -> None:
    """Saves `picture` with the outlines of `features`, magnified."""
    size = (round(picture.width * MAGNIFIED), round(picture.height * MAGNIFIED))
    drawn = picture.resize(size, Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(drawn)
    for box in boxes:
        pen.rectangle([side * MAGNIFIED for side in box], outline=(255, 220, 0), width=2)
    for feature in features:
        geometry = feature["geometry"]
        polygons = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
        for ring in (ring for polygon in polygons for ring in polygon):
            line = [(x * MAGNIFIED, y * MAGNIFIED) for x, y in ring]
            pen.line(line, fill="white", width=5, joint="curve")
            pen.line(line, fill="black", width=2, joint="curve")
    IMAGES.mkdir(exist_ok=True)
    drawn.quantize(96).save(IMAGES / name, optimize=True)


def main() -> None:
    url = sys.argv[1].rstrip("/")
    tissue = Image.fromarray(skimage.data.immunohistochemistry())
    found = [feature for box in BOXES for feature in ask(url, tissue, box)]
    draw(tissue, found, BOXES, "qupath-box.png")


if __name__ == "__main__":
    main()
