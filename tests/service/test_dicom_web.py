"""Slides of a PACS: the same pixels as from files, few requests, and a PACS that misbehaves holds up nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import orjson
import pydicom
import pytest
from certificates import Authority
from dicom_slides import (
    ACCESSION,
    JPEG,
    JPEG_2000,
    PATIENT,
    Series,
    Shape,
    instance,
    reduced,
    save,
    write_concatenation,
)
from hypothesis import given
from hypothesis import strategies as st
from pacs_server import Handler, PacsServer, metadata_of
from processes import wait_until
from pydantic import ValidationError
from stand_ins import NumpyExecutor

from wsisam_service.app import create_app
from wsisam_service.dicom import web
from wsisam_service.dicom.pacs_settings import PacsSettings
from wsisam_service.dicom.web import DicomWeb
from wsisam_service.errors import NotSupported, Overloaded, PacsUnavailable, ServiceError, UnknownSlide, UnreadableSlide
from wsisam_service.settings import Settings, SettingsError, load_settings
from wsisam_service.slides.catalogue import Catalogue
from wsisam_service.slides.items import DicomQuery
from wsisam_service.slides.lanes import BoundedLane
from wsisam_service.slides.pacs import PacsRoot, image_of_metadata
from wsisam_service.slides.pixels import read_rectangle
from wsisam_service.slides.slide import Slide
from wsisam_service.slides.write import write_pyramid

Tissue = npt.NDArray[np.uint8]
Fault = Callable[[Handler], None]


@pytest.fixture
def pacs() -> Iterator[PacsServer]:
    server = PacsServer()
    yield server
    server.close()


HASTE = {"read_s": 0.4, "total_s": 0.6}
"""For tests of what a PACS does badly."""


def access(server: PacsServer, **more: Any) -> PacsSettings:
    return PacsSettings.model_validate({"root": server.root, "refresh_s": 1.0, **more})


def catalogue_of(server: PacsServer, *roots: str, **more: Any) -> Catalogue:
    return Catalogue([*roots, server.root], pacs=[access(server, **more)])


def only(catalogue: Catalogue) -> Slide:
    (listed,) = catalogue.list().slides
    assert listed.slide is not None, listed.problem
    return listed.slide


def whole(slide: Slide, level: int = 0) -> Tissue:
    size = slide.info.levels[level]
    return slide.read_region(level, 0, 0, size.width, size.height)


AS_JPEG = Shape(JPEG)


def pyramid(tissue: Tissue, shape: Shape = AS_JPEG, series: Series | None = None, levels: int = 2) -> list[Any]:
    series = series or Series()
    return [instance(reduced(tissue, n), series, shape, mpp=0.5 * 2**n) for n in range(levels)]


@pytest.mark.parametrize(
    "shape",
    [
        Shape(JPEG),
        Shape(JPEG_2000, photometric="YBR_RCT"),
        Shape(),
        Shape(JPEG, sparse=True, left_out=frozenset({2, 6})),
        Shape(planes=3, sparse=True),
    ],
)
def test_a_slide_of_a_pacs_is_the_slide_of_its_files(
    pacs: PacsServer, tissue: Tissue, tmp_path: Path, shape: Shape
) -> None:
    pacs.datasets += pyramid(tissue[:401, :457], shape)
    for number, dataset in enumerate(pacs.datasets):
        save(dataset, tmp_path / f"{number}.dcm")
    here, there = only(Catalogue([str(tmp_path)])), only(catalogue_of(pacs))
    assert there.fingerprint == here.fingerprint
    assert (there.name, there.mpp, there.info.levels) == (here.name, here.mpp, here.info.levels)
    assert there.id != here.id
    for level in (0, 1):
        assert np.array_equal(whole(there, level), whole(here, level))
    assert there.info.dicom is not None
    assert here.info.dicom is not None
    for mine, theirs in zip(here.info.dicom.headers(), there.info.dicom.headers(), strict=True):
        assert str(theirs.PatientName) == PATIENT
        assert mine.to_json_dict() == theirs.to_json_dict()


def test_bare_pixels_that_begin_like_a_jpeg_are_shown(pacs: PacsServer, tissue: Tissue, tmp_path: Path) -> None:
    image = tissue.copy()
    image[0, 0] = 255, 216, 230
    pacs.datasets += pyramid(image, Shape(), levels=1)
    save(pacs.datasets[0], tmp_path / "a.dcm")
    for catalogue in (Catalogue([str(tmp_path)]), catalogue_of(pacs)):
        assert np.array_equal(whole(only(catalogue)), image)


def test_parts_of_a_concatenation_come_from_their_instances(pacs: PacsServer, tissue: Tissue, tmp_path: Path) -> None:
    for path in write_concatenation(tmp_path, tissue, Series(), 3, Shape(JPEG)):
        pacs.datasets.append(pydicom.dcmread(path))
    assert np.array_equal(whole(only(catalogue_of(pacs))), whole(only(Catalogue([str(tmp_path)]))))


def test_only_the_frames_of_a_view_are_fetched_and_each_once(pacs: PacsServer, tissue: Tissue) -> None:
    pacs.datasets += pyramid(tissue, levels=1)
    slide = only(catalogue_of(pacs))
    for _ in range(2):
        slide.read_region(0, 130, 10, 200, 100)  # over the second and third tile of the first row of four
    asked = [int(n) for path in pacs.paths("/frames/") for n in path.rsplit("/", 1)[1].split(",")]
    assert sorted(asked) == [2, 3]


@pytest.mark.parametrize(("connections", "requests"), [(1, 2), (5, 5), (32, 16)])
def test_frames_of_a_view_are_divided_among_connections_into_requests_of_bounded_size(
    pacs: PacsServer, tissue: Tissue, connections: int, requests: int
) -> None:
    """64 frames, in requests of at most 32, and of at least 4 where there are connections enough."""
    pacs.datasets += pyramid(tissue, Shape(JPEG, tile=64), levels=1)
    whole(only(catalogue_of(pacs, connections=connections)))
    asked = [path.rsplit("/", 1)[1].split(",") for path in pacs.paths("/frames/")]
    assert len(asked) == requests
    assert sorted(int(n) for numbers in asked for n in numbers) == list(range(1, 65))
    assert max(map(len, asked)) <= 32


async def test_a_cold_click_waits_for_two_round_trips_at_most_and_a_warm_one_for_none(
    pacs: PacsServer, tissue: Tissue
) -> None:
    pacs.datasets += pyramid(np.tile(tissue, (3, 3, 1)), levels=3)
    settings = Settings(slides=(pacs.root,), pacs=(access(pacs, total_s=20, read_s=10),))
    app = create_app(settings, Catalogue(settings.slides, pacs=settings.pacs), NumpyExecutor())
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        (slide,) = (await client.get("/v1/slides")).json()["slides"]
        pacs.asked.clear()
        pacs.delay_s = 0.2  # so that what does not wait for each other overlaps
        body = {"prompts": [{"box": [600, 500, 700, 610]}]}
        answer = await client.post(f"/v1/slides/{slide['id']}/segment", json=body)
        assert answer.json()["results"][0]["cache"] == {"hr": "encoded", "lr": "encoded"}
        assert all("/frames/" in asked.path for asked in pacs.asked)
        assert _longest_chain([(asked.began, asked.ended) for asked in pacs.asked]) <= 2
        pacs.asked.clear()
        warm = await client.post(f"/v1/slides/{slide['id']}/segment", json=body)
        assert warm.status_code == 200
        assert pacs.asked == []


def _longest_chain(spans: list[tuple[float, float]]) -> int:
    """How many of `spans` come strictly one after the other."""
    chain, end = 0, -1.0
    for began, ended in sorted(spans, key=lambda span: span[1]):
        if began >= end:
            chain, end = chain + 1, ended
    return chain


def test_a_service_without_the_asterisk_is_asked_for_what_it_knows_and_only_once_for_what_it_does_not(
    pacs: PacsServer, tissue: Tissue
) -> None:
    pacs.stars = False
    pacs.datasets += pyramid(tissue, levels=1)
    slide = only(catalogue_of(pacs, connections=1))
    slide.read_region(0, 0, 0, 100, 100)
    slide.read_region(0, 300, 300, 50, 50)
    asked = [asked.headers["accept"] for asked in pacs.asked if "/frames/" in asked.path]
    assert ["*" in accept and "image/jpeg" not in accept for accept in asked] == [True, False, False]


@pytest.mark.parametrize("pages", [True, False])
def test_a_long_listing_comes_in_pages(
    pacs: PacsServer, tissue: Tissue, monkeypatch: pytest.MonkeyPatch, pages: bool
) -> None:
    monkeypatch.setattr(web, "PAGE", 2)
    pacs.pages = pages
    pacs.datasets += [one for _ in range(5) for one in pyramid(tissue[:128, :128], levels=1)]
    assert len(catalogue_of(pacs).list().slides) == 5
    assert len(catalogue_of(pacs, max_series=3).list().slides) == 3


@pytest.mark.parametrize("beyond", [200, 204, 400, 404])
def test_a_service_that_gives_fewer_series_than_asked_for_is_asked_for_the_rest(
    beyond: int, pacs: PacsServer, tissue: Tissue
) -> None:
    pacs.most, pacs.beyond = 2, beyond
    pacs.datasets += [one for _ in range(5) for one in pyramid(tissue[:64, :64], levels=1)]
    assert len(DicomWeb(access(pacs)).search({}, 10)) == 5
    assert max(int(dict(asked.query)["limit"]) for asked in pacs.asked) <= 100  # beyond which some refuse


def test_a_listing_is_narrowed_by_the_settings_filters(pacs: PacsServer, tissue: Tissue) -> None:
    pacs.datasets += pyramid(tissue, series=Series(accession="A"), levels=1)
    pacs.datasets += pyramid(tissue, series=Series(accession="B"), levels=1)
    slide = only(catalogue_of(pacs, filters={"AccessionNumber": "B"}))
    assert slide.info.dicom is not None
    assert slide.info.dicom.accession == "B"
    assert all(("Modality", "SM") in asked.query for asked in pacs.asked if asked.path == "/series")


def test_a_listing_that_failed_is_tried_again_soon_and_one_that_succeeded_when_it_is_old(pacs: PacsServer) -> None:
    now, statuses = [0.0], [500]
    asked: list[float] = []

    def answer(request: Handler) -> None:
        asked.append(now[0])
        request.answer(statuses[0], b"[]")

    pacs.fault = answer
    root = PacsRoot(access(pacs, refresh_s=60.0), lambda: now[0])

    def ask(at_s: float, max_age_s: float | None = None) -> None:
        now[0] = at_s
        root.refresh(max_age_s)
        if (listing := root.refreshing) is not None:
            listing.result()

    for at_s in (0.0, 1.9, 2.0):
        ask(at_s)
    statuses[0] = 200
    for at_s in (4.0, 63.9, 64.0):
        ask(at_s)
    ask(70.0, 6.5)
    ask(70.0, 6.0)
    assert asked == [0.0, 2.0, 4.0, 64.0, 70.0]


def test_a_slide_asked_for_by_study_is_found_without_waiting_for_the_next_listing(
    pacs: PacsServer, tissue: Tissue
) -> None:
    now = [0.0]
    catalogue = Catalogue([pacs.root], pacs=[access(pacs, refresh_s=3600)], clock=lambda: now[0])
    root = catalogue._roots[0]
    root._clock = lambda: now[0]  # type: ignore[union-attr]
    assert not catalogue.list().slides
    series = Series()
    pacs.datasets += pyramid(tissue, series=series)
    now[0] += 10
    assert not catalogue.list().slides
    (found,) = catalogue.list(dicom=DicomQuery(study=series.study, accession=ACCESSION)).slides
    assert found.slide is not None


def test_an_instance_that_joins_a_series_joins_its_slide(pacs: PacsServer, tissue: Tissue) -> None:
    series = Series()
    pacs.datasets += pyramid(tissue, series=series, levels=1)
    catalogue = catalogue_of(pacs)
    before = only(catalogue)
    pacs.datasets.append(instance(reduced(tissue, 1), series, Shape(JPEG), mpp=1.0))
    catalogue.list(dicom=DicomQuery(study=series.study))
    wait_until(lambda: len(only(catalogue).info.levels) == 2, "the new level is listed")
    assert only(catalogue).fingerprint != before.fingerprint
    assert only(catalogue).id == before.id


def test_an_instance_that_joins_a_series_joins_its_slide_where_nobody_counts_them(
    pacs: PacsServer, tissue: Tissue
) -> None:
    pacs.counts = False
    series, now = Series(), [0.0]
    pacs.datasets += pyramid(reduced(tissue, 1), series=series, levels=1)
    catalogue = Catalogue([pacs.root], pacs=[access(pacs)], clock=lambda: now[0])
    catalogue._roots[0]._clock = lambda: now[0]  # type: ignore[union-attr]
    before = only(catalogue)
    pacs.datasets.append(instance(tissue, series, AS_JPEG, mpp=0.25))

    def is_whole() -> bool:
        now[0] += 10
        catalogue.list(dicom=DicomQuery(study=series.study))
        return only(catalogue).width == tissue.shape[1]

    wait_until(is_whole, "the finest level is there")
    assert only(catalogue).fingerprint != before.fingerprint
    opened = only(catalogue)
    pacs.asked.clear()
    wait_until(lambda: is_whole() and len(pacs.paths("/series")) >= 50, "there were listings enough")
    assert only(catalogue) is opened
    assert len(pacs.paths("/metadata")) < 10  # ever more rarely


def test_headers_are_those_of_the_levels_that_are_served_or_a_typed_problem(pacs: PacsServer, tissue: Tissue) -> None:
    series = Series()
    pacs.datasets += pyramid(tissue, series=series)
    source = only(catalogue_of(pacs)).info.dicom
    assert source is not None
    uids = [dataset.SOPInstanceUID for dataset in pacs.datasets]
    pacs.datasets.insert(0, instance(reduced(tissue, 2), series, AS_JPEG, mpp=2.0))
    assert [header.SOPInstanceUID for header in source.headers()] == uids
    del pacs.datasets[1]
    with pytest.raises(UnreadableSlide, match="changed"):
        source.headers()


def _redirects(request: Handler) -> None:
    elsewhere = request.pacs.elsewhere  # type: ignore[attr-defined]
    request.answer(302, location=f"http://127.0.0.1:{elsewhere.port}/latest/meta-data/")


def _redirects_to_a_file(request: Handler) -> None:
    request.answer(307, location="file:///etc/passwd")


def _never_answers(request: Handler) -> None:
    request.pacs.released.wait(30)  # type: ignore[attr-defined]
    request.close_connection = True


def _drips(request: Handler) -> None:
    request.wfile.write(b"HTTP/1.1 200 OK\r\nx-slow: ")
    while not request.pacs.released.wait(0.1):  # type: ignore[attr-defined]
        request.wfile.write(b"a")
        request.wfile.flush()


def _never_ends(request: Handler) -> None:
    request.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/dicom+json\r\n\r\n[")
    while not request.pacs.released.is_set():  # type: ignore[attr-defined]
        request.wfile.write(b" " * 65536)


STRANGE = b"""[{"0020000D": 3}, {"00080018": {"Value": {}}}, {"0020000D": {"Value": ["1.2"]},
"0020000E": {"Value": ["1.3"]}, "00201209": {"Value": ["%s"]}, "00080050": {"Value": [{"a": 1}]}}]""" % (b"9" * 5000)


FAULTS: dict[str, Fault] = {
    "redirect": _redirects,
    "redirect to a file": _redirects_to_a_file,
    "no answer": _never_answers,
    "drip": _drips,
    "endless": _never_ends,
    "not JSON": lambda request: request.answer(200, b"<html>sign in</html>", "text/html"),
    "JSON of another kind": lambda request: request.answer(200, b'{"a": [1, null]}'),
    "JSON of strange values": lambda request: request.answer(200, STRANGE),
    "deep JSON": lambda request: request.answer(200, b"[" * 100_000),
    "inflates": lambda request: request.answer(200, b"\x1f\x8b\x08", content_encoding="gzip"),
    "401": lambda request: request.answer(401),
    "500": lambda request: request.answer(500),
    "503": lambda request: request.answer(503),
}


UNHARMFUL = {"not JSON", "JSON of another kind", "JSON of strange values", "deep JSON", "endless"}
"""What some questions take for an answer: a frame is any bytes, and a 200 to an object that was sent says enough."""


@pytest.fixture
def released(pacs: PacsServer) -> Iterator[threading.Event]:
    """Ends what the server still does; `pacs.elsewhere` is a server that nobody may ask."""
    pacs.released = threading.Event()  # type: ignore[attr-defined]
    pacs.elsewhere = PacsServer()  # type: ignore[attr-defined]
    yield pacs.released  # type: ignore[attr-defined]
    pacs.released.set()  # type: ignore[attr-defined]
    pacs.elsewhere.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_a_pacs_does_is_a_typed_problem_in_time_and_is_followed_nowhere(
    pacs: PacsServer, tissue: Tissue, released: threading.Event, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(web, "MAX_LISTING_BYTES", 4 << 20)
    pacs.datasets += pyramid(tissue, levels=1)
    catalogue = catalogue_of(pacs, **HASTE)
    wait_until(lambda: [one.slide is not None for one in catalogue.list().slides] == [True], "the slide is open")
    slide = only(catalogue)
    pacs.fault = FAULTS[fault]
    pacs.asked.clear()
    questions: list[Callable[[DicomWeb], object]] = [
        lambda client: client.search({}, 10),
        lambda client: client.metadata("1.2", "1.3"),
        lambda client: client.frames(("1.2", "1.3", "1.4"), [0], 100),
        lambda client: client.store([b"x"]),
    ]
    for ask in questions:
        started = time.monotonic()
        problem = _problem_of(lambda ask=ask: ask(DicomWeb(access(pacs, **HASTE))))  # type: ignore[misc]
        assert time.monotonic() - started < 5  # total_s is 0.6
        if problem is None:
            assert fault in UNHARMFUL
        else:
            assert type(problem) in (PacsUnavailable, UnreadableSlide, NotSupported)
            assert "127.0.0.1" not in problem.detail
    with pytest.raises(ServiceError):
        slide.read_region(0, 300, 300, 40, 40)
    assert pacs.elsewhere.asked == []  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("status", "problem", "said"),
    [
        (401, PacsUnavailable, "credentials"),
        (403, PacsUnavailable, "credentials"),
        (404, UnreadableSlide, "any more"),
        (410, UnreadableSlide, "any more"),
        (500, PacsUnavailable, "fault of its own"),
        (300, PacsUnavailable, "not followed"),
        (399, PacsUnavailable, "not followed"),
        (400, PacsUnavailable, "not DICOMweb"),
    ],
)
def test_what_a_pacs_refuses_is_told_by_its_reason(
    pacs: PacsServer, status: int, problem: type[ServiceError], said: str
) -> None:
    pacs.fault = lambda request: request.answer(status)
    with pytest.raises(problem, match=said):
        DicomWeb(access(pacs)).metadata("1.2", "1.3")


def test_frames_are_as_many_as_were_asked_for_and_not_larger_than_they_can_be(pacs: PacsServer) -> None:
    client, most = DicomWeb(access(pacs)), 100 + web.FRAME_SLACK
    pacs.fault = lambda request: request.answer(200, b"x" * most, "image/jpeg")
    assert client.frames(("1.2", "1.3", "1.4"), [0], 100) == [b"x" * most]
    with pytest.raises(PacsUnavailable, match="not DICOMweb"):
        client.frames(("1.2", "1.3", "1.4"), [0, 1], 100)
    pacs.fault = lambda request: request.answer(200, b"x" * (most + 1), "image/jpeg")
    with pytest.raises(PacsUnavailable, match="larger"):
        client.frames(("1.2", "1.3", "1.4"), [0], 100)


def test_a_pacs_is_asked_itself_whatever_proxy_the_environment_names(
    pacs: PacsServer, released: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{pacs.elsewhere.port}")  # type: ignore[attr-defined]
    asked: list[str] = []

    def answer(request: Handler) -> None:
        asked.append(request.path)
        request.answer(200, b"[]")

    pacs.fault = pacs.elsewhere.fault = answer  # type: ignore[attr-defined]
    assert DicomWeb(access(pacs)).search({}, 1) == []
    assert [path.partition("?")[0] for path in asked] == ["/dicom-web/series"]  # a proxy gets a whole address


def test_a_pacs_that_failed_twice_in_a_row_is_left_alone_for_a_while(
    pacs: PacsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "_BACKOFF_S", ())
    statuses = [503, 200, 503, 503, 200]

    def answer(request: Handler) -> None:
        request.answer(statuses.pop(0), b"[]")

    pacs.fault = answer
    client = DicomWeb(access(pacs))
    told = [_problem_of(lambda: client.metadata("1.2", "1.3")) for _ in range(6)]
    assert [problem is None for problem in told] == [False, True, False, False, False, False]
    assert statuses == [200]


def _problem_of(call: Callable[[], object]) -> ServiceError | None:
    try:
        call()
    except ServiceError as problem:
        return problem
    return None


async def test_a_pacs_that_hangs_holds_up_no_file(
    pacs: PacsServer, tissue: Tissue, released: threading.Event, tmp_path: Path
) -> None:
    write_pyramid(tmp_path / "here.tif", tissue, 0.5)
    pacs.datasets += pyramid(tissue, levels=1)
    settings = Settings(slides=(str(tmp_path), pacs.root), pacs=(access(pacs, read_s=20, total_s=20, refresh_s=3600),))
    app = create_app(settings, Catalogue(settings.slides, pacs=settings.pacs), NumpyExecutor())
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", timeout=10) as client,
    ):
        names = {s["name"]: s["id"] for s in (await client.get("/v1/slides")).json()["slides"]}
        here = names.pop("here.tif")
        (there,) = names.values()
        pacs.fault = _never_answers
        stuck = [
            asyncio.create_task(client.get(f"/v1/slides/{there}/{path}"))
            for _ in range(12)
            for path in ("thumbnail", "region?x=0&y=0&width=64&height=64", "iiif/0,0,64,64/max/0/default.jpg")
        ]
        stuck.append(asyncio.create_task(client.post(f"/v1/slides/{there}/segment", json=CLICK)))
        await asyncio.sleep(0.1)
        for path in ("thumbnail", "region?x=0&y=0&width=64&height=64", "iiif/0,0,64,64/max/0/default.jpg"):
            assert (await client.get(f"/v1/slides/{here}/{path}")).status_code == 200
        assert (await client.post(f"/v1/slides/{here}/segment", json=CLICK)).status_code == 200
        assert "here.tif" in {slide["name"] for slide in (await client.get("/v1/slides")).json()["slides"]}
        assert (await client.get("/readyz")).status_code == 200
        assert not any(task.done() for task in stuck)
        released.set()
        await asyncio.gather(*stuck)


CLICK = {"prompts": [{"box": [100, 100, 200, 200]}]}


def test_a_listing_names_the_slides_of_a_pacs_that_does_not_tell_of_them_in_time(
    pacs: PacsServer, tissue: Tissue, released: threading.Event, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsisam_service.slides.catalogue.LISTING_WAIT_S", 0.3)
    write_pyramid(tmp_path / "here.tif", tissue, 0.5)
    pacs.datasets += pyramid(tissue, levels=1)

    def hangs_at_metadata(request: Handler) -> None:
        (_never_answers if request.route.endswith("metadata") else pacs.serve)(request)

    pacs.fault = hangs_at_metadata
    catalogue = catalogue_of(pacs, str(tmp_path), read_s=20, total_s=20)
    told = {listed.name: listed for listed in catalogue.list().slides}
    wait_until(lambda: len(catalogue.list().slides) == 2, "the PACS is listed")
    told = {listed.name: listed for listed in catalogue.list().slides}
    assert told.pop("here.tif").slide is not None
    (late,) = told.values()
    assert isinstance(late.problem, PacsUnavailable)
    released.set()
    pacs.fault = None
    wait_until(lambda: all(listed.slide for listed in catalogue.list().slides), "the PACS tells")


def test_a_pacs_that_goes_and_comes_back_serves_again_and_what_is_held_meanwhile(
    pacs: PacsServer, tissue: Tissue
) -> None:
    pacs.datasets += pyramid(tissue, levels=1)
    catalogue = catalogue_of(pacs)
    slide = only(catalogue)
    held = slide.read_region(0, 0, 0, 100, 100)
    pacs.close()
    assert np.array_equal(catalogue.get(slide.id).read_region(0, 0, 0, 100, 100), held)
    with pytest.raises(PacsUnavailable):
        slide.read_region(0, 300, 300, 50, 50)
    assert catalogue.readable()
    assert list(catalogue.pacs_states()) == ["PACS root 1 does not answer"]
    again = PacsServer(*pacs.datasets, port=pacs.port)
    try:
        wait_until(lambda: _read_again(slide), "the PACS serves again")
        wait_until(lambda: not catalogue.pacs_states(), "and counts as answering")
    finally:
        again.close()
        pacs.close = lambda: None  # type: ignore[method-assign]


def _read_again(slide: Slide) -> bool:
    try:
        slide.read_region(0, 300, 300, 50, 50)
    except PacsUnavailable:
        return False
    return True


def test_a_pacs_that_stumbles_is_asked_again(pacs: PacsServer, tissue: Tissue) -> None:
    pacs.datasets += pyramid(tissue, levels=1)
    answers = iter([lambda request: request.answer(503), lambda request: request.connection.close(), pacs.serve])

    def stumble(request: Handler) -> None:
        next(answers)(request)

    pacs.fault = stumble
    assert len(DicomWeb(access(pacs)).search({}, 1)) == 1
    assert len(pacs.asked) == 3


def test_a_fault_of_the_pacs_itself_is_not_the_slides_and_changes_no_way_of_asking(
    pacs: PacsServer, tissue: Tissue
) -> None:
    pacs.datasets += pyramid(tissue, levels=1)
    slide = only(catalogue_of(pacs, connections=1))
    pacs.fault = FAULTS["500"]
    with pytest.raises(PacsUnavailable):
        slide.read_region(0, 0, 0, 100, 100)
    pacs.fault = None
    slide.read_region(0, 0, 0, 100, 100)
    assert len({asked.headers["accept"] for asked in pacs.asked if "/frames/" in asked.path}) == 1


async def test_a_lane_that_is_full_refuses_more_at_once_and_takes_work_again_later() -> None:
    lane = BoundedLane("test", threads=1, waiting=2, refusal="Later.")
    gate = threading.Event()
    waiting = [asyncio.create_task(lane.run(gate.wait)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await lane.run(gate.wait)
    gate.set()
    assert await asyncio.gather(*waiting) == [True, True]
    assert await lane.run(gate.wait)


async def test_ids_that_a_silent_pacs_may_have_hold_up_no_file(
    pacs: PacsServer, tissue: Tissue, released: threading.Event, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a restart, where viewers go on asking for tiles of its slides."""
    monkeypatch.setattr("wsisam_service.slides.catalogue.LISTING_WAIT_S", 30)
    write_pyramid(tmp_path / "here.tif", tissue, 0.5)
    catalogue = Catalogue((str(tmp_path),))
    here = catalogue.list().slides[0].id
    pacs.fault = _never_answers
    settings = Settings(slides=(str(tmp_path), pacs.root), pacs=(access(pacs, read_s=60, total_s=60),))
    app = create_app(settings, Catalogue(settings.slides, pacs=settings.pacs), NumpyExecutor())
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", timeout=10) as client,
    ):
        asked = [f"/v1/slides/{number:020}/thumbnail" for number in range(40)] + ["/v1/slides"] * 10
        stuck = [asyncio.create_task(client.get(path)) for path in asked]
        await asyncio.wait(stuck, timeout=0.2)
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.post(f"/v1/slides/{here}/segment", json=CLICK)).status_code == 200
        assert not any(task.done() for task in stuck)
        for task in stuck:
            task.cancel()
        released.set()
        await asyncio.wait(stuck)


def test_an_unknown_id_is_unknown_only_once_every_pacs_has_answered(pacs: PacsServer) -> None:
    pacs.fault = FAULTS["503"]
    catalogue = catalogue_of(pacs)
    with pytest.raises(PacsUnavailable):
        catalogue.get("a" * 20)
    pacs.fault = None

    def is_unknown() -> bool:
        with pytest.raises(ServiceError) as caught:
            catalogue.get("a" * 20)
        return isinstance(caught.value, UnknownSlide)

    wait_until(is_unknown, "the PACS has answered")


def test_addresses_and_uids_in_answers_lead_nowhere(
    pacs: PacsServer, tissue: Tissue, released: threading.Event
) -> None:
    elsewhere = f"http://127.0.0.1:{pacs.elsewhere.port}/bulk"  # type: ignore[attr-defined]
    dataset = pyramid(tissue, levels=1)[0]
    pacs.datasets.append(dataset)

    def with_bulk_data(request: Handler) -> None:
        answer = request.answer

        def changed(status: int, body: bytes = b"", *rest: Any, **more: Any) -> None:
            bulk = b'"00480001": {"vr": "FL", "BulkDataURI": "' + elsewhere.encode() + b'"}, '
            hostile = b"".join(
                b'{"0020000D": {"vr": "UI", "Value": ["%s"]}, "0020000E": {"vr": "UI", "Value": ["%s"]}}, ' % uids
                for uids in ((b"..", b"1.2"), (b"1.2", b".."))
            )
            if request.route == "/series":
                body = b"[" + hostile + body[1:]
            elif request.route.endswith("metadata"):
                body = b"[{" + bulk + body[2:]
            answer(status, body, *rest, **more)

        request.answer = changed  # type: ignore[method-assign]
        pacs.serve(request)

    pacs.fault = with_bulk_data
    slide = only(catalogue_of(pacs))
    slide.read_region(0, 0, 0, 100, 100)
    assert slide.info.dicom is not None
    slide.info.dicom.headers()
    assert pacs.elsewhere.asked == []  # type: ignore[attr-defined]
    assert not any(".." in path for path in pacs.paths("/studies"))


@pytest.mark.parametrize("kind", ["token", "user"])
def test_credentials_reach_the_pacs_and_nothing_else(
    pacs: PacsServer, tissue: Tissue, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = tmp_path / "secret"
    secret.write_text("hush-1\n")
    pacs.datasets += pyramid(tissue, levels=1)
    ours: dict[str, Any] = {"token_file": secret} if kind == "token" else {"user": "reader", "password_file": secret}
    slide = only(catalogue_of(pacs, **ours))
    expected = {"token": "Bearer hush-1", "user": "Basic cmVhZGVyOmh1c2gtMQ=="}[kind]
    assert {asked.headers["authorization"] for asked in pacs.asked} == {expected}
    secret.write_text("hush-2")
    pacs.asked.clear()
    slide.read_region(0, 0, 0, 10, 10)
    assert expected not in {asked.headers["authorization"] for asked in pacs.asked}
    pacs.fault = FAULTS["401"]
    with pytest.raises(PacsUnavailable) as refused:
        slide.read_region(0, 300, 300, 10, 10)
    told = "\n".join(
        (slide.id, slide.name, repr(slide.info), str(refused.value), repr(access(pacs, **ours)), caplog.text)
    )
    assert "hush" not in told
    assert "cmVhZGVy" not in told
    own = [record.getMessage() for record in caplog.records if record.name.startswith(("wsisam", "httpx"))]
    assert not any(uid in line for line in own for uid in (str(pacs.datasets[0].StudyInstanceUID), "/studies/"))


def test_a_token_file_that_turns_into_no_text_is_a_problem_like_others(
    pacs: PacsServer, tissue: Tissue, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hush")
    pacs.datasets += pyramid(tissue, levels=1)
    slide = only(catalogue_of(pacs, token_file=secret))
    secret.write_bytes(b"\xff\xfe")
    with pytest.raises(PacsUnavailable):
        slide.read_region(0, 0, 0, 10, 10)


def test_a_pacs_that_wants_a_client_certificate_gets_it(tissue: Tissue, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server, client = authority.issue("pacs"), authority.issue("gateway")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server.certificate, server.key)
    context.load_verify_locations(authority.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    pacs = PacsServer(*pyramid(tissue, levels=1), tls=context)
    try:
        ours = {"ca": authority.ca, "certificate": client.certificate, "key": client.key}
        assert only(catalogue_of(pacs, **ours)).width == 512
        with pytest.raises(PacsUnavailable):
            DicomWeb(access(pacs, ca=authority.ca)).search({}, 1)
        with pytest.raises(PacsUnavailable):  # one that the system does not trust
            DicomWeb(access(pacs, certificate=client.certificate, key=client.key)).search({}, 1)
    finally:
        pacs.close()


def test_objects_are_stored_where_their_slide_came_from(pacs: PacsServer, tissue: Tissue, tmp_path: Path) -> None:
    pacs.datasets += pyramid(tissue, levels=1)
    source = only(catalogue_of(pacs)).info.dicom
    assert source is not None
    assert source.store is not None
    path = save(instance(tissue[:64, :64], Series()), tmp_path / "object.dcm")
    source.store([path.read_bytes()])
    assert pacs.datasets[-1].SOPInstanceUID == pydicom.dcmread(path).SOPInstanceUID
    pacs.fault = lambda request: request.answer(409)
    with pytest.raises(NotSupported):
        source.store([path.read_bytes()])
    pacs.fault = lambda request: request.answer(200, b'{"00081198": {"vr": "SQ", "Value": [{}]}}')
    with pytest.raises(NotSupported):
        source.store([path.read_bytes()])


@pytest.mark.parametrize(
    ("status", "uid", "reason", "stored"),
    [
        (202, None, None, True),
        (409, "1.2.3", 45070, True),
        (202, "1.2.3", 273, True),
        (409, "1.2.4", 45070, False),
        (202, "1.2.3", 272, False),
        (409, None, None, False),
    ],
)
def test_what_was_stored_with_a_warning_or_before_counts_as_stored(
    pacs: PacsServer, tissue: Tissue, tmp_path: Path, *, status: int, uid: str, reason: int, stored: bool
) -> None:
    dataset = instance(tissue[:64, :64], Series())
    dataset.SOPInstanceUID = "1.2.3"
    failed = [{"00081155": {"vr": "UI", "Value": [uid]}, "00081197": {"vr": "US", "Value": [reason]}}] if uid else []
    body = orjson.dumps({"00081198": {"vr": "SQ", "Value": failed}})
    pacs.fault = lambda request: request.answer(status, body)
    content = save(dataset, tmp_path / "object.dcm").read_bytes()
    with contextlib.nullcontext() if stored else pytest.raises(NotSupported):
        DicomWeb(access(pacs)).store([content])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"root": "dicomweb+https://user:hush@pacs/dicom-web"}, "credentials"),
        ({"root": "https://pacs/dicom-web"}, "dicomweb"),
        ({"root": "dicomweb+http://pacs/dicom-web", "token": "t"}, "readable over http"),
        ({"token": "t", "user": "u"}, "not both"),
        ({"filters": {"../x": "1"}}, "attribute"),
    ],
)
def test_settings_that_would_tell_secrets_or_lead_elsewhere_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        PacsSettings.model_validate({"root": "dicomweb+https://pacs/dicom-web", **changes})


def test_the_settings_file_holds_what_is_said_of_a_pacs_and_nothing_prints_it(tmp_path: Path) -> None:
    config = tmp_path / "wsisam.toml"
    config.write_text(
        'slides = ["/s", "dicomweb+https://pacs/web/"]\n[[pacs]]\nroot = "dicomweb+https://pacs/web"\ntoken = "hush"\n'
    )
    settings = load_settings({}, config)
    assert settings.pacs[0].token.get_secret_value() == "hush"
    assert "hush" not in settings.describe() + repr(settings)
    config.write_text('slides = ["/s"]\n[[pacs]]\nroot = "dicomweb+https://pacs/web"\n')
    with pytest.raises(SettingsError, match="not among the roots"):
        load_settings({}, config)
    with pytest.raises(SettingsError, match="credentials") as caught:
        load_settings({"slides": ["dicomweb+https://reader:hush@pacs/web"]})
    assert "hush" not in str(caught.value)


def test_views_of_every_step_are_the_same_from_both(pacs: PacsServer, tissue: Tissue, tmp_path: Path) -> None:
    pacs.datasets += pyramid(tissue, levels=3)
    for number, dataset in enumerate(pacs.datasets):
        save(dataset, tmp_path / f"{number}.dcm")
    here, there = only(Catalogue([str(tmp_path)])), only(catalogue_of(pacs))
    for side in (100.5, 256.0, 600.0):
        views = [read_rectangle(slide, (60.25, 71.5, side, side), (128, 128)) for slide in (here, there)]
        assert np.array_equal(*views)


JUNK = st.one_of(st.none(), st.integers(), st.text(max_size=5), st.lists(st.integers(), max_size=2), st.just({"a": []}))


@given(st.lists(st.tuples(st.integers(0, 10_000), JUNK), min_size=1, max_size=4))
def test_no_metadata_gives_anything_but_an_image_or_a_typed_problem(changes: list[tuple[int, Any]]) -> None:
    metadata = orjson.loads(METADATA)
    for position, junk in changes:
        places = list(_places_in(metadata))
        holder, key = places[position % len(places)]
        holder[key] = copy.deepcopy(junk)
    with contextlib.suppress(ServiceError):
        image_of_metadata(metadata)


METADATA = metadata_of(instance(np.zeros((20, 40, 3), np.uint8), Series(), Shape(JPEG, tile=16, sparse=True)))


def _places_in(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a JSON document that holds a value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    for key in keys:
        yield value, key
        yield from _places_in(value[key])
