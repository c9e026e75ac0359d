"""The catalogue: ids that last, files that come, change and go, and nothing from outside the roots."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from dicom_slides import write_slide
from fsspec import AbstractFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from tiffslide import TiffSlide

from wsisam_service.errors import InvalidRequest, NotBrightfield, UnknownSlide, UnreadableSlide
from wsisam_service.slides import roots as roots_module
from wsisam_service.slides import tiff as tiff_module
from wsisam_service.slides.catalogue import FRESH_S, PROBLEM_S, RESCAN_S, Catalogue
from wsisam_service.slides.dicom_files import _FileFrames
from wsisam_service.slides.opening import open_slide
from wsisam_service.slides.reader import SlideReader
from wsisam_service.slides.roots import Root
from wsisam_service.slides.slide import Slide
from wsisam_service.slides.source import CHECK_S, RemoteBytes
from wsisam_service.slides.tiles import TileCache

MakeSlide = Callable[..., Path]


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_seconds(self, seconds: float = RESCAN_S + 1) -> None:
        self.now += seconds


def only(catalogue: Catalogue) -> Slide:
    (listed,) = catalogue.list().slides
    assert listed.slide is not None
    return listed.slide


def test_ids_are_opaque_and_the_same_after_restart_and_on_another_gateway(
    make_slide: MakeSlide, tmp_path: Path
) -> None:
    root = make_slide("case 7/Meier Anna.ome.tif").parent.parent
    slide = only(Catalogue([str(root)]))
    assert re.fullmatch("[a-z2-7]{20}", slide.id)
    assert slide.name == "Meier Anna.ome.tif"
    elsewhere = tmp_path / "other mount" / root.name
    shutil.copytree(root, elsewhere)
    assert only(Catalogue([str(elsewhere)])).id == slide.id


def test_names_that_are_not_utf8_are_listed_with_replacement_characters(
    make_slide: MakeSlide, tissue: npt.NDArray[np.uint8]
) -> None:
    path = make_slide()
    folder = Path(os.fsdecode(os.fsencode(path.parent) + b"/Pr\xfcfung"))
    write_slide(folder, tissue)
    (folder / "damaged.dcm").write_bytes(b"x")
    path.rename(folder / os.fsdecode(b"M\xfcller.tif"))
    catalogue = Catalogue([str(path.parent)])
    listed = {entry.name: entry for entry in catalogue.list().slides}
    assert len(listed) == 3
    assert catalogue.get(listed["M\N{REPLACEMENT CHARACTER}ller.tif"].id).width == 512


def test_same_path_in_two_roots_of_one_name_gives_two_ids(make_slide: MakeSlide, tmp_path: Path) -> None:
    root = make_slide().parent
    shutil.copytree(root, tmp_path / "b" / root.name)
    ids = {listed.id for listed in Catalogue([str(root), str(tmp_path / "b" / root.name)]).list().slides}
    assert len(ids) == 2


def test_single_file_is_a_root_with_the_id_that_its_folder_gives_it(make_slide: MakeSlide) -> None:
    path = make_slide()
    make_slide("other.ome.tif")
    alone = only(Catalogue([str(path)]))
    assert alone.name == path.name
    assert alone.id in {listed.id for listed in Catalogue([str(path.parent)]).list().slides}


def test_single_file_may_be_a_link(make_slide: MakeSlide, tmp_path: Path) -> None:
    (tmp_path / "nice.tif").symlink_to(make_slide())
    assert only(Catalogue([str(tmp_path / "nice.tif")])).name == "nice.tif"


@pytest.mark.parametrize("way", ["link/../a.tif", "./link/.././a.tif", "link/..//a.tif"])
def test_way_to_a_single_file_is_the_systems_not_that_of_its_letters(
    make_slide: MakeSlide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    (tmp_path / "real/deep").mkdir(parents=True)
    make_slide().rename(tmp_path / "real/a.tif")
    (tmp_path / "link").symlink_to(tmp_path / "real/deep")
    monkeypatch.chdir(tmp_path)
    folder = Catalogue([os.path.dirname(way)])
    assert only(Catalogue([way])).id == only(Catalogue([str(tmp_path / way)])).id == only(folder).id


def test_link_that_is_a_root_is_followed_to_where_it_leads_now(
    make_slide: MakeSlide, tmp_path: Path, tissue: npt.NDArray[np.uint8]
) -> None:
    clock = Clock()
    link, new = tmp_path / "current.tif", tmp_path / "new.tif"
    link.symlink_to(make_slide("v1/tissue.ome.tif"))
    catalogue = Catalogue([str(link)], clock=clock)
    old = only(catalogue)
    new.symlink_to(make_slide("v2/tissue.ome.tif", image=255 - tissue))
    new.replace(link)
    clock.pass_seconds()
    assert np.array_equal(catalogue.get(old.id).read_region(0, 0, 0, 512, 512), 255 - tissue)


def test_root_that_is_one_dicom_file_has_no_others_of_its_series(tissue: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    clock = Clock()
    write_slide(tmp_path, tissue, levels=2)
    catalogue = Catalogue([str(tmp_path / "0.dcm")], clock=clock)
    slide_id = only(catalogue).id
    clock.pass_seconds(FRESH_S)
    assert len(catalogue.get(slide_id).info.levels) == 1


def test_file_that_goes_during_a_scan_takes_no_other_with_it(
    make_slide: MakeSlide, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = make_slide("gone.ome.tif")
    make_slide("here.ome.tif")

    def looked_at(path: str, **options: Any) -> os.stat_result:
        """A file may go after any look at it."""
        status = stat(path, **options)
        if path == str(gone):
            gone.unlink()
        return status

    stat = os.stat
    monkeypatch.setattr(os, "stat", looked_at)
    assert "here.ome.tif" in [listed.name for listed in Catalogue([str(gone.parent)]).list().slides]


def test_fingerprint_is_the_one_a_script_can_compute(make_slide: MakeSlide, shared: Path) -> None:
    small = make_slide(levels=1, image=np.full((64, 64, 3), 9, np.uint8))
    large = shared / "data/slides/tcga-cr-7395-01a-01-ts1.svs"
    for path in (small, large):
        data = path.read_bytes()
        ends = data[: 1 << 20] + data[-(1 << 20) :]
        expected = hashlib.sha256(str(len(data)).encode() + b"\n" + ends).hexdigest()
        assert only(Catalogue([str(path)])).fingerprint == expected


def test_renamed_slide_keeps_its_fingerprint_and_gets_another_id(make_slide: MakeSlide) -> None:
    path = make_slide()
    before = only(Catalogue([str(path.parent)]))
    path.rename(path.with_name("renamed.ome.tif"))
    after = only(Catalogue([str(path.parent)]))
    assert (after.fingerprint, after.id == before.id) == (before.fingerprint, False)


def test_new_files_appear_and_removed_ones_go(make_slide: MakeSlide) -> None:
    clock = Clock()
    first = make_slide()
    catalogue = Catalogue([str(first.parent)], clock=clock)
    known = only(catalogue)
    second = make_slide("zebra.ome.tif")
    clock.pass_seconds()
    names = {listed.name: listed.id for listed in catalogue.list().slides}
    assert catalogue.get(names["zebra.ome.tif"]).width == 512
    first.unlink()
    clock.pass_seconds()
    with pytest.raises(UnknownSlide):
        catalogue.get(known.id)
    assert [listed.name for listed in catalogue.list().slides] == [second.name]


def test_get_finds_a_new_file_without_a_listing(make_slide: MakeSlide) -> None:
    path = make_slide()
    slide_id = only(Catalogue([str(path.parent)])).id
    assert Catalogue([str(path.parent)]).get(slide_id).name == path.name


def test_replaced_file_gets_new_fingerprint_and_pixels_and_the_old_slide_ends(
    make_slide: MakeSlide, tissue: npt.NDArray[np.uint8]
) -> None:
    clock = Clock()
    path = make_slide()
    catalogue = Catalogue([str(path.parent)], clock=clock, open_slides=1)
    old = only(catalogue)
    make_slide(image=255 - tissue[:400])
    clock.pass_seconds()
    new = catalogue.get(old.id)
    assert new.fingerprint != old.fingerprint
    assert np.array_equal(new.read_region(0, 0, 0, 512, 400), 255 - tissue[:400])
    with pytest.raises(UnreadableSlide):  # its reader had to make room, and its file is another by now
        old.read_region(0, 0, 0, 8, 8)


def test_file_written_over_in_place_is_not_read_under_the_old_fingerprint(
    make_slide: MakeSlide, tissue: npt.NDArray[np.uint8]
) -> None:
    clock = Clock()
    path, other = make_slide(), make_slide("other/tissue.ome.tif", image=255 - tissue)
    catalogue = Catalogue([str(path)], clock=clock)
    old = only(catalogue)
    path.write_bytes(other.read_bytes())
    with pytest.raises(UnreadableSlide, match="has been replaced"):
        old.read_region(0, 0, 0, 8, 8)
    clock.pass_seconds()
    assert np.array_equal(catalogue.get(old.id).read_region(0, 0, 0, 512, 512), 255 - tissue)


def open_files(folder: Path) -> list[str]:
    """Files from `folder` that this process holds open."""
    links = [os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    return sorted(name for name in links if name.startswith(f"{folder}/"))


@pytest.fixture
def decoders(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadPoolExecutor]:
    """What decodes tiles; to be shut down, for a thread holds on to its last work a moment longer. No garbage is
    collected meanwhile but what nobody refers to.
    """
    gc.disable()
    with ThreadPoolExecutor(2) as threads:
        monkeypatch.setattr(tiff_module, "_DECODERS", threads)
        monkeypatch.setattr(_FileFrames, "threads", threads)
        yield threads
    gc.enable()


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("listed", [False, True])
def test_file_and_tiles_of_a_slide_that_is_gone_are_let_go(
    make_slide: MakeSlide, tissue: npt.NDArray[np.uint8], decoders: ThreadPoolExecutor, *, replaced: bool, listed: bool
) -> None:
    clock = Clock()
    path = make_slide()
    make_slide("stays.ome.tif")
    catalogue = Catalogue([str(path.parent)], clock=clock)
    gone, stays = (one.slide for one in reversed(catalogue.list().slides))
    assert gone is not None
    assert stays is not None
    stays.read_region(0, 0, 0, 64, 64)
    before = catalogue._tiles.nbytes
    gone.read_region(0, 0, 0, 64, 64)
    decoders.shutdown()
    path.unlink()
    if replaced:
        make_slide(image=255 - tissue)
    clock.pass_seconds()
    if listed:
        catalogue.rescan()
    else:
        with contextlib.suppress(UnknownSlide):
            catalogue.get(gone.id)
    assert catalogue._tiles.nbytes == before
    assert f"{path} (deleted)" not in open_files(path.parent)


def mosaic_pixels(slide: TiffSlide, series: tifffile.TiffPageSeries, *_: object) -> object:
    """Any slide read as Leica's are."""
    return tiff_module._MosaicPixels(slide, tiff_module._Colours.of(series.keyframe))


@pytest.mark.parametrize("kind", ["tiles", "mosaic", "DICOM"])
def test_file_is_let_go_with_the_reader_and_whoever_still_reads(
    tmp_path: Path,
    tissue: npt.NDArray[np.uint8],
    monkeypatch: pytest.MonkeyPatch,
    decoders: ThreadPoolExecutor,
    kind: str,
) -> None:
    write_slide(tmp_path / "DICOM", tissue, levels=1)
    for name in ("tiles", "mosaic"):
        (tmp_path / name).mkdir()
        tifffile.imwrite(tmp_path / name / "a.tif", tissue, photometric="rgb", tile=(128, 128))
    if kind == "mosaic":
        monkeypatch.setattr(tiff_module, "_pixels_of", mosaic_pixels)
    ((item, _),) = Root(str(tmp_path / kind)).items()
    read_region = item.open(TileCache()).reader.read_region
    assert np.array_equal(read_region(0, 100, 100, 300, 300), tissue[100:400, 100:400])
    decoders.shutdown()
    assert len(open_files(tmp_path)) == 1
    del read_region
    assert open_files(tmp_path) == []


@pytest.mark.usefixtures("decoders")
def test_file_of_a_slide_that_is_refused_is_let_go(make_slide: MakeSlide) -> None:
    folder = make_slide().parent
    tifffile.imwrite(folder / "grey.tif", np.zeros((64, 64), np.uint8))
    (folder / "half.tif").write_bytes((folder / "grey.tif").read_bytes()[:20])
    (folder / "empty.png").touch()
    (folder / "no.dcm").write_bytes(bytes(128) + b"DICM")
    catalogue = Catalogue([str(folder)])
    assert sum(listed.problem is not None for listed in catalogue.list().slides) == 4
    assert open_files(folder) == [f"{folder}/tissue.ome.tif"]


def test_hidden_files_links_out_of_the_root_and_other_files_are_not_listed(
    make_slide: MakeSlide, tmp_path: Path
) -> None:
    root = make_slide().parent
    make_slide(".hidden.ome.tif")
    make_slide(".trash/old.ome.tif")
    (root / "report.pdf").write_bytes(b"%PDF")
    secret = tmp_path / "secret"
    secret.mkdir()
    shutil.copy(root / "tissue.ome.tif", secret / "secret.tif")
    (root / "link.tif").symlink_to(secret / "secret.tif")
    (root / "folder").symlink_to(secret)
    (root / "inside.tif").symlink_to(root / "tissue.ome.tif")
    names = [listed.name for listed in Catalogue([str(root)]).list().slides]
    assert names == ["inside.tif", "tissue.ome.tif"]


def test_file_that_becomes_a_link_out_of_the_root_is_gone(make_slide: MakeSlide, tmp_path: Path) -> None:
    clock = Clock()
    path = make_slide()
    catalogue = Catalogue([str(path.parent)], clock=clock)
    slide = only(catalogue)
    shutil.move(path, tmp_path / "outside.tif")
    path.symlink_to(tmp_path / "outside.tif")
    clock.pass_seconds()
    with pytest.raises(UnknownSlide):
        catalogue.get(slide.id)


@pytest.mark.parametrize("slide_id", ["", "../../etc/passwd", "a" * 20, "tissue.ome.tif", "\0"])
def test_unknown_ids_are_unknown_slides(make_slide: MakeSlide, slide_id: str) -> None:
    with pytest.raises(UnknownSlide):
        Catalogue([str(make_slide().parent)]).get(slide_id)


def test_listing_pages_through_everything_once_in_order_of_names(make_slide: MakeSlide) -> None:
    first = make_slide(image=np.full((64, 64, 3), 200, np.uint8))
    for name in ("b/x.tif", "a/x.tif", "Zoo.tif", "apple.tif", "c/x.tif"):
        (first.parent / name).parent.mkdir(exist_ok=True)
        shutil.copy(first, first.parent / name)
    catalogue = Catalogue([str(first.parent)])
    seen: list[tuple[str, str]] = []
    cursor = None
    while True:
        page = catalogue.list(limit=2, cursor=cursor)
        seen += [(listed.name, listed.id) for listed in page.slides]
        cursor = page.next
        if cursor is None:
            break
    assert [name for name, _ in seen] == ["apple.tif", "tissue.ome.tif", "x.tif", "x.tif", "x.tif", "Zoo.tif"]
    assert len({slide_id for _, slide_id in seen}) == 6
    assert [listed.name for listed in catalogue.list(q="ZO").slides] == ["Zoo.tif"]


def test_listing_goes_on_while_another_request_finds_a_file_gone(make_slide: MakeSlide) -> None:
    clock = Clock()
    gone = make_slide("gone.ome.tif")
    make_slide("here.ome.tif")
    catalogue = Catalogue([str(gone.parent)], clock=clock)
    gone_id = catalogue.list().slides[0].id

    class Roots(set[str]):
        """A look at it is a moment in the middle of the listing."""

        def __contains__(self, root: object) -> bool:
            gone.unlink(missing_ok=True)
            with contextlib.suppress(UnknownSlide):
                catalogue.get(gone_id)
            return super().__contains__(root)

    clock.pass_seconds(FRESH_S)
    assert [listed.name for listed in catalogue.list(roots=Roots(catalogue.root_names)).slides] == ["here.ome.tif"]


@pytest.mark.parametrize("cursor", ["nonsense", "ü", "e30=", "WzFd", ""])
def test_cursor_of_somebody_else_is_an_invalid_request(make_slide: MakeSlide, cursor: str) -> None:
    with pytest.raises(InvalidRequest):
        Catalogue([str(make_slide().parent)]).list(cursor=cursor)


def test_slide_that_cannot_be_read_stays_listed_with_its_problem(make_slide: MakeSlide) -> None:
    clock = Clock()
    good = make_slide()
    bad = good.with_name("bad.svs")
    bad.write_text("not a slide")
    catalogue = Catalogue([str(good.parent)], clock=clock)
    listed = {entry.name: entry for entry in catalogue.list().slides}
    assert isinstance(listed["bad.svs"].problem, UnreadableSlide)
    assert listed[good.name].slide is not None
    with pytest.raises(UnreadableSlide):
        catalogue.get(listed["bad.svs"].id)
    shutil.copy(good, bad)
    clock.pass_seconds()
    assert catalogue.get(listed["bad.svs"].id).width == 512


def test_opening_fails_once_for_a_while_then_is_tried_again(
    make_slide: MakeSlide, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    catalogue = Catalogue([str(make_slide().parent)], clock=clock)
    calls: list[int] = []

    def unreachable(*_: object) -> SlideReader:
        calls.append(1)
        raise OSError("the share is gone")

    monkeypatch.setattr(roots_module, "open_slide", unreachable)
    (listed,) = catalogue.list().slides
    for _ in range(3):
        with pytest.raises(UnreadableSlide):
            catalogue.get(listed.id)
    assert len(calls) == 1
    monkeypatch.undo()
    clock.pass_seconds(PROBLEM_S)
    assert catalogue.get(listed.id).width == 512


def test_slide_is_opened_once_however_many_ask(make_slide: MakeSlide, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[object] = []
    gate = threading.Barrier(8)

    def counted(*arguments: object) -> SlideReader:
        opened.append(arguments)
        return open_slide(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(roots_module, "open_slide", counted)
    root = make_slide().parent
    slide_id = only(Catalogue([str(root)])).id
    opened.clear()
    catalogue = Catalogue([str(root)])

    def ask(_: int) -> Slide:
        gate.wait()
        return catalogue.get(slide_id)

    with ThreadPoolExecutor(8) as threads:
        slides = list(threads.map(ask, range(8)))
    assert len(opened) == 1
    assert all(slide is slides[0] for slide in slides)


def test_open_readers_are_bounded_and_reopen_when_needed(
    make_slide: MakeSlide, tissue: npt.NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        make_slide(f"{number}.ome.tif", image=tissue[: 300 + number])
    opened: list[object] = []

    def counted(*arguments: object) -> SlideReader:
        opened.append(arguments)
        return open_slide(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(roots_module, "open_slide", counted)
    catalogue = Catalogue([str(make_slide("4.ome.tif").parent)], open_slides=2)
    slides = [listed.slide for listed in catalogue.list().slides]
    assert len(opened) == 5
    for slide in slides:
        assert slide is not None
        assert np.array_equal(slide.read_region(0, 0, 0, 512, slide.height), tissue[: slide.height])
    assert 5 + 3 <= len(opened) <= 5 + 5


def test_real_folder_lists_brightfield_and_names_what_is_refused(shared: Path) -> None:
    catalogue = Catalogue([str(shared / "data/slides")])
    listed = {entry.name: entry for entry in catalogue.list().slides}
    assert sum(entry.slide is not None and entry.slide.info.dicom is None for entry in listed.values()) == 6
    for name in ("grey16-microscope.tif", "hamamatsu-fluorescence-dapi.ndpi", "vectra-fluorescence.qptiff"):
        assert isinstance(listed[name].problem, NotBrightfield)


def test_pixel_size_missing_or_absurd_counts_as_the_default_and_warns(make_slide: MakeSlide) -> None:
    root = make_slide("good.ome.tif", mpp=0.5).parent
    make_slide("none.ome.tif", mpp=None)
    make_slide("absurd.ome.tif", mpp=264.6)
    found = {entry.name: entry.slide for entry in Catalogue([str(root)]).list().slides}
    told = {name: slide.slide_mpp(1.0) for name, slide in found.items() if slide is not None}
    assert told["good.ome.tif"] == (0.5, [])
    for name in ("none.ome.tif", "absurd.ome.tif"):
        mpp, (warning,) = told[name]
        assert mpp == 1.0
        assert "pixel size" in warning


def test_pixels_that_are_not_square_count_by_their_area_and_warn(tmp_path: Path) -> None:
    options = {"photometric": "rgb", "resolution": (40_000, 20_000), "resolutionunit": "centimeter"}
    tifffile.imwrite(tmp_path / "a.tif", np.full((64, 64, 3), 200, np.uint8), **options)
    mpp, (warning,) = only(Catalogue([str(tmp_path)])).slide_mpp(1.0)
    assert mpp == pytest.approx((0.25 * 0.5) ** 0.5)
    assert "100%" in warning


def test_url_roots_are_read_through_fsspec(make_slide: MakeSlide, tissue: npt.NDArray[np.uint8]) -> None:
    clock = Clock()
    memory = fsspec.filesystem("memory")
    path = make_slide()
    memory.pipe("/wsisam-test/day 1/tissue.tif", path.read_bytes())
    memory.pipe("/wsisam-test/.hidden/tissue.tif", b"x")
    try:
        catalogue = Catalogue(["memory://wsisam-test"], clock=clock)
        assert catalogue.readable()
        slide = only(catalogue)
        assert np.array_equal(slide.read_region(0, 0, 0, 512, 512), tissue)
        assert slide.fingerprint == only(Catalogue([str(path)])).fingerprint
        memory.rm("/wsisam-test/day 1/tissue.tif")
        clock.pass_seconds()
        with pytest.raises(UnknownSlide):
            catalogue.get(slide.id)
    finally:
        memory.rm("/wsisam-test", recursive=True)


@pytest.mark.parametrize(("failing", "listed"), [("find", 1), ("info", 1), ("cat_file", 2)])
def test_failing_url_root_leaves_the_others_listed(
    make_slide: MakeSlide, monkeypatch: pytest.MonkeyPatch, failing: str, listed: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise LookupError("503")  # aiohttp's and botocore's errors are no OSError either

    path = make_slide("here.tif")
    memory = fsspec.filesystem("memory")
    memory.pipe("/wsisam-failing/there.tif", path.read_bytes())
    try:
        catalogue = Catalogue([str(path.parent), "memory://wsisam-failing"])
        monkeypatch.setattr(MemoryFileSystem, failing, fail)
        found = {entry.name: entry.problem for entry in catalogue.list().slides}
        assert (len(found), found.pop("here.tif")) == (listed, None)
        assert isinstance(found.get("there.tif"), UnreadableSlide) == (failing == "cat_file")
        assert catalogue.readable() == (failing != "info")
    finally:
        monkeypatch.undo()
        memory.rm("/wsisam-failing", recursive=True)


def test_url_root_that_cannot_be_listed_keeps_its_slides(
    make_slide: MakeSlide, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: MemoryFileSystem, path: str, **__: object) -> None:
        raise ConnectionRefusedError(path)

    def lose(_: MemoryFileSystem, path: str, **__: object) -> None:
        raise FileNotFoundError(path)  # which HTTP's tells of a server that does not answer

    clock = Clock()
    memory = fsspec.filesystem("memory")
    memory.pipe("/wsisam-refused/there.tif", make_slide().read_bytes())
    try:
        catalogue = Catalogue(["memory://wsisam-refused"], clock=clock)
        slide = only(catalogue)
        monkeypatch.setattr(MemoryFileSystem, "find", AbstractFileSystem.find)  # most have no other
        monkeypatch.setattr(MemoryFileSystem, "ls", refuse)
        monkeypatch.setattr(MemoryFileSystem, "info", lose)
        clock.pass_seconds()
        with pytest.raises(UnreadableSlide, match="cannot be reached"):
            catalogue.get(slide.id)
        assert [listed.id for listed in catalogue.list().slides] == [slide.id]
        monkeypatch.undo()
        clock.pass_seconds()
        assert only(catalogue) is slide
    finally:
        monkeypatch.undo()
        memory.rm("/wsisam-refused", recursive=True)


def test_url_of_one_file_is_a_root(make_slide: MakeSlide) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/wsisam-one/a.tif", make_slide().read_bytes())
    memory.pipe("/wsisam-one/a.tif.tif", b"another")
    try:
        assert only(Catalogue(["memory://wsisam-one/a.tif"])).name == "a.tif"
    finally:
        memory.rm("/wsisam-one", recursive=True)


@pytest.mark.parametrize("told", ["Last-Modified", "Content-MD5", "modify", "modificationTime"])
def test_remote_file_replaced_by_one_of_its_size_is_noticed_by_what_its_server_tells(
    monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    """HTTP's, FTP's and WebHDFS' file systems have words of their own for it."""
    clock, changed = Clock(), ["before"]
    info = {"name": "/a.tif", "size": 4, "type": "file"}
    memory = fsspec.filesystem("memory")
    memory.pipe("/wsisam-replaced/a.tif", b"1234")
    monkeypatch.setattr(MemoryFileSystem, "info", lambda *_: {**info, told: changed[0]})
    try:
        root, path = Root("memory://wsisam-replaced"), "/wsisam-replaced/a.tif"
        before = root.stamp(path)
        changed[0] = "after"
        assert root.stamp(path) != before
        source = RemoteBytes(memory, path, clock=clock)
        assert source.read_at(1, 2) == b"23"
        changed[0] = "later"
        clock.pass_seconds(CHECK_S)
        for _ in range(2):
            with pytest.raises(UnreadableSlide, match="has been replaced"):
                source.read_at(1, 2)
    finally:
        monkeypatch.undo()
        memory.rm("/wsisam-replaced", recursive=True)


class ListingFileSystem(MemoryFileSystem):
    """Files of its own, of which it tells what its last listing said, as S3's does. `looks` counts what else is asked
    of single files.
    """

    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.store, self.pseudo_dirs, self.looks = {}, [""], 0

    def find(self, path: str, **_: Any) -> Any:
        names = super().find(path)
        self.dircache[path] = [self._told(name, quotes=False) for name in names]
        return {info["name"]: info for info in self.dircache[path]}

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        listed = self._ls_from_cache(path)
        self.looks += listed is None
        return self._told(path) if listed is None else dict(listed[0])

    def exists(self, path: str, **_: Any) -> bool:
        return path in self.dircache or any(name.startswith(f"{path}/") for name in self.store)

    def invalidate_cache(self, path: str | None = None) -> None:
        self.dircache.clear()

    def _told(self, path: str, *, quotes: bool = True) -> dict[str, Any]:
        """Azure's listings have no quotes around an ETag, its answers to HEAD have some."""
        if path not in self.store:
            raise FileNotFoundError(path)
        data = self.store[path].getvalue()
        etag = hashlib.sha256(data).hexdigest()
        return {"name": path, "size": len(data), "type": "file", "etag": f'"{etag}"' if quotes else etag}


@pytest.fixture
def listing(monkeypatch: pytest.MonkeyPatch) -> ListingFileSystem:
    """What every URL leads to, with a root /wsisam-listing."""
    filesystem = ListingFileSystem()
    monkeypatch.setattr(roots_module, "url_to_fs", lambda _: (filesystem, "/wsisam-listing"))
    return filesystem


def test_replaced_slide_is_noticed_before_anybody_lists_again(
    make_slide: MakeSlide, tissue: npt.NDArray[np.uint8], listing: ListingFileSystem
) -> None:
    clock, path = Clock(), "/wsisam-listing/a.tif"
    listing.pipe(path, make_slide().read_bytes())
    catalogue = Catalogue(["s3://wsisam-listing"], clock=clock)
    old = only(catalogue)
    source = RemoteBytes(listing, path, clock=clock)
    catalogue.list()
    listing.pipe(path, make_slide("other.tif", image=255 - tissue).read_bytes())
    clock.pass_seconds(CHECK_S)
    with pytest.raises(UnreadableSlide, match="has been replaced"):
        source.read_at(1, 2)
    catalogue.rescan()
    listing.pipe(path, make_slide("third.tif", image=tissue // 2).read_bytes())
    clock.pass_seconds(FRESH_S)
    new = catalogue.get(old.id)
    assert np.array_equal(new.read_region(0, 0, 0, 512, 512), tissue // 2)
    catalogue.rescan()
    listing.store.clear()
    assert not catalogue.readable()


def test_listing_asks_for_no_file_that_it_tells_enough_of(make_slide: MakeSlide, listing: ListingFileSystem) -> None:
    clock = Clock()
    for number in range(3):
        listing.pipe(f"/wsisam-listing/{number}.tif", make_slide().read_bytes())
    catalogue = Catalogue(["s3://wsisam-listing"], clock=clock)
    slides = [listed.slide for listed in catalogue.list().slides]
    listing.looks = 0
    clock.pass_seconds()
    catalogue.rescan()
    assert listing.looks == 0
    clock.pass_seconds(FRESH_S)
    assert [catalogue.get(slide.id) for slide in slides if slide is not None] == slides


def test_server_that_ignores_ranges_gives_no_pixels(make_slide: MakeSlide, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/wsisam-ranges/a.tif", make_slide().read_bytes())
    cat_file = MemoryFileSystem.cat_file
    monkeypatch.setattr(MemoryFileSystem, "cat_file", lambda self, path, **_: cat_file(self, path))
    try:
        (listed,) = Catalogue(["memory://wsisam-ranges"]).list().slides
        assert listed.problem is not None
        assert "cannot be read" in listed.problem.detail
    finally:
        memory.rm("/wsisam-ranges", recursive=True)


def test_url_identity_holds_no_credentials() -> None:
    assert Root("memory://user:secret@bucket/slides/").identity == "memory://bucket/slides"


def test_root_that_vanishes_is_not_readable_but_keeps_its_slides_listed(make_slide: MakeSlide, tmp_path: Path) -> None:
    clock = Clock()
    root = make_slide().parent
    catalogue = Catalogue([str(root)], clock=clock)
    slide = only(catalogue)
    root.rename(tmp_path / "unmounted")
    clock.pass_seconds()
    assert not catalogue.readable()
    catalogue.rescan()
    (tmp_path / "unmounted").rename(root)
    clock.pass_seconds()
    assert catalogue.readable()
    assert catalogue.get(slide.id).fingerprint == slide.fingerprint
