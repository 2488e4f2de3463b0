"""Transforms that shrink a whole slide: antialiased in tiles and in the image, from a fine enough level."""

from __future__ import annotations

import albumentationsxl as A
import cv2
import numpy as np
import pytest
from counted_slide import counted_slide
from PIL import Image
from whole_view import whole

from slideio_pipe import RandomAffine, SlideView, TileBag, TileGrid, open_slide

WIDTH, HEIGHT = 1200, 900
_noise = cv2.GaussianBlur(np.random.default_rng(0).random((HEIGHT, WIDTH, 3)), (0, 0), 12)
SMOOTH = (255 * (_noise - _noise.min()) / (_noise.max() - _noise.min())).astype(np.uint8)
STRIPES = np.where(np.arange(WIDTH)[:, None] % 2, np.uint8(200), np.uint8(50)) * np.ones((HEIGHT, 1, 3), np.uint8)
SHRINKING = {
    "resize": A.Resize(HEIGHT // 4, WIDTH // 4, p=1),
    "uneven": A.Resize(250, 350, p=1),
    "turned": RandomAffine(rotate=(30, 30), scale=(0.3, 0.3), flip=False),
    "a half": A.RandomScale((-0.5, -0.5), p=1),
}


def view_of(pixels: np.ndarray, transform: object) -> SlideView:
    return open_slide(pixels, slide_mpp=0.5).view(transform=transform, seed=1)


def inside(view: SlideView) -> np.ndarray:
    """Return where the canvas shows slide, some pixels from its border."""
    y, x = np.mgrid[: view.size.height, : view.size.width] + 0.5
    place = view.affine.apply(np.stack([x, y], axis=-1))
    margin = 8 * max(view.affine.scale())
    return np.asarray(((place > margin) & (place < (WIDTH - margin, HEIGHT - margin))).all(axis=-1))


@pytest.mark.parametrize("name", SHRINKING)
def test_detail_finer_than_a_pixel_becomes_its_mean(name: str) -> None:
    """Stripes one pixel wide, shrunk, are grey in tiles and in the image, without moiré."""
    view = view_of(STRIPES, SHRINKING[name])
    where = inside(view)
    assert where.mean() > 0.2
    for shown in (whole(view), view.image.numpy()):
        assert np.abs(shown[where].astype(int) - 125).max() <= 6


@pytest.mark.parametrize("name", SHRINKING)
def test_tiles_and_image_agree(name: str) -> None:
    """To three levels on smooth pixels: their filters differ, and tiles may have a quarter less resolution."""
    view = view_of(SMOOTH, SHRINKING[name])
    difference = np.abs(whole(view).astype(int) - view.image.numpy())[inside(view)]
    assert difference.max() <= 3
    assert difference.mean() < 0.5


def test_a_resized_slide_equals_pillow() -> None:
    """Antialiased in one step: within two levels."""
    view = view_of(SMOOTH, SHRINKING["resize"])
    expected = np.asarray(Image.fromarray(SMOOTH).resize(view.size, Image.Resampling.BILINEAR)).astype(int)
    for shown in (whole(view), view.image.numpy()):
        assert np.abs(shown - expected)[2:-2, 2:-2].max() <= 2


@pytest.mark.parametrize(("scale", "level"), [(1.0, 0), (0.7, 0), (0.25, 1), (0.05, 2)])
def test_tiles_come_from_a_level_that_is_fine_enough(scale: float, level: int) -> None:
    """A slide shown at a quarter reads no pixel of level 0; positions are those of the affine."""
    slide, requests = counted_slide((16_000, 12_000))
    view = slide.view(transform=RandomAffine(rotate=(20, 20), scale=(scale, scale), flip=False), seed=1)
    bag = TileBag(view, TileGrid(view, 64))
    middle = int(np.abs(bag.coords - (6000, 6000)).sum(axis=1).argmin())
    tile = bag[middle].astype(float)
    assert {found for found, _, _ in requests} == {level}
    y, x = np.mgrid[:64, :64] + 0.5
    place = view.affine.apply(np.stack([x, y], axis=-1) + bag.grid.origins[middle]) / 16 % 256
    steady = ((place > 20) & (place < 236)).all(axis=-1)
    assert steady.mean() > 0.1
    assert np.abs(tile[..., :2] - place)[steady].max() <= 2.5
