"""Any input gives one of our errors with slide, reason and remedy, or pixels; never a crash or a hang."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
import tifffile
import zarr
from paths import ROOT
from PIL import Image
from pyramids import coordinate_pixels, write_pyramid

from slideio_pipe import Slide, TileGrid, TileReader, open_slide
from slideio_pipe.errors import (
    ConfigError,
    CorruptSlideError,
    EstimatedResolutionWarning,
    SlideioPipeError,
    SlideNotFoundError,
    UnsupportedSlideError,
)

# The public DICOM slide is a level without its full resolution.
pytestmark = pytest.mark.filterwarnings("ignore::slideio_pipe.errors.IncompleteSlideWarning")

PIXELS = coordinate_pixels(300, 200)
Maker = Callable[[Path], Path]


def written(name: str, content: bytes) -> Maker:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def tiff(pixels: np.ndarray, **options: Any) -> Maker:
    def make(folder: Path) -> Path:
        tifffile.imwrite(folder / "slide.tif", pixels, **{"metadata": None, **options})
        return folder / "slide.tif"

    return make


def image(name: str, array: np.ndarray, mode: str | None = None) -> Maker:
    def make(folder: Path) -> Path:
        picture = Image.fromarray(array)
        (picture.convert(mode) if mode else picture).save(folder / name)
        return folder / name

    return make


def directory(folder: Path) -> Path:
    return folder


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.svs")
    return folder / "pipe.svs"


def zero_size(folder: Path) -> Path:
    path = write_pyramid(folder / "zero.tif", PIXELS, (1,))
    with tifffile.TiffFile(path, mode="r+b") as tif:
        tif.pages[0].tags["ImageWidth"].overwrite(0)
    return path


def empty_zarr(folder: Path) -> Path:
    zarr.open_group(str(folder / "a.zarr"), mode="w")
    return folder / "a.zarr"


def zarr_of(shape: tuple[int, ...], dtype: str) -> Maker:
    def make(folder: Path) -> Path:
        zarr.create_array(str(folder / "a.zarr"), shape=shape, dtype=dtype, chunks=shape)
        return folder / "a.zarr"

    return make


def broken_zarr(folder: Path) -> Path:
    (folder / "a.zarr").mkdir()
    (folder / "a.zarr" / "zarr.json").write_text("{", encoding="utf-8")
    return folder / "a.zarr"


RGB16 = PIXELS.astype(np.uint16) * 257
FIVE = np.zeros((5, 200, 300), np.uint8)
CASES: dict[str, tuple[Maker, type[SlideioPipeError]]] = {
    "missing": (lambda folder: folder / "none.svs", SlideNotFoundError),
    "missing folder": (lambda folder: folder / "none" / "none.svs", SlideNotFoundError),
    "name too long": (lambda folder: folder / ("x" * 5000), SlideNotFoundError),
    "null in the name": (lambda folder: folder / "a\0b.svs", SlideNotFoundError),
    "name that is no UTF-8": (lambda folder: Path(os.fsdecode(os.fsencode(folder) + b"/\xff.svs")), SlideNotFoundError),
    "directory": (directory, SlideNotFoundError),
    "file as folder": (lambda folder: written("a.svs", b"x")(folder) / "b.svs", SlideNotFoundError),
    "pipe": (pipe, UnsupportedSlideError),
    "device": (lambda folder: Path("/dev/zero"), UnsupportedSlideError),
    "text": (written("notes.svs", b"Dear colleague,\nthe slide is attached.\n" * 50), UnsupportedSlideError),
    "html": (written("login.svs", b"<!DOCTYPE html><html><body>Log in</body></html>"), UnsupportedSlideError),
    "empty": (written("empty.svs", b""), CorruptSlideError),
    "one byte": (written("a.tif", b"I"), UnsupportedSlideError),
    "tiff magic": (written("a.tif", b"II*\0"), CorruptSlideError),
    "tiff to nowhere": (written("a.tif", b"II*\0\xff\xff\xff\x7f"), CorruptSlideError),
    "tiff that links to itself": (written("a.tif", b"II*\0\x08\0\0\0\0\0\x08\0\0\0"), CorruptSlideError),
    "random bytes": (written("a.svs", np.random.default_rng(0).bytes(5000)), UnsupportedSlideError),
    "random tiff": (written("a.svs", b"II*\0\x08\0\0\0" + np.random.default_rng(1).bytes(5000)), CorruptSlideError),
    "zero size": (zero_size, CorruptSlideError),
    "16-bit tiff": (tiff(RGB16, photometric="rgb"), UnsupportedSlideError),
    "16-bit ome": (tiff(RGB16[..., 0], photometric="minisblack", ome=True), UnsupportedSlideError),
    "float tiff": (tiff(PIXELS.astype(np.float32), photometric="rgb"), UnsupportedSlideError),
    "bilevel tiff": (tiff(PIXELS[..., 0] > 99, photometric="minisblack"), UnsupportedSlideError),
    "five channels": (tiff(FIVE, photometric="minisblack", planarconfig="separate"), UnsupportedSlideError),
    "five channel ome": (
        tiff(FIVE, photometric="minisblack", ome=True, metadata={"axes": "CYX"}),
        UnsupportedSlideError,
    ),
    "z-stack ome": (
        tiff(FIVE, photometric="minisblack", ome=True, metadata={"axes": "ZYX"}),
        UnsupportedSlideError,
    ),
    "cmyk tiff": (tiff(np.zeros((200, 300, 4), np.uint8), photometric="separated"), UnsupportedSlideError),
    "lab tiff": (tiff(PIXELS, photometric="cielab"), UnsupportedSlideError),
    "cmyk jpeg": (image("a.jpg", PIXELS, "CMYK"), UnsupportedSlideError),
    "16-bit png": (image("a.png", RGB16[..., 0]), UnsupportedSlideError),
    "empty zarr group": (empty_zarr, UnsupportedSlideError),
    "16-bit zarr": (zarr_of((20, 30, 3), "uint16"), UnsupportedSlideError),
    "five channel zarr": (zarr_of((20, 30, 5), "uint8"), UnsupportedSlideError),
    "4-d zarr": (zarr_of((2, 20, 30, 3), "uint8"), UnsupportedSlideError),
    "broken zarr": (broken_zarr, UnsupportedSlideError),
}


def assert_helpful(error: SlideioPipeError, path: Path) -> None:
    """Check that the message names the slide and a remedy."""
    assert error.slide
    assert ascii(path.name)[1:-1] in ascii(error.slide)
    assert error.reason
    assert error.remedy
    assert "\n" not in str(error)


@pytest.mark.parametrize("backend", ["auto", "tiff", "openslide", "array"])
@pytest.mark.parametrize("case", CASES)
def test_files_that_cannot_be_opened_are_refused(
    tmp_path: Path, case: str, backend: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """With the right class, by every backend, and with nothing else on the terminal."""
    make, expected = CASES[case]
    path = make(tmp_path)
    with pytest.raises(SlideioPipeError) as raised:
        read_everything(open_slide(path, backend=backend))
    if backend == "auto":
        assert type(raised.value) is expected
    assert_helpful(raised.value, path)
    assert capfd.readouterr() == ("", "")


def read_everything(slide: Slide) -> None:
    """Read all levels and associated images."""
    for level in range(slide.level_count):
        slide.read_region((0, 0), level, slide.level_dimensions[level])
    for name in slide.facts.associated:
        slide.associated_image(name)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 10, 3), np.uint8),
        np.zeros((10, 0), np.uint8),
        np.zeros((10, 10, 3), np.uint16),
        np.zeros((10, 10, 3), np.float32),
        np.zeros((10, 10, 3), bool),
        np.zeros((10, 10, 2), np.uint8),
        np.zeros((10, 10, 5), np.uint8),
        np.zeros((3, 10, 10), np.uint8),
        np.zeros(10, np.uint8),
        np.zeros((2, 10, 10, 3), np.uint8),
    ],
    ids=lambda array: f"{array.shape} {array.dtype}",
)
def test_arrays_that_are_no_image_are_refused(array: np.ndarray) -> None:
    """Zero size, 16-bit, channels first, stacks."""
    with pytest.raises((UnsupportedSlideError, CorruptSlideError)) as raised:
        open_slide(array)
    assert raised.value.remedy


def test_an_unknown_compression_is_refused_at_opening(shared_data: Path) -> None:
    """Compression 52479, by every backend; the error names the file."""
    path = shared_data / "broken" / "unopenable.tiff"
    with pytest.raises(UnsupportedSlideError, match=r"unopenable\.tiff: TIFF compression 52479 is not"):
        open_slide(path)
    for backend in ("tiff", "openslide", "array"):
        with pytest.raises(SlideioPipeError) as raised:
            read_everything(open_slide(path, backend=backend))
        assert_helpful(raised.value, path)


@pytest.mark.parametrize("backend", ["auto", "tiff", "openslide"])
def test_the_unreadable_file_opens_and_fails_at_the_tile(shared_data: Path, backend: str) -> None:
    """Each time, in tiles, regions and thumbnails."""
    slide = open_slide(shared_data / "broken" / "unreadable.svs", backend=backend)
    assert slide.mpp == (0.499, 0.499)
    for _ in range(2):
        for attempt in (
            lambda: TileReader(slide.view(), 8).read([[0, 0]]),
            lambda: slide.read_region((0, 0), 0, (8, 8)),
            lambda: slide.thumbnail(),
        ):
            with pytest.raises(CorruptSlideError, match=r"^unreadable\.svs: .*; copy the slide again"):
                attempt()


def test_an_unknown_backend_is_refused(coordinate_slide: Path) -> None:
    """With the known ones."""
    with pytest.raises(ConfigError, match="choose one of auto, tiff, openslide, array"):
        open_slide(coordinate_slide, backend="bioformats")


@pytest.mark.parametrize(
    "name", ["schön µ.tif", "切片 (1).tif", "a [1].tif", "50% #2 & 'x'.tif", "-n.tif", " .tif", "[n=2]"]
)
@pytest.mark.parametrize("kind", ["tiff", "zstd", "png"])
def test_any_file_name_opens(tmp_path: Path, name: str, kind: str) -> None:
    """Spaces, brackets, quotes, other alphabets: libvips would read "[…]" at the end as options."""
    if kind == "png":
        Image.fromarray(PIXELS).save(tmp_path / name, format="png")
    else:
        write_pyramid(tmp_path / name, PIXELS, (1,), compression="deflate" if kind == "tiff" else "zstd")
    slide = open_slide(tmp_path / name)
    assert np.array_equal(slide.read_region((0, 0), 0, slide.dimensions), PIXELS)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_an_error(coordinate_slide: Path) -> None:
    """With the path."""
    coordinate_slide.chmod(0)
    with pytest.raises(CorruptSlideError, match="no permission"):
        open_slide(coordinate_slide)


@pytest.mark.parametrize("tile", [1001, 701, 5000])
def test_a_tile_larger_than_the_slide_is_refused(coordinate_slide: Path, tile: int) -> None:
    """With a remedy."""
    with pytest.raises(ConfigError, match=r'coordinates\.tif: a tile of .* px is larger .*; pass edge="pad"'):
        TileGrid(open_slide(coordinate_slide).view(), tile)


def test_stride_zero_is_refused(coordinate_slide: Path) -> None:
    """The grid would not end."""
    with pytest.raises(ConfigError, match=r"coordinates\.tif: stride"):
        TileGrid(open_slide(coordinate_slide).view(), 64, stride=0)


def whole(folder: Path, kind: str, shared_data: Path) -> bytes:
    """A good file of some kind, as bytes."""
    if kind == "directories first":
        options: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb", "metadata": None}
        with tifffile.TiffWriter(folder / "a.tif") as tif:
            for factor in (1, 4):
                tif.write(np.ascontiguousarray(PIXELS[::factor, ::factor]), **options)
        return (folder / "a.tif").read_bytes()
    if kind == "directories last":
        options = {"tile": True, "tile_width": 64, "tile_height": 64, "pyramid": True, "compression": "jpeg"}
        pyvips.Image.new_from_array(PIXELS).tiffsave(str(folder / "a.tif"), **options)
        return (folder / "a.tif").read_bytes()
    return (shared_data / "slides" / kind).read_bytes()


KINDS = [
    "directories first",
    "directories last",
    "CMU-1-Small-Region.svs",
    "TCGA-CR-7395-01A-01-TS1.svs",
    "OS-2-ndpi.ome.tif",
    "test3-DAPI-2-(387).ndpi",
    "multi_frame_jpeg2000_camelyon.dcm",
    "boxes.tiff",
]


@pytest.mark.parametrize("percent", [10, 50, 99])
@pytest.mark.parametrize("kind", KINDS)
def test_truncated_files_are_refused(tmp_path: Path, shared_data: Path, kind: str, percent: int) -> None:
    """Cut at 10, 50 and 99 %: at opening, or at the first missing tile; never wrong pixels.

    99 % of boxes.tiff lacks nothing but the colour profile of its smallest level.
    """
    content = whole(tmp_path, kind, shared_data)
    suffix = Path(kind).suffix or ".tif"
    path, original = tmp_path / f"cut{suffix}", tmp_path / f"whole{suffix}"
    original.write_bytes(content)
    path.write_bytes(content[: len(content) * percent // 100])
    if (kind, percent) == ("boxes.tiff", 99):
        assert [level.tobytes() for level in all_levels(path)] == [level.tobytes() for level in all_levels(original)]
        return
    with pytest.raises(SlideioPipeError) as raised:
        all_levels(path)
    assert type(raised.value) in (CorruptSlideError, UnsupportedSlideError)
    assert_helpful(raised.value, path)


def all_levels(path: Path) -> list[np.ndarray]:
    """Open a slide and read all levels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EstimatedResolutionWarning)
        slide = open_slide(path)
    read_everything(slide)
    return [slide.read_region((0, 0), level, size) for level, size in enumerate(slide.level_dimensions)]


FUZZ = """
import sys, warnings
import numpy as np
import slideio_pipe as sp
from slideio_pipe.errors import SlideioPipeError
warnings.simplefilter("ignore")
source, target, how, times = sys.argv[1:]
content = open(source, "rb").read()
random = np.random.default_rng(len(content))
outcomes = {"read": 0, "refused": 0}
for attempt in range(int(times)):
    damaged = bytearray(content)
    if how == "cut":
        damaged = damaged[: int(random.integers(0, len(content)))]
    else:
        # Half of the flips where the directories are, half anywhere; one to four at a time.
        for _ in range(int(random.integers(1, 5))):
            ends = int(random.integers(0, 3))
            low, high = [(0, 600), (len(content) - 3000, len(content)), (0, len(content))][ends]
            damaged[int(random.integers(max(0, low), min(high, len(content))))] = int(random.integers(0, 256))
    with open(target, "wb") as file:
        file.write(damaged)
    try:
        slide = sp.open_slide(target)
        pixels = sp.TileReader(slide.view(), 64).read([[0, 0], [100, 50]], threads=2)
        slide.thumbnail(64)
        for name in slide.facts.associated:
            slide.associated_image(name)
        outcomes["read"] += 1
    except SlideioPipeError as error:
        outcomes["refused"] += 1
        assert error.slide and error.reason and error.remedy, error
print(outcomes)
"""


@pytest.mark.system
@pytest.mark.parametrize(("how", "times"), [("cut", 40), ("flip", 100)])
@pytest.mark.parametrize("kind", ["directories first", "directories last", "small.svs", "boxes_0.dcm"])
def test_damage_anywhere_ends_in_an_error_or_in_pixels(
    tmp_path: Path, shared_data: Path, kind: str, how: str, times: int
) -> None:
    """In another process, because a fault may be a segmentation fault or a hang."""
    source, target = tmp_path / "whole", tmp_path / f"damaged{Path(kind).suffix or '.tif'}"
    source.write_bytes(whole(tmp_path, kind, shared_data))
    command = [sys.executable, "-c", FUZZ, str(source), str(target), how, str(times)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("{'read'"), done.stdout
    assert done.stderr == ""
