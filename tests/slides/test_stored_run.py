"""Stored tiles decoded together, without the GIL: the bytes of those decoded alone; what is damaged is left out."""

from __future__ import annotations

import io
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from made_slides import made_slide
from PIL import Image

import slideio_pipe as sp
from slideio_pipe.compiled import library
from slideio_pipe.errors import CorruptSlideError
from slideio_pipe.slides.backends.base import StoredTiles
from slideio_pipe.slides.sampling import Sampler
from slideio_pipe.slides.stored_run import StoredRuns
from slideio_pipe.slides.tile_cache import SHARED

RNG = np.random.default_rng(0)
SMOOTH = cv2.GaussianBlur(RNG.integers(0, 255, (192, 256, 3), np.uint8), (0, 0), 1)


def stored(path: Path, level: int = 0) -> StoredTiles:
    tiles = sp.open_slide(path).stored_tiles(level)
    assert tiles is not None
    return tiles


def together(tiles: StoredTiles, places: list[tuple[int, int]], reduce: int, rows: int) -> tuple[np.ndarray, list[int]]:
    """Return tiles decoded in one call, and the numbers of those that were not."""
    out = np.full((len(places), rows, tiles.tile.width // reduce, 3), 7, np.uint8)
    starts = [pixels.ctypes.data for pixels in out]
    return out, tiles.decode_at(places, starts, stride=out.strides[1], rows=rows, reduce=reduce)


def every(tiles: StoredTiles) -> list[tuple[int, int]]:
    return [(column, row) for row in range(tiles.grid.height) for column in range(tiles.grid.width)]


def with_kind(path: Path, kind: str) -> Path:
    """Write a TIFF of JPEG tiles of 64 px: how their colours are stored, or where their tables are."""
    options: dict[str, object] = {"photometric": "rgb"} if kind == "rgb" else {"photometric": "ycbcr"}
    if kind == "halved chroma":
        options["subsampling"] = (2, 2)
    if kind in ("jfif", "progressive"):
        streams = []
        for y in range(0, 192, 64):
            for x in range(0, 256, 64):
                tile = Image.fromarray(SMOOTH[y : y + 64, x : x + 64])
                tile.save(buffer := io.BytesIO(), "JPEG", quality=90, progressive=kind == "progressive")
                streams.append(buffer.getvalue())
        shape = {"shape": SMOOTH.shape, "dtype": np.uint8, "subsampling": (2, 2)}
        tifffile.imwrite(path, iter(streams), tile=(64, 64), compression="jpeg", **options, **shape)
    else:
        tifffile.imwrite(path, SMOOTH, tile=(64, 64), compression="jpeg", **options)
    return path


@pytest.fixture(autouse=True)
def decoder() -> None:
    programs = library.load()
    assert programs is not None, "python slideio_pipe/compiled/compile_programs.py"
    assert programs.decodes, "pip install imagecodecs"


@pytest.mark.parametrize("reduce", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", ["ycbcr", "halved chroma", "rgb", "jfif", "progressive"])
def test_tiles_have_the_bytes_of_those_decoded_alone(tmp_path: Path, kind: str, reduce: int) -> None:
    """By simplejpeg, another build of the same library."""
    tiles = stored(with_kind(tmp_path / "a.tif", kind))
    out, left = together(tiles, every(tiles), reduce, 64 // reduce)
    assert left == []
    for pixels, (column, row) in zip(out, every(tiles), strict=True):
        np.testing.assert_array_equal(pixels, tiles.decode(column, row, reduce=reduce))


@pytest.mark.parametrize("rows", [1, 14, 15, 31, 46])
@pytest.mark.parametrize("reduce", [1, 2])
def test_the_first_rows_have_the_same_bytes(tmp_path: Path, reduce: int, rows: int) -> None:
    """Chroma of half the height, which also depends on the row below."""
    tiles = stored(with_kind(tmp_path / "a.tif", "halved chroma"))
    out, left = together(tiles, [(1, 1), (2, 1)], reduce, tiles.rows_for(rows) // reduce)
    assert left == []
    for column in (1, 2):
        np.testing.assert_array_equal(out[column - 1], tiles.decode(column, 1, reduce=reduce, rows=rows))
        needed = -(-rows // reduce)
        np.testing.assert_array_equal(out[column - 1, :needed], tiles.decode(column, 1, reduce=reduce)[:needed])


def test_rows_of_a_larger_array_are_written_and_nothing_else(tmp_path: Path) -> None:
    """A quarter of a tile that has twice the side."""
    tiles = stored(with_kind(tmp_path / "a.tif", "ycbcr"))
    whole = np.full((130, 130, 3), 7, np.uint8)
    start = whole[1:, 65:].ctypes.data
    assert tiles.decode_at([(2, 1)], [start], stride=whole.strides[0], rows=64) == []
    np.testing.assert_array_equal(whole[1:65, 65:129], tiles.decode(2, 1))
    whole[1:65, 65:129] = 7
    assert (whole == 7).all()


@pytest.mark.parametrize("damage", ["zeros", "another size", "truncated while open", "nothing stored"])
def test_a_damaged_tile_is_left_out_and_the_others_are_decoded(tmp_path: Path, damage: str) -> None:
    """Alone it raises the error that names it; one without bytes is drawn."""
    path = with_kind(tmp_path / "a.tif", "ycbcr")
    expected, _ = together(stored(path), every(stored(path)), 1, 64)
    with tifffile.TiffFile(path, mode="r+") as tif:
        page = tif.pages[0]
        offset, count = page.dataoffsets[-1], page.databytecounts[-1]
        if damage == "nothing stored":
            page.tags["TileByteCounts"].overwrite([*page.databytecounts[:-1], 0])
    data = bytearray(path.read_bytes())
    if damage == "zeros":
        data[offset + count // 2 : offset + count] = bytes(count - count // 2)
    if damage == "another size":
        frame = data.index(b"\xff\xc0", offset)
        data[frame + 5 : frame + 9] = b"\x20\x00\x20\x00"
    path.write_bytes(data)
    tiles = stored(path)
    if damage == "truncated while open":
        os.truncate(path, offset + count // 2)
    out, left = together(tiles, every(tiles), 1, 64)
    assert left == [11]
    np.testing.assert_array_equal(out[:11], expected[:11])
    if damage == "nothing stored":
        assert (tiles.decode(3, 2) == 255).all()
    else:
        with pytest.raises(CorruptSlideError, match=r"tile \(3, 2\)"):
            tiles.decode(3, 2)


def test_without_a_decoder_tiles_are_decoded_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same pixels, on the stored grid and off it."""
    path = made_slide(tmp_path / "a.svs", size=(1100, 900), seed=3).path
    corners = [(0, 0), (256, 256), (13, 40), (500, 300)]

    def read() -> np.ndarray:
        slide = sp.open_slide(path)
        return sp.TileBag.from_coords(slide.view(), corners, 256).read(np.arange(len(corners)))

    expected = read()
    monkeypatch.setattr(library.load(), "decodes", False)
    np.testing.assert_array_equal(read(), expected)


@pytest.mark.parametrize("reduce", [1, 2])
def test_a_run_takes_known_tiles_from_the_cache_and_keeps_the_others(tmp_path: Path, reduce: int) -> None:
    """Whole ones; those at the level's edge, shrunk, are as if the level continued."""
    slide = sp.open_slide(made_slide(tmp_path / "a.svs", size=(1100, 900), seed=3).path)
    tiles, sampler = slide.stored_tiles(0), Sampler(slide)
    assert tiles is not None
    runs = StoredRuns(sampler, {0: tiles})
    keys = [(0, reduce, column, row) for column, row in every(tiles)]
    cached = [runs.cache_key(key) for key in keys]
    SHARED.get(tiles, keys[3][1:], lambda: np.full((256 // reduce, 256 // reduce, 3), 9, np.uint8))
    found = runs.blocks(keys, cached)
    again = runs.blocks(keys, cached)
    assert [block[1] for block in found] == [block[1] for block in again]
    for k, ((pixels, start), (_, _, column, row)) in enumerate(zip(found, keys, strict=True)):
        assert start == pixels.ctypes.data
        if k == 3:
            assert (pixels == 9).all()
        else:
            np.testing.assert_array_equal(pixels, sampler.decoded(tiles, 0, reduce, column, row))
            if sampler.is_whole(tiles, 0, column, row):
                np.testing.assert_array_equal(pixels, tiles.decode(column, row, reduce=reduce))


def test_few_needed_rows_are_not_kept(tmp_path: Path) -> None:
    """As where tiles are far apart."""
    slide = sp.open_slide(made_slide(tmp_path / "a.svs", size=(1100, 900), seed=3).path)
    tiles = slide.stored_tiles(0)
    assert tiles is not None
    runs = StoredRuns(Sampler(slide), {0: tiles})
    keys = [(0, 1, 0, 0), (0, 1, 1, 0)]
    cached = [runs.cache_key(key) for key in keys]
    part, whole = runs.blocks(keys, cached, [20, 250])
    assert (len(part[0]), len(whole[0])) == (32, 256)
    assert [block is None for block in SHARED.known_run(cached)] == [True, False]


def test_a_run_of_tiles_at_the_edge_alone_is_decoded_one_by_one(tmp_path: Path) -> None:
    """None of them can be decoded together."""
    slide = sp.open_slide(made_slide(tmp_path / "a.svs", size=(1100, 900), seed=3).path)
    tiles, sampler = slide.stored_tiles(0), Sampler(slide)
    assert tiles is not None
    runs = StoredRuns(sampler, {0: tiles})
    key = (0, 2, 4, 0)
    (pixels, _) = runs.blocks([key], [runs.cache_key(key)])[0]
    np.testing.assert_array_equal(pixels, sampler.decoded(tiles, 0, 2, 4, 0))
