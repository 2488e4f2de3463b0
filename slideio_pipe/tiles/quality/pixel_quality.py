"""The quality of tiles from their own pixels: of stored bags, whose slide is not there."""

from __future__ import annotations

from collections.abc import Collection

import cv2
import numpy as np
from numpy.typing import NDArray

from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import SAME_RESOLUTION, Affine, Mpp
from slideio_pipe.slides.resampling import shrink
from slideio_pipe.tiles.bag import Bag
from slideio_pipe.tiles.quality.focus import focus_of
from slideio_pipe.tiles.quality.masks import MASKS, quality_masks
from slideio_pipe.tiles.quality.tile_quality import FOCUS_MPP, MASK_MPP

# Tiles that are read at once.
_RUN = 64


def quality_of_pixels(bag: Bag, names: Collection[str], *, threads: int) -> dict[str, NDArray[np.float32]]:
    """Return the numbers of a bag's tiles by name, (N,) each.

    Masks are made in a mosaic of the tiles where they are on the slide, white elsewhere. They differ a little from
    those of the slide, whose glass and usual density they know only from the tiles.
    """
    mpp = bag.view_mpp
    if mpp is None:
        raise ConfigError("quality needs the resolution of the tiles", slide=bag.name, remedy="pass {slide_mpp=…}")
    focus = np.full(len(bag), np.nan, np.float32)
    mosaic = _Mosaic(bag, mpp)
    has_focus = "focus" in names and mpp.mean <= FOCUS_MPP * (1 + SAME_RESOLUTION)
    for start in range(0, len(bag), _RUN):
        numbers = np.arange(start, min(start + _RUN, len(bag)))
        tiles = bag.read(numbers, threads=threads)
        if tiles.ndim == 5:  # several magnifications: the first is that of the coordinates
            tiles = np.ascontiguousarray(tiles[:, 0])
        for number, tile in zip(numbers.tolist(), tiles, strict=True):
            if has_focus:
                focus[number] = focus_of(_resized(tile, _size_at(tile.shape, mpp, FOCUS_MPP)))
            mosaic.place(number, tile)
    found = {"focus": focus}
    if any(name in MASKS for name in names) and len(bag):
        masks = quality_masks(mosaic.pixels, MASK_MPP)
        found |= {name: mosaic.fractions(mask) for name, mask in masks.items()}
    return {name: found.get(name, np.zeros(len(bag), np.float32)) for name in names}


class _Mosaic:
    """The tiles of a bag at ``MASK_MPP``, in the frame of their view."""

    def __init__(self, bag: Bag, mpp: Mpp) -> None:
        view = bag.provenance().get("view") or {}
        affine = Affine.from_tuple(view["affine"]) if view.get("affine") else Affine.scaling(1, 1)
        self.size = _size_at(bag.shape[-3:], mpp, MASK_MPP)
        # From view px to px of the mosaic: a tile has a whole number of them.
        scale = np.array([self.size[0] / bag.shape[-2], self.size[1] / bag.shape[-3]])
        places = np.rint(affine.inverse().apply(np.asarray(bag.coords).reshape(-1, 2)) * scale).astype(np.int64)
        self.corners = places - (places.min(axis=0) if len(places) else 0)
        width, height = self.corners.max(axis=0) + self.size if len(places) else self.size
        self.pixels = np.full((height, width, 3), 255, np.uint8)

    def place(self, number: int, tile: NDArray[np.uint8]) -> None:
        (x, y), (width, height) = self.corners[number], self.size
        self.pixels[y : y + height, x : x + width] = _resized(tile, self.size)

    def fractions(self, mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Return the fraction of each tile that is set, (N,)."""
        sums = cv2.integral(mask.astype(np.uint8))
        (x0, y0), (width, height) = self.corners.T, self.size
        x1, y1 = x0 + width, y0 + height
        counts = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
        return np.asarray(counts / (width * height), np.float32)


def _size_at(shape: tuple[int, ...], mpp: Mpp, target: float) -> tuple[int, int]:
    """Return width and height of a tile at about ``target`` µm per px; a tile at that resolution keeps its own."""
    height, width = shape[:2]
    factors = (mpp.x / target, mpp.y / target)
    x, y = (1.0 if abs(factor - 1) <= SAME_RESOLUTION else factor for factor in factors)
    return max(1, round(width * x)), max(1, round(height * y))


def _resized(tile: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    if (tile.shape[1], tile.shape[0]) == size:
        return tile
    out = np.empty((size[1], size[0], 3), np.uint8)
    shrink(tile, (0, 0, tile.shape[1], tile.shape[0]), out)  # the filter with which views of slides are shrunk
    return out
