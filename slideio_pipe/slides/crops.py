"""Read rectangles of a view, plain or with its augmentation."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.augment.draw import Draw
from slideio_pipe.augment.own_functions import raise_failure
from slideio_pipe.geometry import Affine, LevelChoice, Rect, Size, split_position
from slideio_pipe.slides.sampling import LevelSource, Sampler


class CroppedView(Protocol):
    """The parts of a view that this module uses; ``SlideView`` has them."""

    @property
    def slide(self) -> LevelSource: ...
    @property
    def choice(self) -> LevelChoice: ...
    @property
    def outside_level(self) -> int: ...
    @property
    def size(self) -> Size: ...
    @property
    def plain_size(self) -> Size: ...
    @property
    def to_plain(self) -> Affine: ...
    @property
    def image(self) -> Any: ...
    @property
    def draw(self) -> Draw | None: ...


def crop_plain(view: CroppedView, corner: tuple[float, float], out: NDArray[np.uint8]) -> None:
    """Fill (H, W, 3) uint8 from a corner in px of a plain view, which may be between pixels."""
    (x, across), (y, down) = (split_position(side) for side in corner)
    sampler = Sampler(view.slide, outside=view.outside_level)
    sampler.plain(view.choice, Rect(x, y, out.shape[1], out.shape[0]), out, offset=(across, down))


def crop_drawn(view: CroppedView, x: int, y: int, out: NDArray[np.uint8]) -> None:
    """Fill (H, W, 3) uint8 from a whole px of an augmented view."""
    out[:] = view.outside_level
    inside = Rect(x, y, out.shape[1], out.shape[0]).intersect(Rect(0, 0, *view.size))
    if not inside.width or not inside.height:
        return
    # The graph raises a decoding error once, and is black there afterwards; a plain read raises it every time.
    under = _under(view, inside)
    if under.width and under.height:
        Sampler(view.slide).plain(view.choice, under, np.empty((under.height, under.width, 3), np.uint8))
    top, left = inside.y - y, inside.x - x
    operations = () if view.draw is None else view.draw.operations
    try:
        pixels = view.image.crop(*inside).numpy()
    finally:
        raise_failure(operations)
    out[top : top + inside.height, left : left + inside.width] = pixels


def _under(view: CroppedView, rect: Rect) -> Rect:
    """Return the plain px that a rectangle of the augmented view is made from."""
    places = view.to_plain.apply([(x, y) for x in (rect.x, rect.right) for y in (rect.y, rect.lower)])
    left, top = np.floor(places.min(0)).astype(int).tolist()
    right, lower = np.ceil(places.max(0)).astype(int).tolist()
    return Rect(left, top, right - left, lower - top).intersect(Rect(0, 0, *view.plain_size))
