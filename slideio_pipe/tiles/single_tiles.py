"""Read tiles one by one: those that no compiled program makes, by the sampler or through the view's libvips graph."""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, cast

import numpy as np
import pyvips
from numpy.typing import NDArray
from PIL import Image

from slideio_pipe.augment.draw import Draw
from slideio_pipe.augment.draws import Draws
from slideio_pipe.augment.executors.cpu import ColourProgram
from slideio_pipe.augment.executors.cpu_steps import Scratch
from slideio_pipe.augment.executors.lazy import apply_lazy
from slideio_pipe.augment.operations import Opaque, Operation
from slideio_pipe.augment.own_functions import LiveFunction, live_function, raise_failure
from slideio_pipe.errors import ConfigError, CorruptSlideError
from slideio_pipe.geometry import Affine, Rect, Size, split_position
from slideio_pipe.slides.backends.base import OnTiming
from slideio_pipe.slides.sampling import ON_GRID, Sampler
from slideio_pipe.slides.view import SlideView
from slideio_pipe.tiles.tile_plan import TilePlan, are_shifts

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class TileJob:
    """Tiles to be read."""

    view: SlideView
    corners: NDArray[Any]  # (n, 2) view px, whole or float64
    draws: Draws | None
    colours: bool

    @cached_property
    def plan(self) -> TilePlan:
        """Where each is sampled from; tiles that are whole stored tiles do not need it."""
        return TilePlan.of(self.view, self.corners, None if self.draws is None else self.draws.affines)


class SingleTiles:
    """Reads tiles of one view, each by itself; can be shared by threads.

    Parameters
    ----------
    view : SlideView
    tile_size : int
        Side in view px.
    sampler : Sampler
    on_stage : callable, optional
        As for ``TileReader``.
    """

    def __init__(self, view: SlideView, tile_size: int, sampler: Sampler, on_stage: OnTiming | None) -> None:
        self.view, self.tile_size, self._sampler, self.on_stage = view, tile_size, sampler, on_stage
        self._idle: deque[Scratch] = deque()

    def read(self, job: TileJob, k: int, slot: NDArray[np.uint8], *, scattered: bool) -> None:
        """Write tile ``k`` of a job into ``slot``; ``scattered`` says whether few tiles need the same stored tiles."""
        x, y = job.corners[k].tolist()
        draw = None if job.draws is None else job.draws[k]
        lazily = job.colours and self.graph is not None
        if lazily:
            self._read_lazily(job, k, draw, slot)
        elif not self.view.moves and (draw is None or not draw.moves):
            left, top = math.floor(x), math.floor(y)
            rect = Rect(left, top, self.tile_size, self.tile_size)
            self._sampler.plain(self.view.choice, rect, slot, scattered=scattered, offset=(x - left, y - top))
        else:
            self._read_drawn(job, k, slot)
        if job.colours:
            begun = time.perf_counter() if self.on_stage else 0.0
            self.colour(draw, slot, done=lazily)
            if self.on_stage:
                self.on_stage("augment", begun, time.perf_counter())

    def _read_drawn(self, job: TileJob, k: int, slot: NDArray[np.uint8]) -> None:
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

    def colour(self, draw: Draw | None, slot: NDArray[np.uint8], *, done: bool) -> None:
        """Apply the view's colours, unless already ``done``, and the tile's in one program, with one rounding."""
        own = () if draw is None else draw.operations
        if not own:
            if not done and self.program is not None:
                self.program.apply(slot, slot)
            return
        shared = () if done or self.program is None else self.program.operations
        if draw is not None and draw.lowered:
            ColourProgram(shared + own, idle=self._idle).apply(slot, slot)
        else:
            for function, group in groupby(shared + own, key=_function_of):
                self._colour_part(function, tuple(group), slot)

    def _colour_part(self, function: LiveFunction | None, operations: tuple[Operation, ...], slot: Pixels) -> None:
        """Apply a user's function, or the operations between two of them."""
        if function is not None:
            for each in operations:
                slot[:] = function(slot, cast(Opaque, each).seed)
            return
        image = pyvips.Image.new_from_array(slot).copy(interpretation="srgb")
        size = Size(image.width, image.height)
        slot[:] = apply_lazy(image, Draw(size=size, canvas=size, operations=operations)).numpy()

    @cached_property
    def program(self) -> ColourProgram | None:
        """The colours of the view, compiled once; None without colours, or if the graph applies them."""
        draw = self.view.draw
        if draw is None or not draw.operations or not draw.lowered:
            return None
        return ColourProgram(draw.operations)

    @cached_property
    def graph(self) -> Any:
        """The view's libvips graph, if one of its transforms runs only as a graph; else None."""
        draw = self.view.draw
        return None if draw is None or draw.lowered else self.view.image

    def _read_lazily(self, job: TileJob, k: int, draw: Draw | None, slot: NDArray[np.uint8]) -> None:
        x, y = job.corners[k].tolist()
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
            operations = () if self.view.draw is None else self.view.draw.operations
            try:
                pixels = self.graph.crop(*inside).numpy()
                raise_failure(operations)
            except pyvips.Error as error:
                raise_failure(operations)
                reason = " ".join(str(error).split())
                raise CorruptSlideError(
                    f"pixels near view px ({x}, {y}) cannot be decoded ({reason})",
                    slide=self.view.slide.name,
                    remedy="copy the slide again, or leave this region out",
                ) from error
            slot[top : top + inside.height, left : left + inside.width] = pixels


def _function_of(operation: Operation) -> LiveFunction | None:
    """Return the user's function of an operation, if it is one."""
    return live_function(operation) if isinstance(operation, Opaque) else None
