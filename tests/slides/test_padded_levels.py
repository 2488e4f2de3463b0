"""Levels padded to whole tiles: their downsamples as files state them; without a statement they are not used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from pyramids import coordinate_pixels

from slideio_pipe import errors
from slideio_pipe.geometry import Size
from slideio_pipe.slides.backends import tiff_levels
from slideio_pipe.slides.slide import open_slide


def up(side: int, tile: int) -> int:
    return -(-side // tile) * tile


@given(
    st.tuples(st.integers(300, 90_000), st.integers(300, 90_000)),
    st.tuples(st.sampled_from([16, 240, 256, 512]), st.sampled_from([16, 240, 256, 512])),
    st.sampled_from([(2, 4, 8), (4, 16), (3, 9), (2, 6)]),
    st.booleans(),
)
def test_stated_downsamples_are_found(
    true: tuple[int, int], tile: tuple[int, int], steps: tuple[int, ...], base_is_padded: bool
) -> None:
    """Levels of any slide, padded to whole tiles: the stated downsample to a part in a thousand."""
    from slideio_pipe.slides.backends.levels import place_levels

    base = Size(*(up(side, t) if base_is_padded else side for side, t in zip(true, tile, strict=True)))
    sizes = [base, *(Size(*(up(-(-s // n), t) for s, t in zip(true, tile, strict=True))) for n in steps)]
    if len({size.width for size in sizes}) < len(sizes):
        return  # a level that is no smaller is never written
    stated = [(1.0, 1.0), *((n * 1.0004, n * 0.9996) for n in steps)]
    placed = place_levels(sizes, stated, [Size(*tile)] * len(sizes), "a")
    assert placed.kept == tuple(range(len(sizes)))
    assert placed.pyramid.downsamples == ((1.0, 1.0), *((float(n), float(n)) for n in steps))
    for size, n in zip(placed.pyramid.levels, (1, *steps), strict=True):
        assert all(0 <= side * n <= whole + n for side, whole in zip(size, base, strict=True))


@given(st.integers(300, 90_000), st.integers(300, 90_000), st.sampled_from([(2, 4, 8), (4, 16), (4, 8, 32)]))
def test_levels_that_are_not_padded_are_all_kept(width: int, height: int, steps: tuple[int, ...]) -> None:
    """For every rounding of sizes, with nothing stated: the ratio of sizes, as in OpenSlide."""
    from slideio_pipe.slides.backends.levels import place_levels

    for rounded in (lambda side, n: side // n, lambda side, n: -(-side // n)):
        sizes = [Size(width, height), *(Size(rounded(width, n), rounded(height, n)) for n in steps)]
        placed = place_levels(sizes, [None] * len(sizes), [Size(256, 256)] * len(sizes), "a")
        assert placed.pyramid.levels == tuple(sizes)
        assert placed.pyramid.downsamples == tuple((width / w, height / h) for w, h in sizes)


def test_padded_levels_of_a_tiff_are_not_used(tmp_path: Path) -> None:
    """A TIFF states no downsample: level 0 is read instead."""
    pixels = coordinate_pixels(700, 500)
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        for step in (1, 2):
            level = pixels[::step, ::step]
            height, width = level.shape[:2]
            level = np.pad(level, ((0, -height % 240), (0, -width % 240), (0, 0)), constant_values=255)
            options = {"tile": (240, 240), "photometric": "rgb", "metadata": None, "subfiletype": step - 1}
            tif.write(level, compression="deflate", **options)
    with pytest.warns(errors.LeftOutLevelsWarning, match="480 × 480 px are not used"):
        slide = open_slide(tmp_path / "a.tif", slide_mpp=0.5)
    assert slide.level_dimensions == ((720, 720),)


@pytest.mark.parametrize("at", [(40, 400), (300, 40), (280, 400)], ids=str)
def test_levels_are_compared_in_their_tiles_with_most_detail(tmp_path: Path, at: tuple[int, int]) -> None:
    """Here a stored tile of noise, also in the last, narrow column and row."""
    pixels = np.full((350, 450, 3), 240, np.uint8)
    noise = np.random.default_rng(4).integers(0, 256, (30, 30, 3), dtype=np.uint8)
    pixels[at[0] : at[0] + 30, at[1] : at[1] + 30] = noise
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(128, 128), photometric="rgb", compression="deflate")
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        y, x = tiff_levels._fullest(tif.pages[0])[0]
    assert (int(y * 350) // 128, int(x * 450) // 128) == (at[0] // 128, at[1] // 128)
