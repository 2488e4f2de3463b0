"""One conformance class for all backends: a new backend subclasses it."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import pyvips
import tifffile
import zarr
from PIL import Image
from pyramids import coordinate_pixels, write_pyramid

from slideio_pipe.errors import CorruptSlideError, UnsupportedSlideError
from slideio_pipe.geometry import Rect, Size
from slideio_pipe.slides.backends import open_backend
from slideio_pipe.slides.backends.array import NumpyBackend
from slideio_pipe.slides.backends.base import Backend
from slideio_pipe.slides.backends.tiff_header import read_header

# The public DICOM slide is a level without its full resolution.
pytestmark = pytest.mark.filterwarnings("ignore::slideio_pipe.errors.IncompleteSlideWarning")

WIDTH, HEIGHT = 700, 500
PIXELS = coordinate_pixels(WIDTH, HEIGHT)
RANDOM = np.random.default_rng(1)
ALPHA = RANDOM.integers(0, 256, (HEIGHT, WIDTH, 1), dtype=np.uint8)
RGBA = np.concatenate([PIXELS, ALPHA], axis=2)
GREY = PIXELS[..., 0]


def on_white(rgba: np.ndarray) -> np.ndarray:
    """Straight alpha over white, rounded to the nearest, in float64."""
    alpha = rgba[..., 3:] / 255
    return np.floor(rgba[..., :3] * alpha + 255 * (1 - alpha) + 0.5).astype(np.uint8)


def repeated(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


@dataclass(frozen=True)
class Made:
    """A slide that was written for a test, and its expected content."""

    open: Callable[[], Backend]
    level0: np.ndarray  # (H, W, 3)
    sizes: tuple[tuple[int, int], ...] = ((WIDTH, HEIGHT),)
    levels: tuple[np.ndarray, ...] = ()  # expected pixels of all levels, when they are known
    tolerance: int = 0
    associated: tuple[str, ...] = ()


def fetch(image: Any, rect: Rect) -> np.ndarray:
    return np.frombuffer(pyvips.Region.new(image).fetch(*rect), np.uint8).reshape(rect.height, rect.width, 3)


class Conformance(ABC):
    """Guarantees of every backend."""

    @abstractmethod
    def make(self, folder: Path) -> Made:
        """Write the slide."""

    @pytest.fixture
    def made(self, tmp_path: Path) -> Made:
        return self.make(tmp_path)

    @pytest.fixture
    def backend(self, made: Made) -> Backend:
        return made.open()

    def test_levels_are_listed_largest_first(self, made: Made, backend: Backend) -> None:
        """Sizes come from the file; every level has a stored tile."""
        assert backend.facts.pyramid.levels == tuple(Size(*size) for size in made.sizes)
        assert len(backend.facts.tile_sizes) == len(made.sizes)
        assert all(tile.width > 0 and tile.height > 0 for tile in backend.facts.tile_sizes)

    def test_images_are_lazy_rgb(self, made: Made, backend: Backend) -> None:
        """3 bands, uchar, sRGB, of the stated size."""
        for level, size in enumerate(made.sizes):
            image = backend.level_image(level)
            assert (image.width, image.height) == size
            assert (image.bands, image.format, image.interpretation) == (3, "uchar", "srgb")

    def test_level0_equals_the_oracle(self, made: Made, backend: Backend) -> None:
        """Pixel by pixel, in one go."""
        difference = backend.level_image(0).numpy().astype(int) - made.level0
        assert np.abs(difference).max() <= made.tolerance

    def test_lower_levels_equal_the_oracle(self, made: Made, backend: Backend) -> None:
        """No level is exchanged with another."""
        for level, expected in enumerate(made.levels):
            assert np.array_equal(backend.level_image(level).numpy(), expected)

    def test_any_rectangle_equals_the_oracle(self, made: Made, backend: Backend) -> None:
        """Corners, edges, single pixels and random positions, read by a region."""
        width, height = made.sizes[0]
        rects = [Rect(0, 0, 1, 1), Rect(width - 1, height - 1, 1, 1), Rect(0, height // 2, width, 1)]
        for x, y in RANDOM.integers(0, [max(1, width - 64), max(1, height - 64)], (8, 2)).tolist():
            rects.append(Rect(x, y, min(64, width - x), min(64, height - y)))
        for rect in rects:
            got = fetch(backend.level_image(0), rect)
            expected = made.level0[rect.y : rect.y + rect.height, rect.x : rect.x + rect.width]
            assert np.abs(got.astype(int) - expected).max() <= made.tolerance
            assert backend.failure(0, rect, got) is None

    def test_a_level_is_one_shared_image(self, made: Made, backend: Backend) -> None:
        """libvips' cache of decoded tiles belongs to an image: two images would decode twice."""
        for level in range(len(made.sizes)):
            assert backend.level_image(level) is backend.level_image(level)

    def test_threads_read_the_same(self, made: Made, backend: Backend) -> None:
        """Four threads, a region each, one image."""
        wrong: list[int] = []

        def work(seed: int) -> None:
            image, generator = backend.level_image(0), np.random.default_rng(seed)
            size = [max(1, image.width - 50), max(1, image.height - 50)]
            for x, y in generator.integers(0, size, (10, 2)).tolist():
                rect = Rect(x, y, min(50, image.width - x), min(50, image.height - y))
                expected = made.level0[y : y + rect.height, x : x + rect.width]
                if np.abs(fetch(image, rect).astype(int) - expected).max() > made.tolerance:
                    wrong.append(seed)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []

    def test_associated_images_are_no_levels(self, made: Made, backend: Backend) -> None:
        """They have names, and are lazy RGB too."""
        assert backend.facts.associated == made.associated
        for name in made.associated:
            image = backend.associated_image(name)
            assert (image.bands, image.format) == (3, "uchar")
            assert image.numpy().shape == (image.height, image.width, 3)


def single(name: str, pixels: np.ndarray = PIXELS, expected: np.ndarray = PIXELS, **options: Any) -> type[Conformance]:
    """Return the conformance test of a one-level TIFF."""

    class Single(Conformance):
        def make(self, folder: Path) -> Made:
            path = folder / "slide.tif"
            tifffile.imwrite(path, pixels, **{"photometric": "rgb", "metadata": None, **options})
            return Made(lambda: open_backend(path), expected)

    Single.__name__ = Single.__qualname__ = name
    return Single


TILED: dict[str, Any] = {"tile": (128, 128), "compression": "deflate"}
ZSTD: dict[str, Any] = {"tile": (128, 128), "compression": "zstd"}
MAP = RANDOM.integers(0, 256, (3, 256)).astype(np.uint16) * 257
TestTiled = single("TestTiled", **TILED)
TestUncompressed = single("TestUncompressed", tile=(128, 128))
TestLzw = single("TestLzw", tile=(128, 128), compression="lzw", predictor=True)
TestStrips = single("TestStrips", rowsperstrip=8, compression="deflate")
TestOneStrip = single("TestOneStrip")
TestBigEndian = single("TestBigEndian", byteorder=">", **TILED)
TestBigTiff = single("TestBigTiff", bigtiff=True, **TILED)
TestBigTiffBigEndian = single("TestBigTiffBigEndian", bigtiff=True, byteorder=">", **TILED)
TestGrey = single("TestGrey", GREY, repeated(GREY), **TILED, photometric="minisblack")
TestWhiteIsZero = single("TestWhiteIsZero", GREY, 255 - repeated(GREY), **TILED, photometric="miniswhite")
TestPalette = single(
    "TestPalette", GREY, (MAP.T[GREY] >> 8).astype(np.uint8), **TILED, photometric="palette", colormap=MAP
)
TestAlpha = single("TestAlpha", RGBA, on_white(RGBA), **TILED, extrasamples=["unassalpha"])
TestPlanes = single("TestPlanes", np.moveaxis(PIXELS, 2, 0).copy(), **TILED, planarconfig="separate")
TestZstd = single("TestZstd", **ZSTD)
TestZstdPredictor = single("TestZstdPredictor", **ZSTD, predictor=True)
TestZstdGrey = single("TestZstdGrey", GREY, repeated(GREY), **ZSTD, photometric="minisblack")
TestZstdAlpha = single("TestZstdAlpha", RGBA, on_white(RGBA), **ZSTD, extrasamples=["unassalpha"])
TestZstdPlanes = single("TestZstdPlanes", np.moveaxis(PIXELS, 2, 0).copy(), **ZSTD, planarconfig="separate")
TestZstdStrips = single("TestZstdStrips", compression="zstd", rowsperstrip=16)
TestZstdWhiteIsZero = single("TestZstdWhiteIsZero", GREY, 255 - repeated(GREY), **ZSTD, photometric="miniswhite")
TestZstdPalette = single(
    "TestZstdPalette", GREY, (MAP.T[GREY] >> 8).astype(np.uint8), **ZSTD, photometric="palette", colormap=MAP
)
TestZstdBigEndian = single("TestZstdBigEndian", **ZSTD, byteorder=">")
TestJpeg2000 = single(
    "TestJpeg2000", tile=(128, 128), compression="jpeg2000", compressionargs={"reversible": True}, photometric="rgb"
)
TestWebp = single("TestWebp", tile=(128, 128), compression="webp", compressionargs={"lossless": True})


class TestSparse(Conformance):
    """A tile without bytes (OpenSlide calls it missing) is white."""

    def make(self, folder: Path) -> Made:
        path = write_pyramid(folder / "sparse.tif", PIXELS, (1,), tile=128, compression="zstd")
        with tifffile.TiffFile(path, mode="r+b") as tif:
            counts = list(tif.pages[0].databytecounts)
            counts[1] = 0
            tif.pages[0].tags["TileByteCounts"].overwrite(counts)
        expected = PIXELS.copy()
        expected[:128, 128:256] = 255
        return Made(lambda: open_backend(path), expected)


class TestPages(Conformance):
    """Levels 1, 4, 16 as pages."""

    def make(self, folder: Path) -> Made:
        path = write_pyramid(folder / "pages.tif", PIXELS, tile=64)
        levels = tuple(PIXELS[::f, ::f][: HEIGHT // f, : WIDTH // f] for f in (1, 4, 16))
        return Made(lambda: open_backend(path), PIXELS, ((700, 500), (175, 125), (43, 31)), levels)


class TestSubIfds(Conformance):
    """Levels 1, 2, 4 as SubIFDs."""

    ome = False

    def make(self, folder: Path) -> Made:
        path = folder / ("slide.ome.tif" if self.ome else "slide.tif")
        levels = tuple(np.ascontiguousarray(PIXELS[::f, ::f]) for f in (1, 2, 4))
        with tifffile.TiffWriter(path, ome=self.ome) as tif:
            options: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb", "compression": "deflate"}
            tif.write(levels[0], subifds=2, metadata={"axes": "YXS"} if self.ome else None, **options)
            for level in levels[1:]:
                tif.write(level, subfiletype=1, **options)
        return Made(lambda: open_backend(path), PIXELS, ((700, 500), (350, 250), (175, 125)), levels)


class TestOmeSubIfds(TestSubIfds):
    """The same as OME-TIFF."""

    ome = True


class TestLevelsAnyOrder(Conformance):
    """The smallest level first, a label and a tiled macro between, the base last."""

    def make(self, folder: Path) -> Made:
        path = folder / "mixed.tif"
        label = RANDOM.integers(0, 256, (90, 90, 3), dtype=np.uint8)
        macro = RANDOM.integers(0, 256, (40, 200, 3), dtype=np.uint8)
        levels = tuple(np.ascontiguousarray(PIXELS[::f, ::f]) for f in (1, 2, 4))
        tiled: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb", "compression": "deflate", "metadata": None}
        with tifffile.TiffWriter(path) as tif:
            tif.write(levels[2], subfiletype=1, **tiled)
            tif.write(label, photometric="rgb", metadata=None, description="Scanner\nlabel 90x90")
            tif.write(levels[1], subfiletype=1, **tiled)
            tif.write(macro, subfiletype=9, description="Scanner\nmacro 200x40", **tiled)
            tif.write(levels[0], **tiled)
        return Made(
            lambda: open_backend(path), PIXELS, ((700, 500), (350, 250), (175, 125)), levels, 0, ("label", "macro")
        )


class TestThumbnailStrips(Conformance):
    """A stripped thumbnail of the slide's own aspect, as Aperio writes it, is no level of a tiled slide."""

    def make(self, folder: Path) -> Made:
        path = folder / "thumbnail.tif"
        tiled: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb", "compression": "deflate", "metadata": None}
        levels = tuple(np.ascontiguousarray(PIXELS[::f, ::f]) for f in (1, 4))
        with tifffile.TiffWriter(path) as tif:
            tif.write(levels[0], **tiled)
            tif.write(PIXELS[::7, ::7].copy(), photometric="rgb", metadata=None, rowsperstrip=8)
            tif.write(levels[1], **tiled)
        return Made(lambda: open_backend(path), PIXELS, ((700, 500), (175, 125)), levels, 0, ("thumbnail",))


def jpeg_tiff(path: Path, *, holds: str, tagged: str, subsampling: tuple[int, int] = (1, 1)) -> np.ndarray:
    """Write a JPEG-tiled TIFF whose colour tag may be wrong; return tifffile's pixels with the right tag."""
    smooth = np.asarray(Image.fromarray(PIXELS).resize((44, 32)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    stored = {"subsampling": subsampling} if holds == "ycbcr" else {"compressionargs": {"outcolorspace": "RGB"}}
    tifffile.imwrite(path, smooth, tile=(128, 128), compression="jpeg", photometric="rgb", metadata=None, **stored)
    expected = np.asarray(tifffile.imread(path))
    assert np.abs(expected.astype(int) - smooth).mean() < 5
    if tagged != holds:
        with tifffile.TiffFile(path, mode="r+b") as tif:
            tif.pages[0].tags["PhotometricInterpretation"].overwrite(6 if tagged == "ycbcr" else 2)
    return expected


@pytest.mark.parametrize("tagged", ["rgb", "ycbcr"])
@pytest.mark.parametrize(
    ("holds", "subsampling"), [("rgb", (1, 1)), ("ycbcr", (1, 1)), ("ycbcr", (2, 1)), ("ycbcr", (2, 2))]
)
def test_jpeg_colours_are_right_if_the_colour_tag_is_wrong(
    tmp_path: Path, holds: str, tagged: str, subsampling: tuple[int, int]
) -> None:
    """RGB tagged YCbCr and the reverse: the wrong colours would differ by dozens of levels."""
    path = tmp_path / "jpeg.tif"
    expected = jpeg_tiff(path, holds=holds, tagged=tagged, subsampling=subsampling)
    got = open_backend(path).level_image(0).numpy()
    assert np.array_equal(got, expected)


@pytest.mark.parametrize("order", ["C", "F"])
class TestNumpy(Conformance):
    """An array in memory, with any strides."""

    @pytest.fixture
    def made(self, tmp_path: Path, order: str) -> Made:
        self.order = order
        return self.make(tmp_path)

    def make(self, folder: Path) -> Made:
        array = np.asarray(PIXELS, order=self.order)  # type: ignore[call-overload]
        return Made(lambda: NumpyBackend(array), PIXELS)


class TestNumpyGrey(Conformance):
    """(H, W) uint8."""

    def make(self, folder: Path) -> Made:
        return Made(lambda: NumpyBackend(GREY), repeated(GREY))


class TestNumpyAlpha(Conformance):
    """(H, W, 4) uint8; libvips truncates where others round."""

    def make(self, folder: Path) -> Made:
        return Made(lambda: NumpyBackend(RGBA), on_white(RGBA), tolerance=1)


def flat(
    name: str, file: str, pixels: np.ndarray, expected: np.ndarray | None, tolerance: int = 0
) -> type[Conformance]:
    """Return the conformance test of a flat image that Pillow writes; by default Pillow is the oracle."""

    class Flat(Conformance):
        def make(self, folder: Path) -> Made:
            Image.fromarray(pixels).save(folder / file)
            oracle = np.asarray(Image.open(folder / file).convert("RGB")) if expected is None else expected
            return Made(lambda: open_backend(folder / file), oracle, tolerance=tolerance)

    Flat.__name__ = Flat.__qualname__ = name
    return Flat


TestPng = flat("TestPng", "a.png", PIXELS, PIXELS)
TestPngGrey = flat("TestPngGrey", "a.png", GREY, repeated(GREY))
TestPngAlpha = flat("TestPngAlpha", "a.png", RGBA, on_white(RGBA), tolerance=1)
TestFlatJpeg = flat("TestFlatJpeg", "a.jpg", PIXELS, None)


def zarr_case(
    name: str, axes: str, version: int, *, ome: str | None = None, pixels: np.ndarray = PIXELS
) -> type[Conformance]:
    """Return the conformance test of a zarr array, or of an OME-Zarr group of three levels."""

    def arranged(level: np.ndarray) -> np.ndarray:
        sides = {"y": level.shape[0], "x": level.shape[1], "c": level.shape[2] if level.ndim == 3 else 1}
        order = [axis for axis in axes if axis in "yxc"]
        source = level if level.ndim == 3 else level[..., None]
        moved = source.transpose(["yxc".index(axis) for axis in order]) if "c" in order else source[..., 0]
        return moved.reshape([sides.get(axis, 1) for axis in axes])

    def write(group: Any, path: str, level: np.ndarray) -> None:
        data = arranged(level)
        chunks = tuple({"y": 128, "x": 192}.get(axis, size) for axis, size in zip(axes, data.shape, strict=True))
        group.create_array(path, data=data, chunks=chunks)

    class Zarr(Conformance):
        def make(self, folder: Path) -> Made:
            store = folder / "slide.zarr"
            expected = pixels if pixels.ndim == 3 else repeated(pixels)
            if pixels.ndim == 3 and pixels.shape[2] == 4:
                expected = on_white(pixels)
            if ome is None:
                group = zarr.open_group(str(folder), mode="a", zarr_format=version)  # type: ignore[arg-type]
                write(group, "slide.zarr", pixels)
                return Made(lambda: open_backend(store), expected)
            group = zarr.open_group(str(store), mode="w", zarr_format=version)  # type: ignore[arg-type]
            factors = (1, 2, 4)
            for index, factor in enumerate(factors):
                write(group, str(index), np.ascontiguousarray(pixels[::factor, ::factor]))
            described = {
                "axes": [
                    {"name": a, "type": "space", "unit": "micrometer"} if a in "zyx" else {"name": a} for a in axes
                ],
                "datasets": [
                    {
                        "path": str(index),
                        "coordinateTransformations": [
                            {"type": "scale", "scale": [{"y": 0.5 * f, "x": 0.25 * f}.get(a, 1.0) for a in axes]}
                        ],
                    }
                    for index, f in enumerate(factors)
                ],
            }
            if ome == "0.5":
                group.attrs["ome"] = {"version": "0.5", "multiscales": [described]}
            else:
                group.attrs["multiscales"] = [{"version": "0.4", **described}]
            sizes = ((700, 500), (350, 250), (175, 125))
            return Made(lambda: open_backend(store), expected, sizes, tuple(expected[::f, ::f] for f in factors))

        if ome is not None:

            def test_the_resolution_is_read_per_axis(self, backend: Backend) -> None:
                """From the coordinate transformation of level 0."""
                assert backend.facts.mpp == (0.25, 0.5)

    Zarr.__name__ = Zarr.__qualname__ = name
    return Zarr


TestZarr2 = zarr_case("TestZarr2", "yxc", 2)
TestZarr3 = zarr_case("TestZarr3", "yxc", 3)
TestZarr3Alpha = zarr_case("TestZarr3Alpha", "yxc", 3, pixels=RGBA)
TestZarr3Grey = zarr_case("TestZarr3Grey", "yx", 3, pixels=GREY)
TestOmeZarr04 = zarr_case("TestOmeZarr04", "tczyx", 2, ome="0.4")
TestOmeZarr04Cyx = zarr_case("TestOmeZarr04Cyx", "cyx", 2, ome="0.4")
TestOmeZarr05 = zarr_case("TestOmeZarr05", "yxc", 3, ome="0.5")
TestOmeZarr05Cyx = zarr_case("TestOmeZarr05Cyx", "cyx", 3, ome="0.5")
TestOmeZarr05Grey = zarr_case("TestOmeZarr05Grey", "tczyx", 3, ome="0.5", pixels=GREY)


@pytest.fixture(scope="module")
def dicom(shared_data: Path) -> Made:
    """The DICOM slide as openslide-python reads it."""
    path = shared_data / "slides" / "multi_frame_jpeg2000_camelyon.dcm"
    with openslide.OpenSlide(str(path)) as slide:
        pixels = np.asarray(slide.read_region((0, 0), 0, slide.dimensions))
    return Made(lambda: open_backend(path), on_white(pixels), ((1696, 812),))


class TestOpenSlide(Conformance):
    """A DICOM slide through OpenSlide."""

    def make(self, folder: Path) -> Made:
        return self.found

    @pytest.fixture(autouse=True)
    def _find(self, dicom: Made) -> None:
        self.found = dicom


class TestOpenSlidePyramid(Conformance):
    """A plain pyramid through OpenSlide, level by level."""

    def make(self, folder: Path) -> Made:
        path = write_pyramid(folder / "pyramid.tif", PIXELS, (1, 2, 4), tile=128)
        levels = tuple(PIXELS[::f, ::f] for f in (1, 2, 4))
        return Made(lambda: open_backend(path, "openslide"), PIXELS, ((700, 500), (350, 250), (175, 125)), levels)


@pytest.mark.parametrize("compression", ["deflate", "jpeg", "zstd"])
def test_opening_decodes_nothing(tmp_path: Path, compression: str) -> None:
    """A slide whose pixel data is random opens with all its facts; reading it fails."""
    path = write_pyramid(tmp_path / "noise.tif", PIXELS, tile=128, compression=compression)
    with tifffile.TiffFile(path) as tif:
        spans = [
            (offset, count)
            for page in tif.pages
            for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)
        ]
    with path.open("r+b") as file:
        for offset, count in spans:
            file.seek(offset)
            file.write(b"\x55" * count)
    backend = open_backend(path)
    assert backend.facts.pyramid.levels == (Size(700, 500), Size(175, 125), Size(43, 31))
    rect = Rect(0, 0, 64, 64)
    for _ in range(2):  # libvips reports it once, and returns black afterwards
        try:
            pixels = fetch(backend.level_image(0), rect)
        except pyvips.Error:
            pixels = np.zeros((64, 64, 3), np.uint8)
        assert isinstance(backend.failure(0, rect, pixels), CorruptSlideError)


def test_tiles_that_are_black_in_the_file_are_no_failure(tmp_path: Path) -> None:
    """libvips leaves black where it cannot decode a tile."""
    path = write_pyramid(tmp_path / "black.tif", np.zeros_like(PIXELS), (1,), tile=128)
    backend = open_backend(path)
    for _ in range(2):
        pixels = fetch(backend.level_image(0), Rect(0, 0, 300, 300))
        assert backend.failure(0, Rect(0, 0, 300, 300), pixels) is None


@pytest.mark.parametrize("tile", [(128, 128), None], ids=["tiles", "strips"])
@pytest.mark.parametrize("backend", ["auto", "tiff"])
def test_codecs_that_no_reader_decodes_correctly_are_refused_at_opening(
    tmp_path: Path, tile: Any, backend: str
) -> None:
    """Not at the first tile, and never read as noise."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PIXELS, photometric="rgb", metadata=None, compression="zstd", tile=tile)
    with tifffile.TiffFile(path, mode="r+b") as tif:
        tif.pages[0].tags["Compression"].overwrite(52_479)
    with pytest.raises(UnsupportedSlideError, match="compression 52479"):
        open_backend(path, backend)


def test_the_header_of_a_real_aperio_slide_is_read(shared_data: Path) -> None:
    """Label, macro and thumbnail are no levels; the thumbnail is between them in the file."""
    header = read_header(shared_data / "slides" / "TCGA-CR-7395-01A-01-TS1.svs")
    assert [level.size for level in header.levels] == [(4443, 3567), (2221, 1783)]
    assert [level.directory for level in header.levels] == [0, 2]
    assert list(header.associated) == ["thumbnail"]
