"""From coordinates to pixels: the only place that does it.

A reader is given any list of tiles. It visits them in storage order, so that a stored tile is decoded once though
several tiles need it, and writes each into its slot of the caller's array. Threads share one image per level, and with
it libvips' cache of decoded tiles; each has a region of its own.

Resolutions between levels are resampled per tile with an antialiased triangle filter (Pillow's BILINEAR, which is
also torchvision's antialiased resize), from exactly the fractional source box of the tile: neighbouring tiles fit
seamlessly, and equal a crop of the whole view.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyvips
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from slideio_pipe.backends.vips import check_process
from slideio_pipe.errors import ConfigError, CorruptSlideError
from slideio_pipe.geometry import Rect
from slideio_pipe.view import SlideView

# Tiles a thread takes at a time: long enough that taking is free, short enough that threads stay in one storage row.
_RUN = 8
# Level pixels fetched at once when shrinking: 48 MB, whatever the shrink factor.
_MAX_FETCH_PX = 16_000_000


class TileReader:
    """Reads square tiles of one view.

    Parameters
    ----------
    view : SlideView
    tile_size : int
        Side in view px.

    Notes
    -----
    Memory: libvips' decoded-tile cache of the level, 2·(1 + level width / stored tile width) stored tiles, shared by
    all readers of the slide, plus at most 64 MB per thread while shrinking.

    Examples
    --------
    >>> from slideio_pipe import open_slide
    >>> pixels = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)
    >>> reader = TileReader(open_slide(pixels).view(), 16)
    >>> bool((reader.read([[8, 4]])[0] == pixels[4:20, 8:24]).all())
    True
    """

    def __init__(self, view: SlideView, tile_size: int) -> None:
        self.view, self.tile_size = view, tile_size
        self._local = threading.local()

    def read(self, origins: ArrayLike, out: NDArray[np.uint8] | None = None, *, threads: int = 1) -> NDArray[np.uint8]:
        """Read tiles; ``out[k]`` is the tile at ``origins[k]``, whatever order they are visited in.

        Parameters
        ----------
        origins : (n, 2) int
            Top-left corners (x, y), view px. What lies outside the view is white.
        out : (n, tile_size, tile_size, 3) uint8, C-contiguous, optional
            Where the pixels go; allocated when not given.
        threads : int
            How many threads decode.

        Raises
        ------
        CorruptSlideError
            A tile's pixels cannot be decoded; names its place.
        ForkError
            The process was forked after libvips had worked.
        """
        check_process()
        corners = np.asarray(origins, np.int64).reshape(-1, 2)
        shape = (len(corners), self.tile_size, self.tile_size, 3)
        target = np.empty(shape, np.uint8) if out is None else out
        flags = target.flags
        if target.shape != shape or target.dtype != np.uint8 or not (flags.c_contiguous and flags.writeable):
            raise ConfigError(
                f"out has shape {target.shape} and type {target.dtype}, or is not C-contiguous and writeable",
                slide=self.view.slide.name,
                remedy=f"pass uint8 {shape}",
            )
        order = self.storage_order(corners)
        if threads <= 1 or len(order) <= _RUN:
            self._read_run(order, corners, target)
            return target
        runs = [order[start : start + _RUN] for start in range(0, len(order), _RUN)]
        with ThreadPoolExecutor(min(threads, len(runs)), thread_name_prefix="slideio-read") as pool:
            futures = [pool.submit(self._read_run, run, corners, target) for run in runs]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                for future in futures:
                    future.cancel()
                raise
        return target

    def storage_order(self, origins: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return positions sorted by row of stored tiles, then by x: every stored tile is then decoded once."""
        stored = self.view.slide.tile_sizes[self.view.level].height / self.view.choice.shrink[1]
        rows = np.floor_divide(origins[:, 1], max(1.0, stored))
        return np.lexsort((origins[:, 1], origins[:, 0], rows)).astype(np.int64)

    def _read_run(self, positions: NDArray[np.int64], origins: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        for k in positions:
            x, y = (int(v) for v in origins[k])
            self._read_tile(x, y, out[k])

    def _read_tile(self, x: int, y: int, slot: NDArray[np.uint8]) -> None:
        inside = Rect(x, y, self.tile_size, self.tile_size).intersect(Rect(0, 0, *self.view.size))
        if (inside.width, inside.height) != (self.tile_size, self.tile_size):
            slot[:] = 255
        if not inside.width or not inside.height:
            return
        target = slot[inside.y - y : inside.y - y + inside.height, inside.x - x : inside.x - x + inside.width]
        if self.view.choice.resampled:
            self._resample(inside, target)
        else:
            target[:] = self._fetch(inside)

    def _resample(self, inside: Rect, target: NDArray[np.uint8]) -> None:
        """Shrink (or enlarge) the level pixels below ``inside`` (view px) into ``target``."""
        sx, sy = self.view.choice.shrink
        level = Rect(0, 0, *self.view.level_size)
        for top, rows in _bands(inside, sx, sy):
            box = (inside.x * sx, top * sy, (inside.x + inside.width) * sx, (top + rows) * sy)
            # The filter reaches one shrunk pixel beyond the box; at the slide's edge it is cut and renormalised.
            left, upper = math.floor(box[0] - sx) - 1, math.floor(box[1] - sy) - 1
            right, lower = math.ceil(box[2] + sx) + 1, math.ceil(box[3] + sy) + 1
            source = Rect(left, upper, right - left, lower - upper).intersect(level)
            pixels = self._fetch(source)
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

    def _fetch(self, rect: Rect) -> NDArray[np.uint8]:
        """Return level pixels, (h, w, 3) uint8, decoded in this thread."""
        slide, level = self.view.slide, self.view.level
        try:
            buffer = self._region().fetch(*rect)
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

    def _region(self) -> Any:
        """Return this thread's region: libvips ties a region to the thread that made it."""
        image = self.view.slide.level_image(self.view.level)
        if getattr(self._local, "image", None) is not image:
            # The region does not keep the image's Python side alive, which a virtual TIFF is called back through.
            self._local.image, self._local.region = image, pyvips.Region.new(image)
        return self._local.region


def _bands(inside: Rect, sx: float, sy: float) -> Iterator[tuple[int, int]]:
    """Yield (top, rows) in view px, so that no band needs more than ``_MAX_FETCH_PX`` level pixels."""
    per_row = max(1.0, inside.width * sx * sy)
    rows = max(1, min(inside.height, int(_MAX_FETCH_PX / per_row)))
    for top in range(inside.y, inside.y + inside.height, rows):
        yield top, min(rows, inside.y + inside.height - top)
