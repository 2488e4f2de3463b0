"""Virtual TIFFs whose tiles are cut out of an array."""

from __future__ import annotations

import numpy as np

from slideio_pipe.geometry import Size
from slideio_pipe.images.virtual_tiff import VirtualTiff

TILE = Size(128, 64)


class Tiles:
    """Cuts tiles out of an array and counts them; chosen positions can fail."""

    def __init__(self, pixels: np.ndarray, tile: Size, failing: frozenset[tuple[int, int]] = frozenset()) -> None:
        self.pixels, self.tile, self.failing = pixels, tile, failing
        self.calls: list[tuple[int, int]] = []

    def __call__(self, column: int, row: int) -> np.ndarray:
        self.calls.append((column, row))
        if (column, row) in self.failing:
            raise ValueError(f"no tile ({column}, {row})")
        out = np.full((self.tile.height, self.tile.width, 3), 255, np.uint8)
        y, x = row * self.tile.height, column * self.tile.width
        part = self.pixels[y : y + self.tile.height, x : x + self.tile.width]
        out[: part.shape[0], : part.shape[1]] = part
        return out


def virtual(pixels: np.ndarray, tile: Size = TILE, **options: object) -> tuple[VirtualTiff, Tiles]:
    tiles = Tiles(pixels, tile, **options)  # type: ignore[arg-type]
    return VirtualTiff(Size(pixels.shape[1], pixels.shape[0]), tile, tiles), tiles
