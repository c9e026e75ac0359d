"""Nothing leaks: names, ids, dates and paths planted in slides and requests are looked for wherever the service writes.

A real `wsisam serve` on slides whose headers and folders carry what nobody may see answers good and bad requests; then
its output, metrics, answers, store and audit trail are searched, also for the usual encodings of what was planted. A
slide's file name may appear as `name` in listings, by contract, and nowhere else.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
import redis
import tifffile
from dicom_slides import write_slide
from PIL import Image, PngImagePlugin
from processes import Process, RedisServer, free_port, wait_until

PATIENT, CASE, BORN, SCANNED = "Mustermann^Erika", "S-4711-0815", "1964-08-12", "20190412153000"
OPERATOR, STATION, FOLDER, NAME = "Dr. Grizzlebeard", "scanner-basement-3", "Zappelphilipp_Anton", "Suppenkaspar"
ASKED = "Struwwelpeter"
"""What a request carries in places where it has no business."""
IN_DICOM = ("Planted^Patricia", "Planted^Referrer", "PID-99", "19480229", "ACC-7431", "CONTAINER-5")
"""What the tests' DICOM headers carry."""
PLANTED = (PATIENT, CASE, BORN, SCANNED, OPERATOR, STATION, FOLDER, NAME, ASKED, *IN_DICOM)
SECRET = "a secret of the test"
BOX = [600, 400, 760, 520]


def forms(text: str) -> set[bytes]:
    """How `text` may look in bytes: plain, in other cases and character sets, in base64 at each of its offsets."""
    found = {form.encode(code) for form in (text, text.lower(), text.upper()) for code in ("utf-8", "utf-16-le")}
    for before, shared in ((0, 0), (1, 2), (2, 3)):
        # Characters that code bytes of what stands before or behind `text` too are left out.
        coded = base64.b64encode(b"\0" * before + text.encode())[shared:-4]
        if len(text) >= 8:  # fewer characters than that turn up by chance
            found |= {coded, coded.translate(bytes.maketrans(b"+/", b"-_"))}
    return found


FORMS = {text: forms(text) for text in PLANTED}


def leaks(content: bytes) -> list[str]:
    content = content.rstrip(b"\0")  # the stand-in's embeddings end with megabytes of them
    return [text for text, looks in FORMS.items() if any(look in content for look in looks)]


def test_the_search_finds_what_is_there() -> None:
    for text in PLANTED:
        for hidden in (text, f'{{"x": "{text}"}}', f"/data/{text}/a.svs"):
            assert text in leaks(hidden.encode())
            for pad in ("", "a", "ab"):
                assert len(text) < 8 or text in leaks(base64.b64encode((pad + hidden + pad).encode()))
    assert leaks(b"an innocent line") == []


def write_slides(root: Path, image: npt.NDArray[np.uint8]) -> None:
    """Slides of several makers and files that are none, all with words in their headers, in somebody's folder."""
    folder = root / FOLDER
    folder.mkdir(parents=True)
    tags = {"software": STATION, "datetime": "1964:08:12 10:00:00", "extratags": [(315, "s", 0, OPERATOR, True)]}
    tiles: dict[str, Any] = {"tile": (256, 256), "photometric": "rgb", "compression": "zlib"}
    words = f"Patient = {PATIENT}|Case = {CASE}|Born = {BORN}|Time = {SCANNED}|User = {OPERATOR}|Host = {STATION}"
    with tifffile.TiffWriter(folder / f"plain-{NAME}.tif") as tiff:
        tiff.write(image, description=words, metadata=None, **tags, **tiles)
    aperio = f"Aperio Image Library v11.2.1\n1536x1024 (256x256)|AppMag = 20|MPP = 0.5|Filename = {NAME}|{words}"
    with tifffile.TiffWriter(folder / f"aperio-{NAME}.svs") as tiff:
        tiff.write(image, description=aperio, metadata=None, **tags, **tiles)
        tiff.write(image[:256, :512], description=f"Aperio\nlabel {PATIENT}", metadata=None, photometric="rgb")
    ome = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "Name": PATIENT, "Description": words}
    with tifffile.TiffWriter(folder / f"open-{NAME}.ome.tif", ome=True) as tiff:
        tiff.write(image, metadata=ome, software=STATION, **tiles)
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", words)
    Image.fromarray(image).save(folder / f"photo-{NAME}.png", pnginfo=info)
    whole = (folder / f"aperio-{NAME}.svs").read_bytes()
    (folder / f"damaged-{NAME}.svs").write_bytes(whole[: len(whole) // 3])
    (folder / f"nonsense-{NAME}.tiff").write_text(words)
    write_slide(folder / "series", image[:512, :768])
    fluorescent = f'<OME><Image Name="{PATIENT}"><Channel ContrastMethod="Fluorescence"/></Image></OME>'
    with tifffile.TiffWriter(folder / f"dark-{NAME}.tif") as tiff:
        tiff.write(image[..., 0], description=fluorescent, metadata=None, tile=(256, 256))


@dataclass
class Told:
    """Every answer of a service, without the names that listings may tell."""

    client: httpx.Client
    answers: list[tuple[str, bytes]] = field(default_factory=list)

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        answer = self.client.request(method, path, **options)
        head = repr(sorted(answer.headers.items())).encode()
        content = answer.content
        if path.startswith("/v1/slides") and answer.headers.get("content-type") == "application/json":
            content = json.dumps(without_names(answer.json())).encode()
        self.answers.append((f"{method} {path} {answer.status_code}", head + content))
        return answer


def without_names(document: Any) -> Any:
    """`document` without names of slides, and cursors, which hold the name that a page ended with."""
    if isinstance(document, dict):
        return {name: without_names(value) for name, value in document.items() if name not in ("name", "next")}
    return [without_names(value) for value in document] if isinstance(document, list) else document


def ask_everything(told: Told, slides: list[str], picture: bytes) -> None:
    """Good requests on every slide, and what goes wrong in as many ways as there are."""
    click = {"prompts": [{"box": BOX}], "format": "both"}
    for slide in slides:
        at = f"/v1/slides/{slide}"
        for path in (
            at,
            f"{at}/thumbnail",
            f"{at}/region?x=0&y=0&width=256&height=256&format=png",
            f"{at}/iiif/info.json",
        ):
            told.ask("GET", path)
        told.ask("GET", f"{at}/iiif/0,0,512,512/256,/0/default.jpg")
        answer = told.ask("POST", f"{at}/segment", json=click)
        if answer.status_code == 200:
            refine = answer.json()["results"][0]["refine"]
            told.ask("POST", f"{at}/segment", json={"prompts": [{"refine": refine, "points": [[650, 450, 1]]}]})
        told.ask("POST", f"{at}/segment", json=click, headers={"accept": "application/geo+json"})
        told.ask("POST", f"{at}/prewarm", json={"boxes": [BOX], "wait": True})
        told.ask("POST", f"{at}/segment", json={"prompts": [{"box": [9, 9, 1, 1]}]})
        told.ask("GET", f"{at}/region?x=0&y=0&width=1e9&height=1e9")
        told.ask("GET", f"{at}/iiif/9,9,9,9/0,/0/{ASKED}.jpg", follow_redirects=False)
    told.ask("DELETE", f"/v1/slides/{slides[0]}/cache")
    told.ask("POST", f"/v1/slides/{slides[0]}/segment", json=click)
    for path in (
        "/v1/slides",
        f"/v1/slides?q={NAME}&limit=1",
        f"/v1/slides?cursor={ASKED}",
        "/v1/slides?accession=ACC-7431",
        "/v1/slides?study=1.2.3",
        f"/v1/slides/{FOLDER}%2Fplain-{NAME}.tif",
        f"/v1/slides/..%2F..%2F{ASKED}/thumbnail",
        f"/{ASKED}",
        f"/problems/{ASKED}",
        "/sam/version/",
        "/sam/progress/",
        f"/sam/weights/?type={ASKED}",
    ):
        told.ask("GET", path)
    told.ask("POST", f"/v1/slides/{ASKED}/segment", json=click)
    told.ask("PUT", f"/v1/slides/{slides[0]}/segment", content=ASKED)
    files = {
        "image": (f"{ASKED}.png", picture, "image/png"),
        "request": (None, json.dumps({"prompts": [{"box": [9, 9, 99, 99]}]})),
    }
    told.ask("POST", "/v1/segment", files=files)
    told.ask(
        "POST", "/v1/segment", files={"image": (f"{ASKED}.png", b"no picture", "image/png"), "request": (None, "{}")}
    )
    told.ask(
        "POST", "/sam/", json={"type": "vit_l", "bbox": [9, 9, 99, 99], "b64img": base64.b64encode(picture).decode()}
    )
    told.ask("POST", "/sam/weights/", json={"type": "vit_b", "name": ASKED, "url": f"file:///data/{ASKED}.pth"})


def ask_with_planted_words(client: httpx.Client, slide: str) -> None:
    """Requests whose answers may quote them back to who sent them; nothing else may."""
    segment = f"/v1/slides/{slide}/segment"
    for content in (
        f'{{"{ASKED}": 1}}',
        f'{{"prompts": "{ASKED}"}}',
        f'{{"model": "{ASKED}", "prompts": [{{"box": [1, 2, 3, 4]}}]}}',
        ASKED,
    ):
        client.post(segment, content=content, headers={"content-type": "application/json"})
    named = {"prompts": [{"id": ASKED, "box": BOX, "classification": ASKED}], "format": "geojson"}
    assert client.post(segment, json=named).status_code == 200
    hostile = {"x-request-id": f"{ASKED} {PATIENT}", "traceparent": ASKED, "user-agent": ASKED, "referer": ASKED}
    client.get("/v1/slides", headers={**hostile, "authorization": f"Bearer {ASKED}", "cookie": f"a={ASKED}"})


@pytest.fixture(scope="module")
def image() -> npt.NDArray[np.uint8]:
    y, x = np.mgrid[:1024, :1536]
    return np.stack([128 + 100 * np.sin(x / 50), 128 + 100 * np.cos(y / 40), (x + y) % 256], -1).astype(np.uint8)


def redis_contents(client: redis.Redis) -> Iterator[tuple[str, bytes]]:
    for key in client.scan_iter():
        kind = client.type(key)
        value = client.get(key) if kind == b"string" else repr(client.xrange(key)).encode()
        yield f"redis {key!r}", key + b" " + value


@pytest.mark.redis
@pytest.mark.parametrize("kind", ["redis", "folder"])
def test_what_slides_and_requests_carry_is_nowhere_to_be_found(
    kind: str, image: npt.NDArray[np.uint8], tmp_path: Path
) -> None:
    root, stored, audit = tmp_path / "slides", tmp_path / "store", tmp_path / "audit.jsonl"
    write_slides(root, image)
    server = RedisServer(tmp_path / "redis") if kind == "redis" else None
    store = server.url if server else f"folder:{stored}"
    port = free_port()
    environment = {**os.environ, "WSISAM_STORE": store, "WSISAM_SECRET": SECRET, "WSISAM_AUDIT_FILE": str(audit)}
    environment |= {"WSISAM_TEST_ENCODE_S": "0", "WSISAM_TEST_DECODE_S": "0"}
    command = [sys.executable, str(Path(__file__).with_name("numpy_worker.py")), "serve"]
    process = Process([*command, "--slides", str(root), "--port", str(port)], tmp_path / "serve.log", env=environment)
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        assert process.alive, process.said()
        with suppress(httpx.TransportError):
            return httpx.get(f"{url}/readyz").is_success
        return False

    wait_until(ready, "the service is ready")
    client = httpx.Client(base_url=url, timeout=60)
    told = Told(client)
    listing = told.ask("GET", "/v1/slides").json()
    good, bad = [[one["id"] for one in listing[part]] for part in ("slides", "unreadable")]
    fingerprints = [one["fingerprint"] for one in listing["slides"]]
    assert len(good) >= 5
    assert len(bad) >= 2
    buffer = io.BytesIO()
    Image.fromarray(image[:200, :300]).save(buffer, "PNG")
    ask_everything(told, good + bad, buffer.getvalue())
    ask_with_planted_words(client, good[0])
    shutil.rmtree(root / FOLDER)  # and what is told of slides that have gone
    for slide in good:
        told.ask("POST", f"/v1/slides/{slide}/segment", json={"prompts": [{"box": [9, 9, 300, 300]}]})
    told.ask("GET", "/metrics")
    stored_things = list(redis_contents(redis.Redis.from_url(server.url))) if server else []
    process.terminate()
    stored_things += [
        (f"file {path}", str(path.relative_to(stored)).encode() + path.read_bytes())
        for path in stored.rglob("*")
        if path.is_file()
    ]
    assert len(stored_things) > 4
    # Answers may quote to a client what it has sent; what slides carry they may not tell.
    answers = [(asked, content.replace(ASKED.encode(), b"")) for asked, content in told.answers]
    places = [*answers, *stored_things, ("output", process.log.read_bytes()), ("audit", audit.read_bytes())]
    found = {place: named for place, content in places if (named := leaks(content))}
    assert found == {}
    # With a secret not even the content of a slide can be recognised in the store.
    assert [place for place, content in stored_things for print_ in fingerprints if print_.encode() in content] == []
    assert audit.read_text().count("\n") > len(told.answers) / 2
    assert process.said().count("wsisam.access") > len(told.answers) / 2
    assert "Traceback" not in process.said()
    if server:
        server.close()
