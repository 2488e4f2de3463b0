"""The largest, the smallest and the mean channel of each pixel.

NumPy reduces an axis of three values ten times slower than it combines three planes; the results are equal.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def channel_max(rgb: NDArray[Any]) -> NDArray[Any]:
    """Return ``rgb.max(axis=2)`` of an (h, w, 3) image."""
    return np.asarray(np.maximum(np.maximum(rgb[..., 0], rgb[..., 1]), rgb[..., 2]))


def channel_min(rgb: NDArray[Any]) -> NDArray[Any]:
    """Return ``rgb.min(axis=2)`` of an (h, w, 3) image."""
    return np.asarray(np.minimum(np.minimum(rgb[..., 0], rgb[..., 1]), rgb[..., 2]))


def channel_range(rgb: NDArray[Any]) -> NDArray[Any]:
    """Return the largest minus the smallest channel of an (h, w, 3) image, in its data type."""
    return np.asarray(channel_max(rgb) - channel_min(rgb))


def channel_mean(rgb: NDArray[Any]) -> NDArray[np.float32]:
    """Return ``rgb.mean(axis=2, dtype=np.float32)`` of an (h, w, 3) image."""
    total = np.add(rgb[..., 0], rgb[..., 1], dtype=np.float32) + rgb[..., 2]
    return np.asarray(total / np.float32(3), np.float32)
