"""HDF5 files of coordinates and features: written whole, read with their attributes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.bag import Label, TileBag
from slideio_pipe.errors import BagFormatError, ConfigError
from slideio_pipe.foreign.item import Item, needed, replacing
from slideio_pipe.slide import Slide, open_slide

EXTRA = "hdf5"
Arrays = Mapping[str, tuple[NDArray[Any], Mapping[str, Any]]]  # name: (values, attributes)


def write_hdf5(path: Path, arrays: Arrays, attributes: Mapping[str, Any] | None = None) -> None:
    """Write arrays that may be appended to along the first axis, each with its attributes, and those of the file."""
    h5py = needed("h5py", EXTRA)
    with replacing(path) as partial, h5py.File(partial, "w") as file:
        for name, (values, own) in arrays.items():
            # Chunks by hand: h5py guesses none for an array without rows.
            row = max(1, values[:1].nbytes or values.dtype.itemsize)
            chunks = (max(1, min(max(1, len(values)), 2**20 // row)), *(max(1, side) for side in values.shape[1:]))
            dataset = file.create_dataset(name, data=values, maxshape=(None, *values.shape[1:]), chunks=chunks)
            dataset.attrs.update(own)
        file.attrs.update(attributes or {})


def x_major(item: Item) -> NDArray[np.int64]:
    """Return the order of tiles that CLAM and TRIDENT have: column by column."""
    coords = item.bag.coords
    return np.lexsort((coords[:, 1], coords[:, 0])).astype(np.int64)


def read_coords(path: str | Path) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """Return level-0 corners (N, 2) and the attributes that stand beside them.

    Raises
    ------
    BagFormatError
        There is no such file, or none with coordinates.
    """
    h5py = needed("h5py", EXTRA)
    file = Path(path).expanduser()
    if not file.is_file():
        raise BagFormatError("no such file", slide=str(file), remedy="check the path")
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
    return coords.round().astype(np.int64), attributes


def number(attributes: Mapping[str, Any], name: str) -> float | None:
    """Return an attribute as a number; None where it is missing, or the text "None"."""
    try:
        value = float(np.asarray(attributes[name]).ravel()[0])
    except (KeyError, ValueError, TypeError, IndexError):
        return None
    return value if np.isfinite(value) and value > 0 else None


def tiles_at(
    slide: Slide | str | Path,
    coords: NDArray[np.int64],
    tile_size: float | None,
    downsample: float | None,
    *,
    source: Path,
    label: Label,
) -> TileBag:
    """Return the bag of pixels at given corners, ``downsample`` level-0 px per tile px.

    Raises
    ------
    ConfigError
        The file does not say how large its tiles are, or it is of another slide.
    """
    if tile_size is None or downsample is None:
        unknown = "how large tiles are" if tile_size is None else "what resolution tiles have"
        raise ConfigError(
            f"the file does not say {unknown}", slide=str(source), remedy="pass tile_size=… and tile_size_level0=…"
        )
    opened = slide if isinstance(slide, Slide) else open_slide(slide)
    if abs(downsample - 1) < 1e-6:
        view = opened.view()
    else:
        own = opened.require_mpp()
        view = opened.view(mpp=(own.x * downsample, own.y * downsample))
    return TileBag.from_coords(view, coords, round(tile_size), label=label)
