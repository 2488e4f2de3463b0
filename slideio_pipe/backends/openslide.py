"""Whatever OpenSlide 4 opens, as lazy pyvips images: MIRAX, NDPI, SCN, BIF, VMS, DICOM, JPEG 2000 SVS."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openslide
from numpy.typing import NDArray

from slideio_pipe.backends.base import Facts
from slideio_pipe.backends.vips import to_rgb
from slideio_pipe.backends.virtual import VirtualTiff
from slideio_pipe.errors import CorruptSlideError, UnsupportedSlideError
from slideio_pipe.geometry import Mpp, Pyramid, Rect, Size

# Stored tiles outside this range (NDPI's 8-row strips, single-tile levels) make bad units of work; 512 px reads
# are 4 % slower per pixel than 1024 px ones and need a quarter of the memory.
_TILE_RANGE = (128, 1024)
_DEFAULT_TILE = 512


def detect(path: Path) -> str | None:
    """Return OpenSlide's vendor name for a file it would open, else None."""
    vendor = openslide.OpenSlide.detect_format(str(path))
    return None if vendor is None else str(vendor)


class OpenSlideBackend:
    """A slide read by OpenSlide, tile by tile, as libvips asks for tiles."""

    name = "openslide"

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._slide = openslide.OpenSlide(str(path))
        except openslide.OpenSlideUnsupportedFormatError as error:
            raise UnsupportedSlideError(
                "OpenSlide does not know this format",
                slide=path.name,
                remedy="slideio-pipe doctor lists what opens",
            ) from error
        except openslide.OpenSlideError as error:
            raise CorruptSlideError(
                f"OpenSlide cannot open it ({error})",
                slide=path.name,
                remedy="check that all files of the slide are there, or copy it again",
            ) from error
        self._levels: dict[int, VirtualTiff] = {}
        self._associated: dict[str, VirtualTiff] = {}
        self._lock = threading.Lock()
        self.facts = self._read_facts()

    def level_image(self, level: int) -> Any:
        """Return the lazy image of a level."""
        with self._lock:
            if level not in self._levels:
                size, tile = self.facts.pyramid.levels[level], self.facts.tile_sizes[level]
                self._levels[level] = VirtualTiff(size, tile, partial(self._read_tile, level))
            return self._levels[level].image

    def associated_image(self, name: str) -> Any:
        """Return the lazy image of a label, macro or thumbnail."""
        with self._lock:
            if name not in self._associated:
                width, height = self._slide.associated_images[name].size
                tile = Size(-(-width // 16) * 16, -(-height // 16) * 16)
                self._associated[name] = VirtualTiff(Size(width, height), tile, partial(self._read_associated, name))
            return self._associated[name].image

    def failure(self, level: int, rect: Rect) -> BaseException | None:
        """Return why pixels of ``rect`` could not be decoded."""
        virtual = self._levels.get(level)
        return None if virtual is None else virtual.failure(rect)

    def close(self) -> None:
        """Release the file; images handed out before must not be used any more."""
        self._slide.close()

    def _read_facts(self) -> Facts:
        slide = self._slide
        properties = dict(slide.properties)
        levels = tuple(Size(*size) for size in slide.level_dimensions)
        return Facts(
            backend=self.name,
            vendor=properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown"),
            pyramid=Pyramid(levels),
            tile_sizes=tuple(_tile_size(properties, level) for level in range(len(levels))),
            mpp=_mpp(properties),
            objective_power=_float(properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER)),
            properties=properties,
            associated=tuple(slide.associated_images),
            icc_profile=_icc(slide),
        )

    def _read_tile(self, level: int, column: int, row: int) -> NDArray[np.uint8]:
        tile, size = self.facts.tile_sizes[level], self.facts.pyramid.levels[level]
        x, y = column * tile.width, row * tile.height
        width, height = min(tile.width, size.width - x), min(tile.height, size.height - y)
        # OpenSlide takes the corner in whole level-0 px. Where the downsample is no integer it interpolates, by up to
        # half a level-0 px: that is what every OpenSlide user sees, and why TIFFs we can decode go another way.
        downsample = self._slide.level_downsamples[level]
        corner = (round(x * downsample), round(y * downsample))
        try:
            region = self._slide.read_region(corner, level, (width, height))
        except openslide.OpenSlideError as error:
            raise CorruptSlideError(
                f"tile ({column}, {row}) of level {level} cannot be read ({error})",
                slide=self._path.name,
                remedy="copy the slide again, or leave it out",
            ) from error
        out = np.full((tile.height, tile.width, 3), 255, np.uint8)
        out[:height, :width] = to_rgb(np.asarray(region))
        return out

    def _read_associated(self, name: str, column: int, row: int) -> NDArray[np.uint8]:
        del column, row  # the whole image is one tile
        pixels = to_rgb(np.asarray(self._slide.associated_images[name]))
        height, width = pixels.shape[:2]
        return np.pad(pixels, ((0, -height % 16), (0, -width % 16), (0, 0)), constant_values=255)


def _tile_size(properties: dict[str, str], level: int) -> Size:
    sides = []
    for side in ("width", "height"):
        value = int(properties.get(f"openslide.level[{level}].tile-{side}", 0))
        usable = value % 16 == 0 and _TILE_RANGE[0] <= value <= _TILE_RANGE[1]
        sides.append(value if usable else _DEFAULT_TILE)
    return Size(*sides)


def _mpp(properties: dict[str, str]) -> Mpp | None:
    x = _float(properties.get(openslide.PROPERTY_NAME_MPP_X))
    y = _float(properties.get(openslide.PROPERTY_NAME_MPP_Y))
    return None if x is None or y is None else Mpp(x, y)


def _float(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _icc(slide: openslide.OpenSlide) -> bytes | None:
    profile = slide.color_profile
    return None if profile is None else bytes(profile.tobytes())
