"""Write a rendered slide as an Aperio-style TIFF: tiled JPEG levels, thumbnail, label and macro, in bounded memory."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryFile
from typing import NamedTuple, Protocol

import cv2
import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

from slideio_pipe.cores import decoding_threads
from slideio_pipe.geometry import MPP_TIMES_MAGNIFICATION, Size

Pixels = NDArray[np.uint8]

_BLOCK_PX = 512  # at least; blocks are whole tiles and whole pixels of the next level
_THUMBNAIL, _MACRO, _LABEL = Size(1024, 768), Size(1280, 431), Size(387, 463)
# A classic TIFF addresses 4 GiB; if the estimated size is above this, BigTIFF is written.
_CLASSIC_TIFF_BYTES = 2**32 - 2**26


class SlidePlan(NamedTuple):
    """Size, resolution, levels and compression of a slide to write."""

    size: Size  # level 0, px
    mpp: float
    seed: int  # written into the description and on the label
    levels: tuple[int, ...]  # downsamples: 1, then each a power of two times the one before
    tile_size: int  # px, a multiple of 16
    quality: int  # JPEG


class Renderer(Protocol):
    """Renders level 0; called from several threads."""

    def render(self, x: int, y: int, width: int, height: int) -> Pixels | None:
        """Return (height, width, 3) uint8 RGB at level-0 px, which may be past the edges; None is empty glass."""

    def glass(self) -> Pixels:
        """Return a (tile_size, tile_size, 3) tile of empty glass."""


def write_aperio(path: Path, plan: SlidePlan, renderer: Renderer, progress: Callable[[int, int], object]) -> None:
    """Write all pages of a slide, in the order of a scanner: level 0, thumbnail, lower levels, label, macro.

    ``progress`` is called from this thread with the finished and the total rows of blocks.
    """
    width, height = plan.size
    # H&E takes 0.3 bytes per pixel at quality 80, noise at 100 three; a third more for the lower levels.
    bytes_per_px = 1.4 if plan.quality <= 90 else 4.2
    head = f"Aperio Image Library v12.0.0\r\n{width}x{height}"
    optics = f"AppMag = {MPP_TIMES_MAGNIFICATION / plan.mpp:g}|MPP = {plan.mpp:.4f}|Synthetic seed = {plan.seed}"
    codec = f"({plan.tile_size}x{plan.tile_size})"
    end = f"JPEG/RGB Q={plan.quality}"
    big = width * height * bytes_per_px > _CLASSIC_TIFF_BYTES
    with ExitStack() as open_things:
        painter = open_things.enter_context(closing(_Painter(plan, renderer, progress)))
        tiles = open_things.enter_context(closing(painter.tiles()))
        tif = open_things.enter_context(tifffile.TiffWriter(path, bigtiff=big))
        write = partial(tif.write, photometric="rgb", metadata=None, software=False)
        tiled = partial(
            write,
            dtype=np.uint8,
            tile=(plan.tile_size, plan.tile_size),
            compression="jpeg",
            jpegtables=painter.encode.tables,
        )
        page = f"{head} [0,0 {width}x{height}] {codec} {end}|{optics}"
        tiled(tiles, shape=(height, width, 3), description=page)
        stripped = partial(write, compression="jpeg", compressionargs={"level": 85}, rowsperstrip=16)
        overview = painter.overview.pixels()
        thumbnail = _fit(overview, Size(min(_THUMBNAIL.width, width), min(_THUMBNAIL.height, height)))
        page = f"{head} -> {thumbnail.shape[1]}x{thumbnail.shape[0]} - |{optics}"
        stripped(thumbnail, description=page)
        for level in painter.levels:
            page = f"{head} [0,0 {width}x{height}] {codec} -> {level.size.width}x{level.size.height} {end}|{optics}"
            tiled(level.tiles(), shape=(level.size.height, level.size.width, 3), description=page)
        page = "Aperio Image Library v12.0.0\r\n{} {}x{}"
        label = _label_picture(plan)
        write(
            label,
            compression="lzw",
            predictor=True,
            subfiletype=1,
            rowsperstrip=7,
            description=page.format("label", *_LABEL),
        )
        stripped(_macro_picture(overview, label), subfiletype=9, description=page.format("macro", *_MACRO))


class _Encoder:
    """Encodes RGB tiles as JPEG streams without tables; a page stores the tables once, as scanners do."""

    def __init__(self, quality: int) -> None:
        self.quality = quality
        self.tables = self._split(self._encode(np.full((16, 16, 3), 128, np.uint8)))[0]

    def __call__(self, tile: Pixels) -> bytes:
        """Return a tile as an abbreviated stream; decoders prepend ``tables``."""
        return self._split(self._encode(tile))[1]

    def _encode(self, tile: Pixels) -> bytes:
        tile = np.ascontiguousarray(tile)
        return bytes(
            imagecodecs.jpeg8_encode(
                tile, self.quality, colorspace="RGB", outcolorspace="YCBCR", subsampling=(2, 2), optimize=False
            )
        )

    @staticmethod
    def _split(stream: bytes) -> tuple[bytes, bytes]:
        """Return the quantisation and Huffman tables and the rest, each between start and end markers."""
        tables, rest, at = b"", b"", 2
        while stream[at + 1] != 0xDA:  # start of scan: entropy-coded data follow
            end = at + 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
            if stream[at + 1] in (0xDB, 0xC4):
                tables += stream[at:end]
            elif stream[at + 1] != 0xE0:  # without the JFIF header: a TIFF states this in tags
                rest += stream[at:end]
            at = end
        return b"\xff\xd8" + tables + b"\xff\xd9", b"\xff\xd8" + rest + stream[at:]


class _Level:
    """A lower level being built: rows come from the level above, encoded tiles go to a temporary file."""

    def __init__(self, size: Size, ratio: int, tile_size: int, encode: _Encoder | None) -> None:
        self.size, self.ratio = size, ratio
        self._tile_size, self._encode = tile_size, encode
        self._rest: Pixels = np.empty((0, 0, 3), np.uint8)
        self._rows: list[Pixels] = []
        self._done = 0
        self._file = TemporaryFile()  # noqa: SIM115 - closed with the level
        self._lengths: list[int] = []

    def shrink(self, above: Pixels) -> Pixels:
        """Return the rows of this level that the given rows of the level above complete, as area means."""
        if self._rest.size:
            above = np.concatenate([self._rest, above])
        height = min(len(above) // self.ratio, self.size.height - self._done)
        self._rest = above[height * self.ratio :] if height else above
        return self.accept(_area_mean(above[: height * self.ratio, : self.size.width * self.ratio], self.ratio))

    def accept(self, rows: Pixels) -> Pixels:
        """Add rows of this level, crop them to its size, and return them."""
        rows = rows[: self.size.height - self._done, : self.size.width]
        self._done += len(rows)
        self._rows.append(rows)
        if self._encode is not None:
            pending = np.concatenate(self._rows)
            while len(pending) >= self._tile_size or (len(pending) and self._done == self.size.height):
                self._spool(pending[: self._tile_size], self._encode)
                pending = pending[self._tile_size :]
            self._rows = [pending]
        return rows

    def pixels(self) -> Pixels:
        """Return all rows of a level that is not encoded."""
        return np.concatenate(self._rows)

    def tiles(self) -> Iterator[bytes]:
        """Return the encoded tiles in order."""
        self._file.seek(0)
        for length in self._lengths:
            yield self._file.read(length)

    def close(self) -> None:
        """Delete the encoded tiles."""
        self._file.close()

    def _spool(self, strip: Pixels, encode: _Encoder) -> None:
        side = self._tile_size
        right = -strip.shape[1] % side
        strip = np.pad(strip, ((0, side - len(strip)), (0, right), (0, 0)), mode="edge")
        for x in range(0, strip.shape[1], side):
            stream = encode(strip[:, x : x + side])
            self._lengths.append(self._file.write(stream))


def _area_mean(pixels: Pixels, ratio: int) -> Pixels:
    """Return means over squares of ratio × ratio pixels, rounded to the nearest."""
    if ratio == 1 or not pixels.size:
        return pixels[: len(pixels) // ratio, : pixels.shape[1] // ratio]
    height, width = pixels.shape[0] // ratio, pixels.shape[1] // ratio
    mean: Pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return mean


class _Painter:
    """Renders and encodes level 0 block by block in threads, and passes rows to the lower levels."""

    def __init__(self, plan: SlidePlan, renderer: Renderer, progress: Callable[[int, int], object]) -> None:
        self.plan, self._renderer, self._progress = plan, renderer, progress
        self.encode = _Encoder(plan.quality)
        self.levels: list[_Level] = []
        above, side = plan.size, plan.tile_size
        for fine, coarse in pairwise(plan.levels):
            above = Size(above.width // (coarse // fine), above.height // (coarse // fine))
            self.levels.append(_Level(above, coarse // fine, side, self.encode))
        ratio = 1  # the last level is not stored: thumbnail and macro are made from it
        while max(above) > 2048 * ratio and 2 * ratio <= min(above):
            ratio *= 2
        self.overview = _Level(Size(above.width // ratio, above.height // ratio), ratio, side, None)
        self._stages = [*self.levels, self.overview]
        unit = math.lcm(side, self._stages[0].ratio)
        self._block = unit * math.ceil(_BLOCK_PX / unit)
        glass = np.tile(renderer.glass(), (self._block // side, self._block // side, 1))
        self._glass = self.encode(glass[:side, :side]), _area_mean(glass, self._stages[0].ratio)

    def close(self) -> None:
        """Delete the temporary files of the levels."""
        for stage in self._stages:
            stage.close()

    def tiles(self) -> Generator[bytes, None, None]:
        """Return the encoded tiles of level 0 in order; the lower levels are complete after the last one."""
        side, (width, height) = self.plan.tile_size, self.plan.size
        columns, rows = math.ceil(width / self._block), math.ceil(height / self._block)
        across, per_block = math.ceil(width / side), self._block // side
        pool = ThreadPoolExecutor(decoding_threads(), thread_name_prefix="synthetic")
        try:
            jobs: deque[list[Future[tuple[list[bytes], Pixels]]]] = deque()
            for row in range(rows + 1):
                if row < rows:  # one row of blocks ahead, so that threads do not wait for the file
                    jobs.append([pool.submit(self._paint, column, row) for column in range(columns)])
                if row == 0:
                    continue
                blocks = [job.result() for job in jobs.popleft()]
                shrunk = self._stages[0].accept(np.concatenate([block[1] for block in blocks], axis=1))
                for stage in self._stages[1:]:
                    shrunk = stage.shrink(shrunk)
                self._progress(row, rows)
                for line in range(min(per_block, math.ceil((height - (row - 1) * self._block) / side))):
                    streams = [s for block in blocks for s in block[0][line * per_block : (line + 1) * per_block]]
                    yield from streams[:across]
        finally:
            pool.shutdown(cancel_futures=True)

    def _paint(self, column: int, row: int) -> tuple[list[bytes], Pixels]:
        """Return the encoded tiles of one block, and the block at the next level."""
        side, block = self.plan.tile_size, self._block
        pixels = self._renderer.render(column * block, row * block, block, block)
        if pixels is None:
            return [self._glass[0]] * (block // side) ** 2, self._glass[1]
        starts = range(0, block, side)
        tiles = [self.encode(pixels[y : y + side, x : x + side]) for y in starts for x in starts]
        return tiles, _area_mean(pixels, self._stages[0].ratio)


def _fit(picture: Pixels, limit: Size) -> Pixels:
    """Return a picture scaled to the largest size within a limit."""
    scale = min(limit.width / picture.shape[1], limit.height / picture.shape[0])
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    fitted: Pixels = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return fitted


def _label_picture(plan: SlidePlan) -> Pixels:
    """Return the paper label at the end of the glass."""
    picture = np.full((_LABEL.height, _LABEL.width, 3), 238, np.uint8)
    lines = ("SYNTHETIC", "H&E", f"seed {plan.seed}", f"{plan.size.width} x {plan.size.height}", f"{plan.mpp:g} um/px")
    for number, line in enumerate(lines):
        cv2.putText(picture, line, (24, 90 + 75 * number), cv2.FONT_HERSHEY_SIMPLEX, 1.3, (40, 40, 60), 2, cv2.LINE_AA)
    return picture


def _macro_picture(overview: Pixels, label: Pixels) -> Pixels:
    """Return the overview of the glass: label on the left, tissue on the right."""
    picture = np.full((_MACRO.height, _MACRO.width, 3), 226, np.uint8)
    picture[8:-8, 8:-8] = 240
    left = _fit(label, Size(350, _MACRO.height - 24))
    picture[12 : 12 + left.shape[0], 12 : 12 + left.shape[1]] = left
    tissue = _fit(overview, Size(_MACRO.width - 420, _MACRO.height - 40))
    y = (_MACRO.height - tissue.shape[0]) // 2
    x = 400 + (_MACRO.width - 420 - tissue.shape[1]) // 2
    picture[y : y + tissue.shape[0], x : x + tissue.shape[1]] = tissue
    return picture
