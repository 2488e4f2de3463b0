"""The affines of which geometric transforms are made, for one tile or, with arrays as numbers, for many."""

from __future__ import annotations

from typing import Any

import numpy as np

from slideio_pipe.augment.elementwise import Number, cosine, every, sine, where
from slideio_pipe.augment.steps import Steps
from slideio_pipe.geometry import Affine, Size

# Cosine and sine of whole quarter turns.
_QUARTERS = ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))


def rotation(degrees: Number) -> Affine:
    """Return the counter-clockwise rotation about the origin; quarter turns are exact.

    >>> rotation(90).apply([[1, 0]]).tolist()
    [[0.0, -1.0]]
    """
    quarters, rest = divmod(degrees, 90)
    if isinstance(rest, np.ndarray):
        exact = np.array(_QUARTERS).T[:, quarters.astype(np.int64) % 4]
        x, y = np.where(rest == 0, exact, (cosine(degrees), sine(degrees)))
    else:
        x, y = (cosine(degrees), sine(degrees)) if rest else _QUARTERS[int(quarters) % 4]
    return Affine(a=x, b=y, d=-y, e=x)


def about_middle(linear: Affine, size: Size, shift: tuple[Number, Number] = (0.0, 0.0)) -> Affine:
    """Return a linear map about the middle of an image, then shifted; written out because it runs once per tile."""
    x, y = size.width / 2, size.height / 2
    a, b, _, d, e, _ = linear.as_tuple()
    return Affine(a, b, x - a * x - b * y + shift[0], d, e, y - d * x - e * y + shift[1])


def combined(*, mirror: Number, shear: Number, scale: Number, turn: Number) -> Affine:
    """Return rotation · scale · shear · mirror about the origin, column by column.

    Parameters
    ----------
    mirror
        −1 mirrors left-right, 1 does not.
    shear
        Tangent of the angle, along x.
    scale, turn
        A factor, and degrees counter-clockwise.
    """
    rotated = rotation(turn)
    a, b, d, e = (scale * side for side in (rotated.a, rotated.b, rotated.d, rotated.e))
    return Affine(a * mirror, a * shear + b, 0.0, d * mirror, d * shear + e, 0.0)


def scaled(x: Number, y: Number) -> Affine:
    """Return the affine that multiplies x and y."""
    return Affine(a=1.0 * x, e=1.0 * y)


def shifted(x: Number, y: Number) -> Affine:
    """Return the affine that adds to x and y."""
    return Affine(c=1.0 * x, f=1.0 * y)


def quarter_turns(count: Number, size: Size) -> Steps:
    """Return ``count`` counter-clockwise quarter turns, as ``numpy.rot90`` does; sides swap."""
    count = count % 4
    if every(count == 0):
        return Steps()
    odd = count % 2 == 1
    canvas = Size(where(odd, size.height, size.width), where(odd, size.width, size.height))
    turned = shifted(canvas.width / 2, canvas.height / 2) @ rotation(90.0 * count)
    return Steps(turned @ shifted(-size.width / 2, -size.height / 2), canvas)


def mirrored(size: Size, *, horizontal: Any, vertical: Any) -> Steps:
    """Return the image mirrored left-right, top-bottom, or both."""
    if every((horizontal | vertical) == 0):
        return Steps()
    x, y = (where(flag, -1.0, 1.0) for flag in (horizontal, vertical))
    across, down = where(horizontal, 1.0 * size.width, 0.0), where(vertical, 1.0 * size.height, 0.0)
    return Steps(Affine(x, 0.0, across, 0.0, y, down), size)


def resized(size: Size, canvas: Size) -> Steps:
    """Return the whole image scaled to ``canvas``."""
    if every(canvas.width == size.width) and every(canvas.height == size.height):
        return Steps()
    return Steps(scaled(canvas.width / size.width, canvas.height / size.height), canvas)
