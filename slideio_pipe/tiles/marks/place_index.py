"""Find the points, or the boxes, in each of many rectangles: sorted once into cells, no loop over them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Pairs = tuple[Indices, Indices]
Spans = tuple[Floats, Floats]

# Rectangles that are searched at once: 1,024 of 1,000 points each make pairs of 16 MB.
_AT_ONCE = 1024
# Points per cell, if they were spread evenly.
_PER_CELL = 8
# Cells along an axis: the number of a cell, row × columns + column, is far from the end of int64.
_MAX_CELLS = 2**20


class PlaceIndex:
    """Points, sorted by the cell of a grid that they are in.

    Parameters
    ----------
    points : (n, 2) float64

    Examples
    --------
    >>> index = PlaceIndex(np.array([[1.0, 1], [5, 5], [9, 1]]))
    >>> rectangle, point = index.pairs(np.array([[0.0, 0], [4, 0]]), np.array([[5.0, 5], [10, 4]]))
    >>> rectangle.tolist(), point.tolist()
    ([0, 0, 1], [0, 1, 2])
    """

    def __init__(self, points: Floats) -> None:
        self.points = points
        self._low: Floats = points.min(axis=0) if len(points) else np.zeros(2)
        self._high: Floats = points.max(axis=0) if len(points) else np.zeros(2)
        width, height = np.maximum(self._high - self._low, 1.0).tolist()
        self._cell = max(math.sqrt(width * height * _PER_CELL / max(1, len(points))), max(width, height) / _MAX_CELLS)
        cells = self._cells(points)
        self._last = cells.max(axis=0) if len(points) else np.zeros(2, np.int64)
        self._columns = int(self._last[0]) + 1
        numbers = cells[:, 1] * self._columns + cells[:, 0]
        self._order = np.argsort(numbers, kind="stable")
        self._sorted = numbers[self._order]

    def _cells(self, places: Floats) -> Indices:
        cells: Indices = np.floor((places - self._low) / self._cell).astype(np.int64)
        return cells

    def pairs(self, low: Floats, high: Floats) -> Pairs:
        """Return the number of a rectangle and of a point for each point in each rectangle, edges included.

        Rectangles ascend; the points of one are ascending, too.
        """
        if not len(self.points) or not len(low):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        # Clipped before the division, so that a rectangle far away has a cell.
        least, most = self._low - self._cell, self._high + self._cell
        first = np.clip(self._cells(np.clip(low, least, most)), 0, self._last + 1)
        last = np.clip(self._cells(np.clip(high, least, most)), -1, self._last)
        rows = np.maximum(last[:, 1] - first[:, 1] + 1, 0)
        rows[last[:, 0] < first[:, 0]] = 0
        owner, row = _counted(rows)
        row += first[owner, 1]
        begin = np.searchsorted(self._sorted, row * self._columns + first[owner, 0], "left")
        end = np.searchsorted(self._sorted, row * self._columns + last[owner, 0], "right")
        span, step = _counted(end - begin)
        rectangle, point = owner[span], self._order[begin[span] + step]
        places = self.points[point]
        inside = ((places >= low[rectangle]) & (places <= high[rectangle])).all(axis=1)
        rectangle, point = rectangle[inside], point[inside]
        order = np.lexsort((point, rectangle))
        return rectangle[order], point[order]

    def runs(self, low: Floats, high: Floats) -> Iterator[Pairs]:
        """Yield ``pairs`` for runs of rectangles."""
        for run in _runs(len(low)):
            rectangle, point = self.pairs(low[run], high[run])
            yield rectangle + run.start, point


class BoxIndex:
    """Boxes by the place of their centres, those of one order of size together.

    A single large box does not widen the search for the others.

    Parameters
    ----------
    boxes : (n, 4) float64
        Lowest x and y, highest x and y.

    Examples
    --------
    >>> index = BoxIndex(np.array([[0.0, 0, 4, 4], [3, 3, 100, 100]]))
    >>> low, high = np.array([[90.0, 90]]), np.array([[99.0, 99]])
    >>> [values.tolist() for values in next(index.runs(1, lambda reach: (low - reach, high + reach)))]
    [[0], [1]]
    """

    def __init__(self, boxes: Floats) -> None:
        centres, halves = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
        orders = np.ceil(np.log2(np.maximum(halves.max(axis=1, initial=0.0), 1.0))).astype(np.int64)
        self._kinds = []
        for order in np.unique(orders).tolist():
            members = np.flatnonzero(orders == order)
            self._kinds.append((PlaceIndex(centres[members]), members, halves[members].max(axis=0)))

    def runs(self, count: int, spans: Callable[[Floats], Spans]) -> Iterator[Pairs]:
        """Yield, for runs of rectangles, the number of a rectangle and of a box for each that may overlap.

        Rectangles ascend; the boxes of one are ascending, too.

        Parameters
        ----------
        count : int
            Number of rectangles.
        spans : callable
            Returns, for half sides of boxes, the lowest and highest x and y of the centres of those that may overlap
            each rectangle.
        """
        kinds = [(index, members, *spans(reach)) for index, members, reach in self._kinds]
        for run in _runs(count):
            found = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
            for index, members, low, high in kinds:
                rectangle, member = index.pairs(low[run], high[run])
                found.append((rectangle + run.start, members[member]))
            rectangle, box = (np.concatenate(parts) for parts in zip(*found, strict=True))
            order = np.lexsort((box, rectangle))
            yield rectangle[order], box[order]


def _runs(count: int) -> Iterator[slice]:
    for start in range(0, count, _AT_ONCE):
        yield slice(start, min(count, start + _AT_ONCE))


def _counted(counts: NDArray[np.int64]) -> Pairs:
    """Return, for each of ``counts`` things, its owner and its number with the owner.

    >>> [values.tolist() for values in _counted(np.array([2, 0, 1]))]
    [[0, 0, 2], [0, 1, 0]]
    """
    owner = np.repeat(np.arange(len(counts)), counts)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]) if len(counts) else np.zeros(0, np.int64)
    return owner, np.arange(len(owner)) - starts[owner]
