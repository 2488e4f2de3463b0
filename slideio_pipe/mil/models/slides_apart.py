"""Positions of the tiles of several slides on one grid, on which slides are not neighbours."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.mil.models.torchmil_model import grid_of

# Columns between two slides, more than the reach of any model's neighbours.
_GAP = 100


def slides_apart(coords: NDArray[np.int64], slide_index: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return columns and rows of tiles, (N, 2), slide beside slide.

    Level-0 px of slides that were scanned at different resolutions cannot be compared, and their origins are one place.

    >>> slides_apart(np.array([[0, 0], [512, 0], [0, 0], [256, 256]]), np.array([0, 0, 1, 1])).tolist()
    [[0, 0], [1, 0], [101, 1], [102, 2]]
    """
    if not slide_index.any():  # of one slide: as they are
        return coords
    found = np.zeros(coords.shape, np.int64)
    column = 0
    for number in np.unique(slide_index).tolist():
        rows = slide_index == number
        grid = grid_of(coords[rows])
        # One row down for each slide: the smallest step of the grid is then one tile, also between slides of one tile.
        found[rows] = grid + np.array([column, number])
        column += int(grid[:, 0].max()) + _GAP
    return found
