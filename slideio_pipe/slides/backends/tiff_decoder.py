"""Decode stored tiles and strips of one TIFF page to RGB, each from its own bytes."""

from __future__ import annotations

import math
import os
import threading
import weakref
from pathlib import Path

import imagecodecs
import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray
from PIL import Image

from slideio_pipe.files import open_to_read, pread
from slideio_pipe.geometry import Rect, Size
from slideio_pipe.slides.backends.base import undecodable
from slideio_pipe.slides.backends.jpeg_header import DAMAGE, complete_jpeg, read_frame
from slideio_pipe.slides.backends.tiff_header import JPEG, TiffPage
from slideio_pipe.slides.byte_cache import ByteCache

# Pixels of the finer level in memory while a missing tile is drawn: 48 MB.
_MAX_FINER_PX = 16_000_000
# Tile size that libvips sees of a page in strips; both sides are multiples of 16.
_CUT_PX = 256
# Cached strips: those of three rows of cut tiles (tiles off the grid need two), up to this many bytes.
_KEPT_ROWS, _KEPT_BYTES = 3 * _CUT_PX, 192 * 2**20


class TileDecoder:
    """Stored tiles of one TIFF page as RGB arrays; a strip is treated as a tile as wide as the page.

    Parameters
    ----------
    path : Path
        The TIFF; kept open for the decoder's life, read with ``pread``, so threads can share it.
    page : TiffPage
    finer : TileDecoder, optional
        Decoder of the next finer level: missing tiles are drawn from it. Without one they are white.

    Attributes
    ----------
    tile : Size
        Size of a stored tile.
    grid : Size
        Columns and rows.
    """

    def __init__(self, path: Path, page: TiffPage, finer: TileDecoder | None = None) -> None:
        self.page, self.tile, self._slide, self._finer = page, page.tile, path.name, finer
        self.grid = Size(*(-(-side // tile) for side, tile in zip(page.size, page.tile, strict=True)))
        self._fd = open_to_read(path)
        weakref.finalize(self, os.close, self._fd)

    def read(self, column: int, row: int) -> NDArray[np.uint8]:
        """Return a stored tile, (tile height, tile width, 3) uint8.

        Raise CorruptSlideError, which names the tile's place, if the tile's bytes cannot be decoded.
        """
        tile = self.page.tile
        planes = int(self.page.page.samplesperpixel) if self.page.in_planes else 1
        first, step = row * self.grid.width + column, self.grid.width * self.grid.height
        try:
            decoded = [self._decode(index, row) for index in range(first, first + planes * step, step)]
        except Exception as error:  # codecs may raise anything
            reason = str(error) or type(error).__name__
            raise undecodable(self._place(column, row), reason, self._slide) from error
        stored = [plane for plane, _ in decoded if plane is not None]
        if len(stored) < planes:
            return self.drawn(column, row)
        joined = np.concatenate(stored, axis=2) if planes > 1 else stored[0]
        pixels = self.page.samples.rgb(joined, decoded[0][1])
        if pixels.shape == (tile.height, tile.width, 3):
            return pixels
        out = np.full((tile.height, tile.width, 3), 255, np.uint8)
        height, width = min(tile.height, pixels.shape[0]), min(tile.width, pixels.shape[1])
        out[:height, :width] = pixels[:height, :width]
        return out

    def drawn(self, column: int, row: int) -> NDArray[np.uint8]:
        """Return a tile missing in the file: the mean of the finer level's pixels, white if that has none.

        Aperio's encoder once left such holes, and OpenSlide also draws them from the finer level.
        """
        tile = self.page.tile
        out = np.full((tile.height, tile.width, 3), 255, np.uint8)
        if self._finer is None or self.blank(column, row):
            return out
        inside = Rect(column * tile.width, row * tile.height, *tile).intersect(Rect(0, 0, *self.page.size))
        finer_px = inside.width * self._finer.page.size.width / self.page.size.width
        finer_px *= self._finer.page.size.height / self.page.size.height
        rows = max(1, int(_MAX_FINER_PX / finer_px))
        for top in range(0, inside.height, rows):
            band = Rect(inside.x, inside.y + top, inside.width, min(rows, inside.height - top))
            left, upper, right, lower = self._in_finer(band)
            corner = (math.floor(left), math.floor(upper))
            source = Rect(*corner, math.ceil(right) - corner[0], math.ceil(lower) - corner[1])
            image = Image.fromarray(self._finer.region(source))
            box = (left - source.x, upper - source.y, right - source.x, lower - source.y)
            drawn = image.resize((band.width, band.height), Image.Resampling.BOX, box=box)
            out[top : top + band.height, : band.width] = np.asarray(drawn)
        return out

    def blank(self, column: int, row: int) -> bool:
        """Return whether a tile is stored neither here nor in finer levels: then it is white."""
        if self._span(row * self.grid.width + column) is not None:
            return False
        if self._finer is None:
            return True
        width, height = self.page.tile
        inside = Rect(column * width, row * height, width, height).intersect(Rect(0, 0, *self.page.size))
        left, upper, right, lower = self._in_finer(inside)
        width, height = self._finer.page.tile
        columns = range(math.floor(left / width), math.ceil(right / width))
        rows = range(math.floor(upper / height), math.ceil(lower / height))
        return all(self._finer.blank(x, y) for y in rows for x in columns)

    def _in_finer(self, rect: Rect) -> tuple[float, float, float, float]:
        """Return left, upper, right and lower of a rectangle in pixels of the finer level, clipped to it."""
        assert self._finer is not None
        (width, height), finer = self.page.size, self._finer.page.size
        sx, sy = finer.width / width, finer.height / height
        right, lower = (rect.x + rect.width) * sx, (rect.y + rect.height) * sy
        return rect.x * sx, rect.y * sy, min(right, float(finer.width)), min(lower, float(finer.height))

    def region(self, rect: Rect) -> NDArray[np.uint8]:
        """Return pixels of a rectangle inside the page, (rect.height, rect.width, 3) uint8."""
        out, (width, height) = np.empty((rect.height, rect.width, 3), np.uint8), self.page.tile
        for row in range(rect.y // height, -(-(rect.y + rect.height) // height)):
            for column in range(rect.x // width, -(-(rect.x + rect.width) // width)):
                cut = Rect(column * width, row * height, width, height)
                part = cut.intersect(rect)
                pixels = self.read(column, row)[part.y - cut.y :, part.x - cut.x :][: part.height, : part.width]
                out[part.y - rect.y :, part.x - rect.x :][: part.height, : part.width] = pixels
        return out

    def _span(self, index: int) -> tuple[int, int] | None:
        """Return (offset, bytes) of a stored tile, or None if nothing is stored."""
        offset, count = int(self.page.page.dataoffsets[index]), int(self.page.page.databytecounts[index])
        return (offset, count) if offset and count else None

    def _decode(self, index: int, row: int) -> tuple[NDArray[np.uint8] | None, bytes]:
        """Return one stored tile, (h, w, channels) uint8, or None if nothing is stored, and its bytes."""
        page, span = self.page.page, self._span(index)
        if span is None:
            return None, b""
        data = pread(self._fd, span[1], span[0])
        if len(data) != span[1]:
            raise ValueError(f"{len(data)} of {span[1]} bytes are there")
        if self.page.compression == JPEG and (page.samplesperpixel == 1 or self.page.in_planes):
            decoded = self._jpeg(data, "GRAY")
        elif self.page.compression == JPEG and page.samplesperpixel == 3:
            decoded = self._jpeg(data, "RGB")
        elif self.page.compression not in tifffile.TIFF.IMAGE_COMPRESSIONS and self.page.samples.ycbcr is not None:
            decoded = self._luma_and_chroma(data, row)
        else:
            decoded = page.decode(data, index, jpegtables=page.jpegtables)[0]
        pixels = np.asarray(decoded)
        if pixels.dtype != np.uint8:
            raise ValueError(f"decoded to {pixels.dtype}")
        return (pixels.reshape(pixels.shape[-3:]) if pixels.ndim > 2 else pixels[..., None]), data

    def _jpeg(self, data: bytes, colours: str) -> NDArray[np.uint8]:
        """Decode a JPEG and raise if it is damaged; imagecodecs, which continues in grey, decodes other kinds."""
        frame, tile, tables = read_frame(data), self.page.tile, self.page.page.jpegtables or b""
        if frame is not None and (frame.width > tile.width or frame.height > tile.height):
            raise ValueError(f"its JPEG is {frame.width}×{frame.height} px")
        ycbcr = self.page.tagged_ycbcr != self.page.colour_tag_wrong
        try:
            stream = complete_jpeg(data, tables, ycbcr=ycbcr)
            return np.asarray(simplejpeg.decode_jpeg(stream, colorspace=colours), np.uint8)
        except ValueError as error:
            if any(damage in str(error) for damage in DAMAGE):
                raise
        model = "GRAYSCALE" if colours == "GRAY" else "YCBCR" if ycbcr else "RGB"
        out = "GRAYSCALE" if colours == "GRAY" else "RGB"
        return np.asarray(imagecodecs.jpeg8_decode(data, tables=tables or None, colorspace=model, outcolorspace=out))

    def _luma_and_chroma(self, data: bytes, row: int) -> NDArray[np.uint8]:
        """Return Y, Cb, Cr of a tile, or one of them for planes; tifffile does not decode subsampled ones."""
        page, ycbcr, (width, height) = self.page.page, self.page.samples.ycbcr, self.page.tile
        assert ycbcr is not None
        rows = height if self.page.tiled else min(height, self.page.size.height - row * height)
        channels = 1 if self.page.in_planes else int(page.samplesperpixel)
        unpacked = imagecodecs.bitorder_decode(data) if int(page.fillorder) == 2 else data
        if self.page.compression != 1:
            at_most = (width + 3) * (rows + 3) * channels
            unpacked = tifffile.TIFF.DECOMPRESSORS[self.page.compression](unpacked, out=at_most)
        raw = np.frombuffer(unpacked, np.uint8)
        if ycbcr.subsampling != (1, 1) and channels == 3 and int(page.predictor) == 1:
            return ycbcr.unpack(raw, width, rows)
        if raw.size < width * rows * channels:
            raise ValueError(f"{raw.size} of {width * rows * channels} bytes are there")
        pixels = raw[: width * rows * channels].reshape(rows, width, channels)
        if int(page.predictor) != 1:
            pixels = tifffile.TIFF.UNPREDICTORS[int(page.predictor)](pixels, axis=-2)
        return np.asarray(pixels, np.uint8)

    def _place(self, column: int, row: int) -> str:
        what = f"tile ({column}, {row})" if self.page.tiled else f"strip {row}"
        return f"{what} of directory {self.page.directory}"


class CutStrips:
    """A page in strips as tiles that libvips can cache; can be shared by threads.

    Parameters
    ----------
    decoder : TileDecoder
        Decoder of the page.

    Attributes
    ----------
    tile : Size
        Size of the tiles.
    """

    def __init__(self, decoder: TileDecoder) -> None:
        self._decoder, self.tile = decoder, Size(_CUT_PX, _CUT_PX)
        width, height = decoder.page.tile
        fits = max(_CUT_PX // height + 2, _KEPT_BYTES // (3 * width * height))
        strips = min(_KEPT_ROWS // height + 2, fits)
        self._kept: ByteCache[int, NDArray[np.uint8]] = ByteCache(strips * 3 * width * height)
        self._lock = threading.Lock()

    def read(self, column: int, row: int) -> NDArray[np.uint8]:
        """Return a tile, (256, 256, 3) uint8, white beyond the page.

        Raise CorruptSlideError if a strip cannot be decoded.
        """
        page, out = self._decoder.page, np.full((*self.tile, 3), 255, np.uint8)
        height, left, top = page.tile.height, column * _CUT_PX, row * _CUT_PX
        bottom = min(top + _CUT_PX, page.size.height)
        with self._lock:
            for strip in range(top // height, -(-bottom // height)):
                first, last = max(top, strip * height), min(bottom, (strip + 1) * height)
                part = self._strip(strip)[first - strip * height : last - strip * height, left : left + _CUT_PX]
                out[first - top : last - top, : part.shape[1]] = part
        return out

    def _strip(self, strip: int) -> NDArray[np.uint8]:
        pixels = self._kept.get(strip)
        if pixels is None:
            pixels = self._decoder.read(0, strip)
            self._kept.keep(strip, pixels, pixels.nbytes)
        return pixels
