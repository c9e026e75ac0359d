"""Prewarming means exactly the views that prompts will use."""

from __future__ import annotations

import numpy as np
import pytest

from wsisam_model.config import model_config
from wsisam_service.errors import EmptyPrompt, InvalidNumber
from wsisam_service.segmenting.prewarm import MAX_VIEWS, PrewarmRequest, views_to_prewarm
from wsisam_service.segmenting.prompts import PromptSpec, judge, plan_view, request_frame
from wsisam_service.slides.reader import Level, SlideInfo, SlideReader
from wsisam_service.slides.slide import Slide
from wsisam_service.views import View

CONFIG = model_config("lite_medsam")
WIDTH, HEIGHT, MPP = 12_000, 9_000, 0.37


def no_reader() -> SlideReader:
    raise AssertionError("planning reads nothing")


def slide(bounds: tuple[int, int, int, int] | None = None) -> Slide:
    return Slide("s", "s.svs", "f" * 64, SlideInfo((Level(WIDTH, HEIGHT),), mpp=MPP, bounds=bounds), no_reader)


def view_of_click(x: float, y: float, mpp: float | None = None) -> View:
    frame = request_frame((WIDTH, HEIGHT), None, MPP, units="px", frame=None, image_size=None)
    target = judge(PromptSpec(points=((x, y, 1),)), frame, (WIDTH, HEIGHT))
    return plan_view(target, (WIDTH, HEIGHT), MPP, CONFIG, mpp=mpp)


@pytest.mark.parametrize("mpp", [None, 0.5, 4.0])
def test_a_region_holds_the_view_of_every_click_in_it(mpp: float | None) -> None:
    x, y, width, height = 1000.0, 2000.0, 3000.0, 1500.0
    views = set(views_to_prewarm(PrewarmRequest(region=(x, y, width, height), mpp=mpp), slide(), CONFIG))
    clicks = np.random.default_rng(0).uniform((x, y), (x + width, y + height), (300, 2))
    assert {view_of_click(*click, mpp) for click in clicks.tolist()} <= views


def test_a_whole_slide_has_no_view_beyond_it() -> None:
    views = views_to_prewarm(PrewarmRequest(region=(0, 0, WIDTH, HEIGHT)), slide(), CONFIG)
    assert all(view.outside_fraction(WIDTH, HEIGHT) <= 0.99 for view in views)
    assert {view_of_click(0.4, 0.4), view_of_click(WIDTH - 0.4, HEIGHT - 0.4)} <= set(views)


def test_prompts_that_share_a_view_name_it_once() -> None:
    request = PrewarmRequest(points=[(5000, 5000), (5001, 5001)], boxes=[(4000, 4000, 4100, 4100)] * 2)
    assert len(views_to_prewarm(request, slide(), CONFIG)) == 2


def test_a_region_in_the_frame_of_the_bounds_is_moved() -> None:
    moved = PrewarmRequest(region=(0, 0, 500, 500), frame="bounds")
    plain = PrewarmRequest(region=(700, 900, 500, 500))
    assert views_to_prewarm(moved, slide((700, 900, 4000, 4000)), CONFIG) == views_to_prewarm(plain, slide(), CONFIG)


def test_too_many_views_and_none_at_all_are_refused() -> None:
    with pytest.raises(InvalidNumber, match=str(MAX_VIEWS)):
        views_to_prewarm(PrewarmRequest(region=(0, 0, WIDTH, HEIGHT), mpp=0.125), slide(), CONFIG)
    with pytest.raises(EmptyPrompt):
        views_to_prewarm(PrewarmRequest(), slide(), CONFIG)
