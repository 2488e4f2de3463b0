"""Periodic textures in µm: collagen fibres, fat, grain and the noise of empty glass."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Plane = NDArray[np.floating[Any]]  # float32; numpy's stubs type the sum of float32 and a number as float64

FIBRE_SIDE, FIBRE_PERIOD_UM = 1024, 300.0
FAT_SIDE, FAT_PERIOD_UM = 512, 640.0
_FAT_CELL_UM = 66.0
_GRAIN_SIDE = 512


def smoothstep(low: float, high: float, values: Plane) -> Plane:
    """Return 0 below ``low``, 1 above ``high`` and a smooth cubic between."""
    t = np.clip((values - np.float32(low)) * np.float32(1 / (high - low)), 0, 1)
    smooth: Plane = t * t * (3 - 2 * t)
    return smooth


def fibre_texture(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return two periods (2048, 2048, 2) of streaks along x, fine fibres and bundles, evenly spread over 0 … 255."""
    um = FIBRE_PERIOD_UM / FIBRE_SIDE
    fx, fy = (f(FIBRE_SIDE).astype(np.float32) for f in (np.fft.rfftfreq, np.fft.fftfreq))
    channels = []
    for parts in (((12, 0.55, 0.8), (22, 1.3, 1.0)), ((16, 2.2, 0.5), (38, 5.0, 1.0))):
        total = np.zeros((FIBRE_SIDE, FIBRE_SIDE), np.float32)
        for along_um, across_um, amplitude in parts:
            spectrum = np.fft.rfft2(rng.standard_normal((FIBRE_SIDE, FIBRE_SIDE), dtype=np.float32))
            spectrum *= np.exp(
                -2 * (math.pi / um) ** 2 * ((along_um * fx[None, :]) ** 2 + (across_um * fy[:, None]) ** 2)
            )
            layer = np.fft.irfft2(spectrum, s=total.shape)
            total += amplitude / layer.std() * layer
        total /= total.std()
        channels.append(255 / (1 + np.exp(-1.7 * total)))  # close to the normal distribution function
    texture: NDArray[np.uint8] = np.stack(channels, axis=-1).astype(np.uint8)
    return np.tile(texture, (2, 2, 1))


def grain_texture(rng: np.random.Generator, mpp: float) -> Plane:
    """Return (512, 512) periodic isotropic noise of standard deviation 1: 0.5 µm and 2.5 µm features."""
    white = np.tile(rng.standard_normal((_GRAIN_SIDE, _GRAIN_SIDE), dtype=np.float32), (2, 2))
    layers = [cv2.GaussianBlur(white, (0, 0), max(sigma / mpp, 0.4)) for sigma in (0.35, 1.4)]
    middle = slice(_GRAIN_SIDE // 2, _GRAIN_SIDE // 2 + _GRAIN_SIDE)
    texture: Plane = sum((layer[middle, middle] / layer.std() for layer in layers), np.zeros((1, 1), np.float32))
    scaled: Plane = (texture / texture.std()).astype(np.float32)
    return scaled


def fat_texture(rng: np.random.Generator) -> Plane:
    """Return two periods (1024, 1024) of the distance to the nearest wall between fat cells, in µm."""
    count = round(FAT_PERIOD_UM / _FAT_CELL_UM)
    rows, columns = np.mgrid[:count, :count]
    jitter = rng.uniform(-0.34, 0.34, (2, count, count))
    points = np.stack([columns + (rows % 2) * 0.5 + jitter[0], rows + jitter[1]], axis=-1).reshape(-1, 2)
    points = (points * (FAT_PERIOD_UM / count)) % FAT_PERIOD_UM
    axis = (np.arange(FAT_SIDE) + 0.5) * (FAT_PERIOD_UM / FAT_SIDE)
    where = np.stack(np.broadcast_arrays(axis[None, :], axis[:, None]), axis=-1).reshape(-1, 2)
    nearest = cKDTree(points, boxsize=FAT_PERIOD_UM).query(where, k=3)[0]
    # The third neighbour rounds the corners, where three fat cells meet.
    second, third = (nearest[:, 1] - nearest[:, 0]) / 2, (nearest[:, 2] - nearest[:, 0]) / 2
    wall = -3.0 * np.log(np.exp(-second / 3.0) + np.exp(-third / 3.0))
    return np.tile(wall.reshape(FAT_SIDE, FAT_SIDE).astype(np.float32), (2, 2))


def glass_texture(rng: np.random.Generator, period: int) -> Plane:
    """Return (period, period) faint camera noise of standard deviation 0.8 grey levels."""
    white = np.tile(rng.standard_normal((period, period), dtype=np.float32), (3, 3))
    noise = cv2.GaussianBlur(white, (0, 0), 1.1)[period : 2 * period, period : 2 * period]
    scaled: Plane = noise * np.float32(0.8 / noise.std())
    return scaled
