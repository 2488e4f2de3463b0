"""Downsamples of levels, including levels that are padded to whole tiles.

A padded level is larger than its part of the slide: 480 px instead of 360 with tiles of 240. The ratio of the sizes,
1.5, is then not its downsample, 2, and every pixel would be read from the wrong place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from slideio_pipe.errors import LeftOutLevelsWarning, warn_caller
from slideio_pipe.geometry import Pyramid, Size

Downsample = tuple[float, float]

UNKNOWN_TILE = Size(2**31, 2**31)  # no level is a multiple of it
# A stated ratio within this of a whole number is rounded to it: files state resolutions with few digits.
_WHOLE_WITHIN = 0.005
# Allowed difference of a level's size from the stated one, in px or as a fraction, for a value with few digits.
_SIZE_TOLERANCE_PX, _SIZE_TOLERANCE = 2.0, 0.01


class PlacedLevels(NamedTuple):
    """The levels of a slide with known downsamples."""

    pyramid: Pyramid
    kept: tuple[int, ...]  # their indices among the stored levels


def place_levels(
    sizes: Sequence[Size], stated: Sequence[Downsample | None], tiles: Sequence[Size], slide: str
) -> PlacedLevels:
    """Return the levels with their true downsamples; padding is cropped.

    Parameters
    ----------
    sizes, tiles : sequence of Size
        Sizes of the stored levels, largest first, and of their stored tiles.
    stated : sequence of (float, float) or None
        Downsamples, (x, y), stated in the file, or None.
    slide : str
        Name for warnings.

    Warns
    -----
    LeftOutLevelsWarning
        A level's size fits neither the stated nor a whole downsample. It is not used: finer levels replace it.
    """
    downsamples = _drop_constant(sizes, stated)
    padded = any(d is None and _seems_padded(sizes[0], s, t) for s, d, t in zip(sizes, downsamples, tiles, strict=True))
    placed = [_place(sizes[0], *level, padded=padded) for level in zip(sizes, downsamples, tiles, strict=True)]
    kept = tuple(index for index, found in enumerate(placed) if found is not None)
    if len(kept) < len(sizes):
        left = ", ".join(f"{w} × {h}" for w, h in (sizes[index] for index in range(len(sizes)) if index not in kept))
        warn_caller(
            LeftOutLevelsWarning(
                f"{slide}: levels of {left} px are not used: their sizes fit no downsample of "
                f"{sizes[0].width} × {sizes[0].height} px, and the file states none that does"
            )
        )
    found = [place for place in placed if place is not None]
    by_size = Pyramid(tuple(size for size, _ in found))
    downs = tuple(down for _, down in found)
    return PlacedLevels(by_size if downs == by_size.downsamples else Pyramid(by_size.levels, downs), kept)


def ratio(base: Size, size: Size) -> Downsample:
    """Return the downsample computed from the sizes."""
    return base.width / size.width, base.height / size.height


def _drop_constant(sizes: Sequence[Size], stated: Sequence[Downsample | None]) -> Sequence[Downsample | None]:
    """Return the stated values; None for each if every level states level 0's, which means the field was not set."""
    same = all(down is None or max(down) < 1 + _WHOLE_WITHIN for down in stated)
    return [None] * len(sizes) if same and min(size.width for size in sizes) < sizes[0].width else stated


def _place(
    base: Size, size: Size, stated: Downsample | None, tile: Size, *, padded: bool
) -> tuple[Size, Downsample] | None:
    if size == base and (stated is None or max(stated) < 1 + _WHOLE_WITHIN):
        return size, (1.0, 1.0)
    by_size = ratio(base, size)
    if stated is None:
        return None if padded and _is_whole_tiles(size, tile) else (size, by_size)
    for down in (_snapped(stated), stated):
        if all(_fits(*axis) for axis in zip(base, size, tile, down, strict=True)):
            width, height = (_cut(*axis) for axis in zip(base, size, down, strict=True))
            return Size(width, height), down
    expected = [whole / down for whole, down in zip(base, stated, strict=True)]
    fits = (
        abs(side - px) <= max(_SIZE_TOLERANCE_PX, _SIZE_TOLERANCE * px) for side, px in zip(size, expected, strict=True)
    )
    return (size, by_size) if all(fits) else None


def _snapped(down: Downsample) -> Downsample:
    x, y = (float(round(d)) if abs(d - round(d)) <= _WHOLE_WITHIN * d else d for d in down)
    return x, y


def _fits(base: int, side: int, tile: int, down: float) -> bool:
    """Return whether a level's side is its part of the slide in any rounding, or that padded to whole tiles."""
    return abs(side - base / down) <= 1 or side == _to_whole_tiles(base / down, tile)


def _cut(base: int, side: int, down: float) -> int:
    """Return a side without its padding."""
    return side if side <= base / down + 1 else max(1, int(base / down + 1e-6))


def _to_whole_tiles(px: float, tile: int) -> int:
    return -int(-(px - 1e-6) // tile) * tile


def _is_whole_tiles(size: Size, tile: Size) -> bool:
    return not any(side % t for side, t in zip(size, tile, strict=True))


def _seems_padded(base: Size, size: Size, tile: Size) -> bool:
    """Return whether a level is whole tiles on both axes, which is rare, and no whole downsample gives its size."""
    downs = [max(1, round(down)) for down in ratio(base, size)]
    fits = all(abs(side - whole / down) <= 1 for side, whole, down in zip(size, base, downs, strict=True))
    return _is_whole_tiles(size, tile) and not (fits and downs[0] == downs[1])
