"""How sharp pixels are: the moments of their Laplacian, from which a tile's variance follows.

``focus`` is the variance of the Laplacian of the grey values (Pech-Pacheco et al., Diatom autofocusing in brightfield
microscopy, ICPR 2000), at ``FOCUS_MPP``: the four neighbours of a pixel minus four times the pixel, as in OpenCV's
``Laplacian`` with ``ksize=1``, of grey = 0.299 R + 0.587 G + 0.114 B, 0 to 255.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def laplacian(tile: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the Laplacian of a tile's inner pixels, (H - 2, W - 2): those with four neighbours in it."""
    grey = cv2.cvtColor(tile, cv2.COLOR_RGB2GRAY)
    inner = cv2.Laplacian(grey, cv2.CV_32F, ksize=1)[1:-1, 1:-1]
    return np.asarray(inner, dtype=np.float32)


def focus_of(tile: NDArray[np.uint8]) -> float:
    """Return the variance of the Laplacian of a tile; NaN if it has no inner pixel.

    >>> focus_of(np.full((64, 64, 3), 200, np.uint8))
    0.0
    """
    values = laplacian(tile) if min(tile.shape[:2]) > 2 else np.zeros((0, 0), np.float32)
    return float(values.var(dtype=np.float64)) if values.size else float("nan")


def cell_moments(block: NDArray[np.uint8], inside: tuple[int, int], cell: int) -> NDArray[np.float32]:
    """Return mean and mean square of the Laplacian in every cell of a block, (2, H / cell, W / cell); NaN if empty.

    Parameters
    ----------
    block : (H, W, 3) uint8 RGB
        H and W are multiples of ``cell``.
    inside : (width, height)
        How much of it is inside the slide: beyond is white, whose border is no structure.
    cell : int
        Side of a cell, px.
    """
    height, width = block.shape[:2]
    counted = np.zeros((height, width), np.float32)
    counted[1 : min(height, inside[1]) - 1, 1 : min(width, inside[0]) - 1] = 1
    values = np.zeros((height, width), np.float32)
    values[1:-1, 1:-1] = laplacian(block)
    values *= counted
    # Areas are averaged by OpenCV; the common factor cancels.
    size = (width // cell, height // cell)
    weight, first, second = (
        cv2.resize(plane, size, interpolation=cv2.INTER_AREA) for plane in (counted, values, values * values)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack([first / weight, second / weight]).astype(np.float32)
