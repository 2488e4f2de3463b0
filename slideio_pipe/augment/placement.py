"""Where the pixels of an image are after several geometric steps, and the canvas that holds them."""

from __future__ import annotations

import math
from typing import Any

from slideio_pipe.augment.draw import AffineTuple
from slideio_pipe.augment.elementwise import Number, maximum, minimum
from slideio_pipe.augment.steps import Steps
from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import Affine, Size

# Products of rotations miss whole numbers by rounding: 1e-9 px over 100,000 px is far below the sampling resolution.
ROUNDING = 1e-9
# The same for the size of a canvas, measured after a product.
CANVAS_ROUNDING = 1e-6


def checked_size(size: Any) -> Size:
    """Return the size of an image, at least one pixel."""
    width, height = size
    if width < 1 or height < 1:
        raise ConfigError(f"an image of {width}x{height} px", remedy="pass size=(width, height)")
    return Size(int(width), int(height))


class Placement:
    """One affine from the plain image to its canvas, to which geometric steps are added."""

    def __init__(self, size: Size) -> None:
        self.canvas = size
        # Affine before the last chosen canvas, that canvas, and the affine since: a growing canvas holds the content
        # of the last chosen canvas, without the corners that earlier growing added.
        self._before, self._content, self._since = Affine(), size, Affine()

    def move(self, steps: Steps) -> None:
        """Append the geometry of one transform."""
        if steps.affine is None:
            return
        self._since = steps.affine @ self._since
        if steps.fit:
            self._fit()
        else:
            canvas = self.canvas if steps.canvas is None else steps.canvas
            found, whole = bounds(steps.affine, self.canvas), (0, 0, *canvas)
            if any(abs(a - b) > CANVAS_ROUNDING for a, b in zip(found, whole, strict=True)):  # cropped or padded
                self._before, self._content, self._since = self._since @ self._before, canvas, Affine()
            self.canvas = canvas

    def _fit(self) -> None:
        left, top, right, bottom = bounds(self._since, self._content)
        self._since = Affine.translation(-left, -top) @ self._since
        self.canvas = Size(*(max(1, math.ceil(side - CANVAS_ROUNDING)) for side in (right - left, bottom - top)))

    def affine(self) -> AffineTuple:
        """Return the whole affine, with values that differ from whole numbers only by rounding made whole."""
        a, b, c, d, e, f = (_snapped(value) for value in (self._since @ self._before).as_tuple())
        return (a, b, c, d, e, f)


def bounds(affine: Affine, size: Size) -> tuple[Number, Number, Number, Number]:
    """Return the lowest x and y and the highest x and y of an image after an affine."""
    (width, height), (a, b, c, d, e, f) = size, affine.as_tuple()
    ax, bx, ay, by = a * width, b * height, d * width, e * height
    left, top = c + minimum(0.0, ax) + minimum(0.0, bx), f + minimum(0.0, ay) + minimum(0.0, by)
    return left, top, c + maximum(0.0, ax) + maximum(0.0, bx), f + maximum(0.0, ay) + maximum(0.0, by)


def _snapped(value: float) -> float:
    # Adding 0.0 turns −0.0 into 0.0, so that equal draws give equal JSON.
    return float(round(value)) + 0.0 if abs(value - round(value)) < ROUNDING else float(value)
