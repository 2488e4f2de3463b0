"""A slide of any size without an array or a file: tiles are computed on request, and requests are counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from slideio_pipe import Slide
from slideio_pipe.geometry import Mpp, Pyramid, Rect, Size
from slideio_pipe.images.virtual_tiff import VirtualTiff
from slideio_pipe.slides.backends.base import Facts

TILE = Size(256, 256)
Shade = Callable[[np.ndarray, np.ndarray], np.ndarray]  # level-0 x and y of pixel centres -> (h, w, 3)


def ramp(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Red and green increase linearly with the position, so that any resampling has the value of its position."""
    return np.stack([x / 16 % 256, y / 16 % 256, 0 * x + 100], axis=-1)


class CountedBackend:
    """Levels of one continuous image that is never whole in memory."""

    def __init__(self, size: Size, factors: tuple[int, ...], shade: Shade) -> None:
        levels = tuple(Size(size.width // factor, size.height // factor) for factor in factors)
        self.requests: list[tuple[int, int, int]] = []  # (level, column, row)
        self.facts = Facts("counted", "test", Pyramid(levels), (TILE,) * len(levels))
        self._images = [self._image(k, float(factor), shade) for k, factor in enumerate(factors)]

    def _image(self, level: int, factor: float, shade: Shade) -> VirtualTiff:
        requests = self.requests

        def read_tile(column: int, row: int) -> np.ndarray:
            requests.append((level, column, row))
            x = (column * TILE.width + np.arange(TILE.width) + 0.5) * factor
            y = (row * TILE.height + np.arange(TILE.height) + 0.5) * factor
            return np.round(shade(*np.meshgrid(x, y))).astype(np.uint8)

        return VirtualTiff(self.facts.pyramid.levels[level], TILE, read_tile)

    def level_image(self, level: int) -> Any:
        return self._images[level].image

    def associated_image(self, name: str) -> Any:
        raise KeyError(name)

    def stored_tiles(self, level: int) -> None:
        return None

    def failure(self, level: int, rect: Rect, pixels: np.ndarray) -> BaseException | None:
        return self._images[level].failure(rect)


def counted_slide(
    size: tuple[int, int], factors: tuple[int, ...] = (1, 4, 16), *, mpp: float = 0.25, shade: Shade = ramp
) -> tuple[Slide, list[tuple[int, int, int]]]:
    """Return the slide and the list that its requests (level, column, row) are appended to."""
    backend = CountedBackend(Size(*size), factors, shade)
    return Slide(None, backend, Mpp(mpp, mpp)), backend.requests
