"""Where the tiles of a stored bag are beside each other, and what is where no tile is stored.

Each tile has a cell of its size on a level, of which only the numbers exist::

    blocks    tiles whose corners differ by whole tiles, side by side as on the slide; other corners have other blocks
    windows   per tile, the cells around it: its neighbours, and where there is none its mirror image, or white

A tile that reaches only stored tiles is read in its block, so that a stored tile is decoded once for all its
neighbours. One that reaches further is read in its window: what is beyond the stored tiles depends on the tile.
"""

from __future__ import annotations

import math
import threading
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import Affine, Size, round_half_up

Beyond = Literal["reflect", "white"]
# Cells of a window to each side of its tile: a tile shown 33 times smaller fills it.
REACH = 16
# Cells of all blocks: 8 bytes each. A slide of 200,000 px a side has 10 million tiles of 64 px.
_MAX_CELLS = 2**24


class Shown(NamedTuple):
    """The stored tile that a cell shows."""

    tile: int
    across: bool = False  # mirrored left to right
    down: bool = False  # mirrored top to bottom


def check_beyond(value: str, slide: str) -> Beyond:
    """Return what is where no tile is stored; raise ConfigError if the value is unknown."""
    for known in get_args(Beyond):
        if value == known:
            return known  # type: ignore[no-any-return]
    raise ConfigError(f"beyond is {value!r}", slide=slide, remedy='pass "reflect" or "white"')


def tile_places(
    made: dict[str, Any], coords: NDArray[np.int64], grid_index: NDArray[np.int32]
) -> tuple[NDArray[np.int64] | None, str]:
    """Return the corners of a stored bag's tiles in px of its view, (N, 2), or None with the reason.

    Parameters
    ----------
    made : dict
        The bag's provenance.
    coords, grid_index
        As stored.
    """
    view, grid = made.get("view") or {}, made.get("grid") or {}
    if made.get("tile_draw") is not None:
        return None, "its tiles were drawn one by one when they were stored"
    if grid.get("between_px"):
        return None, "its tiles begin between pixels"
    if grid.get("shape") and grid.get("stride") and grid.get("edge") in ("drop", "pad"):
        return grid_index.astype(np.int64) * int(grid["stride"]), ""
    if view.get("affine") is None:
        return None, "it does not record where its tiles are in their view"
    return round_half_up(Affine.from_tuple(view["affine"]).inverse().apply(coords)), ""


class TileLayout:
    """Cells that show the tiles of a bag.

    Parameters
    ----------
    count : int
        Number of tiles.
    tile : int
        Side of a tile, px.
    places : (N, 2) int64, optional
        Corners of the tiles in px of one frame. None: no tile has a neighbour.
    beyond : {"reflect", "white"}
        What a window shows where no tile is stored.

    Attributes
    ----------
    cells : (N, 2) int64
        Column and row of each tile in its block.
    size : Size
        Columns and rows of the whole layout.

    Examples
    --------
    >>> layout = TileLayout(3, 100, np.array([[0, 0], [100, 0], [0, 100]]))
    >>> layout.cells.tolist()
    [[0, 0], [1, 0], [0, 1]]
    >>> layout.origins(np.array([0]), np.array([[0, 0, 1, 0]])).tolist()  # with its right neighbour
    [[0, 0]]
    >>> column, row = layout.origins(np.array([0]), np.array([[-1, 0, 0, 0]]))[0] // 100  # the left one is not stored
    >>> layout.shown(column - 1, row), layout.shown(column + 1, row)
    (Shown(tile=0, across=True, down=False), Shown(tile=1, across=False, down=False))
    """

    def __init__(
        self, count: int, tile: int, places: NDArray[np.int64] | None = None, beyond: Beyond = "reflect"
    ) -> None:
        self.tile, self.beyond = tile, beyond
        found = None if places is None or not count else _blocks(places, tile)
        self.cells, self._first, self._last = _alone(count) if found is None else found
        columns, rows = (self.cells.max(axis=0) + 1).tolist() if count else (1, 1)
        self._numbers = np.full((rows, columns), -1, np.int32)
        self._numbers[self.cells[:, 1], self.cells[:, 0]] = np.arange(count, dtype=np.int32)
        self._lost: frozenset[int] = frozenset()
        self._losing = threading.Lock()
        self._known = _sums(self._numbers >= 0)
        self._windows_from = rows + 1
        self._per_row = max(1, math.isqrt(count))
        pitch = 2 * REACH + 1
        self.size = Size(max(columns, self._per_row * pitch), self._windows_from + -(-count // self._per_row) * pitch)

    @property
    def with_neighbours(self) -> int:
        """Number of tiles with a stored tile at their left, right, upper or lower edge."""
        there = np.pad(self._numbers >= 0, 1)  # the cell of a tile is one further
        column, row = self.cells.T
        beside = [there[row + 1 + dy, column + 1 + dx] for dx, dy in ((-1, 0), (1, 0), (0, -1), (0, 1))]
        return int(np.any(beside, axis=0).sum())

    def origins(self, positions: NDArray[np.int64], reached: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """Return the corner of each of some tiles, (n, 2) px of the layout: in its block, or in its window.

        Parameters
        ----------
        positions : (n,) int64
        reached : (n, 4) int64, optional
            First column, first row, last column and last row of the cells that are needed, relative to the tile.
        """
        cells = self.cells[positions]
        if reached is None:
            return cells * self.tile
        first, last = cells + reached[:, :2], cells + reached[:, 2:]
        rows, columns = self._numbers.shape
        limits = np.array([columns, rows])
        low, high = np.clip(first, 0, limits), np.clip(last + 1, 0, limits)
        sums = self._known
        stored = sums[high[:, 1], high[:, 0]] - sums[low[:, 1], high[:, 0]]
        stored += sums[low[:, 1], low[:, 0]] - sums[high[:, 1], low[:, 0]]
        whole = stored == (last - first + 1).prod(axis=1)
        chosen: NDArray[np.int64] = np.where(whole[:, None], cells, self._windows(positions))
        return chosen * self.tile

    def shown(self, column: int, row: int) -> Shown | None:
        """Return what a cell shows; None: white."""
        if row < self._windows_from:
            number = self._at(column, row)
            return None if number < 0 else Shown(number)
        pitch = 2 * REACH + 1
        window_column, dx = divmod(column, pitch)
        window_row, dy = divmod(row - self._windows_from, pitch)
        number = window_row * self._per_row + window_column
        if window_column >= self._per_row or number >= len(self.cells):
            return None
        return self._around(int(number), int(dx) - REACH, int(dy) - REACH)

    def lose(self, tile: int) -> None:
        """Show no longer a tile beside others: it is damaged."""
        with self._losing:
            self._lost |= {tile}
            there = self._numbers >= 0
            column, row = self.cells[list(self._lost)].T
            there[row, column] = False
            self._known = _sums(there)

    def _windows(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the cells of some tiles in their windows."""
        row, column = np.divmod(positions, self._per_row)
        pitch = 2 * REACH + 1
        return np.stack([column * pitch + REACH, row * pitch + REACH + self._windows_from], axis=1).astype(np.int64)

    def _at(self, column: int, row: int) -> int:
        """Return the tile in a cell of the blocks, -1 if there is none."""
        rows, columns = self._numbers.shape
        return int(self._numbers[row, column]) if 0 <= column < columns and 0 <= row < rows else -1

    def _beside(self, tile: int, dx: int, dy: int) -> int:
        """Return the stored tile so many columns and rows from a tile, -1 if there is none."""
        if dx == dy == 0:
            return tile
        column, row = (self.cells[tile] + (dx, dy)).tolist()
        number = self._at(column, row) if self._first[tile] <= row <= self._last[tile] else -1
        return -1 if number in self._lost else number

    def _around(self, tile: int, dx: int, dy: int) -> Shown | None:
        """Return what is so many columns and rows from a tile: a neighbour, or the mirror image of a nearer cell.

        The nearer cell is the one below or above, or that at the side, whichever is stored, so that the image is
        continuous where it can be.
        """
        number = self._beside(tile, dx, dy)
        if number >= 0:
            return Shown(number)
        if self.beyond == "white":
            return None
        nearer_x, nearer_y = dx - (dx > 0) + (dx < 0), dy - (dy > 0) + (dy < 0)
        stored_y = dy != 0 and self._beside(tile, dx, nearer_y) >= 0
        stored_x = dx != 0 and self._beside(tile, nearer_x, dy) >= 0
        vertically = stored_y if stored_y != stored_x else abs(dy) >= abs(dx)
        shown = self._around(tile, dx, nearer_y) if vertically else self._around(tile, nearer_x, dy)
        assert shown is not None
        return Shown(shown.tile, shown.across != (not vertically), shown.down != vertically)


def _alone(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    rows = 2 * np.arange(count, dtype=np.int64)  # with an empty row between
    return np.stack([np.zeros_like(rows), rows], axis=1), rows, rows


def _blocks(
    places: NDArray[np.int64], tile: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]] | None:
    """Return the cell of each tile, and the first and the last row of its block; None if there would be too many cells.

    Tiles are in one block if their corners differ by whole tiles; of several at one place, each has its own block. The
    largest block begins at the frame's corner, so that pixels shrunk together are those of the slide.
    """
    kinds = np.column_stack([places % tile, _occurrences(places)])
    _, block, counts = np.unique(kinds, axis=0, return_inverse=True, return_counts=True)
    block = np.argsort(np.argsort(-counts, kind="stable"))[block.reshape(-1)]
    cells = places // tile
    first = np.full((len(counts), 2), np.iinfo(np.int64).max)
    last = np.full((len(counts), 2), np.iinfo(np.int64).min)
    np.minimum.at(first, block, cells)
    np.maximum.at(last, block, cells)
    first[0] = np.minimum(first[0], 0)
    sizes = last - first + 1
    starts = np.concatenate([[0], np.cumsum(sizes[:, 1] + 1)])  # with an empty row between
    if starts[-1] * sizes[:, 0].max() > _MAX_CELLS:
        return None
    cells = cells - first[block]
    cells[:, 1] += starts[block]
    return cells, starts[block], starts[block] + sizes[block, 1] - 1


def _occurrences(places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many tiles before each one are at the same place."""
    order = np.lexsort(places.T)
    ordered = places[order]
    begins = np.ones(len(places), bool)
    begins[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    at = np.arange(len(places))
    found = np.empty(len(places), np.int64)
    found[order] = at - np.maximum.accumulate(np.where(begins, at, 0))
    return found


def _sums(there: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return the number of set cells above and left of each corner."""
    sums = np.zeros((there.shape[0] + 1, there.shape[1] + 1), np.int32)
    np.cumsum(np.cumsum(there, axis=0, dtype=np.int32), axis=1, out=sums[1:, 1:])
    return sums
