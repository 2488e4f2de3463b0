"""Read the pixels of a rectangle of a slide at any resolution, plain or through an affine.

Two steps, each with one filter. *Plain*: level pixels, shrunk from the tile's exact fractional source box, so that
neighbours fit seamlessly and equal a crop of the whole view. JPEG levels are decoded at a half, a quarter or an eighth
where the shrink allows it; the rest is an antialiased triangle (Pillow's BILINEAR, also torchvision's antialiased
resize). If a rectangle begins between pixels, level pixels are interpolated (bilinear, as in OpenSlide), and the
decoder's means are computed from the rectangle's start. *Drawn*: an affine of plain pixels, bilinear, white (or black)
outside.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
import pyvips
from numpy.typing import NDArray
from PIL import Image

from slideio_pipe.compiled.library import Slots, addresses
from slideio_pipe.errors import CorruptSlideError
from slideio_pipe.geometry import (
    WHOLE_PX,
    WHOLE_SHRINKS,
    Affine,
    LevelChoice,
    Pyramid,
    Rect,
    Size,
    split_position,
)
from slideio_pipe.slides.backends.base import OnTiming, StaleLevelError, StoredTiles
from slideio_pipe.slides.resampling import shrink, warp
from slideio_pipe.slides.tile_cache import SHARED

# Level pixels fetched at once when shrinking: 48 MB for any shrink factor.
_MAX_FETCH_PX = 16_000_000
# Tiles are scattered if they need more than this fraction of the stored tiles that they would need without sharing.
_SCATTERED_FROM = 0.75
# Up to this many tiles are not called scattered: if tiles are read one by one, the next may be a neighbour.
_TOO_FEW_TO_SCATTER = 4
# A stored tile is decoded partly if less than this fraction of its height is needed; else all of it is kept.
_PARTLY_BELOW = 0.8
# An uneven shrink may stretch its finer axis by this factor from the mean: 4:3 into a square is 1.15.
NEARLY = 1.2
# Up to this σ the weights of a Gaussian's neighbours round to 0 of 256 in OpenCV: it would change no byte.
NO_BLUR = 0.28
Offset = tuple[float, float]
ON_GRID: Offset = (0.0, 0.0)


def blur_of(shrink: float) -> float:
    """Return the σ, px, of the Gaussian before pixels are sampled ``shrink`` times smaller; 0 where none is needed."""
    return (shrink - 1) / 2 if shrink > 1 + 2 * NO_BLUR else 0.0


def blurs_of(shrinks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what ``blur_of`` returns, for (n,) shrinks."""
    return np.where(shrinks > 1 + 2 * NO_BLUR, (shrinks - 1) / 2, 0.0)


class LevelSource(Protocol):
    """The parts of a slide that sampling uses; ``Slide`` has them."""

    @property
    def name(self) -> str: ...
    @property
    def pyramid(self) -> Pyramid: ...
    def level_image(self, level: int) -> Any: ...
    def stored_tiles(self, level: int) -> StoredTiles | None: ...
    def raise_failure(self, level: int, rect: Rect, pixels: NDArray[np.uint8]) -> None: ...


class Blocks(NamedTuple):
    """Tiles that consist of whole stored tiles."""

    tiles: StoredTiles
    reduce: int  # shrink factor of the decoder
    side: int  # stored tiles per side of a tile
    places: list[tuple[int, int] | None]  # first stored tile (column, row) per tile; None: not whole ones

    @property
    def overlap(self) -> bool:
        """Whether different tiles need the same stored tile."""
        if self.side == 1:
            return False
        first = np.array(sorted({place for place in self.places if place is not None}), np.int64).reshape(-1, 2)
        steps = np.stack(np.meshgrid(np.arange(self.side), np.arange(self.side)), axis=-1).reshape(-1, 2)
        cells = (first[:, None] + steps).reshape(-1, 2)
        return len(np.unique(cells[:, 1] << 32 | cells[:, 0])) < len(cells)


class Sampler:
    """Reads rectangles of one slide; can be shared by threads, each of which has its own regions.

    Parameters
    ----------
    slide : LevelSource
    on_stage : callable, optional
        Called with ("read" | "decode" | "fallback" | "resample", start, end), ``time.perf_counter`` seconds, in the
        thread of the work.
    outside : int
        Grey level outside the slide: 255 is white.
    """

    def __init__(self, slide: LevelSource, on_stage: OnTiming | None = None, *, outside: int = 255) -> None:
        self.slide, self.on_stage, self.outside = slide, on_stage, outside
        self._local = threading.local()

    def blocks(self, choice: LevelChoice, corners: NDArray[Any], tile_size: int) -> Blocks | None:
        """Return which square tiles at ``corners`` (n, 2) consist of whole stored JPEG tiles; None if none does.

        Such tiles need no cache and no filter: they are decoded directly into their slot.
        """
        tiles, reduce = self.slide.stored_tiles(choice.level), self.decoder_shrink(choice)
        if tiles is None or choice.shrink != (reduce, reduce):
            return None
        side, rest = divmod(tile_size * reduce, tiles.tile.width)
        if rest or tiles.tile.width != tiles.tile.height:
            return None
        index, offsets = np.divmod(corners * reduce, tiles.tile.width)
        inside = (corners + tile_size) * reduce <= np.array(self.slide.pyramid.levels[choice.level])
        whole = ((offsets == 0) & (index >= 0) & inside).all(axis=1)
        numbers = index.astype(np.int64).tolist()
        places = [(x, y) if fits else None for (x, y), fits in zip(numbers, whole, strict=True)]
        return Blocks(tiles, reduce, side, places)

    def scattered(self, choice: LevelChoice, corners: NDArray[Any], tile_size: int) -> bool:
        """Return whether tiles at ``corners`` (n, 2) share few stored tiles."""
        tiles = self.slide.stored_tiles(choice.level)
        if tiles is None or len(corners) < _TOO_FEW_TO_SCATTER:
            return False
        first = np.floor_divide(corners * choice.shrink, tiles.tile).astype(np.int64)
        last = np.floor_divide((corners + tile_size) * choice.shrink - 1, tiles.tile).astype(np.int64)
        columns = last[:, 0] - first[:, 0] + 1
        each = columns * (last[:, 1] - first[:, 1] + 1)
        owner = np.repeat(np.arange(len(each)), each)
        rows, across = np.divmod(np.arange(len(owner)) - (np.cumsum(each) - each)[owner], columns[owner])
        places = ((first[owner, 1] + rows) << 32) + first[owner, 0] + across
        return len(np.unique(places)) > _SCATTERED_FROM * len(owner)

    def read_blocks(self, blocks: Blocks, places: Sequence[tuple[int, int]], slots: Slots) -> None:
        """Write tiles that consist of whole stored tiles into their slots; ``places`` are those of ``blocks``."""
        side, width = blocks.side, blocks.tiles.tile.width // blocks.reduce
        stride = side * width * 3
        cells = [(column + x, row + y) for column, row in places for y in range(side) for x in range(side)]
        steps = [width * (y * stride + 3 * x) for y in range(side) for x in range(side)]
        goals = [start + step for start in addresses(slots) for step in steps]
        left = blocks.tiles.decode_at(
            cells, goals, stride=stride, rows=width, reduce=blocks.reduce, on_stage=self.on_stage
        )
        for k in left:
            slot, (y, x) = slots[k // side**2], divmod(k % side**2, side)
            out = slot[y * width : (y + 1) * width, x * width : (x + 1) * width]
            self._read_block(blocks, cells[k], out)

    def _read_block(self, blocks: Blocks, place: tuple[int, int], out: NDArray[np.uint8]) -> None:
        """Write one stored tile into ``out``."""
        column, row = place
        if out.flags.c_contiguous:
            blocks.tiles.decode(column, row, out, reduce=blocks.reduce, on_stage=self.on_stage)
            return
        scratch = getattr(self._local, "scratch", None)
        if scratch is None or scratch.shape != out.shape:
            scratch = self._local.scratch = np.empty(out.shape, np.uint8)
        out[:] = blocks.tiles.decode(column, row, scratch, reduce=blocks.reduce, on_stage=self.on_stage)

    def plain(
        self,
        choice: LevelChoice,
        rect: Rect,
        out: NDArray[np.uint8],
        *,
        scattered: bool = False,
        offset: Offset = ON_GRID,
    ) -> None:
        """Write ``rect`` of the slide at ``choice`` into ``out``; outside the slide is white.

        Raise CorruptSlideError if pixels cannot be decoded; the message names the place.

        Parameters
        ----------
        choice : LevelChoice
            The level and the factor it is shrunk by.
        rect : Rect
            Rectangle in px at that resolution.
        out : (rect.height, rect.width, 3) uint8
            May be a strided view.
        scattered : bool
            Whether few other rectangles need the same stored tiles: then only the needed rows of each are decoded.
        offset : (float, float)
            Offset of the pixels from ``rect``, to the right and down, 0 to 1. Pixels with at least half their area
            inside the slide are read from it.
        """
        size = self.slide.pyramid.size_at(choice)
        inside = rect.intersect(Rect(0, 0, *size)) if offset == ON_GRID else _centred_inside(rect, offset, size)
        if inside != rect:
            out[:] = self.outside
        if not inside.width or not inside.height:
            return
        top, left = inside.y - rect.y, inside.x - rect.x
        target = out[top : top + inside.height, left : left + inside.width]
        if choice.resampled or offset != ON_GRID:
            self._shrink(choice, inside, target, scattered, offset)
        else:
            self._level(choice.level, 1, inside, target, scattered=scattered)

    def drawn(
        self,
        choice: LevelChoice,
        affine: Affine,
        out: NDArray[np.uint8],
        *,
        shrink: float = 1.0,
        offset: Offset = ON_GRID,
    ) -> None:
        """Write pixels into ``out`` through an affine from ``out`` px to px at ``choice``, bilinear, white outside.

        Parameters
        ----------
        choice : LevelChoice
            The plain resolution that is sampled.
        affine : Affine
            From ``out`` px to plain px, corner-based.
        out : (H, W, 3) uint8, C-contiguous
        shrink : float
            Shrink factor of the affine. Where it changes a byte, plain pixels are blurred first, with the Gaussian of
            scikit-image's ``resize(anti_aliasing=True)``: σ = (shrink − 1) / 2.
        offset : (float, float)
            Offset of the sampled pixels in the plain ones, 0 to 1: flips and quarter turns of a tile between pixels
            move its pixels and do not interpolate twice.
        """
        if offset != ON_GRID:
            affine = Affine.translation(-offset[0], -offset[1]) @ affine
        height, width = out.shape[:2]
        blur = blur_of(shrink)
        rect = _reach(affine, Size(width, height), 0 if _is_exact(affine) and not blur else 1 + math.ceil(3 * blur))
        inside = rect.intersect(Rect(-1, -1, *(side + 2 for side in self.slide.pyramid.size_at(choice))))
        if not inside.width or not inside.height:
            out[:] = self.outside
            return
        pixels = np.empty((inside.height, inside.width, 3), np.uint8)
        self.plain(choice, inside, pixels, offset=offset)
        start = time.perf_counter() if self.on_stage else 0.0
        local = Affine.translation(-inside.x, -inside.y) @ affine
        warp(pixels, local, out, outside=self.outside, sigma=blur)
        if self.on_stage:
            self.on_stage("resample", start, time.perf_counter())

    def _shrink(
        self, choice: LevelChoice, inside: Rect, target: NDArray[np.uint8], scattered: bool, offset: Offset = ON_GRID
    ) -> None:
        """Resample the level pixels of ``inside`` (px at ``choice``, shifted by ``offset``) into ``target``."""
        reduce = self.decoder_shrink(choice)
        if choice.shrink == (reduce, reduce):
            if offset == ON_GRID:
                self._level(choice.level, reduce, inside, target, scattered=scattered)
                return
            if reduce > 1:
                self._means(choice.level, reduce, inside, target, scattered, offset)
                return
        sx, sy = (side / reduce for side in choice.shrink)
        x = inside.x + offset[0]
        for first, rows in _bands(inside, sx, sy):
            y = inside.y + first + offset[1]
            box = (x * sx, y * sy, (x + inside.width) * sx, (y + rows) * sy)
            pixels, source = self._source_pixels(choice.level, reduce, box, (sx, sy), scattered, offset)
            begun = time.perf_counter() if self.on_stage else 0.0
            local = (box[0] - source.x, box[1] - source.y, box[2] - source.x, box[3] - source.y)
            shrink(pixels, local, target[first : first + rows])
            if self.on_stage:
                self.on_stage("resample", begun, time.perf_counter())

    def _source_pixels(
        self,
        level: int,
        reduce: int,
        box: tuple[float, float, float, float],
        shrink: tuple[float, float],
        scattered: bool,
        offset: Offset,
    ) -> tuple[NDArray[np.uint8], Rect]:
        """Return the pixels that resampling ``box`` needs, and their rectangle in px decoded ``reduce`` smaller."""
        whole = self._reduced(level, reduce)
        if offset == ON_GRID:
            source = _filter_reach(box, *shrink).intersect(whole)
        else:
            needed = _covering(box) if shrink == (1.0, 1.0) else _filter_reach(box, *shrink)
            # Half a pixel of the rectangle may be outside the slide.
            source = needed.intersect(whole.around(_covering(box)))
        return self._extended(level, reduce, source, scattered), source

    def _means(
        self, level: int, shrink: int, inside: Rect, target: NDArray[np.uint8], scattered: bool, offset: Offset
    ) -> None:
        """Write means of ``shrink`` × ``shrink`` level pixels, equal to the decoder's on its own grid, also between it.

        If the rectangle begins on the decoder's grid, the decoder's smaller pixels are used: fewer are decoded.
        """
        starts = [(corner + part) * shrink for corner, part in zip(inside[:2], offset, strict=True)]
        fits = [n for n in WHOLE_SHRINKS if n < shrink and all(split_position(start / n)[1] == 0 for start in starts)]
        reduce = max(fits, default=1)
        per = shrink // reduce
        x, across = split_position(starts[0] / reduce)
        y, down = split_position(starts[1] / reduce)
        for first, rows in _bands(inside, per, per):
            width, height = inside.width * per, rows * per
            source = Rect(x, y + first * per, width + (across > 0), height + (down > 0))
            image = Image.fromarray(self._extended(level, reduce, source, scattered))
            begun = time.perf_counter() if self.on_stage else 0.0
            if across or down:
                box = (across, down, across + width, down + height)
                image = image.resize((width, height), Image.Resampling.BILINEAR, box=box)
            target[first : first + rows] = np.asarray(image.reduce(per))
            if self.on_stage:
                self.on_stage("resample", begun, time.perf_counter())

    def _extended(self, level: int, reduce: int, source: Rect, scattered: bool) -> NDArray[np.uint8]:
        """Return level pixels, decoded ``reduce`` times smaller; past the edge the level's last pixels are repeated."""
        inside = source.intersect(self._reduced(level, reduce))
        pixels = np.empty((inside.height, inside.width, 3), np.uint8)
        self._level(level, reduce, inside, pixels, scattered=scattered)
        if inside == source:
            return pixels
        left, top = inside.x - source.x, inside.y - source.y
        right, lower = source.right - inside.right, source.lower - inside.lower
        return np.asarray(cv2.copyMakeBorder(pixels, top, lower, left, right, cv2.BORDER_REPLICATE), np.uint8)

    def _reduced(self, level: int, reduce: int) -> Rect:
        """Return the whole level in px decoded ``reduce`` times smaller."""
        width, height = self.slide.pyramid.levels[level]
        return Rect(0, 0, -(-width // reduce), -(-height // reduce))

    def decoder_shrink(self, choice: LevelChoice) -> int:
        """Return the shrink factor of the decoder: 1, 2, 4 or 8."""
        tiles = self.slide.stored_tiles(choice.level)
        if tiles is None:
            return 1
        sx, sy = choice.shrink
        fits = [n for n in WHOLE_SHRINKS if min(sx, sy) >= n and not (tiles.tile.width % n or tiles.tile.height % n)]
        return max(fits, default=1)

    def _level(
        self, level: int, reduce: int, rect: Rect, target: NDArray[np.uint8], *, scattered: bool = False
    ) -> None:
        """Write level pixels, decoded ``reduce`` times smaller, into ``target``; ``rect`` is in such pixels."""
        tiles = self.slide.stored_tiles(level)
        if tiles is None:
            target[:] = self._fetch(level, rect)
            return
        width, height = tiles.tile.width // reduce, tiles.tile.height // reduce
        column, row = rect.x // width, rect.y // height
        for r in range(row, (rect.y + rect.height - 1) // height + 1):
            for c in range(column, (rect.x + rect.width - 1) // width + 1):
                x, y = c * width - rect.x, r * height - rect.y  # position of the stored tile in the target
                left, upper = max(0, x), max(0, y)
                right, lower = min(rect.width, x + width), min(rect.height, y + height)
                pixels = self._stored(tiles, level, c, r, reduce, lower - y if scattered else height)
                target[upper:lower, left:right] = pixels[upper - y : lower - y, left - x : right - x]

    def _stored(
        self, tiles: StoredTiles, level: int, column: int, row: int, reduce: int, rows: int
    ) -> NDArray[np.uint8]:
        """Return a stored tile, or at least its first ``rows``; partial tiles are not cached."""
        key = (reduce, column, row)
        if self.partly(tiles, level, row, rows * reduce):
            known = SHARED.known(tiles, key)
            if known is not None:
                return known
            if reduce == 1 or (column + 1) * tiles.tile.width <= self.slide.pyramid.levels[level].width:
                return tiles.decode(column, row, reduce=reduce, rows=rows * reduce, on_stage=self.on_stage)
        return SHARED.get(tiles, key, partial(self._decode, tiles, level, column, row, reduce))

    def partly(self, tiles: StoredTiles, level: int, row: int, rows: int) -> bool:
        """Return whether a stored tile is decoded partly if its first ``rows``, level px, are needed."""
        height = tiles.tile.height
        return rows < _PARTLY_BELOW * height and (row + 1) * height <= self.slide.pyramid.levels[level].height

    def is_whole(self, tiles: StoredTiles, level: int, column: int, row: int) -> bool:
        """Return whether all of a stored tile is inside the level."""
        width, height = self.slide.pyramid.levels[level]
        return (column + 1) * tiles.tile.width <= width and (row + 1) * tiles.tile.height <= height

    def decoded(
        self, tiles: StoredTiles, level: int, reduce: int, column: int, row: int, rows: int | None = None
    ) -> NDArray[np.uint8]:
        """Return one of a level's stored tiles, decoded ``reduce`` times smaller, C-contiguous.

        ``rows`` is the number of its first rows that are needed; None keeps all of it in the cache.
        """
        pixels = SHARED.known(tiles, (reduce, column, row))
        if pixels is None:
            height = tiles.tile.height // reduce
            pixels = self._stored(tiles, level, column, row, reduce, height if rows is None else rows)
        return pixels if pixels.flags.c_contiguous else np.ascontiguousarray(pixels)

    def _decode(self, tiles: StoredTiles, level: int, column: int, row: int, reduce: int) -> NDArray[np.uint8]:
        """Return a stored tile, decoded ``reduce`` times smaller, as if the level continued beyond its edge."""
        size, (width, height) = self.slide.pyramid.levels[level], tiles.tile
        right, lower = min(width, size.width - column * width), min(height, size.height - row * height)
        if reduce == 1 or (right, lower) == (width, height):
            return tiles.decode(column, row, reduce=reduce, on_stage=self.on_stage)
        # The file's padding, often black, belongs to the DCT blocks at the edge and would be visible.
        full = tiles.decode(column, row, on_stage=self.on_stage)[:lower, :right]
        full = cv2.copyMakeBorder(full, 0, height - lower, 0, width - right, cv2.BORDER_REPLICATE)
        small = cv2.resize(full, (width // reduce, height // reduce), interpolation=cv2.INTER_AREA)
        return np.asarray(small, np.uint8)

    def _fetch(self, level: int, rect: Rect) -> NDArray[np.uint8]:
        """Return level pixels, (h, w, 3) uint8, decoded in this thread."""
        slide = self.slide
        begun = time.perf_counter() if self.on_stage else 0.0
        try:
            buffer = self._region(level).fetch(*rect)
        except pyvips.Error as error:
            with suppress(StaleLevelError):  # a stale image is renewed anyway
                slide.raise_failure(level, rect, np.zeros((rect.height, rect.width, 3), np.uint8))
            dx, dy = slide.pyramid.downsamples[level]
            place = f"level {level} near level-0 px ({round(rect.x * dx)}, {round(rect.y * dy)})"
            raise CorruptSlideError(
                f"pixels of {place} cannot be decoded ({' '.join(str(error).split())})",
                slide=slide.name,
                remedy="copy the slide again, or leave this region out",
            ) from error
        pixels = np.frombuffer(buffer, np.uint8).reshape(rect.height, rect.width, 3)
        try:
            slide.raise_failure(level, rect, pixels)
        except StaleLevelError:  # another thread read a damaged tile meanwhile
            return self._fetch(level, rect)
        if self.on_stage:
            self.on_stage("decode", begun, time.perf_counter())
        return pixels

    def _region(self, level: int) -> Any:
        """Return this thread's region of a level: libvips binds a region to its thread."""
        image = self.slide.level_image(level)
        regions = self._local.__dict__.setdefault("regions", {})
        known = regions.get(level)
        if known is None or known[0] is not image:
            # A region does not keep the image's Python side alive, which is needed for a virtual TIFF's callbacks.
            known = regions[level] = (image, pyvips.Region.new(image))
        return known[1]


def _is_exact(affine: Affine) -> bool:
    """Return whether an affine copies whole pixels: it mirrors or turns by quarters, and needs no pixel around."""
    a, b, c, d, e, f = affine
    return {abs(a), abs(b), abs(d), abs(e)} == {0.0, 1.0} and c == math.floor(c) and f == math.floor(f)


def _reach(affine: Affine, size: Size, margin: int) -> Rect:
    """Return the plain pixels that sampling a ``size`` image through ``affine`` can touch, ``margin`` px around."""
    corners = affine.apply([(0, 0), (size.width, 0), (0, size.height), (size.width, size.height)])
    left, upper = (math.floor(v) - margin for v in corners.min(axis=0))
    right, lower = (math.ceil(v) + margin for v in corners.max(axis=0))
    return Rect(left, upper, right - left, lower - upper)


def _filter_reach(box: tuple[float, float, float, float], sx: float, sy: float) -> Rect:
    """Return the pixels that shrinking ``box`` by (sx, sy) needs.

    The filter extends one shrunk pixel beyond the box; at the slide's edge it is cropped and renormalised.
    """
    left, upper = math.floor(box[0] - sx) - 1, math.floor(box[1] - sy) - 1
    right, lower = math.ceil(box[2] + sx) + 1, math.ceil(box[3] + sy) + 1
    return Rect(left, upper, right - left, lower - upper)


def _centred_inside(rect: Rect, offset: Offset, size: Size) -> Rect:
    """Return the pixels of ``rect``, shifted by ``offset``, whose centres are inside an image."""
    first = [max(corner, math.ceil(-0.5 - part)) for corner, part in zip(rect[:2], offset, strict=True)]
    ends = zip((rect.right, rect.lower), size, offset, strict=True)
    last = [min(end, math.floor(side + 0.5 - part)) for end, side, part in ends]
    return Rect(first[0], first[1], max(0, last[0] - first[0]), max(0, last[1] - first[1]))


def _covering(box: tuple[float, float, float, float]) -> Rect:
    """Return the whole pixels that ``box`` touches."""
    left, upper = math.floor(box[0] + WHOLE_PX), math.floor(box[1] + WHOLE_PX)
    return Rect(left, upper, math.ceil(box[2] - WHOLE_PX) - left, math.ceil(box[3] - WHOLE_PX) - upper)


def _bands(inside: Rect, sx: float, sy: float) -> Iterator[tuple[int, int]]:
    """Yield (first, rows) from the top, so that no band needs more than ``_MAX_FETCH_PX`` level pixels."""
    per_row = max(1.0, inside.width * sx * sy)
    rows = max(1, min(inside.height, int(_MAX_FETCH_PX / per_row)))
    for first in range(0, inside.height, rows):
        yield first, min(rows, inside.height - first)
