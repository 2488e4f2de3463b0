"""Square tiles of a view at powers of two, as JPEG, for deep zoom.

A tile that is ``2**zoom`` times smaller than the view is sampled from the coarsest level that is fine enough, so it
takes the same time at every zoom. A few threads make all tiles; requests that the page has given up are left out.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from threading import Lock

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from slideio_pipe.augment.draw import Draw
from slideio_pipe.cores import usable_cores
from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import Affine, Size
from slideio_pipe.slides.view import SlideView
from slideio_pipe.tiles.reader import TileReader

TILE = 512  # px: a screen has few of them, and each is decoded and encoded in a few ms
# 43 dB on tissue, where colour at half resolution (4:2:0) has at most 39 dB.
QUALITY, SUBSAMPLING = 90, "444"
# Views whose readers are kept: with one reader per zoom and scratch memory per thread, 64 took 250 MB.
OPEN_VIEWS = 8
# Readers of one view, one per zoom and per size of a region.
MOST_READERS = 24
# Threads that make pixels; more of them wait for each other and use more memory.
MOST_THREADS = 4


def zooms_of(size: Size) -> int:
    """Return how many times a view is halved until it fits in one tile.

    >>> zooms_of(Size(512, 100)), zooms_of(Size(513, 100)), zooms_of(Size(100_000, 80_000))
    (0, 1, 8)
    """
    return max(0, math.ceil(math.log2(max(size) / TILE)))


def to_jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """Return RGB pixels as JPEG bytes."""
    contiguous = np.ascontiguousarray(pixels)
    encoded: bytes = simplejpeg.encode_jpeg(
        contiguous, quality=QUALITY, colorspace="RGB", colorsubsampling=SUBSAMPLING, fastdct=False
    )
    return encoded


@dataclass
class ViewTiles:
    """The tiles of one view.

    Examples
    --------
    >>> from slideio_pipe import open_slide
    >>> tiles = ViewTiles(open_slide(np.zeros((700, 900, 3), np.uint8)).view())
    >>> tiles.tile(1, 0, 0).shape, tiles.tile(0, 1, 1).shape
    ((350, 450, 3), (188, 388, 3))
    """

    view: SlideView
    _readers: dict[int, TileReader] = field(default_factory=dict, repr=False)
    _lock: Lock = field(default_factory=Lock, repr=False)

    @property
    def zooms(self) -> int:
        """How many times the view is halved until it fits in one tile."""
        return zooms_of(self.view.size)

    def tile(self, zoom: int, column: int, row: int) -> NDArray[np.uint8]:
        """Return a tile of the view that is ``2**zoom`` times smaller, (h, w, 3) uint8; narrower at the edges.

        Raises
        ------
        ConfigError
            There is no such tile.
        CorruptSlideError
            Its pixels cannot be decoded.
        """
        factor = 1 << zoom if 0 <= zoom <= self.zooms else 0
        sides = [math.ceil(side / factor) if factor else 0 for side in self.view.size]
        width, height = (min(TILE, side - TILE * place) for side, place in zip(sides, (column, row), strict=True))
        if min(width, height, column + 1, row + 1) < 1:
            reason = f"no tile {column}, {row} at zoom {zoom}"
            raise ConfigError(reason, slide=self.view.slide.name, remedy="reload the page")
        corner = (column * TILE * factor, row * TILE * factor)
        pixels: NDArray[np.uint8] = self.region(corner, factor, Size(TILE, TILE))[:height, :width]
        return pixels

    def region(self, corner: tuple[float, float], factor: float, size: Size) -> NDArray[np.uint8]:
        """Return a rectangle of the view, ``factor`` times smaller, of any size; outside the slide it is white.

        Parameters
        ----------
        corner : (float, float)
            Its top-left corner, view px.
        factor : float
            View px per px of the result, at least 1.
        size : Size
            Of the result, px.
        """
        if self.view.draw is not None and not self.view.draw.lowered:
            return self._coarse_region(corner, factor, size)
        side = math.ceil(max(size) * factor)
        plain = Draw(size=Size(side, side), canvas=size, affine=(1 / factor, 0.0, 0.0, 0.0, 1 / factor, 0.0))
        pixels: NDArray[np.uint8] = self._reader(side).read([corner], draws=[plain])[0]
        return pixels

    def _coarse_region(self, corner: tuple[float, float], factor: float, size: Size) -> NDArray[np.uint8]:
        """Return a region under a draw that runs as a libvips graph only: of a view at that resolution."""
        coarse = coarser(self.view, factor)
        x, y = (place / factor for place in corner)
        side = max(size)
        pixels: NDArray[np.uint8] = TileReader(coarse, side).read([(x, y)])[0]
        return pixels[: size.height, : size.width]

    def _reader(self, side: int) -> TileReader:
        with self._lock:
            if side not in self._readers:
                if len(self._readers) > MOST_READERS:
                    self._readers.pop(next(iter(self._readers)))
                self._readers[side] = TileReader(self.view, side)
            return self._readers[side]


def coarser(view: SlideView, factor: float) -> SlideView:
    """Return the view ``factor`` times smaller, with the same draw on fewer pixels.

    Operations on neighbouring pixels, such as blur, then act on the pixels that are shown.
    """
    down = view.downsample
    choice = view.slide.pyramid.choose((down[0] * factor, down[1] * factor))
    small = replace(view, choice=choice, draw=None)
    draw = view.draw
    if draw is None:
        return small
    plain, before = small.plain_size, view.plain_size
    stretch = Affine.scaling(before.width / plain.width, before.height / plain.height)
    affine = Affine.scaling(1 / factor, 1 / factor) @ Affine.from_tuple(draw.affine) @ stretch
    canvas = Size(*(max(1, math.ceil(side / factor)) for side in draw.canvas))
    return replace(small, draw=draw.model_copy(update={"size": plain, "canvas": canvas, "affine": affine.as_tuple()}))


class TileSource:
    """Makes tiles of many views in a few threads; keeps the readers of the last views.

    Parameters
    ----------
    threads : int, optional
        Number of threads; by default one per core, at most 4.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or min(usable_cores(), MOST_THREADS)
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="slideio-view")
        self._open: OrderedDict[str, ViewTiles] = OrderedDict()
        self._lock = Lock()

    def tiles(self, key: str, view: Callable[[], SlideView]) -> ViewTiles:
        """Return the tiles of the view named ``key``, which is made if its readers are not open."""
        with self._lock:
            if key in self._open:
                self._open.move_to_end(key)
                return self._open[key]
        made = ViewTiles(view())  # without the lock: it may open a slide
        with self._lock:
            kept = self._open.setdefault(key, made)
            while len(self._open) > OPEN_VIEWS:
                self._open.popitem(last=False)
            return kept

    def submit(self, work: Callable[[], bytes], wanted: Callable[[], bool]) -> Future[bytes | None]:
        """Run work in a thread for pixels; its result is None if it was no longer wanted when its turn came."""
        return self._pool.submit(lambda: work() if wanted() else None)

    def close(self) -> None:
        """End the threads and drop every reader."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            self._open.clear()
