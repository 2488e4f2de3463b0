"""Backend for TIFF slides: pages that libvips reads correctly through libvips, others through imagecodecs."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyvips
from numpy.typing import NDArray

from slideio_pipe.errors import ConfigError, CorruptSlideError, SkippedWarning, UnsupportedSlideError, warn_caller
from slideio_pipe.geometry import Pyramid, Rect
from slideio_pipe.images.vips import as_rgb
from slideio_pipe.images.virtual_tiff import VirtualTiff
from slideio_pipe.slides.backends.base import Facts, StaleLevelError, StoredTiles, undecodable
from slideio_pipe.slides.backends.jpeg_tiles import JpegTiles
from slideio_pipe.slides.backends.tiff_decoder import CutStrips, TileDecoder
from slideio_pipe.slides.backends.tiff_header import JPEG, TiffHeader, TiffPage, read_header

_CONVERT = "convert it once, for example with QuPath or Bio-Formats, to a tiled JPEG-compressed RGB TIFF"


def facts_of(header: TiffHeader, backend: str) -> Facts:
    """Return the facts of a TIFF header."""
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

    A page that libvips would decode wrongly (a JPEG with a wrong colour tag, an unsupported codec) is decoded by
    imagecodecs and passed to libvips through a virtual TIFF, so that callers get the same kind of lazy image. Raise
    UnsupportedSlideError if neither decodes a level.
    """

    name = "tiff"

    def __init__(self, path: Path, header: TiffHeader | None = None) -> None:
        self._path = path
        self._header = header or read_header(path)
        for level in self._header.levels:
            if level.refusal:
                raise UnsupportedSlideError(level.refusal, slide=path.name, remedy=_CONVERT)
        self._images: dict[TiffPage, Any] = {}
        self._virtual: dict[TiffPage, VirtualTiff] = {}
        self._jpeg: dict[int, JpegTiles] = {}
        self._decoders: dict[TiffPage, TileDecoder] = {}
        self._black: set[tuple[int, int, int]] = set()  # (level, column, row) of tiles that are black in the file
        self._lock = threading.Lock()
        self.facts = facts_of(self._header, self.name)
        self._warn_of_holes()

    def _warn_of_holes(self) -> None:
        """Warn of tiles lost by Aperio's encoder at level 0, where no finer level exists; others mean white."""
        base = self._header.levels[0]
        if self._header.vendor == "aperio" and base.leaves_out_tiles:
            counts = base.page.databytecounts
            missing = sum(not (count and offset) for count, offset in zip(counts, base.page.dataoffsets, strict=False))
            reason = f"{missing:,} of {len(counts):,} stored tiles of level 0 are empty in the file: they are white"
            warn_caller(SkippedWarning(f"{self._path.name}: {reason}"))

    def level_image(self, level: int) -> Any:
        return self._image(self._header.levels[level])

    def associated_image(self, name: str) -> Any:
        page = self._header.associated[name]
        if page.refusal:
            raise UnsupportedSlideError(f"{name}: {page.refusal}", slide=self._path.name, remedy=_CONVERT)
        return self._image(page)

    def stored_tiles(self, level: int) -> StoredTiles | None:
        """Return the level's own JPEG tiles; None if it has another codec, strips, planes or alpha."""
        page = self._header.levels[level]
        if page.compression != JPEG or not page.tiled or page.page.samplesperpixel != 3 or page.in_planes:
            return None
        with self._lock:
            if level not in self._jpeg:
                # A weak reference: a cycle would keep the files open until the garbage collector runs.
                fallback = partial(_general_path, weakref.ref(self), level)
                self._jpeg[level] = JpegTiles(self._path, page, fallback, self._decoder(page))
            return self._jpeg[level]

    def failure(self, level: int, rect: Rect, pixels: NDArray[np.uint8]) -> BaseException | None:
        """Return why ``pixels`` of ``rect`` are wrong, or None.

        A stored tile that libvips could not decode is black in its cache, and so are tiles that it fetched together
        with it. So one pixel of every stored tile is checked, a tile that looks black is decoded once more, and a
        cache found to be wrong is dropped.
        """
        page = self._header.levels[level]
        virtual = self._virtual.get(page)
        if virtual is not None:
            return virtual.failure(rect)
        stale = None
        for column, left, right in _stored(rect.x, rect.width, page.tile.width):
            for row, top, bottom in _stored(rect.y, rect.height, page.tile.height):
                middle = (left + right) // 2, (top + bottom) // 2
                if not pixels[middle[1], middle[0]].any():
                    error = self._decode_again(level, column, row, (rect.x + middle[0], rect.y + middle[1]))
                    if error is not None and not isinstance(error, StaleLevelError):
                        self._drop_image(page)
                        return error
                    stale = error or stale
        if stale is not None:
            self._drop_image(page)
        return stale

    def _drop_image(self, page: TiffPage) -> None:
        with self._lock:
            self._images.pop(page, None)

    def _decode_again(self, level: int, column: int, row: int, place: tuple[int, int]) -> CorruptSlideError | None:
        """Return why a tile cannot be decoded, or that it can and is not black at ``place``, level px."""
        page = self._header.levels[level]
        if (level, column, row) in self._black:
            return None
        corner = Rect(column * page.tile.width, row * page.tile.height, *page.tile)
        try:
            pixels = self._through_libvips(page).crop(*corner.intersect(Rect(0, 0, *page.size))).numpy()
            if pixels[place[1] - corner.y, place[0] - corner.x].any():
                reason = f"tile ({column}, {row}) of level {level} was lost beside one that cannot be decoded"
                return StaleLevelError(reason, slide=self._path.name, remedy="read it again")
        except pyvips.Error as error:
            return undecodable(f"tile ({column}, {row}) of level {level}", _first_line(error), self._path.name)
        self._black.add((level, column, row))
        return None

    def _image(self, page: TiffPage) -> Any:
        with self._lock:
            if page not in self._images:
                through = self._through_libvips if page.libvips_reads_it else self._through_imagecodecs
                self._images[page] = through(page)
            return self._images[page]

    def _through_libvips(self, page: TiffPage) -> Any:
        # fail_on: below "warning", libvips returns zeros for deflate, LZW and PackBits data that it cannot decode.
        options = {"page": page.directory, "fail_on": "warning"}
        options |= {"subifd": page.subifd} if page.subifd >= 0 else {}
        try:
            image = pyvips.Image.tiffload(str(self._path), **options)
        except pyvips.Error as error:
            raise CorruptSlideError(
                f"libvips cannot open directory {page.directory} ({_first_line(error)})",
                slide=self._path.name,
                remedy='try {backend="openslide"}, or copy the slide again',
            ) from error
        if (image.width, image.height) != page.size:  # libvips follows damaged links differently
            raise CorruptSlideError(
                f"directory {page.directory} is {image.width}×{image.height} px to libvips, {page.size.width}×"
                f"{page.size.height} to tifffile",
                slide=self._path.name,
                remedy="copy the slide again",
            )
        return as_rgb(image, slide=self._path.name)

    def _through_imagecodecs(self, page: TiffPage) -> Any:
        decoder = self._decoder(page)
        source = decoder if page.tiled else CutStrips(decoder)
        virtual = self._virtual[page] = VirtualTiff(page.size, source.tile, source.read)
        return virtual.image

    def _decoder(self, page: TiffPage) -> TileDecoder:
        """Return the decoder of a page; if a level lacks tiles, they are drawn from the finer level."""
        if page not in self._decoders:
            level = self._header.levels.index(page) if page in self._header.levels else 0
            finer = self._decoder(self._header.levels[level - 1]) if level and page.leaves_out_tiles else None
            self._decoders[page] = TileDecoder(self._path, page, finer)
        return self._decoders[page]


def _general_path(backend: weakref.ref[TiffBackend], level: int, rect: Rect) -> NDArray[np.uint8]:
    """Return level pixels through the lazy image, for a tile that cannot be decoded from its own bytes."""
    alive = backend()
    if alive is None:
        raise ConfigError("the slide is closed", remedy="open it again with open_slide")
    try:
        pixels = np.asarray(alive.level_image(level).crop(*rect).numpy(), np.uint8)
    except pyvips.Error as error:
        raise ValueError(_first_line(error)) from error
    failure = alive.failure(level, rect, pixels)
    if failure is not None:
        raise failure
    return pixels


def _stored(start: int, length: int, tile: int) -> Iterator[tuple[int, int, int]]:
    """Yield (index, from, to) of the stored tiles that a span touches; from and to count from the span's start."""
    for index in range(start // tile, (start + length - 1) // tile + 1):
        yield index, max(0, index * tile - start), min(length, (index + 1) * tile - start)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
