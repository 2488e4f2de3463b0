"""How a tile is made depends on the tile alone: not on which others are read with it, on threads or on a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import albumentationsxl as A
import numpy as np
import pytest
from pyramids import write_pyramid

from slideio_pipe import ColorJitter, Flip, RandomAffine, StainJitter, TileBag, TileGrid, open_slide
from slideio_pipe.slides.backends.jpeg_tiles import JpegTiles

NOISE = np.random.default_rng(5).integers(0, 256, (700, 900, 3), np.uint8)
SOFT = np.kron(NOISE[::20, ::20], np.ones((20, 20, 1), np.uint8))
COLOURS = A.Compose([StainJitter(), ColorJitter()])
MOVES = RandomAffine(rotate=30, scale=0.2)
TRANSFORMS: dict[str, Any] = {
    "as it is": None,
    "as they are": None,
    "stained": StainJitter(),
    "turned": MOVES,
    "coloured": COLOURS,
    "turned and coloured": A.Compose([MOVES, COLOURS]),
    "flipped": Flip(),
}


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "a.tif"
    return write_pyramid(path, SOFT, (1, 2), tile=64, compression="jpeg")


@pytest.mark.combinations
@pytest.mark.parametrize("of_tiles", ["as they are", "coloured", "turned and coloured", "flipped"])
@pytest.mark.parametrize("of_slide", ["as it is", "stained", "turned"])
@pytest.mark.parametrize("shrink", [1, 2, 1.37, 2.6])
def test_a_tile_is_the_same_bytes_in_any_company(
    slide: Path, shrink: float, of_slide: str, of_tiles: str, executor: str
) -> None:
    """On and off the stored grid, over the edge, at any resolution, turned and coloured."""
    view = open_slide(slide, slide_mpp=1.0).view(mpp=shrink, transform=TRANSFORMS[of_slide], seed=3)
    rng = np.random.default_rng(1)
    corners = np.concatenate([rng.integers(-20, (850, 650), (9, 2)), [[0, 0], [128, 64], [64, 128]]])
    bag = TileBag.from_coords(view, corners, 64, tile_transform=TRANSFORMS[of_tiles], seed=2, nearest=True)
    together = bag[:]
    assert np.array_equal(np.stack([bag[k] for k in range(len(bag))]), together)
    assert np.array_equal(bag.read([7, 2, 11]), together[[7, 2, 11]])
    assert np.array_equal(bag.read(np.arange(12), threads=4), together)
    bag.plan_ahead(np.arange(12))
    assert np.array_equal(bag.read([4, 3, 2, 9, 10, 11]), together[[4, 3, 2, 9, 10, 11]])
    assert len(np.unique(together.reshape(12, -1), axis=0)) > 6


def test_stored_tiles_of_overlapping_tiles_are_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: str
) -> None:
    """Also if each tile consists of whole stored ones."""
    calls: list[tuple[int, int]] = []
    decode, decode_at = JpegTiles.decode, JpegTiles.decode_at

    def counted(self: JpegTiles, column: int, row: int, *rest: Any, **options: Any) -> np.ndarray:
        calls.append((column, row))
        return decode(self, column, row, *rest, **options)

    def counted_run(self: JpegTiles, places: Any, *rest: Any, **options: Any) -> Any:
        left = decode_at(self, places, *rest, **options)
        calls.extend(place for number, place in enumerate(places) if number not in left)
        return left

    monkeypatch.setattr(JpegTiles, "decode", counted)
    monkeypatch.setattr(JpegTiles, "decode_at", counted_run)
    view = open_slide(write_pyramid(tmp_path / "a.tif", SOFT, (1,), tile=64, compression="jpeg")).view()
    bag = TileBag(view, TileGrid(view, 128, stride=64))
    pixels = bag[:]
    assert len(calls) == len(set(calls)) == 14 * 10
    assert all(
        np.array_equal(tile, view.image.crop(*at, 128, 128).numpy())
        for tile, at in zip(pixels, bag.grid.origins.tolist(), strict=True)
    )
