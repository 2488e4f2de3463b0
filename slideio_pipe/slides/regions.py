"""Read rectangles of a level, thumbnails, and overviews of slides, including damaged ones."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slideio_pipe.arguments import pair, place, whole_number
from slideio_pipe.errors import ConfigError, CorruptSlideError
from slideio_pipe.geometry import LevelChoice, Rect, Size, split_position
from slideio_pipe.slides.sampling import Sampler
from slideio_pipe.slides.view import OUTSIDE, PyramidSource, SlideView

# Largest unreadable fraction of an overview: one stored tile is often a tenth of it, and all of the smallest level.
_MAX_UNREAD = 0.25


class RegionSource(PyramidSource, Protocol):
    """The parts of a slide that this module uses; ``Slide`` has them."""

    def level_pixels(self, level: int, rect: Rect) -> NDArray[np.uint8]: ...


def read_region(
    slide: RegionSource, location: tuple[float, float], level: int, size: tuple[int, int], outside: str
) -> NDArray[np.uint8]:
    """Return a rectangle of a level, (H, W, 3) uint8 RGB, from a corner in level-0 px that may be between pixels."""
    location = place(location, slide=slide.name)
    width, height = (whole_number(side, "a side", slide=slide.name) for side in pair(size, "a size", slide=slide.name))
    if min(width, height) < 0:
        raise ConfigError(f"a region of {width}×{height} px", slide=slide.name, remedy="pass sizes >= 0")
    fill = OUTSIDE.get(outside)
    if fill is None:
        raise ConfigError(f"outside is {outside!r}", slide=slide.name, remedy='pass "white" or "black"')
    dx, dy = slide.pyramid.downsamples[level]
    (x, across), (y, down) = split_position(location[0] / dx), split_position(location[1] / dy)
    rect = Rect(x, y, width, height)
    out = np.full((rect.height, rect.width, 3), fill, np.uint8)
    if across or down:
        sampler = Sampler(slide, outside=fill)
        sampler.plain(LevelChoice(level, (1.0, 1.0)), rect, out, offset=(across, down))
        return out
    inside = rect.intersect(Rect(0, 0, *slide.pyramid.levels[level]))
    if inside.width and inside.height:
        pixels = slide.level_pixels(level, inside)
        top, left = inside.y - y, inside.x - x
        out[top : top + inside.height, left : left + inside.width] = pixels
    return out


def whole_view(view: SlideView) -> NDArray[np.uint8]:
    """Return all pixels of a plain view, (H, W, 3) uint8."""
    width, height = view.plain_size
    pixels = np.empty((height, width, 3), np.uint8)
    Sampler(view.slide).plain(view.choice, Rect(0, 0, width, height), pixels)
    return pixels


def readable_view(view: SlideView, stored_tile: Size) -> tuple[NDArray[np.uint8], list[CorruptSlideError]]:
    """Return all pixels of a plain view, white where they cannot be decoded, and an error for each such place.

    Raise CorruptSlideError if more than a quarter of it cannot be decoded.
    """
    width, height = view.plain_size
    pixels = np.empty((height, width, 3), np.uint8)
    stored = zip(stored_tile, view.choice.shrink, strict=True)
    least = Size(*(max(1, round(side / shrink / 8)) for side, shrink in stored))
    sampler, white_px = Sampler(view.slide), 0
    errors: dict[str, CorruptSlideError] = {}  # by message, which names the stored tile
    # Halved down to an eighth of a stored tile. Testing each stored tile would take too long on a slide with only
    # level 0, and the filter of a whole stored tile extends into all its neighbours.
    left = [Rect(0, 0, width, height)]
    while left:
        rect = left.pop()
        part = pixels[rect.y : rect.y + rect.height, rect.x : rect.x + rect.width]
        try:
            sampler.plain(view.choice, rect, part)
        except CorruptSlideError as error:
            halves = _halves(rect, least)
            left += halves
            if not halves:
                part[:] = 255
                errors.setdefault(error.reason, error.with_traceback(None))
                white_px += rect.width * rect.height
                if white_px > _MAX_UNREAD * width * height:
                    raise
    return pixels, list(errors.values())


def thumbnail_of(slide: RegionSource, max_size: int) -> NDArray[np.uint8]:
    """Return the whole slide with its longer side at most ``max_size`` px, (H, W, 3) uint8."""
    factor = max(1.0, max(slide.pyramid.levels[0]) / max_size)
    pixels = whole_view(SlideView(slide, slide.pyramid.choose((factor, factor))))
    if max(pixels.shape) <= max_size:
        return pixels
    size = [max(1, round(side * max_size / max(pixels.shape))) for side in pixels.shape[1::-1]]
    return np.asarray(Image.fromarray(pixels).resize((size[0], size[1]), Image.Resampling.BILINEAR))


def _halves(rect: Rect, tile: Size) -> list[Rect]:
    """Return a rectangle in two halves, split between tiles along the side with more of them; [] for one tile."""
    columns, rows = -(-rect.width // tile.width), -(-rect.height // tile.height)
    if max(columns, rows) <= 1:
        return []
    if columns >= rows:
        cut = columns // 2 * tile.width
        return [rect._replace(width=cut), rect._replace(x=rect.x + cut, width=rect.width - cut)]
    cut = rows // 2 * tile.height
    return [rect._replace(height=cut), rect._replace(y=rect.y + cut, height=rect.height - cut)]
