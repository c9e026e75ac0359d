"""The page on every way that people reach it: keyboard, phone, screen reader, path prefix, token, and in trouble.

Real Chromium and real sockets on a real slide; the network is the numpy stand-in, which is quick.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from browser import AXE, SlidePage, chromium, require_page, serving
from PIL import Image
from stand_ins import NumpyExecutor
from starlette.applications import Starlette
from starlette.routing import Mount

from wsisam_service.access.identity import Role
from wsisam_service.access.keys import StoredKey, append_key, hash_of, new_key
from wsisam_service.api.page import PAGE_FOLDER, read_page
from wsisam_service.app import create_app
from wsisam_service.settings import Settings
from wsisam_service.slides.catalogue import Catalogue
from wsisam_service.slides.write import write_pyramid

REPOSITORY = Path(__file__).resolve().parents[2]
MAX_COMPRESSED_BYTES = 400_000
SERIOUS = ("serious", "critical")
BOX = (200.0, 180.0, 320.0, 300.0)
CANVAS = "#viewer .openseadragon-canvas"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, tissue: npt.NDArray[np.uint8]) -> Any:
    folder = tmp_path_factory.mktemp("slides")
    write_pyramid(folder / "tissue.ome.tif", tissue, 0.5)
    write_pyramid(folder / "tissue2.ome.tif", tissue[:, ::-1], 0.5)
    settings = Settings(slides=(str(folder),))
    return create_app(settings, Catalogue(settings.slides), NumpyExecutor())


@pytest.fixture(scope="module")
def url(app: Any) -> Iterator[str]:
    with serving(app) as address:
        yield address


@pytest.fixture(scope="module")
def slide_id(url: str) -> str:
    return str(httpx.get(f"{url}v1/slides").json()["slides"][0]["id"])


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture
def page(browser: Any, url: str, slide_id: str) -> Iterator[SlidePage]:
    opened = SlidePage(browser, url, slide_id, (256, 256))
    opened.wait()
    yield opened
    opened.context.close()


def serious_findings(page: Any) -> list[str]:
    page.evaluate(AXE.read_text())
    found = page.evaluate("async () => (await axe.run()).violations")
    return [f"{one['id']}: {[node['target'] for node in one['nodes']]}" for one in found if one["impact"] in SERIOUS]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1280, 720), (390, 844)])
def test_axe_finds_nothing_serious(browser: Any, url: str, slide_id: str, size: tuple[int, int], scheme: str) -> None:
    viewport = {"width": size[0], "height": size[1]}
    page = SlidePage(browser, url, slide_id, (256, 256), viewport=viewport, color_scheme=scheme)
    page.wait()
    page.answer_of(lambda: page.draw_box(BOX))
    if page.page.locator("#objects-panel").is_hidden():
        page.page.click("#show-objects")
    assert serious_findings(page.page) == []
    page.page.click("#show-help")
    assert serious_findings(page.page) == []
    page.context.close()


def test_the_whole_way_by_keyboard(page: SlidePage) -> None:
    keyboard = page.page.keyboard
    page.page.focus(CANVAS)
    keyboard.press("b")
    keyboard.press("Shift+ArrowLeft")
    keyboard.press("Shift+ArrowUp")
    keyboard.press(" ")
    keyboard.press("Shift+ArrowRight")
    keyboard.press("Shift+ArrowDown")
    asked, _ = page.answer_of(lambda: keyboard.press(" "))
    assert asked["prompts"][0]["box"] == pytest.approx([196, 196, 256, 256], abs=1)
    keyboard.press("2")
    assert "Stroma" in page.rows()[0]
    keyboard.press("n")
    keyboard.press("Shift+ArrowLeft")
    asked, _ = page.answer_of(lambda: keyboard.press(" "))
    assert asked["prompts"][0]["points"] == [[pytest.approx(196, abs=1), pytest.approx(256, abs=1), 0]]
    keyboard.press("Enter")
    assert page.page.locator("#objects [aria-selected=true]").count() == 0
    keyboard.press("j")
    keyboard.press("Delete")
    assert page.rows() == []
    keyboard.press("u")
    assert len(page.rows()) == 1
    assert "Object 1" in page.page.inner_text("#announce")


def test_skipping_to_the_slide_leads_there_and_leaves_the_address(page: SlidePage) -> None:
    address = page.page.url
    page.page.focus("a.skip")
    page.page.keyboard.press("Enter")
    assert page.page.locator(f"{CANVAS}:focus").count() == 1
    assert page.page.url == address


def test_a_held_space_bar_acts_once_and_is_let_go_with_the_window(page: SlidePage) -> None:
    keyboard = page.page.keyboard
    asked: list[Any] = []
    page.page.on("request", lambda request: request.url.endswith("/segment") and asked.append(request))
    page.page.focus(CANVAS)
    keyboard.press("p")
    keyboard.press("ArrowRight")
    page.answer_of(lambda: [keyboard.down(" ") for _ in range(4)])
    keyboard.up(" ")
    assert len(asked) == 1
    page.page.mouse.move(*page.screen((300, 300)))
    keyboard.down(" ")
    assert page.page.get_attribute("[data-tool]", "data-tool") == "move"
    page.page.evaluate("window.dispatchEvent(new Event('blur'))")
    assert page.page.get_attribute("[data-tool]", "data-tool") == "include"


def test_the_focus_stays_where_one_goes_on(page: SlidePage) -> None:
    keyboard = page.page.keyboard
    keyboard.press("m")
    page.answer_of(lambda: page.draw_box(BOX))
    page.page.focus(".candidates button >> nth=1")
    keyboard.press("Enter")
    assert page.page.get_attribute(":focus", "data-candidate") == "1"
    assert page.page.get_attribute(":focus", "aria-pressed") == "true"
    page.page.focus("#export-menu summary")
    keyboard.press("Enter")
    keyboard.press("Tab")
    with page.page.expect_download():
        keyboard.press("Enter")
    assert page.page.locator("#export-menu:not([open]) summary:focus").count() == 1
    for button in ("#next", "#delete"):
        keyboard.press("j")
        page.page.focus(button)
        keyboard.press("Enter")
        assert page.page.locator(f"{CANVAS}:focus").count() == 1


def test_screen_readers_hear_what_keys_do(page: SlidePage) -> None:
    page.answer_of(lambda: page.draw_box(BOX))
    page.answer_of(lambda: page.draw_box((330, 300, 450, 420)))
    for key, told in (
        ("k", "Selected: Object 1, no class"),
        ("2", "Selected: Object 1, Stroma"),
        ("Delete", "Deleted. Selected: Object 2"),
        ("u", "Undone. Selected: Object 1, Stroma"),
        ("Control+y", "Redone. Selected: Object 2"),
        ("Escape", "No object selected, 1 in all. Class of new ones: Stroma"),
    ):
        page.page.keyboard.press(key)
        assert told in page.page.inner_text("#announce")


def test_a_tap_on_a_phone_outlines(browser: Any, url: str, slide_id: str) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    page = SlidePage(browser, url, slide_id, (256, 256), **phone)
    page.wait()
    page.page.tap("#tool-include")
    asked, _ = page.answer_of(lambda: page.page.touchscreen.tap(*page.screen((240, 200))))
    assert asked["prompts"][0]["points"] == [[pytest.approx(240, abs=1), pytest.approx(200, abs=1), 1]]
    assert "Object 1" in page.page.inner_text("#hint")
    page.page.set_input_files("#import-file", {"name": "a.geojson", "mimeType": "", "buffer": b"<xml>"})
    page.page.wait_for_selector("#message[role=alert]")
    page.page.tap("#zoom-in", trial=True)  # a message leaves the buttons free
    page.context.close()


@pytest.mark.parametrize("width", [320, 390, 430, 759])
def test_on_a_phone_the_status_is_on_the_screen(browser: Any, url: str, slide_id: str, width: int) -> None:
    page = SlidePage(browser, url, slide_id, (256, 256), viewport={"width": width, "height": 700})
    page.wait()
    page.page.click("#status summary")
    sheet = page.page.locator("#status .sheet").bounding_box()
    header = page.page.locator("header").bounding_box()
    assert 0 <= sheet["x"] <= sheet["x"] + sheet["width"] <= width
    assert sheet["y"] >= header["y"] + header["height"]
    page.context.close()


@pytest.mark.parametrize("width", [320, 430, 705, 759])
def test_on_a_phone_every_tool_has_the_room_it_takes(browser: Any, url: str, slide_id: str, width: int) -> None:
    page = SlidePage(browser, url, slide_id, (256, 256), viewport={"width": width, "height": 700})
    page.wait()
    wider = "buttons => buttons.filter(button => button.scrollWidth > button.clientWidth).map(button => button.id)"
    assert page.page.eval_on_selector_all(".groups button", wider) == []
    page.context.close()


def test_alt_click_and_right_button_exclude(page: SlidePage) -> None:
    page.answer_of(lambda: page.draw_box(BOX))
    page.page.keyboard.press("p")
    page.page.keyboard.down("Alt")
    asked, _ = page.answer_of(lambda: page.click((230, 220)))
    page.page.keyboard.up("Alt")
    assert asked["prompts"][0]["points"][-1][2] == 0
    asked, _ = page.answer_of(lambda: page.click((290, 280), button="right"))
    assert asked["prompts"][0]["points"] == [[pytest.approx(290, abs=1), pytest.approx(280, abs=1), 0]]


def test_candidates_can_be_chosen_and_corrected(page: SlidePage) -> None:
    page.page.keyboard.press("m")
    asked, answer = page.answer_of(lambda: page.draw_box(BOX))
    assert asked["multimask"] is True
    buttons = page.page.locator(".candidates button")
    assert [text.split(" · ")[1] for text in buttons.all_inner_texts()] == ["0.90", "0.80", "0.70"]
    page.page.keyboard.press("c")
    assert buttons.nth(1).get_attribute("aria-pressed") == "true"
    area = float(re.sub(r"[^\d.]", "", page.page.inner_text("#objects .facts >> nth=0").split()[0]))
    assert area == pytest.approx(answer["results"][0]["area_um2"], rel=0.01)
    page.page.keyboard.press("p")
    asked, _ = page.answer_of(lambda: page.click((210, 190)))
    assert asked["prompts"][0]["mask"]["counts"] == answer["results"][0]["masks"][1]["mask"]["counts"]


def test_where_the_pointer_rests_is_prewarmed(page: SlidePage) -> None:
    page.page.keyboard.press("p")
    with page.page.expect_request(lambda request: request.url.endswith("/prewarm")) as waiting:
        page.page.mouse.move(*page.screen((300, 200)))
    assert waiting.value.post_data_json == {"points": [[pytest.approx(300, abs=1), pytest.approx(200, abs=1)]]}


def test_a_forgotten_answer_is_asked_for_anew(page: SlidePage, app: Any) -> None:
    page.answer_of(lambda: page.draw_box(BOX))
    app.state.services.executor.refinable.clear()
    page.page.keyboard.press("n")
    with page.page.expect_response(lambda response: response.url.endswith("/segment") and response.ok) as waiting:
        page.click((230, 220))
    (prompt,) = waiting.value.request.post_data_json["prompts"]
    assert prompt["box"] == pytest.approx(BOX, abs=1.5)
    assert len(prompt["points"]) == 1


IS_DRAWN = """([x, y]) => {
  const pixels = document.querySelector(".overlay").getContext("2d").getImageData(x - 2, y - 10, 5, 21).data;
  return pixels.some(value => value > 0);
}"""


def test_boxes_that_wait_for_their_turn_are_shown(page: SlidePage) -> None:
    held: list[Any] = []

    def hold(route: Any) -> None:
        held.append(route)

    page.page.route("**/segment", hold)
    for x in (60, 200, 340):
        page.draw_box((x, 180, x + 100, 280))
    page.page.wait_for_function("() => document.querySelector('#hint').innerText.includes('2 more wait')")
    for x in (60, 200, 340):
        page.page.wait_for_function(IS_DRAWN, arg=page.in_viewer((x, 230)))
    page.page.keyboard.press("Escape")
    for x in (60, 200, 340):
        page.page.wait_for_function(f"place => !({IS_DRAWN})(place)", arg=page.in_viewer((x, 230)))
    assert len(held) == 1


def test_trouble_is_told_in_plain_words(page: SlidePage) -> None:
    page.page.route("**/segment", lambda route: route.abort())
    page.draw_box(BOX)
    message = page.page.locator("#message[role=alert]")
    message.wait_for()
    assert "does not answer" in message.inner_text()
    page.page.unroute("**/segment")
    page.answer_of(lambda: page.draw_box(BOX))
    assert page.page.locator("#message").is_hidden()
    page.page.set_input_files("#import-file", {"name": "a.geojson", "mimeType": "", "buffer": b"{}"})
    message.wait_for()
    assert "no GeoJSON features" in message.inner_text()


def test_a_busy_service_is_asked_again_when_it_says(page: SlidePage) -> None:
    refusals = [{"retry-after": "1", "content-type": "application/problem+json"}]
    overloaded = json.dumps({"type": "/problems/overloaded", "title": "", "status": 503, "detail": ""})

    def answer(route: Any) -> None:
        if refusals:
            route.fulfill(status=503, headers=refusals.pop(), body=overloaded)
        else:
            route.continue_()

    page.page.route("**/segment", answer)
    page.draw_box(BOX)
    assert page.page.is_enabled("#next")
    page.page.click("#next")
    page.page.wait_for_selector("#objects li[aria-selected=false]")
    assert refusals == []
    assert page.page.locator("#message").is_hidden()
    headers = {"content-type": "application/problem+json"}
    page.page.route("**/v1/info", lambda route: route.fulfill(status=503, headers=headers, body=overloaded))
    page.look()
    page.page.wait_for_selector("#status[data-state=refusing]:has-text('cannot answer now')")


def test_a_service_that_went_away_is_noticed_and_gone_on_with(page: SlidePage) -> None:
    page.answer_of(lambda: page.draw_box(BOX))
    page.context.set_offline(True)
    page.look()
    page.page.wait_for_selector("#status[data-state=away]")
    page.draw_box(BOX)
    page.page.wait_for_selector("#message[role=alert]")
    page.context.set_offline(False)
    with page.page.expect_response(lambda response: response.url.endswith("info.json") and response.ok):
        page.look()
    page.page.wait_for_selector("#message", state="hidden")
    page.wait()
    page.answer_of(lambda: page.draw_box(BOX))
    assert len(page.rows()) == 2


def test_slides_that_come_go_wrong_and_are_replaced(
    browser: Any, tmp_path: Path, tissue: npt.NDArray[np.uint8]
) -> None:
    settings = Settings(slides=(str(tmp_path),))
    with serving(create_app(settings, Catalogue(settings.slides), NumpyExecutor())) as url:
        page = SlidePage(browser, url, "", (256, 256))
        page.page.wait_for_selector("#nothing")
        assert "wsisam serve --slides" in page.page.inner_text("#nothing")
        assert serious_findings(page.page) == []

        Image.fromarray(tissue).save(tmp_path / "a.png")
        write_pyramid(tmp_path / "whole.tif", tissue, 0.5)
        (tmp_path / "b.tif").write_bytes((tmp_path / "whole.tif").read_bytes()[:100_000])
        page.until(
            "#magnification:not(:empty)", lambda: page.page.evaluate("document.querySelector('#look-again').click()")
        )
        assert page.page.inner_text("#scale-bar").endswith("px")  # this one has no pixel size
        page.page.wait_for_selector("#message:has-text('pixel size')")

        page.page.click("#slides a:has-text('b.tif')")
        page.page.wait_for_selector("#message[role=alert]:has-text('cannot be read')")

        page.page.click("#slides a:has-text('a.png')")
        page.page.wait_for_function("() => document.title.startsWith('a.png')")
        Image.fromarray(tissue[:300]).save(tmp_path / "a.png")
        page.until("#message[role=alert]:has-text('replaced')", page.look)
        page.context.close()


QUPATH_FILE = [
    {
        "type": "Feature",
        "geometry": {
            "type": "Polygon",
            "coordinates": [
                [[10, 10], [90, 10], [90, 90], [10, 90], [10, 10]],
                [[40, 40], [60, 40], [60, 60], [40, 40]],
            ],
        },
        "properties": {
            "objectType": "annotation",
            "classification": {"names": ["Tumor", "Positive"], "color": [9, 8, 7]},
        },
    },
    {
        "type": "Feature",
        "geometry": {
            "type": "MultiPolygon",
            "coordinates": [
                [[[100, 100], [120, 100], [120, 120], [100, 100]]],
                [[[200, 200], [220, 200], [220, 220], [200, 200]]],
            ],
        },
        "properties": {"objectType": "detection", "classification": "Odd", "name": "Two parts"},
    },
    {"type": "Feature", "geometry": {"type": "Point", "coordinates": [5, 5]}, "properties": None},
    {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": {"x": [1]}}, "properties": {}},
]


def test_files_of_qupath_are_imported_and_others_refused(page: SlidePage) -> None:
    said = page.page.locator("#message")

    def imported(document: Any) -> str:
        page.page.click("#message-close", force=True) if said.is_visible() else None
        buffer = document if isinstance(document, bytes) else json.dumps(document).encode()
        page.page.set_input_files("#import-file", {"name": "a.geojson", "mimeType": "", "buffer": buffer})
        said.wait_for()
        return str(said.inner_text())

    assert "Imported 2 objects, left out 2" in imported(QUPATH_FILE)
    first, second = json.loads(page.export("#export-geojson").read_text())["features"]
    assert first["geometry"] == QUPATH_FILE[0]["geometry"]
    assert first["properties"]["classification"] == {"name": "Tumor: Positive", "color": [9, 8, 7]}
    assert second["geometry"] == QUPATH_FILE[1]["geometry"]
    assert second["properties"]["name"] == "Two parts"
    far = {"type": "Polygon", "coordinates": [[[9000, 9000], [9001, 9000], [9001, 9001], [9000, 9000]]]}
    assert "another slide" in imported(
        {"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": far}]}
    )
    assert "not JSON" in imported(b"<xml>")
    assert "no GeoJSON features" in imported({"type": "FeatureCollection", "features": []})
    assert len(page.rows()) == 3
    assert page.complaints == []


def test_objects_that_overlap_are_filled_there_too(page: SlidePage) -> None:
    shapes = [
        {"type": "Polygon", "coordinates": [[[x, 150], [x + 200, 150], [x + 200, 350], [x, 350], [x, 150]]]}
        for x in (100, 200)
    ]
    file = json.dumps([{"type": "Feature", "geometry": shape} for shape in shapes])
    page.page.set_input_files("#import-file", {"name": "a.geojson", "mimeType": "", "buffer": file.encode()})
    for x in (150, 250, 350):  # the first, both, the second
        page.page.wait_for_function(IS_DRAWN, arg=page.in_viewer((x, 250)))


def test_two_tabs_show_the_same_objects(page: SlidePage) -> None:
    page.answer_of(lambda: page.draw_box(BOX))
    other = page.context.new_page()
    other.goto(page.page.url)
    other.wait_for_selector("#objects li")
    other.click("#objects li")
    page.answer_of(lambda: page.draw_box((330, 300, 450, 420)))
    other.wait_for_selector("#objects li >> nth=1")
    assert other.locator("#objects li").first.get_attribute("aria-selected") == "true"
    other.keyboard.press("Delete")
    page.page.wait_for_function("() => document.querySelectorAll('#objects li').length === 1")


def test_undo_goes_back_over_objects_and_classes(page: SlidePage) -> None:
    page.page.keyboard.press("1")
    page.answer_of(lambda: page.draw_box(BOX))
    page.answer_of(lambda: page.draw_box((330, 300, 450, 420)))
    page.page.keyboard.press("2")
    page.page.click("#class-remove")
    assert page.page.locator("#classes button:has-text('Stroma')").count() == 0
    assert ["Tumor" in row for row in page.rows()] == [True, False]
    for _ in range(3):  # the class removed, the class chosen, the second object
        page.page.keyboard.press("Control+z")
    (row,) = page.rows()
    assert "Object 1" in row
    page.page.keyboard.press("Control+z")
    assert page.rows() == []
    assert page.page.locator("#undo").is_disabled()
    for _ in range(4):
        page.page.keyboard.press("Control+Shift+Z")
    assert len(page.rows()) == 2


def test_a_class_that_was_removed_comes_back_with_its_objects(page: SlidePage) -> None:
    buttons = page.page.locator("#classes button")
    before = buttons.all_text_contents()
    page.page.keyboard.press("1")
    page.answer_of(lambda: page.draw_box(BOX))
    page.page.click("#class-remove")
    assert buttons.all_text_contents() == [name for name in before if name != "Tumor"]
    page.page.keyboard.press("Control+z")
    assert buttons.all_text_contents() == before
    assert page.page.get_attribute("#classes [aria-pressed=true]", "data-class") == "Tumor"
    (feature,) = json.loads(page.export("#export-geojson").read_text())["features"]
    assert feature["properties"]["classification"] == {"name": "Tumor", "color": [0xD5, 0x5E, 0x00]}


def test_a_class_removed_in_another_tab_is_given_no_more(page: SlidePage) -> None:
    page.page.keyboard.press("1")
    other = page.context.new_page()
    other.goto(page.page.url)
    other.click("#classes [data-class=Tumor]")
    other.click("#class-remove")
    page.page.wait_for_selector("#classes [data-class=Tumor]", state="detached")
    page.answer_of(lambda: page.draw_box(BOX))
    assert page.page.get_attribute("#classes [aria-pressed=true]", "data-class") == ""
    assert "Tumor" not in page.rows()[0]


HAS_FRAME = """([x, y]) => {
  const pixels = document.querySelector(".overlay").getContext("2d").getImageData(x - 2, y - 10, 5, 21).data;
  const isViolet = (red, green, blue, alpha) => red > green + 15 && blue > red + 40 && alpha > 100;
  for (let at = 0; at < pixels.length; at += 4) if (isViolet(...pixels.slice(at, at + 4))) return true;
  return false;
}"""


def test_what_the_network_saw_is_framed(page: SlidePage) -> None:
    page.page.keyboard.press("f")
    _, answer = page.answer_of(lambda: page.draw_box(BOX))
    (result,) = answer["results"]
    assert result["cache"]["lr"] is not None
    x, y, width, height = (result["view"][name] for name in ("x", "y", "width", "height"))
    for edge in (x, x - width / 2):
        page.page.wait_for_function(HAS_FRAME, arg=page.in_viewer((edge, y + height / 2)))
    assert not page.page.evaluate(HAS_FRAME, page.in_viewer((x - width / 4, y + height / 2)))


def test_single_letters_can_be_left_to_the_slide(page: SlidePage) -> None:
    page.page.click("#show-help")
    page.page.uncheck("#letters")
    page.page.keyboard.press("Escape")
    page.page.focus("#show-help")
    page.page.keyboard.press("v")
    assert page.page.get_attribute("#tool-box", "aria-pressed") == "true"
    page.page.focus(CANVAS)
    page.page.keyboard.press("v")
    assert page.page.get_attribute("#tool-move", "aria-pressed") == "true"


def test_the_link_leads_back_to_the_place(page: SlidePage, browser: Any) -> None:
    page.page.keyboard.press("v")
    page.page.mouse.move(*page.screen((256, 256)))
    page.page.mouse.down()
    page.page.mouse.move(*page.screen((286, 276)), steps=5)
    page.page.wait_for_timeout(300)  # a drag that ends at rest is no flick
    page.page.mouse.up()
    page.page.wait_for_function("() => location.hash.includes('x=226') && location.hash.includes('y=236')")
    again = browser.new_page()
    again.goto(page.page.url)
    again.wait_for_selector("#magnification:not(:empty)")
    again.wait_for_function("address => location.href === address", arg=page.page.url)
    again.close()


def test_objects_stay_with_their_slide(page: SlidePage) -> None:
    page.answer_of(lambda: page.draw_box(BOX))
    page.page.click("#slides a:has-text('tissue2')")
    page.page.wait_for_selector("#slides a[aria-current]:has-text('tissue2')")
    assert page.rows() == []
    page.page.click("#slides a:has-text('tissue.ome')")
    page.page.wait_for_selector("#slides a[aria-current]:has-text('tissue.ome')")
    assert len(page.rows()) == 1


def test_a_box_half_drawn_by_keyboard_stays_behind_with_its_slide(page: SlidePage) -> None:
    asked: list[Any] = []
    page.page.on("request", lambda request: request.url.endswith("/segment") and asked.append(request))
    keyboard = page.page.keyboard
    page.page.focus(CANVAS)
    for key in ("b", "Shift+ArrowLeft", " ", "Shift+ArrowDown", "Shift+ArrowRight"):
        keyboard.press(key)
    page.page.focus("#slides a:has-text('tissue2')")
    keyboard.press("Enter")
    page.page.wait_for_function("() => document.title.startsWith('tissue2')")
    page.page.focus(CANVAS)
    keyboard.press(" ")  # no second corner to anything
    page.answer_of(lambda: page.draw_box(BOX))
    assert len(asked) == 1


def test_a_slide_that_does_not_open_leaves_the_present_one_in_hand(page: SlidePage) -> None:
    page.page.route("**/iiif/info.json", lambda route: route.abort())
    page.page.click("#slides a:has-text('tissue2')")
    page.page.wait_for_selector("#message[role=alert]")
    page.answer_of(lambda: page.draw_box(BOX))
    page.page.click("#slides a:has-text('tissue2')")
    page.page.wait_for_selector("#message[role=alert]")
    page.page.unroute("**/iiif/info.json")
    page.page.click("#slides a:has-text('tissue2')")
    page.page.wait_for_selector("#slides a[aria-current]:has-text('tissue2')")
    page.open_kept()
    assert len(page.rows()) == 1


def test_nothing_is_asked_of_other_hosts_and_no_policy_is_broken(page: SlidePage, url: str) -> None:
    page.answer_of(lambda: page.draw_box(BOX))
    page.page.click("#status summary")
    assert page.hosts == {url.split("/")[2]}
    assert page.complaints == []
    policy = httpx.get(url).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


@pytest.fixture
def key() -> str:
    return new_key()


@pytest.fixture
def guarded(app: Any, key: str, tmp_path: Path) -> Any:
    """The application, for those who have `key`."""
    append_key(tmp_path / "keys.toml", StoredKey(name="me", role=Role.ANNOTATOR, sha256=hash_of(key)))
    settings = app.state.services.settings.model_copy(update={"keys": tmp_path / "keys.toml"})
    return create_app(settings, Catalogue(settings.slides), NumpyExecutor())


def test_behind_a_path_prefix_and_with_an_access_key(browser: Any, guarded: Any, key: str) -> None:
    with serving(Starlette(routes=[Mount("/pathology/wsi", app=guarded)])) as address:
        answer = httpx.get(f"{address}pathology/wsi/v1/slides", headers={"authorization": f"Bearer {key}"})
        page = SlidePage(browser, f"{address}pathology/wsi/", answer.json()["slides"][0]["id"], (256, 256))
        tiles: list[Any] = []
        page.page.on("response", lambda response: "/default.jpg" in response.url and tiles.append(response))
        page.page.fill("#access-key", f"{key[:8]}…")
        page.page.click("#access-form .primary")
        page.page.wait_for_selector("#access-reason:has-text('cannot be a key')")
        page.page.fill("#access-key", new_key())
        page.page.click("#access-form .primary")
        page.page.wait_for_selector("#access-reason:has-text('does not accept')")
        assert serious_findings(page.page) == []
        page.page.fill("#access-key", key)
        page.page.click("#access-form .primary")
        page.wait()
        page.page.wait_for_function("() => [...document.images].every(image => image.complete && image.naturalWidth)")
        page.answer_of(lambda: page.draw_box(BOX))
        assert len(page.rows()) == 1
        assert tiles
        assert {tile.status for tile in tiles} == {200}
        assert key not in page.page.evaluate("JSON.stringify(localStorage)")
        page.page.click("#status summary")
        page.page.click("#show-access")
        page.page.click("#access-forget")
        page.page.wait_for_selector("#access-reason:has-text('who you are')")
        page.context.close()


def test_a_key_that_has_run_out_is_asked_with_no_more(browser: Any, guarded: Any, slide_id: str, key: str) -> None:
    with serving(guarded) as address:
        page = SlidePage(browser, address, slide_id, (256, 256))
        page.page.fill("#access-key", key)
        page.page.click("#access-form .primary")
        page.wait()
        wrong: list[str] = []

        def note(request: Any) -> None:
            if request.headers.get("authorization") == "Bearer run-out":
                wrong.append(request.url)

        page.page.on("request", note)
        page.page.evaluate("sessionStorage.setItem('wsisam:access-key', 'run-out')")
        with page.page.expect_response("**/v1/slides/*"):
            page.look()
        page.page.wait_for_selector("#status[data-state=guarded]:has-text('Access key needed')")
        asked = list(wrong)
        for _ in range(3):
            page.look()
        page.page.click("#slides a:has-text('tissue2')")
        page.page.wait_for_selector("#access-reason:has-text('does not accept')")
        page.page.fill("#access-key", key)
        page.page.click("#access-form .primary")
        page.page.wait_for_selector("#status[data-state=ready]")
        assert wrong == asked
        page.context.close()


def test_the_page_is_small() -> None:
    require_page()
    assert sum(len(file.compressed) for file in read_page(PAGE_FOLDER).values()) < MAX_COMPRESSED_BYTES


def test_without_the_built_page_the_root_says_how_to_get_it(tmp_path: Path) -> None:
    from fastapi import FastAPI
    from starlette.testclient import TestClient

    from wsisam_service.api import page

    app = FastAPI()
    page.install(app, tmp_path)
    answer = TestClient(app).get("/")
    assert (answer.status_code, "make page" in answer.text) == (200, True)


def test_the_modules_of_the_page() -> None:
    require_page()
    if shutil.which("npm") is None:
        pytest.skip("needs npm")
    assert subprocess.run(["npm", "--silent", "test"], cwd=REPOSITORY / "web", check=False).returncode == 0


def test_the_pages_types_are_those_of_the_api() -> None:
    check = [sys.executable, str(REPOSITORY / "web/openapi.py"), "--check"]
    assert subprocess.run(check, check=False).returncode == 0, "run web/openapi.py and `npm run types` in web/"
