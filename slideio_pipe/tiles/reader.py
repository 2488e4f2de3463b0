"""Read tiles at coordinates as pixels; all tiles are read here.

A reader gets any list of tiles. It reads them in storage order, so that a stored tile that several tiles need is
decoded once, and writes each into its slot of the caller's array. Threads share the decoded stored tiles.

The affines of a tile's own draw and of its view are multiplied to one, sampled from the coarsest level that is fine
enough (``tile_plan``). Tiles that are sampled from stored JPEG tiles are made by compiled programs, geometry and
colours in one call per run (``block_programs``). Others are made one by one: levels that are not JPEG, views at a
fractional resolution, corners between pixels, transforms without a compiled form, systems without the library.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import pyvips
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from slideio_pipe.augment.draw import Draw
from slideio_pipe.augment.draws import Draws
from slideio_pipe.augment.executors.compiled import compiled, have_compiled_form
from slideio_pipe.augment.executors.cpu import ColourProgram
from slideio_pipe.augment.executors.cpu_steps import Scratch
from slideio_pipe.augment.executors.lazy import apply_lazy
from slideio_pipe.augment.operations import Opaque
from slideio_pipe.compiled.library import load
from slideio_pipe.compiled.records import BY_COPYING, BY_SAMPLING, BY_SHRINKING, OP
from slideio_pipe.errors import ConfigError, CorruptSlideError
from slideio_pipe.geometry import Affine, LevelChoice, Rect, Size, split_position, whole_where_nearly
from slideio_pipe.images.vips import check_process
from slideio_pipe.slides.backends.base import OnTiming
from slideio_pipe.slides.block_programs import READ_RUN, BlockPrograms, Placed
from slideio_pipe.slides.sampling import ON_GRID, Sampler, blur_of
from slideio_pipe.slides.view import SlideView
from slideio_pipe.tiles.tile_plan import TilePlan, are_shifts

# Decoded px of a tile that a compiled program filters; those of larger ones are fetched in bands.
_FILTERED_PX = 2_000_000


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


class _Job(NamedTuple):
    """One read."""

    corners: NDArray[Any]  # (n, 2) view px, whole or float64
    draws: Draws | None
    plan: TilePlan
    target: NDArray[np.uint8]
    colours: bool


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
        draws = Draws.of(draws) if draws else None
        if draws is not None and (draws.canvases != draws.canvases[0]).any():
            raise ConfigError(
                "the tile transform draws tiles of different sizes",
                slide=self.view.slide.name,
                remedy="end it with Resize(height, width) or RandomResizedCrop(size)",
            )
        corners = whole_where_nearly(np.asarray(origins).reshape(-1, 2))
        canvas = Size(*draws.canvases[0].tolist()) if draws else Size(self.tile_size, self.tile_size)
        shape = (len(corners), canvas.height, canvas.width, 3)
        target = empty_tiles(shape, self.view.slide.name) if out is None else out
        flags = target.flags
        if target.shape != shape or target.dtype != np.uint8 or not (flags.c_contiguous and flags.writeable):
            raise ConfigError(
                f"out has shape {target.shape} and type {target.dtype}, or is not C-contiguous and writeable",
                slide=self.view.slide.name,
                remedy=f"pass uint8 {shape}",
            )

        if len(corners):
            job = _Job(corners, draws, self._plan(corners, draws), target, colours)
            _in_threads(self._runs(job), threads)
        return target

    def _plan(self, corners: NDArray[Any], draws: Draws | None) -> TilePlan:
        return TilePlan.of(self.view, corners, None if draws is None else draws.affines)

    def _runs(self, job: _Job) -> list[Callable[[], None]]:
        """Return what makes the tiles, a run of them each: whole stored tiles, compiled programs, the rest."""
        order = self.storage_order(job.corners)
        plain = job.draws is None and not self.view.moves and not (job.colours and self._graph is not None)
        blocks = self._sampler.blocks(self.view.choice, job.corners, self.tile_size) if plain else None
        off_grid = plain and (blocks is None or None in blocks.places)
        scattered = off_grid and self._sampler.scattered(self.view.choice, job.corners, self.tile_size)
        compiled = self._compiled(job)
        if blocks is not None:
            compiled &= np.array([place is None for place in blocks.places])
        singly, together = order[~compiled[order]], order[compiled[order]]

        def read_singly(positions: NDArray[np.int64]) -> None:
            for k in positions.tolist():
                place = None if blocks is None else blocks.places[k]
                if blocks is None or place is None:
                    self._read_tile(job, k, scattered)
                    continue
                self._sampler.block(blocks, place, job.target[k])
                if job.colours:
                    self._colour(None, job.target[k], done=False)

        runs: list[Callable[[], None]] = [
            partial(read_singly, singly[start : start + READ_RUN]) for start in range(0, len(singly), READ_RUN)
        ]
        if len(together):
            programs = self._programs(job, together, scattered)
            runs += [partial(programs.run, first, count) for first, count in programs.runs()]
        return runs

    def _compiled(self, job: _Job) -> NDArray[np.bool_]:
        """Return which tiles are sampled from stored tiles and coloured by compiled programs."""
        n, plan = len(job.corners), job.plan
        fits = np.zeros(n, bool)
        if load() is None or (job.colours and (self._graph is not None or not self._view_is_compiled)):
            return fits
        for level in set(plan.levels.tolist()):
            if self.view.slide.stored_tiles(level) is not None:
                fits |= plan.levels == level
        # A shift of filtered pixels is one step, another affine of them is two. Where a tile reaches very many pixels,
        # they are filtered in bands.
        left = plan.shrinks / self._reduces(plan)[:, None]
        fits &= (left == 1).all(axis=1) | (plan.shifts & (left.prod(axis=1) * self.tile_size**2 < _FILTERED_PX))
        if not self.view.moves and job.corners.dtype.kind == "f":  # pixels of the tile begin at its own corner
            fits &= (job.corners == np.floor(job.corners)).all(axis=1)
        if job.colours and job.draws is not None:
            fits &= have_compiled_form(job.draws.kinds)
        return fits

    def _reduces(self, plan: TilePlan) -> NDArray[np.int64]:
        """Return the decoder's part (n,) of each tile's shrink."""
        reduces = np.ones(len(plan.levels), np.int64)
        pairs = zip(plan.levels.tolist(), map(tuple, plan.shrinks.tolist()), strict=True)
        for level, shrink in set(pairs):
            own = (plan.levels == level) & (plan.shrinks == shrink).all(axis=1)
            reduces[own] = self._sampler.decoder_shrink(LevelChoice(level, shrink))
        return reduces

    def _programs(self, job: _Job, tiles: NDArray[np.int64], scattered: bool) -> BlockPrograms:
        """Return the programs of some tiles, which are run in this order."""
        programs, plan, target = load(), job.plan, job.target
        assert programs is not None, "only compiled tiles have programs"
        sigmas = np.array([blur_of(shrink) for shrink in plan.rest[tiles].tolist()])
        reduces, shrinks, shifts = self._reduces(plan)[tiles], plan.shrinks[tiles], plan.shifts[tiles]
        decoded = (shrinks == reduces[:, None]).all(axis=1)
        ways = np.where(shifts, np.where(decoded, BY_COPYING, BY_SHRINKING), BY_SAMPLING)
        placed = Placed(plan.levels[tiles], reduces, shrinks, plan.affines[tiles], ways, sigmas)
        canvas = Size(target.shape[2], target.shape[1])
        addresses = target.ctypes.data + target.strides[0] * tiles.astype(np.uint64)
        ops = self._tile_operations(job, tiles) if job.colours else None
        return BlockPrograms(programs, self._sampler, placed, canvas, addresses, ops, scattered=scattered)

    def _tile_operations(self, job: _Job, tiles: NDArray[np.int64]) -> NDArray[Any]:
        """Return the colour operations of tiles, (n, m) ``records.OP``, the view's first."""
        parts = []
        if self._program is not None and self._program.chain is not None:
            parts.append(np.tile(self._program.chain, (len(tiles), 1)))
        if job.draws is not None:
            parts.append(compiled(job.draws.kinds[tiles], job.draws.numbers[tiles]))
        return np.concatenate(parts, axis=1) if parts else np.zeros((len(tiles), 0), OP)

    @cached_property
    def _view_is_compiled(self) -> bool:
        """Whether the view's colours, if any, have a compiled form."""
        return self._program is None or self._program.chain is not None

    def storage_order(self, origins: NDArray[Any]) -> NDArray[np.int64]:
        """Return positions sorted by row of stored tiles, then by x: every stored tile is decoded once."""
        view = self.view
        plain = view.to_plain.apply(origins + 0.5 * self.tile_size) if view.draw else origins
        stored = view.slide.tile_sizes[view.level].height / view.choice.shrink[1]
        rows = np.floor_divide(plain[:, 1], max(1.0, stored))
        return np.lexsort((plain[:, 1], plain[:, 0], rows)).astype(np.int64)

    def _read_tile(self, job: _Job, k: int, scattered: bool) -> None:
        (x, y), slot = job.corners[k].tolist(), job.target[k]
        draw = None if job.draws is None else job.draws[k]
        lazily = job.colours and self._graph is not None
        if lazily:
            self._read_lazily(job, k, draw)
        elif not self.view.moves and (draw is None or not draw.moves):
            left, top = math.floor(x), math.floor(y)
            rect = Rect(left, top, self.tile_size, self.tile_size)
            self._sampler.plain(self.view.choice, rect, slot, scattered=scattered, offset=(x - left, y - top))
        else:
            self._read_drawn(job, k, slot)
        if job.colours:
            begun = time.perf_counter() if self.on_stage else 0.0
            self._colour(draw, slot, done=lazily)
            if self.on_stage:
                self.on_stage("augment", begun, time.perf_counter())

    def _read_drawn(self, job: _Job, k: int, slot: NDArray[np.uint8]) -> None:
        """Sample a tile through the product of its own affine and the view's: one interpolation."""
        plan, (x, y) = job.plan, job.corners[k].tolist()
        choice, affine = plan.choice(k), plan.affine(k)
        # The sampled pixels begin at the tile's start, so that a flip of the tile is exact.
        offset = ON_GRID
        if not self.view.moves and (x, y) != (math.floor(x), math.floor(y)):
            across, down = (plan.scales[k] * (x, y)).tolist()
            offset = (split_position(across)[1], split_position(down)[1])
        shift = Affine.translation(-offset[0], -offset[1]) @ affine
        if are_shifts(np.array([shift]))[0]:
            rect = Rect(round(shift.c), round(shift.f), slot.shape[1], slot.shape[0])
            self._sampler.plain(choice, rect, slot, offset=offset)
        else:
            self._sampler.drawn(choice, affine, slot, shrink=float(plan.rest[k]), offset=offset)

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

    def _read_lazily(self, job: _Job, k: int, draw: Draw | None) -> None:
        (x, y), slot = job.corners[k].tolist(), job.target[k]
        if draw is not None and draw.moves:
            names = ", ".join(o.name for o in self.view.draw.operations if isinstance(o, Opaque))  # type: ignore[union-attr]
            raise ConfigError(
                f"{names} runs lazily only, and tiles of such a view cannot be moved",
                slide=self.view.slide.name,
                remedy="put the geometry into the slide's transform, or leave the other out",
            )
        # The graph gets each decoding error once, and black afterwards; a plain read raises it every time.
        self._read_drawn(job, k, slot)
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


def _in_threads(runs: Sequence[Callable[[], None]], threads: int) -> None:
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
