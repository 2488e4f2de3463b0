"""Slides and masks in memory, for tests of tissue."""

from __future__ import annotations

import numpy as np
from skimage.filters import gaussian

from slideio_pipe.errors import MissingResolutionError
from slideio_pipe.geometry import Affine, Mpp, Size
from slideio_pipe.tiles.tissue_mask import TissueMask

EIGHT_UM = Mpp(8.0, 8.0)


class FakeSlide:
    """A slide that is an image in memory."""

    def __init__(self, rgb: np.ndarray, *, mpp: Mpp | None = EIGHT_UM, size: Size | None = None) -> None:
        self.rgb, self.mpp, self.name = rgb, mpp, "fake.svs"
        self.dimensions = size or Size(rgb.shape[1], rgb.shape[0])
        self.bounds = None

    def require_mpp(self) -> Mpp:
        if self.mpp is None:
            raise MissingResolutionError("no mpp", slide=self.name)
        return self.mpp

    def overview(self, mpp: float) -> tuple[np.ndarray, Affine]:
        return self.rgb, Affine()


def blank(width=200, height=100, mpp=1.0) -> FakeSlide:
    """Return a slide for which only the size matters."""
    return FakeSlide(np.zeros((1, 1, 3), np.uint8), mpp=Mpp(mpp, mpp), size=Size(width, height))


def blobs(height=90, width=120, seed=0) -> np.ndarray:
    """Return a random mask with holes, diagonal contacts and pixels at the edge."""
    noise = gaussian(np.random.default_rng(seed).normal(size=(height, width)), 3)
    return noise > 0.02


def mask_of(pixels: np.ndarray, scale=(4.0, 4.0), **fields) -> TissueMask:
    """Return the mask of a slide of 2 µm whose pixels are ``scale`` pixels of it."""
    height, width = pixels.shape
    size = Size(round(width * scale[0]), round(height * scale[1]))
    return TissueMask(pixels, Affine.scaling(*scale), size, "a.svs", mpp=Mpp(2 * scale[0], 2 * scale[1]), **fields)


def two_pieces() -> np.ndarray:
    """Return white glass with a large and a small pink square."""
    rgb = np.full((100, 150, 3), 244, np.uint8)
    rgb[20:70, 20:90] = (190, 110, 170)
    rgb[80:90, 120:130] = (190, 110, 170)
    return rgb
