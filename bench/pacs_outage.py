"""Clicks while the PACS is away: a real Orthanc is gone for 30 s in the middle of a load of warm clicks.

    python bench/pacs_outage.py [--how stop|freeze] [--seconds 30] [--connections 4] [--model numpy] [--json FILE]

`stop` ends Orthanc's process and starts a new one over the same files, `freeze` stops it where it stands (SIGSTOP), so
that connections hang. A warm click is lost where it fails or its mask is another than before. Beside them one
connection asks for a view that nobody has seen, again and again, until it gets it. `--model numpy` puts the stand-in of
tests/service/numpy_worker.py (an encode of 50 ms, a decode of 4 ms) in the network's place, for machines that do much
else: everything around it is the same. Needs orthanc, orthanc-dicomweb.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import skimage.data

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "service"))

from dicom_slides import JPEG, Shape, write_slide
from orthanc import Orthanc

from wsisam_service.commands.click_costs import boxes, running_service
from wsisam_service.commands.slide_local import open_slide_file
from wsisam_service.dicom.pacs_settings import PacsSettings
from wsisam_service.dicom.web import DicomWeb

SERVICE_TESTS = Path(__file__).resolve().parents[1] / "tests" / "service"
PROGRAMS = {"real": ("-m", "wsisam_service.cli"), "numpy": (str(SERVICE_TESTS / "numpy_worker.py"),)}
TILES, VIEWS = 8, 8
AROUND_S = 5.0
"""Of warm clicks before and after."""
COLD_PAUSE_S = 0.25
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Click:
    ended: float
    seconds: float
    status: int
    mask: str


class Clicks:
    """Clicks on one slide; `stop` ends those that go on and on."""

    def __init__(self, url: str, slide_id: str) -> None:
        self.url = f"{url}/v1/slides/{slide_id}/segment"
        self.stop = threading.Event()

    def one(self, client: httpx.Client, box: Box) -> Click:
        started = time.monotonic()
        answer = client.post(self.url, json={"prompts": [{"box": box}]})
        mask = answer.json()["results"][0]["mask"]["counts"] if answer.is_success else ""
        ended = time.monotonic()
        return Click(ended, ended - started, answer.status_code, mask)

    def warm(self, views: Sequence[Box], expected: Sequence[str]) -> list[tuple[Click, bool]]:
        """Clicks one after the other until `stop`; whether each was answered as before."""
        done = []
        with httpx.Client(timeout=120) as client:
            for number in itertools.cycle(range(len(views))):
                if self.stop.is_set():
                    return done
                click = self.one(client, views[number])
                done.append((click, click.mask == expected[number]))
        raise AssertionError("a cycle has no end")

    def cold(self, box: Box) -> list[Click]:
        """Clicks on a view that nobody has, until one is answered."""
        done: list[Click] = []
        with httpx.Client(timeout=120) as client:
            while not done or done[-1].status != httpx.codes.OK:
                done.append(self.one(client, box))
                time.sleep(COLD_PAUSE_S)
        return done


def store(folder: Path, root: str) -> None:
    web = DicomWeb(PacsSettings.model_validate({"root": root}))
    for path in sorted(folder.iterdir()):
        web.store([path.read_bytes()])


def away(server: Orthanc, how: str, seconds: float) -> tuple[float, float]:
    """When `server` went and when it was back: its process stopped or frozen for `seconds`."""
    gone = time.monotonic()
    if how == "stop":
        server.terminate()
    else:
        server.signal(signal.SIGSTOP)
    time.sleep(max(0.0, gone + seconds - time.monotonic()))
    if how == "stop":
        server.restart()
    else:
        server.signal(signal.SIGCONT)
    return gone, time.monotonic()


def milliseconds(clicks: Sequence[Click]) -> dict[str, float]:
    times = [click.seconds * 1e3 for click in clicks]
    return {"p50_ms": round(float(np.median(times)), 1), "slowest_ms": round(max(times), 1)} if times else {}


def run(folder: Path, how: str, seconds: float, connections: int, program: Sequence[str]) -> dict[str, Any]:
    (folder / "slide").mkdir()
    write_slide(
        folder / "slide",
        np.tile(skimage.data.immunohistochemistry(), (TILES, TILES, 1)),
        shape=Shape(JPEG, tile=256),
        levels=4,
    )
    server = Orthanc(folder / "orthanc")
    root = f"dicomweb+{server.dicomweb}"
    store(folder / "slide", root)
    places = list(boxes(open_slide_file(folder / "slide")))
    views, unseen = places[: 2 * VIEWS : 2], places[-1]
    with (
        running_service(root, [], program) as url,
        httpx.Client(timeout=120) as client,
        ThreadPoolExecutor(connections + 2) as threads,
    ):
        clicks = Clicks(url, client.get(f"{url}/v1/slides").raise_for_status().json()["slides"][0]["id"])
        for box in views:
            clicks.one(client, box)
        expected = [clicks.one(client, box).mask for box in views]
        own = [[*range(number, VIEWS), *range(number)] for number in range(connections)]
        warm = [threads.submit(clicks.warm, [views[i] for i in o], [expected[i] for i in o]) for o in own]
        time.sleep(AROUND_S)
        outage = threads.submit(away, server, how, seconds)
        time.sleep(1.0)  # Orthanc is gone by then
        cold = threads.submit(clicks.cold, unseen)
        gone, back = outage.result()
        tries = cold.result()
        time.sleep(AROUND_S)
        clicks.stop.set()
        done = [pair for one in warm for pair in one.result()]
    server.close()
    phases = {
        "before": [one for one, _ in done if one.ended <= gone],
        "while_away": [one for one, _ in done if gone < one.ended <= back],
        "after": [one for one, _ in done if one.ended > back],
    }
    return {
        "how": how,
        "away_s": round(back - gone, 1),
        "connections": connections,
        "warm_clicks": len(done),
        "warm_lost": sum(not as_before for _, as_before in done),
        **{name: {"clicks": len(some), **milliseconds(some)} for name, some in phases.items()},
        "cold_refused": len(tries) - 1,
        "cold_statuses": sorted({one.status for one in tries}),
        "cold_refusals": milliseconds(tries[:-1]),
        "back_to_first_cold_click_s": round(tries[-1].ended - back, 2),
        "that_click_ms": round(tries[-1].seconds * 1e3),
        "load": os.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--how", choices=("stop", "freeze"), default="stop")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--model", choices=PROGRAMS, default="real")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        program = PROGRAMS[options.model]
        report = run(Path(folder), options.how, options.seconds, options.connections, program)
    report["model"] = options.model
    print(json.dumps(report, indent=1))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
