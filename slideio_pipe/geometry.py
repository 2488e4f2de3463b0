"""Sizes, rectangles, affines and pyramids: every conversion between frames, and the one place that rounds.

Frames are continuous and corner-based: pixel (i, j) covers [i, i+1) × [j, j+1), its centre is (i+½, j+½), and the
top-left corner of the slide is (0, 0) at every level. *Level-0 px* is the frame coordinates are stored in.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from numbers import Real
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Two resolutions within 2 % are the same: scanners write 0.2508 for 0.25, and resampling by 0.3 % only blurs.
SAME_RESOLUTION = 0.02
# Pixels up to a quarter coarser or finer than needed are sampled without a filter: a random zoom changes more.
FINE_ENOUGH = 1.25
# Factors that a JPEG decoder can shrink by: a resolution near one of these needs no other filter.
WHOLE_SHRINKS = (1, 2, 4, 8)
# Positions are snapped to a whole pixel that is this close: the pixels change by a quarter of a grey level at most.
WHOLE_PX = 1e-3
# Micrometres per pixel: light resolves about 0.2 µm, and the finest scanners (100×, oil) have pixels of 0.055 to 0.07.
FINEST_MPP = 0.05
# 10 µm per pixel at 1×: the convention behind "40× is 0.25 µm".
MPP_TIMES_MAGNIFICATION = 10.0


class Size(NamedTuple):
    """Width and height in pixels."""

    width: int
    height: int


class Rect(NamedTuple):
    """Left, top, width and height in pixels of one frame."""

    x: int
    y: int
    width: int
    height: int

    @property
    def right(self) -> int:
        """The first column that is not inside."""
        return self.x + self.width

    @property
    def lower(self) -> int:
        """The first row that is not inside."""
        return self.y + self.height

    def intersect(self, other: Rect) -> Rect:
        """Return the overlap; its width or height is 0 when there is none.

        >>> Rect(0, 0, 10, 10).intersect(Rect(8, -5, 10, 10))
        Rect(x=8, y=0, width=2, height=5)
        """
        x, y = max(self.x, other.x), max(self.y, other.y)
        right = min(self.x + self.width, other.x + other.width)
        bottom = min(self.y + self.height, other.y + other.height)
        return Rect(x, y, max(0, right - x), max(0, bottom - y))

    def around(self, other: Rect) -> Rect:
        """Return the smallest rectangle that contains both.

        >>> Rect(0, 0, 10, 10).around(Rect(8, -5, 10, 10))
        Rect(x=0, y=-5, width=18, height=15)
        """
        x, y = min(self.x, other.x), min(self.y, other.y)
        return Rect(x, y, max(self.right, other.right) - x, max(self.lower, other.lower) - y)


class Mpp(NamedTuple):
    """Micrometres per pixel along x and y."""

    x: float
    y: float

    @classmethod
    def of(cls, value: float | Sequence[float]) -> Mpp:
        """Return the resolution given as one number or as an (x, y) pair.

        >>> Mpp.of(0.5), Mpp.of((0.5, 0.25))
        (Mpp(x=0.5, y=0.5), Mpp(x=0.5, y=0.25))
        """
        if isinstance(value, Real):
            return cls(float(value), float(value))
        x, y = cast(Sequence[float], value)
        return cls(float(x), float(y))

    @classmethod
    def parse(cls, value: object) -> Mpp | None:
        """Return the resolution given as ``value``, or None when it is not a positive number or pair of them.

        >>> Mpp.parse(0.5), Mpp.parse("20x"), Mpp.parse((0.5, 0))
        (Mpp(x=0.5, y=0.5), None, None)
        """
        try:
            mpp = cls.of(value)  # type: ignore[arg-type]  # any object
        except (TypeError, ValueError):
            return None
        return mpp if all(math.isfinite(side) and side > 0 for side in mpp) else None

    @property
    def mean(self) -> float:
        """The geometric mean of both axes: the side of a square pixel of the same area, in µm."""
        return math.sqrt(self.x * self.y)


def too_fine(mpp: float) -> str:
    """Return why a scan cannot be as fine as ``mpp``, or an empty string if it can.

    >>> too_fine(0.25), too_fine(0.025), too_fine(0.00025)
    ('', "finer than any microscope's 0.05 µm", "finer than any microscope's 0.05 µm, as if in mm")
    """
    if mpp >= FINEST_MPP:
        return ""
    return f"finer than any microscope's {FINEST_MPP:g} µm" + (", as if in mm" if mpp < FINEST_MPP / 25 else "")


def magnification_to_mpp(magnification: float) -> float:
    """Return the conventional mpp of an objective power.

    >>> magnification_to_mpp(20)
    0.5
    """
    return MPP_TIMES_MAGNIFICATION / magnification


def round_half_up(values: ArrayLike) -> NDArray[np.int64]:
    """Round to the nearest integer, halves upwards, so that rounding commutes with a shift by whole pixels.

    >>> round_half_up([0.5, 1.5, -0.5, 2.4]).tolist()
    [1, 2, 0, 2]
    """
    return np.floor(np.asarray(values, dtype=np.float64) + 0.5).astype(np.int64)


def split_position(value: float) -> tuple[int, float]:
    """Return a position as a whole pixel and the fraction beyond it; a fraction under ``WHOLE_PX`` is 0.

    >>> split_position(2.25), split_position(2.9999), split_position(-0.5)
    ((2, 0.25), (3, 0.0), (-1, 0.5))
    """
    nearest = math.floor(value + 0.5)
    if abs(value - nearest) < WHOLE_PX:
        return nearest, 0.0
    return math.floor(value), value - math.floor(value)


def whole_where_nearly(corners: NDArray[Any]) -> NDArray[Any]:
    """Return (n, 2) corners in px, nearly whole ones rounded: int64 if all are whole, else float64.

    >>> whole_where_nearly(np.array([[2.0000001, 3]])).tolist(), whole_where_nearly(np.array([[2.5, 3]])).tolist()
    ([[2, 3]], [[2.5, 3.0]])
    """
    if corners.dtype.kind != "f":
        return corners.astype(np.int64)
    nearest = np.floor(corners + 0.5)
    whole = np.abs(corners - nearest) < WHOLE_PX
    return nearest.astype(np.int64) if whole.all() else np.where(whole, nearest, corners).astype(np.float64)


class Affine(NamedTuple):
    """x' = a·x + b·y + c and y' = d·x + e·y + f, on continuous coordinates.

    >>> to_level0 = Affine.scaling(4, 4)
    >>> to_level0.apply([[10, 20]]).tolist()
    [[40.0, 80.0]]
    >>> to_level0.inverse().apply([[40, 80]]).tolist()
    [[10.0, 20.0]]
    """  # a tuple: each tile's draw creates a dozen, and a frozen dataclass takes five times as long to create

    a: float = 1.0
    b: float = 0.0
    c: float = 0.0
    d: float = 0.0
    e: float = 1.0
    f: float = 0.0

    @classmethod
    def scaling(cls, x: float, y: float) -> Affine:
        """Return the affine that multiplies x and y."""
        return cls(a=float(x), e=float(y))

    @classmethod
    def translation(cls, x: float, y: float) -> Affine:
        """Return the affine that adds to x and y."""
        return cls(c=float(x), f=float(y))

    @classmethod
    def from_tuple(cls, values: Iterable[float]) -> Affine:
        """Return the affine of (a, b, c, d, e, f)."""
        return cls(*(float(v) for v in values))

    def as_tuple(self) -> tuple[float, float, float, float, float, float]:
        """Return (a, b, c, d, e, f)."""
        return (self.a, self.b, self.c, self.d, self.e, self.f)

    def __matmul__(self, first: Affine) -> Affine:
        """Return the affine that applies ``first`` and then this one."""
        # Written out: a product of numpy arrays takes ten times as long, and each tile's draw needs several.
        a, b, c, d, e, f = first
        return Affine(
            self.a * a + self.b * d,
            self.a * b + self.b * e,
            self.a * c + self.b * f + self.c,
            self.d * a + self.e * d,
            self.d * b + self.e * e,
            self.d * c + self.e * f + self.f,
        )

    def matrix(self) -> NDArray[np.float64]:
        """Return the (3, 3) homogeneous matrix."""
        return np.array([[self.a, self.b, self.c], [self.d, self.e, self.f], [0.0, 0.0, 1.0]])

    def inverse(self) -> Affine:
        """Return the affine that undoes this one."""
        area = self.a * self.e - self.b * self.d
        if area == 0:
            raise np.linalg.LinAlgError("a singular affine has no inverse")
        a, b, d, e = self.e / area, -self.b / area, -self.d / area, self.a / area
        return Affine(a, b, -(a * self.c + b * self.f), d, e, -(d * self.c + e * self.f))

    def apply(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map (..., 2) points (x, y) to (..., 2) float64."""
        xy = np.asarray(points, dtype=np.float64)
        x, y = xy[..., 0], xy[..., 1]
        return np.stack([self.a * x + self.b * y + self.c, self.d * x + self.e * y + self.f], axis=-1)

    def scale(self) -> tuple[float, float]:
        """Return the lengths that unit steps along x and y are mapped to."""
        return math.hypot(self.a, self.d), math.hypot(self.b, self.e)

    def mean_stretch(self) -> float:
        """Return the geometric mean of the singular values: the square root of the area a unit square is mapped to."""
        return math.sqrt(abs(self.a * self.e - self.b * self.d))

    def least_stretch(self) -> float:
        """Return the smaller singular value: the length that the most shrunk unit step is mapped to."""
        a, b, _, d, e, _ = self.as_tuple()
        half, area = (a * a + b * b + d * d + e * e) / 2, a * e - b * d
        return math.sqrt(max(0.0, half - math.sqrt(max(0.0, half * half - area * area))))


def products(outer: NDArray[np.float64], inner: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``outer @ inner`` of affines, (n, 6) in the order a, b, c, d, e, f; one of them may be (6,).

    >>> products(np.array(Affine.scaling(2, 2)), np.array([Affine.translation(1, 0)])).tolist()
    [[2.0, 0.0, 2.0, 0.0, 2.0, 0.0]]
    """
    (a, b, c, d, e, f), (g, h, i, j, k, m) = outer.T, inner.T
    made = np.empty((6, max(outer.size, inner.size) // 6))  # np.stack takes ten times as long for a few
    made[0], made[1], made[2] = a * g + b * j, a * h + b * k, a * i + b * m + c
    made[3], made[4], made[5] = d * g + e * j, d * h + e * k, d * i + e * m + f
    return made.T


def inverses(affines: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the inverses of affines (n, 6).

    >>> inverses(np.array([[2.0, 0, 4, 0, 2, 6]])).tolist()
    [[0.5, -0.0, -2.0, -0.0, 0.5, -3.0]]
    """
    a, b, c, d, e, f = affines.T
    area = a * e - b * d
    if not area.all():
        raise np.linalg.LinAlgError("a singular affine has no inverse")
    made = np.empty((6, len(affines)))
    made[0], made[1], made[3], made[4] = g, h, j, k = e / area, -b / area, -d / area, a / area
    made[2], made[5] = -(g * c + h * f), -(j * c + k * f)
    return made.T


@dataclass(frozen=True, slots=True)
class LevelChoice:
    """The level a view is read from, and the factor it is shrunk by."""

    level: int
    shrink: tuple[float, float]  # view px = level px / shrink, per axis; (1, 1) means no resampling

    @property
    def resampled(self) -> bool:
        """Whether view pixels differ from stored pixels."""
        return self.shrink != (1.0, 1.0)


@dataclass(frozen=True, slots=True)
class Pyramid:
    """The sizes of a slide's levels, largest first, and what follows from them.

    >>> p = Pyramid((Size(4443, 3567), Size(2221, 1783)))
    >>> tuple(round(d, 4) for d in p.downsamples[1])
    (2.0005, 2.0006)
    >>> p.choose((2.0, 2.0))
    LevelChoice(level=1, shrink=(1.0, 1.0))
    """

    levels: tuple[Size, ...]
    # (x, y) per level if the file states them; not in the repr, because fingerprints are computed from it.
    stated: tuple[tuple[float, float], ...] | None = field(default=None, repr=False)

    @property
    def downsamples(self) -> tuple[tuple[float, float], ...]:
        """Level-0 px per level px, (x, y), per level: as stated, else from the stored sizes, never ``2**level``."""
        return self.stated or _downsamples(self.levels)

    def size_at(self, choice: LevelChoice) -> Size:
        """Return the whole slide's size at ``choice``, without pixels that reach over its edge."""
        (width, height), (sx, sy) = self.levels[choice.level], choice.shrink
        # 1e-6 px of slack: 4443 / (4443 / 2221) is 2220.9999… and means 2221.
        return Size(max(1, int(width / sx + 1e-6)), max(1, int(height / sy + 1e-6)))

    def downsample_at(self, choice: LevelChoice) -> tuple[float, float]:
        """Return level-0 px per px at ``choice``, along x and y."""
        (dx, dy), (sx, sy) = self.downsamples[choice.level], choice.shrink
        return dx * sx, dy * sy

    def choose(self, downsample: tuple[float, float], *, same: float = SAME_RESOLUTION) -> LevelChoice:
        """Return the coarsest level that is at least as fine as ``downsample``, and the remaining shrink.

        A downsample within 2 % (``same``) of the level, or of 2, 4 or 8 times it, is rounded to that: it needs no
        filter with fractional steps.
        """
        best = 0
        for index, (dx, dy) in enumerate(self.downsamples):
            if dx <= downsample[0] * (1 + same) and dy <= downsample[1] * (1 + same):
                best = index
        dx, dy = self.downsamples[best]
        shrink = (downsample[0] / dx, downsample[1] / dy)
        for whole in WHOLE_SHRINKS:
            if all(abs(s / whole - 1) <= same for s in shrink):
                shrink = (float(whole), float(whole))
        return LevelChoice(best, shrink)


@lru_cache
def _downsamples(levels: tuple[Size, ...]) -> tuple[tuple[float, float], ...]:
    w, h = levels[0]
    return tuple((w / size.width, h / size.height) for size in levels)
