"""Tiles compared with OpenSlide, tifffile and Pillow, in any order, with any number of threads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import psutil
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profiles import examples
from paths import ROOT
from PIL import Image
from pyramids import coordinate_pixels, write_pyramid

from slideio_pipe import TileGrid, TileReader, open_slide
from slideio_pipe.errors import ConfigError, CorruptSlideError
from slideio_pipe.geometry import LevelChoice, Pyramid
from slideio_pipe.slides import sampling
from slideio_pipe.slides.view import SlideView

# The public DICOM slide is a level without its full resolution.
pytestmark = pytest.mark.filterwarnings("ignore::slideio_pipe.errors.IncompleteSlideWarning")

RANDOM = np.random.default_rng(0)
ORDERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "raster": lambda origins: origins,
    "reversed": lambda origins: origins[::-1],
    "shuffled": lambda origins: RANDOM.permutation(origins),
    "columns": lambda origins: origins[np.lexsort((origins[:, 1], origins[:, 0]))],
}


def openslide_tile(slide: openslide.OpenSlide, x: int, y: int, size: int) -> np.ndarray:
    """Return a tile by OpenSlide, flattened on white."""
    rgba = slide.read_region((x, y), 0, (size, size))
    return np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"))


@pytest.mark.slow
@pytest.mark.combinations
@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize(
    ("file", "stride"),
    [
        ("CMU-1-Small-Region.svs", 240),
        ("CMU-1-Small-Region.svs", 317),
        ("test3-DAPI-2-(387).ndpi", 1500),
        ("multi_frame_jpeg2000_camelyon.dcm", 301),
        ("boxes.tiff", 37),
        ("small.svs", 7),
    ],
)
def test_tiles_equal_openslide(shared_data: Path, file: str, stride: int, threads: int) -> None:
    """Bit for bit, aligned and not, over the edge, in every order."""
    path = shared_data / "slides" / file
    view = open_slide(path).view()
    size = min(256, 2 * stride)
    origins = TileGrid(view, size, stride=stride, edge="pad").origins
    with openslide.OpenSlide(str(path)) as reference:
        expected = {(x, y): openslide_tile(reference, x, y, size) for x, y in origins.tolist()}
    reader = TileReader(view, size)
    for name, order in ORDERS.items():
        wanted = order(origins)
        tiles = reader.read(wanted, threads=threads)
        for (x, y), tile in zip(wanted.tolist(), tiles, strict=True):
            assert np.array_equal(tile, expected[x, y]), (name, x, y)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "page", "mpp"),
    [
        ("OS-2-ndpi.ome.tif", 0, None),
        ("TCGA-CR-7395-01A-01-TS1.svs", 0, None),
        ("TCGA-CR-7395-01A-01-TS1.svs", 2, 2.0),
        ("boxes.tiff", 1, 2.0),
    ],
)
def test_tiles_equal_tifffile(shared_data: Path, file: str, page: int, mpp: float | None) -> None:
    """If OpenSlide does not read the file, and at lower levels; JPEG may differ by one rounding."""
    path = shared_data / "slides" / file
    view = open_slide(path, slide_mpp=1.0).view(mpp=mpp)
    expected = tifffile.imread(path, key=page)
    assert view.size == expected.shape[1::-1]
    origins = TileGrid(view, 111, stride=200).origins if min(view.size) > 111 else [[0, 0]]
    for (x, y), tile in zip(np.asarray(origins).tolist(), TileReader(view, 111).read(origins, threads=2), strict=True):
        inside = expected[y : y + 111, x : x + 111]
        assert np.array_equal(tile[: inside.shape[0], : inside.shape[1]], inside)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("subsampling", [(1, 1), (2, 2)])
def test_tiles_on_the_stored_grid_equal_a_crop(tmp_path: Path, subsampling: tuple[int, int], threads: int) -> None:
    """They are decoded from their own bytes, without libvips; also duplicates and edge tiles."""
    path = write_pyramid(
        tmp_path / "a.tif", coordinate_pixels(700, 500), (1,), tile=128, compression="jpeg", subsampling=subsampling
    )
    expected = np.pad(tifffile.imread(path), ((0, 12), (0, 68), (0, 0)), constant_values=255)
    view = open_slide(path).view()
    origins = np.concatenate([TileGrid(view, 128, edge="pad").origins] * 2)
    for (x, y), tile in zip(origins.tolist(), TileReader(view, 128).read(origins, threads=threads), strict=True):
        assert np.array_equal(tile, expected[y : y + 128, x : x + 128])


@examples(30)
@given(st.lists(st.tuples(st.integers(-80, 320), st.integers(-80, 240)), max_size=25), st.integers(1, 4))
def test_any_list_of_tiles_is_right(origins: list[tuple[int, int]], threads: int) -> None:
    """Duplicates, negative ones, far outside: each slot has its own tile, white outside."""
    pixels = coordinate_pixels(300, 220)
    padded = np.pad(pixels, ((200, 200), (200, 200), (0, 0)), constant_values=255)
    tiles = TileReader(open_slide(pixels).view(), 64).read(np.array(origins).reshape(-1, 2), threads=threads)
    assert tiles.shape == (len(origins), 64, 64, 3)
    for (x, y), tile in zip(origins, tiles, strict=True):
        assert np.array_equal(tile, padded[y + 200 : y + 264, x + 200 : x + 264])


def resized_whole(pixels: np.ndarray, shrink: tuple[float, float]) -> np.ndarray:
    """Return the whole level resized at once by Pillow, from the exact source box of the view."""
    height, width = pixels.shape[:2]
    size = (int(width / shrink[0] + 1e-6), int(height / shrink[1] + 1e-6))
    box = (0, 0, min(width, size[0] * shrink[0]), min(height, size[1] * shrink[1]))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR, box=box))


@pytest.mark.parametrize("factor", [1.03, 1.5, 2.0, 2.37, 3.0, 3.9, 7.3])
def test_shrunk_tiles_equal_a_resize_of_the_whole(factor: float) -> None:
    """Pillow's antialiased BILINEAR of the whole level, cut into tiles: to 1 level, on noise rarely 2."""
    pixels = RANDOM.integers(0, 256, (411, 523, 3), dtype=np.uint8)
    slide = open_slide(pixels, slide_mpp=1.0)
    view = SlideView(slide, LevelChoice(0, (factor, factor)))
    expected = resized_whole(pixels, (factor, factor)).astype(int)
    assert view.size == expected.shape[1::-1]
    origins = TileGrid(view, 40, stride=33, edge="shift").origins
    for (x, y), tile in zip(origins.tolist(), TileReader(view, 40).read(origins), strict=True):
        difference = np.abs(tile - expected[y : y + 40, x : x + 40])
        assert difference.max() <= 2
        assert np.mean(difference > 1) < 0.001


def test_a_big_shrink_in_bands_equals_one_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory bound changes no pixel."""
    pixels = RANDOM.integers(0, 256, (800, 1000, 3), dtype=np.uint8)
    view = SlideView(open_slide(pixels), LevelChoice(0, (9.7, 6.1)))
    origins = [[0, 0], [39, 67], [70, 90]]
    whole = TileReader(view, 64).read(origins)
    monkeypatch.setattr(sampling, "_MAX_FETCH_PX", 20_000)
    banded = TileReader(view, 64).read(origins)
    assert np.abs(whole.astype(int) - banded).max() <= 1


@examples(60)
@given(
    st.lists(st.tuples(st.integers(-500, 5000), st.integers(-500, 5000)), max_size=60),
    st.sampled_from([1.0, 2.0, 3.7]),
)
def test_storage_order_visits_each_stored_row_once(origins: list[tuple[int, int]], shrink: float) -> None:
    """A permutation; rows of stored tiles in order, left to right within a row."""
    view = open_slide(np.broadcast_to(np.uint8(0), (5000, 5000, 3))).view()
    view = SlideView(view.slide, LevelChoice(0, (shrink, shrink)))
    corners = np.array(origins, np.int64).reshape(-1, 2)
    order = TileReader(view, 64).storage_order(corners)
    assert sorted(order.tolist()) == list(range(len(origins)))
    stored = view.slide.tile_sizes[0].height / shrink
    visited = [(int(corners[k, 1] // stored), int(corners[k, 0])) for k in order]
    assert visited == sorted(visited)


def test_every_stored_tile_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for off-grid tiles in random order."""
    path = write_pyramid(tmp_path / "a.tif", coordinate_pixels(2000, 1000), (1,), tile=128, compression="zstd")
    from slideio_pipe.slides.backends.tiff import TileDecoder

    calls: list[tuple[int, int]] = []
    original = TileDecoder.read

    def counting(self: TileDecoder, column: int, row: int) -> np.ndarray:
        calls.append((column, row))
        return original(self, column, row)

    monkeypatch.setattr(TileDecoder, "read", counting)
    view = open_slide(path).view()
    TileReader(view, 128).read(RANDOM.permutation(TileGrid(view, 128, stride=100).origins))
    assert len(calls) == len(set(calls)) == 16 * 8


@pytest.fixture(params=["jpeg", "deflate", "lzw", "zstd", "jpeg2000"])
def damaged(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A slide of 4 × 3 stored tiles; (2, 1) is noise."""
    path = write_pyramid(
        tmp_path / "damaged.tif", coordinate_pixels(512, 384), (1,), tile=128, compression=request.param
    )
    with tifffile.TiffFile(path) as tif:
        offset, count = tif.pages[0].dataoffsets[6], tif.pages[0].databytecounts[6]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\x55" * count)
    return path


@pytest.mark.parametrize("threads", [1, 3])
def test_a_damaged_tile_is_named_and_the_others_are_read(damaged: Path, threads: int) -> None:
    """In every read and thread; libvips alone would return black the second time."""
    slide = open_slide(damaged, slide_mpp=1.0)
    good = TileReader(slide.view(), 128).read([[0, 0], [384, 256]])
    readers = [TileReader(slide.view(), 128) for _ in range(2)]
    for _ in range(3):
        for reader in readers:
            for origin in ([256, 128], [200, 100], [383, 255]):
                with pytest.raises(
                    CorruptSlideError, match=r"damaged\.tif: .*(tile|pixels).*; copy the slide"
                ) as raised:
                    reader.read([origin] + [[0, 0]] * 20, threads=threads)
                assert raised.value.slide == "damaged.tif"
            assert np.array_equal(reader.read([[0, 0], [384, 256]], threads=threads), good)
    for _ in range(2):
        with pytest.raises(CorruptSlideError):
            slide.read_region((250, 120), 0, (100, 100))
        with pytest.raises(CorruptSlideError):
            slide.thumbnail(100)
        with pytest.raises(CorruptSlideError):
            TileReader(slide.view(mpp=2.0), 64).read([[120, 60]])
    assert np.array_equal(slide.read_region((0, 0), 0, (128, 128)), good[0])


def test_openslide_is_reopened_after_a_damaged_tile(tmp_path: Path) -> None:
    """After one failure an OpenSlide object refuses every read."""
    path = write_pyramid(tmp_path / "a.tif", coordinate_pixels(512, 384), (1,), tile=128)
    with tifffile.TiffFile(path) as tif:
        offset, count = tif.pages[0].dataoffsets[6], tif.pages[0].databytecounts[6]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\x55" * count)
    reader = TileReader(open_slide(path, backend="openslide").view(), 128)
    for _ in range(3):
        with pytest.raises(CorruptSlideError, match=r"tile \(2, 1\) of level 0"):
            reader.read([[256, 128]])
        assert np.array_equal(reader.read([[128, 0]])[0], coordinate_pixels(512, 384)[:128, 128:256])


@pytest.mark.parametrize(
    "out",
    [
        np.empty((2, 16, 16, 3), np.uint8),
        np.empty((3, 16, 16), np.uint8),
        np.empty((3, 16, 16, 3), np.int8),
        np.empty((3, 3, 16, 16), np.uint8).transpose(0, 2, 3, 1),
        np.empty((6, 16, 16, 3), np.uint8)[::2],
        np.frombuffer(bytes(3 * 16 * 16 * 3), np.uint8).reshape(3, 16, 16, 3),
    ],
    ids=["length", "dimensions", "type", "channels first", "strided", "read-only"],
)
def test_an_array_that_cannot_take_the_tiles_is_refused(out: np.ndarray) -> None:
    """Before anything is read."""
    reader = TileReader(open_slide(coordinate_pixels(64, 64)).view(), 16)
    with pytest.raises(ConfigError, match=r"out has shape .* pass uint8 \(3, 16, 16, 3\)"):
        reader.read([[0, 0], [16, 0], [32, 0]], out)


def test_tiles_are_written_to_the_given_slots() -> None:
    """A slice of a buffer, in the given order."""
    pixels = coordinate_pixels(64, 64)
    ring = np.zeros((5, 16, 16, 3), np.uint8)
    result = TileReader(open_slide(pixels).view(), 16).read([[40, 30], [8, 4]], ring[2:4])
    assert result.base is ring
    assert np.array_equal(ring[2], pixels[30:46, 40:56])
    assert np.array_equal(ring[3], pixels[4:20, 8:24])
    assert not ring[[0, 1, 4]].any()


def test_memory_does_not_grow_with_the_number_of_tiles(shared_data: Path) -> None:
    """Ten thousand reads, with and without threads: resident memory grows by less than 40 MB."""
    view = open_slide(shared_data / "slides" / "CMU-1-Small-Region.svs").view()
    reader = TileReader(view, 64)
    origins = np.tile(TileGrid(view, 64, stride=61).origins[:50], (10, 1))
    out = np.empty((len(origins), 64, 64, 3), np.uint8)
    process = psutil.Process()
    for warm in range(2):
        reader.read(origins, out, threads=1 + warm)
    before = process.memory_info().rss
    for repeat in range(20):
        reader.read(origins, out, threads=1 + repeat % 2)
    assert process.memory_info().rss - before < 40e6


@pytest.mark.system
def test_many_threads_on_an_openslide_slide_do_not_deadlock(shared_data: Path) -> None:
    """libvips' lock and Python's must not wait for each other: a deadlock would exceed the time limit."""
    path = shared_data / "slides" / "multi_frame_jpeg2000_camelyon.dcm"
    code = f"""
import threading, numpy as np, slideio_pipe as sp
slide = sp.open_slide({str(path)!r})
views = [slide.view(), slide.view(mpp=60)]
def work(seed):
    for k in range(4):
        view = views[(seed + k) % 2]
        origins = np.random.default_rng(seed * 10 + k).integers(0, [view.size.width, view.size.height], (12, 2))
        sp.TileReader(view, 100).read(origins, threads=3)
threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
[t.start() for t in threads]
[t.join() for t in threads]
print("done")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=dict(os.environ),
    )
    assert done.stdout.strip() == "done", done.stderr[-500:]


def test_a_shrink_of_a_pyramid_starts_from_the_nearest_level(tmp_path: Path) -> None:
    """Levels 1, 4, 16 have a colour each: the tile's colour shows the level."""
    path = tmp_path / "colours.tif"
    with tifffile.TiffWriter(path) as tif:
        for index, factor in enumerate((1, 4, 16)):
            level = np.full((640 // factor, 640 // factor, 3), 50 * (index + 1), np.uint8)
            options: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb", "metadata": None}
            tif.write(level, resolution=(40_000, 40_000), resolutionunit=3, subfiletype=int(index > 0), **options)
    slide = open_slide(path)
    assert slide.pyramid == Pyramid(slide.level_dimensions)
    for mpp, colour in [(0.25, 50), (0.5, 50), (0.9, 50), (1.0, 100), (3.0, 100), (4.0, 150), (8.0, 150)]:
        assert (TileReader(slide.view(mpp=mpp), 16).read([[0, 0]]) == colour).all()
