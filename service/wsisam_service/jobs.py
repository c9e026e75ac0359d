"""What passes between gateway and executor: view keys, prompts, pixels and masks. Nothing of a slide's name or path.

The executor has two verbs, encode and decode (DESIGN.md section 2). In one process they are method calls; a worker
serves the same two over HTTP.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from wsisam_model.prompts import Prompt

ViewPixels = npt.NDArray[np.uint8]
"""RGB pixels of a view, uint8 (S, S, 3)."""

PixelSource = Callable[[str], Awaitable[ViewPixels]]
"""Called with a view key when the executor has no embedding of it; reads that view. Raises `PixelsNeeded` where it has
to be asked for elsewhere.
"""

CacheTier = Literal["l1", "memory", "folder", "redis", "encoded"]
"""Where a view's embedding came from; "encoded" means that it had to be computed."""

FIRST_MARK = "0"
"""A mark before all purges that are remembered."""
NO_ADAPTERS = "none"
DEFAULT_ADAPTERS = "default"


class PixelsNeeded(Exception):
    """A job waits for these views to be sent along."""

    def __init__(self, views: tuple[str, ...]) -> None:
        super().__init__(f"{len(views)} views are needed")
        self.views = views


@dataclass(frozen=True, slots=True)
class Rle:
    """A COCO run-length mask: column-major runs, first run background, compressed `counts`; `size` is (h, w)."""

    size: tuple[int, int]
    counts: str


@dataclass(frozen=True, slots=True)
class DecodeJob:
    """One prompt on one pair of views.

    `adapters` are "none", a name, or "default", which leaves it to how the HR view looks. `lr` is None where there is
    no wider view (frozen model alone, or a picture without a slide behind it). `refine_from` names the state of an
    earlier answer whose prompt and logits this one continues. Answers that nobody will correct keep no state where
    `refinable` is False. `stability_offset` (logits) asks for each mask's stability. A job to `recall` decodes nothing:
    its result is the first mask of the very answer that `refine_from` names.
    """

    hr: str
    lr: str | None
    prompt: Prompt
    adapters: str = DEFAULT_ADAPTERS
    multimask: bool = False
    lr_mask: bool = False
    refine_from: str | None = None
    refinable: bool = True
    stability_offset: float | None = None
    recall: bool = False


@dataclass(frozen=True, slots=True)
class DecodedMask:
    """`mask` in view pixels; `predicted_iou` in 0..1 of this very mask, as well as the adapters know it. `stability` is
    the IoU of the masks above +offset and above -offset, where the job asked for it.
    """

    mask: Rle
    predicted_iou: float
    stability: float | None = None


@dataclass(frozen=True, slots=True)
class DecodeResult:
    """`masks` best first: one, or three with multimask. `touches` are the view borders (left, top, right, bottom)
    that the first mask reaches. `refine_id` names the state kept for a later correction, empty where none is.
    `adapters` are those that drew it, "none" for the frozen SAM, empty where nobody says.
    """

    masks: Sequence[DecodedMask]
    touches: tuple[bool, bool, bool, bool]
    lr_mask: Rle | None
    refine_id: str
    cache_hr: CacheTier
    cache_lr: CacheTier | None
    adapters: str


@dataclass(frozen=True, slots=True)
class Purges:
    """Key fingerprints of slides purged after the mark that was asked with; `mark` is the one to ask with next."""

    slides: Sequence[str]
    mark: str


@dataclass(slots=True)
class Timings:
    """Seconds spent on behalf of one request, by stage; filled in while the request runs (`Server-Timing`).

    Stages may overlap each other: one view is read while another is encoded.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    _spans: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def add(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def span(self, stage: str, started: float, ended: float) -> None:
        """Add a stretch of `time.perf_counter`. Where stretches of a stage overlap, as those of items of one batch do,
        the time counts once.
        """
        spans = self._spans.setdefault(stage, [])
        overlapping = [span for span in spans if span[0] < ended and started < span[1]]
        counted = sum(min(ended, end) - max(started, start) for start, end in overlapping)
        self.add(stage, ended - started - counted)
        spans[:] = [span for span in spans if span not in overlapping]
        starts, ends = zip((started, ended), *overlapping, strict=True)
        spans.append((min(starts), max(ends)))


class Executor(Protocol):
    """Owner of the model and the device. Every call is idempotent."""

    async def decode(
        self, jobs: Sequence[DecodeJob], pixels: PixelSource, timings: Timings
    ) -> list[DecodeResult | Exception]:
        """Decode `jobs`, in order. One failed job is an exception in its place and does not fail the others.
        Raises `Overloaded` when the queue is full. Cancelling the call drops what has not started.
        """
        ...

    async def encode(self, views: Sequence[str], pixels: PixelSource, timings: Timings) -> Mapping[str, CacheTier]:
        """Make sure that the embeddings of `views` exist; where each came from. Raises `Overloaded`."""
        ...

    async def missing(self, views: Sequence[str]) -> list[str]:
        """Those of `views` that have no embedding yet, in any tier."""
        ...

    async def purge(self, fingerprint: str) -> int:
        """Forget every view of the slide with this key fingerprint; how many entries went."""
        ...

    async def purges(self, since: str | None) -> Purges | None:
        """What any process that shares the store has purged since that mark, None for from now on: a gateway's own
        caches follow it. None where nobody else purges. Raises `ServiceError`s where that cannot be known now.
        """
        ...

    async def info(self) -> Mapping[str, Any]:
        """Models, adapters, device, precision, engine, as `/v1/info` shows them."""
        ...

    async def ready(self) -> bool:
        """Whether the model is loaded and warm."""
        ...

    async def healthy(self) -> bool:
        """Whether it is ready or may become so; False once only a new process helps, as with a broken device."""
        ...

    async def warm_up(self) -> None:
        """Make everything that a first call would otherwise wait for; `ready` from then on."""
        ...

    async def aclose(self) -> None:
        """Finish what runs, refuse what waits, let go of device and threads."""
        ...
