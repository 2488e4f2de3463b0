"""Pixels of a rectangle of a slide at any resolution, plain or through an affine; one sampler per thread's work.

Two steps, each with one filter. *Plain*: level pixels, shrunk from the tile's exact fractional source box with an
antialiased triangle (Pillow's BILINEAR, which is also torchvision's antialiased resize), so that neighbours fit
seamlessly and equal a crop of the whole view. *Drawn*: an affine of plain pixels, bilinear, white outside.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pyvips
from numpy.typing import NDArray
from PIL import Image

from slideio_pipe.errors import CorruptSlideError
from slideio_pipe.geometry import Affine, LevelChoice, Rect, Size
from slideio_pipe.view import PyramidSource

# Level pixels fetched at once when shrinking: 48 MB, whatever the shrink factor.
_MAX_FETCH_PX = 16_000_000


class Sampler:
    """Reads rectangles of one slide; threads may share it, each has regions of its own.

    Parameters
    ----------
    slide : PyramidSource
    """

    def __init__(self, slide: PyramidSource) -> None:
        self.slide = slide
        self._local = threading.local()

    def plain(self, choice: LevelChoice, rect: Rect, out: NDArray[np.uint8]) -> None:
        """Write ``rect`` of the slide at ``choice`` into ``out``; what lies outside the slide is white.

        Parameters
        ----------
        choice : LevelChoice
            The level and the factor it is shrunk by.
        rect : Rect
            In px at that resolution.
        out : (rect.height, rect.width, 3) uint8
            May be a strided view.

        Raises
        ------
        CorruptSlideError
            Pixels cannot be decoded; names the place.
        """
        inside = rect.intersect(Rect(0, 0, *self.slide.pyramid.size_at(choice)))
        if inside != rect:
            out[:] = 255
        if not inside.width or not inside.height:
            return
        top, left = inside.y - rect.y, inside.x - rect.x
        target = out[top : top + inside.height, left : left + inside.width]
        if choice.resampled:
            self._shrink(choice, inside, target)
        else:
            target[:] = self._fetch(choice.level, inside)

    def drawn(self, choice: LevelChoice, affine: Affine, out: NDArray[np.uint8]) -> None:
        """Write pixels into ``out`` through an affine from ``out`` px to px at ``choice``, bilinear, white outside.

        Parameters
        ----------
        choice : LevelChoice
            The plain resolution that is sampled.
        affine : Affine
            From ``out`` px to plain px, corner-based.
        out : (H, W, 3) uint8, C-contiguous
        """
        height, width = out.shape[:2]
        rect = _reach(affine, Size(width, height))
        inside = rect.intersect(Rect(-1, -1, *(side + 2 for side in self.slide.pyramid.size_at(choice))))
        if not inside.width or not inside.height:
            out[:] = 255
            return
        pixels = np.empty((inside.height, inside.width, 3), np.uint8)
        self.plain(choice, inside, pixels)
        # OpenCV puts pixel centres on whole numbers; ours lie halfway.
        half = Affine.translation(0.5, 0.5)
        local = half.inverse() @ Affine.translation(-inside.x, -inside.y) @ affine @ half
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        cv2.warpAffine(pixels, local.matrix()[:2], (width, height), out, flags, cv2.BORDER_CONSTANT, (255, 255, 255))

    def _shrink(self, choice: LevelChoice, inside: Rect, target: NDArray[np.uint8]) -> None:
        """Shrink (or enlarge) the level pixels below ``inside`` (px at ``choice``) into ``target``."""
        sx, sy = choice.shrink
        level = Rect(0, 0, *self.slide.pyramid.levels[choice.level])
        for top, rows in _bands(inside, sx, sy):
            box = (inside.x * sx, top * sy, (inside.x + inside.width) * sx, (top + rows) * sy)
            # The filter reaches one shrunk pixel beyond the box; at the slide's edge it is cut and renormalised.
            left, upper = math.floor(box[0] - sx) - 1, math.floor(box[1] - sy) - 1
            right, lower = math.ceil(box[2] + sx) + 1, math.ceil(box[3] + sy) + 1
            source = Rect(left, upper, right - left, lower - upper).intersect(level)
            pixels = self._fetch(choice.level, source)
            width, height = float(source.width), float(source.height)
            local = (
                max(0.0, box[0] - source.x),
                max(0.0, box[1] - source.y),
                min(width, box[2] - source.x),
                min(height, box[3] - source.y),
            )
            image = Image.fromarray(pixels).resize((inside.width, rows), Image.Resampling.BILINEAR, box=local)
            start = top - inside.y
            target[start : start + rows] = np.asarray(image)

    def _fetch(self, level: int, rect: Rect) -> NDArray[np.uint8]:
        """Return level pixels, (h, w, 3) uint8, decoded in this thread."""
        slide = self.slide
        stored = slide.stored_tile(level, rect)
        if stored is not None:
            return stored
        try:
            buffer = self._region(level).fetch(*rect)
        except pyvips.Error as error:
            slide.raise_failure(level, rect, np.zeros((rect.height, rect.width, 3), np.uint8))
            dx, dy = slide.pyramid.downsamples[level]
            place = f"level {level} near level-0 px ({round(rect.x * dx)}, {round(rect.y * dy)})"
            raise CorruptSlideError(
                f"pixels of {place} cannot be decoded ({' '.join(str(error).split())})",
                slide=slide.name,
                remedy="copy the slide again, or leave this region out",
            ) from error
        pixels = np.frombuffer(buffer, np.uint8).reshape(rect.height, rect.width, 3)
        slide.raise_failure(level, rect, pixels)
        return pixels

    def _region(self, level: int) -> Any:
        """Return this thread's region of a level: libvips ties a region to the thread that made it."""
        image = self.slide.level_image(level)
        regions = self._local.__dict__.setdefault("regions", {})
        known = regions.get(level)
        if known is None or known[0] is not image:
            # The region does not keep the image's Python side alive, which a virtual TIFF is called back through.
            known = regions[level] = (image, pyvips.Region.new(image))
        return known[1]


def _reach(affine: Affine, size: Size) -> Rect:
    """Return the plain pixels that bilinear sampling of a ``size`` image through ``affine`` can touch."""
    corners = affine.apply([(0, 0), (size.width, 0), (0, size.height), (size.width, size.height)])
    left, upper = (math.floor(v) - 1 for v in corners.min(axis=0))
    right, lower = (math.ceil(v) + 1 for v in corners.max(axis=0))
    return Rect(left, upper, right - left, lower - upper)


def _bands(inside: Rect, sx: float, sy: float) -> Iterator[tuple[int, int]]:
    """Yield (top, rows), so that no band needs more than ``_MAX_FETCH_PX`` level pixels."""
    per_row = max(1.0, inside.width * sx * sy)
    rows = max(1, min(inside.height, int(_MAX_FETCH_PX / per_row)))
    for top in range(inside.y, inside.y + inside.height, rows):
        yield top, min(rows, inside.y + inside.height - top)
