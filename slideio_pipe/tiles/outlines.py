"""Convert masks to polygons and back, exactly: outlines follow pixel borders, a pixel is inside if its centre is.

A *ring* is (n, 2) float64 x, y, not closed: its last vertex is followed by the first. A *polygon* is a list of rings,
the outer one first, then its holes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

Ring = NDArray[np.float64]
Polygon = list[Ring]
Mask = NDArray[np.bool_]

# Directions of an edge, clockwise on the screen: right, down, left, up.
_STEP = ((1, 0), (0, 1), (-1, 0), (0, -1))
# From the start vertex of an edge to the pixel on its right-hand side.
_RIGHT_PIXEL = ((0, 0), (-1, 0), (-1, -1), (0, -1))
_Edge = tuple[int, int, int]  # x, y of the start vertex, direction


def mask_to_polygons(mask: Mask) -> list[Polygon]:
    """Return one polygon per 4-connected region, in mask px, of exactly the area of its pixels.

    No ring touches itself, so the polygons are valid for JTS (QuPath) and GEOS (shapely).

    >>> mask_to_polygons(np.array([[0, 1], [0, 1]], dtype=bool))[0][0].tolist()
    [[1.0, 0.0], [2.0, 0.0], [2.0, 2.0], [1.0, 2.0]]
    """
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    polygons: list[Polygon] = [[] for _ in range(count)]
    for loop in _loops(mask):
        for piece in _split_where_touching(loop):
            x, y, direction = piece[0]
            dx, dy = _RIGHT_PIXEL[direction]
            polygon = polygons[labels[y + dy, x + dx]]
            ring = _corners(piece)
            polygon.insert(0 if signed_area(ring) > 0 else len(polygon), ring)
    return polygons[1:]


def signed_area(ring: Ring) -> float:
    """Return the area of a ring, positive if the ring is clockwise on the screen, as outer rings are."""
    x, y = ring[:, 0], ring[:, 1]
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) / 2)


def _edges(mask: Mask) -> list[_Edge]:
    """Return the borders between tissue and its surroundings, as steps with tissue on the right-hand side."""
    padded = np.pad(mask, 1).astype(np.int8)
    down = np.diff(padded, axis=0)[:, 1:-1]  # at vertex row y: +1 where tissue begins below
    right = np.diff(padded, axis=1)[1:-1]  # at vertex column x: +1 where tissue begins to the right
    found: list[_Edge] = []
    for where, direction, (dx, dy) in (
        (down > 0, 0, (0, 0)),
        (right < 0, 1, (0, 0)),
        (down < 0, 2, (1, 0)),
        (right > 0, 3, (0, 1)),
    ):
        rows, columns = np.nonzero(where)
        found += [(x + dx, y + dy, direction) for x, y in zip(columns.tolist(), rows.tolist(), strict=True)]
    return found


def _loops(mask: Mask) -> Iterator[list[_Edge]]:
    """Yield closed walks along the edges; where two pixels meet at a corner, a walk follows its own pixel."""
    edges = _edges(mask)
    unused = set(edges)
    for first in edges:
        if first not in unused:
            continue
        loop, edge = [], first
        while edge in unused:
            unused.remove(edge)
            loop.append(edge)
            edge = _following(edge, unused, first)
        yield loop


def _following(edge: _Edge, unused: set[_Edge], first: _Edge) -> _Edge:
    x, y, direction = edge
    x, y = x + _STEP[direction][0], y + _STEP[direction][1]
    for turn in (1, 0, 3):  # right turn before straight before left turn
        candidate = (x, y, (direction + turn) % 4)
        if candidate in unused or candidate == first:
            return candidate
    raise AssertionError("the border of a mask is closed")


def _split_where_touching(loop: list[_Edge]) -> Iterator[list[_Edge]]:
    """Yield the simple loops of a loop: it is split wherever it returns to a vertex."""
    path: list[_Edge] = []
    position: dict[tuple[int, int], int] = {}
    for edge in loop:
        vertex = edge[:2]
        if vertex in position:
            start = position[vertex]
            yield path[start:]
            for passed in path[start:]:
                del position[passed[:2]]
            del path[start:]
        position[vertex] = len(path)
        path.append(edge)
    yield path


def _corners(loop: list[_Edge]) -> Ring:
    """Return the vertices at which a loop changes direction."""
    directions = [edge[2] for edge in loop]
    turns = [
        edge[:2] for edge, before in zip(loop, directions[-1:] + directions[:-1], strict=True) if edge[2] != before
    ]
    return np.array(turns, dtype=np.float64)


def polygons_to_mask(polygons: Iterable[Polygon], width: int, height: int) -> Mask:
    """Return the (height, width) mask of pixels whose centre is in any of the polygons (even-odd rule within each).

    >>> triangle = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    >>> polygons_to_mask([[triangle]], 4, 2).astype(int).tolist()
    [[1, 1, 1, 0], [1, 1, 0, 0]]
    """
    mask = np.zeros((height, width), dtype=bool)
    for polygon in polygons:
        points = np.concatenate(polygon)
        left, top = np.clip(np.floor(points.min(axis=0)), 0, (width, height)).astype(int).tolist()
        right, bottom = np.clip(np.ceil(points.max(axis=0)), 0, (width, height)).astype(int).tolist()
        if right > left and bottom > top:
            window = _fill([ring - (left, top) for ring in polygon], right - left, bottom - top)
            mask[top:bottom, left:right] |= window
    return mask


def _fill(polygon: Polygon, width: int, height: int) -> Mask:
    """Return the pixels with an odd number of crossings to their left, along the row of their centres."""
    start = np.concatenate(polygon)
    end = np.concatenate([np.roll(ring, -1, axis=0) for ring in polygon])
    downwards = (start[:, 1] <= end[:, 1])[:, None]
    (x0, y0), (x1, y1) = np.where(downwards, start, end).T, np.where(downwards, end, start).T
    # Rows whose centre y + ½ is in [y0, y1): half-open, so that a vertex on a centre line counts once.
    first, last = (np.clip(np.ceil(y - 0.5), 0, height).astype(np.int64) for y in (y0, y1))
    count = last - first
    edge = np.repeat(np.arange(len(count)), count)
    rows = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    x = x0[edge] + (rows + 0.5 - y0[edge]) * (x1 - x0)[edge] / (y1 - y0)[edge]
    columns = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
    crossings = np.bincount(rows * (width + 1) + columns, minlength=height * (width + 1)).reshape(height, width + 1)
    return np.asarray(np.cumsum(crossings[:, :width], axis=1) % 2 == 1, dtype=bool)
