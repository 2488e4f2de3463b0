"""Tiles turned and scaled by torch, as an independent sampler to compare with."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional

from slideio_pipe.augment.executors.device import CHUNK_PX, _check_tiles
from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import Size


def warp(tiles: Tensor, affines: ArrayLike, size: Size, *, fill: int = 255) -> Tensor:
    """Return tiles sampled bilinearly through one affine each, as bytes.

    Parameters
    ----------
    tiles : (n, 3, H, W) uint8
        The plain tiles.
    affines : (n, 2, 3) or (n, 6) float
        Plain px → augmented px, corner-based, as in ``Draw.affine``. Shrinking does not average.
    size : Size
        Size of the augmented tiles.
    fill : int
        Level outside the plain tile; pixels at its border blend with it.

    Returns
    -------
    (n, 3, height, width) uint8, channels_last
        On the device of ``tiles``, rounded half up. Flips, quarter turns and whole-pixel shifts are exact.

    Raises
    ------
    ConfigError
        An affine is singular, or there is not one per tile.
    """
    _check_tiles(tiles, None)
    sampling = _sampling(affines, len(tiles), Size(tiles.shape[3], tiles.shape[2]))
    numbers = torch.from_numpy(sampling).float().to(tiles.device, non_blocking=True)
    x = torch.arange(size.width, device=tiles.device) + 0.5
    y = torch.arange(size.height, device=tiles.device)[:, None] + 0.5
    shape = (len(tiles), size.height, size.width, 3)
    out = torch.empty(shape, dtype=torch.uint8, device=tiles.device).permute(0, 3, 1, 2)
    step = max(1, CHUNK_PX[tiles.device.type] // max(1, size.width * size.height))
    for first in range(0, len(tiles), step):
        rows = slice(first, first + step)
        a, b, c, d, e, f = numbers[rows, :, None, None].unbind(1)
        grid = torch.stack((a * x + (b * y + c), d * x + (e * y + f)), dim=-1)
        # After subtracting ``fill``, zero outside means ``fill``.
        shifted = tiles[rows].to(torch.float32, memory_format=torch.contiguous_format) - fill
        out[rows] = functional.grid_sample(shifted, grid, padding_mode="zeros", align_corners=False) + (fill + 0.5)
    return out


def _sampling(affines: ArrayLike, count: int, plain: Size) -> NDArray[np.float64]:
    """Return the (n, 6) affines from augmented px to plain ones, with the tile's borders at −1 and 1."""
    forward = np.asarray(affines, dtype=np.float64)
    if forward.shape not in ((count, 2, 3), (count, 6)):
        raise ConfigError(f"affines have the shape {forward.shape} for {count} tiles", remedy="pass one per tile")
    square = np.tile(np.eye(3), (count, 1, 1))
    square[:, :2] = forward.reshape(count, 2, 3)
    # The determinant is the area of one plain pixel after the affine.
    areas = np.linalg.det(square[:, :2, :2])
    if not np.isfinite(square).all() or not (np.abs(areas) > 1e-12).all():
        raise ConfigError("an affine is singular: it maps tiles to a line")
    to_unit = np.array([[2 / plain.width, 0, -1], [0, 2 / plain.height, -1], [0, 0, 1]])
    sampling: NDArray[np.float64] = (to_unit @ np.linalg.inv(square))[:, :2].reshape(count, 6)
    return sampling
