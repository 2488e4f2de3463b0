"""JPEG tiles of one TIFF level, each decoded from its own bytes: without a lazy graph, cache or lock.

A stored tile is read with ``pread`` and decoded by libjpeg-turbo directly into the caller's array, without the GIL, at
full size or at a half, a quarter or an eighth (computed by its DCT for less than the full decode, ITU-T T.81, A.3.3).
Full-size pixels equal those of libvips bit for bit: same library, same settings.
"""

from __future__ import annotations

import os
import struct
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from slideio_pipe.compiled.library import address, load
from slideio_pipe.compiled.records import STORED, STORED_TILE
from slideio_pipe.errors import CorruptSlideError, SlideioPipeError
from slideio_pipe.files import open_to_read, pread
from slideio_pipe.geometry import Rect, Size
from slideio_pipe.slides.backends.base import OnTiming, serials
from slideio_pipe.slides.backends.jpeg_header import (
    DAMAGE,
    EXTRANEOUS,
    complete_jpeg,
    cut_to,
    frame_place,
    is_sequential,
    jpeg_head,
    read_frame,
)
from slideio_pipe.slides.backends.tiff_decoder import TileDecoder
from slideio_pipe.slides.backends.tiff_header import TiffPage
from slideio_pipe.slides.pixel_memory import PIXELS

_REMEDY = "copy the slide again, or leave this region out"
# A row of blocks is 8 px high, 16 with chroma of half the height, which also uses the next row of chroma.
_MCU, _CHROMA_REACH = 16, 2
# Bytes of a stored tile that is decoded together with others; a wrong header may state any number.
_MOST_BYTES = 2**26


class JpegTiles:
    """Stored tiles of one JPEG level as complete streams and as pixels; can be shared by threads.

    Parameters
    ----------
    path : Path
        The TIFF; kept open for this object's life, read with ``pread``.
    page : TiffPage
        A tiled page of three-channel JPEG.
    general : callable
        ``Rect -> (h, w, 3) uint8``: the level's pixels by the general path, for tiles that this decoder does not
        support. Raises ``ValueError`` or ``CorruptSlideError``.
    missing : TileDecoder
        Draws tiles that are missing in the file.

    Attributes
    ----------
    tile : Size
        Size of a stored tile, level px.
    grid : Size
        Columns and rows.
    serial : int
        Number unique in this process, for caches.
    """

    def __init__(
        self, path: Path, page: TiffPage, fallback: Callable[[Rect], NDArray[np.uint8]], missing: TileDecoder
    ) -> None:
        self.tile, self.size, self.serial = page.tile, page.size, next(serials)
        self.grid = Size(*(-(-side // tile) for side, tile in zip(page.size, page.tile, strict=True)))
        self._offsets, self._counts = page.page.dataoffsets, page.page.databytecounts
        self._tables: bytes = page.page.jpegtables or b""
        self._ycbcr = page.tagged_ycbcr != page.colour_tag_wrong
        self._fallback, self._missing = fallback, missing
        self._last_frame = (0, b"none yet.")  # offset of a frame header of the tile's size, and its first nine bytes
        self._slide, self._directory = path.name, page.directory
        self._fd = open_to_read(path)
        weakref.finalize(self, os.close, self._fd)
        self._head = np.frombuffer(bytearray(jpeg_head(self._tables, ycbcr=self._ycbcr)), np.uint8)
        self._record = self._level_record()
        self._record_at = self._record.ctypes.data

    def _level_record(self) -> NDArray[Any]:
        """Return what all tiles have in common for the compiled decoder; it refers to ``_head``."""
        record = np.zeros(1, STORED)
        record["head"] = address(self._head)
        record["head_bytes"], record["descriptor"], record["ycbcr"] = len(self._head), self._fd, self._ycbcr
        record["width"], record["height"] = self.tile
        return record

    def stream(self, column: int, row: int) -> bytes | None:
        """Return a stored tile as a complete JPEG, or None if nothing is stored.

        The entropy-coded data is the file's, after the tables and an Adobe marker that states the colour model.

        Raises
        ------
        CorruptSlideError
            The file ends inside the tile.
        """
        index = row * self.grid.width + column
        try:
            offset, count = int(self._offsets[index]), int(self._counts[index])
            if not (count and offset):
                return None
            data = pread(self._fd, count, offset)
        except (IndexError, OSError, OverflowError, ValueError, MemoryError) as error:
            raise self._corrupt(column, row, f"its bytes cannot be read: {error}") from error
        if len(data) != count:
            raise self._corrupt(column, row, f"{len(data)} of {count} bytes are there")
        return complete_jpeg(data, self._tables, ycbcr=self._ycbcr)

    def decode(
        self,
        column: int,
        row: int,
        out: NDArray[np.uint8] | None = None,
        *,
        reduce: int = 1,
        rows: int | None = None,
        on_stage: OnTiming | None = None,
    ) -> NDArray[np.uint8]:
        """Return a stored tile, (tile.height // reduce, tile.width // reduce, 3) uint8 RGB.

        Raise CorruptSlideError, which names the tile's place, if the tile's bytes cannot be decoded.

        Parameters
        ----------
        column, row : int
        out : C-contiguous uint8 array of that shape, optional
            Destination of the pixels; for whole tiles.
        reduce : 1, 2, 4 or 8
            Shrink factor of the DCT: close to the mean of ``reduce`` × ``reduce`` pixels (differences in
            ``tests/benchmarks/README.md``). Both sides of the tile are multiples of it.
        rows : int, optional
            Number of the tile's first rows that are needed, in level px; at least as many are returned. Decoding
            stops after them: half of a tile takes half the time.
        on_stage : callable, optional
            Called with ("read" | "decode" | "fallback", start, end), ``time.perf_counter`` seconds.
        """
        start = time.perf_counter() if on_stage else 0.0
        data = whole = self.stream(column, row)
        read = time.perf_counter() if on_stage else 0.0
        height, fast = self.tile.height, True
        frame = None if data is None else self._frame(data)
        if rows is not None and data is not None and frame is not None:
            height, data = self._cut(data, frame, rows)
        pixels = PIXELS.empty((height // reduce, self.tile.width // reduce, 3)) if out is None else out
        if data is None or whole is None:
            pixels[:] = _reduced(self._missing.drawn(column, row), reduce)
        elif frame is None or not self._decode(data, column, row, pixels, partly=height < self.tile.height):
            self._decode_fallback(whole, column, row, pixels, reduce)
            fast = False
        if on_stage:
            on_stage("read", start, read)
            on_stage("decode" if fast else "fallback", read, time.perf_counter())
        return pixels

    def decode_at(
        self,
        places: Sequence[tuple[int, int]],
        addresses: Sequence[int],
        *,
        stride: int,
        rows: int | Sequence[int],
        reduce: int = 1,
        on_stage: OnTiming | None = None,
    ) -> list[int]:
        """Decode tiles at ``places`` (column, row), each to its address, in one call that does not hold the GIL.

        Return the numbers of those that were not decoded: that are missing, damaged or of another kind; ``decode``
        draws them, or says what is wrong.

        Parameters
        ----------
        places : sequence of (int, int)
        addresses : sequence of int
            Of the first pixel of each in memory that exists until the call returns.
        stride : int
            Bytes from one row of pixels to the next.
        rows : int, or one for each tile
            Rows of pixels that are decoded; decoding stops after them.
        reduce, on_stage
            As for ``decode``.
        """
        programs, every = load(), list(range(len(places)))
        if programs is None or not programs.decodes or not places:
            return every
        begun, columns = time.perf_counter() if on_stage else 0.0, self.grid.width
        numbers = [row * columns + column for column, row in places]
        tiles = np.zeros(len(places), STORED_TILE)
        try:
            counts = [self._counts[number] for number in numbers]
            tiles["offset"], tiles["bytes"] = [self._offsets[number] for number in numbers], counts
        except (IndexError, OverflowError, ValueError):
            return every
        tiles["level"], tiles["out"] = self._record_at, addresses
        tiles["stride"], tiles["rows"], tiles["reduce"] = stride, rows, reduce
        read = programs.decode(tiles, min(max(counts), _MOST_BYTES) + len(self._head))
        if on_stage:
            on_stage("read", begun, begun + read)
            on_stage("decode", begun + read, time.perf_counter())
        done = tiles["done"].tolist()
        return [] if all(done) else [k for k in every if not done[k]]

    def rows_for(self, rows: int) -> int:
        """Return how many rows, a few more for their chroma, are decoded if the first ``rows`` are needed."""
        return min(self.tile.height, -(-(rows + _CHROMA_REACH) // _MCU) * _MCU)

    def _frame(self, data: bytes) -> int | None:
        """Return the offset of the frame header, or None unless it declares the tile's own size.

        The decoder writes without a bound, so the size is checked first.
        """
        place, header = self._last_frame
        if data[place : place + 9] == header:
            return place
        found = frame_place(data)
        if found is None or data[found + 5 : found + 9] != struct.pack(">HH", self.tile.height, self.tile.width):
            return None
        self._last_frame = (found, data[found : found + 9])
        return found

    def _cut(self, data: bytes, frame: int, rows: int) -> tuple[int, bytes]:
        """Return the number of decoded rows, ``rows`` and a few more that their chroma needs, and their stream."""
        needed = self.rows_for(rows)
        if needed == self.tile.height or not is_sequential(data, frame):
            return self.tile.height, data
        return needed, cut_to(data, frame, needed)

    def _decode(self, data: bytes, column: int, row: int, pixels: NDArray[np.uint8], *, partly: bool) -> bool:
        """Decode into ``pixels``; return False if the decoder does not support the stream."""
        height, width, _ = pixels.shape
        try:
            simplejpeg.decode_jpeg(
                data, colorspace="RGB", min_height=height, min_width=width, min_factor=1, buffer=pixels
            )
        except ValueError as error:
            # libjpeg-turbo reports its first warning: this one means that there was none before the last row.
            if partly and EXTRANEOUS in str(error):
                return True
            if any(damage in str(error) for damage in DAMAGE):
                raise self._corrupt(column, row, str(error)) from error
            return False
        return True

    def _decode_fallback(self, data: bytes, column: int, row: int, pixels: NDArray[np.uint8], reduce: int) -> None:
        """Decode a tile whose JPEG has another size than the file's tiles, or a kind this decoder does not support."""
        whole = Rect(column * self.tile.width, row * self.tile.height, *self.tile)
        inside = whole.intersect(Rect(0, 0, *self.size))
        full = np.full((self.tile.height, self.tile.width, 3), 255, np.uint8)
        frame = read_frame(data)
        try:
            if frame is None or (frame.width, frame.height) == self.tile:
                full[: inside.height, : inside.width] = self._fallback(inside)
            else:
                # libvips would use its rows as those of a whole tile.
                covers = inside.width <= frame.width <= self.tile.width
                if not covers or not inside.height <= frame.height <= self.tile.height:
                    raise self._corrupt(column, row, f"its JPEG is {frame.width}×{frame.height} px")
                full[: frame.height, : frame.width] = simplejpeg.decode_jpeg(data, colorspace="RGB")
        except SlideioPipeError:
            raise
        except ValueError as error:
            raise self._corrupt(column, row, str(error)) from error
        pixels[:] = _reduced(full, reduce)[: len(pixels)]

    def _corrupt(self, column: int, row: int, reason: str) -> CorruptSlideError:
        x, y = column * self.tile.width, row * self.tile.height
        return CorruptSlideError(
            f"tile ({column}, {row}) of directory {self._directory}, its px ({x}, {y}), cannot be decoded ({reason})",
            slide=self._slide,
            remedy=_REMEDY,
        )


def _reduced(pixels: NDArray[np.uint8], reduce: int) -> NDArray[np.uint8]:
    """Return the means of ``reduce`` × ``reduce`` pixels."""
    if reduce == 1:
        return pixels
    size = (pixels.shape[1] // reduce, pixels.shape[0] // reduce)
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
