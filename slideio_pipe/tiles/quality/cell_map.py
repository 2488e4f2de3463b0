"""Values on a coarse raster over a slide, and their means in tiles of any position and turn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.geometry import Affine

# Points of all tiles that are looked up at once.
_POINTS = 2_000_000
# Most points per side of a tile.
_MOST_POINTS = 64


@dataclass(frozen=True, slots=True)
class CellMap:
    """Planes of one raster.

    Attributes
    ----------
    planes : (C, h, w) array
        NaN where a cell has no value.
    affine : Affine
        From cells to level-0 px; scales and shifts only.
    """

    planes: NDArray[np.generic]
    affine: Affine

    def means(self, places: TilePlaces) -> NDArray[np.float32]:
        """Return the mean of each plane in each tile, (C, N); NaN without a value.

        A tile is sampled at one point per cell, at the centres of equal parts: exact for tiles that begin at cells.
        """
        means = np.full((len(self.planes), len(places)), np.nan, np.float32)
        side = places.points(self.affine.scale())
        height, width = self.planes.shape[1:]
        step = max(1, _POINTS // side**2)
        for start in range(0, len(places), step):
            x, y = self.affine.inverse().apply(places.lattice(slice(start, start + step), side)).T
            inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
            column, row = np.where(inside, x, 0).astype(np.intp), np.where(inside, y, 0).astype(np.intp)
            for number, plane in enumerate(self.planes):
                values = plane[row, column].astype(np.float32)
                known = (inside & ~np.isnan(values)).reshape(-1, side**2)
                total = np.where(known, values.reshape(known.shape), 0).sum(1, dtype=np.float64)
                with np.errstate(invalid="ignore", divide="ignore"):
                    means[number, start : start + step] = total / known.sum(1)
        return means


@dataclass(frozen=True, slots=True)
class TilePlaces:
    """Where tiles of one size are on a slide.

    Attributes
    ----------
    corners : (N, 2) float64
        Top-left corners, level-0 px.
    edges : (2, 2) float64
        Upper and left edge of a tile, level-0 px; turned if the tiles are.
    """

    corners: NDArray[np.float64]
    edges: NDArray[np.float64]

    @classmethod
    def of(cls, affine: Affine, origins: NDArray[np.generic], tile_size: int) -> TilePlaces:
        """Return the places of tiles at origins (N, 2) in px of a view with this affine to level-0 px."""
        corners = np.asarray(affine.apply(np.asarray(origins, np.float64).reshape(-1, 2)), np.float64)
        zero, right, down = affine.apply([(0, 0), (tile_size, 0), (0, tile_size)])
        return cls(corners, np.stack([right - zero, down - zero]))

    def __len__(self) -> int:
        return len(self.corners)

    def points(self, cell: tuple[float, float]) -> int:
        """Return the points per side that sample each cell of this size, level-0 px, once."""
        cells = max(float(np.hypot(*(edge / np.asarray(cell)))) for edge in self.edges)
        return int(np.clip(np.ceil(cells - 1e-6), 1, _MOST_POINTS))

    def lattice(self, tiles: slice, side: int) -> NDArray[np.float64]:
        """Return ``side`` × ``side`` points of each tile, (n · side², 2), level-0 px."""
        parts = (np.arange(side) + 0.5) / side
        across, down = np.meshgrid(parts, parts)
        inside = np.stack([across.ravel(), down.ravel()], axis=1) @ self.edges
        return np.asarray((self.corners[tiles, None, :] + inside).reshape(-1, 2))
