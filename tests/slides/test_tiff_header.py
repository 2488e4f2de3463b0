"""The structure of TIFFs: levels and other pages, texts and numbers of any type and encoding, many pages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image
from skimage.filters import gaussian

from slideio_pipe import open_slide
from slideio_pipe.errors import UnsupportedSlideError
from slideio_pipe.slides.backends.tiff_header import read_header

Pixels = np.ndarray
PLAIN: dict[str, Any] = {"photometric": "rgb", "metadata": None}
TILED: dict[str, Any] = {**PLAIN, "tile": (64, 64), "compression": "deflate"}


def scene(seed: int, width: int = 640, height: int = 480) -> Pixels:
    """Return (H, W, 3) uint8: blobs on white glass, arranged by the seed."""
    noise = gaussian(np.random.default_rng(seed).normal(size=(height, width)), 6)
    strength = np.clip(noise / noise.std() - 0.3, 0, 1)[..., None]
    return np.round(245 - strength * np.array([60, 150, 80])).astype(np.uint8)


def shrunk(pixels: Pixels, factor: int, way: str) -> Pixels:
    """Return the same image at a lower resolution, as different writers make it."""
    height, width = pixels.shape[0] // factor, pixels.shape[1] // factor
    if way == "nearest":
        return np.ascontiguousarray(pixels[::factor, ::factor][:height, :width])
    if way == "mean":
        cut = pixels[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
        return np.round(cut.mean(axis=(1, 3))).astype(np.uint8)
    resample = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}[way]
    return np.asarray(Image.fromarray(pixels).resize((width, height), resample))


@dataclass(frozen=True)
class Page:
    """A directory to write."""

    pixels: Pixels
    mark: int = 0  # NewSubfileType
    description: str | None = None
    options: tuple[tuple[str, Any], ...] = ()


def write(path: Path, pages: list[Page], **codec: Any) -> Path:
    """Write pages, tiled."""
    with tifffile.TiffWriter(path) as tif:
        for page in pages:
            options = {**TILED, **codec, **dict(page.options)}
            tif.write(page.pixels, subfiletype=1, description=page.description, software=False, **options)
    for index, page in enumerate(pages):
        with tifffile.TiffFile(path, mode="r+") as tif:  # tifffile writes no mask of three samples
            tif.pages[index].tags[254].overwrite(page.mark)
    return path


def sizes(path: Path) -> list[tuple[int, int]]:
    """Return width and height of the levels that our reader finds."""
    return [tuple(level.size) for level in read_header(path).levels]


# -- which pages are levels ---------------------------------------------------------------------------------------

APERIO = "Aperio Image Library v12.0.0\r\n"
BIG, HALF = scene(1), shrunk(scene(1), 2, "mean")
OTHER = shrunk(scene(2), 2, "mean")
ROUND = np.hypot(*np.meshgrid(np.linspace(-1.3, 1.3, 640), np.linspace(-1.3, 1.3, 480)))[..., None] < 1
DISC, OTHER_DISC = np.where(ROUND, BIG, 245).astype(np.uint8), np.where(ROUND, scene(2), 245)[::2, ::2].astype(np.uint8)
HALF_GREEN = shrunk(BIG, 2, "mean")
HALF_GREEN[:120] = (230, 240, 230)


@pytest.mark.parametrize(
    "other",
    [
        Page(OTHER),  # a second scene
        Page(OTHER, 0, "ImageJ=1.53"),
        Page(np.ascontiguousarray(BIG[::2, ::2][::-1])),  # the slide upside down
        Page(np.roll(HALF, 80, axis=1)),  # and moved
        Page(HALF_GREEN),  # the same in its lower half only
        Page(HALF, 1, "Scanner\nlabel 320x240"),
        Page(HALF, 1, APERIO + "label 320x240"),
        Page(HALF, 1, APERIO + "macro 320x240"),
        Page(HALF, 1, APERIO + "640x480 -> 320x240 - |AppMag = 20"),  # a tiled thumbnail
        Page(HALF, 1, "Label"),
        Page(HALF, 9),
        Page(HALF, 4),  # a transparency mask
        Page(HALF, 1, None, (("extratags", [(285, 2, 6, "Macro", True)]),)),  # PageName
    ],
    ids=lambda page: f"{page.mark} {page.description}",
)
def test_a_page_that_is_no_level_is_not_taken_for_one(tmp_path: Path, other: Page) -> None:
    """Tiled and of the slide's aspect, but another image, or named or marked as one."""
    path = write(tmp_path / "a.tif", [Page(BIG, description=APERIO + "640x480"), other])
    slide = open_slide(path, slide_mpp=0.5)
    assert slide.level_dimensions == ((640, 480),)
    assert len(slide.facts.associated) == 1
    half = slide.view(mpp=1.0).image.numpy().astype(int)
    assert np.abs(half - HALF).mean() < 2  # the mean of 2 by 2 pixels of the first page


@pytest.mark.combinations
@pytest.mark.parametrize("codec", [{}, {"compression": None}, {"compression": "jpeg"}, {"tile": (256, 256)}], ids=str)
@pytest.mark.parametrize("way", ["nearest", "mean", "bicubic", "lanczos"])
@pytest.mark.parametrize("factors", [(2, 4, 8), (4, 16), (3,)], ids=str)
def test_pages_without_a_mark_are_levels_if_they_show_the_slide(
    tmp_path: Path, way: str, factors: tuple[int, ...], codec: dict[str, Any]
) -> None:
    """Several writers mark no page as reduced; for every way to shrink."""
    pixels = scene(3, 901, 700)
    pages = [pixels, *(shrunk(pixels, factor, way) for factor in factors)]
    path = write(tmp_path / "a.tif", [Page(each) for each in pages], **codec)
    assert sizes(path) == [each.shape[1::-1] for each in pages]


def test_a_grey_page_is_no_level_of_a_coloured_slide(tmp_path: Path) -> None:
    """It is a mask or a preview, even if marked as reduced."""
    path = write(tmp_path / "a.tif", [Page(BIG), Page(HALF[..., 0], 1, options=(("photometric", "minisblack"),))])
    assert sizes(path) == [(640, 480)]


@pytest.mark.parametrize("code", [256, 257], ids=["width", "height"])
def test_a_page_without_pixels_is_skipped(tmp_path: Path, code: int) -> None:
    """Of no width or no height, left by a writer that stopped."""
    path = write(tmp_path / "a.tif", [Page(BIG), Page(HALF, 1), Page(HALF, 1)])
    with tifffile.TiffFile(path, mode="r+") as tif:
        tif.pages[1].tags[code].overwrite(0)
    assert sizes(path) == [(640, 480), (320, 240)]


@pytest.mark.parametrize("axes", ["ZYXS", "TYXS", "CYX"])
def test_planes_of_ome_are_refused(tmp_path: Path, axes: str) -> None:
    """None of them is the slide."""
    planes = np.stack([BIG, OTHER.repeat(2, 0).repeat(2, 1)])
    planes = planes if axes.endswith("S") else planes.transpose(0, 3, 1, 2).reshape(6, 480, 640)
    options = {} if axes.endswith("S") else {"photometric": "minisblack"}
    tifffile.imwrite(tmp_path / "a.ome.tif", planes, ome=True, metadata={"axes": axes}, tile=(64, 64), **options)
    with pytest.raises(UnsupportedSlideError, match=rf"several planes \({axes[0]}={len(planes)}\)"):
        open_slide(tmp_path / "a.ome.tif")


def test_a_serial_section_is_no_level(tmp_path: Path) -> None:
    """It has the same outline and other cells."""
    path = write(tmp_path / "a.tif", [Page(DISC), Page(OTHER_DISC)])
    assert sizes(path) == [(640, 480)]
    path = write(tmp_path / "b.tif", [Page(DISC), Page(shrunk(DISC, 2, "mean"))])
    assert sizes(path) == [(640, 480), (320, 240)]


def test_pyramids_of_noise_are_recognised(tmp_path: Path) -> None:
    """Every n-th pixel of noise does not correlate with its means."""
    pixels = np.random.default_rng(0).integers(0, 256, (500, 700, 3), np.uint8)
    path = write(tmp_path / "a.tif", [Page(shrunk(pixels, factor, "nearest")) for factor in (1, 4, 16)])
    assert sizes(path) == [(700, 500), (175, 125), (43, 31)]


def test_levels_of_two_scenes_are_assigned_to_their_scene(tmp_path: Path) -> None:
    """Marked or not, in any order: a page marked as reduced may be of the other scene."""
    second = scene(4, 560, 420)
    for mark in (0, 1):
        pages = [Page(BIG), Page(second), Page(shrunk(second, 2, "mean"), mark), Page(HALF, mark)]
        path = write(tmp_path / f"{mark}.tif", pages)
        header = read_header(path)
        assert [(tuple(level.size), level.directory) for level in header.levels] == [((640, 480), 0), ((320, 240), 3)]
        assert set(header.associated) == {"page-1", "page-2"}


def test_no_pixel_is_decoded_if_the_header_is_sufficient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Marked as reduced, a SubIFD, or named a level by Aperio with its size."""
    marked = write(tmp_path / "marked.tif", [Page(BIG), Page(HALF, 1)])
    named = write(
        tmp_path / "named.svs",
        [
            Page(BIG, 0, APERIO + "640x480 [0,0 640x480] (64x64) JPEG/RGB Q=70|MPP = 0.5"),
            Page(HALF, 0, APERIO + "640x480 [0,0 640x480] (64x64) -> 320x240 JPEG/RGB Q=70|MPP = 0.5"),
        ],
    )
    inside = tmp_path / "inside.tif"
    with tifffile.TiffWriter(inside) as tif:
        tif.write(BIG, subifds=1, **TILED)
        tif.write(HALF, **TILED)
    monkeypatch.setattr(tifffile.TiffPage, "decode", property(lambda page: pytest.fail("decoded")))
    for path in (marked, named, inside):
        assert sizes(path) == [(640, 480), (320, 240)]


def test_the_comparison_of_pages_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many images of one shape, 256 tiles of 256 px at most are decoded."""
    decoded = []
    decode = tifffile.TiffPage.decode.func

    def counted(page: Any) -> Any:
        def one(data: bytes, index: int, **options: Any) -> Any:
            decoded.append(page.tilewidth * page.tilelength)
            return decode(page)(data, index, **options)

        return one

    path = write(tmp_path / "a.tif", [Page(scene(seed, 400 - 8 * seed, 300 - 6 * seed)) for seed in range(30)])
    monkeypatch.setattr(tifffile.TiffPage, "decode", property(counted))
    assert sizes(path) == [(400, 300)]
    assert 0 < sum(decoded) <= 256 * 256 * 256


@pytest.mark.parametrize("pages", [100, 400])
def test_each_page_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pages: int) -> None:
    """Time is proportional to the number of pages: an SVS may have thousands of focal planes."""
    path = write(tmp_path / "a.tif", [Page(np.zeros((64, 64, 3), np.uint8))] * pages)
    parsed = []
    parse = tifffile.TiffPage.__init__
    monkeypatch.setattr(
        tifffile.TiffPage, "__init__", lambda page, *args, **kw: (parsed.append(page), parse(page, *args, **kw))[1]
    )
    header = read_header(path)
    assert len(header.associated) == pages - 1
    assert header.associated[f"page-{pages - 1}"].directory == pages - 1
    assert len(parsed) == pages


# -- texts in any encoding ----------------------------------------------------------------------------------------

TEXT = "Aperio Image Library v12\r\n640x480 [0,0 640x480] (64x64)|AppMag = 20|MPP = 0.484498|User = {}"


@pytest.mark.parametrize(
    "raw",
    [TEXT.encode().replace(b"{}", bytes([byte])) for byte in (0x81, 0x8D, 0x8F, 0x90, 0x9D)]
    + [
        TEXT.format("Müller").encode("latin-1"),
        TEXT.format("Müller").encode("utf-8"),
        TEXT.format("山田").encode("shift-jis"),
        TEXT.format("王伟").encode("gb18030"),
        TEXT.format("Иван").encode("koi8-r"),
    ],
    ids=repr,
)
def test_aperio_descriptions_in_any_encoding(tmp_path: Path, raw: bytes) -> None:
    """Vendor, resolution and objective equal OpenSlide's."""
    path = tmp_path / "a.svs"
    tifffile.imwrite(path, BIG, description=raw, **TILED)
    slide = open_slide(path)
    with openslide.OpenSlide(path) as oracle:
        assert slide.vendor == oracle.properties["openslide.vendor"] == "aperio"
        assert slide.mpp is not None
        assert slide.mpp.x == float(oracle.properties["openslide.mpp-x"])
        assert slide.facts.objective_power == float(oracle.properties["openslide.objective-power"])
    assert slide.facts.properties["aperio.MPP"] == "0.484498"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
def test_aperio_descriptions_in_wide_encodings(tmp_path: Path, encoding: str) -> None:
    """Two bytes per letter, or with a byte order mark, as some programs write; OpenSlide finds no SVS in them."""
    path = tmp_path / "a.svs"
    tifffile.imwrite(path, BIG, description=TEXT.format("Müller").encode(encoding), **TILED)
    slide = open_slide(path)
    assert (slide.vendor, slide.mpp, slide.facts.objective_power) == ("aperio", (0.484498, 0.484498), 20)
    assert slide.facts.properties["aperio.User"] == "Müller"


OME = """<?xml version="1.0" encoding="{encoding}"?>
<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Instrument ID="I:0"><Objective ID="O:0"
NominalMagnification="40"/></Instrument><Image ID="Image:0" Name="Gewebe für {name}"><Pixels ID="Pixels:0"
DimensionOrder="XYCZT" Type="uint8" SizeX="640" SizeY="480" SizeC="3" SizeZ="1" SizeT="1" PhysicalSizeX="0.25"
PhysicalSizeXUnit="µm" PhysicalSizeY="0.5" PhysicalSizeYUnit="µm"><Channel ID="C:0" SamplesPerPixel="3"/>
<TiffData IFD="0" PlaneCount="1"/></Pixels></Image></OME>"""


@pytest.mark.parametrize(
    ("encoding", "name"),
    [("utf-8", "Müller"), ("iso-8859-1", "M\x81ller"), ("utf-16", "Müller"), ("utf-8", "\x02"), ("utf-8", "&")],
    ids=repr,
)
def test_ome_xml_in_any_encoding(tmp_path: Path, encoding: str, name: str) -> None:
    """Also with a letter that XML forbids and parsers refuse."""
    path = tmp_path / "a.ome.tif"
    text = OME.format(encoding=encoding, name=name).encode(encoding)
    tifffile.imwrite(path, BIG, description=text, resolution=(300, 300), **TILED)
    slide = open_slide(path)
    assert (slide.vendor, slide.mpp, slide.facts.objective_power) == ("ome", (0.25, 0.5), 40)
    assert slide.dimensions == (640, 480)


# -- numbers of any type ------------------------------------------------------------------------------------------


def resolution(kind: int, count: int, value: Any, unit: tuple[int, int, Any] = (3, 1, 3)) -> list[tuple[Any, ...]]:
    """Return resolution tags of a TIFF type; the vertical one is half as fine."""
    half = tuple(v / 2 if kind in (11, 12) else v // 2 for v in value[:1]) + tuple(value[1:])
    return [(282, kind, count, value, True), (283, kind, count, half, True), (296, *unit, True)]


# TIFF 6.0: 3 SHORT, 4 LONG, 5 RATIONAL, 9 SLONG, 10 SRATIONAL, 11 FLOAT, 12 DOUBLE, 16 LONG8
@pytest.mark.parametrize(
    "tags",
    [
        resolution(5, 1, (20_000, 1)),
        resolution(5, 1, (200_000, 10)),
        resolution(10, 1, (20_000, 1)),
        resolution(3, 1, (20_000,)),
        resolution(4, 1, (20_000,)),
        resolution(9, 1, (20_000,)),
        resolution(16, 1, (20_000,)),
        resolution(11, 1, (20_000.0,)),
        resolution(12, 1, (20_000.0,)),
        resolution(12, 2, (20_000.0, 1.0)),
        resolution(12, 1, (20_000.0,), (4, 1, 3)),
        resolution(5, 1, (20_000, 1), (5, 1, (3, 1))),
        resolution(5, 1, (20_000, 1), (1, 1, b"\3")),
    ],
    ids=lambda tags: f"{tags[0][1]}x{tags[0][2]} unit {tags[2][1]}",
)
def test_resolution_tags_of_any_type(tmp_path: Path, tags: list[tuple[Any, ...]]) -> None:
    """20,000 and 10,000 px per cm are 0.5 and 1 µm; x and y are independent."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, BIG, software=False, resolution=(1, 1), resolutionunit=3, **TILED)
    for code, kind, _, value, _ in tags:
        with tifffile.TiffFile(path, mode="r+") as tif:
            tif.pages[0].tags[code].overwrite(value, dtype=kind)
    slide = open_slide(path)
    assert slide.mpp == pytest.approx((0.5, 1.0))
    assert slide.mpp_source == "file"


@pytest.mark.parametrize("value", [(0, 1), (1, 0), (0, 0)])
def test_resolutions_with_a_zero_are_none(tmp_path: Path, value: tuple[int, int]) -> None:
    """As numerator or denominator."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, BIG, software=False, resolution=(1, 1), **TILED)
    with tifffile.TiffFile(path, mode="r+") as tif:
        tif.pages[0].tags[282].overwrite(value)
    assert open_slide(path).mpp is None


# TIFF 6.0: 1 BYTE, 2 ASCII, 3 SHORT, 4 LONG, 9 SLONG, 12 DOUBLE, 16 LONG8. What libtiff, and so OpenSlide, takes.
@pytest.mark.parametrize(
    ("code", "kind"),
    [(code, kind) for code in (254, 256, 257, 258, 259, 262, 277, 284, 322, 323) for kind in (3, 4, 9, 16)]
    + [(code, 1) for code in (254, 258, 262, 284, 322, 323)]
    + [(34675, kind) for kind in (1, 2, 3, 4, 12, 16)],
)
def test_other_tags_of_any_type(tmp_path: Path, code: int, kind: int) -> None:
    """Pixels equal OpenSlide's; 254 marks reduced pages, 256 to 323 describe pixels and tiles, 34675 is ICC."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, BIG, subfiletype=0, iccprofile=bytes(200), **TILED)
    with tifffile.TiffFile(path, mode="r+") as tif:
        tag = tif.pages[0].tags[code]
        value = np.ravel(np.frombuffer(tag.value, np.uint8) if code == 34675 else tag.value).astype(int).tolist()
        new = bytes(value) if kind in (1, 2) else tuple(map(float if kind == 12 else int, value))
        tag.overwrite(new, dtype=kind)
    with openslide.OpenSlide(path) as oracle:
        expected = np.asarray(oracle.read_region((100, 50), 0, (300, 200)).convert("RGB"))
    slide = open_slide(path)
    assert np.array_equal(slide.read_region((100, 50), 0, (300, 200)), expected)
    assert slide.facts.icc_profile
