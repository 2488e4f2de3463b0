"""TIFF slides: through libvips where it is right, tile by tile through imagecodecs where it is not."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pyvips
from numpy.typing import NDArray

from slideio_pipe.backends.base import Facts
from slideio_pipe.backends.tiff_header import JPEG, LIBVIPS_COMPRESSIONS, TiffHeader, TiffPage, read_header
from slideio_pipe.backends.vips import as_rgb, to_rgb
from slideio_pipe.backends.virtual import VirtualTiff
from slideio_pipe.errors import CorruptSlideError, UnsupportedSlideError
from slideio_pipe.geometry import Pyramid, Rect


def facts_of(header: TiffHeader, backend: str) -> Facts:
    """Return what a TIFF header says, as every backend says it."""
    return Facts(
        backend=backend,
        vendor=header.vendor,
        pyramid=Pyramid(tuple(level.size for level in header.levels)),
        tile_sizes=tuple(level.tile for level in header.levels),
        mpp=header.mpp,
        objective_power=header.objective_power,
        properties=header.properties,
        associated=tuple(header.associated),
        icc_profile=header.icc_profile,
    )


class TiffBackend:
    """SVS, generic and OME pyramids, pages or SubIFDs, decoded by libvips.

    A page that libvips would get wrong (a JPEG whose tag lies about its colours, a codec libvips lacks) is decoded by
    imagecodecs and enters libvips through a virtual TIFF, so that everything above sees the same lazy image.
    """

    name = "tiff"

    def __init__(self, path: Path, header: TiffHeader | None = None) -> None:
        self._path = path
        self._header = header or read_header(path)
        self._images: dict[TiffPage, Any] = {}
        self._virtual: dict[TiffPage, VirtualTiff] = {}
        self._lock = threading.Lock()
        self._fd = os.open(path, os.O_RDONLY)
        self.facts = facts_of(self._header, self.name)

    def level_image(self, level: int) -> Any:
        """Return the lazy image of a level."""
        return self._image(self._header.levels[level])

    def associated_image(self, name: str) -> Any:
        """Return the lazy image of a label, macro or thumbnail page."""
        return self._image(self._header.associated[name])

    def failure(self, level: int, rect: Rect) -> BaseException | None:
        """Return why pixels of ``rect`` could not be decoded, when libvips was not told."""
        virtual = self._virtual.get(self._header.levels[level])
        return None if virtual is None else virtual.failure(rect)

    def close(self) -> None:
        """Release the file; images handed out before must not be used any more."""
        self._images.clear()
        self._virtual.clear()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _image(self, page: TiffPage) -> Any:
        with self._lock:
            if page not in self._images:
                right = page.compression in LIBVIPS_COMPRESSIONS and not page.lies
                self._images[page] = self._through_libvips(page) if right else self._through_imagecodecs(page)
            return self._images[page]

    def _through_libvips(self, page: TiffPage) -> Any:
        options = {"page": page.directory} | ({"subifd": page.subifd} if page.subifd >= 0 else {})
        try:
            image = pyvips.Image.tiffload(str(self._path), **options)
        except pyvips.Error as error:
            raise CorruptSlideError(
                f"libvips cannot open directory {page.directory} ({_first_line(error)})",
                slide=self._path.name,
                remedy='try backend="openslide", or copy the slide again',
            ) from error
        return as_rgb(image, slide=self._path.name)

    def _through_imagecodecs(self, page: TiffPage) -> Any:
        if not page.tiled:
            raise UnsupportedSlideError(
                f"compression {page.compression} in strips instead of tiles",
                slide=self._path.name,
                remedy="convert it once with: vips tiffsave IN OUT --tile --pyramid --compression jpeg",
            )
        decoder = TileDecoder(self._fd, page, self._path.name)
        virtual = VirtualTiff(page.size, page.tile, decoder.read)
        self._virtual[page] = virtual
        return virtual.image


class TileDecoder:
    """Stored tiles of one TIFF page as RGB arrays, each from its own bytes.

    Parameters
    ----------
    fd : int
        Open file descriptor; read with ``pread``, so threads may share it.
    page : TiffPage
        A tiled page.
    slide : str
        Name for error messages.
    """

    def __init__(self, fd: int, page: TiffPage, slide: str) -> None:
        self._fd, self._page, self._slide = fd, page, slide
        self._columns = -(-page.size.width // page.tile.width)

    def read(self, column: int, row: int) -> NDArray[np.uint8]:
        """Return a stored tile, (tile height, tile width, 3) uint8; a sparse tile (no bytes) is white.

        Raises
        ------
        CorruptSlideError
            With the tile's place, when its bytes do not decode.
        """
        index = row * self._columns + column
        tile = self._page.tile
        out = np.full((tile.height, tile.width, 3), 255, np.uint8)
        count = int(self._page.page.databytecounts[index])
        if count == 0:
            return out
        data = os.pread(self._fd, count, int(self._page.page.dataoffsets[index]))
        try:
            pixels = self._decode(data, index)
        except (RuntimeError, ValueError) as error:  # imagecodecs' codec errors are RuntimeErrors
            raise CorruptSlideError(
                f"tile ({column}, {row}) of directory {self._page.directory} cannot be decoded ({error})",
                slide=self._slide,
                remedy="copy the slide again, or leave this region out",
            ) from error
        height, width = min(tile.height, pixels.shape[0]), min(tile.width, pixels.shape[1])
        out[:height, :width] = to_rgb(pixels[:height, :width])
        return out

    def _decode(self, data: bytes, index: int) -> NDArray[np.uint8]:
        page = self._page.page
        if self._page.compression == JPEG and page.samplesperpixel == 3:
            ycbcr = self._page.tagged_ycbcr != self._page.lies
            decoded = imagecodecs.jpeg8_decode(
                data,
                tables=page.jpegtables,
                colorspace="YCBCR" if ycbcr else "RGB",
                outcolorspace="RGB",
            )
        else:
            decoded = page.decode(data, index, jpegtables=page.jpegtables)[0]
        pixels = np.asarray(decoded)
        if pixels.dtype != np.uint8:
            raise ValueError(f"decoded to {pixels.dtype}")
        return pixels.reshape(pixels.shape[-3:]) if pixels.ndim > 2 else pixels[..., None]


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
