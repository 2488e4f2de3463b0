"""Stored tiles that the file leaves out: drawn from the finer level, else white, in every reader."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile
from pyramids import write_pyramid
from scipy.ndimage import gaussian_filter

import slideio_pipe as sp
from slideio_pipe.errors import CorruptSlideError, SkippedWarning
from slideio_pipe.geometry import LevelChoice, Rect, Size
from slideio_pipe.slides.sampling import Sampler

RANDOM = np.random.default_rng(5)
WIDTH, HEIGHT, TILE = 1024, 768, 128
SMOOTH = np.clip(
    gaussian_filter(RANDOM.normal(size=(HEIGHT, WIDTH, 3)), (6, 6, 0)) * 900 + (190, 110, 160), 0, 250
).astype(np.uint8)
APERIO = "Aperio Image Library v10.0.51\n1024x768 [0,0 1024x768] (128x128)|AppMag = 20|MPP = 0.5"
CODECS: dict[str, dict[str, Any]] = {
    "none": {"compression": "none"},
    "deflate": {"compression": "deflate"},
    "lzw": {"compression": "lzw", "predictor": True},
    "packbits": {"compression": "packbits"},
    "zstd": {"compression": "zstd"},
    "webp": {"compression": "webp", "compressionargs": {"lossless": True}},
    "jpeg 2000": {"compression": "jpeg2000", "compressionargs": {"reversible": True}},
    "jpeg": {"compression": "jpeg", "compressionargs": {"level": 98}, "subsampling": (1, 1)},
}


def means(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Return the means of ``factor`` × ``factor`` pixels, float64."""
    height, width = (side // factor for side in pixels.shape[:2])
    return pixels[: height * factor, : width * factor].reshape(height, factor, width, factor, 3).mean(axis=(1, 3))


def leave_out(path: Path, tiles: list[int], page: int = 0, *, offsets: bool = True) -> None:
    """Overwrite the byte counts, and the offsets, of stored tiles with 0."""
    with tifffile.TiffFile(path, mode="r+b") as tif:
        for name in ["TileByteCounts"] + ["TileOffsets"] * offsets:
            values = list(tif.pages[page].tags[name].value)
            for tile in tiles:
                values[tile] = 0
            tif.pages[page].tags[name].overwrite(values)


def write_aperio(
    path: Path, codec: str, factors: tuple[int, ...] = (1, 2), pixels: np.ndarray = SMOOTH, *, marked: bool = True
) -> Path:
    """Write an SVS whose levels are the rounded means of level 0."""
    with tifffile.TiffWriter(path) as tif:
        for index, factor in enumerate(factors):
            level = np.rint(means(pixels, factor)).astype(np.uint8)
            more: dict[str, Any] = {"subfiletype": int(marked and index > 0), "photometric": "rgb", "metadata": None}
            tif.write(level, tile=(TILE, TILE), description=APERIO, software=False, **more, **CODECS[codec])
    return path


def whole(slide: sp.Slide, level: int) -> dict[str, np.ndarray]:
    """Return a whole level by every reader, from tiles of bags on and off the stored grid."""
    view = slide.view(
        mpp=tuple(own * down for own, down in zip(slide.mpp, slide.pyramid.downsamples[level], strict=True))
    )
    width, height = slide.level_dimensions[level]
    assert view.size == (width, height)
    seen = {"read_region": slide.read_region((0, 0), level, (width, height)), "image": view.image.numpy()}
    for name, side in {"tiles": TILE, "off the grid": 100}.items():
        canvas = np.zeros((height + side, width + side, 3), np.uint8)
        origins = np.array([(x, y) for y in range(0, height, side) for x in range(0, width, side)])
        for (x, y), tile in zip(origins.tolist(), sp.TileReader(view, side).read(origins, threads=2), strict=True):
            canvas[y : y + side, x : x + side] = tile
        seen[name] = canvas[:height, :width]
    scattered = np.zeros((height, width, 3), np.uint8)
    Sampler(slide).plain(LevelChoice(level, (1.0, 1.0)), Rect(0, 0, width, height), scattered, scattered=True)
    return {**seen, "scattered": scattered}


# --- holes of Aperio's encoder


@pytest.mark.combinations
@pytest.mark.parametrize("offsets", [False, True], ids=["no bytes", "no offset either"])
@pytest.mark.parametrize("codec", list(CODECS))
def test_a_hole_is_drawn_from_the_finer_level(tmp_path: Path, codec: str, offsets: bool) -> None:
    """As means of level 0, rounded once per axis, in every reader, also at the edge."""
    slide_path = write_aperio(tmp_path / "a.svs", codec)
    leave_out(slide_path, [5, 11], page=1, offsets=offsets)
    slide = sp.open_slide(slide_path)
    expected = means(slide.read_region((0, 0), 0, slide.dimensions), 2)
    for way, pixels in whole(slide, 1).items():
        off = np.abs(pixels - expected)
        assert off[128:256, 128:256].max() <= 1, way
        assert off[256:, 384:].max() <= 1, way
        assert off.mean() < 1.5, way
    assert np.abs(slide.thumbnail(512) - expected).mean() < 1.5


@pytest.mark.parametrize("codec", ["jpeg", "deflate", "jpeg 2000"])
def test_a_level_with_holes_is_still_a_level(tmp_path: Path, codec: str) -> None:
    """Where only its pixels show that it is one, as in OpenSlide."""
    path = write_aperio(tmp_path / "a.svs", codec, marked=False)
    leave_out(path, [0, 5, 6, 11], page=1)
    slide = sp.open_slide(path)
    assert slide.level_dimensions == (Size(WIDTH, HEIGHT), Size(WIDTH // 2, HEIGHT // 2))
    off = slide.read_region((0, 0), 1, slide.level_dimensions[1]) - means(
        slide.read_region((0, 0), 0, (WIDTH, HEIGHT)), 2
    )
    assert np.abs(off).mean() < 1.5


@pytest.mark.parametrize("codec", ["jpeg", "deflate"])
def test_a_hole_is_drawn_as_openslide_draws_it(tmp_path: Path, codec: str) -> None:
    """Within one level of OpenSlide's interpolation."""
    path = write_aperio(tmp_path / "a.svs", codec)
    leave_out(path, [5, 6], page=1, offsets=False)
    with openslide.OpenSlide(str(path)) as reference:
        assert reference.properties["openslide.vendor"] == "aperio"
        expected = np.asarray(reference.read_region((256, 256), 1, (256, 128)))
    assert (expected[..., 3] == 255).all()
    off = np.abs(sp.open_slide(path).read_region((256, 256), 1, (256, 128)).astype(int) - expected[..., :3])
    assert off.mean() < 0.8


@pytest.mark.parametrize("codec", ["jpeg", "zstd"])
def test_a_hole_below_a_hole_is_drawn_from_the_level_below(tmp_path: Path, codec: str) -> None:
    """Levels 1, 2, 4: all of level 2 and its area in level 1 are missing."""
    path = write_aperio(tmp_path / "a.svs", codec, (1, 2, 4))
    leave_out(path, [0, 1, 4, 5], page=1)
    leave_out(path, [0, 1, 2, 3], page=2)
    slide = sp.open_slide(path)
    expected = means(slide.read_region((0, 0), 0, slide.dimensions), 4)
    for way, pixels in whole(slide, 2).items():
        off = np.abs(pixels - expected)
        assert off[:128, :128].max() <= 2, way
        assert off.mean() < 1.5, way


def area_means(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return an image of ``size`` (width, height), each pixel the exact mean of its fractional box, float64."""
    out = pixels.astype(float)
    for axis, side in ((1, size[0]), (0, size[1])):
        length = out.shape[axis]
        sums = np.insert(np.cumsum(out, axis=axis), 0, 0, axis=axis)
        at = np.arange(side + 1) * length / side
        low = np.minimum(at.astype(int), length - 1)
        part = (at - low).reshape([-1 if k == axis else 1 for k in range(3)])
        edges = np.take(sums, low, axis) * (1 - part) + np.take(sums, low + 1, axis) * part
        out = np.diff(edges, axis=axis) * side / length
    return out


@pytest.mark.parametrize("size", [(1000, 700), (1023, 767), (1001, 703)])
def test_a_hole_is_aligned_if_downsamples_are_fractions(tmp_path: Path, size: tuple[int, int]) -> None:
    """Unequal per axis: every pixel shows its own part of level 0, to a third of a level-0 pixel."""
    pixels = gaussian_filter(SMOOTH[: size[1], : size[0]], (12, 12, 0))
    path = write_aperio(tmp_path / "a.svs", "deflate", (1, 3), pixels)
    leave_out(path, list(range(6)), page=1)
    small = (size[0] // 3, size[1] // 3)
    off = np.abs(sp.open_slide(path).read_region((0, 0), 1, small) - area_means(pixels, small))
    assert off.max() <= 2.5
    assert off.mean() < 0.5


@pytest.mark.parametrize("shrink", [2.0, 4.0, 8.0, 3.3])
def test_a_shrunk_hole_is_the_mean_of_the_finer_level(tmp_path: Path, shrink: float) -> None:
    """It fits the pixels that the JPEG decoder shrinks beside it."""
    path = write_aperio(tmp_path / "a.svs", "jpeg")
    undamaged = sp.open_slide(path)
    size = undamaged.pyramid.size_at(LevelChoice(1, (shrink, shrink)))
    seen = []
    for damaged in (False, True):
        if damaged:
            leave_out(path, [5, 6], page=1, offsets=False)
        out = np.zeros((size.height, size.width, 3), np.uint8)
        Sampler(sp.open_slide(path)).plain(LevelChoice(1, (shrink, shrink)), Rect(0, 0, *size), out)
        seen.append(out.astype(int))
    assert np.abs(seen[1] - seen[0]).max() <= 4


def test_tissue_in_a_hole_is_found(tmp_path: Path) -> None:
    """The mask equals that of the undamaged slide; before, 0.32 instead of 0.47 of one was found."""
    pixels = np.full((HEIGHT, WIDTH, 3), 242, np.uint8)
    pixels[100:650, 150:850] = (SMOOTH[100:650, 150:850] * 0.8).astype(np.uint8)
    path = write_aperio(tmp_path / "a.svs", "jpeg", pixels=pixels)
    areas = [sp.find_tissue(sp.open_slide(path)).fraction]
    leave_out(path, [5, 6, 9], page=1, offsets=False)
    areas.append(sp.find_tissue(sp.open_slide(path)).fraction)
    assert areas[0] > 0.3
    assert areas[1] == pytest.approx(areas[0], abs=0.005)


def test_missing_jpeg_tiles_are_encoded(tmp_path: Path) -> None:
    """A bag of the slide's own bytes has the drawn pixels, not white."""
    path = write_aperio(tmp_path / "a.svs", "jpeg")
    leave_out(path, [5], page=1, offsets=False)
    view = sp.open_slide(path).view(mpp=1.0)
    bag = sp.TileBag(view, sp.TileGrid(view, TILE))
    stored = sp.save_bag(bag, tmp_path / "bag", pixels="source")
    for number in range(len(bag)):
        off = np.abs(stored[number].astype(int) - bag[number])
        assert off.max() <= (4 if number == 5 else 0)
        assert off.mean() < 1
    assert stored[5].mean() < 230


def test_damage_in_the_finer_level_is_an_error(tmp_path: Path) -> None:
    """Not a white or grey area; the hole beside it is still drawn."""
    path = write_aperio(tmp_path / "a.svs", "jpeg")
    leave_out(path, [5, 7], page=1, offsets=False)
    with tifffile.TiffFile(path, mode="r+b") as tif:
        offset, count = tif.pages[0].dataoffsets[19], tif.pages[0].databytecounts[19]
        tif.filehandle.seek(offset + count // 2)
        tif.filehandle.write(b"\x55" * (count - count // 2))
    slide = sp.open_slide(path)
    for _ in range(2):
        with pytest.raises(CorruptSlideError, match="tile"):
            sp.TileReader(slide.view(mpp=1.0), TILE).read([[128, 128]])
        with pytest.raises(CorruptSlideError, match="tile"):
            slide.read_region((256, 256), 1, (128, 128))
    assert not (slide.read_region((768, 256), 1, (128, 128)) == 255).any()


def test_holes_at_level_0_are_white_with_a_warning(tmp_path: Path) -> None:
    """An Aperio slide has no finer level; the warning has their number."""
    path = write_aperio(tmp_path / "a.svs", "jpeg")
    leave_out(path, [5, 6], offsets=False)
    with pytest.warns(SkippedWarning, match=r"a\.svs: 2 of 48 stored tiles of level 0 are empty"):
        slide = sp.open_slide(path)
    assert (slide.read_region((640, 0), 0, (256, 128)) == 255).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sp.open_slide(write_aperio(tmp_path / "b.svs", "jpeg"))


# --- sparse files


def sparse_files(folder: Path) -> Iterator[tuple[str, Path, np.ndarray]]:
    """Yield slides without tile (1, 0), as GDAL's SPARSE_OK writes them, and their pixels."""
    for codec, options in CODECS.items():
        for planes in (False, True):
            if planes and codec in ("jpeg 2000", "webp"):
                continue
            path = folder / f"{codec} {planes}.tif"
            pixels = np.moveaxis(SMOOTH, 2, 0).copy() if planes else SMOOTH
            more: dict[str, Any] = {"planarconfig": "separate"} if planes else {}
            if codec == "jpeg" and planes:
                more, options = {**more, "subsampling": None}, {"compression": "jpeg"}
            tifffile.imwrite(
                path, pixels, tile=(TILE, TILE), photometric="rgb", metadata=None,
                resolution=(20_000, 20_000), resolutionunit="CENTIMETER", **options, **more,
            )  # fmt: skip
            expected = np.asarray(tifffile.imread(path))
            expected = (np.moveaxis(expected, 0, 2) if planes else expected).copy()
            leave_out(path, [1, 49, 97] if planes else [1])
            expected[:TILE, TILE : 2 * TILE] = 255
            yield path.stem, path, expected


@pytest.mark.system
def test_sparse_tiles_are_white_in_every_codec_and_reader(tmp_path: Path) -> None:
    """The others equal tifffile's, also beside a sparse one."""
    for name, path, expected in sparse_files(tmp_path):
        slide = sp.open_slide(path)
        for way, pixels in whole(slide, 0).items():
            assert np.abs(pixels.astype(int) - expected).max() <= 1, (name, way)
        assert (slide.thumbnail(WIDTH)[:TILE, TILE : 2 * TILE] == 255).all(), name
        slide.view().save(tmp_path / "saved.tif", overwrite=True)
        saved = tifffile.imread(tmp_path / "saved.tif", key=0)
        assert np.abs(saved.astype(int) - expected).mean() < 3, name
        assert saved[16:112, 144:240].min() >= 250, name


@pytest.mark.parametrize("codec", ["jpeg", "deflate", "zstd"])
def test_sparse_tiles_are_transparent_in_openslide(tmp_path: Path, codec: str) -> None:
    """And white here."""
    path = write_pyramid(tmp_path / "a.tif", SMOOTH, (1,), tile=TILE, **CODECS[codec])
    leave_out(path, [1, 10])
    seen = sp.open_slide(path).read_region((0, 0), 0, (WIDTH, HEIGHT))
    if codec != "zstd":  # which OpenSlide does not read
        with openslide.OpenSlide(str(path)) as reference:
            alpha = np.asarray(reference.read_region((0, 0), 0, reference.dimensions))[..., 3]
        np.testing.assert_array_equal((seen == 255).all(axis=2), alpha == 0)


@pytest.mark.parametrize("codec", ["jpeg", "deflate"])
def test_sparse_levels_of_a_sparse_pyramid_stay_white_without_a_decode(
    tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the finer level is empty, too, there is nothing to draw."""
    from slideio_pipe.slides.backends.tiff_decoder import TileDecoder

    path = write_pyramid(tmp_path / "a.tif", SMOOTH, (1, 2), tile=TILE, **CODECS[codec])
    leave_out(path, [0, 1, 8, 9])
    leave_out(path, [0], page=1)
    read: list[tuple[int, int]] = []
    original: Callable[..., Any] = TileDecoder.region
    monkeypatch.setattr(TileDecoder, "region", lambda self, rect: read.append(rect) or original(self, rect))
    slide = sp.open_slide(path)
    assert (slide.read_region((0, 0), 1, (TILE, TILE)) == 255).all()
    assert (sp.TileReader(slide.view(mpp=0.5), TILE).read([[0, 0]]) == 255).all()
    assert read == []
    assert slide.level_dimensions[1] == Size(WIDTH // 2, HEIGHT // 2)


@pytest.mark.parametrize("codec", ["none", "zlib", "lzw", "jpeg"])
def test_strips_that_are_left_out_are_white(tmp_path: Path, codec: str) -> None:
    """Like tiles."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, SMOOTH, photometric="rgb", rowsperstrip=64, compression=codec, metadata=None)
    expected = np.asarray(tifffile.imread(path)).copy()
    with tifffile.TiffFile(path, mode="r+b") as tif:
        for name in ("StripByteCounts", "StripOffsets"):
            values = list(tif.pages[0].tags[name].value)
            tif.pages[0].tags[name].overwrite([*values[:3], 0, *values[4:]])
    expected[192:256] = 255
    np.testing.assert_array_equal(sp.open_slide(path).read_region((0, 0), 0, (WIDTH, HEIGHT)), expected)
