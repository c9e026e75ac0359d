"""A model is called as clicks will call it, so that the first of them waits for nothing but its own work."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from wsisam_model.prompts import Prompt
from wsisam_service.execution.backend import AdapterFacts, Backend, Decoded, DecodeItem, E, V, all_adapters
from wsisam_service.execution.batcher import Batcher, DeviceQueue
from wsisam_service.execution.device_cache import ReadyView
from wsisam_service.jobs import ViewPixels

T = TypeVar("T")
R = TypeVar("R")

CAPTURED_SIZES = (32, 16, 8, 4, 2, 1)
"""Items of the calls that capture graphs before the first click: up to a lone click of each of 16 clients, which is
decoded in two readings. The largest first, whose memory the others share; every queue takes the last.
"""


async def make_warm(
    backend: Backend[E, V],
    batcher: Batcher,
    *,
    encodes: DeviceQueue[ViewPixels, tuple[E, ReadyView[V]]],
    decodes: DeviceQueue[DecodeItem[V], Decoded],
) -> None:
    """Encode a view and decode a box with a model and each of its adapters, so that the first click finds everything
    allocated; where graphs are captured, also as many at once as several clients ask for.
    """
    model, side = backend.config.name, backend.config.image_size
    sizes = CAPTURED_SIZES if backend.captures_graphs else (1,)
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    _, ready = await _called_with(batcher, encodes, model, image, sizes)
    box = Prompt(box=(side * 0.25, side * 0.25, side * 0.75, side * 0.75))
    sets: list[AdapterFacts | None] = [*all_adapters(backend)] or [None]
    for adapters in sets:
        lr = ready.view if adapters is not None and adapters.uses_lr else None
        called = None if adapters is None else adapters.name
        await _called_with(batcher, decodes, model, DecodeItem(ready.view, lr, box, adapters=called), sizes)
    for queue in (encodes, decodes):
        queue.seconds_per_item = 0.0  # the first call is no measure of those to come


async def _called_with(batcher: Batcher, queue: DeviceQueue[T, R], model: str, item: T, sizes: Sequence[int]) -> R:
    """The result of `item`, after calls with as many of it as those of `sizes` that the queue takes at once."""
    for size in sizes:
        if size <= queue.max_batch:
            first, *others = batcher.submit(queue, model, [item] * size)
            await asyncio.gather(*map(asyncio.wrap_future, others))
            result = (await asyncio.wrap_future(first)).result
    return result
