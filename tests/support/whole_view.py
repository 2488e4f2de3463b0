"""All pixels of a view, through the reader of tiles."""

from __future__ import annotations

import numpy as np

from slideio_pipe import SlideView, TileBag, TileGrid


def whole(view: SlideView, tile: int = 128) -> np.ndarray:
    """Return the view assembled from the reader's tiles."""
    grid = TileGrid(view, tile, edge="pad")
    out = np.zeros((grid.shape.height * tile, grid.shape.width * tile, 3), np.uint8)
    for (left, top), pixels in zip(grid.origins, TileBag(view, grid)[:], strict=True):
        out[top : top + tile, left : left + tile] = pixels
    return out[: view.size.height, : view.size.width]
