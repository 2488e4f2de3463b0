"""All views of each tile as one bag: a tile of it is the pixels of the views, one after the other.

The views of some tiles are read together, so that their stored tiles are decoded once for all of them, once for each
scale that they need.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slideio_pipe.augment.draws import Draws
from slideio_pipe.augment.operation_columns import OperationColumns
from slideio_pipe.errors import BagFormatError, ConfigError, CorruptSlideError
from slideio_pipe.slides.backends.base import OnTiming
from slideio_pipe.tiles.bag import ArrayLikeBag
from slideio_pipe.tiles.drawn_bag import DrawnBag
from slideio_pipe.tiles.multi_crop import MultiCrop, ViewKind
from slideio_pipe.tiles.read_plan import ReadPlan
from slideio_pipe.tiles.reader import READ_RUN, empty_tiles, in_threads

_Pixels = NDArray[np.uint8]
_Positions = NDArray[np.int64]
# Tiles whose plans are kept.
_KEPT = 4096


class _Planned(NamedTuple):
    """The plans of some tiles, one for each kind; views of tile k are rows k·views to (k + 1)·views."""

    plans: tuple[ReadPlan, ...]
    colours: bool


class ViewsBag(ArrayLikeBag):
    """The views of the tiles of a bag, packed: (N, pixels of all views, 1, 3) uint8.

    Parameters
    ----------
    bag : TileBag or AugmentedBag
        Without a transform per tile. Its seed and epoch are those of the views.
    views : MultiCrop
    """

    def __init__(self, bag: DrawnBag, views: MultiCrop) -> None:
        self.bag, self.views = bag, views
        self._kinds = [(kind, views.bags_of(bag, kind)) for kind in views.kinds]
        self.name, self.label, self.patient, self.view_mpp = bag.name, bag.label, bag.patient, bag.view_mpp
        self.coords, self.grid_index, self.tissue = bag.coords, bag.grid_index, bag.tissue
        self.shape = (len(bag), *views.packed_shape)
        self.on_stage: OnTiming | None = None  # receives the timing of stages; set it before the first read
        # Tiles in the order in which they were planned: the plans of each, and its place there.
        self._planned: OrderedDict[int, tuple[_Planned, int]] = OrderedDict()

    def storage_order(self, indices: ArrayLike) -> _Positions:
        """Return ``indices`` in the order that decodes every stored tile once."""
        return self.bag.storage_order(indices)

    def plan_ahead(self, indices: ArrayLike, *, colours: bool = True) -> None:
        """Draw the views of tiles (n,) that will be read, and plan their reading."""
        positions = self._positions(indices)
        if not len(positions):
            return
        planned = self._plan(positions, colours)
        for place, tile in enumerate(positions.tolist()):
            self._planned.pop(tile, None)  # so that it is the newest
            self._planned[tile] = (planned, place)
        while len(self._planned) > max(_KEPT, len(positions)):
            self._planned.popitem(last=False)

    def _plan(self, positions: _Positions, colours: bool) -> _Planned:
        plans = []
        for _, bags in self._kinds:
            bags[0].on_stage = self.on_stage
            drawn = self._draws(bags, positions)
            plan = bags[0].plan_draws(np.repeat(positions, len(bags)), drawn, colours=colours)
            assert plan is not None, "views are drawn"
            plans.append(plan)
        return _Planned(tuple(plans), colours)

    def _draws(self, bags: list[DrawnBag], positions: _Positions) -> Draws:
        drawn = [bag.draws(positions) for bag in bags]
        return Draws.in_turns([draws for draws in drawn if draws is not None])

    def read(self, indices: ArrayLike, out: _Pixels | None = None, *, threads: int = 1) -> _Pixels:
        """Return tiles ``indices`` (n,), each the pixels of its views, in ``out`` (n, pixels, 1, 3) uint8 if given.

        Raises
        ------
        CorruptSlideError, BagFormatError
            A tile cannot be decoded.
        """
        return self._read(indices, out, threads, colours=True)

    def read_without_colours(self, indices: ArrayLike, out: _Pixels | None = None, *, threads: int = 1) -> _Pixels:
        """Return tiles as ``read`` does, without drawn colours, to be coloured on a device."""
        return self._read(indices, out, threads, colours=False)

    def colour_columns(self, indices: ArrayLike) -> list[OperationColumns]:
        """Return the colour operations of tiles (n,), of each kind those of its n · views views."""
        positions = self._positions(indices)
        view = () if self.bag.view.draw is None else self.bag.view.draw.operations
        found = []
        for _, bags in self._kinds:
            drawn = self._draws(bags, positions)
            found.append(OperationColumns(drawn.kinds, drawn.numbers).after(OperationColumns.of([view], shared=True)))
        return found

    @property
    def host_only(self) -> tuple[str, ...]:
        """Names of the transforms that run only as libvips graphs, not on a device."""
        return tuple(dict.fromkeys(name for _, bags in self._kinds for bag in bags for name in bag.host_only))

    def _read(self, indices: ArrayLike, out: _Pixels | None, threads: int, *, colours: bool) -> _Pixels:
        positions = self._positions(indices)
        shape = (len(positions), *self.shape[1:])
        target = empty_tiles(shape, self.name) if out is None else out
        if target.shape != shape or target.dtype != np.uint8 or not target.flags.c_contiguous:
            reason = f"out has shape {target.shape} and type {target.dtype}, or is not C-contiguous"
            raise ConfigError(reason, slide=self.name, remedy=f"pass uint8 {shape}")
        if not len(positions):
            return target
        # What raises is read again without the plan, which a damaged neighbour may have changed.
        with suppress(CorruptSlideError, BagFormatError):
            self._read_planned(positions, target, threads, colours)
            return target
        for (_, bags), (_, slots) in zip(self._kinds, self._places(target), strict=True):
            drawn, each = self._draws(bags, positions), np.repeat(positions, len(bags))
            slots[:] = bags[0].read_draws(each, drawn, threads=threads, colours=colours).reshape(slots.shape)
        return target

    def _read_planned(self, positions: _Positions, target: _Pixels, threads: int, colours: bool) -> None:
        planned, places = self._known(positions, colours)
        pieces, first = self._places(target), planned.plans[0]
        views = len(self._kinds[0][1])
        order = sorted(range(len(places)), key=lambda k: first.rank[places[k] * views])
        runs = [order[start : start + READ_RUN] for start in range(0, len(order), READ_RUN)]
        in_threads([partial(_read_run, planned, run, places, pieces) for run in runs], threads)

    def _known(self, positions: _Positions, colours: bool) -> tuple[_Planned, list[int]]:
        """Return the plans that have all of the tiles, made if needed, and the places of the tiles there."""
        found = [self._planned.get(tile) for tile in positions.tolist()]
        first = found[0]
        places = [each[1] for each in found if each is not None and first is not None and each[0] is first[0]]
        if first is None or len(places) < len(positions) or first[0].colours != colours:
            return self._plan(positions, colours), list(range(len(positions)))
        return first[0], places

    def _places(self, target: _Pixels) -> list[tuple[ViewKind, _Pixels]]:
        """Return the memory of each kind in packed tiles: (n, views, side, side, 3)."""
        pieces, start = [], 0
        for kind, _ in self._kinds:
            part = target[:, start : start + kind.pixels, 0]
            pieces.append((kind, part.reshape(len(target), len(kind.transforms), kind.side, kind.side, 3)))
            start += kind.pixels
        return pieces

    def provenance(self) -> dict[str, Any]:
        """Return the provenance of the bag, and how its views are drawn, JSON values."""
        drawn = {"views": self.views.to_dict(), "seed": self.bag.seed, "epoch": self.bag.epoch}
        made: dict[str, Any] = self.bag.provenance()
        return made | {"multi_crop": drawn}

    def __reduce__(self) -> tuple[Any, ...]:
        return ViewsBag, (self.bag, self.views)

    def __repr__(self) -> str:
        return f"ViewsBag({self.bag!r}, {self.views!r})"


def _read_run(planned: _Planned, run: list[int], places: list[int], pieces: list[tuple[ViewKind, _Pixels]]) -> None:
    """Read the views of some tiles, by their positions among those that are read."""
    for plan, (kind, pixels) in zip(planned.plans, pieces, strict=True):
        views = range(len(kind.transforms))
        rows = [places[k] * len(views) + view for k in run for view in views]
        plan.read(rows, [pixels[k, view] for k in run for view in views])
