"""Clicks from many connections on a cluster, each answer compared with the one that a single process gives."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

Box = tuple[float, float, float, float]

GRID_PX = 64
"""Level-0 pixels between view centres, for views of 256 pixels at the slide's own 0.5 µm."""
BOX_SIDES = (96.0, 112.0)
"""Boxes on one view differ in size; each is between a quarter and half of the view."""
COMPARED = ("mask", "view", "bbox", "area_um2", "predicted_iou", "touches_edge")


def boxes_of_views(count: int, side: int) -> list[Box]:
    """Boxes on `count` different views of a slide with `side` pixels at 0.5 µm, `len(BOX_SIDES)` for each view."""
    per_row = (side - 512) // GRID_PX + 1
    assert count <= per_row**2
    centres = [(256 + GRID_PX * (i % per_row), 256 + GRID_PX * (i // per_row)) for i in range(count)]
    return [(x - s / 2, y - s / 2, x + s / 2, y + s / 2) for x, y in centres for s in BOX_SIDES]


@dataclass(frozen=True, slots=True)
class Click:
    """One click: when it began, how long it took, and what was wrong with its answer, if anything."""

    began: float
    seconds: float
    problem: str | None = None
    attempts: int = 1

    @property
    def ended(self) -> float:
        return self.began + self.seconds


@dataclass
class Load:
    """What has been clicked; `problems` are answers that were wrong or none."""

    clicks: list[Click] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        return [click.problem for click in self.clicks if click.problem]

    def quantile(self, q: float, since: float = -math.inf, until: float = math.inf) -> float:
        """Of the seconds of clicks that began between `since` and `until`."""
        seconds = sorted(click.seconds for click in self.clicks if since <= click.began < until)
        return seconds[min(len(seconds) - 1, int(q * len(seconds)))]

    def recovery_s(self, event: float, slow_s: float) -> float:
        """From `event` to the end of the last click that took longer than `slow_s`; 0 where none did."""
        slow = [click.ended for click in self.clicks if click.ended > event and click.seconds > slow_s]
        return max(slow, default=event) - event


async def expected_answers(url: str, boxes: Sequence[Box]) -> dict[Box, Mapping[str, Any]]:
    """What the service at `url` answers to each box, as far as it must not depend on who answers."""
    async with httpx.AsyncClient(timeout=600) as client:
        path = await _segment_path(client, url)
        answers: dict[Box, Mapping[str, Any]] = {}
        for box in boxes:
            answer = await client.post(url + path, json={"prompts": [{"box": box}]})
            answers[box] = _compared(answer.json()["results"][0])
    return answers


class Clicker:
    """Clicks on random views over `connections` connections, spread over the gateways at `urls`."""

    def __init__(
        self, urls: Sequence[str], expected: Mapping[Box, Mapping[str, Any]], *, connections: int = 24, seed: int = 0
    ) -> None:
        self.urls = list(urls)
        self._expected = expected
        self._boxes = list(expected)
        self._connections = connections
        self._random = random.Random(seed)
        self._path = ""
        self.load = Load()

    async def click(self, count: int, boxes: Sequence[Box] | None = None) -> Load:
        """`count` clicks: on `boxes` one after the other, or on random ones."""
        chosen = iter(boxes or [self._random.choice(self._boxes) for _ in range(count)])
        await self._run(chosen)
        return self.load

    @asynccontextmanager
    async def clicking(self, warm_up_s: float = 1.0) -> AsyncIterator[Load]:
        """Clicks without end while the body runs; `warm_up_s` before it and after it."""
        stop = False

        def endless() -> Any:
            while not stop:
                yield self._random.choice(self._boxes)

        running = asyncio.create_task(self._run(endless()))
        try:
            await asyncio.sleep(warm_up_s)
            yield self.load
            await asyncio.sleep(warm_up_s)
        finally:
            stop = True
            await running

    async def _run(self, boxes: Any) -> None:
        limits = httpx.Limits(max_connections=2 * self._connections)
        async with httpx.AsyncClient(timeout=120, limits=limits) as client:
            for url in self.urls:
                if not self._path:
                    self._path = await _segment_path(client, url)

            async def connection(number: int) -> None:
                for box in boxes:
                    self.load.clicks.append(await self._click(client, number, box))

            await asyncio.gather(*(connection(number) for number in range(self._connections)))

    async def _click(self, client: httpx.AsyncClient, number: int, box: Box) -> Click:
        """A click that goes to the other gateway where the first one's connection breaks."""
        began, broken = time.monotonic(), ""
        for attempt in range(len(self.urls)):
            url = self.urls[(number + attempt) % len(self.urls)]
            try:
                answer = await client.post(url + self._path, json={"prompts": [{"box": box}]})
            except httpx.TransportError as error:
                broken = repr(error)
                continue
            problem = self._judge(answer, box)
            return Click(began, time.monotonic() - began, problem, attempt + 1)
        return Click(began, time.monotonic() - began, broken, len(self.urls))

    def _judge(self, answer: httpx.Response, box: Box) -> str | None:
        if not answer.is_success:
            return f"{answer.status_code}: {answer.text[:200]}"
        found = _compared(answer.json()["results"][0])
        return None if found == self._expected[box] else f"another answer to {box}: {found}"


async def _segment_path(client: httpx.AsyncClient, url: str) -> str:
    slides = (await client.get(f"{url}/v1/slides")).json()["slides"]
    return f"/v1/slides/{slides[0]['id']}/segment"


def _compared(result: Mapping[str, Any]) -> Mapping[str, Any]:
    return {name: result.get(name) for name in COMPARED}
