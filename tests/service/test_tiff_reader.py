"""Slides of the formats that hospitals have, and files that only look like them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image
from tiffslide import TiffSlide

from wsisam_service.errors import NotBrightfield, ServiceError, UnreadableSlide
from wsisam_service.slides.codestreams import image_size
from wsisam_service.slides.opening import open_slide
from wsisam_service.slides.reader import Level
from wsisam_service.slides.tiff import TiffReader
from wsisam_service.slides.tiff_facts import MAX_IMAGES
from wsisam_service.slides.tiles import TileCache

Pixels = npt.NDArray[np.uint8]
MakeSlide = Callable[..., Path]

BRIGHTFIELD = {
    "cmu-1-small-region.svs": (2220, 2967, 1, 0.499),
    "cmu-1-small-region-pyramid.ome.tif": (2220, 2967, 4, 0.499),
    "tcga-cr-7395-01a-01-ts1.svs": (4443, 3567, 2, None),
    "os-1-he.ome.tif": (1101, 1101, 1, 0.2271),
    "os-2-ki67-a.ome.tif": (2202, 2202, 1, 0.2271),
    "os-2-ki67-b.ome.tif": (1445, 1445, 1, 0.34605),
}


@pytest.mark.parametrize("name", BRIGHTFIELD)
def test_real_slide_tells_size_levels_and_pixel_size(shared: Path, name: str) -> None:
    width, height, levels, mpp = BRIGHTFIELD[name]
    slide = open_slide(shared / "data/slides" / name)
    assert (slide.width, slide.height, len(slide.info.levels)) == (width, height, levels)
    assert slide.mpp == (None if mpp is None else pytest.approx(mpp, rel=1e-3))
    assert slide.info.vendor == ("aperio" if name.endswith(".svs") else None)


@pytest.mark.parametrize("name", BRIGHTFIELD)
def test_regions_are_the_pixels_that_tiffslide_reads(shared: Path, name: str) -> None:
    path = shared / "data/slides" / name
    slide = open_slide(path)
    with TiffSlide(path) as reference:
        x, y, width, height = slide.width // 2 - 300, slide.height // 2 - 300, 530, 610
        expected = reference.read_region((x, y), 0, (width, height), as_array=True)
    assert np.array_equal(slide.read_region(0, x, y, width, height), expected)


def test_every_level_of_a_pyramid_is_the_page_of_that_level(shared: Path) -> None:
    path = shared / "data/slides/cmu-1-small-region-pyramid.ome.tif"
    slide = open_slide(path)
    with tifffile.TiffFile(path) as tiff:
        for number, level in enumerate(slide.info.levels):
            page = tiff.series[0].levels[number].asarray()
            assert np.array_equal(slide.read_region(number, 0, 0, level.width, level.height), page)


def test_scanners_levels_are_whole_factors_and_converters_are_quotients(shared: Path) -> None:
    scanned = open_slide(shared / "data/slides/tcga-cr-7395-01a-01-ts1.svs").info.levels[1]
    converted = open_slide(shared / "data/slides/cmu-1-small-region-pyramid.ome.tif").info.levels[3]
    assert scanned == Level(2221, 1783, 2.0, 2.0)
    assert converted.downsample_x == pytest.approx(2220 / 277)
    assert converted.downsample_y == pytest.approx(2967 / 370)


def test_outside_the_slide_is_white(make_slide: MakeSlide, tissue: Pixels) -> None:
    slide = open_slide(make_slide())
    region = slide.read_region(0, -10, 500, 30, 40)
    assert np.array_equal(region[:12, 10:], tissue[500:, :20])
    assert (region[:, :10] == 255).all()
    assert (region[12:] == 255).all()
    assert (slide.read_region(0, 9000, -9000, 8, 8) == 255).all()


def test_many_threads_read_the_same_pixels_as_one(shared: Path) -> None:
    path = shared / "data/slides/cmu-1-small-region.svs"
    places = [(x, y) for x in range(0, 2000, 190) for y in range(0, 2800, 700)]
    small_cache = TileCache(max_bytes=1 << 20)  # so that tiles come and go meanwhile
    slide, alone = open_slide(path, small_cache), open_slide(path)
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda place: slide.read_region(0, *place, 200, 200), places))
    for place, region in zip(places, together, strict=True):
        assert np.array_equal(region, alone.read_region(0, *place, 200, 200))
    assert small_cache.nbytes <= small_cache.max_bytes


@pytest.mark.parametrize(
    "name", ["grey16-microscope.tif", "hamamatsu-fluorescence-dapi.ndpi", "vectra-fluorescence.qptiff"]
)
def test_what_is_not_brightfield_is_refused(shared: Path, name: str) -> None:
    with pytest.raises(NotBrightfield):
        open_slide(shared / "data/slides" / name)


def ome_image(
    size: tuple[int, int] = (64, 64), pixel: str = "", channel: str = "", *, name: str = "", ifd: int = 0
) -> str:
    """An `Image` of OME-XML with attributes of its pixels and of its channel."""
    return f"""<Image ID="Image:{ifd}" Name="{name}"><Pixels ID="Pixels:{ifd}" DimensionOrder="XYCZT" Type="uint8"
        SizeX="{size[0]}" SizeY="{size[1]}" SizeC="3" SizeZ="1" SizeT="1" {pixel}><Channel ID="Channel:{ifd}:0"
        SamplesPerPixel="3" {channel}/><TiffData IFD="{ifd}" PlaneCount="1"/></Pixels></Image>"""


def write_ome(path: Path, xml: str, *images: Pixels) -> None:
    """An OME-TIFF of `images` with these `Image`s in its XML."""
    told = f"""<?xml version="1.0" encoding="UTF-8"?><!-- OME -->
        <OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">{xml}</OME>""".encode()
    with tifffile.TiffWriter(path, ome=False) as tiff:
        for number, image in enumerate(images):
            tiff.write(image, photometric="rgb", description=None if number else told, metadata=None)


@pytest.mark.parametrize(
    "channel",
    ['ContrastMethod="Fluorescence"', "ContrastMethod = 'Fluorescence'", "IlluminationType='Epifluorescence'"],
)
def test_ome_fluorescence_in_rgb_is_refused(tmp_path: Path, tissue: Pixels, channel: str) -> None:
    for size in ((512, 512), (500, 500)):  # the second is not the image's, which other software may have cut
        write_ome(tmp_path / "a.tif", ome_image(size, channel=channel), tissue)
        with pytest.raises(NotBrightfield, match="fluorescence"):
            open_slide(tmp_path / "a.tif")


def test_fluorescence_beside_the_slide_is_no_reason_to_refuse_it(tmp_path: Path, tissue: Pixels) -> None:
    beside = ome_image((64, 64), channel='ContrastMethod="Fluorescence"', ifd=1)
    write_ome(tmp_path / "a.tif", ome_image((512, 512)) + beside, tissue, tissue[:64, :64])
    assert np.array_equal(read_all(tmp_path / "a.tif"), tissue)


def test_ome_image_that_is_the_slide_is_found_among_others(tmp_path: Path, tissue: Pixels) -> None:
    macro = ome_image((640, 600), 'PhysicalSizeX="8"', name="macro image")
    overview = ome_image((128, 128), 'PhysicalSizeX="2"', ifd=1)
    slide = ome_image((512, 512), 'PhysicalSizeX="0.5"', ifd=2)
    images = np.zeros((600, 640, 3), np.uint8), tissue[::4, ::4], tissue
    write_ome(tmp_path / "a.tif", macro + overview + slide, *images)
    assert open_slide(tmp_path / "a.tif").mpp == 0.5
    assert np.array_equal(read_all(tmp_path / "a.tif"), tissue)


@pytest.mark.parametrize("name", ["H&E", "mIF"])
def test_slide_is_not_described_by_the_fluorescence_image_that_it_is_registered_to(
    tmp_path: Path, tissue: Pixels, name: str
) -> None:
    dyes = {"axes": "CYX", "Name": "mIF", "Channel": {"ContrastMethod": ["Fluorescence"] * 3}}
    with tifffile.TiffWriter(tmp_path / "a.tif", ome=True) as tiff:
        tiff.write(np.moveaxis(tissue, -1, 0), photometric="minisblack", metadata=dyes)
        tiff.write(tissue, photometric="rgb", metadata={"axes": "YXS", "Name": name, "PhysicalSizeX": 0.5})
    assert open_slide(tmp_path / "a.tif").mpp == 0.5
    assert np.array_equal(read_all(tmp_path / "a.tif"), tissue)


def test_pixel_size_is_not_that_of_a_macro_image_as_large_as_the_slide(tmp_path: Path, tissue: Pixels) -> None:
    macro = ome_image((512, 512), 'PhysicalSizeX="8"', name="macro")
    slide = ome_image((512, 512), 'PhysicalSizeX="0.5"', ifd=1)
    write_ome(tmp_path / "a.tif", macro + slide, 255 - tissue, tissue)
    assert open_slide(tmp_path / "a.tif").mpp == 0.5
    assert np.array_equal(read_all(tmp_path / "a.tif"), tissue)


def test_small_rgb_picture_of_a_fluorescence_slide_does_not_stand_for_it(tmp_path: Path, tissue: Pixels) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif", ome=True) as tiff:
        tiff.write(tissue[:64, :64], photometric="rgb", metadata={"axes": "YXS"})
        tiff.write(tissue[..., 0], photometric="minisblack", metadata={"axes": "YX"})
    with pytest.raises(NotBrightfield):
        open_slide(tmp_path / "a.tif")


@pytest.mark.parametrize(
    "name", ["Label", "macro", "label image", "Macro_Image", "a.svs [label]", "a.svs [macro image]", "a.svs - label"]
)
def test_label_alone_is_refused_in_words(tmp_path: Path, tissue: Pixels, name: str) -> None:
    write_ome(tmp_path / "a.tif", ome_image((512, 512), name=name), tissue)
    with pytest.raises(UnreadableSlide, match="label or macro"):
        open_slide(tmp_path / "a.tif")


@pytest.mark.parametrize(
    "name", ["Label-free CARS, colon 12", "macro-dissected tumour 3", "S21 A1, label 2", "[label] 7", "a - macro 2x"]
)
def test_slide_may_have_label_or_macro_in_its_name(tmp_path: Path, tissue: Pixels, name: str) -> None:
    write_ome(tmp_path / "alone.tif", ome_image((512, 512), name=name), tissue)
    thumbnail = ome_image((64, 64), name="thumbnail", ifd=1)
    write_ome(tmp_path / "beside.tif", ome_image((512, 512), name=name) + thumbnail, tissue, tissue[::8, ::8])
    for file in ("alone.tif", "beside.tif"):
        assert np.array_equal(read_all(tmp_path / file), tissue)


def test_pixel_size_is_not_that_of_an_image_in_another_file(tmp_path: Path, tissue: Pixels) -> None:
    elsewhere = '<TiffData IFD="0" PlaneCount="1"><UUID FileName="b.tif">urn:uuid:2</UUID></TiffData>'
    first = ome_image((80, 60), 'PhysicalSizeX="8"').replace('<TiffData IFD="0" PlaneCount="1"/>', elsewhere)
    write_ome(tmp_path / "a.tif", first + ome_image((512, 512), 'PhysicalSizeX="0.5"'), tissue)
    assert open_slide(tmp_path / "a.tif").mpp == 0.5


def broken_files(real: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "text": b"This is not a slide.\n" * 50,
        "magic only": b"II*\0",
        "header only": real[:4096],
        "half": real[: len(real) // 2],
        "noise in front": b"\0" * 100 + real,
        "picture header": b"\x89PNG\r\n\x1a\n" + b"\0" * 100,
    }


@pytest.mark.parametrize("kind", broken_files(b""))
@pytest.mark.parametrize("name", ["cmu-1-small-region.svs", "os-1-he.ome.tif"])
def test_broken_file_is_one_clear_sentence_without_its_path(
    shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, name: str
) -> None:
    path = tmp_path / "Meier_Anna.svs"
    path.write_bytes(broken_files((shared / "data/slides" / name).read_bytes())[kind])
    with pytest.raises(UnreadableSlide) as raised:
        read_all(path)
    assert raised.value.detail.endswith(".")
    assert "Meier" not in raised.value.detail + caplog.text


def test_slide_cut_off_within_its_pixels_opens_but_does_not_read(make_slide: MakeSlide, tmp_path: Path) -> None:
    whole = make_slide(levels=1)
    with tifffile.TiffFile(whole) as tiff:
        last = max(tiff.pages[0].dataoffsets)
    cut = tmp_path / "cut.tif"
    cut.write_bytes(whole.read_bytes()[: last + 10])
    slide = open_slide(cut)
    with pytest.raises(UnreadableSlide):
        slide.read_region(0, 0, 0, slide.width, slide.height)
    assert slide.read_region(0, 0, 0, 100, 100).shape == (100, 100, 3)


def test_damaged_tile_is_an_unreadable_slide(make_slide: MakeSlide) -> None:
    path = make_slide()
    with tifffile.TiffFile(path) as tiff:
        offset, length = tiff.pages[0].dataoffsets[0], tiff.pages[0].databytecounts[0]
    data = bytearray(path.read_bytes())
    data[offset : offset + length] = b"\x55" * length
    path.write_bytes(data)
    with pytest.raises(UnreadableSlide):
        open_slide(path).read_region(0, 0, 0, 10, 10)


def test_transparent_pixels_are_white(tmp_path: Path, tissue: Pixels) -> None:
    rgba = np.dstack([tissue, np.full(tissue.shape[:2], 255, np.uint8)])
    rgba[:, :100, 3] = 0
    tifffile.imwrite(tmp_path / "a.tif", rgba, photometric="rgb", extrasamples=["unassalpha"])
    Image.fromarray(rgba).save(tmp_path / "a.png")
    no_black = Image.fromarray(np.where(rgba[..., 3:] > 0, tissue, 0).astype(np.uint8))
    no_black.save(tmp_path / "b.png", transparency=(0, 0, 0))
    for name in ("a.tif", "a.png", "b.png"):
        region = open_slide(tmp_path / name).read_region(0, 0, 0, 512, 512)
        assert (region[:, :100] == 255).all()
        assert np.array_equal(region[:, 100:], tissue[:, 100:])


@pytest.mark.parametrize(("kind", "shown"), [("unspecified", 100), ("assocalpha", 227), ("unassalpha", 177)])
def test_fourth_channel_is_what_the_file_says(tmp_path: Path, kind: str, shown: int) -> None:
    pixels = np.full((64, 64, 4), (100, 100, 100, 128), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=[kind])
    assert (read_all(tmp_path / "a.tif") == shown).all()


@pytest.mark.parametrize("ome", [True, False])
@pytest.mark.parametrize("layout", [{"tile": (128, 128)}, {"rowsperstrip": 100}])
def test_colour_planes_apart_read_as_rgb(
    tmp_path: Path, tissue: Pixels, *, ome: bool, layout: dict[str, object]
) -> None:
    levels = [tissue, tissue[::2, ::2]]
    options = {"photometric": "rgb", "planarconfig": "separate", "compression": "deflate", **layout}
    with tifffile.TiffWriter(tmp_path / "a.tif", ome=ome) as tiff:
        tiff.write(np.moveaxis(levels[0], -1, 0), subifds=1, metadata={"axes": "CYX"} if ome else None, **options)
        tiff.write(np.moveaxis(levels[1], -1, 0), subfiletype=1, metadata=None, **options)
    for read, level in zip(read_levels(tmp_path / "a.tif"), levels, strict=True):
        assert np.array_equal(read, level)


def test_tile_left_out_of_all_colour_planes_is_white(tmp_path: Path) -> None:
    tiles = [None if number % 4 == 3 else np.full((64, 64), 100, np.uint8) for number in range(12)]
    options = {"photometric": "rgb", "planarconfig": "separate", "metadata": None, "compression": "deflate"}
    tifffile.imwrite(tmp_path / "a.tif", iter(tiles), shape=(3, 128, 128), dtype="uint8", tile=(64, 64), **options)
    region = read_all(tmp_path / "a.tif")
    assert (region[64:, 64:] == 255).all()
    assert (region[:64] == 100).all()


@pytest.mark.parametrize("layout", [{"tile": (64, 64)}, {"rowsperstrip": 64}])
def test_tile_left_out_of_one_colour_plane_has_none_of_that_colour(tmp_path: Path, layout: dict[str, object]) -> None:
    pixels = np.full((3, 100, 128), 100, np.uint8)
    pixels[1, 64:, 64 * ("tile" in layout) :] = 0
    path, options = tmp_path / "a.tif", {"photometric": "rgb", "planarconfig": "separate", "compression": "deflate"}
    tifffile.imwrite(path, pixels, metadata=None, **options, **layout)
    with tifffile.TiffFile(path, mode="r+") as tiff:
        counts = tiff.pages[0].tags["TileByteCounts" if "tile" in layout else "StripByteCounts"]
        left_out = 7 if "tile" in layout else 3
        counts.overwrite([0 if number == left_out else count for number, count in enumerate(counts.value)])
    assert np.array_equal(read_all(path), np.moveaxis(pixels, 0, -1))


def test_striped_tiff_and_its_last_short_strip_read(tmp_path: Path, tissue: Pixels) -> None:
    tifffile.imwrite(tmp_path / "a.tif", tissue[:500], photometric="rgb", rowsperstrip=64)
    assert np.array_equal(open_slide(tmp_path / "a.tif").read_region(0, 0, 0, 512, 500), tissue[:500])


def jpeg(image: Pixels) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(image, colorspace="RGB", outcolorspace="RGB"))


def jpeg_2000(image: Pixels) -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(image, codecformat="j2k", level=0))


def jp2(image: Pixels) -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(image, codecformat="jp2", level=0))


def jp2_with_a_small_one_in_another_box(image: Pixels) -> bytes:
    file, decoy = jp2(image), jpeg_2000(image[:8, :8])
    return file[:32] + struct.pack(">I4s", 8 + len(decoy), b"uuid") + decoy + file[32:]


def lossless_jpeg(image: Pixels) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(image, colorspace="RGB", outcolorspace="RGB", lossless=True))


def webp(image: Pixels, **options: object) -> bytes:
    return bytes(imagecodecs.webp_encode(image, **options))


TILES: dict[str, tuple[int, Callable[[Pixels], bytes]]] = {
    "JPEG": (7, jpeg),
    "JPEG with junk": (7, lambda image: b"\xff\xd8\x00\xff" + jpeg(image)[2:]),
    "lossless JPEG": (7, lossless_jpeg),
    "JPEG 2000": (34712, jpeg_2000),
    "JP2": (34712, jp2),
    "JP2 with a decoy": (34712, jp2_with_a_small_one_in_another_box),
    "Aperio": (33005, jpeg_2000),
    "PNG": (34933, lambda image: bytes(imagecodecs.png_encode(image))),
    "WebP": (50001, lambda image: webp(image, level=90, lossless=False)),
    "lossless WebP": (50001, lambda image: webp(image, lossless=True)),
    "WebP with alpha": (50001, lambda image: webp(np.dstack([image, image[..., 0]]), level=90, lossless=False)),
}


@pytest.mark.parametrize("kind", TILES)
def test_tile_that_says_it_is_much_larger_is_refused_before_it_is_decoded(
    tmp_path: Path, tissue: Pixels, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    compression, encode = TILES[kind]
    path, samples = tmp_path / "a.tif", 4 if "alpha" in kind else 3
    options = {"dtype": "uint8", "tile": (256, 256), "photometric": "rgb", "extrasamples": [0] * (samples - 3)}

    def read(image: Pixels) -> Pixels:
        tifffile.imwrite(path, iter([encode(image)]), shape=(256, 256, samples), compression=compression, **options)
        return open_slide(path).read_region(0, 0, 0, 256, 256)

    assert np.abs(read(tissue[:256, :256]).astype(int) - tissue[:256, :256]).mean() < 12
    with pytest.raises(UnreadableSlide) as raised:
        read(tissue)
    assert raised.value.__cause__ is None  # and not that what was decoded fitted no tile


def jpeg_tile_as_read(path: Path, tile: bytes) -> Pixels:
    options = {"shape": (256, 256, 3), "dtype": "uint8", "tile": (256, 256), "photometric": "rgb"}
    tifffile.imwrite(path, iter([tile]), compression=7, **options)
    return read_all(path)


def test_jpeg_tile_reads_whose_profile_has_the_bytes_of_a_frame(tmp_path: Path, tissue: Pixels) -> None:
    profile = b"\xff\xe2" + struct.pack(">H", 48) + b"ICC_PROFILE\0\1\1" + b"\xff\xc3" + b"\x7f" * 30
    tile = jpeg(tissue[:256, :256])
    region = jpeg_tile_as_read(tmp_path / "a.tif", tile[:2] + profile + tile[2:])
    assert np.abs(region.astype(int) - tissue[:256, :256]).mean() < 12


def test_jpeg_tile_that_libjpeg_refuses_goes_to_no_other_decoder(tmp_path: Path, tissue: Pixels) -> None:
    tile = lossless_jpeg(tissue[:256, :256])
    at = tile.index(b"\xff\xc3")
    unknown = bytes.fromhex("ffc5 0011 08 0100 0100 03 011100 021101 031101")
    with pytest.raises(UnreadableSlide):
        jpeg_tile_as_read(tmp_path / "a.tif", tile[:at] + unknown + tile[at:])


def test_tiles_of_colour_planes_apart_are_bounded_too(tmp_path: Path, tissue: Pixels) -> None:
    options = {"shape": (3, 128, 128), "dtype": "uint8", "tile": (128, 128), "metadata": {"axes": "CYX"}}
    tiles = (jpeg_2000(tissue[..., plane]) for plane in range(3))
    kind = {"photometric": "rgb", "planarconfig": "separate", "compression": 34712}
    tifffile.imwrite(tmp_path / "a.tif", tiles, **options, **kind)
    with pytest.raises(UnreadableSlide) as raised:
        read_all(tmp_path / "a.tif")
    assert raised.value.__cause__ is None


def test_compression_whose_tiles_do_not_tell_their_size_is_refused(tmp_path: Path, tissue: Pixels) -> None:
    tifffile.imwrite(tmp_path / "a.tif", tissue, photometric="rgb", tile=(256, 256), compression="jpegxl")
    with pytest.raises(UnreadableSlide, match="compressed"):
        open_slide(tmp_path / "a.tif")


@pytest.mark.parametrize("compression", [None, "lzw", "jpeg2000"])
def test_ycbcr_that_no_codec_converts_comes_out_as_rgb(tmp_path: Path, tissue: Pixels, compression: str | None) -> None:
    path, ycbcr = tmp_path / "a.tif", np.asarray(Image.fromarray(tissue).convert("YCbCr"))
    lossless = {"compressionargs": {"mct": False, "reversible": True}} if compression == "jpeg2000" else {}
    options = {"tile": (256, 256), "photometric": "rgb", "extratags": [(530, 3, 2, (1, 1), True)]}
    tifffile.imwrite(path, ycbcr, compression=compression, **options, **lossless)
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[0].tags["PhotometricInterpretation"].overwrite(6)
    assert np.abs(read_all(path).astype(int) - tissue).mean() < 2


@pytest.mark.parametrize(("told", "mode"), [("Aperio Image Library v11 |MPP = 0.5", "YCbCr"), ("Bio-Formats", "RGB")])
def test_aperios_number_for_ycbcr_means_that_in_aperios_files_only(
    tmp_path: Path, tissue: Pixels, told: str, mode: str
) -> None:
    samples = np.asarray(Image.fromarray(tissue[:256, :256]).convert(mode))
    tile = imagecodecs.jpeg2k_encode(samples, level=0, codecformat="j2k", mct=False, reversible=True)
    path = tmp_path / "a.tif"
    options = {"shape": (256, 256, 3), "dtype": "uint8", "tile": (256, 256), "photometric": "rgb", "metadata": None}
    tifffile.imwrite(path, iter([tile]), compression=33003, description=told, **options)
    region = open_slide(path).read_region(0, 0, 0, 256, 256)
    assert np.abs(region.astype(int) - tissue[:256, :256]).mean() < 2


@pytest.mark.parametrize(
    ("power", "size", "told"),
    [
        ("20", "0,4990", (20.0, 0.499)),
        ("20,5", "0.25", (20.5, 0.25)),
        ("40x", "0.25", (40.0, 0.25)),
        ("", "", (None, None)),
        ("twenty", "nan", (None, None)),
        ("0", "-1", (None, None)),
    ],
)
def test_aperios_numbers_are_read_however_they_are_written(
    tmp_path: Path, tissue: Pixels, power: str, size: str, told: tuple[float | None, float | None]
) -> None:
    text = f"Aperio Image Library v11 \r\n512x512|AppMag = {power}|MPP = {size}"
    options = {"photometric": "rgb", "tile": (256, 256), "metadata": None, "description": text}
    tifffile.imwrite(tmp_path / "a.svs", tissue, **options)
    info = open_slide(tmp_path / "a.svs").info
    assert (info.objective_power, info.mpp) == told


def test_resolution_tag_that_is_absurd_is_told_as_it_is(tmp_path: Path, tissue: Pixels) -> None:
    tifffile.imwrite(tmp_path / "a.tif", tissue, photometric="rgb", resolution=(96, 96), resolutionunit="inch")
    assert open_slide(tmp_path / "a.tif").mpp == pytest.approx(264.58, rel=1e-3)


@pytest.mark.parametrize(("size", "unit", "mpp"), [(0.5, "µm", 0.5), (250.0, "nm", 0.25), (1.0, "pixel", None)])
def test_pixel_size_is_read_from_ome_xml(
    tmp_path: Path, tissue: Pixels, size: float, unit: str, mpp: float | None
) -> None:
    path = tmp_path / "a.ome.tif"
    units = {"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit}
    metadata = {"axes": "YXS", "PhysicalSizeX": size, "PhysicalSizeY": size, **units}
    tifffile.imwrite(path, tissue, photometric="rgb", ome=True, metadata=metadata)
    assert open_slide(path).mpp == mpp


@pytest.mark.parametrize(
    ("attributes", "mpp"),
    [
        ('PhysicalSizeX="0.5" PhysicalSizeXUnit="&#181;m"', 0.5),
        ('PhysicalSizeX="0.5" PhysicalSizeXUnit="&#xB5;m"', 0.5),
        ('PhysicalSizeX="0.5" PhysicalSizeXUnit="\N{GREEK SMALL LETTER MU}m"', 0.5),
        ("PhysicalSizeX='0.5'", 0.5),
        ('PhysicalSizeX="0,5"', None),
        ('PhysicalSizeX="nan" PhysicalSizeY="0.5"', 0.5),
    ],
)
def test_pixel_size_is_read_however_the_xml_is_spelled(tmp_path: Path, attributes: str, mpp: float | None) -> None:
    path = tmp_path / "a.tif"
    write_ome(path, ome_image(pixel=attributes), np.full((64, 64, 3), 200, np.uint8))
    assert open_slide(path).mpp == mpp


def test_bounds_come_from_the_files_properties(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shared / "data/slides/cmu-1-small-region.svs"
    real = TiffSlide(path).properties
    bounds = {"x": "100", "y": "200", "width": "1000", "height": "900"}
    told = {f"openslide.bounds-{name}": value for name, value in bounds.items()}
    without = {key: value for key, value in real.items() if "bounds" not in key}
    monkeypatch.setattr(TiffSlide, "properties", without | told)
    assert open_slide(path).info.bounds == (100, 200, 1000, 900)


def test_picture_that_is_grey_or_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (50, 50)).save(tmp_path / "grey.png")
    with pytest.raises(NotBrightfield):
        open_slide(tmp_path / "grey.png")
    monkeypatch.setattr("wsisam_service.slides.picture.MAX_PICTURE_PIXELS", 2499)
    Image.new("RGB", (50, 50)).save(tmp_path / "large.jpg")
    with pytest.raises(UnreadableSlide):
        open_slide(tmp_path / "large.jpg")


def read_all(path: Path) -> Pixels:
    """All pixels of level 0, for files that may break at any step."""
    slide = open_slide(path)
    return slide.read_region(0, 0, 0, slide.width, slide.height)


def read_levels(path: Path) -> list[Pixels]:
    slide = open_slide(path)
    return [slide.read_region(number, 0, 0, at.width, at.height) for number, at in enumerate(slide.info.levels)]


def without_most_tiles(path: Path, tissue: Pixels) -> None:
    tifffile.imwrite(path, tissue, photometric="rgb", tile=(128, 128))
    with tifffile.TiffFile(path, mode="r+") as tiff:
        for name in ("TileOffsets", "TileByteCounts"):
            tag = tiff.pages[0].tags[name]
            tag.overwrite(tag.value[:2])


def without_rows_in_a_tile(path: Path, tissue: Pixels) -> None:
    tifffile.imwrite(path, tissue, photometric="rgb", tile=(128, 128), compression="lzw", predictor=True)
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[0].tags["TileLength"].overwrite(0)
        tiff.pages[0].tags["Predictor"].overwrite(99)  # known to nobody, so that nobody looks at the rows


def with_a_grey_level(path: Path, tissue: Pixels) -> None:
    told, tiles = "Aperio Image Library v11\r\n512x512 |AppMag = 20|MPP = 0.5", {"tile": (128, 128), "metadata": None}
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(tissue, description=told, photometric="rgb", **tiles)
        tiff.write(tissue[:100, :100], photometric="rgb", metadata=None)
        tiff.write(tissue[::2, ::2, 0], description=told[:26], photometric="minisblack", **tiles)


@pytest.mark.parametrize("write", [without_most_tiles, without_rows_in_a_tile, with_a_grey_level])
def test_damaged_layout_is_an_unreadable_slide(
    tmp_path: Path, tissue: Pixels, write: Callable[[Path, Pixels], None]
) -> None:
    write(tmp_path / "a.svs", tissue)
    with pytest.raises(UnreadableSlide):
        read_levels(tmp_path / "a.svs")


def chain_of_pages(count: int) -> bytes:
    """A TIFF of `count` pages of nothing, 30 bytes each."""
    page = struct.pack("<HHHIIHHII", 2, 256, 4, 1, 64, 257, 4, 1, 64)
    return (
        b"II*\0"
        + b"".join(struct.pack("<I", 8 + number * (len(page) + 4)) + page for number in range(count))
        + bytes(4)
    )


def page_of_pages(path: Path, count: int) -> bytes:
    """A slide that names itself as `count` more of its images."""
    image = np.full((64, 64, 3), 200, np.uint8)
    tifffile.imwrite(path, image, photometric="rgb", extratags=[(65000, 4, count, [8] * count, True)])
    with tifffile.TiffFile(path) as tiff:
        at = tiff.pages[0].tags[65000].offset
    data = path.read_bytes()
    return data[:at] + struct.pack("<H", 330) + data[at + 2 :]


@pytest.mark.parametrize("kind", ["chain", "page"])
def test_images_in_a_file_are_bounded(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(chain_of_pages(MAX_IMAGES + 1) if kind == "chain" else page_of_pages(path, MAX_IMAGES))
    with pytest.raises(UnreadableSlide, match="images"):
        open_slide(path)


def test_no_error_but_ours_whatever_byte_is_damaged(make_slide: MakeSlide) -> None:
    path = make_slide(image=np.full((300, 300, 3), 200, np.uint8))
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(60):
        data = bytearray(whole)
        for position in random.integers(0, len(data), 8):
            data[position] = random.integers(0, 256)
        path.write_bytes(data)
        try:
            slide = open_slide(path)
            if isinstance(slide, TiffReader) and slide.width * slide.height < 10**6:
                read_all(path)
        except ServiceError:
            pass


def test_info_can_be_replaced_for_what_no_real_slide_has(make_slide: MakeSlide) -> None:
    slide = open_slide(make_slide())
    slide.info = replace(slide.info, bounds=(10, 20, 300, 200))
    assert (slide.info.bounds, slide.width) == ((10, 20, 300, 200), 512)


def test_a_codestream_tells_its_width_and_height_and_ends_where_it_is_none(tissue: npt.NDArray[np.uint8]) -> None:
    image = np.ascontiguousarray(tissue[:20, :33])
    extended = b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + (32).to_bytes(3, "little") + (19).to_bytes(3, "little")
    jp2 = bytes(imagecodecs.jpeg2k_encode(image, codecformat="jp2"))
    codestream = jp2.index(b"jp2c") - 4
    wide = (1).to_bytes(4, "big") + b"jp2c" + (len(jp2) - codestream + 8).to_bytes(8, "big") + jp2[codestream + 8 :]
    for compression, data in (
        (7, imagecodecs.jpeg8_encode(image)),
        (34712, jp2),
        (34712, jp2[:codestream] + wide),
        (34933, imagecodecs.png_encode(image)),
        (50001, imagecodecs.webp_encode(image, lossless=True)),
        (50001, imagecodecs.webp_encode(image, level=80, lossless=False)),
        (50001, extended),
    ):
        assert image_size(compression, bytes(data)) == (33, 20)
    for compression, data in ((34712, bytes(32)), (34712, jp2[:codestream]), (50001, b"RIFX" + extended[4:])):
        with pytest.raises(ValueError, match="no"):
            image_size(compression, data)
