"""JPEG tiles from their own bytes: pixels equal other decoders', and damage is an error with its position."""

from __future__ import annotations

import gc
import io
import os
import struct
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import pyvips
import tifffile
from made_slides import made_slide
from paths import ROOT, SUPPORT
from PIL import Image

import slideio_pipe as sp
from slideio_pipe.errors import CorruptSlideError
from slideio_pipe.geometry import LevelChoice, Rect
from slideio_pipe.slides.backends.jpeg_tiles import JpegTiles
from slideio_pipe.slides.sampling import Sampler
from slideio_pipe.slides.tile_cache import DecodedTiles


@pytest.fixture(scope="module")
def svs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("jpeg") / "a.svs"
    return made_slide(path, size=(1500, 1100), seed=3).path


def tiles_of(path: Path, level: int = 0) -> JpegTiles:
    tiles = sp.open_slide(path).stored_tiles(level)
    assert isinstance(tiles, JpegTiles)
    return tiles


@pytest.fixture
def real(shared_data: Path) -> Path:
    return shared_data / "slides" / "CMU-1-Small-Region.svs"


def test_stored_tiles_equal_libvips_bit_for_bit(svs: Path, real: Path) -> None:
    """The same library and settings: our YCbCr tiles and the RGB-coded JPEG of a real Aperio slide."""
    for path in (svs, real):
        tiles, image = tiles_of(path), pyvips.Image.tiffload(str(path), page=0)
        columns, rows = image.width // tiles.tile.width, image.height // tiles.tile.height
        for column, row in [(0, 0), (columns - 1, 0), (1, rows - 1)]:
            corner = Rect(column * tiles.tile.width, row * tiles.tile.height, *tiles.tile)
            np.testing.assert_array_equal(tiles.decode(column, row), image.crop(*corner).numpy())


def test_a_stream_is_a_complete_jpeg_for_any_reader(svs: Path, real: Path) -> None:
    """Pillow, without the TIFF around it, decodes the same colours as tifffile."""
    for path in (svs, real):
        tiles = tiles_of(path)
        stream = tiles.stream(1, 1)
        assert stream is not None
        with Image.open(io.BytesIO(stream)) as image:
            seen = np.asarray(image.convert("RGB"), np.int16)
        with tifffile.TiffFile(path) as tif:
            page = tif.pages[0]
            whole = page.asarray()
        width, height = tiles.tile
        expected = whole[height : 2 * height, width : 2 * width].astype(np.int16)
        assert np.abs(seen - expected).max() <= 1


def test_the_entropy_coded_bytes_are_the_files_own(real: Path) -> None:
    """Nothing is encoded again: the stream ends with the bytes of the stored tile."""
    tiles = tiles_of(real)
    with tifffile.TiffFile(real) as tif:
        page = tif.pages[0]
        offset, count = page.dataoffsets[7], page.databytecounts[7]
    stored = real.read_bytes()[offset : offset + count]
    stream = tiles.stream(7, 0)
    assert stream is not None
    assert stream.endswith(stored[2:])


@pytest.mark.parametrize("reduce", [2, 4, 8])
def test_reduced_decoding_is_close_to_the_mean_of_the_full_pixels(svs: Path, real: Path, reduce: int) -> None:
    """OpenCV's area filter over the fully decoded tile; the benchmarks' README has the same numbers."""
    for path in (svs, real):
        tiles = tiles_of(path)
        for column in range(3):
            small = tiles.decode(column, 1, reduce=reduce)
            full = tiles.decode(column, 1)
            mean = cv2.resize(full, small.shape[1::-1], interpolation=cv2.INTER_AREA)
            off = np.abs(small.astype(float) - mean)
            assert small.shape == (tiles.tile.height // reduce, tiles.tile.width // reduce, 3)
            assert off.mean() < 1.5
            assert np.quantile(off, 0.99) < 12


def jpeg_tiff(path: Path, pixels: np.ndarray, **options: object) -> Path:
    tifffile.imwrite(path, pixels, tile=(64, 64), compression="jpeg", photometric="rgb", **options)
    return path


def damage(path: Path, tile: int, change: object) -> None:
    """Overwrite all bytes of a stored tile."""
    with tifffile.TiffFile(path) as tif:
        offset, count = tif.pages[0].dataoffsets[tile], tif.pages[0].databytecounts[tile]
    data = bytearray(path.read_bytes())
    changed = change(bytes(data[offset : offset + count]))  # type: ignore[operator]
    data[offset : offset + count] = changed[:count].ljust(count, b"\0")
    path.write_bytes(data)


@pytest.fixture
def noisy(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    return jpeg_tiff(tmp_path / "noisy.tif", rng.integers(0, 255, (192, 256, 3), np.uint8))


def test_damaged_data_is_an_error_with_its_position(noisy: Path) -> None:
    """libjpeg-turbo would continue in grey; OpenSlide refuses such a tile, too."""
    damage(noisy, 5, lambda data: data[: len(data) // 2])
    tiles = tiles_of(noisy)
    with pytest.raises(CorruptSlideError, match=r"noisy.tif: tile \(1, 1\).*px \(64, 64\)"):
        tiles.decode(1, 1)
    tiles.decode(2, 1)


def test_a_bomb_is_refused_before_it_is_decoded(noisy: Path) -> None:
    """The frame header of a 64-px tile states 65,500² px."""

    def bomb(data: bytes) -> bytes:
        at = data.index(b"\xff\xc0") + 5
        return data[:at] + b"\xff\xdc\xff\xdc" + data[at + 4 :]

    damage(noisy, 0, bomb)
    with pytest.raises(CorruptSlideError, match="its JPEG is 65500×65500 px"):
        tiles_of(noisy).decode(0, 0)


def test_a_file_that_is_truncated_while_open_is_an_error(noisy: Path) -> None:
    """The bytes of a tile are incomplete."""
    tiles = tiles_of(noisy)
    os.truncate(noisy, 4000)
    with pytest.raises(CorruptSlideError, match="bytes are there"):
        tiles.decode(3, 2)


def test_a_deleted_file_is_still_read_while_open(noisy: Path) -> None:
    """An open file stays readable."""
    tiles = tiles_of(noisy)
    expected = tiles.decode(0, 0)
    noisy.unlink()
    np.testing.assert_array_equal(tiles.decode(0, 0), expected)


def test_progressive_tiles_are_read(tmp_path: Path) -> None:
    """libjpeg-turbo decodes them as other tiles."""
    rng = np.random.default_rng(1)
    pixels = cv2.GaussianBlur(rng.integers(0, 255, (64, 64, 3), np.uint8), (0, 0), 3)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", progressive=True, quality=90)
    path = tmp_path / "progressive.tif"
    tifffile.imwrite(
        path,
        iter([buffer.getvalue()] * 4),
        shape=(128, 128, 3),
        dtype=np.uint8,
        tile=(64, 64),
        compression="jpeg",
        photometric="ycbcr",
        subsampling=(2, 2),
    )
    with Image.open(buffer) as image:
        expected = np.asarray(image)
    np.testing.assert_array_equal(tiles_of(path).decode(1, 1), expected)


@pytest.mark.parametrize("rect", [Rect(0, 0, 256, 256), Rect(100, 37, 300, 280), Rect(-20, 1000, 200, 200)])
@pytest.mark.parametrize("level", [0, 1])
def test_any_rectangle_equals_libvips(svs: Path, rect: Rect, level: int) -> None:
    """Assembled from stored tiles, also across the slide's edge."""
    slide = sp.open_slide(svs)
    out = np.zeros((rect.height, rect.width, 3), np.uint8)
    Sampler(slide).plain(LevelChoice(level, (1.0, 1.0)), rect, out)
    image = slide.level_image(level)
    padded = image.embed(400, 400, image.width + 1600, image.height + 1600, extend="white")
    np.testing.assert_array_equal(out, padded.crop(rect.x + 400, rect.y + 400, rect.width, rect.height).numpy())


@pytest.mark.parametrize("shrink", [2.0, 2.6, 3.0, 4.0, 7.0, 8.0, 11.5])
def test_shrunk_tiles_are_close_to_the_full_path(svs: Path, shrink: float) -> None:
    """DCT-scaled decoding and the triangle filter, compared with the triangle filter over all pixels."""
    slide = sp.open_slide(svs)
    choice = LevelChoice(0, (shrink, shrink))
    out = np.zeros((60, 60, 3), np.uint8)
    rect = Rect(10, 20, 60, 60)
    Sampler(slide).plain(choice, rect, out)
    full = Image.fromarray(slide.level_image(0).numpy())
    box = tuple(value * shrink for value in (10, 20, 70, 80))
    expected = np.asarray(full.resize((60, 60), Image.Resampling.BILINEAR, box=box), float)
    off = np.abs(out - expected)
    assert off.mean() < 3
    assert np.quantile(off, 0.99) < 25


def test_neighbouring_shrunk_tiles_fit(svs: Path) -> None:
    """A large rectangle equals its parts: away from the edge, all pixels are of one lattice."""
    slide = sp.open_slide(svs)
    for shrink in (2.0, 4.0, 2.5):
        choice = LevelChoice(0, (shrink, shrink))
        large = np.zeros((96, 128, 3), np.uint8)
        Sampler(slide).plain(choice, Rect(5, 7, 128, 96), large)
        for x, y in [(0, 0), (64, 48), (64, 0)]:
            small = np.zeros((48, 64, 3), np.uint8)
            Sampler(slide).plain(choice, Rect(5 + x, 7 + y, 64, 48), small)
            off = np.abs(small.astype(int) - large[y : y + 48, x : x + 64])
            assert off.max() <= 1


class Level:
    """An owner of tiles for the cache, without a file."""

    serial = -1


def test_the_cache_keeps_tiles_up_to_its_limit() -> None:
    """The least recently used are dropped first."""
    made: list[str] = []

    def make(name: str) -> np.ndarray:
        made.append(name)
        return np.zeros(40, np.uint8)

    cache, owner = DecodedTiles(max_bytes=100), Level()
    for name in "abacaab":
        cache.get(owner, name, lambda name=name: make(name))
    assert made == ["a", "b", "c", "b"]
    assert cache.nbytes == 80


@pytest.mark.system
@pytest.mark.parametrize("photometric", ["ycbcr", "rgb"])
def test_mutated_tiles_end_in_pixels_or_in_an_error(tmp_path: Path, photometric: str) -> None:
    """In another process, because a fault may be a segmentation fault or a hang (``fuzz_tiles.py``)."""
    rng = np.random.default_rng(0)
    pixels = cv2.GaussianBlur(rng.integers(0, 255, (200, 300, 3), np.uint8), (0, 0), 2)
    path = tmp_path / "whole.tif"
    tifffile.imwrite(
        path, pixels, tile=(64, 64), compression="jpeg", photometric=photometric, bigtiff=photometric == "rgb"
    )
    script = SUPPORT / "fuzz_tiles.py"
    command = [sys.executable, str(script), str(path), "--times", "200"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-2000:]
    assert "'refused later'" in done.stdout
    assert "'read'" in done.stdout


@pytest.mark.parametrize("shrink", [2.0, 3.0, 8.0])
def test_padding_beyond_the_edge_does_not_show(tmp_path: Path, shrink: float) -> None:
    """tifffile pads edge tiles in black; the last JPEG blocks contain it, the last pixels must not."""
    rng = np.random.default_rng(2)
    pixels = cv2.GaussianBlur(rng.integers(150, 255, (203, 333, 3), np.uint8), (0, 0), 6)
    slide = sp.open_slide(jpeg_tiff(tmp_path / "edge.tif", pixels))
    size = slide.pyramid.size_at(LevelChoice(0, (shrink, shrink)))
    out = np.zeros((size.height, size.width, 3), np.uint8)
    Sampler(slide).plain(LevelChoice(0, (shrink, shrink)), Rect(0, 0, *size), out)
    box = (0, 0, size.width * shrink, size.height * shrink)
    expected = Image.fromarray(slide.level_image(0).numpy()).resize(size, Image.Resampling.BOX, box=box)
    off = np.abs(out - np.asarray(expected, float))
    assert off.max() < 12
    assert off[:, -1].mean() < 3
    assert off[-1].mean() < 3


def test_the_cache_drops_tiles_of_a_closed_slide(svs: Path) -> None:
    """When the next slide's tile is read; the closed slide's file is closed, too."""
    cache = DecodedTiles()

    def read(slide: sp.Slide) -> None:
        tiles = slide.stored_tiles(0)
        assert tiles is not None
        for column in range(3):
            cache.get(tiles, column, partial(tiles.decode, column, 0))

    with sp.open_slide(svs) as slide:
        read(slide)
        assert cache.nbytes == 3 * 256 * 256 * 3
    gc.collect()
    cache.get(Level(), 0, lambda: np.zeros(10, np.uint8))
    assert cache.nbytes == 10


@pytest.mark.parametrize("shrink", [1.0, 2.0, 4.0])
def test_tiles_of_whole_stored_tiles_equal_other_ways(svs: Path, shrink: float) -> None:
    """At the edge they are read differently than in the middle, with the same pixels."""
    slide = sp.open_slide(svs)
    choice = LevelChoice(0, (shrink, shrink))
    sampler = Sampler(slide)
    corners = np.array([[0, 0], [256, 0], [0, 128], [5, 0]])
    blocks = sampler.blocks(choice, corners, 256)
    assert blocks is not None
    assert blocks.side == shrink
    assert blocks.places[0] == (0, 0)
    assert blocks.places[3] is None
    for corner, place in zip(corners.tolist(), blocks.places, strict=True):
        if place is not None:
            out, expected = np.zeros((2, 256, 256, 3), np.uint8)
            sampler.read_blocks(blocks, [place], [out])
            sampler.plain(choice, Rect(*corner, 256, 256), expected)
            np.testing.assert_array_equal(out, expected)


@pytest.fixture(scope="module")
def halved_chroma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4:2:0, whose chroma is interpolated across the rows of blocks."""
    path = tmp_path_factory.mktemp("chroma") / "420.tif"
    rng = np.random.default_rng(4)
    pixels = cv2.GaussianBlur(rng.integers(0, 255, (1024, 1024, 3), np.uint8), (0, 0), 1)
    tifffile.imwrite(path, pixels, tile=(256, 256), compression="jpeg", photometric="ycbcr", subsampling=(2, 2))
    return path


@pytest.mark.parametrize("reduce", [1, 2, 8])
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 100, 224, 255, 256])
def test_the_first_rows_of_a_tile_equal_those_of_the_whole_tile(halved_chroma: Path, rows: int, reduce: int) -> None:
    """Bit for bit, also the last needed row, whose chroma depends on the next one."""
    tiles = tiles_of(halved_chroma)
    needed = -(-rows // reduce)
    part, whole = tiles.decode(1, 2, rows=rows, reduce=reduce), tiles.decode(1, 2, reduce=reduce)
    assert len(part) >= needed
    np.testing.assert_array_equal(part[:needed], whole[:needed])


def test_less_of_a_tile_is_decoded_when_less_is_needed(halved_chroma: Path, real: Path) -> None:
    """For every chroma subsampling."""
    assert len(tiles_of(halved_chroma).decode(0, 0, rows=20)) == 32
    assert len(tiles_of(real).decode(3, 3, rows=20)) == 32


@pytest.mark.parametrize("rows", [6, 44])
def test_damage_is_an_error_however_few_rows_are_needed(noisy: Path, rows: int) -> None:
    """The decoder reports the first fault that it meets, also for rows that are not needed."""
    damage(noisy, 5, lambda data: data[: len(data) // 2])
    with pytest.raises(CorruptSlideError, match="remature end"):
        tiles_of(noisy).decode(1, 1, rows=rows)


@pytest.mark.parametrize("shrink", [1.0, 2.0, 2.5])
def test_scattered_tiles_have_the_pixels_of_dense_ones(halved_chroma: Path, shrink: float) -> None:
    """Decoded in part or from the cache, at the edge and in the middle."""
    slide = sp.open_slide(halved_chroma)
    side = int(1024 / shrink)
    rng = np.random.default_rng(5)
    for x, y in [*rng.integers(-30, side - 100, (20, 2)).tolist(), (side - 128, side - 128)]:
        part, whole = np.zeros((2, 128, 128, 3), np.uint8)
        choice, rect = LevelChoice(0, (shrink, shrink)), Rect(x, y, 128, 128)
        Sampler(sp.open_slide(halved_chroma)).plain(choice, rect, part, scattered=True)
        Sampler(slide).plain(choice, rect, whole)
        np.testing.assert_array_equal(part, whole)


def test_tiles_that_share_no_stored_tiles_are_recognised(svs: Path) -> None:
    """A raster off the grid shares all of them, a few distant tiles none; two tiles are too few to decide."""
    sampler, native = Sampler(sp.open_slide(svs)), LevelChoice(0, (1.0, 1.0))
    raster = np.array([(x, y) for y in (10, 266, 522) for x in range(20, 1100, 256)])
    apart = np.array([(20, 30), (700, 30), (20, 700), (700, 700)])
    assert not sampler.scattered(native, raster, 256)
    assert sampler.scattered(native, apart, 256)
    assert not sampler.scattered(native, apart[:2], 256)


def test_each_stored_tile_is_decoded_once_for_a_raster_off_the_grid(svs: Path) -> None:
    """Though most tiles need four of them and come in batches, as from a stream."""
    reported: Counter[str] = Counter()
    slide = sp.open_slide(svs)
    corners = [(x, y) for y in range(40, 700, 256) for x in range(30, 1100, 256)]
    grid = sp.TileGrid.from_coords(slide.view(), corners, 256)
    bag = sp.TileBag(slide.view(), grid)
    bag.on_stage = lambda stage, start, end: reported.update([stage])
    for start in range(0, len(bag), 4):
        bag.read(np.arange(start, min(len(bag), start + 4)))
    needed = {((x + dx) // 256, (y + dy) // 256) for x, y in corners for dx in (0, 255) for dy in (0, 255)}
    assert reported["decode"] == len(needed)
    assert reported["fallback"] == 0


def test_a_tile_that_the_file_leaves_out_is_white(tmp_path: Path) -> None:
    """Philips slides leave out glass: no offset, no bytes."""
    rng = np.random.default_rng(6)
    path = jpeg_tiff(tmp_path / "sparse.tif", rng.integers(0, 200, (128, 192, 3), np.uint8))
    with tifffile.TiffFile(path) as tif:
        offsets, counts = (tif.pages[0].tags[name] for name in ("TileOffsets", "TileByteCounts"))
        kinds = {3: "H", 4: "I", 16: "Q"}
        places = [(tag.valueoffset, kinds[int(tag.dtype)]) for tag in (offsets, counts)]
    data = bytearray(path.read_bytes())
    for place, kind in places:
        struct.pack_into("<" + kind, data, place + 4 * struct.calcsize(kind), 0)
    path.write_bytes(data)
    tiles = tiles_of(path)
    assert tiles.stream(1, 1) is None
    for options in ({}, {"reduce": 4}, {"rows": 10}):
        assert (tiles.decode(1, 1, **options) == 255).all()
    assert not (tiles.decode(0, 1) == 255).all()


@pytest.mark.parametrize("lower", [False, True])
def test_a_jpeg_smaller_than_its_tile_fills_its_own_size(tmp_path: Path, lower: bool) -> None:
    """Some writers cut the last column or row; libvips would take its rows for those of a whole tile."""
    rng = np.random.default_rng(7)
    pixels = cv2.GaussianBlur(rng.integers(0, 255, (104, 64, 3) if lower else (64, 104, 3), np.uint8), (0, 0), 3)
    first, last = (pixels[:64], pixels[64:]) if lower else (pixels[:, :64], pixels[:, 64:])
    streams = []
    for part in (first, last):
        buffer = io.BytesIO()
        Image.fromarray(part).save(buffer, "JPEG", quality=95, subsampling=0)
        streams.append(buffer.getvalue())
    path = tmp_path / "cut.tif"
    tifffile.imwrite(
        path, iter(streams), shape=pixels.shape, dtype=np.uint8, tile=(64, 64), compression="jpeg", photometric="ycbcr",
        subsampling=(1, 1),
    )  # fmt: skip
    stages: list[str] = []
    slide = sp.open_slide(path)
    tiles = tiles_of(path)
    tile = tiles.decode(*((0, 1) if lower else (1, 0)), on_stage=lambda stage, start, end: stages.append(stage))
    assert stages == ["read", "fallback"]
    assert np.abs(tile[: last.shape[0], : last.shape[1]].astype(int) - last).mean() < 3
    for seen in (slide.view().image.numpy(), slide.read_region((0, 0), 0, pixels.shape[1::-1])):
        assert np.abs(seen.astype(int) - pixels).mean() < 3
    assert np.abs(tiles.decode(0, 0).astype(int) - first).mean() < 3


def test_streams_that_the_fast_decoder_refuses_are_decoded_by_libvips(noisy: Path) -> None:
    """If the reason is not damage; libvips then decides."""

    def without_a_scan(data: bytes) -> bytes:
        return data.replace(b"\xff\xda", b"\xff\xd9", 1)

    damage(noisy, 5, without_a_scan)
    slide = sp.open_slide(noisy)
    reported: list[str] = []
    tiles = slide.stored_tiles(0)
    assert tiles is not None
    with pytest.raises(CorruptSlideError, match=r"tile \(1, 1\)"):
        tiles.decode(1, 1, on_stage=lambda stage, start, end: reported.append(stage))
    tiles.decode(2, 1, on_stage=lambda stage, start, end: reported.append(stage))
    assert reported == ["read", "decode"]


def test_a_part_of_a_tile_that_another_decoder_must_decode(svs: Path, tmp_path: Path) -> None:
    """Its chroma has a size that libjpeg-turbo's simple interface does not name; libvips decodes the whole tile."""
    path = tmp_path / "b.svs"
    path.write_bytes(svs.read_bytes())
    tiles = tiles_of(path)
    offset, data = int(tiles._offsets[0]), bytearray(os.pread(tiles._fd, int(tiles._counts[0]), int(tiles._offsets[0])))
    frame = data.index(b"\xff\xc0")
    data[frame + 14] = 0x21  # of the second component
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
    slide = sp.open_slide(path)
    tiles = slide.stored_tiles(0)  # type: ignore[assignment]
    whole = tiles.decode(0, 0)
    np.testing.assert_array_equal(tiles.decode(0, 0, rows=40)[:40], whole[:40])
