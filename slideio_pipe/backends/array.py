"""Arrays as slides: numpy in memory, zarr on disk (OME-Zarr multiscales included), and flat PNG or JPEG images."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyvips
import zarr
from numpy.typing import NDArray

from slideio_pipe.backends.base import Facts, StoredTiles
from slideio_pipe.backends.vips import as_rgb, to_rgb
from slideio_pipe.backends.virtual import VirtualTiff
from slideio_pipe.errors import CorruptSlideError, UnsupportedSlideError
from slideio_pipe.geometry import Mpp, Pyramid, Rect, Size

_TILE = Size(512, 512)
# NGFF 0.4 and 0.5 write unit names in full: https://ngff.openmicroscopy.org
_UNITS_UM = {"micrometer": 1.0, "nanometer": 1e-3, "millimeter": 1e3, "meter": 1e6}


class NumpyBackend:
    """A (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) uint8 array as a one-level slide; the array is shared, not copied."""

    name = "array"

    def __init__(self, array: NDArray[Any], *, slide: str = "array") -> None:
        _check_pixels(array.shape, array.dtype, slide)
        pixels = np.ascontiguousarray(array if array.ndim == 3 else array[..., None])
        height, width, bands = pixels.shape
        self._pixels = pixels  # libvips reads this memory: it must outlive the image
        image = pyvips.Image.new_from_memory(pixels, width, height, bands, "uchar")
        image = image.copy(interpretation="b-w" if bands == 1 else "srgb")
        self._image = as_rgb(image, slide=slide)
        self.facts = Facts(self.name, "numpy", Pyramid((Size(width, height),)), (_clip(_TILE, width, height),))

    def level_image(self, level: int) -> Any:
        """Return the lazy image of the only level."""
        del level
        return self._image

    def associated_image(self, name: str) -> Any:
        """Raise KeyError: an array has no label, macro or thumbnail."""
        raise KeyError(name)

    def stored_tiles(self, level: int) -> StoredTiles | None:
        """Return None: there are none of JPEG."""
        del level
        return None

    def failure(self, level: int, rect: Rect, pixels: NDArray[np.uint8]) -> BaseException | None:
        """Return None: libvips tells of every failure here, every time."""
        del level, rect, pixels
        return None


class FlatBackend(NumpyBackend):
    """A PNG, JPEG, WebP or other flat image as a one-level slide; decoded whole, when the first pixel is asked for."""

    def __init__(self, path: Path) -> None:
        try:
            # From a source: in a file name libvips takes "[…]" at the end for options.
            source = pyvips.Source.new_from_file(str(path))
            image = pyvips.Image.new_from_source(source, "", access="random", fail_on="truncated")
        except pyvips.Error as error:
            raise UnsupportedSlideError(
                "no reader knows this format",
                slide=path.name,
                remedy="slideio-pipe doctor lists what opens; is it a slide at all?",
            ) from error
        self._image = as_rgb(image, slide=path.name)
        size = Size(image.width, image.height)
        self.facts = Facts(self.name, _flat_vendor(image), Pyramid((size,)), (_clip(_TILE, *size),))


class ZarrBackend:
    """A zarr array, or an OME-Zarr multiscales group, as a slide; chunks are read as libvips asks for tiles."""

    name = "array"

    def __init__(self, path: Path) -> None:
        self._slide = path.name
        try:
            node = zarr.open(str(path), mode="r")
        except Exception as error:  # zarr raises a different class for every way a store can be damaged
            raise UnsupportedSlideError(
                f"a directory that is no zarr array or group ({type(error).__name__})",
                slide=path.name,
                remedy="pass a slide file, or the .zarr directory itself",
            ) from error
        self._arrays, axes, self._mpp = _multiscales(node, path.name)
        self._axes = axes
        self._levels: dict[int, VirtualTiff] = {}
        self._lock = threading.Lock()
        sizes = tuple(Size(a.shape[axes.index("x")], a.shape[axes.index("y")]) for a in self._arrays)
        for array, (width, height) in zip(self._arrays, sizes, strict=True):
            channels = array.shape[axes.index("c")] if "c" in axes else 1
            _check_pixels((height, width, channels), array.dtype, path.name)
        self.facts = Facts(
            backend=self.name,
            vendor="ome-zarr" if isinstance(node, zarr.Group) else "zarr",
            pyramid=Pyramid(sizes),
            tile_sizes=tuple(self._tile_size(array) for array in self._arrays),
            mpp=self._mpp,
        )

    def level_image(self, level: int) -> Any:
        """Return the lazy image of a level."""
        with self._lock:
            if level not in self._levels:
                size, tile = self.facts.pyramid.levels[level], self.facts.tile_sizes[level]
                self._levels[level] = VirtualTiff(size, tile, partial(self._read_tile, level))
            return self._levels[level].image

    def associated_image(self, name: str) -> Any:
        """Raise KeyError: an array has no label, macro or thumbnail."""
        raise KeyError(name)

    def stored_tiles(self, level: int) -> StoredTiles | None:
        """Return None: there are none of JPEG."""
        del level
        return None

    def failure(self, level: int, rect: Rect, pixels: NDArray[np.uint8]) -> BaseException | None:
        """Return why pixels of ``rect`` could not be decoded."""
        del pixels
        virtual = self._levels.get(level)
        return None if virtual is None else virtual.failure(rect)

    def _tile_size(self, array: Any) -> Size:
        sides = []
        for axis in "xy":
            chunk = int(array.chunks[self._axes.index(axis)])
            sides.append(chunk if chunk % 16 == 0 and 128 <= chunk <= 2048 else _TILE.width)
        return Size(*sides)

    def _read_tile(self, level: int, column: int, row: int) -> NDArray[np.uint8]:
        tile = self.facts.tile_sizes[level]
        window = {
            "x": slice(column * tile.width, (column + 1) * tile.width),
            "y": slice(row * tile.height, (row + 1) * tile.height),
            "c": slice(None),
        }
        try:
            pixels = np.asarray(self._arrays[level][tuple(window.get(axis, 0) for axis in self._axes)])
        except Exception as error:  # any codec or store error, told with the tile's place
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
    """Return whether a directory carries zarr metadata (v2 or v3)."""
    return path.is_dir() and any((path / name).exists() for name in ("zarr.json", ".zarray", ".zgroup"))


def _multiscales(node: Any, slide: str) -> tuple[list[Any], str, Mpp | None]:
    """Return the level arrays, their axes as a string such as "cyx", and the resolution of level 0."""
    if isinstance(node, zarr.Array):
        if node.ndim not in (2, 3):
            raise UnsupportedSlideError(
                f"a zarr array of shape {node.shape}", slide=slide, remedy="pass an array of shape (H, W, 3)"
            )
        return [node], "yxc"[: node.ndim], None
    attributes: Mapping[str, Any] = dict(node.attrs)
    scales = attributes.get("ome", attributes).get("multiscales")
    if not scales:
        raise UnsupportedSlideError(
            "a zarr group without OME-Zarr multiscales",
            slide=slide,
            remedy="pass the array inside it, or a bag store to open_bag",
        )
    axes = "".join(axis["name"] if isinstance(axis, dict) else axis for axis in scales[0].get("axes", "tczyx"))
    datasets = scales[0]["datasets"]
    arrays = [node[dataset["path"]] for dataset in datasets]
    extra = [a for a, n in zip(axes, arrays[0].shape, strict=True) if a not in "yxc" and n > 1]
    if extra:
        raise UnsupportedSlideError(
            f"the OME-Zarr has several planes along {', '.join(extra)}",
            slide=slide,
            remedy="write one plane to its own store first",
        )
    return arrays, axes, _ngff_mpp(scales[0], axes)


def _ngff_mpp(scales: Mapping[str, Any], axes: str) -> Mpp | None:
    transforms = scales["datasets"][0].get("coordinateTransformations", [])
    scale = next((t["scale"] for t in transforms if t.get("type") == "scale"), None)
    if scale is None:
        return None
    sides = []
    for axis in "xy":
        described = scales["axes"][axes.index(axis)]
        unit = _UNITS_UM.get(described.get("unit", "") if isinstance(described, dict) else "")
        if unit is None:
            return None
        sides.append(float(scale[axes.index(axis)]) * unit)
    return Mpp(*sides)


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
