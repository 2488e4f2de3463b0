"""HDF5 files of coordinates and features: written completely or not at all, read with their attributes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.errors import BagFormatError, ConfigError, require
from slideio_pipe.export.layouts.item import Item
from slideio_pipe.export.layouts.places import Places
from slideio_pipe.files import not_there, replacing
from slideio_pipe.geometry import whole_where_nearly
from slideio_pipe.slides.slide import Slide, open_slide
from slideio_pipe.slides.view import MAX_UPSAMPLING, SlideView
from slideio_pipe.tiles.bag import Label
from slideio_pipe.tiles.tile_bag import TileBag

GRID = "grid_downsample"  # for rounded corners: level-0 px per px of the view, x and y
_SAME_END_PX = 0.25
Arrays = Mapping[str, tuple[NDArray[Any], Mapping[str, Any]]]  # name: (values, attributes)


def write_hdf5(path: Path, arrays: Arrays, attributes: Mapping[str, Any] | None = None) -> None:
    """Write arrays that can be extended along the first axis, each with its attributes, and the file's attributes."""
    h5py = require("h5py", "hdf5")
    with replacing(path) as partial, h5py.File(partial, "w") as file:
        for name, (values, own) in arrays.items():
            # Explicit chunks: h5py cannot guess them for an array without rows.
            row = max(1, values[:1].nbytes or values.dtype.itemsize)
            chunks = (max(1, min(max(1, len(values)), 2**20 // row)), *(max(1, side) for side in values.shape[1:]))
            dataset = file.create_dataset(name, data=values, maxshape=(None, *values.shape[1:]), chunks=chunks)
            dataset.attrs.update(own)
        file.attrs.update(attributes or {})


def x_major(item: Item) -> NDArray[np.int64]:
    """Return the tile order of CLAM and TRIDENT: column by column."""
    coords = item.bag.coords
    return np.lexsort((coords[:, 1], coords[:, 0])).astype(np.int64)


def read_coords(path: str | Path) -> tuple[NDArray[Any], dict[str, Any]]:
    """Return level-0 corners (N, 2), int64, or float64 if they are not whole px, and their attributes.

    Raise BagFormatError if the file does not exist or has no coordinates.
    """
    h5py = require("h5py", "hdf5")
    file = Path(path).expanduser()
    if not file.is_file():
        raise not_there(BagFormatError, "no such file", file)
    try:
        with h5py.File(file, "r") as opened:
            coords = np.asarray(opened["coords"])
            attributes = {**opened.attrs, **opened["coords"].attrs}
    except (OSError, KeyError) as error:
        reason = f"no HDF5 file with coordinates ({error})"
        raise BagFormatError(reason, slide=str(file), remedy='it needs a dataset "coords"') from error
    if coords.ndim != 2 or coords.shape[1] != 2 or coords.dtype.kind not in "iuf":
        reason = f"coords is {coords.shape} {coords.dtype}, not (N, 2) numbers"
        raise BagFormatError(reason, slide=str(file), remedy="these are no level-0 corners (x, y)")
    if not np.isfinite(coords).all():
        raise BagFormatError("coords are not finite", slide=str(file), remedy="compute them again")
    if attributes.get("unit") == "um":
        raise BagFormatError("coords are in µm", slide=str(file), remedy="divide them by the slide's mpp")
    return whole_where_nearly(coords.astype(np.float64) if coords.dtype.kind == "f" else coords), attributes


def grid_downsample(attributes: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the attribute of ``rounded_corners``, or None: then the corners are exact."""
    try:
        x, y = (float(side) for side in np.asarray(attributes[GRID]).ravel())
    except (KeyError, ValueError, TypeError):
        return None
    return (x, y) if min(x, y) > 0 else None


def rounded_corners(places: Places) -> dict[str, Any]:
    """Return the attribute for corners that are whole px of a view, rounded to level-0 px; {} if they are exact.

    Other tools ignore it; with it, reading restores the tiles pixel for pixel.
    """
    whole = all(float(side).is_integer() for side in places.downsample)
    return {} if whole or places.between_px else {GRID: np.array(places.downsample, np.float64)}


def number(attributes: Mapping[str, Any], name: str) -> float | None:
    """Return an attribute as a number; None if it is missing or the text "None"."""
    try:
        value = float(np.asarray(attributes[name]).ravel()[0])
    except (KeyError, ValueError, TypeError, IndexError):
        return None
    return value if np.isfinite(value) and value > 0 else None


def tiles_at(
    slide: Slide | str | Path,
    coords: NDArray[Any],
    tile_size: float | None,
    downsample: float | None,
    *,
    source: Path,
    label: Label,
    grid: tuple[float, float] | None = None,
    outside: str = "white",
) -> TileBag:
    """Return the bag of pixels at given corners, ``downsample`` level-0 px per tile px.

    With ``grid`` the corners are whole px of the view of these downsamples, rounded. Raise ConfigError if the file does
    not state the tile size, or belongs to another slide.
    """
    if tile_size is None or downsample is None:
        unknown = "how large tiles are" if tile_size is None else "what resolution tiles have"
        raise ConfigError(
            f"the file does not state {unknown}",
            slide=str(source),
            remedy="pass {tile_size=…} and {tile_size_level0=…}",
        )
    opened = slide if isinstance(slide, Slide) else open_slide(slide)
    view = _view_at(opened, grid or (downsample, downsample), round(tile_size), outside)
    return TileBag.from_coords(view, coords, round(tile_size), label=label, nearest=grid is not None)


def _view_at(slide: Slide, downsample: tuple[float, float], tile_size: int, outside: str) -> SlideView:
    """Return the view with this downsample, independent of the slide's mpp.

    A nearly equal stored resolution is used only if tiles end within a quarter of a pixel of their exact end: the tile
    size in level-0 px is known exactly.
    """
    choice = slide.pyramid.choose(downsample, same=_SAME_END_PX / max(1, tile_size))
    if min(choice.shrink) < 1 / MAX_UPSAMPLING:
        reason = f"a tile of {tile_size} px would be of {tile_size * min(downsample):.3g} px at level 0"
        raise ConfigError(reason, slide=slide.name, remedy="pass {tile_size=…} and {tile_size_level0=…}")
    return SlideView(slide, choice, outside=outside)
