"""Compiled programs of tiles that are sampled from decoded stored tiles: which of these each needs, then their run.

Everything that needs no pixels is computed for all tiles of a read at once. A run of tiles then takes its stored tiles
from the cache, or decodes them, and is one call of compiled code.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.compiled.library import Programs, Slots, address, addresses
from slideio_pipe.compiled.records import BY_COPYING, BY_SAMPLING, BY_SHRINKING, TILE
from slideio_pipe.geometry import LevelChoice, Size
from slideio_pipe.slides.backends.base import StoredTiles
from slideio_pipe.slides.sampling import Sampler
from slideio_pipe.slides.stored_run import Key, StoredRuns
from slideio_pipe.slides.tile_cache import Block

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Bilinear sampling reaches one pixel further than a tile's own corners.
_REACH = 2
# Decoded px that one call refers to at most, unless a single tile needs more: 12 MB.
_RUN_PX = 4_000_000


class Placed(NamedTuple):
    """Where n tiles are sampled from, in the order of their run."""

    levels: Ints  # (n,)
    reduces: Ints  # (n,) shrink factor of the decoder
    shrinks: Floats  # (n, 2) all of the shrink before the affine, along x and y; that beyond the decoder's is a filter
    affines: Floats  # (n, 6) from tile px to px of the shrunk level, corner-based
    ways: Ints  # (n,) of ``compiled.records``: by sampling, by copying, by shrinking
    sigmas: Floats  # (n,) of the Gaussian before sampling; 0 for none


class BlockPrograms:
    """Programs of n tiles of one size; any of them can be run at any time, by any thread.

    Parameters
    ----------
    programs : Programs
    sampler : Sampler
    placed : Placed
    canvas : Size
        Of the tiles, px.
    ops : (n, m) records.OP
        Colour operations of each tile.
    scattered : bool
        Whether few tiles need the same stored tiles: then only the needed rows of each are decoded.
    """

    def __init__(
        self,
        programs: Programs,
        sampler: Sampler,
        placed: Placed,
        canvas: Size,
        ops: NDArray[Any],
        *,
        scattered: bool = False,
    ) -> None:
        self._programs, self._sampler, self._placed, self._canvas = programs, sampler, placed, canvas
        self._scattered, self._ops = scattered, np.ascontiguousarray(ops)
        self._tiles = tiles = np.zeros(len(placed.levels), TILE)
        tiles["outside"], tiles["way"], tiles["sigma"] = sampler.outside, placed.ways, placed.sigmas
        self._set_affines()
        if ops.size:
            tiles["ops"] = self._ops.ctypes.data + self._ops.strides[0] * np.arange(len(ops), dtype=np.uint64)
            tiles["op_count"] = ops.shape[1]
        self._find_blocks()

    def _set_affines(self) -> None:
        """Set the affines as the programs take them, and keep those from tile px to px of the decoded level."""
        placed, tiles = self._placed, self._tiles
        a, b, c, d, e, f = placed.affines.T
        # Pixel centres are at whole numbers in the programs; ours are at halves.
        centred = np.stack([a, b, c + (a + b - 1) / 2, d, e, f + (d + e - 1) / 2], axis=1)
        whole = np.round(placed.affines)
        tiles["affine"] = np.where((placed.ways == BY_SAMPLING)[:, None], centred, whole)
        self._affines = placed.affines
        shrunk = placed.ways == BY_SHRINKING
        if shrunk.any():
            steps = placed.shrinks / placed.reduces[:, None]  # decoded px per px of the shrunk level
            tiles["affine"][shrunk, 0], tiles["affine"][shrunk, 4] = steps[shrunk].T
            self._affines = np.where(shrunk[:, None], whole * np.repeat(steps, 3, axis=1), placed.affines)
            self._set_insides(shrunk)

    def _set_insides(self, shrunk: NDArray[np.bool_]) -> None:
        placed, tiles, canvas = self._placed, self._tiles, self._canvas
        sizes = np.zeros((len(tiles), 2), np.int64)
        for level, shrink in _distinct(placed.levels[shrunk], placed.shrinks[shrunk]):
            size = self._sampler.slide.pyramid.size_at(LevelChoice(level, shrink))
            sizes[(placed.levels == level) & (placed.shrinks == shrink).all(axis=1)] = size
        corners = tiles["affine"][:, (2, 5)]
        first, last = np.clip(-corners, 0, canvas), np.clip(sizes - corners, 0, canvas)
        tiles["left"], tiles["top"] = first[:, 0], first[:, 1]
        tiles["right"], tiles["bottom"] = last[:, 0], last[:, 1]

    def _find_blocks(self) -> None:
        """Set the rectangle of blocks of every tile, and list the blocks that it reaches.

        ``_places`` is the first place in the rectangle of each tile, all rectangles being one after the other;
        ``_needs`` is the first block that each tile reaches, these being one after the other: ``_needed_at`` is the
        place of each, ``_lowest`` how many of its rows are needed, ``_keys_of`` the number of its key.
        """
        levels, reduces = self._placed.levels, self._placed.reduces
        sizes, blocks = self._sizes()
        margins = self._margins()
        first, last = _reached(self._affines, self._canvas, margins)
        inside = np.clip(first, 0, sizes), np.clip(last, -1, sizes - 1)  # px of the reduced level, inclusive
        start, stop = inside[0] // blocks, inside[1] // blocks
        count = np.where((last < 0) | (first >= sizes), 0, stop - start + 1)
        count[(count <= 0).any(axis=1)] = 0
        source = self._tiles["source"]
        source["left"], source["top"] = (start * blocks).T
        source["columns"], source["rows"] = count.T
        source["block_width"], source["block_height"] = blocks.T
        source["level_width"], source["level_height"] = sizes.T
        each = count[:, 0] * count[:, 1]
        self._places = _starts(each)
        owner = np.repeat(np.arange(len(each)), each)
        rows, columns = np.divmod(np.arange(len(owner)) - self._places[owner], count[owner, 0])
        place = np.stack([start[owner, 0] + columns, start[owner, 1] + rows], axis=1)
        touched = np.flatnonzero(self._touched(owner, place, blocks, margins))
        owner, place = owner[touched], place[touched]
        self._needed_at = touched
        self._lowest = np.minimum(inside[1][owner, 1] - place[:, 1] * blocks[owner, 1] + 1, blocks[owner, 1])
        needs = np.bincount(owner, minlength=len(each))
        self._needs = _starts(needs)
        self._px: list[int] = (needs * blocks.prod(axis=1)).tolist()
        self._set_keys(np.column_stack([levels[owner], reduces[owner], place]))

    def _set_keys(self, keys: Ints) -> None:
        """Number the distinct ones of the stored tiles (m, 4) that are needed: level, shrink, column, row."""
        level, reduce, column, row = keys.T
        codes = (level * 16 + reduce << 52) + (row << 26) + column
        _, first, self._keys_of = np.unique(codes, return_index=True, return_inverse=True)
        self._keys: list[Key] = list(zip(*keys[first].T.tolist(), strict=True))
        self._runs = StoredRuns(self._sampler, self._stored)
        self._cached = [self._runs.cache_key(key) for key in self._keys]

    def _sizes(self) -> tuple[Ints, Ints]:
        """Return the size of each tile's decoded level, and of its stored tiles, both (n, 2)."""
        placed = self._placed
        self._stored: dict[int, StoredTiles] = {}
        sizes, blocks = np.zeros((len(self._tiles), 2), np.int64), np.ones((len(self._tiles), 2), np.int64)
        for level, (reduce, _) in _distinct(placed.levels, np.repeat(placed.reduces[:, None], 2, axis=1)):
            own = (placed.levels == level) & (placed.reduces == reduce)
            stored = self._sampler.slide.stored_tiles(level)
            assert stored is not None, "only levels of stored tiles have block programs"
            self._stored[level] = stored
            # Whole pixels of the view; a filter also reads the last one, of which a part is outside.
            sizes[own] = self._sampler.slide.pyramid.size_at(LevelChoice(level, (reduce, reduce)))
            level_size = np.array(self._sampler.slide.pyramid.levels[level])
            sizes[own & (placed.ways == BY_SHRINKING)] = -(-level_size // int(reduce))
            blocks[own] = np.array(stored.tile) // int(reduce)
        return sizes, blocks

    def _margins(self) -> Floats:
        """Return (n,) how many px around its corners each tile reaches: none where whole pixels are copied."""
        placed = self._placed
        a, b, c, d, e, f = placed.affines.T
        sides = np.abs(placed.affines[:, (0, 1, 3, 4)])
        exact = (sides.max(axis=1) == 1) & (sides.sum(axis=1) == 2) & (np.abs(a * e - b * d) == 1)
        exact &= (placed.sigmas == 0) & (c == np.round(c)) & (f == np.round(f))
        margins = np.where((placed.ways == BY_COPYING) | exact, 0.0, _REACH + np.ceil(3 * placed.sigmas))
        filtered = _REACH + np.ceil((placed.shrinks / placed.reduces[:, None]).max(axis=1))
        return np.where(placed.ways == BY_SHRINKING, filtered, margins)

    def _touched(self, owner: Ints, place: Ints, blocks: Ints, margins: Floats) -> NDArray[np.bool_]:
        """Return which of the listed blocks a turned tile touches: its corners' rectangle has others as well."""
        affines = self._affines[owner]
        a, b, c, d, e, f = affines.T
        middle = (place + 0.5) * blocks[owner] - np.stack([c, f], axis=1)
        half = blocks[owner].max(axis=1) / 2 + margins[owner]
        area = a * e - b * d
        across, down = (e * middle[:, 0] - b * middle[:, 1]) / area, (a * middle[:, 1] - d * middle[:, 0]) / area
        reach_across, reach_down = half * (abs(e) + abs(b)) / abs(area), half * (abs(a) + abs(d)) / abs(area)
        width, height = self._canvas
        return np.asarray(
            (across > -reach_across) & (across < width + reach_across)
            & (down > -reach_down) & (down < height + reach_down)
        )  # fmt: skip

    def run(self, numbers: Sequence[int], slots: Slots) -> None:
        """Make tiles ``numbers`` in ``slots``, one (height, width, 3) C-contiguous array for each.

        Raise CorruptSlideError if a stored tile cannot be decoded.
        """
        first, pixels = 0, 0
        for k, number in enumerate(numbers):
            if k > first and pixels + self._px[number] > _RUN_PX:
                self._run(numbers[first:k], slots[first:k])
                first, pixels = k, 0
            pixels += self._px[number]
        self._run(numbers[first:], slots[first:])

    def _run(self, numbers: Sequence[int], slots: Slots) -> None:
        chosen = np.asarray(numbers)
        needed, starts, at, count = self._needs_of(chosen)
        keys = self._keys_of[needed]
        blocks, starts_of = self._blocks(keys, needed)
        # Of this run alone: another one of the same tiles may refer to other memory.
        pointers = np.zeros(max(1, count), np.uint64)
        pointers[at] = starts_of[keys]
        tiles = self._tiles[chosen]
        tiles["source"]["blocks"] = address(pointers) + 8 * starts
        tiles["out"] = addresses(slots)
        begun = time.perf_counter() if self._sampler.on_stage else 0.0
        self._programs.run(tiles, 0, len(tiles), *self._canvas)
        if self._sampler.on_stage:
            self._sampler.on_stage("program", begun, time.perf_counter())
        del blocks  # pointers do not keep their memory alive

    def _needs_of(self, chosen: Ints) -> tuple[slice | Ints, Ints, Ints, int]:
        """Return which needs tiles have, and, in a run of these alone, the start of each tile's rectangle of blocks,
        the place of each need, and the number of places."""
        first, last = int(chosen[0]), int(chosen[-1])
        if last - first == len(chosen) - 1 and (np.diff(chosen) == 1).all():
            needed = slice(int(self._needs[first]), int(self._needs[last + 1]))
            starts = self._places[first : last + 2] - self._places[first]
            return needed, starts[:-1], self._needed_at[needed] - self._places[first], int(starts[-1])
        counts = self._needs[chosen + 1] - self._needs[chosen]
        own = np.arange(counts.sum()) - np.repeat(_starts(counts)[:-1] - self._needs[chosen], counts)
        starts = _starts(self._places[chosen + 1] - self._places[chosen])
        shift = np.repeat(starts[:-1] - self._places[chosen], counts)
        return own, starts[:-1], self._needed_at[own] + shift, int(starts[-1])

    def _blocks(self, wanted: Ints, needed: slice | Ints) -> tuple[list[Block], NDArray[np.uint64]]:
        """Return the stored tiles that are ``wanted``, the numbers of keys, decoded, at least the rows of each that
        are ``needed``; and the address of each, by the number of its key."""
        present = np.zeros(len(self._keys), bool)
        present[wanted] = True
        distinct = present.nonzero()[0]
        rows, keys = None, distinct.tolist()
        if self._scattered:
            most = np.zeros(len(present), np.int64)
            np.maximum.at(most, wanted, self._lowest[needed])
            rows = most[distinct].tolist()
        blocks = self._runs.blocks([self._keys[k] for k in keys], [self._cached[k] for k in keys], rows)
        starts = np.empty(len(present), np.uint64)
        starts[distinct] = [start for _, start in blocks]
        return blocks, starts


def _starts(counts: Ints) -> Ints:
    """Return where each of n parts of given lengths begins, and where the last ends, (n + 1,)."""
    starts = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    return starts


def _distinct(levels: Ints, pairs: NDArray[Any]) -> set[tuple[int, tuple[float, float]]]:
    """Return the distinct levels (n,) with pairs of numbers (n, 2)."""
    return {(level, (x, y)) for level, (x, y) in zip(levels.tolist(), pairs.tolist(), strict=True)}


def _reached(affines: Floats, canvas: Size, margins: Floats) -> tuple[Ints, Ints]:
    """Return the first and the last px that each tile reaches, both (n, 2), inclusive."""
    a, b, c, d, e, f = affines.T
    width, height = canvas
    origin = np.stack([c, f], axis=1)
    along = np.stack([a, d], axis=1) * width, np.stack([b, e], axis=1) * height
    low = origin + np.minimum(along[0], 0) + np.minimum(along[1], 0)
    high = origin + np.maximum(along[0], 0) + np.maximum(along[1], 0)
    around, exact = margins[:, None], margins[:, None] == 0
    first = np.where(exact, np.round(low), np.floor(low) - around)
    last = np.where(exact, np.round(high) - 1, np.ceil(high) + around)
    return first.astype(np.int64), last.astype(np.int64)
