"""Read tiles at coordinates as pixels; all tiles are read here.

A reader gets any list of tiles. It reads them in storage order, so that a stored tile that several tiles need is
decoded once, and writes each into its slot of the caller's array. Threads share the decoded stored tiles.

The affines of a tile's own draw and of its view are multiplied to one, sampled from the coarsest level that is fine
enough (``sampling``); colours are applied to the decoded pixels.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
import pyvips
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from slideio_pipe.augment.draw import Draw
from slideio_pipe.augment.executors.cpu import ColourProgram
from slideio_pipe.augment.executors.cpu_steps import Scratch
from slideio_pipe.augment.executors.lazy import apply_lazy
from slideio_pipe.augment.operations import Opaque
from slideio_pipe.errors import ConfigError, CorruptSlideError
from slideio_pipe.geometry import (
    FINE_ENOUGH,
    SAME_RESOLUTION,
    WHOLE_SHRINKS,
    Affine,
    LevelChoice,
    Rect,
    Size,
    split_position,
    whole_where_nearly,
)
from slideio_pipe.images.vips import check_process
from slideio_pipe.slides.backends.base import OnTiming
from slideio_pipe.slides.sampling import NEARLY, ON_GRID, Sampler
from slideio_pipe.slides.view import SlideView

ReadRun = Callable[[NDArray[np.int64]], None]

# Tiles per job of a thread: enough that taking a job costs little, few enough that threads stay in one storage row.
READ_RUN = 8


def empty_tiles(shape: tuple[int, ...], slide: str) -> NDArray[np.uint8]:
    """Return memory for (n, H, W, 3) uint8 tiles of a slide; raise ConfigError if there is not enough memory."""
    try:
        return np.empty(shape, np.uint8)
    except MemoryError as error:
        raise no_memory(shape, slide) from error


def no_memory(shape: tuple[int, ...], slide: str) -> ConfigError:
    """Return the error for (n, H, W, 3) tiles that do not fit in memory."""
    count, height, width = shape[:3]
    each = 3e-9 * height * width
    size = f"{each:,.{0 if each >= 10 else 2}f} GB"
    reason = f"a tile of {width:,}×{height:,} px takes {size}, and there is no memory for {count:,} at once"
    return ConfigError(reason, slide=slide, remedy="pass a smaller {tile_size=}, a coarser {mpp=} or fewer threads")


class TileReader:
    """Reads square tiles of one view.

    Parameters
    ----------
    view : SlideView
    tile_size : int
        Side in view px.
    on_stage : callable, optional
        Called with ("read" | "decode" | "fallback" | "resample" | "augment", start, end), ``time.perf_counter``
        seconds, in the thread of the work.

    Notes
    -----
    Memory: decoded stored tiles of all open slides together, 128 MB (``decoded``), and at most 64 MB per thread while
    shrinking. Levels that are not JPEG go through libvips and its cache of the level: 2·(1 + level width / stored tile
    width) stored tiles, shared by all readers of the slide.

    Examples
    --------
    >>> from slideio_pipe import open_slide
    >>> pixels = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)
    >>> reader = TileReader(open_slide(pixels).view(), 16)
    >>> bool((reader.read([[8, 4]])[0] == pixels[4:20, 8:24]).all())
    True
    """

    def __init__(self, view: SlideView, tile_size: int, *, on_stage: OnTiming | None = None) -> None:
        self.view, self.tile_size, self.on_stage = view, tile_size, on_stage
        self._sampler = Sampler(view.slide, on_stage, outside=view.outside_level)
        self._idle: deque[Scratch] = deque()

    def read(
        self,
        origins: ArrayLike,
        out: NDArray[np.uint8] | None = None,
        *,
        draws: Sequence[Draw] | None = None,
        colours: bool = True,
        threads: int = 1,
    ) -> NDArray[np.uint8]:
        """Read tiles; ``out[k]`` is the tile at ``origins[k]``; they are read in storage order.

        Parameters
        ----------
        origins : (n, 2) int or float
            Top-left corners (x, y), view px; between pixels, the exact position is sampled. Outside the slide tiles are
            white, or black if the view's ``outside`` is black.
        out : (n, H, W, 3) uint8, C-contiguous, optional
            Destination; allocated if not given. H and W are ``tile_size``, or the canvas of the draws.
        draws : sequence of Draw, optional
            One per tile, all with the same canvas.
        colours : bool
            Whether to apply colour operations; False leaves them to the device.
        threads : int
            Number of decoding threads.

        Raises
        ------
        CorruptSlideError
            A tile's pixels cannot be decoded; names its place.
        ForkError
            The process was forked after libvips was used.
        """
        check_process()
        if draws is not None and len({draw.canvas for draw in draws}) > 1:
            raise ConfigError(
                "the tile transform draws tiles of different sizes",
                slide=self.view.slide.name,
                remedy="end it with Resize(height, width) or RandomResizedCrop(size)",
            )
        corners = whole_where_nearly(np.asarray(origins).reshape(-1, 2))
        canvas = draws[0].canvas if draws else Size(self.tile_size, self.tile_size)
        shape = (len(corners), canvas.height, canvas.width, 3)
        target = empty_tiles(shape, self.view.slide.name) if out is None else out
        flags = target.flags
        if target.shape != shape or target.dtype != np.uint8 or not (flags.c_contiguous and flags.writeable):
            raise ConfigError(
                f"out has shape {target.shape} and type {target.dtype}, or is not C-contiguous and writeable",
                slide=self.view.slide.name,
                remedy=f"pass uint8 {shape}",
            )

        plain = draws is None and not self.view.moves and not (colours and self._graph is not None)
        blocks = self._sampler.blocks(self.view.choice, corners, self.tile_size) if plain else None
        off_grid = plain and (blocks is None or None in blocks.places)
        scattered = off_grid and self._sampler.scattered(self.view.choice, corners, self.tile_size)

        def read_run(positions: NDArray[np.int64]) -> None:
            for k in positions.tolist():
                place = None if blocks is None else blocks.places[k]
                if blocks is None or place is None:
                    x, y = corners[k].tolist()
                    self._read_tile(x, y, None if draws is None else draws[k], target[k], colours, scattered)
                    continue
                self._sampler.block(blocks, place, target[k])
                if colours:
                    self._colour(None, target[k], done=False)

        self._in_threads(read_run, self.storage_order(corners), threads)
        return target

    def storage_order(self, origins: NDArray[Any]) -> NDArray[np.int64]:
        """Return positions sorted by row of stored tiles, then by x: every stored tile is decoded once."""
        view = self.view
        plain = view.to_plain.apply(origins + 0.5 * self.tile_size) if view.draw else origins
        stored = view.slide.tile_sizes[view.level].height / view.choice.shrink[1]
        rows = np.floor_divide(plain[:, 1], max(1.0, stored))
        return np.lexsort((plain[:, 1], plain[:, 0], rows)).astype(np.int64)

    def _in_threads(self, read_run: ReadRun, order: NDArray[np.int64], threads: int) -> None:
        if threads <= 1 or len(order) <= READ_RUN:
            read_run(order)
            return
        runs = [order[start : start + READ_RUN] for start in range(0, len(order), READ_RUN)]
        with ThreadPoolExecutor(min(threads, len(runs)), thread_name_prefix="slideio-read") as pool:
            futures = [pool.submit(read_run, run) for run in runs]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                for future in futures:
                    future.cancel()
                raise

    def _read_tile(
        self, x: float, y: float, draw: Draw | None, slot: NDArray[np.uint8], colours: bool, scattered: bool
    ) -> None:
        lazily = colours and self._graph is not None
        if lazily:
            self._read_lazily(x, y, draw, slot)
        elif not self.view.moves and (draw is None or not draw.moves):
            left, top = math.floor(x), math.floor(y)
            rect = Rect(left, top, self.tile_size, self.tile_size)
            self._sampler.plain(self.view.choice, rect, slot, scattered=scattered, offset=(x - left, y - top))
        else:
            self._read_drawn(x, y, draw, slot)
        if colours:
            begun = time.perf_counter() if self.on_stage else 0.0
            self._colour(draw, slot, done=lazily)
            if self.on_stage:
                self.on_stage("augment", begun, time.perf_counter())

    def _read_drawn(self, x: float, y: float, draw: Draw | None, slot: NDArray[np.uint8]) -> None:
        """Sample a tile through the product of its own affine and the view's: one interpolation."""
        to_view = Affine.translation(x, y)
        if draw is not None and draw.moves:
            to_view = to_view @ Affine.from_tuple(draw.affine).inverse()
        to_plain = self.view.to_plain @ to_view
        choice, to_choice, shrink = self._resolution(to_plain)
        affine = to_choice @ to_plain
        # The sampled pixels begin at the tile's start, so that a flip of the tile is exact.
        offset = ON_GRID
        if not self.view.moves and (x, y) != (math.floor(x), math.floor(y)):
            corner = to_choice.apply((x, y))
            offset = (split_position(corner[0])[1], split_position(corner[1])[1])
        shift = Affine.translation(-offset[0], -offset[1]) @ affine
        if _is_shift(shift):
            rect = Rect(round(shift.c), round(shift.f), slot.shape[1], slot.shape[0])
            self._sampler.plain(choice, rect, slot, offset=offset)
        else:
            self._sampler.drawn(choice, affine, slot, shrink=shrink, offset=offset)

    def _resolution(self, to_plain: Affine) -> tuple[LevelChoice, Affine, float]:
        """Return the level choice of a tile, the affine from the view's plain px to px there, and the remaining shrink.

        A tile that shows more plain pixels than it has, by its own draw or its view's, is sampled from a coarser level:
        a 1024-px tile shown in 224 px needs a sixteenth of the stored pixels. If one axis is shrunk more than the
        other, their geometric mean decides, limited so that the finer axis is nearly fine enough: between keeping every
        detail of one axis and the level that graphics hardware uses, that of the other axis.
        """
        view = self.view
        shrink = min(to_plain.mean_stretch(), to_plain.least_stretch() * NEARLY)
        if shrink <= 1 + SAME_RESOLUTION:
            return view.choice, Affine(), 1.0
        pyramid = view.slide.pyramid
        dx, dy = (down * shrink for down in view.downsample)
        level = pyramid.choose((dx * FINE_ENOUGH, dy * FINE_ENOUGH)).level
        lx, ly = pyramid.downsamples[level]
        left = min(dx / lx, dy / ly) * FINE_ENOUGH  # remaining shrink
        whole = max((n for n in WHOLE_SHRINKS if n <= left), default=1)
        choice = LevelChoice(level, (float(whole), float(whole)))
        cx, cy = pyramid.downsample_at(choice)
        return choice, Affine.scaling(view.downsample[0] / cx, view.downsample[1] / cy), min(dx / cx, dy / cy)

    def _colour(self, draw: Draw | None, slot: NDArray[np.uint8], *, done: bool) -> None:
        """Apply the view's colours, unless already ``done``, and the tile's in one program, with one rounding."""
        own = () if draw is None else draw.operations
        if not own:
            if not done and self._program is not None:
                self._program.apply(slot, slot)
            return
        shared = () if done or self._program is None else self._program.operations
        if draw is not None and draw.lowered:
            ColourProgram(shared + own, idle=self._idle).apply(slot, slot)
        else:
            image = pyvips.Image.new_from_array(slot).copy(interpretation="srgb")
            size = Size(image.width, image.height)
            both = Draw(size=size, canvas=size, operations=shared + own)
            slot[:] = apply_lazy(image, both).numpy()

    @cached_property
    def _program(self) -> ColourProgram | None:
        """The colours of the view, compiled once; None without colours, or if the graph applies them."""
        draw = self.view.draw
        if draw is None or not draw.operations or not draw.lowered:
            return None
        return ColourProgram(draw.operations)

    @cached_property
    def _graph(self) -> Any:
        """The view's libvips graph, if one of its transforms runs only as a graph; else None."""
        draw = self.view.draw
        return None if draw is None or draw.lowered else self.view.image

    def _read_lazily(self, x: float, y: float, draw: Draw | None, slot: NDArray[np.uint8]) -> None:
        if draw is not None and draw.moves:
            names = ", ".join(o.name for o in self.view.draw.operations if isinstance(o, Opaque))  # type: ignore[union-attr]
            raise ConfigError(
                f"{names} runs lazily only, and tiles of such a view cannot be moved",
                slide=self.view.slide.name,
                remedy="put the geometry into the slide's transform, or leave the other out",
            )
        # The graph gets each decoding error once, and black afterwards; a plain read raises it every time.
        self._read_drawn(x, y, None, slot)
        left, upper = math.floor(x), math.floor(y)
        if (x, y) == (left, upper):
            self._crop(left, upper, slot)
            return
        side = self.tile_size
        around = np.empty((side + 1, side + 1, 3), np.uint8)
        self._crop(left, upper, around)
        box = (x - left, y - upper, x - left + side, y - upper + side)
        slot[:] = np.asarray(Image.fromarray(around).resize((side, side), Image.Resampling.BILINEAR, box=box))

    def _crop(self, x: int, y: int, slot: NDArray[np.uint8]) -> None:
        """Write whole pixels of the graph into ``slot``."""
        height, width = slot.shape[:2]
        inside = Rect(x, y, width, height).intersect(Rect(0, 0, *self.view.size))
        slot[:] = self.view.outside_level
        if inside.width and inside.height:
            top, left = inside.y - y, inside.x - x
            try:
                pixels = self._graph.crop(*inside).numpy()
            except pyvips.Error as error:
                reason = " ".join(str(error).split())
                raise CorruptSlideError(
                    f"pixels near view px ({x}, {y}) cannot be decoded ({reason})",
                    slide=self.view.slide.name,
                    remedy="copy the slide again, or leave this region out",
                ) from error
            slot[top : top + inside.height, left : left + inside.width] = pixels


def _is_shift(affine: Affine) -> bool:
    """Return whether an affine is only a shift by whole pixels."""
    linear = (affine.a, affine.b, affine.d, affine.e)
    is_identity = all(abs(value - one) < 1e-9 for value, one in zip(linear, (1, 0, 0, 1), strict=True))
    return is_identity and all(abs(shift - round(shift)) < 1e-6 for shift in (affine.c, affine.f))
