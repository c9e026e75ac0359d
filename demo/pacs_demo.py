"""The main job beside a PACS: a real Orthanc holds the demo's slide as DICOM, and takes the outlines back.

Converts the slide with wsidicomizer, stores it over DICOMweb, finds it through the service, outlines glands from boxes
on it and on the file that it was made of, stores them as segmentation and annotations, and reads both out of Orthanc
with highdicom and wsidicom. Writes overlay.png into --out and prints how long clicks took from PACS and from the file.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import socket
import statistics
import subprocess
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import highdicom
import httpx
import numpy as np
import pydicom
import shapely
import wsidicom
from dicomweb_client import DICOMwebClient
from wsidicomizer import WsiDicomizer

from demo import COLOURS, IHC_GLANDS, click, make_ihc_slide, running_service

ORTHANC_PLUGINS = Path("/usr/share/orthanc/plugins")
ORTHANC_TIMEOUT_S = 30
WARM_PER_COLD = 8
OVERLAY_SCALE = 3
"""Pixels of the overlay per pixel of the slide."""


@contextlib.contextmanager
def running_orthanc(folder: Path) -> Iterator[str]:
    """An Orthanc of its own on loopback; yields its DICOMweb root and stops it at the end."""
    program = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
    plugin = ORTHANC_PLUGINS / "libOrthancDicomWeb.so"
    if not Path(program).exists() or not plugin.exists():
        raise SystemExit("this demo needs Orthanc: apt-get install orthanc orthanc-dicomweb")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    storage = str((folder / "orthanc").resolve())
    settings = {
        "HttpPort": port,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "StorageDirectory": storage,
        "IndexDirectory": storage,
        "Plugins": [str(plugin)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "orthanc.log").open("w") as log:
        process = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=log, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + ORTHANC_TIMEOUT_S
            while not _answers(f"http://127.0.0.1:{port}/system"):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"Orthanc did not start; see {folder / 'orthanc.log'}")
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}/dicom-web"
        finally:
            process.terminate()
            process.wait(timeout=30)


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(url).is_success
    return False


def store_as_dicom(slide: Path, folder: Path, pacs: DICOMwebClient) -> pydicom.Dataset:
    """Convert `slide` and send it; the header of its finest level."""
    folder.mkdir()
    try:
        WsiDicomizer.convert(str(slide), output_path=str(folder), tile_size=256)
    except FileNotFoundError as error:
        raise SystemExit(f"the converter misses a library ({error}): apt-get install libturbojpeg0") from error
    files = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    for file in files:
        file.PatientName, file.PatientID, file.AccessionNumber = "Demo^Slide", "DEMO-1", "DEMO-A1"
    pacs.store_instances(files)
    return max(files, key=lambda file: int(file.TotalPixelMatrixColumns))


def time_clicks(client: httpx.Client, slides: Mapping[str, str], rounds: int) -> dict[str, dict[str, Any]]:
    """Results, and cold and warm milliseconds by source; the sources take turns, so that both meet the same machine.
    Before a cold click everything made of the slide is forgotten, tiles and frames too.
    """
    timed: dict[str, dict[str, Any]] = {name: {"cold": [], "warm": [], "read": [], "results": []} for name in slides}
    for round_ in range(rounds):
        for name, slide_id in sorted(slides.items(), reverse=bool(round_ % 2)):
            for box in IHC_GLANDS:
                client.delete(f"/v1/slides/{slide_id}/cache").raise_for_status()
                _, elapsed_ms, timing = click(client, slide_id, box)
                timed[name]["cold"].append(elapsed_ms)
                timed[name]["read"].append(float(timing.split("read;dur=")[1].split(",")[0]))
    for name, slide_id in slides.items():
        timed[name]["results"] = [click(client, slide_id, box)[0] for box in IHC_GLANDS]
    for _ in range(WARM_PER_COLD * rounds):
        for box in IHC_GLANDS:
            for name, slide_id in slides.items():
                timed[name]["warm"].append(click(client, slide_id, box)[1])
    return timed


def print_times(timed: Mapping[str, Mapping[str, Any]], round_trip_ms: float) -> None:
    print("\n median ms       cold   of it reading   warm")
    for name, figures in timed.items():
        cold, read, warm = (statistics.median(figures[kind]) for kind in ("cold", "read", "warm"))
        print(f" {name:<10} {cold:9.1f} {read:15.1f} {warm:6.1f}")
    pacs, file = timed["PACS"], timed["file"]
    ratio = statistics.median(pacs["warm"]) / statistics.median(file["warm"])
    more_ms = statistics.median(pacs["read"]) - statistics.median(file["read"])
    print(f" warm clicks, PACS to file: {ratio:.2f}")
    print(f" reading, PACS over file: {more_ms:+.1f} ms; one request for a frame takes {round_trip_ms:.1f} ms")


def frame_round_trip_ms(header: pydicom.Dataset, root: str) -> float:
    """Median time of one request for one frame, on a connection that is open."""
    path = f"studies/{header.StudyInstanceUID}/series/{header.SeriesInstanceUID}/instances/{header.SOPInstanceUID}"
    accept = {"accept": 'multipart/related; type="application/octet-stream"; transfer-syntax=*'}
    times = []
    with httpx.Client() as client:
        for _ in range(11):
            start = time.perf_counter()
            client.get(f"{root}/{path}/frames/1", headers=accept).raise_for_status()
            times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def outer(feature: dict[str, Any]) -> dict[str, Any]:
    """A Feature without its holes, which annotations cannot say and the service therefore refuses."""
    parts = shapely.get_parts(shapely.from_geojson(json.dumps(feature["geometry"])))
    filled = shapely.union_all([shapely.Polygon(part.exterior) for part in parts])
    return {**feature, "geometry": json.loads(shapely.to_geojson(filled))}


def keep(client: httpx.Client, slide_id: str, body: Mapping[str, Any]) -> dict[str, str]:
    """Store an object in the PACS; its UIDs there."""
    answer = client.post(f"/v1/slides/{slide_id}/results", json={**body, "store": True})
    if answer.is_error:
        raise SystemExit(f"{answer.status_code}: {answer.text}")
    told: dict[str, str] = answer.json()
    return told


def retrieve(pacs: DICOMwebClient, told: Mapping[str, str]) -> io.BytesIO:
    """An object of the PACS as a file."""
    file = io.BytesIO()
    pacs.retrieve_instance(told["study_uid"], told["series_uid"], told["sop_instance_uid"]).save_as(file)
    file.seek(0)
    return file


def draw(
    header: pydicom.Dataset, pacs: DICOMwebClient, segmentation: io.BytesIO, annotations: io.BytesIO, path: Path
) -> None:
    """What lies in the PACS and nothing else: the slide by wsidicom, segments tinted, polygons lined by highdicom."""
    web = wsidicom.WsiDicomWebClient(pacs)
    with wsidicom.WsiDicom.open_web(web, header.StudyInstanceUID, header.SeriesInstanceUID) as slide:
        width, height = slide.size.width, slide.size.height
        picture = np.asarray(slide.read_region((0, 0), 0, (width, height)).convert("RGB"))
    size = (width * OVERLAY_SCALE, height * OVERLAY_SCALE)
    picture = cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC)
    masks = highdicom.seg.segread(segmentation).get_total_pixel_matrix(combine_segments=False)
    for number in range(masks.shape[2]):
        mask = cv2.resize(masks[..., number], size, interpolation=cv2.INTER_NEAREST).astype(bool)
        picture[mask] = (0.72 * picture[mask] + 0.28 * np.array(COLOURS[number])).astype(np.uint8)
    for group in highdicom.ann.annread(annotations).get_annotation_groups():
        for corners in group.get_graphic_data("2D"):
            drawn = np.round(corners * OVERLAY_SCALE).astype(np.int32)
            cv2.polylines(picture, [drawn], isClosed=True, color=COLOURS[1], thickness=3, lineType=cv2.LINE_AA)
    cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/pacs-demo"))
    parser.add_argument("--rounds", type=int, default=3, help="cold clicks on each gland and source [3]")
    options = parser.parse_args()
    out: Path = options.out
    shutil.rmtree(out, ignore_errors=True)
    (out / "slides").mkdir(parents=True)
    warnings.filterwarnings("ignore")  # the converter's, of which nothing follows here
    file = make_ihc_slide(out / "slides")
    with running_orthanc(out) as root:
        pacs = DICOMwebClient(root)
        header = store_as_dicom(file, out / "dicom", pacs)
        study = str(header.StudyInstanceUID)
        print(f"Orthanc at {root} holds the slide, study {study}")
        roots = (str(out / "slides"), root.replace("http://", "dicomweb+http://"))
        with running_service(roots, out / "service.log") as url, httpx.Client(base_url=url, timeout=120) as client:
            (found,) = client.get("/v1/slides", params={"study": study}).raise_for_status().json()["slides"]
            (plain,) = client.get("/v1/slides", params={"q": file.name}).raise_for_status().json()["slides"]
            print(f"found as {found['name']}: {found['width']} x {found['height']} px, {found['mpp']} µm/px")
            timed = time_clicks(client, {"PACS": found["id"], "file": plain["id"]}, options.rounds)
            print_times(timed, frame_round_trip_ms(header, root))
            glands = timed["PACS"]["results"]
            kept = [{"refine": gland["refine"], "classification": "Gland"} for gland in glands]
            collection = {"type": "FeatureCollection", "features": [outer(gland["geojson"]) for gland in glands]}
            segmentation = keep(client, found["id"], {"kind": "seg", "refine": kept})
            annotations = keep(client, found["id"], {"kind": "ann", "geojson": collection})
        for what, told in (("segmentation", segmentation), ("annotations", annotations)):
            print(f"stored {what}: {told['sop_instance_uid']}")
        draw(header, pacs, retrieve(pacs, segmentation), retrieve(pacs, annotations), out / "overlay.png")
    print(f"\nread back from Orthanc and drawn: {out / 'overlay.png'}")


if __name__ == "__main__":
    main()
