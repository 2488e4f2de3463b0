"""Tile scores as a small image with its position on the slide."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from slideio_pipe.geometry import Affine
from slideio_pipe.mil.prediction.colour_scale import FAINT, ColourScale
from slideio_pipe.tiles.tissue_mask import TissueMask

# Maximum px of the map per side of a tile, used where overlapping steps have no larger divisor.
_MOST_PER_TILE = 16
_MOST_PX = 16_000_000


@dataclass(frozen=True, eq=False)
class TileScores:
    """One score per tile of a slide, and the tiles' positions."""

    slide: str
    values: NDArray[np.float64]  # (N,)
    scale: ColourScale
    coords: NDArray[np.int64]  # (N, 2) top-left corners (x, y), level-0 px
    tile_size: float  # view px
    affine: Affine  # view px to level-0 px
    title: str = ""  # prediction of the slide, as text
    tissue: TissueMask | None = None

    def __len__(self) -> int:
        return len(self.values)

    def corners_level0(self) -> NDArray[np.float64]:
        """Return the (N, 4, 2) corners of the tiles in level-0 px, in order from the one at ``coords``."""
        side = self.tile_size
        corners = self.affine.apply([(0, 0), (side, 0), (side, side), (0, side)])
        return np.asarray(self.coords[:, None, :] + (corners - corners[0]))

    @property
    def side_level0(self) -> float:
        """Side of a tile in level-0 px, also of a rotated one."""
        return self.tile_size * self.affine.mean_stretch()

    @cached_property
    def map(self) -> ScoreMap:
        """The scores as an image, the mean where tiles overlap."""
        return _raster(self)


@dataclass(frozen=True, eq=False)
class ScoreMap:
    """Mean scores per cell; NaN where there is no tile."""

    values: NDArray[np.float64]  # (h, w)
    affine: Affine  # px of the map to level-0 px
    scale: ColourScale
    tissue: TissueMask | None

    @cached_property
    def _colours(self) -> NDArray[np.uint8]:
        return self.scale.colours(np.nan_to_num(self.values, nan=self.scale.low))

    @cached_property
    def _opacity(self) -> NDArray[np.float32]:
        return self.scale.opacity(np.nan_to_num(self.values, nan=self.scale.low))

    @cached_property
    def _covered(self) -> NDArray[np.bool_]:
        return ~np.isnan(self.values)

    def paint(self, rgb: NDArray[np.uint8], to_level0: Affine, *, blend: bool = True) -> NDArray[np.uint8]:
        """Return pixels of the slide overlaid with the scores; grey under colours, unchanged where there is none.

        Parameters
        ----------
        rgb : (h, w, 3) uint8
        to_level0 : Affine
            Their px to level-0 px; each gets the score under its centre.
        blend : bool
            Whether the tissue stays visible; else only colours.
        """
        height, width = rgb.shape[:2]
        row, column = _under(self.affine.inverse() @ to_level0, (height, width), self.values.shape)
        covered = self._covered[row, column] & (row >= 0) & (column >= 0)
        if self.tissue is not None and covered.any():
            covered &= _tissue(self.tissue, to_level0, (height, width))
        painted = rgb.copy()
        if not covered.any():
            return painted
        colour = self._colours[row, column][covered]
        if blend:
            pixels = rgb[covered].astype(np.float32)
            grey = (pixels @ np.array([0.299, 0.587, 0.114], np.float32))[:, None]  # luma of ITU-R BT.601
            opacity = self._opacity[row, column][covered][:, None]
            # The tissue's own colours fade where the scores' colours begin.
            seen = np.minimum(1, opacity / FAINT)
            tissue = pixels * (1 - seen) + grey * seen
            colour = np.rint(colour * opacity + tissue * (1 - opacity)).astype(np.uint8)
        painted[covered] = colour
        return painted


def _under(
    affine: Affine, size: tuple[int, int], within: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return row and column of the map under every px centre of an image, -1 outside; they broadcast to its size."""
    height, width = size
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    if affine.b == 0 and affine.d == 0:  # separable, the usual case: a hundred times faster
        across = np.floor(affine.a * x + affine.c)[None, :]
        down = np.floor(affine.e * y + affine.f)[:, None]
    else:
        places = np.floor(affine.apply(np.stack(np.meshgrid(x, y), -1)))
        across, down = places[..., 0], places[..., 1]
    column = np.where((across >= 0) & (across < within[1]), across, -1).astype(np.int64)
    row = np.where((down >= 0) & (down < within[0]), down, -1).astype(np.int64)
    return row, column


def _tissue(tissue: TissueMask, to_level0: Affine, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the tissue of an image; interpolated, because a mask px covers many image px and would draw stairs."""
    to_mask = Affine.translation(-0.5, -0.5) @ tissue.affine.inverse() @ to_level0 @ Affine.translation(0.5, 0.5)
    found = cv2.warpAffine(
        tissue.mask.astype(np.uint8) * 255,
        to_mask.matrix()[:2],
        (size[1], size[0]),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return np.asarray(found > 127)


def _raster(scores: TileScores) -> ScoreMap:
    """Return the map of tile scores along the view's axes, in which rotated tiles are upright squares."""
    if not len(scores):
        return ScoreMap(np.full((1, 1), np.nan), scores.affine, scores.scale, scores.tissue)
    corners = scores.affine.inverse().apply(scores.coords)
    origin = corners.min(0)
    places = corners - origin
    cell = _cell(places, scores.tile_size)
    per_tile = max(1, round(scores.tile_size / cell))
    start = np.rint(places / cell).astype(np.int64)
    width, height = (start.max(0) + per_tile).tolist()
    total = _squares(start, per_tile, scores.values, width, height)
    count = np.rint(_squares(start, per_tile, np.ones(len(scores)), width, height))
    mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    affine = scores.affine @ Affine.translation(*origin.tolist()) @ Affine.scaling(cell, cell)
    return ScoreMap(mean, affine, scores.scale, scores.tissue)


def _squares(
    start: NDArray[np.int64], side: int, values: NDArray[np.float64], width: int, height: int
) -> NDArray[np.float64]:
    """Return (height, width) sums of the squares' values over each px, by cumulative sums of their corners."""
    found = np.zeros((height + 1) * (width + 1))
    for dx, dy, sign in ((0, 0, 1), (side, 0, -1), (0, side, -1), (side, side, 1)):
        index = (start[:, 1] + dy) * (width + 1) + start[:, 0] + dx
        found += np.bincount(index, sign * values, len(found))
    return found.reshape(height + 1, width + 1).cumsum(0).cumsum(1)[:-1, :-1]


def _cell(places: NDArray[np.float64], side: float) -> float:
    """Return the side of a cell in view px: the largest common divisor of tile and step, if it is large enough."""
    steps = np.concatenate([np.diff(np.unique(np.rint(axis))) for axis in places.T])
    divisor = math.gcd(round(side), *(int(step) for step in np.unique(steps)))
    least = side / _MOST_PER_TILE
    while np.prod((places.max(0) + side) / least) > _MOST_PX and least < side:
        least *= 2
    return float(divisor) if divisor >= least else min(least, side)
