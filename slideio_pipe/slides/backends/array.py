"""Backends for arrays: numpy in memory, zarr on disk (OME-Zarr multiscales included), and flat PNG or JPEG images."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyvips
from numpy.typing import NDArray

from slideio_pipe.errors import CorruptSlideError, SlideioPipeError, UnsupportedSlideError
from slideio_pipe.geometry import Pyramid, Size
from slideio_pipe.images.vips import as_rgb, to_rgb
from slideio_pipe.images.virtual_tiff import ReadTile
from slideio_pipe.slides.backends import ngff
from slideio_pipe.slides.backends.base import Backend, Facts, VirtualBackend
from slideio_pipe.slides.backends.levels import place_levels

_TILE = Size(512, 512)


class NumpyBackend(Backend):
    """A (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) uint8 array as a one-level slide; the array is shared, not copied."""

    name = "array"

    def __init__(self, array: NDArray[Any], *, slide: str = "array") -> None:
        _check_pixels(array.shape, array.dtype, slide)
        pixels = np.ascontiguousarray(array if array.ndim == 3 else array[..., None])
        height, width, bands = pixels.shape
        self._pixels = pixels  # libvips reads this memory, which must outlive the image
        image = pyvips.Image.new_from_memory(pixels, width, height, bands, "uchar")
        image = image.copy(interpretation="b-w" if bands == 1 else "srgb")
        self._image = as_rgb(image, slide=slide)
        self.facts = Facts(self.name, "numpy", Pyramid((Size(width, height),)), (_clip(_TILE, width, height),))

    def level_image(self, level: int) -> Any:
        del level
        return self._image

    def associated_image(self, name: str) -> Any:
        """Raise KeyError: an array has no label, macro or thumbnail."""
        raise KeyError(name)


class FlatBackend(NumpyBackend):
    """A PNG, JPEG, WebP or other flat image as a one-level slide; decoded whole at the first access to pixels."""

    def __init__(self, path: Path) -> None:
        try:
            # From a source: libvips interprets "[…]" at the end of a file name as options.
            source = pyvips.Source.new_from_file(str(path))
            image = pyvips.Image.new_from_source(source, "", access="random", fail_on="truncated")
        except pyvips.Error as error:
            raise UnsupportedSlideError(
                "no reader can open this format",
                slide=path.name,
                remedy="check that it is a slide; slideio-pipe doctor lists the formats that can be opened",
            ) from error
        self._image = as_rgb(image, slide=path.name)
        size = Size(image.width, image.height)
        self.facts = Facts(self.name, _flat_vendor(image), Pyramid((size,)), (_clip(_TILE, *size),))


class ZarrBackend(VirtualBackend):
    """A zarr array or an OME-Zarr multiscales group as a slide; chunks are read when libvips requests tiles."""

    name = "array"

    def __init__(self, path: Path) -> None:
        import zarr  # takes a third of the time of opening any other slide

        super().__init__()
        self._slide = path.name
        try:
            node: Any = zarr.open(str(path), mode="r")
        except Exception as error:  # a damaged store may raise many classes in zarr
            raise UnsupportedSlideError(
                f"a directory that is no zarr array or group ({type(error).__name__})",
                slide=path.name,
                remedy="pass a slide file, or the .zarr directory itself",
            ) from error
        series = ngff.find_series(node, path) if isinstance(node, zarr.Group) else None
        self._associated: dict[str, ZarrBackend] = {}
        if series is not None:
            self._associated = dict(_readable(path, series.associated))
            node, path = node[series.slide], path / series.slide
        is_group = isinstance(node, zarr.Group)
        image = ngff.read_multiscale(node, path, self._slide) if is_group else _plain(node, self._slide)
        self._axes = axes = image.axes
        sizes = [Size(a.shape[axes.index("x")], a.shape[axes.index("y")]) for a in image.arrays]
        for array, (width, height) in zip(image.arrays, sizes, strict=True):
            channels = array.shape[axes.index("c")] if "c" in axes else 1
            _check_pixels((height, width, channels), array.dtype, self._slide)
        stored = [Size(*(int(a.chunks[axes.index(axis)]) for axis in "xy")) for a in image.arrays]
        placed = place_levels(sizes, image.downsamples, stored, self._slide)
        self._arrays = [image.arrays[index] for index in placed.kept]
        self.facts = Facts(
            backend=self.name,
            vendor="ome-zarr" if is_group else "zarr",
            pyramid=placed.pyramid,
            tile_sizes=tuple(_tile_size(stored[index]) for index in placed.kept),
            mpp=image.mpp,
            associated=tuple(self._associated),
        )

    def associated_image(self, name: str) -> Any:
        """Return the lazy label or macro of a group written by bioformats2raw; raise KeyError without one."""
        return self._associated[name].level_image(0)

    def _tile_reader(self, level: int) -> ReadTile:
        return partial(self._read_tile, level)

    def _read_tile(self, level: int, column: int, row: int) -> NDArray[np.uint8]:
        tile = self.facts.tile_sizes[level]
        window = {
            "x": slice(column * tile.width, (column + 1) * tile.width),
            "y": slice(row * tile.height, (row + 1) * tile.height),
            "c": slice(None),
        }
        try:
            pixels = np.asarray(self._arrays[level][tuple(window.get(axis, 0) for axis in self._axes)])
        except Exception as error:  # any codec or store error; raised with the tile's place
            raise CorruptSlideError(
                f"chunk of tile ({column}, {row}) of level {level} cannot be read ({error})",
                slide=self._slide,
                remedy="copy the store again",
            ) from error
        kept = [axis for axis in self._axes if axis in window]
        pixels = pixels if "c" in kept else pixels[..., None]
        pixels = pixels.transpose([[*kept, *([] if "c" in kept else ["c"])].index(axis) for axis in "yxc"])
        out = np.full((tile.height, tile.width, 3), 255, np.uint8)
        out[: pixels.shape[0], : pixels.shape[1]] = to_rgb(pixels)
        return out


def is_zarr(path: Path) -> bool:
    """Return whether a directory has zarr metadata (v2 or v3)."""
    return path.is_dir() and any((path / name).exists() for name in ("zarr.json", ".zarray", ".zgroup"))


def _plain(array: Any, slide: str) -> ngff.Multiscale:
    if array.ndim not in (2, 3):
        raise UnsupportedSlideError(
            f"a zarr array of shape {array.shape}", slide=slide, remedy="pass an array of shape (H, W, 3)"
        )
    return ngff.Multiscale((array,), "yxc"[: array.ndim], None, (None,))


def _readable(store: Path, associated: Mapping[str, str]) -> Iterator[tuple[str, ZarrBackend]]:
    for name, place in associated.items():
        with contextlib.suppress(SlideioPipeError):  # an unsupported macro, such as 16-bit, is left out
            yield name, ZarrBackend(store / place)


def _tile_size(chunk: Size) -> Size:
    width, height = (side if side % 16 == 0 and 128 <= side <= 2048 else _TILE.width for side in chunk)
    return Size(width, height)


def _check_pixels(shape: tuple[int, ...], dtype: Any, slide: str) -> None:
    if 0 in shape:
        raise CorruptSlideError("the image has no pixels (zero size)", slide=slide, remedy="export it again")
    if np.dtype(dtype) != np.uint8:
        raise UnsupportedSlideError(
            f"pixels are {np.dtype(dtype)}, not 8-bit", slide=slide, remedy="convert to uint8 RGB first"
        )
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)):
        raise UnsupportedSlideError(
            f"an array of shape {shape} is no image", slide=slide, remedy="pass (H, W), (H, W, 3) or (H, W, 4) uint8"
        )


def _flat_vendor(image: Any) -> str:
    return str(image.get("vips-loader")).partition("load")[0] if image.get_typeof("vips-loader") else "image"


def _clip(tile: Size, width: int, height: int) -> Size:
    return Size(min(tile.width, width), min(tile.height, height))
