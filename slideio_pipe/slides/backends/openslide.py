"""Every format of OpenSlide 4 as lazy pyvips images: MIRAX, NDPI, SCN, BIF, VMS, DICOM, JPEG 2000 SVS."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import openslide
from numpy.typing import NDArray
from PIL import Image

from slideio_pipe.errors import CorruptSlideError, IncompleteSlideWarning, UnsupportedSlideError, warn_caller
from slideio_pipe.geometry import Mpp, Size
from slideio_pipe.images.vips import to_rgb
from slideio_pipe.images.virtual_tiff import ReadTile, VirtualTiff
from slideio_pipe.slides.backends.base import Facts, VirtualBackend
from slideio_pipe.slides.backends.dicom_header import Instance, is_dicom, read_series, why_not
from slideio_pipe.slides.backends.levels import UNKNOWN_TILE, place_levels

# Stored tiles outside this range (NDPI's 8-row strips, single-tile levels) are inefficient units; 512 px reads are 4 %
# slower per pixel than 1024 px ones and need a quarter of the memory.
_TILE_RANGE = (128, 1024)
_DEFAULT_TILE = 512
_CONVERT_DICOM = "convert it once, for example with wsidicomizer, to one 8-bit RGB image in JPEG or JPEG 2000"


def detect(path: Path) -> str | None:
    """Return OpenSlide's vendor name for a file that it opens, else None."""
    vendor = openslide.OpenSlide.detect_format(str(path))
    return None if vendor is None else str(vendor)


class OpenSlideBackend(VirtualBackend):
    """A slide read by OpenSlide, tile by tile, when libvips requests tiles."""

    name = "openslide"

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._handle = _Handle(path)
        self._associated: dict[str, VirtualTiff] = {}
        try:
            self.facts, self._stored = _read_facts(self._handle.slide, path)
        except UnsupportedSlideError:
            raise
        except Exception as error:  # damage may raise anything
            raise CorruptSlideError(
                f"its properties cannot be read ({' '.join(str(error).split())})",
                slide=path.name,
                remedy="copy the slide again",
            ) from error

    def _tile_reader(self, level: int) -> ReadTile:
        size, tile = self.facts.pyramid.levels[level], self.facts.tile_sizes[level]
        return partial(_read_tile, self._handle, self._stored[level], size, tile)

    def associated_image(self, name: str) -> Any:
        with self._lock:
            if name not in self._associated:
                width, height = self._handle.slide.associated_images[name].size
                tile = Size(-(-width // 16) * 16, -(-height // 16) * 16)
                read = partial(_read_associated, self._handle, name)
                self._associated[name] = VirtualTiff(Size(width, height), tile, read)
            return self._associated[name].image


class _Handle:
    """A renewable OpenSlide object: after one failed read OpenSlide refuses every later one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.slide = self._open()
        self._lock = threading.Lock()

    def read(self, what: str, read: Callable[[openslide.OpenSlide], Image.Image]) -> NDArray[np.uint8]:
        """Return pixels, (H, W, 3) uint8; tried twice, because a read of another thread may have failed first."""
        for last in (False, True):
            slide = self.slide
            try:
                return to_rgb(np.asarray(read(slide)))
            except (openslide.OpenSlideError, OSError, ValueError) as error:
                with self._lock:
                    if self.slide is slide:
                        self.slide = self._open()
                if last:
                    raise CorruptSlideError(
                        f"{what} cannot be read ({error})",
                        slide=self.path.name,
                        remedy="copy the slide again, or leave this region out",
                    ) from error
        raise AssertionError("unreachable")

    def _open(self) -> openslide.OpenSlide:
        try:
            return openslide.OpenSlide(str(self.path))
        except openslide.OpenSlideUnsupportedFormatError as error:
            raise UnsupportedSlideError(
                "OpenSlide cannot open this format",
                slide=self.path.name,
                remedy="slideio-pipe doctor lists the formats that can be opened",
            ) from error
        except openslide.OpenSlideError as error:
            if is_dicom(self.path):
                _check_series(self.path, read_series(self.path))
            raise CorruptSlideError(
                f"OpenSlide cannot open it ({error})",
                slide=self.path.name,
                remedy="check that all files of the slide are there, or copy it again",
            ) from error


def _read_tile(handle: _Handle, level: int, size: Size, tile: Size, column: int, row: int) -> NDArray[np.uint8]:
    x, y = column * tile.width, row * tile.height
    width, height = min(tile.width, size.width - x), min(tile.height, size.height - y)

    def read(slide: openslide.OpenSlide) -> Image.Image:
        # OpenSlide's corner is in whole level-0 px. If the downsample is not an integer it interpolates, by up to half
        # a level-0 px: every OpenSlide user gets this, and TIFFs that we can decode avoid it.
        downsample = slide.level_downsamples[level]
        corner = (round(x * downsample), round(y * downsample))
        return cast(Image.Image, slide.read_region(corner, level, (width, height)))

    out = np.full((tile.height, tile.width, 3), 255, np.uint8)
    out[:height, :width] = handle.read(f"tile ({column}, {row}) of level {level}", read)
    return out


def _read_associated(handle: _Handle, name: str, column: int, row: int) -> NDArray[np.uint8]:
    del column, row  # the whole image is one tile
    pixels = handle.read(f'associated image "{name}"', lambda slide: slide.associated_images[name])
    height, width = pixels.shape[:2]
    return np.pad(pixels, ((0, -height % 16), (0, -width % 16), (0, 0)), constant_values=255)


def _read_facts(slide: openslide.OpenSlide, path: Path) -> tuple[Facts, tuple[int, ...]]:
    """Return the facts of the header, and for each of our levels the index of OpenSlide's."""
    properties = dict(slide.properties)
    sizes = [Size(*size) for size in slide.level_dimensions]
    vendor = properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown")
    series = read_series(path) if vendor == "dicom" else []
    if series:
        _check_series(path, series)
    stated = _dicom_downsamples(series, sizes) if vendor == "dicom" else [None] * len(sizes)
    tiles = [_stored_tile(properties, level) for level in range(len(sizes))]
    placed = place_levels(sizes, stated, [tile or UNKNOWN_TILE for tile in tiles], path.name)
    facts = Facts(
        backend=OpenSlideBackend.name,
        vendor=vendor,
        pyramid=placed.pyramid,
        tile_sizes=tuple(_tile_size(tiles[level]) for level in placed.kept),
        mpp=_mpp(properties),
        objective_power=_float(properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER)),
        properties=properties,
        associated=tuple(slide.associated_images),
        icc_profile=_icc(slide),
    )
    return facts, placed.kept


def _check_series(path: Path, series: Sequence[Instance]) -> None:
    """Raise if a DICOM series cannot be read correctly; OpenSlide reports that as damage or not at all."""
    reason = why_not(series)
    if reason:
        raise UnsupportedSlideError(reason, slide=path.name, remedy=_CONVERT_DICOM)
    if series and not any(instance.is_level for instance in series):
        kinds = ", ".join(sorted({"\\".join(instance.image_type) or "no type" for instance in series}))
        raise CorruptSlideError(
            f"no file of the slide's levels (VOLUME) is beside it, only {kinds}",
            slide=path.name,
            remedy="copy all files of the series into one folder",
        )
    _warn_of_missing_base(path, series)


def _warn_of_missing_base(path: Path, series: Sequence[Instance]) -> None:
    """Warn if every level was derived from a finer one that is missing: only the coarse levels were copied."""
    levels = [instance for instance in series if instance.is_level]
    if levels and all("RESAMPLED" in instance.image_type[3:4] for instance in levels):
        size = levels[0].size
        warn_caller(
            IncompleteSlideWarning(
                f"{path.name}: the largest of its files, {levels[0].path.name} ({size.width} × {size.height} px), is "
                "itself resampled (DICOM ImageType): the file of the full resolution seems to be missing"
            )
        )


def _dicom_downsamples(series: Sequence[Instance], sizes: Sequence[Size]) -> list[tuple[float, float] | None]:
    """Return the downsamples by each level file's pixel spacing, which OpenSlide does not read."""
    spacing = {one.size: one.spacing for one in series if one.is_level and one.spacing is not None}
    base = spacing.get(sizes[0])
    found = [spacing.get(size) for size in sizes]
    return [None if at is None or base is None else (at[0] / base[0], at[1] / base[1]) for at in found]


def _stored_tile(properties: dict[str, str], level: int) -> Size | None:
    sides = [int(properties.get(f"openslide.level[{level}].tile-{side}", 0)) for side in ("width", "height")]
    return Size(*sides) if min(sides) > 0 else None


def _tile_size(stored: Size | None) -> Size:
    least, most = _TILE_RANGE
    width, height = (side if side % 16 == 0 and least <= side <= most else _DEFAULT_TILE for side in stored or (0, 0))
    return Size(width, height)


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
    try:
        profile = slide.color_profile
    except OSError:  # a damaged profile does not affect the pixels
        return None
    return None if profile is None else bytes(profile.tobytes())
