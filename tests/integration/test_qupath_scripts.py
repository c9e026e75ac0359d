"""The Groovy scripts, run by a real Groovy against the real service, on stand-ins for QuPath's classes."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import shapely
from PIL import Image
from serving import served
from stand_ins import NumpyExecutor

from wsisam_service.access.identity import Role
from wsisam_service.access.keys import StoredKey, append_key, hash_of, new_key
from wsisam_service.app import create_app
from wsisam_service.settings import Settings
from wsisam_service.slides.catalogue import Catalogue

REPOSITORY = Path(__file__).parents[2]
SCRIPTS = REPOSITORY / "qupath"
STAND_INS = REPOSITORY / "tests/qupath/standins"
SERVER_URL = "http://localhost:8000"
"""As it is written in every script."""
GLAND = (60, 40, 220, 190)
"""A box on the tissue of the fixture."""

JARS = {
    "groovy": (
        "tests/qupath/node_modules/npm-groovy-lint/lib/java/groovy/lib/groovy-4*.jar",
        "/usr/share/groovy/lib/groovy-2*.jar",
    ),
    "gson": ("/usr/share/java/gson.jar",),
    "jts": ("/usr/share/java/jts-core.jar",),
}


@pytest.fixture(scope="session")
def class_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Groovy, Gson, JTS and the compiled stand-ins."""
    if shutil.which("javac") is None:
        pytest.skip("needs a JDK to run the Groovy scripts")
    jars = []
    for name, patterns in JARS.items():
        found = [
            path
            for pattern in patterns
            for path in sorted(REPOSITORY.glob(pattern) if pattern[0] != "/" else Path("/").glob(pattern[1:]))
        ]
        if not found:
            pytest.skip(f"needs the jar of {name}: npm ci in tests/qupath, apt libgoogle-gson-java and libjts-java")
        jars.append(str(found[0]))
    classes = tmp_path_factory.mktemp("standins")
    sources = map(str, STAND_INS.rglob("*.java"))
    subprocess.run(["javac", "-d", str(classes), "-cp", os.pathsep.join(jars), *sources], check=True)
    return os.pathsep.join([str(classes), *jars])


@dataclass
class Recorder:
    """A server in front of the service: passes requests on, keeps their paths and JSON, and can be busy first."""

    url: str = ""
    busy: int = 0
    requests: list[tuple[str, Any]] = field(default_factory=list)

    def bodies(self, path_end: str) -> list[Any]:
        return [body for path, body in self.requests if path.split("?")[0].endswith(path_end)]


@pytest.fixture
def recorder(qupath_service: Any) -> Iterator[Recorder]:
    record = Recorder()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._pass_on(None)

        def do_POST(self) -> None:
            self._pass_on(self.rfile.read(int(self.headers["Content-Length"])))

        def _pass_on(self, body: bytes | None) -> None:
            is_json = body is not None and self.headers.get_content_type() == "application/json"
            record.requests.append((self.path, json.loads(body) if is_json else body))
            if record.busy:
                record.busy -= 1
                self._answer(503, {"Retry-After": "1"}, b"{}")
                return
            upstream = http.client.HTTPConnection("127.0.0.1", qupath_service.port)
            kept = {name: value for name, value in self.headers.items() if name.lower() in ("content-type", "accept")}
            upstream.request(self.command, self.path, body, kept)
            response = upstream.getresponse()
            self._answer(response.status, {"Content-Type": response.headers["Content-Type"]}, response.read())
            upstream.close()

        def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    record.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield record
    server.shutdown()
    server.server_close()
    thread.join()


RunScript = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def groovy(class_path: str) -> Iterator[subprocess.Popen[str]]:
    """One Java process for all scripts."""
    command = ["java", "-cp", class_path, "standins.RunScript"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8") as java:
        yield java
        assert java.stdin is not None
        java.stdin.close()


@pytest.fixture
def run(groovy: subprocess.Popen[str], recorder: Recorder, tmp_path: Path) -> RunScript:
    """Runs a script on a scenario (see standins.RunScript) and returns what became of it."""

    def run_script(name: str, scenario: dict[str, Any], **changes: str) -> dict[str, Any]:
        script = (SCRIPTS / f"{name}.groovy").read_text("utf-8")
        for old, new in {SERVER_URL: recorder.url, **changes}.items():
            assert old in script
            script = script.replace(old, new)
        (tmp_path / "script.groovy").write_text(script, "utf-8")
        (tmp_path / "scenario.json").write_text(json.dumps(scenario), "utf-8")
        assert groovy.stdin is not None
        assert groovy.stdout is not None
        print(tmp_path, file=groovy.stdin, flush=True)
        for line in groovy.stdout:
            if line == "done\n":
                break
            print(line, end="")
        outcome: dict[str, Any] = json.loads((tmp_path / "outcome.json").read_text("utf-8"))
        return outcome

    return run_script


def thing(wkt: str, *, selected: bool = True, **members: Any) -> dict[str, Any]:
    return {"id": str(uuid.uuid4()), "wkt": wkt, "selected": selected, **members}


def rectangle(x0: float, y0: float, x1: float, y1: float, **members: Any) -> dict[str, Any]:
    return thing(shapely.box(x0, y0, x1, y1).wkt, **members)


def image(file: Path, *objects: dict[str, Any], **members: Any) -> dict[str, Any]:
    with Image.open(file) as picture:
        size = {"width": picture.width, "height": picture.height}
    return {"name": file.name, "file": str(file), "mpp": 0.5, "objects": list(objects), **size, **members}


def shown(*images: dict[str, Any], **members: Any) -> dict[str, Any]:
    """The first image open in a window, the others only in the project."""
    return {"images": list(images), "open": 0, "window": True, **members}


def outlines(image: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What the scripts made, by the id of its prompt."""
    made = [one for one in image["objects"] if "wsisam.prompt" in one["metadata"]]
    by_prompt = {one["metadata"]["wsisam.prompt"]: one for one in made}
    assert len(by_prompt) == len(made), "a prompt has two outlines"
    return by_prompt


def area(one: dict[str, Any]) -> shapely.Geometry:
    return shapely.from_wkt(one["wkt"])


def test_the_shared_part_is_the_same_in_every_script() -> None:
    subprocess.run([sys.executable, str(SCRIPTS / "inline.py"), "--check"], check=True)


def test_selected_objects_are_outlined_with_their_classes_in_one_undo_step(
    run: RunScript, recorder: Recorder, qupath_service: Any
) -> None:
    box = rectangle(*GLAND, pathClass="Tumor")
    clicks = thing("MULTIPOINT((330 120), (336 126))")
    background = thing("MULTIPOINT((100 100))", pathClass="Ignore*")
    spared = rectangle(300, 300, 400, 400, selected=False)
    outcome = run(
        "segment-selected", shown(image(qupath_service.slides / "tissue.png", box, clicks, background, spared))
    )
    (after,) = outcome["images"]
    made = outlines(after)
    assert set(made) == {box["id"], clicks["id"]}
    assert after["events"] == 1
    assert {one["id"] for one in after["objects"]} >= {box["id"], clicks["id"], background["id"], spared["id"]}
    assert made[box["id"]]["pathClass"] == "Tumor"
    assert "pathClass" not in made[clicks["id"]]
    assert all(one["selected"] and not one["rectangle"] for one in made.values())
    gland = area(made[box["id"]])
    assert (gland & shapely.box(*GLAND)).area > 0.8 * gland.area
    (asked,) = recorder.bodies("/segment")
    assert asked["image_size"] == [after["width"], after["height"]]
    assert asked["prompts"][0]["points"] == [[100, 100, 0]], "background points inside the box go with it"
    assert outcome["shown"][0].startswith("info: 2 of 2 outlined.")


def test_prompts_go_in_batches_and_a_busy_server_is_asked_again(
    run: RunScript, recorder: Recorder, qupath_service: Any
) -> None:
    boxes = [rectangle(40 + 60 * i, 200, 90 + 60 * i, 260) for i in range(5)]
    recorder.busy = 2
    scenario = shown(image(qupath_service.slides / "tissue.png", *boxes))
    outcome = run("segment-selected", scenario, **{"BATCH = 256": "BATCH = 2"})
    assert [len(body["prompts"]) for body in recorder.bodies("/segment")] == [2, 2, 1]
    assert len(recorder.bodies("/v1/slides")) == 3, "two answers were 503"
    assert set(outlines(outcome["images"][0])) == {box["id"] for box in boxes}


@pytest.mark.parametrize("batch", [256, 1])
@pytest.mark.parametrize("known", [True, False])
def test_one_bad_prompt_does_not_cost_the_others(
    known: bool, batch: int, run: RunScript, qupath_service: Any, tmp_path: Path
) -> None:
    """Also where it is all of its request, as with every prompt on a slide that the server lacks."""
    slide = qupath_service.slides / "tissue.png"
    if not known:
        with Image.open(slide) as picture:
            picture.rotate(180).save(tmp_path / "tissue.png")
        slide = tmp_path / "tissue.png"
    outside, good, far_outside = rectangle(600, 600, 700, 700), rectangle(*GLAND), rectangle(2000, 2000, 2010, 2010)
    scenario = shown(image(slide, outside, good, far_outside))
    outcome = run("segment-selected", scenario, **{"BATCH = 256": f"BATCH = {batch}"})
    assert set(outlines(outcome["images"][0])) == {good["id"]}
    assert outcome["shown"] == ["info: 1 of 3 outlined. The log says more."]


def test_a_slide_that_was_renamed_is_found_by_its_content(
    run: RunScript, recorder: Recorder, qupath_service: Any, tmp_path: Path
) -> None:
    renamed = tmp_path / "case 7 (ä).png"
    shutil.copy(qupath_service.slides / "tissue.png", renamed)
    box = rectangle(*GLAND)
    outcome = run("segment-selected", shown(image(renamed, box)))
    assert set(outlines(outcome["images"][0])) == {box["id"]}
    assert not recorder.bodies("/v1/segment")


def test_of_a_slide_the_server_lacks_the_region_is_sent(
    run: RunScript, recorder: Recorder, qupath_service: Any, tmp_path: Path
) -> None:
    """The same picture, brighter in one pixel, so that its fingerprint is unknown; outlines land in its own pixels."""
    with Image.open(qupath_service.slides / "tissue.png") as picture:
        other = picture.resize((1536, 1536))
    other.save(tmp_path / "tissue.png")
    box = rectangle(*(3 * side for side in GLAND), pathClass="Tumor", z=2)
    outcome = run("segment-selected", shown(image(tmp_path / "tissue.png", box)))
    (after,) = outcome["images"]
    (made,) = outlines(after).values()
    assert len(recorder.bodies("/v1/segment")) == 1
    assert (area(made) & area(box)).area > 0.8 * area(made).area
    assert area(made).area > 0.2 * area(box).area
    assert (made["pathClass"], made["z"], after["events"]) == ("Tumor", 2, 1)


def test_an_image_of_another_size_is_refused_and_changes_nothing(run: RunScript, qupath_service: Any) -> None:
    """A rotated image, or one read by another library: the numbers would mean other places."""
    rotated = image(qupath_service.slides / "tissue.png", rectangle(*GLAND)) | {"width": 300}
    outcome = run("segment-selected", shown(rotated))
    assert outcome["images"][0]["events"] == 0
    (message,) = outcome["shown"]
    assert message.startswith("error: The WSI-SAM server answered 422")


@pytest.fixture
def silent() -> Iterator[str]:
    """A place whose queue is full: it takes no connection and refuses none."""
    with ExitStack() as sockets:
        listener = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://127.0.0.1:9", "No WSI-SAM server answers at http://127.0.0.1:9. Is it running"),
        ("silent", "Is it running, and is serverUrl right? (HTTP connect timed out)"),
        ("localhost:8000", "serverUrl is 'localhost:8000', which is not an address"),
    ],
)
def test_without_a_server_the_message_says_what_to_do(
    url: str, says: str, run: RunScript, silent: str, qupath_service: Any
) -> None:
    """And once, however many images the project has."""
    changes = {SERVER_URL: silent if url == "silent" else url, "ofSeconds(5)": "ofMillis(300)"}
    scenario = shown(*(image(qupath_service.slides / "tissue.png", rectangle(*GLAND)) for _ in range(2)), project=True)
    for script in ("segment-selected", "segment-project"):
        outcome = run(script, scenario, **changes)
        (message,) = outcome["shown"]
        assert message.startswith("error: ")
        assert says in message
        assert [one["events"] for one in outcome["images"]] == [0, 0]


def test_a_project_is_resumed_where_it_was_stopped(run: RunScript, qupath_service: Any, tmp_path: Path) -> None:
    """Killed after the first image is saved, then run again: every prompt has one outline, each image one change."""
    first = image(
        qupath_service.slides / "tissue.png",
        rectangle(*GLAND, pathClass="Gland", selected=False),
        rectangle(300, 300, 420, 420, annotation=False, selected=False),
    )
    copy = tmp_path / "copy.png"
    shutil.copy(qupath_service.slides / "tissue.png", copy)
    second = image(copy, rectangle(240, 60, 330, 170, pathClass="Gland", selected=False))
    stopped = run("segment-project", shown(first, second, project=True, stopAfterSaves=1))
    assert [len(outlines(one)) for one in stopped["images"]] == [1, 0]
    assert [(one["events"], one["saves"]) for one in stopped["images"]] == [(1, 1), (0, 0)]
    resumed = run("segment-project", stopped | {"stopAfterSaves": None})
    assert [len(outlines(one)) for one in resumed["images"]] == [1, 1]
    assert [(one["events"], one["saves"]) for one in resumed["images"]] == [(0, 0), (1, 1)]
    assert {one["pathClass"] for each in resumed["images"] for one in outlines(each).values()} == {"Gland"}
    again = run("segment-project", resumed)
    assert [one["events"] for one in again["images"]] == [0, 0]


def test_an_image_that_fails_is_named_at_the_end_and_does_not_stop_the_others(
    run: RunScript, qupath_service: Any, tmp_path: Path
) -> None:
    tissue = qupath_service.slides / "tissue.png"
    for name in ("fluorescence.png", "moved.png"):
        with Image.open(tissue) as picture:
            picture.rotate(180).save(tmp_path / name)
    fluorescence = image(tmp_path / "fluorescence.png", rectangle(*GLAND), rgb=False)
    moved = image(tmp_path / "moved.png", rectangle(*GLAND))
    good = image(tissue, rectangle(*GLAND))
    fails = "(entry.imageName == 'moved.png' ? new File('/moved.png').newInputStream() : entry.readImageData())"
    scenario = shown(fluorescence, moved, good, project=True)
    outcome = run("segment-project", scenario, **{"entry.readImageData()": fails})
    assert [len(outlines(one)) for one in outcome["images"]] == [0, 0, 1]
    assert outcome["shown"] == ["info: 1 new outlines in 3 images. Failed, see the log: fluorescence.png, moved.png."]


def test_detections_of_a_class_can_be_the_prompts_of_a_project(run: RunScript, qupath_service: Any) -> None:
    nucleus = thing("POLYGON((240 60, 330 66, 320 170, 250 160, 240 60))", annotation=False, pathClass="Nucleus")
    other = rectangle(*GLAND, pathClass="Gland")
    scenario = shown(image(qupath_service.slides / "tissue.png", nucleus, other), project=True)
    outcome = run("segment-project", scenario, **{"promptClass = ''": "promptClass = 'Nucleus'"})
    assert set(outlines(outcome["images"][0])) == {nucleus["id"]}


def test_refine_corrects_an_outline_in_place(run: RunScript, recorder: Recorder, qupath_service: Any) -> None:
    """The refine token carries the earlier prompt; only new points are sent, and one event changes the outline."""
    box = rectangle(*GLAND, pathClass="Tumor")
    before = run("segment-selected", shown(image(qupath_service.slides / "tissue.png", box)))
    (outline,) = outlines(before["images"][0]).values()
    token = outline["metadata"]["wsisam.refine"]
    before["images"][0]["objects"] += [
        thing("MULTIPOINT((140 110))", selected=False),
        thing("MULTIPOINT((70 50))", selected=False, pathClass="Ignore*"),
        thing("MULTIPOINT((480 480))", selected=False),
    ]
    after = run("refine", before)
    (asked,) = recorder.bodies("/segment")[1:]
    assert asked["prompts"][0]["refine"] == token
    assert asked["prompts"][0]["points"] == [[140, 110, 1], [70, 50, 0]], "points far away belong to something else"
    (corrected,) = outlines(after["images"][0]).values()
    assert after["images"][0]["events"] == 1
    assert (corrected["id"], corrected["pathClass"]) == (outline["id"], "Tumor")
    assert corrected["metadata"]["wsisam.refine"] != token
    assert set(corrected["measurements"]) == set(outline["measurements"])
    again = run("refine", after)
    assert again["images"][0]["events"] == 0, "the points were used already"


def test_refine_sends_what_was_put_down_to_correct_this_outline(
    run: RunScript, recorder: Recorder, qupath_service: Any
) -> None:
    """Not the points that it or its neighbour came from, nor those of another plane, unless they are selected."""
    own = rectangle(*GLAND)
    neighbour = thing("MULTIPOINT((262 110), (268 116))", pathClass="Other")
    background = thing("MULTIPOINT((100 100))", pathClass="Ignore*")
    before = run("segment-selected", shown(image(qupath_service.slides / "tissue.png", own, neighbour, background)))
    outline = outlines(before["images"][0])[own["id"]]
    kept = [one | {"selected": one["id"] == outline["id"]} for one in before["images"][0]["objects"]]
    elsewhere = thing("MULTIPOINT((150 120))", selected=False, z=1)
    new = thing("MULTIPOINT((70 50))", pathClass="Ignore*", selected=False)
    after = run("refine", shown(before["images"][0] | {"objects": [*kept, elsewhere, new]}))
    again = run("refine", after)
    assert again["images"][0]["events"] == 0
    chosen = [
        one | {"selected": one["selected"] or one["id"] == neighbour["id"]} for one in again["images"][0]["objects"]
    ]
    run("refine", shown(again["images"][0] | {"objects": chosen}))
    _, first, second = recorder.bodies("/segment")
    assert first["prompts"][0]["points"] == [[70, 50, 0]]
    assert second["prompts"][0]["points"] == [[262, 110, 1], [268, 116, 1]]


def test_a_forgotten_outline_is_asked_anew_from_its_box(
    run: RunScript, recorder: Recorder, qupath_service: Any
) -> None:
    """410 refine-expired: the script starts again and says so, instead of failing."""
    own = thing("POLYGON((60 40, 220 44, 214 190, 64 180, 60 40))", metadata={"wsisam.refine": "a token of last year"})
    points = thing("MULTIPOINT((140 110))")
    outcome = run("refine", shown(image(qupath_service.slides / "tissue.png", own, points)))
    first, second = recorder.bodies("/segment")
    assert "refine" in first["prompts"][0]
    assert second["prompts"][0]["box"] == [60, 40, 220, 190]
    assert outcome["images"][0]["events"] == 1


def test_what_the_viewer_shows_is_encoded_before_the_click(
    run: RunScript, recorder: Recorder, qupath_service: Any
) -> None:
    box = rectangle(300, 330, 380, 400)
    scenario = shown(image(qupath_service.slides / "tissue.png", box), displayed=[256, 256, 600, 600], downsample=0.5)
    outcome = run("prewarm-viewport", scenario, **{"minutes = 60": "minutes = 0"})
    assert outcome["images"][0]["events"] == 0
    region, boxes = recorder.bodies("/prewarm")
    assert region["region"] == [256, 256, 256, 256], "clipped to the slide"
    assert boxes["boxes"] == [[300, 330, 380, 400]]


@pytest.mark.parametrize("place", ["header", "address"])
def test_a_server_that_asks_for_a_key_gets_it_from_the_scripts_first_lines(
    place: str, run: RunScript, qupath_service: Any, tmp_path: Path
) -> None:
    key, file = new_key(), tmp_path / "keys.toml"
    append_key(file, StoredKey(name="qupath", role=Role.ANNOTATOR, sha256=hash_of(key)))
    settings = Settings(slides=(str(qupath_service.slides),), keys=file)
    app = create_app(settings, Catalogue(settings.slides), NumpyExecutor())
    shows = shown(image(qupath_service.slides / "tissue.png", rectangle(*GLAND)))
    with served(app) as port:
        url = f"http://127.0.0.1:{port}"
        refused = run("segment-selected", shows, **{SERVER_URL: url})
        project = shown(*shows["images"] * 2, project=True)
        ended = run("segment-project", project, **{SERVER_URL: url})
        token = {"token = ''": f"token = '{key}'"} if place == "header" else {}
        written = token | {SERVER_URL: url if token else f"{url}/k/{key}"}
        outcome = run("segment-selected", shows, **written)
    assert not outlines(refused["images"][0])
    assert "401" in json.dumps(refused)
    assert "answered 401" in ended["shown"][0]  # once, and not for every image
    assert len(outlines(outcome["images"][0])) == 1
