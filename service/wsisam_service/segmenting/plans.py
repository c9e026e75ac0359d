"""Plans of a request: the view each prompt is decoded on, when a coarser one is worth a try, and where masks lie."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from wsisam_model.config import ModelConfig
from wsisam_model.point_box import may_be_wider, worth_a_wider_look
from wsisam_service.errors import RefineExpired, ServiceError
from wsisam_service.jobs import DecodeResult
from wsisam_service.masks import rle
from wsisam_service.masks.border import bounds_of
from wsisam_service.masks.geojson import Classification, Placement, checked_classification
from wsisam_service.segmenting.prompts import PromptSpec, RequestFrame, Target, check_inside, judge, plan_view
from wsisam_service.segmenting.tokens import RefineToken, TokenSigner
from wsisam_service.slides.slide import Slide
from wsisam_service.views import MAX_OUTSIDE, Box, View

Borders = tuple[bool, bool, bool, bool]
"""Left, top, right, bottom."""


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A judged prompt and the HR view to decode it on. `earlier` is the answer that it corrects. `wider` plans come
    after an answer on a finer view.
    """

    spec: PromptSpec
    target: Target
    view: View
    classification: Classification
    earlier: RefineToken | None
    wider: bool = False

    @property
    def guesses(self) -> bool:
        """Whether the prompt is clicks which may mean more than the view shows, or a second look at such."""
        extent = self.target.extent()
        if self.earlier is not None or not self.target.clicks or extent is None:
            return False
        side = max(extent[2] - extent[0], extent[3] - extent[1]) / self.view.size_level0
        return self.wider or may_be_wider(side, self.target.clicks)

    def on_wider_view(self) -> Plan:
        return replace(self, view=self.view.coarser(), wider=True)


@dataclass(frozen=True, slots=True, eq=False)
class Planner:
    """The geometry of one request: a slide, a model, the pixel size in use, and the client's frame and wishes."""

    slide: Slide
    config: ModelConfig
    slide_mpp: float
    frame: RequestFrame
    mpp: float | None
    signer: TokenSigner

    @property
    def size(self) -> tuple[int, int]:
        return self.slide.width, self.slide.height

    def try_plan(self, spec: PromptSpec) -> Plan | Exception:
        """The plan of a prompt, or what is wrong with it."""
        try:
            return self.plan(spec)
        except ServiceError as error:
            return error

    def plan(self, spec: PromptSpec) -> Plan:
        """Raises what `judge` and `plan_view` raise, `RefineExpired`, and `InvalidRequest` for a bad class."""
        classification = checked_classification(spec.classification)
        target = judge(spec, self.frame, self.size)
        if spec.refine is None:
            view = plan_view(target, self.size, self.slide_mpp, self.config, mpp=self.mpp)
            return Plan(spec, target, view, classification, None)
        earlier = self.signer.verify(spec.refine)
        if earlier.model != self.config.name or earlier.fingerprint != self.slide.fingerprint:
            raise RefineExpired("the refine token is of another slide or model")
        check_inside(target, earlier.view)
        return Plan(spec, target, earlier.view, classification, earlier)

    def is_cut(self, view: View, touches: Borders) -> bool:
        """Whether a mask that touches these borders of `view` goes on: there is slide beyond one of them."""
        return any(inner and there for inner, there in zip(view.inner_borders(*self.size), touches, strict=True))

    def deserves_a_wider_view(self, plan: Plan, result: DecodeResult) -> bool:
        """Whether to decode again on a wider view: a mask that is cut, or what clicks led to where that may be a
        part of something larger, unless the request names its pixel size. A correction stays on its own view, whose
        logits it continues.
        """
        if plan.earlier is not None:
            return False
        cut = self.is_cut(plan.view, result.touches)
        stability = None if plan.wider or self.mpp is not None else result.masks[0].stability
        if not (cut if stability is None else worth_a_wider_look(stability, cut)):
            return False
        return plan.view.coarser().outside_fraction(*self.size) <= MAX_OUTSIDE

    def placement(self, view: View) -> Placement:
        """From pixels of `view` to pixels of the client's frame."""
        x, y = view.origin_level0
        return Placement(view.scale, x - self.frame.x, y - self.frame.y)

    def bbox(self, mask: rle.Mask, view: View) -> Box | None:
        """The bounding box of a mask of `view` in pixels of the client's frame, None where it is empty."""
        bounds = bounds_of(mask)
        if bounds is None:
            return None
        (x0, y0), (x1, y1) = self.placement(view)(np.array(bounds, np.float64).reshape(2, 2)).tolist()
        return x0, y0, x1, y1
