"""From coordinates to pixels: the only place that does it.

A reader is given any list of tiles. It visits them in storage order, so that a stored tile is decoded once though
several tiles need it, and writes each into its slot of the caller's array. Threads share one image per level, and with
it libvips' cache of decoded tiles; each has a region of its own.

How a tile's pixels are computed is the sampler's business (``sampling``).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slideio_pipe.backends.vips import check_process
from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import Rect
from slideio_pipe.sampling import Sampler
from slideio_pipe.view import SlideView

# Tiles a thread takes at a time: long enough that taking is free, short enough that threads stay in one storage row.
_RUN = 8


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
        self._sampler = Sampler(view.slide)

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
        side = self.tile_size
        for k in positions:
            x, y = (int(v) for v in origins[k])
            self._sampler.plain(self.view.choice, Rect(x, y, side, side), out[k])
