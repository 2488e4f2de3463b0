"""How sharp pixels are: the moments of their Laplacian, from which a tile's variance follows.

``focus`` is the variance of the Laplacian of the grey values (Pech-Pacheco et al., Diatom autofocusing in brightfield
microscopy, ICPR 2000), at ``FOCUS_MPP``: the four neighbours of a pixel minus four times the pixel, as in OpenCV's
``Laplacian`` with ``ksize=1``, of grey = 0.299 R + 0.587 G + 0.114 B, 0 to 255.
"""

from __future__ import annotations

from functools import lru_cache

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
    weight, size = _counted(block.shape[:2], inside, cell), (block.shape[1] // cell, block.shape[0] // cell)
    values = cv2.Laplacian(cv2.cvtColor(block, cv2.COLOR_RGB2GRAY), cv2.CV_32F, ksize=1)
    height, width = (min(side, part) for side, part in zip(block.shape[:2], inside[::-1], strict=True))
    values[0], values[:, 0], values[height - 1 :], values[:, width - 1 :] = 0, 0, 0, 0
    # Areas are averaged by OpenCV; the part of them that is counted is divided out.
    first, second = (cv2.resize(plane, size, interpolation=cv2.INTER_AREA) for plane in (values, values * values))
    return np.asarray(np.stack([first, second]) / weight, dtype=np.float32)


@lru_cache(maxsize=64)
def _counted(shape: tuple[int, int], inside: tuple[int, int], cell: int) -> NDArray[np.float32]:
    """Return the part of each cell whose pixels are counted: inside the slide, with four neighbours; NaN for none."""
    counted = np.zeros(shape, np.float32)
    counted[1 : min(shape[0], inside[1]) - 1, 1 : min(shape[1], inside[0]) - 1] = 1
    part = cv2.resize(counted, (shape[1] // cell, shape[0] // cell), interpolation=cv2.INTER_AREA)
    return np.where(part > 0, part, np.nan).astype(np.float32)
