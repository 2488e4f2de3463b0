"""How each tile of a read is made, decided for all of them at once; then any of them can be made, by any thread.

Tiles that are sampled from stored JPEG tiles are made by compiled programs, geometry and colours in one call for
several tiles. Tiles that are whole stored tiles are decoded into their place. Others are made one by one: levels that
are not JPEG, corners between pixels, geometry at a fractional resolution, transforms without a compiled form, systems
without the library.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.augment.executors.compiled import compiled, have_compiled_form
from slideio_pipe.compiled.library import Slots, load
from slideio_pipe.compiled.records import BY_COPYING, BY_SAMPLING, BY_SHRINKING, OP
from slideio_pipe.geometry import LevelChoice, Size
from slideio_pipe.slides.block_programs import BlockPrograms, Placed
from slideio_pipe.slides.sampling import Sampler, blurs_of
from slideio_pipe.tiles.single_tiles import SingleTiles, TileJob
from slideio_pipe.tiles.tile_plan import TilePlan

# Decoded px of a tile that a compiled program filters; those of larger ones are fetched in bands.
_FILTERED_PX = 2_000_000
# Up to this many tiles that are only copied are made one by one: making their programs takes longer.
_FEW = 4


class ReadPlan:
    """The tiles of one read, planned; can be shared by threads.

    Parameters
    ----------
    singles : SingleTiles
    sampler : Sampler
    job : TileJob
        Of at least one tile.
    order : (n,) int64
        The tiles in storage order.
    keep : bool
        Whether whole stored tiles are kept decoded.

    Attributes
    ----------
    canvas : Size
        Of the tiles, px.
    rank : list of int
        Place of each tile in storage order.
    """

    def __init__(
        self, singles: SingleTiles, sampler: Sampler, job: TileJob, order: NDArray[np.int64], *, keep: bool = False
    ) -> None:
        self._view, self._singles, self._sampler, self._job = singles.view, singles, sampler, job
        self.rank: list[int] = np.argsort(order).tolist() if len(order) > 1 else [0]
        side = singles.tile_size
        self.canvas = Size(side, side) if job.draws is None else Size(*job.draws.canvases[0].tolist())
        plain = job.draws is None and not self._view.moves and not (job.colours and singles.graph is not None)
        self._blocks = sampler.blocks(self._view.choice, job.corners, side) if plain and not keep else None
        if self._blocks is not None and self._blocks.overlap:  # each stored tile is decoded once, for all of them
            self._blocks = None
        off_grid = plain and (self._blocks is None or None in self._blocks.places)
        self._scattered = off_grid and not keep and sampler.scattered(self._view.choice, job.corners, side)
        # The number of each tile's program; -1 for tiles that have none.
        self._numbers = [-1] * len(job.corners)
        self._together: BlockPrograms | None = None
        # Few tiles that are only copied: the same bytes in less time.
        few = plain and len(job.corners) <= _FEW and self._reduce == self._view.choice.shrink
        if (off_grid or not plain) and not few and self._can_compile(job):
            self._compile(job)

    def read(self, rows: Sequence[int], slots: Slots) -> None:
        """Write tiles ``rows`` into ``slots``, one C-contiguous (height, width, 3) array for each.

        Raise CorruptSlideError if a tile cannot be decoded.
        """
        whole = [] if self._blocks is None else [k for k, row in enumerate(rows) if self._blocks.places[row]]
        if len(whole) == len(rows):
            self._read_whole(rows, slots)
            return
        if whole:
            self._read_whole([rows[k] for k in whole], [slots[k] for k in whole])
        numbers: list[int] = [self._numbers[row] for row in rows]
        if self._together is not None and min(numbers) >= 0:
            self._together.run(numbers, slots)
            return
        numbers, targets = [], []
        for row, slot in zip(rows, slots, strict=True):
            if self._numbers[row] >= 0:
                numbers.append(self._numbers[row])
                targets.append(slot)
            elif self._blocks is None or self._blocks.places[row] is None:
                self._singles.read(self._job, row, slot, scattered=self._scattered)
        if numbers and self._together is not None:
            self._together.run(numbers, targets)

    def _read_whole(self, rows: Sequence[int], slots: Slots) -> None:
        """Write tiles that consist of whole stored tiles into ``slots``."""
        assert self._blocks is not None, "such tiles have places in blocks"
        places = [place for place in (self._blocks.places[row] for row in rows) if place is not None]
        self._sampler.read_blocks(self._blocks, places, slots)
        program = self._singles.program if self._job.colours else None
        if program is None:
            return
        if program.chain is not None and isinstance(slots, np.ndarray):  # noise is seeded by each tile's bytes
            program.apply(slots, slots)
            return
        for slot in slots:
            program.apply(slot, slot)

    def _can_compile(self, job: TileJob) -> bool:
        """Return whether there is a library, and the view's colours, if they are applied, have a compiled form."""
        if load() is None or (job.colours and self._singles.graph is not None):
            return False
        program = self._singles.program
        return not job.colours or program is None or program.chain is not None

    @property
    def _reduce(self) -> tuple[float, float]:
        """The decoder's part of the view's shrink."""
        reduce = float(self._sampler.decoder_shrink(self._view.choice))
        return reduce, reduce

    def _compile(self, job: TileJob) -> None:
        """Make the programs of the tiles that have one."""
        reduces = self._reduces(job.plan)
        fits = self._fitting(job, reduces)
        if self._blocks is not None:
            fits &= np.array([place is None for place in self._blocks.places])
        tiles = np.flatnonzero(fits)
        if len(tiles):
            self._numbers = np.where(fits, np.cumsum(fits) - 1, -1).tolist()
            self._together = self._programs(job, tiles, reduces[tiles])

    def _fitting(self, job: TileJob, reduces: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which tiles are sampled from stored tiles and coloured by compiled programs."""
        plan = job.plan
        fits = np.zeros(len(job.corners), bool)
        for level in set(plan.levels.tolist()):
            if self._view.slide.stored_tiles(level) is not None:
                fits |= plan.levels == level
        # A shift of filtered pixels is one step, another affine of them is two. Where a tile reaches very many pixels,
        # they are filtered in bands.
        left = plan.shrinks / reduces[:, None]
        reached = left.prod(axis=1) * self._singles.tile_size**2
        fits &= (left == 1).all(axis=1) | (plan.shifts & (reached < _FILTERED_PX))
        if not self._view.moves and job.corners.dtype.kind == "f":  # pixels of the tile begin at its own corner
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

    def _programs(self, job: TileJob, tiles: NDArray[np.int64], reduces: NDArray[np.int64]) -> BlockPrograms:
        """Return the programs of some tiles, whose decoder's shrink is ``reduces``."""
        programs, plan = load(), job.plan
        assert programs is not None, "only compiled tiles have programs"
        sigmas = blurs_of(plan.rest[tiles])
        shrinks, shifts = plan.shrinks[tiles], plan.shifts[tiles]
        decoded = (shrinks == reduces[:, None]).all(axis=1)
        ways = np.where(shifts, np.where(decoded, BY_COPYING, BY_SHRINKING), BY_SAMPLING)
        placed = Placed(plan.levels[tiles], reduces, shrinks, plan.affines[tiles], ways, sigmas)
        ops = self._tile_operations(job, tiles) if job.colours else np.zeros((len(tiles), 0), OP)
        return BlockPrograms(programs, self._sampler, placed, self.canvas, ops, scattered=self._scattered)

    def _tile_operations(self, job: TileJob, tiles: NDArray[np.int64]) -> NDArray[Any]:
        """Return the colour operations of tiles, (n, m) ``records.OP``, the view's first."""
        parts = []
        if self._singles.program is not None and self._singles.program.chain is not None:
            parts.append(np.tile(self._singles.program.chain, (len(tiles), 1)))
        if job.draws is not None:
            parts.append(compiled(job.draws.kinds[tiles], job.draws.numbers[tiles]))
        return np.concatenate(parts, axis=1) if parts else np.zeros((len(tiles), 0), OP)
