"""Pyramid TIFFs of given pixels, and pixels that encode their own position."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile


def coordinate_pixels(width: int, height: int) -> np.ndarray:
    """Return (H, W, 3) uint8 that encode positions: x, y modulo 256, and both in units of 256."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x % 256, y % 256, (x // 256) * 16 + y // 256], axis=-1).astype(np.uint8)


def write_pyramid(
    path: Path,
    pixels: np.ndarray,
    levels: tuple[int, ...] = (1, 4, 16),
    *,
    mpp: float | None = 0.25,
    tile: int = 256,
    description: str | None = None,
    **options: object,
) -> Path:
    """Write a tiled pyramid TIFF whose lower levels are every n-th pixel; lossless by default."""
    resolution = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as tif:
        for index, factor in enumerate(levels):
            height, width = (side // factor for side in pixels.shape[:2])
            level = np.ascontiguousarray(pixels[::factor, ::factor][:height, :width])
            tif.write(
                level,
                tile=(tile, tile),
                photometric="rgb",
                metadata=None,
                subfiletype=1 if index else 0,
                description=description if index == 0 else None,
                **{"compression": "deflate", **resolution, **options},
            )
    return path
