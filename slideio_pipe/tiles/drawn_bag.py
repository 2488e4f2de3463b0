"""A bag whose tiles are drawn from a view: one draw for all of them, and one draw per tile."""

from __future__ import annotations

import copy
import json
import time
from abc import abstractmethod
from collections import OrderedDict
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slideio_pipe.augment.draw import Draw
from slideio_pipe.augment.draws import Draws
from slideio_pipe.augment.ending import Ending, joined, split_end
from slideio_pipe.augment.operation_columns import OperationColumns
from slideio_pipe.augment.operations import Opaque, Operation
from slideio_pipe.augment.slide_colour import SlideColour
from slideio_pipe.augment.target_rules import TargetRules, target_params
from slideio_pipe.errors import BagFormatError, ConfigError, CorruptSlideError
from slideio_pipe.geometry import Affine, Size
from slideio_pipe.slides.backends.base import OnTiming
from slideio_pipe.slides.view import SlideView
from slideio_pipe.tiles.bag import ArrayLikeBag
from slideio_pipe.tiles.read_plan import ReadPlan
from slideio_pipe.tiles.reader import TileReader

# A draw is needed for a tile's pixels, colours and labels: recent ones are kept, up to 1 kB each.
_DRAWS_KEPT = 4096


# Seed and epoch of the draws, and whether colours are applied.
_PlanKey = tuple[int, int, bool]


class DrawnBag(ArrayLikeBag):
    """The base class of bags that read square tiles of a view, with a transform per tile.

    Parameters
    ----------
    view : SlideView
        Its draw, if any, is the same for all tiles.
    tile_size : int
        Side of a tile in view px, before its own draw.
    tile_transform : an albumentationsxl transform, optional
        Drawn once per tile.
    seed, epoch : int
        Inputs of the tiles' draws, with the slide's name and the tile's number.
    """

    def __init__(self, view: SlideView, tile_size: int, *, tile_transform: Any, seed: int, epoch: int) -> None:
        tile_transform, ending = split_end(tile_transform)
        if ending is not None:  # kept in the view, so that a pickled bag has it
            view = replace(view, ending=joined(view.ending, ending, view.slide.name))
        self.view, self.tile_size, self.name = view, tile_size, view.slide.name
        self.tile_transform, self.seed, self.epoch = tile_transform, int(seed), int(epoch)
        self.on_stage: OnTiming | None = None  # receives the timing of stages; set it before the first read
        self.keep_stored_tiles = False  # whether another bag reads the same ones; set it before the first read
        # Tiles in the order in which they were drawn: the run of each, and its position there.
        self._drawn: OrderedDict[int, tuple[Draws, int]] = OrderedDict()
        # Likewise tiles that will be read: the plan of each, its row there, and the inputs of its draws and colours.
        self._planned: OrderedDict[int, tuple[ReadPlan, int, _PlanKey]] = OrderedDict()
        self.canvas = Size(tile_size, tile_size) if tile_transform is None else self.draw(0).canvas

    @property
    def ending(self) -> Ending | None:
        """What the transforms do at their end, which a stream does on the device."""
        return self.view.ending

    def draw(self, index: int) -> Draw:
        """Return the draw of the tile transform for tile ``index``; always the same."""
        run, row = self._place(int(index))
        return run[row]

    def _place(self, tile: int) -> tuple[Draws, int]:
        """Return the run that has a tile, and the tile's position there."""
        found = self._drawn.get(tile)
        if found is not None and (found[0].seed, found[0].epoch) == (self.seed, self.epoch):
            return found
        return self._run([tile]), 0

    def redrawn(self, tile_transform: Any, seed: int) -> Self:
        """Return the bag with another transform per tile and another seed; its places and its reader are shared."""
        other = copy.copy(self)
        vars(other).pop("_colour", None)
        DrawnBag.__init__(other, self.view, self.tile_size, tile_transform=tile_transform, seed=seed, epoch=self.epoch)
        other.shape = (len(self), other.canvas.height, other.canvas.width, 3)
        other.on_stage = self.on_stage
        return other

    def plan_ahead(self, indices: ArrayLike, *, colours: bool = True) -> None:
        """Draw tiles (n,) that will be read, and plan their reading: a few tiles take as long as hundreds.

        Raises
        ------
        ConfigError
            The tile transform draws tiles of different sizes.
        """
        positions = self._positions(indices)
        begun = time.perf_counter() if self.on_stage else 0.0
        plan = self._plan(positions, self._draws(positions), colours=colours) if len(positions) else None
        if self.on_stage:
            self.on_stage("augment", begun, time.perf_counter())
        if plan is None:
            return
        key = (self.seed, self.epoch, colours)
        for row, tile in enumerate(positions.tolist()):
            self._planned.pop(tile, None)  # so that it is the newest
            self._planned[tile] = (plan, row, key)
        while len(self._planned) > max(_DRAWS_KEPT, len(positions)):
            self._planned.popitem(last=False)

    def draws(self, indices: ArrayLike) -> Draws | None:
        """Return the draws of tiles (n,); None without a transform per tile.

        Raises
        ------
        ConfigError
            The tile transform draws tiles of different sizes.
        """
        return self._draws(self._positions(indices))

    def plan_draws(self, indices: ArrayLike, draws: Draws, *, colours: bool = True) -> ReadPlan | None:
        """Return how tiles (n,), some of them several times, are read with other draws, one for each."""
        return self._plan(self._positions(indices), draws, colours=colours)

    def read_draws(
        self, indices: ArrayLike, draws: Draws, *, threads: int = 1, colours: bool = True
    ) -> NDArray[np.uint8]:
        """Return tiles (n,), some of them several times, with other draws, one for each: (n, height, width, 3)."""
        return self._read_at(self._positions(indices), draws, None, threads=threads, colours=colours)

    @abstractmethod
    def _plan(self, positions: NDArray[np.int64], draws: Draws | None, *, colours: bool) -> ReadPlan | None:
        """Return how tiles are read; None if they need no plan."""

    def _rows(self, tiles: list[int], colours: bool) -> tuple[ReadPlan, list[int]] | None:
        """Return the plan that has all of the tiles, and their rows; None if there is none."""
        found = [self._planned.get(tile) for tile in tiles]
        first = found[0]
        if first is None or first[2] != (self.seed, self.epoch, colours):
            return None
        rows = [each[1] for each in found if each is not None and each[0] is first[0]]
        return (first[0], rows) if len(rows) == len(tiles) else None

    def _run(self, tiles: list[int]) -> Draws:
        """Return the draws of tiles, which are drawn together unless they are kept from one run."""
        kept = [self._drawn.get(tile) for tile in tiles]
        run = kept[0][0] if kept and kept[0] is not None else None
        rows = [each[1] for each in kept if each is not None and each[0] is run]
        if run is not None and len(rows) == len(tiles) and (run.seed, run.epoch) == (self.seed, self.epoch):
            return run if rows == list(range(len(run))) else run.only(rows)
        run = self._draw(tiles)
        for row, tile in enumerate(tiles):
            self._drawn.pop(tile, None)  # so that it is the newest
            self._drawn[tile] = (run, row)
        while len(self._drawn) > max(_DRAWS_KEPT, len(tiles)):
            self._drawn.popitem(last=False)
        return run

    def _draw(self, tiles: list[int]) -> Draws:
        from slideio_pipe.augment.draw_tiles import draw_tiles

        key: dict[str, Any] = {"seed": self.seed, "epoch": self.epoch, "slide": self.name, "colour": self._colour}
        return draw_tiles(self.tile_transform, tiles=tiles, size=Size(self.tile_size, self.tile_size), **key)

    @cached_property
    def _colour(self) -> SlideColour | None:
        """The slide's own colours, if the tile transform needs them."""
        # albumentationsxl takes three seconds to import, so it is imported only for draws.
        from slideio_pipe.augment.compose import measured

        return measured(self.view.slide, self.tile_transform)

    @property
    def target_rules(self) -> TargetRules:
        """Which boxes and points of tiles are kept: as the tiles' ``Compose`` has it, else the view's.

        Raises
        ------
        ConfigError
            A parameter of the ``Compose`` is impossible, or cannot be followed for annotations.
        """
        return TargetRules.of(*target_params(self.tile_transform)).otherwise(TargetRules.of(*self.view.target_params))

    @cached_property
    def _reader(self) -> TileReader:
        return TileReader(self.view, self.tile_size, on_stage=self.on_stage, keep=self.keep_stored_tiles)

    def read(self, indices: ArrayLike, out: NDArray[np.uint8] | None = None, *, threads: int = 1) -> NDArray[np.uint8]:
        """Return tiles ``indices`` (n,), decoded in storage order into ``out`` (n, H, W, 3) uint8.

        Raises
        ------
        CorruptSlideError, BagFormatError
            A tile cannot be decoded.
        """
        return self._read(indices, out, threads=threads, colours=True)

    @abstractmethod
    def provenance(self) -> dict[str, Any]:
        """Return JSON values from which the bag can be made again; stores keep them."""

    @abstractmethod
    def storage_order(self, indices: ArrayLike) -> NDArray[np.int64]:
        """Return ``indices`` in the order that decodes every stored tile once."""

    @abstractmethod
    def affines(self, indices: ArrayLike) -> list[Affine]:
        """Return one affine for each of tiles ``indices`` (n,), from its px to level-0 px."""

    @abstractmethod
    def _read_at(
        self,
        positions: NDArray[np.int64],
        draws: Draws | None,
        out: NDArray[np.uint8] | None,
        *,
        threads: int,
        colours: bool,
    ) -> NDArray[np.uint8]:
        """Return tiles at ``positions``, of which there is at least one, with their draws."""

    def operations(self, index: int) -> tuple[Operation, ...]:
        """Return every colour operation of tile ``index``, the view's first: those that ``read_uncoloured`` skips."""
        view = () if self.view.draw is None else self.view.draw.operations
        if self.tile_transform is None:
            return view
        run, row = self._place(int(index))
        return view + run.operations(row)

    def colour_columns(self, indices: ArrayLike) -> OperationColumns:
        """Return ``operations`` of tiles (n,) as arrays; one row for all of them without a transform per tile."""
        drawn = () if self.view.draw is None else self.view.draw.operations
        view = OperationColumns.of([drawn], shared=True)
        if self.tile_transform is None:
            return view
        run = self._run(self._positions(indices).tolist())
        return OperationColumns(run.kinds, run.numbers).after(view)

    @property
    def host_only(self) -> tuple[str, ...]:
        """Names of the transforms, of the view or of the tiles, that run only as libvips graphs, not on a device."""
        drawn = () if self.view.draw is None else self.view.draw.operations
        names = [operation.name for operation in drawn if isinstance(operation, Opaque)]
        if self.tile_transform is not None:
            from slideio_pipe.augment.albumentations import name_of, verdict  # imports albumentationsxl
            from slideio_pipe.augment.compose import leaves

            names += [name_of(leaf) for leaf in leaves(self.tile_transform) if verdict(leaf).kind == "opaque"]
        return tuple(dict.fromkeys(names))

    def read_uncoloured(
        self, indices: ArrayLike, out: NDArray[np.uint8] | None = None, *, threads: int = 1
    ) -> NDArray[np.uint8]:
        """Return tiles as ``read`` does, with geometry but without drawn colours, to be coloured on a device."""
        return self._read(indices, out, threads=threads, colours=False)

    def _read(
        self, indices: ArrayLike, out: NDArray[np.uint8] | None, *, threads: int, colours: bool
    ) -> NDArray[np.uint8]:
        positions = self._positions(indices)
        planned = self._rows(positions.tolist(), colours) if self._planned and positions.size else None
        if planned is not None:
            # What raises is read again below, without the plan.
            with suppress(CorruptSlideError, BagFormatError):
                return self._reader.read_planned(*planned, out, threads=threads)
        begun = time.perf_counter() if self.on_stage else 0.0
        draws = self._draws(positions)
        if self.on_stage and draws:
            self.on_stage("augment", begun, time.perf_counter())
        if not positions.size:
            return np.empty((0, *self.shape[1:]), np.uint8) if out is None else out
        return self._read_at(positions, draws, out, threads=threads, colours=colours)

    def _draws(self, positions: NDArray[np.int64]) -> Draws | None:
        if self.tile_transform is None:
            return None
        draws = self._run(positions.tolist())
        if (draws.canvases != self.canvas).any():
            raise ConfigError(
                "the tile transform draws tiles of different sizes",
                slide=self.name,
                remedy="end it with Resize(height, width) or RandomResizedCrop(size)",
            )
        return draws

    def _drawn_affines(self, positions: NDArray[np.int64], to_level0: list[Affine]) -> list[Affine]:
        """Return the affines from drawn tiles' px, from those of the tiles' px before their draws."""
        draws = self._draws(positions)
        if draws is None:
            return to_level0
        drawn = (Affine(*values).inverse() for values in draws.affines.tolist())
        return [affine @ from_drawn for affine, from_drawn in zip(to_level0, drawn, strict=True)]

    def _tile_provenance(self) -> dict[str, Any] | None:
        """Return the tile transform as serialised by albumentationsxl, and the inputs of its draws."""
        if self.tile_transform is None:
            return None
        written = self.tile_transform.to_dict()["transform"]
        return {"transform": json.loads(json.dumps(written)), "seed": self.seed, "epoch": self.epoch}
