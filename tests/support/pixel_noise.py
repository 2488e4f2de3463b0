"""How alike two images are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def decibels(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Return the ratio of the largest signal to the noise between two images; infinite for equal ones."""
    noise = float(np.mean((one.astype(float) - other) ** 2))
    return float("inf") if noise == 0 else float(10 * np.log10(255**2 / noise))
