"""Compiled programs of tiles that are sampled from decoded stored tiles: which of these each needs, then their run.

Everything that needs no pixels is computed for all tiles of a read at once. A run of tiles then takes its stored tiles
from the cache, or decodes them, and is one call of compiled code.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.compiled.library import Programs
from slideio_pipe.compiled.records import TILE
from slideio_pipe.geometry import LevelChoice, Size
from slideio_pipe.slides.sampling import Sampler

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Bilinear sampling reaches one pixel further than a tile's own corners.
_REACH = 2


class Placed(NamedTuple):
    """Where n tiles are sampled from, in the order of their run."""

    levels: Ints  # (n,)
    reduces: Ints  # (n,) shrink factor of the decoder
    affines: Floats  # (n, 6) from tile px to px of the reduced level, corner-based
    shifts: NDArray[np.bool_]  # (n,) the affine only shifts by whole pixels
    sigmas: Floats  # (n,) of the Gaussian before sampling; 0 for none


class BlockPrograms:
    """Programs of n tiles of one size.

    Parameters
    ----------
    programs : Programs
    sampler : Sampler
    placed : Placed
    canvas : Size
        Of the tiles, px.
    targets : (n,) uint64
        Address of each tile's pixels, (height, width, 3) uint8.
    ops : (n, m) records.OP, optional
        Colour operations; must exist as long as this object, which keeps it.
    scattered : bool
        Whether few tiles need the same stored tiles: then only the needed rows of each are decoded.
    """

    def __init__(
        self,
        programs: Programs,
        sampler: Sampler,
        placed: Placed,
        canvas: Size,
        targets: NDArray[np.uint64],
        ops: NDArray[Any] | None,
        *,
        scattered: bool = False,
    ) -> None:
        self._programs, self._sampler, self._placed, self._canvas = programs, sampler, placed, canvas
        self._scattered, self._ops = scattered, ops
        self.tiles = np.zeros(len(targets), TILE)
        self.tiles["out"], self.tiles["outside"] = targets, sampler.outside
        self.tiles["copies"], self.tiles["sigma"] = placed.shifts, placed.sigmas
        self.tiles["affine"] = _centred(placed.affines, placed.shifts)
        if ops is not None and ops.size:
            self.tiles["ops"] = ops.ctypes.data + ops.strides[0] * np.arange(len(ops), dtype=np.uint64)
            self.tiles["op_count"] = ops.shape[1]
        self._find_blocks()

    def _find_blocks(self) -> None:
        """Set the rectangle of blocks of every tile, and list the blocks that it reaches."""
        levels, reduces = self._placed.levels, self._placed.reduces
        sizes, blocks = self._sizes(levels, reduces)
        first, last = _reached(self._placed, self._canvas)
        inside = np.clip(first, 0, sizes), np.clip(last, -1, sizes - 1)  # px of the reduced level, inclusive
        start, stop = inside[0] // blocks, inside[1] // blocks
        count = np.where((last < 0) | (first >= sizes), 0, stop - start + 1)
        count[(count <= 0).any(axis=1)] = 0
        source = self.tiles["source"]
        source["column"], source["row"] = start.T
        source["columns"], source["rows"] = count.T
        source["block_width"], source["block_height"] = blocks.T
        source["level_width"], source["level_height"] = sizes.T
        each = count[:, 0] * count[:, 1]
        self._starts = np.concatenate([[0], np.cumsum(each)])
        owner = np.repeat(np.arange(len(each)), each)
        number = np.arange(len(owner)) - self._starts[owner]
        rows, columns = np.divmod(number, count[owner, 0])
        place = np.stack([start[owner, 0] + columns, start[owner, 1] + rows], axis=1)
        self._wanted = self._touched(owner, place, blocks)
        # The lowest row of the block that its tile needs.
        self._rows = np.minimum(inside[1][owner, 1] - place[:, 1] * blocks[owner, 1] + 1, blocks[owner, 1])
        # One number per block of the slide: level, decoder's shrink, row, column.
        key = (levels[owner] << 4 | reduces[owner]) << 52 | place[:, 1] << 26 | place[:, 0]
        self._keys, self._key_of = np.unique(key, return_inverse=True)
        self._pointers = np.zeros(len(owner), np.uint64)
        source["blocks"] = self._pointers.ctypes.data + 8 * self._starts[:-1].astype(np.uint64)

    def _sizes(self, levels: Ints, reduces: Ints) -> tuple[Ints, Ints]:
        """Return the size of each tile's reduced level, and of its stored tiles, both (n, 2)."""
        sizes, blocks = np.zeros((len(levels), 2), np.int64), np.ones((len(levels), 2), np.int64)
        for level, reduce in {(int(level), int(reduce)) for level, reduce in zip(levels, reduces, strict=True)}:
            own = (levels == level) & (reduces == reduce)
            choice = LevelChoice(level, (float(reduce), float(reduce)))
            stored = self._sampler.slide.stored_tiles(level)
            assert stored is not None, "only levels of stored tiles have block programs"
            sizes[own] = self._sampler.slide.pyramid.size_at(choice)
            blocks[own] = np.array(stored.tile) // reduce
        return sizes, blocks

    def _touched(self, owner: Ints, place: Ints, blocks: Ints) -> NDArray[np.bool_]:
        """Return which of the listed blocks a turned tile touches: its corners' rectangle has others as well."""
        affines = self._placed.affines[owner]
        a, b, c, d, e, f = affines.T
        middle = (place + 0.5) * blocks[owner] - np.stack([c, f], axis=1)
        half = blocks[owner].max(axis=1) / 2 + _margins(self._placed)[owner]
        area = a * e - b * d
        across, down = (e * middle[:, 0] - b * middle[:, 1]) / area, (a * middle[:, 1] - d * middle[:, 0]) / area
        reach_across, reach_down = half * (abs(e) + abs(b)) / abs(area), half * (abs(a) + abs(d)) / abs(area)
        width, height = self._canvas
        return np.asarray(
            (across > -reach_across) & (across < width + reach_across)
            & (down > -reach_down) & (down < height + reach_down)
        )  # fmt: skip

    def run(self, first: int, count: int) -> None:
        """Make tiles ``first`` to ``first + count``; can be called by several threads for different tiles.

        Raise CorruptSlideError if a stored tile cannot be decoded.
        """
        start, stop = self._starts[first], self._starts[first + count]
        mine = np.flatnonzero(self._wanted[start:stop]) + start
        numbers, inverse = np.unique(self._key_of[mine], return_inverse=True)
        rows = np.zeros(len(numbers), np.int64)
        np.maximum.at(rows, inverse, self._rows[mine])
        decoded = [
            self._block(key, need) for key, need in zip(self._keys[numbers].tolist(), rows.tolist(), strict=True)
        ]
        addresses = np.array([block.__array_interface__["data"][0] for block in decoded], np.uint64)
        self._pointers[mine] = addresses[inverse] if len(mine) else 0
        begun = time.perf_counter() if self._sampler.on_stage else 0.0
        self._programs.run(self.tiles, first, count, *self._canvas)
        if self._sampler.on_stage:
            self._sampler.on_stage("resample", begun, time.perf_counter())

    def _block(self, key: int, rows: int) -> NDArray[np.uint8]:
        """Return a decoded stored tile, C-contiguous, at least its first ``rows``."""
        level, reduce, row, column = key >> 56, key >> 52 & 15, key >> 26 & 0x3FFFFFF, key & 0x3FFFFFF
        return self._sampler.decoded(level, reduce, column, row, rows if self._scattered else None)


def _centred(affines: Floats, shifts: NDArray[np.bool_]) -> Floats:
    """Return corner-based affines for pixel centres at whole numbers; shifts exactly whole."""
    a, b, c, d, e, f = affines.T
    centred = np.stack([a, b, c + (a + b - 1) / 2, d, e, f + (d + e - 1) / 2], axis=1)
    whole = np.round(affines[shifts])
    centred[shifts] = whole
    return centred


def _reached(placed: Placed, canvas: Size) -> tuple[Ints, Ints]:
    """Return the first and the last px that each tile reaches, both (n, 2), inclusive."""
    a, b, c, d, e, f = placed.affines.T
    width, height = canvas
    origin = np.stack([c, f], axis=1)
    along = np.stack([a, d], axis=1) * width, np.stack([b, e], axis=1) * height
    low = origin + np.minimum(along[0], 0) + np.minimum(along[1], 0)
    high = origin + np.maximum(along[0], 0) + np.maximum(along[1], 0)
    margin = _margins(placed)[:, None]
    exact = margin == 0
    first = np.where(exact, np.round(low), np.floor(low) - margin)
    last = np.where(exact, np.round(high) - 1, np.ceil(high) + margin)
    return first.astype(np.int64), last.astype(np.int64)


def _margins(placed: Placed) -> Floats:
    """Return (n,) how many px around its corners each tile reaches: none where whole pixels are copied."""
    a, b, c, d, e, f = placed.affines.T
    sides = np.abs(placed.affines[:, (0, 1, 3, 4)])
    exact = (sides.max(axis=1) == 1) & (sides.sum(axis=1) == 2) & (np.abs(a * e - b * d) == 1)
    exact &= (placed.sigmas == 0) & (c == np.round(c)) & (f == np.round(f))
    return np.where(placed.shifts | exact, 0.0, _REACH + np.ceil(3 * placed.sigmas))
