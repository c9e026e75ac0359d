"""What a second click costs beside the first, for QuPath's extension: the same picture sent again with another box.

Starts from a running service (`--url`) and sends what the extension sends, over a new connection each time as it does.
Every round has a picture of its own, so that its first click reads and encodes. Prints p50 and p95 in milliseconds and
their ratio as JSON.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import statistics
import time
from urllib.parse import urlsplit

import numpy as np
import skimage.data
from PIL import Image

CLICKS = 5
"""Clicks on each picture; the first is cold."""
BOX = (400, 300, 620, 520)
SIZE = (1500, 1100)


def picture(seed: int) -> str:
    """A screenful of tissue, different for each seed, as base64 PNG."""
    tissue = Image.fromarray(skimage.data.immunohistochemistry()).resize((1536, 1536), Image.Resampling.BICUBIC)
    pixels = np.asarray(tissue)[: SIZE[1], : SIZE[0]].copy()
    pixels[0, 0] = seed % 256, seed // 256, 0
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def click(host: str, port: int, b64img: str, shift: int) -> float:
    """Milliseconds from connecting to the answer's last byte."""
    box = [side + shift for side in BOX]
    body = json.dumps({"type": "vit_l", "bbox": box, "b64img": b64img, "multimask_output": False}).encode()
    start = time.perf_counter()
    connection = http.client.HTTPConnection(host, port)
    connection.request("POST", "/sam/", body, {"Content-Type": "application/json; charset=utf-8"})
    response = connection.getresponse()
    answer = response.read()
    elapsed = (time.perf_counter() - start) * 1e3
    connection.close()
    if response.status != http.client.OK or not json.loads(answer):
        raise SystemExit(f"the service answered {response.status}: {answer[:300]!r}")
    return elapsed


def summary(times: list[float]) -> dict[str, float]:
    return {"p50_ms": round(statistics.median(times), 1), "p95_ms": round(sorted(times)[int(0.95 * len(times))], 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    address = urlsplit(options.url)
    host, port = address.hostname or "127.0.0.1", address.port or 80
    seed = time.time_ns() % 60_000
    click(host, port, picture(seed), 0)  # warms up what is common to all pictures
    first, second = [], []
    for number in range(1, options.rounds + 1):
        b64img = picture(seed + number)
        times = [click(host, port, b64img, shift) for shift in range(CLICKS)]
        first.append(times[0])
        second += times[1:]
    ratio = statistics.median(second) / statistics.median(first)
    print(
        json.dumps({"first": summary(first), "second": summary(second), "second_to_first": round(ratio, 3)}, indent=1)
    )


if __name__ == "__main__":
    main()
