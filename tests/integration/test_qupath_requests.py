"""Every captured request of the real extension, byte for byte, against the running service."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest
import shapely
import shapely.geometry

CLIENT = Path(__file__).parents[1] / "qupath" / "Client.java"


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    content_type: str
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def send(port: int, request: bytes) -> Answer:
    """`request` as it is, over a socket of its own."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(request)
        response = HTTPResponse(connection)
        response.begin()
        return Answer(response.status, response.headers.get_content_type(), response.read())


def area_of(feature: dict[str, Any]) -> shapely.Geometry:
    """The geometry of an answer's Feature, after a look at everything that QuPath refuses or makes a ghost of."""
    assert feature["type"] == "Feature"
    properties = feature["properties"]
    assert set(properties) == {"quality", "label", "sam_model"}, "object_idx would become a class, name hides quality"
    assert isinstance(properties["quality"], float)
    assert properties["label"] == "object"
    geometry = shapely.geometry.shape(feature["geometry"])
    assert geometry.geom_type in ("Polygon", "MultiPolygon")
    assert geometry.geom_type == "Polygon" or len(geometry.geoms) > 1
    assert geometry.is_valid
    assert shapely.set_precision(geometry, 0.01).area > 0
    polygons = [geometry] if geometry.geom_type == "Polygon" else list(geometry.geoms)
    for ring in (ring for polygon in polygons for ring in (polygon.exterior, *polygon.interiors)):
        assert ring.is_closed
    assert geometry.area < shapely.box(*geometry.bounds).area, "an exact rectangle becomes another kind of object"
    return geometry


def outlines(answer: Answer, entry: dict[str, Any]) -> list[shapely.Geometry]:
    assert (answer.status, answer.content_type) == (200, "application/json")
    picture = shapely.box(-1, -1, entry["image"]["width"] + 1, entry["image"]["height"] + 1)
    areas = [area_of(feature) for feature in answer.json]
    assert all(picture.covers(area) for area in areas)
    assert all(feature["properties"]["sam_model"] == entry["json_fields"]["type"] for feature in answer.json)
    return areas


def is_outline(answer: Answer, entry: dict[str, Any]) -> None:
    """One outline, in and around the box."""
    (area,) = outlines(answer, entry)
    fields = entry["json_fields"]
    if "bbox" in fields:  # of points no more is asked: LiteMedSAM was trained for boxes only
        picture = shapely.box(0, 0, entry["image"]["width"], entry["image"]["height"])
        box = shapely.box(*fields["bbox"]) & picture
        assert (area & box).area > 0.6 * area.area
        assert area.area > 0.1 * box.area


def is_automask(answer: Answer, entry: dict[str, Any]) -> None:
    """Outlines that are not cut by the picture's border, best first."""
    areas = outlines(answer, entry)
    inside = shapely.box(0, 0, entry["image"]["width"], entry["image"]["height"]).buffer(-0.25)
    assert all(inside.covers(area) for area in areas)
    qualities = [feature["properties"]["quality"] for feature in answer.json]
    assert qualities == sorted(qualities, reverse=True)
    assert all(quality >= entry["json_fields"]["pred_iou_thresh"] - 1e-4 for quality in qualities)


def is_nothing(answer: Answer, entry: dict[str, Any]) -> None:
    assert (answer.status, answer.json) == (200, [])


def is_version(answer: Answer, entry: dict[str, Any]) -> None:
    assert (answer.status, answer.content_type) == (200, "text/plain")
    assert b"wsi-sam" in answer.body


def is_list_with_default(answer: Answer, entry: dict[str, Any]) -> None:
    assert answer.status == 200
    assert answer.json[0]["url"] == "wsi-sam:lite_medsam"
    assert set(answer.json[0]) == {"type", "name", "url"}


def is_telling_list(answer: Answer, entry: dict[str, Any]) -> None:
    assert answer.status == 200
    (only,) = answer.json
    assert only["name"].endswith("is not offered by this server")


def is_refused_sentence(answer: Answer, entry: dict[str, Any]) -> None:
    """Plain text: a JSON string would be shown with its quotes."""
    assert (answer.status, answer.content_type) == (200, "text/plain")
    assert answer.body.startswith(b"Not registered: ")


def is_cancel(answer: Answer, entry: dict[str, Any]) -> None:
    assert (answer.status, answer.body) == (200, b"Nothing to cancel.")


def is_idle_progress(answer: Answer, entry: dict[str, Any]) -> None:
    assert (answer.status, answer.json) == (200, {"message": None, "percent": -1})


def is_not_offered(answer: Answer, entry: dict[str, Any]) -> None:
    """One plain sentence, which QuPath prints in its log."""
    assert answer.status == 501
    assert answer.json["detail"].startswith("This server")


def is_missing_picture(answer: Answer, entry: dict[str, Any]) -> None:
    """The body arrived although the client offered an upgrade to HTTP/2: what is missing is a field of it."""
    assert answer.status == 422
    assert "b64img" in answer.json["detail"]


EXPECTED: dict[str, Callable[[Answer, dict[str, Any]], None]] = {
    "e091_version_get": is_version,
    "e091_weights_get_vit_b": is_list_with_default,
    "e091_weights_get_sam2_l": is_telling_list,
    "e091_weights_get_sam3": is_telling_list,
    "e091_weights_post": is_refused_sentence,
    "e091_weights_post_nonascii": is_refused_sentence,
    "e091_weights_cancel": is_cancel,
    "e091_progress_get": is_idle_progress,
    "e091_detect_box": is_outline,
    "e091_detect_points": is_outline,
    "e091_detect_box_multimask": is_outline,
    "e091_detect_box_bgpoints": is_outline,
    "e091_detect_box_outside_view": is_outline,
    "e091_detect_no_prompt_in_view": is_nothing,
    "e091_detect_rgba": is_outline,
    "e091_detect_noslash": is_outline,
    "e091_automask": is_automask,
    "e091_detect_sam2": is_not_offered,
    "e091_video_sam2": is_not_offered,
    "e091_upload_frame": is_not_offered,
    "e091_sam3_text_boxes": is_not_offered,
    "e091_sam3_text_only": is_not_offered,
    "e091_sam3video": is_not_offered,
    "e070_video_sam2": is_not_offered,
    "e070_upload_frame": is_not_offered,
    "e050_version_get": is_version,
    "e050_weights_get_vit_b": is_list_with_default,
    "e050_weights_get_noslash": is_list_with_default,
    "e050_weights_post": is_refused_sentence,
    "e050_weights_cancel": is_cancel,
    "e050_progress_get": is_idle_progress,
    "e050_detect_box_multimask": is_outline,
    "e050_detect_points": is_outline,
    "e050_automask": is_automask,
    "e040_detect_box": is_outline,
    "e040_automask": is_automask,
    "groovy_default_client_post": is_missing_picture,
}


@pytest.fixture(scope="session")
def captured(shared: Path) -> dict[str, dict[str, Any]]:
    """The index of captured requests, by name."""
    return {entry["name"]: entry for entry in json.loads((shared / "qupath/requests/index.json").read_text("utf-8"))}


def test_every_captured_request_is_replayed(captured: dict[str, dict[str, Any]]) -> None:
    assert set(captured) == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_captured_request(name: str, captured: dict[str, dict[str, Any]], shared: Path, qupath_service: Any) -> None:
    entry = captured[name]
    request = (shared / "qupath/requests" / entry["file"]).read_bytes()
    EXPECTED[name](send(qupath_service.port, request), entry)


def body_of(shared: Path, name: str) -> bytes:
    return (shared / f"qupath/requests/{name}.http").read_bytes().split(b"\r\n\r\n", 1)[1]


def test_javas_own_client_gets_the_whole_answer(shared: Path, qupath_service: Any, tmp_path: Path) -> None:
    """java.net.http as it comes sends Upgrade: h2c with the body, which uvicorn on httptools loses."""
    if shutil.which("java") is None:
        pytest.skip("needs a JDK for the real java.net.http client")
    body = body_of(shared, "e091_detect_box")
    (tmp_path / "body.json").write_bytes(body)
    arguments = [f"{qupath_service.url}/sam/", str(tmp_path / "body.json"), str(tmp_path / "answer.json")]
    ran = subprocess.run(["java", str(CLIENT), *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert ran.stdout.split() == ["200", "HTTP_1_1"], ran.stderr
    head = f"POST /sam/ HTTP/1.1\r\nHost: [::]\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    direct = send(qupath_service.port, head.encode("ascii") + body).json
    (by_java,) = json.loads((tmp_path / "answer.json").read_text("utf-8"))
    assert by_java["geometry"] == direct[0]["geometry"]
    assert by_java["properties"] == direct[0]["properties"]
