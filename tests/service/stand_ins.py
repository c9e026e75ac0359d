"""Stand-ins for the executor, so that whole requests run without a network."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wsisam_model.config import MODELS
from wsisam_model.prompts import Prompt
from wsisam_service.errors import RefineExpired
from wsisam_service.jobs import (
    DEFAULT_ADAPTERS,
    CacheTier,
    DecodedMask,
    DecodeJob,
    DecodeResult,
    PixelSource,
    Purges,
    Timings,
)
from wsisam_service.masks import rle

CLICK_RADIUS = 12.0
"""View pixels around a click that belong to its object."""


@dataclass
class NumpyExecutor:
    """An executor whose "network" outlines the ellipse in a box, and a disc around each click without a box.

    `hold`, where set, keeps every decode waiting; `cancelled` counts decodes that were dropped while they waited.
    """

    model: str = "lite_medsam"
    hold: asyncio.Event | None = None
    warm: bool = False
    broken: bool = False
    waiting: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: int = 0
    views: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    refinable: dict[str, Prompt] = field(default_factory=dict)
    given: dict[str, DecodeResult] = field(default_factory=dict)
    own_adapters: list[dict[str, Any]] = field(default_factory=list)
    """Facts of adapters beside the usual ones; the first draw every object of which a point tells."""

    async def decode(
        self, jobs: Sequence[DecodeJob], pixels: PixelSource, timings: Timings
    ) -> list[DecodeResult | Exception]:
        if self.hold:
            self.waiting.set()
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        results: list[DecodeResult | Exception] = []
        for job in jobs:
            try:
                results.append(await self._decode(job, pixels))
            except Exception as error:
                results.append(error)
        for stage in ("queue", "encode", "decode"):
            timings.add(stage, 0.001)
        return results

    async def encode(self, views: Sequence[str], pixels: PixelSource, timings: Timings) -> Mapping[str, CacheTier]:
        return {key: await self._fetch(key, pixels) for key in views}

    async def missing(self, views: Sequence[str]) -> list[str]:
        return [key for key in views if key not in self.views]

    async def purge(self, fingerprint: str) -> int:
        gone = [key for key in self.views if fingerprint in key.split(":")]
        for key in gone:
            del self.views[key]
        return len(gone)

    async def purges(self, since: str | None) -> Purges | None:
        return None

    async def info(self) -> Mapping[str, Any]:
        config = MODELS[self.model]
        model = {
            "name": config.name,
            "key_prefix": f"{config.name}:000000000000:1",
            "image_size": config.image_size,
            "trained_prompts": sorted(config.trained_prompts),
            "multimask": config.multimask,
            "default_mpp": config.default_mpp,
            "point_mpp": config.point_mpp,
            "adapters": {"name": "numpy", "sha256": "0" * 64, "licence": "CC0-1.0", "trained_prompts": []},
            "own_adapters": self.own_adapters,
        }
        return {"models": [model], "device": "cpu", "precision": "float32", "engine": "numpy", "warnings": []}

    async def ready(self) -> bool:
        return self.warm

    async def healthy(self) -> bool:
        return not self.broken

    async def warm_up(self) -> None:
        self.warm = True

    async def aclose(self) -> None:
        self.warm = False

    async def _fetch(self, key: str, pixels: PixelSource) -> CacheTier:
        if key in self.views:
            return "l1"
        self.views[key] = await pixels(key)
        return "encoded"

    async def _decode(self, job: DecodeJob, pixels: PixelSource) -> DecodeResult:
        if job.recall:
            if job.refine_from not in self.given:
                raise RefineExpired("the earlier answer is gone")
            return self.given[job.refine_from]
        side = MODELS[self.model].image_size
        keys = [key for key in (job.hr, job.lr) if key is not None]
        found = await asyncio.gather(*(self._fetch(key, pixels) for key in keys), return_exceptions=True)
        tiers = [_raised(one) for one in found]
        cache_hr, cache_lr = tiers[0], tiers[1] if job.lr else None
        prompt = self._with_earlier(job)
        mask = _ellipse(prompt.box, side) if prompt.box else _discs(prompt, side)
        refine_id = f"r{len(self.refinable)}"
        self.refinable[refine_id] = prompt
        touches = bool(mask[:, 0].any()), bool(mask[0].any()), bool(mask[:, -1].any()), bool(mask[-1].any())
        masks = [DecodedMask(rle.encode(mask), 0.9 - 0.1 * rank) for rank in range(3 if job.multimask else 1)]
        lr_mask = rle.encode(mask) if job.lr_mask and job.lr else None
        result = DecodeResult(masks, touches, lr_mask, refine_id, cache_hr, cache_lr, self._drawn_by(job))
        self.given[refine_id] = result
        return result

    def _drawn_by(self, job: DecodeJob) -> str:
        if job.adapters != DEFAULT_ADAPTERS:
            return job.adapters
        return str(self.own_adapters[0]["name"]) if self.own_adapters and job.prompt.points else "numpy"

    def _with_earlier(self, job: DecodeJob) -> Prompt:
        if job.refine_from is None:
            return job.prompt
        try:
            earlier = self.refinable[job.refine_from]
        except KeyError:
            raise RefineExpired("the earlier answer is gone") from None
        points, labels = earlier.points + job.prompt.points, earlier.labels + job.prompt.labels
        return Prompt(job.prompt.box or earlier.box, points, labels)


def _raised(found: CacheTier | BaseException) -> CacheTier:
    if isinstance(found, BaseException):
        raise found
    return found


def _ellipse(box: tuple[float, float, float, float], side: int) -> np.ndarray[Any, Any]:
    y, x = np.mgrid[:side, :side]
    x0, y0, x1, y1 = box
    inside = ((x - (x0 + x1) / 2) / ((x1 - x0) / 2)) ** 2 + ((y - (y0 + y1) / 2) / ((y1 - y0) / 2)) ** 2
    return np.asarray(inside <= 1, np.uint8)


def _discs(prompt: Prompt, side: int) -> np.ndarray[Any, Any]:
    y, x = np.mgrid[:side, :side]
    mask = np.zeros((side, side), np.uint8)
    for (px, py), label in zip(prompt.points, prompt.labels, strict=True):
        mask[np.hypot(x - px, y - py) <= CLICK_RADIUS] = label
    return mask
