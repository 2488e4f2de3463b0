"""Annotations on a slide in memory, views and bags of it, and level-0 positions of their pixels."""

from __future__ import annotations

from typing import Any

import albumentationsxl as A
import numpy as np

from slideio_pipe import Annotations, Flip, RandomAffine, RandomResizedCrop, Rotate90, TileBag, open_slide
from slideio_pipe.geometry import Mpp
from slideio_pipe.slides.view import SlideView
from slideio_pipe.tiles.mask_files import Annotation

WIDTH, HEIGHT = 900, 700
MOVES = A.Compose([RandomAffine(rotate=180, shear=10, scale=(0.8, 1.3)), Flip(p=1)])


def star(centre: tuple[float, float], radius: float, seed: int) -> np.ndarray:
    """Return a ring without vertices on pixel centres."""
    rng = np.random.default_rng(seed)
    angle = np.sort(rng.uniform(0, 2 * np.pi, 15))
    return rng.uniform(0.4, 1, (15, 1)) * radius * np.stack([np.cos(angle), np.sin(angle)], axis=1) + centre


TUMOR = [star((300, 250), 250, 1), star((300, 250), 60, 2)]  # with a hole
STROMA = [star((550, 400), 280, 3)]
REGIONS = [Annotation("Tumor", TUMOR), Annotation("Stroma", STROMA), Annotation("Tumor", [star((800, 100), 80, 4)])]
DRAWN = Annotations(REGIONS, {"Stroma": 1, "Tumor": 2})


def centres(width: int, height: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width] + 0.5
    return np.stack([x.ravel(), y.ravel()], axis=1)


def view_of(mpp: float | None = None, transform: Any = None, pixels: np.ndarray | None = None) -> SlideView:
    pixels = np.full((HEIGHT, WIDTH, 3), 200, np.uint8) if pixels is None else pixels
    return open_slide(pixels, slide_mpp=Mpp(0.5, 0.25)).view(mpp=mpp, transform=transform, seed=5)


def to_level0(bag: TileBag, index: int, points: np.ndarray) -> np.ndarray:
    """Return level-0 places of tile points by 3×3 matrices, written out: tile → view → plain view → level 0."""
    place = np.hstack([points, np.ones((len(points), 1))])
    if bag.tile_transform is not None:
        place = place @ np.linalg.inv(np.array([*bag.draw(index).affine, 0, 0, 1]).reshape(3, 3)).T
    place[:, :2] += bag.grid.origins[index]
    if bag.view.draw is not None:
        place = place @ np.linalg.inv(np.array([*bag.view.draw.affine, 0, 0, 1]).reshape(3, 3)).T
    return place[:, :2] * bag.view.downsample


VIEWS = {"native": (None, None), "shrunk": (1.0, None), "turned": (0.7, MOVES)}
QUARTERS = A.Compose([Rotate90(), Flip()])
TILES = {"plain": None, "quarters": QUARTERS, "moved": MOVES, "crops": RandomResizedCrop((48, 32))}
