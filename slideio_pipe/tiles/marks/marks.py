"""Points and boxes with labels as arrays, in px of one frame: what annotations have beside polygons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import Affine
from slideio_pipe.tiles.marks.place_index import BoxIndex, PlaceIndex
from slideio_pipe.tiles.outlines import Polygon

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

# Vertices of a rectangle are exact up to the decimals of a file, three in QuPath's.
_RECTANGLE_PX = 1e-2


def _no_points() -> Floats:
    return np.zeros((0, 2))


def _no_corners() -> Floats:
    return np.zeros((0, 4, 2))


def _no_labels() -> Indices:
    return np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class Marks:
    """Points and boxes, each with the label of its class.

    Boxes are kept as their corners: of a turned box the tight hull is taken once, at the end, not at each turn.

    Examples
    --------
    >>> marks = Marks.of_boxes(np.array([[0.0, 0, 4, 2]]), np.array([1]))
    >>> marks.moved(Affine(0, -1, 0, 1, 0, 0)).boxes.tolist()  # a quarter turn
    [[-2.0, 0.0, 0.0, 4.0]]
    """

    points: Floats = field(default_factory=_no_points)  # (n, 2) x, y
    point_labels: Indices = field(default_factory=_no_labels)  # (n,)
    corners: Floats = field(default_factory=_no_corners)  # (m, 4, 2), around each box
    box_labels: Indices = field(default_factory=_no_labels)  # (m,)

    def __post_init__(self) -> None:
        for name, value, shape in (("points", self.points, (2,)), ("corners", self.corners, (4, 2))):
            if value.shape[1:] != shape or not np.isfinite(value).all():
                raise ConfigError(f"{name} have the shape {value.shape}, or are not finite", remedy="pass finite x, y")
        counts = (len(self.points), len(self.point_labels)), (len(self.corners), len(self.box_labels))
        if any(places != labels for places, labels in counts):
            raise ConfigError("points or boxes, and another number of labels", remedy="pass one label for each")

    @classmethod
    def of_boxes(cls, boxes: Floats, labels: Indices) -> Self:
        """Return boxes alone, from (m, 4) lowest x and y, highest x and y."""
        return cls(corners=boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]], box_labels=labels)

    @cached_property
    def boxes(self) -> Floats:
        """(m, 4) lowest x and y, highest x and y: the hull of each box."""
        return hulls(self.corners)

    @cached_property
    def point_index(self) -> PlaceIndex:
        """The points, to find those in a rectangle."""
        return PlaceIndex(self.points)

    @cached_property
    def box_index(self) -> BoxIndex:
        """The boxes, to find those in a rectangle."""
        return BoxIndex(self.boxes)

    @property
    def nbytes(self) -> int:
        """Memory of the places and labels."""
        return sum(each.nbytes for each in (self.points, self.point_labels, self.corners, self.box_labels))

    def __getstate__(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}  # indices are made again

    def moved(self, affine: Affine) -> Marks:
        """Return the marks after an affine."""
        return Marks(affine.apply(self.points), self.point_labels, affine.apply(self.corners), self.box_labels)

    def beside(self, other: Marks) -> Marks:
        """Return these and then those of ``other``."""
        return Marks(
            np.concatenate([self.points, other.points]),
            np.concatenate([self.point_labels, other.point_labels]),
            np.concatenate([self.corners, other.corners]),
            np.concatenate([self.box_labels, other.box_labels]),
        )

    def __len__(self) -> int:
        return len(self.points) + len(self.corners)


def hulls(corners: Floats) -> Floats:
    """Return lowest x and y, highest x and y of (m, k, 2) vertices, (m, 4)."""
    if not len(corners):
        return np.zeros((0, 4))
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)


def rectangles(polygons: Sequence[Polygon]) -> tuple[Indices, Floats]:
    """Return which polygons are rectangles, and their corners, (m, 4, 2); a turned rectangle is one, too.

    Examples
    --------
    >>> square, triangle = np.array([[0.0, 0], [3, 0], [3, 2], [0, 2], [0, 0]]), np.array([[0.0, 0], [3, 0], [3, 2]])
    >>> which, corners = rectangles([[triangle], [square]])
    >>> which.tolist(), corners.tolist()
    ([1], [[[0.0, 0.0], [3.0, 0.0], [3.0, 2.0], [0.0, 2.0]]])
    """
    which, found = [], []
    for number, polygon in enumerate(polygons):
        ring = polygon[0]
        if len(polygon) == 1 and (len(ring) == 4 or (len(ring) == 5 and (ring[0] == ring[4]).all())):
            which.append(number)
            found.append(ring[:4])
    if not found:
        return _no_labels(), _no_corners()
    corners = np.stack(found)
    # Opposite sides are equal after any affine; right angles only before one that stretches the axes unequally.
    apart = np.abs(corners[:, 0] + corners[:, 2] - corners[:, 1] - corners[:, 3]).max(axis=1)
    (x1, y1), (x2, y2) = (corners[:, 1] - corners[:, 0]).T, (corners[:, 3] - corners[:, 0]).T
    whole = (apart <= _RECTANGLE_PX) & (np.abs(x1 * y2 - x2 * y1) > 0)
    return np.array(which, np.int64)[whole], corners[whole]
