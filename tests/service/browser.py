"""Chromium on the service's page, and applications on real sockets for it."""

from __future__ import annotations

import contextlib
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from wsisam_service.api.page import INDEX, PAGE_FOLDER

AXE = Path(__file__).resolve().parents[2] / "web/node_modules/axe-core/axe.min.js"
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_MS = 120_000
"""A first encode on a busy machine takes a while."""


def require_page() -> None:
    """Skips where the page cannot be built; where it could have been, its absence is a fault."""
    if (PAGE_FOLDER / INDEX).is_file():
        return
    if shutil.which("npm") is None:
        pytest.skip("the page is not built: npm is missing")
    pytest.fail("the page is not built: run `make page`")


@contextmanager
def chromium() -> Iterator[Any]:
    """A Playwright browser; skips where Chromium is missing."""
    require_page()
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("needs Chromium (apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """`app` on a free port of loopback: its address, with a last slash."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, http="h11", log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()


class SlidePage:
    """The page with one slide open at one screen pixel per slide pixel; positions are level-0 pixels.

    `complaints` are errors of the page's script and of its Content-Security-Policy; `hosts` whom it asked.
    """

    def __init__(self, browser: Any, url: str, slide_id: str, center: tuple[float, float], **options: Any) -> None:
        self.center = center
        self.complaints: list[str] = []
        self.hosts: set[str] = set()
        options.setdefault("viewport", {"width": 1280, "height": 720})
        self.context = browser.new_context(accept_downloads=True, **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._console)
        self.page.on("request", lambda request: self.hosts.add(request.url.split("/")[2] or "blob"))
        self._elsewhere = f"{url}healthz"
        self._timeout = pytest.importorskip("playwright.sync_api").TimeoutError
        self.address = f"{url}#slide={slide_id}&x={center[0]}&y={center[1]}&zoom=1"
        self.page.goto(self.address)

    def wait(self) -> None:
        """Until the slide is on the screen."""
        self.page.wait_for_selector("#magnification:not(:empty)")
        self.page.wait_for_function("() => location.hash.includes('zoom=1')")

    def open_kept(self) -> None:
        """Leave the page and come back to the slide and place that it began with."""
        self.page.goto(self._elsewhere)
        self.page.goto(self.address)
        self.wait()

    def open_forgotten(self) -> None:
        """Open the page anew with nothing kept. Forgetting waits until the page is left: it keeps as it goes."""
        self.page.goto(self._elsewhere)
        self.page.evaluate("localStorage.clear()")
        self.page.goto(self.address)
        self.wait()

    def in_viewer(self, position: tuple[float, float]) -> tuple[float, float]:
        """Screen pixels from the viewer's corner."""
        viewer = self.page.locator("#viewer").bounding_box()
        x = viewer["width"] / 2 + position[0] - self.center[0]
        return x, viewer["height"] / 2 + position[1] - self.center[1]

    def screen(self, position: tuple[float, float]) -> tuple[float, float]:
        """Screen pixels from the window's corner."""
        viewer = self.page.locator("#viewer").bounding_box()
        x, y = self.in_viewer(position)
        return viewer["x"] + x, viewer["y"] + y

    def look(self) -> None:
        """What the page does every few seconds and when one comes back to it, now: see to the service and the slide."""
        self.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")

    def until(self, selector: str, act: Callable[[], object]) -> None:
        """`act` again and again until there is an element; for what the service notices after a while."""
        for _ in range(PATIENCE_MS // 1000):
            act()
            with contextlib.suppress(self._timeout):
                self.page.wait_for_selector(selector, timeout=1000)
                return
        pytest.fail(f"no {selector}")

    def draw_box(self, box: tuple[float, float, float, float]) -> None:
        mouse = self.page.mouse
        mouse.move(*self.screen(box[:2]))
        mouse.down()
        mouse.move(*self.screen(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)), steps=4)
        mouse.move(*self.screen(box[2:]), steps=4)
        mouse.up()

    def click(self, position: tuple[float, float], **options: Any) -> None:
        self.page.mouse.click(*self.screen(position), **options)

    def answer_of(self, act: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Body and answer of the segment request that `act` leads to, once the page has drawn it."""
        with self.page.expect_response(lambda response: response.url.endswith("/segment")) as waiting:
            act()
        response = waiting.value
        self.page.wait_for_selector("#card[aria-busy=false]", state="attached")
        return response.request.post_data_json, response.json()

    def export(self, button: str) -> Path:
        self.page.click("#export-menu summary")
        with self.page.expect_download() as waiting:
            self.page.click(button)
        return Path(waiting.value.path())

    def rows(self) -> list[str]:
        """Texts of the list of objects, also of rows that are scrolled away, which have no inner text."""
        return [text.strip() for text in self.page.locator("#objects li").all_text_contents()]

    def _console(self, message: Any) -> None:
        if message.type == "error" or "Content Security Policy" in message.text:
            self.complaints.append(message.text)
