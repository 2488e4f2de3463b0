"""Whole slides out of nothing: Aperio-style TIFFs of any size, H&E-like, with their ground truth, in bounded memory."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import cv2
import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

from slideio_pipe.anatomy import Anatomy, mask_positions
from slideio_pipe.errors import ConfigError, OutputError, OutputExistsError
from slideio_pipe.geometry import MPP_TIMES_MAGNIFICATION, Rect, Size
from slideio_pipe.histology import Histology

Pixels = NDArray[np.uint8]

_BLOCK_PX = 512  # at least; blocks are whole tiles and whole pixels of the next level
_THREADS = min(8, os.cpu_count() or 1)
_THUMBNAIL, _MACRO, _LABEL = Size(1024, 768), Size(1280, 431), Size(387, 463)
# A classic TIFF addresses 4 GiB. At quality 90 and below, JPEG of this content stays under 1 byte per pixel.
_CLASSIC_TIFF_BYTES = 2**32 - 2**26


@dataclass(frozen=True)
class SyntheticSlide:
    """A slide that was written, and the truth about it.

    Equal arguments of `write_synthetic_slide` give equal bytes and equal truth.
    """

    path: Path
    dimensions: Size  # level 0, px
    mpp: float
    seed: int
    label: int  # 1 with at least one lesion, else 0
    lesion_boxes: tuple[Rect, ...]  # level-0 px
    lesion_outlines: tuple[NDArray[np.float64], ...] = field(repr=False, compare=False)  # (n, 2) x, y, level-0 px
    tissue_fraction: float  # of the slide's area
    _anatomy: Anatomy = field(repr=False, compare=False)

    def tissue_mask(self, downsample: float) -> NDArray[np.bool_]:
        """Return what is tissue, (h, w) bool, from the plan of the slide and not from its pixels.

        Parameters
        ----------
        downsample : float
            Level-0 px per mask pixel; the mask has floor(size / downsample) pixels, at least 1.
        """
        return self._mask(self._anatomy.tissue_depth, downsample)

    def lesion_mask(self, downsample: float) -> NDArray[np.bool_]:
        """Return what is lesion, (h, w) bool, from the plan of the slide and not from its pixels.

        Parameters
        ----------
        downsample : float
            Level-0 px per mask pixel; the mask has floor(size / downsample) pixels, at least 1.
        """
        return self._mask(self._anatomy.lesion_depth, downsample)

    def _mask(self, depth: Callable[[Any, Any], NDArray[np.float64]], downsample: float) -> NDArray[np.bool_]:
        if not downsample > 0 or not math.isfinite(downsample):
            raise ConfigError(f"a mask at downsample {downsample}", slide=self.path.name, remedy="pass a number > 0")
        x, y = mask_positions(self.dimensions, self.mpp, downsample)
        strips = [depth(x, y[start : start + 256]) > 0 for start in range(0, len(y), 256)]
        return np.concatenate(strips)


class _Plan(NamedTuple):
    """Checked arguments."""

    size: Size
    mpp: float
    seed: int
    levels: tuple[int, ...]
    tile_size: int
    quality: int


def write_synthetic_slide(
    path: str | os.PathLike[str],
    *,
    size: tuple[int, int] = (20_000, 15_000),
    mpp: float = 0.25,
    seed: int = 0,
    lesions: int = 3,
    levels: Sequence[int] = (1, 4, 16),
    tile_size: int = 256,
    quality: int = 80,
    pieces: int = 3,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> SyntheticSlide:
    """Write an H&E-like whole slide as an Aperio-style TIFF and return the truth about it.

    The picture is procedural: nothing is read, memory does not grow with the height of the slide, and equal arguments
    give equal bytes. Pages are those of a scanner: level 0, thumbnail, lower levels, label, macro.

    Parameters
    ----------
    path : path
        The file, usually ending in ``.svs``. It appears when it is complete, never before.
    size : (int, int)
        Width and height of level 0 in px.
    mpp : float
        µm per pixel; nuclei are 6-9 µm whatever it is.
    seed : int
        Which slide. Pieces, lesions, textures and stain strength follow from it.
    lesions : int
        Compact regions of crowded, dark, irregular nuclei. 0 gives a healthy slide of label 0.
    levels : sequence of int
        Downsamples, 1 first, each a power of two times the one before.
    tile_size : int
        Side of stored tiles in px, a multiple of 16.
    quality : int
        JPEG quality, 1-100; colour is stored at half the resolution (4:2:0) as scanners do.
    pieces : int
        Tissue pieces. 0 gives an empty slide.
    overwrite : bool
        Replace an existing file.
    progress : callable, optional
        Called with (rows of blocks done, rows of blocks in all) from the calling thread.

    Raises
    ------
    ConfigError
        An argument makes no sense.
    OutputExistsError
        The file exists and ``overwrite`` is false.
    OutputError
        The file cannot be written.

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> slide = write_synthetic_slide(f"{mkdtemp()}/a.svs", size=(1024, 768), seed=1, lesions=1)
    >>> slide.label, slide.lesion_mask(16).shape
    (1, (48, 64))
    """
    path = Path(path)
    plan = _check(size, mpp, seed, levels, tile_size, quality)
    if lesions < 0 or pieces < 0 or (lesions and not pieces):
        raise ConfigError(f"{lesions} lesions in {pieces} tissue pieces", remedy="lesions lie in tissue: pieces >= 1")
    if path.exists() and not overwrite:
        raise OutputExistsError("already there", slide=str(path), remedy="pass overwrite=True or another path")
    extent_um = (plan.size.width * plan.mpp, plan.size.height * plan.mpp)
    anatomy = Anatomy(extent_um, seed=plan.seed, pieces=pieces, lesions=lesions)
    histology = Histology(anatomy, mpp=plan.mpp, seed=plan.seed, glass_period=plan.tile_size)
    partial_path = path.with_name(path.name + ".partial")
    try:
        _write_file(partial_path, plan, histology, progress or (lambda done, total: None))
        os.replace(partial_path, path)
    except OSError as error:
        raise OutputError(f"cannot be written: {error}", slide=str(path), remedy="check the folder and its space") from error
    finally:
        with suppress(OSError):  # the folder itself may be missing
            partial_path.unlink(missing_ok=True)
    return _truth(path, plan, anatomy)


def _check(
    size: tuple[int, int], mpp: float, seed: int, levels: Sequence[int], tile_size: int, quality: int
) -> _Plan:
    """Return the checked arguments, or raise ConfigError naming the one that makes no sense."""
    width, height = size
    steps = [b / a for a, b in zip(levels, levels[1:], strict=False)]
    wrong = {
        f"size {width} x {height}": not (1 <= width <= 1_000_000 and 1 <= height <= 1_000_000),
        f"mpp {mpp}": not 0.05 <= mpp <= 16,
        f"seed {seed}": seed < 0,
        f"levels {tuple(levels)}": not levels or levels[0] != 1 or any(s not in (2, 4, 8, 16, 32, 64) for s in steps),
        f"levels {tuple(levels)} of {width} x {height} px": bool(levels) and min(width, height) < levels[-1],
        f"tile size {tile_size}": tile_size % 16 != 0 or not 16 <= tile_size <= 4096,
        f"quality {quality}": not 1 <= quality <= 100,
    }
    for what, is_wrong in wrong.items():
        if is_wrong:
            raise ConfigError(f"{what} makes no slide", remedy="see write_synthetic_slide for what each argument may be")
    return _Plan(Size(width, height), float(mpp), seed, tuple(levels), tile_size, quality)


def _truth(path: Path, plan: _Plan, anatomy: Anatomy) -> SyntheticSlide:
    """Return the record of a written slide."""
    outlines = tuple(lesion.outline() / plan.mpp for lesion in anatomy.lesions)
    boxes = []
    for outline in outlines:
        left, top = np.floor(outline.min(axis=0)).astype(int).tolist()
        right, bottom = np.ceil(outline.max(axis=0)).astype(int).tolist()
        boxes.append(Rect(left, top, right - left, bottom - top))
    x, y = mask_positions(plan.size, plan.mpp, max(1.0, max(plan.size) / 500))
    return SyntheticSlide(
        path=path,
        dimensions=plan.size,
        mpp=plan.mpp,
        seed=plan.seed,
        label=int(bool(anatomy.lesions)),
        lesion_boxes=tuple(boxes),
        lesion_outlines=outlines,
        tissue_fraction=float((anatomy.tissue_depth(x, y) > 0).mean()),
        _anatomy=anatomy,
    )


class _Encoder:
    """RGB tiles to JPEG streams without tables, which a page stores once, as scanners do."""

    def __init__(self, quality: int) -> None:
        self.quality = quality
        self.tables = self._split(self._encode(np.full((16, 16, 3), 128, np.uint8)))[0]

    def __call__(self, tile: Pixels) -> bytes:
        """Return a tile as an abbreviated stream; decoders put ``tables`` before it."""
        return self._split(self._encode(tile))[1]

    def _encode(self, tile: Pixels) -> bytes:
        stream: bytes = imagecodecs.jpeg8_encode(
            np.ascontiguousarray(tile),
            self.quality,
            colorspace="RGB",
            outcolorspace="YCBCR",
            subsampling=(2, 2),
        )
        return stream

    @staticmethod
    def _split(stream: bytes) -> tuple[bytes, bytes]:
        """Return the quantisation and Huffman tables and the rest, each between start and end markers."""
        tables, rest, at = b"", b"", 2
        while stream[at + 1] != 0xDA:  # start of scan: entropy-coded data follow
            end = at + 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
            if stream[at + 1] in (0xDB, 0xC4):
                tables += stream[at:end]
            elif stream[at + 1] != 0xE0:  # JFIF's header is left out: a TIFF says these things in tags
                rest += stream[at:end]
            at = end
        return b"\xff\xd8" + tables + b"\xff\xd9", b"\xff\xd8" + rest + stream[at:]


class _Level:
    """A lower level in the making: rows come in from the level above, encoded tiles go to a temporary file."""

    def __init__(self, size: Size, ratio: int, tile_size: int, encode: _Encoder | None) -> None:
        self.size, self.ratio = size, ratio
        self._tile_size, self._encode = tile_size, encode
        self._rest: Pixels = np.empty((0, 0, 3), np.uint8)
        self._rows: list[Pixels] = []
        self._done = 0
        self._file = TemporaryFile()
        self._lengths: list[int] = []

    def shrink(self, above: Pixels) -> Pixels:
        """Return the rows of this level that rows of the level above complete, as area means."""
        if self._rest.size:
            above = np.concatenate([self._rest, above])
        height = min(len(above) // self.ratio, self.size.height - self._done)
        self._rest = above[height * self.ratio :] if height else above
        return self.accept(_area_mean(above[: height * self.ratio, : self.size.width * self.ratio], self.ratio))

    def accept(self, rows: Pixels) -> Pixels:
        """Take rows of this level, cut off what lies outside, and return them."""
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
        """Return the encoded tiles in order, and let go of them."""
        self._file.seek(0)
        with self._file:
            for length in self._lengths:
                yield self._file.read(length)

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
    """Renders and encodes level 0 block by block in threads, and feeds the levels below."""

    def __init__(self, plan: _Plan, histology: Histology, progress: Callable[[int, int], None]) -> None:
        self.plan, self._histology, self._progress = plan, histology, progress
        self.encode = _Encoder(plan.quality)
        self.levels: list[_Level] = []
        above, side = plan.size, plan.tile_size
        for coarse, fine in zip(plan.levels[1:], plan.levels, strict=False):
            above = Size(above.width // (coarse // fine), above.height // (coarse // fine))
            self.levels.append(_Level(above, coarse // fine, side, self.encode))
        ratio = 1  # the last stage is not stored: it is what thumbnail and macro are made from
        while max(above) > 2048 * ratio and 2 * ratio <= min(above):
            ratio *= 2
        self.overview = _Level(Size(above.width // ratio, above.height // ratio), ratio, side, None)
        self._stages = [*self.levels, self.overview]
        unit = math.lcm(side, self._stages[0].ratio)
        self._block = unit * math.ceil(_BLOCK_PX / unit)
        glass = np.tile(histology.glass(), (self._block // side, self._block // side, 1))
        self._glass = self.encode(glass[:side, :side]), _area_mean(glass, self._stages[0].ratio)

    def tiles(self) -> Iterator[bytes]:
        """Return the encoded tiles of level 0 in order; the levels below are complete when it ends."""
        side, (width, height) = self.plan.tile_size, self.plan.size
        columns, rows = math.ceil(width / self._block), math.ceil(height / self._block)
        across, per_block = math.ceil(width / side), self._block // side
        pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="synthetic")
        try:
            jobs: deque[list[Future[tuple[list[bytes], Pixels]]]] = deque()
            for row in range(rows + 1):
                if row < rows:  # one row of blocks ahead, so that threads never wait for the file
                    jobs.append([pool.submit(self._paint, column, row) for column in range(columns)])
                if row == 0:
                    continue
                blocks = [job.result() for job in jobs.popleft()]
                shrunk = self._stages[0].accept(np.concatenate([block[1] for block in blocks], axis=1))
                for stage in self._stages[1:]:
                    shrunk = stage.shrink(shrunk)
                for line in range(min(per_block, math.ceil((height - (row - 1) * self._block) / side))):
                    streams = [s for block in blocks for s in block[0][line * per_block : (line + 1) * per_block]]
                    yield from streams[:across]
                self._progress(row, rows)
        finally:
            pool.shutdown(cancel_futures=True)

    def _paint(self, column: int, row: int) -> tuple[list[bytes], Pixels]:
        """Return the encoded tiles of one block, and the block at the next level."""
        side, block = self.plan.tile_size, self._block
        pixels = self._histology.render(column * block, row * block, block, block)
        if pixels is None:
            return [self._glass[0]] * (block // side) ** 2, self._glass[1]
        starts = range(0, block, side)
        tiles = [self.encode(pixels[y : y + side, x : x + side]) for y in starts for x in starts]
        return tiles, _area_mean(pixels, self._stages[0].ratio)


def _write_file(path: Path, plan: _Plan, histology: Histology, progress: Callable[[int, int], None]) -> None:
    """Write all pages of a slide."""
    width, height = plan.size
    bytes_per_px = 1.4 if plan.quality <= 90 else 4.2
    head = f"Aperio Image Library v12.0.0\r\n{width}x{height}"
    optics = f"AppMag = {MPP_TIMES_MAGNIFICATION / plan.mpp:g}|MPP = {plan.mpp:.4f}|Synthetic seed = {plan.seed}"
    codec = f"({plan.tile_size}x{plan.tile_size})"
    end = f"JPEG/RGB Q={plan.quality}"
    painter = _Painter(plan, histology, progress)
    with tifffile.TiffWriter(path, bigtiff=width * height * bytes_per_px > _CLASSIC_TIFF_BYTES) as tif:
        write = partial(tif.write, photometric="rgb", metadata=None, software=False)
        tiled = partial(
            write,
            dtype=np.uint8,
            tile=(plan.tile_size, plan.tile_size),
            compression="jpeg",
            jpegtables=painter.encode.tables,
        )
        page = f"{head} [0,0 {width}x{height}] {codec} {end}|{optics}"
        tiled(painter.tiles(), shape=(height, width, 3), description=page)
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
        write(label, compression="lzw", predictor=True, subfiletype=1, rowsperstrip=7, description=page.format("label", *_LABEL))
        stripped(_macro_picture(overview, label), subfiletype=9, description=page.format("macro", *_MACRO))


def _fit(picture: Pixels, limit: Size) -> Pixels:
    """Return a picture scaled to the largest size within a limit."""
    scale = min(limit.width / picture.shape[1], limit.height / picture.shape[0])
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    fitted: Pixels = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return fitted


def _label_picture(plan: _Plan) -> Pixels:
    """Return the paper label at the end of the glass."""
    picture = np.full((_LABEL.height, _LABEL.width, 3), 238, np.uint8)
    lines = ("SYNTHETIC", "H&E", f"seed {plan.seed}", f"{plan.size.width} x {plan.size.height}", f"{plan.mpp:g} um/px")
    for number, line in enumerate(lines):
        cv2.putText(picture, line, (24, 90 + 75 * number), cv2.FONT_HERSHEY_SIMPLEX, 1.3, (40, 40, 60), 2, cv2.LINE_AA)
    return picture


def _macro_picture(overview: Pixels, label: Pixels) -> Pixels:
    """Return the whole glass from afar: label on the left, tissue on the right."""
    picture = np.full((_MACRO.height, _MACRO.width, 3), 226, np.uint8)
    picture[8:-8, 8:-8] = 240
    left = _fit(label, Size(350, _MACRO.height - 24))
    picture[12 : 12 + left.shape[0], 12 : 12 + left.shape[1]] = left
    tissue = _fit(overview, Size(_MACRO.width - 420, _MACRO.height - 40))
    y = (_MACRO.height - tissue.shape[0]) // 2
    x = 400 + (_MACRO.width - 420 - tissue.shape[1]) // 2
    picture[y : y + tissue.shape[0], x : x + tissue.shape[1]] = tissue
    return picture
