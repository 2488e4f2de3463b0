"""Read tiles at coordinates as pixels; all tiles are read here.

A reader gets any list of tiles. It reads them in storage order, so that a stored tile that several tiles need is
decoded once, and writes each into its slot of the caller's array. Threads share the decoded stored tiles.

The affines of a tile's own draw and of its view are multiplied to one, sampled from the coarsest level that is fine
enough (``tile_plan``). How a tile is made is decided for all tiles of a read at once (``read_plan``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slideio_pipe.augment.draw import Draw
from slideio_pipe.augment.draws import Draws
from slideio_pipe.compiled.library import Slots
from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import whole_where_nearly
from slideio_pipe.images.vips import check_process
from slideio_pipe.slides.backends.base import OnTiming
from slideio_pipe.slides.sampling import Sampler
from slideio_pipe.slides.view import SlideView
from slideio_pipe.tiles.read_plan import ReadPlan
from slideio_pipe.tiles.single_tiles import SingleTiles, TileJob

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
        Called with ("read" | "decode" | "fallback" | "program" | "resample" | "augment", start, end) in the thread of
        the work; ``time.perf_counter`` seconds.
    keep : bool
        Whether stored tiles that are whole tiles of the view are kept decoded, for another reader of the same level.

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

    def __init__(
        self, view: SlideView, tile_size: int, *, on_stage: OnTiming | None = None, keep: bool = False
    ) -> None:
        self.view, self.tile_size, self.on_stage, self._keep = view, tile_size, on_stage, keep
        self._sampler = Sampler(view.slide, on_stage, outside=view.outside_level)
        self._singles = SingleTiles(view, tile_size, self._sampler, on_stage)

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
        plan = self.plan(origins, draws=draws, colours=colours)
        if out is not None and plan is not None and not out.flags.c_contiguous:
            raise self._wrong_array(out, self._shape(plan, len(plan.rank)))
        if plan is None:
            return np.empty((0, self.tile_size, self.tile_size, 3), np.uint8) if out is None else out
        return self.read_planned(plan, range(len(plan.rank)), out, threads=threads)

    def read_planned(
        self, plan: ReadPlan, rows: Sequence[int], out: NDArray[np.uint8] | None = None, *, threads: int = 1
    ) -> NDArray[np.uint8]:
        """Read tiles ``rows`` of a plan into ``out``, as ``read`` does; each tile must be C-contiguous."""
        check_process()
        shape = self._shape(plan, len(rows))
        target = empty_tiles(shape, self.view.slide.name) if out is None else out
        contiguous = target[:1].flags.c_contiguous  # the tiles of one scale are not neighbours in memory
        if target.shape != shape or target.dtype != np.uint8 or not (contiguous and target.flags.writeable):
            raise self._wrong_array(target, shape)
        if len(rows) == 1:
            plan.read(rows, [target[0]])
            return target
        order = sorted(range(len(rows)), key=lambda k: plan.rank[rows[k]])
        runs = [order[start : start + READ_RUN] for start in range(0, len(order), READ_RUN)]
        jobs = [partial(plan.read, [rows[k] for k in run], _slots(target, run)) for run in runs]
        in_threads(jobs, threads)
        return target

    @staticmethod
    def _shape(plan: ReadPlan, count: int) -> tuple[int, ...]:
        return count, plan.canvas.height, plan.canvas.width, 3

    def _wrong_array(self, out: NDArray[Any], shape: tuple[int, ...]) -> ConfigError:
        return ConfigError(
            f"out has shape {out.shape} and type {out.dtype}, or is not C-contiguous and writeable",
            slide=self.view.slide.name,
            remedy=f"pass uint8 {shape}",
        )

    def plan(self, origins: ArrayLike, *, draws: Sequence[Draw] | None = None, colours: bool = True) -> ReadPlan | None:
        """Return how tiles at ``origins`` are made, of which any can be read later; None if there is none.

        Parameters, and the errors of wrong ones, are those of ``read``.
        """
        check_process()
        corners = whole_where_nearly(np.asarray(origins).reshape(-1, 2))
        if not len(corners):
            return None
        arrays = Draws.of(draws) if draws else None
        if arrays is not None and (arrays.canvases != arrays.canvases[0]).any():
            raise ConfigError(
                "the tile transform draws tiles of different sizes",
                slide=self.view.slide.name,
                remedy="end it with Resize(height, width) or RandomResizedCrop(size)",
            )
        job = TileJob(self.view, corners, arrays, colours)
        return ReadPlan(self._singles, self._sampler, job, self.storage_order(corners), keep=self._keep)

    def storage_order(self, origins: NDArray[Any]) -> NDArray[np.int64]:
        """Return positions sorted by row of stored tiles, then by x: every stored tile is decoded once."""
        if len(origins) == 1:
            return np.zeros(1, np.int64)
        view = self.view
        plain = view.to_plain.apply(origins + 0.5 * self.tile_size) if view.draw else origins
        stored = view.slide.tile_sizes[view.level].height / view.choice.shrink[1]
        rows = np.floor_divide(plain[:, 1], max(1.0, stored))
        return np.lexsort((plain[:, 1], plain[:, 0], rows)).astype(np.int64)


def _slots(target: NDArray[np.uint8], run: list[int]) -> Slots:
    """Return the places of a run of tiles in ``target``: one array if they are neighbours in order and in memory."""
    first, last = run[0], run[-1]
    neighbours = target.flags.c_contiguous and run == list(range(first, last + 1))
    return target[first : last + 1] if neighbours else [target[k] for k in run]


def in_threads(runs: Sequence[Callable[[], None]], threads: int) -> None:
    """Call every function, in that many threads; raise the error of the first that fails."""
    if threads <= 1 or len(runs) <= 1:
        for run in runs:
            run()
        return
    with ThreadPoolExecutor(min(threads, len(runs)), thread_name_prefix="slideio-read") as pool:
        futures = [pool.submit(run) for run in runs]
        try:
            for future in futures:
                future.result()
        except BaseException:
            for future in futures:
                future.cancel()
            raise
