"""Every fast path of the reader against the plain one, under every kind of transform.

A slide of JPEG tiles is read by its stored tiles, whole, in part, several to a tile, or shrunk by the decoder. The
plain path is a picture in memory of the same pixels, read through libvips.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import albumentationsxl as A
import numpy as np
import pytest
import tifffile
from PIL import Image
from pyramids import write_pyramid

from slideio_pipe import (
    ColorJitter,
    Draw,
    Flip,
    RandomAffine,
    Rotate90,
    SlideView,
    StainJitter,
    TileBag,
    TileGrid,
    TileReader,
    open_slide,
)
from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import LevelChoice, Rect, Size
from slideio_pipe.slides.sampling import Sampler

STORED, WIDTH, HEIGHT = 64, 500, 330
y, x = np.mgrid[:HEIGHT, :WIDTH]
PIXELS = np.stack([140 + 90 * np.sin(x / 21), 120 + 80 * np.cos(y / 17), 90 + (x + 2 * y) / 9], axis=-1).astype(
    np.uint8
)
COLOURS = A.Compose([StainJitter(), ColorJitter(0.3, 0.3, 0.3, 0.1)])
MOVES = RandomAffine(rotate=(17, 40), shear=(5, 9), flip=False)
EXACT = A.Compose([Rotate90(), Flip()])


@dataclass(frozen=True)
class Way:
    """A fast path for tiles of a slide of JPEG tiles."""

    name: str
    shrink: float
    tile: int
    origins: tuple[tuple[int, int], ...]


GRID = tuple((column * STORED, row * STORED) for row in range(4) for column in range(6))
HALVES = tuple((column * 32, row * 32) for row in range(4) for column in range(6))
WAYS = [
    Way("whole stored tiles", 1, 64, GRID),
    Way("four stored tiles each", 1, 128, ((0, 0), (128, 64), (320, 128), (64, 192))),
    Way("off the grid", 1, 64, tuple((column + 13, row + 40) for column, row in GRID[:15])),
    Way("off the grid by few rows", 1, 50, ((7, 3), (300, 66), (70, 250), (430, 130), (200, 170))),
    Way("on and off the grid, over the edge", 1, 64, ((0, 0), (64, 64), (30, 0), (448, 256), (-20, -9), (470, 300))),
    Way("halved by the decoder", 2, 32, HALVES),
    Way("halved, several to a tile", 2, 64, ((0, 0), (32, 32), (160, 64), (64, 96))),
    Way("halved, off the grid", 2, 32, ((5, 7), (40, 11), (100, 90), (200, 130))),
    Way("an eighth", 8, 8, ((0, 0), (8, 8), (16, 24), (40, 16))),
    Way("shrunk by a fraction", 2.6, 40, ((0, 0), (40, 40), (13, 60), (120, 80))),
]
OF_THE_SLIDE = {
    "as it is": None,
    "colours of the slide": COLOURS,
    "slide turned": MOVES,
    "slide turned, with colours": A.Compose([MOVES, COLOURS]),
    "opaque": A.Compose([COLOURS, A.Blur(blur_limit=(5, 5), p=1)]),
}
OF_TILES = {
    "as they are": None,
    "colours per tile": COLOURS,
    "tiles turned": MOVES,
    "tiles flipped": EXACT,
    "tiles turned, with colours": A.Compose([MOVES, COLOURS]),
    "opaque": A.Compose([COLOURS, A.MotionBlur(p=1)]),
}


@pytest.fixture(scope="module")
def jpeg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("jpeg") / "a.tif"
    return write_pyramid(path, PIXELS, (1,), tile=STORED, compression="jpeg", subsampling=(2, 2))


@cache
def plain_pixels(path: Path, shrink: float) -> np.ndarray:
    """Return the whole slide without a transform: by tifffile, or near Pillow's if it is shrunk."""
    stored = np.asarray(tifffile.imread(path))
    if shrink == 1:
        return stored
    slide, choice = open_slide(path), LevelChoice(0, (shrink, shrink))
    size = slide.pyramid.size_at(choice)
    pixels = np.zeros((size.height, size.width, 3), np.uint8)
    Sampler(slide).plain(choice, Rect(0, 0, *size), pixels)
    box = (0, 0, size.width * shrink, size.height * shrink)
    resized = Image.fromarray(stored).resize(size, Image.Resampling.BOX, box=box)
    assert np.abs(pixels.astype(int) - np.asarray(resized)).mean() < 2.5
    return pixels


def drawn_tiles(view: SlideView, way: Way, of_tiles: Any, draws: list[Draw] | None, **options: Any) -> np.ndarray:
    return TileReader(view, way.tile).read(way.origins, draws=draws if of_tiles is not None else None, **options)


@pytest.mark.combinations
@pytest.mark.parametrize("of_tiles", list(OF_TILES))
@pytest.mark.parametrize("of_slide", list(OF_THE_SLIDE))
@pytest.mark.parametrize("way", WAYS, ids=[way.name for way in WAYS])
def test_a_fast_path_gives_the_pixels_of_the_plain_one(jpeg: Path, way: Way, of_slide: str, of_tiles: str) -> None:
    """To one level; with colours, without colours for the device, and on two threads."""
    pixels = plain_pixels(jpeg, way.shrink)
    slide, picture = open_slide(jpeg, slide_mpp=1.0), open_slide(pixels, slide_mpp=float(way.shrink))
    fast = SlideView(slide, LevelChoice(0, (float(way.shrink), float(way.shrink))))
    plain = picture.view()
    if OF_THE_SLIDE[of_slide] is not None:
        draw = picture.view(transform=OF_THE_SLIDE[of_slide], seed=4).draw
        fast, plain = (SlideView(view.slide, view.choice, draw) for view in (fast, plain))
    assert fast.size == plain.size
    moves = OF_TILES[of_tiles] in (MOVES, EXACT) or of_tiles == "tiles turned, with colours"
    draws = None
    if OF_TILES[of_tiles] is not None:
        bag = TileBag(picture.view(), TileGrid(picture.view(), way.tile), tile_transform=OF_TILES[of_tiles], seed=8)
        draws = [bag.draw(number) for number in range(len(way.origins))]
    if of_slide == "opaque" and moves:
        with pytest.raises(ConfigError, match=r"^a\.tif: Blur runs lazily only, and tiles"):
            drawn_tiles(fast, way, draws, draws)
        return
    as_it_is = drawn_tiles(SlideView(slide, fast.choice), way, None, None)
    for options in ({}, {"threads": 2}, {"colours": False}):
        found = drawn_tiles(fast, way, draws, draws, **options).astype(int)
        expected = drawn_tiles(plain, way, draws, draws, **options)
        off = np.abs(found - expected)
        # At the edge of a turned slide a sample on the other side of half a pixel is white.
        assert np.mean(off > 1) < 0.002, options
        assert off.mean() < 0.3, options
        changed = np.abs(found - as_it_is).mean()
        coloured = "colours" in of_slide + of_tiles or "opaque" in (of_slide, of_tiles)
        moved = "turned" in of_slide + of_tiles or "flipped" in of_tiles
        assert (changed > 2) == (moved or (coloured and options.get("colours", True))), options


@pytest.mark.parametrize("of_slide", ["colours of the slide", "slide turned, with colours", "opaque"])
@pytest.mark.parametrize("way", WAYS[:5], ids=[way.name for way in WAYS[:5]])
def test_tiles_equal_the_whole_transformed_slide(jpeg: Path, way: Way, of_slide: str) -> None:
    """The view's libvips graph, which has no access to stored tiles."""
    view = open_slide(jpeg, slide_mpp=1.0).view(transform=OF_THE_SLIDE[of_slide], seed=4)
    whole = np.pad(view.image.numpy(), ((64, 200), (64, 200), (0, 0)), constant_values=255)
    for (left, top), tile in zip(way.origins, TileReader(view, way.tile).read(way.origins), strict=True):
        expected = whole[top + 64 : top + 64 + way.tile, left + 64 : left + 64 + way.tile].astype(int)
        inside = expected.min(axis=2) < 250  # the border of a turned slide is a pixel wide
        inside = (
            inside & np.roll(inside, 2, 0) & np.roll(inside, 2, 1) & np.roll(inside, -2, 0) & np.roll(inside, -2, 1)
        )
        off = np.abs(tile - expected)[inside]
        # Both round between the turn and the colours, which enlarge the difference.
        assert off.max(initial=0) <= (4 if "turned" in of_slide else 2)
        assert off.sum() <= 0.7 * off.size


def test_unequal_shrinks_keep_the_detail_of_the_finer_axis() -> None:
    """A view of 1 × 2 level-0 px whose tiles are halved: x is shrunk by two, and y by four."""
    stripes = np.zeros((800, 800, 3), np.uint8)
    stripes[:] = (127 + 110 * np.sin(np.arange(800) * 2 * np.pi / 11)).astype(np.uint8)[None, :, None]
    view = SlideView(open_slide(stripes), LevelChoice(0, (1.0, 2.0)))
    half = Draw(size=Size(128, 128), canvas=Size(64, 64), affine=(0.5, 0, 0, 0, 0.5, 0))
    (tile,) = TileReader(view, 128).read([[40, 20]], draws=[half])
    expected = stripes[0, 40:168, 0].reshape(64, 2).mean(axis=1)
    assert np.abs(tile[10:-10, 4:-4, 0] - expected[4:-4]).mean() < 15
    assert np.ptp(tile[32, :, 0]) > 150
