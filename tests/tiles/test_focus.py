"""Focus is the variance of the Laplacian, as SciPy computes it, and falls with the blur."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy import ndimage
from skimage.filters import gaussian
from sklearn.metrics import roc_auc_score

import slideio_pipe as sp
from slideio_pipe.geometry import Affine
from slideio_pipe.tiles.quality.cell_map import CellMap, TilePlaces
from slideio_pipe.tiles.quality.focus import cell_moments, focus_of, laplacian

NOISE = np.random.default_rng(3).integers(0, 256, (64, 96, 3), np.uint8)


def reference(tile: np.ndarray) -> np.ndarray:
    """Return SciPy's Laplacian of the rounded grey values, of the pixels with four neighbours."""
    grey = np.round(tile.astype(np.float64) @ [0.299, 0.587, 0.114])
    return ndimage.laplace(grey)[1:-1, 1:-1]


def test_the_laplacian_is_scipys() -> None:
    """Grey values are rounded by another rule in a few pixels: by one level, which is four in the Laplacian."""
    assert np.abs(laplacian(NOISE) - reference(NOISE)).max() <= 5
    assert focus_of(NOISE) == pytest.approx(reference(NOISE).var(), rel=2e-3)


def test_a_tile_without_inner_pixels_has_none() -> None:
    assert np.isnan(focus_of(NOISE[:2]))


def test_cells_have_the_moments_of_their_own_pixels() -> None:
    """Each cell is compared with NumPy over its pixels; beyond the slide's edge none is counted."""
    inside = (80, 40)
    first, second = cell_moments(NOISE, inside, 16)
    values = np.full(NOISE.shape[:2], np.nan)
    values[1:-1, 1:-1] = laplacian(NOISE)
    values[inside[1] - 1 :], values[:, inside[0] - 1 :] = np.nan, np.nan
    for row, column in np.ndindex(4, 6):
        cell = values[16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
        known = cell[~np.isnan(cell)]
        if not known.size:
            assert np.isnan(first[row, column])
            continue
        assert first[row, column] == pytest.approx(known.mean(), rel=1e-4, abs=1e-2)
        assert second[row, column] == pytest.approx((known**2).mean(), rel=1e-4)


def test_the_mean_of_cells_in_a_tile_is_that_of_a_naive_loop() -> None:
    """Tiles that begin at cells are exact; others are sampled at the centres of equal parts."""
    plane = np.random.default_rng(1).normal(size=(1, 20, 30)).astype(np.float32)
    plane[0, 4, 4] = np.nan
    cells, level0 = CellMap(plane, Affine.scaling(16, 16)), Affine.scaling(1, 1)
    origins = np.array([[0, 0], [64, 32], [33, 70]])
    means = cells.means(TilePlaces.of(level0, origins, 64))[0]
    for (x, y), mean in zip(origins.tolist(), means, strict=True):
        parts = [(x + 64 * (i + 0.5) / 4, y + 64 * (j + 0.5) / 4) for j in range(4) for i in range(4)]
        values = [plane[0, int(py // 16), int(px // 16)] for px, py in parts]
        assert mean == pytest.approx(np.nanmean(values), abs=1e-6)
    outside = cells.means(TilePlaces.of(level0, np.array([[9000, 0]]), 64))
    assert np.isnan(outside).all()


@pytest.mark.parametrize("sigma_um", [1.0, 2.0])
def test_blurred_copies_of_real_tiles_are_less_sharp(shared_data: Path, sigma_um: float) -> None:
    """A blur of 1 µm (skimage's Gaussian) separates every tile of a slide from every blurred one."""
    slide = sp.open_slide(shared_data / "slides/CMU-1-Small-Region.svs")
    view = slide.view(mpp=1.0)
    bag = sp.TileBag(view, sp.TileGrid(view, 128, tissue=sp.find_tissue(slide), min_tissue=0.6))
    sharp = [focus_of(tile) for tile in bag]
    blurred = [
        focus_of(gaussian(tile, sigma_um / view.mpp.mean, channel_axis=-1, preserve_range=True).astype(np.uint8))
        for tile in bag
    ]
    assert roc_auc_score([1] * len(sharp) + [0] * len(blurred), sharp + blurred) == 1.0
    assert cv2.Laplacian(cv2.cvtColor(bag[0], cv2.COLOR_RGB2GRAY), cv2.CV_64F)[1:-1, 1:-1].var() == pytest.approx(
        sharp[0], rel=1e-4
    )
