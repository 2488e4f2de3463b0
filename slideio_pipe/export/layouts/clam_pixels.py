"""CLAM's bags of pixels in the format of its older versions: ``patches/<slide>.h5`` with ``imgs`` and ``coords``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slideio_pipe.errors import BagFormatError, ConfigError, require
from slideio_pipe.export.layouts.hdf5 import read_coords
from slideio_pipe.export.layouts.item import BagRow, Item, Layout
from slideio_pipe.export.layouts.label_table import write_labels
from slideio_pipe.export.layouts.places import Places
from slideio_pipe.files import file_fingerprint, package_versions, replacing
from slideio_pipe.geometry import Mpp, Size
from slideio_pipe.slides.resolution import checked_mpp
from slideio_pipe.tiles.bag import ArrayLikeBag, Label


class ClamPixels(Layout):
    """``imgs`` (N, H, W, 3) uint8 and ``coords`` (N, 2) int32, in the bag's order; an empty bag has no file.

    The attributes are on ``imgs``. CLAM has only levels: ``downsample`` is that of the tiles, even if no level of the
    slide has it.
    """

    packages = ("h5py",)
    leaves_out_empty = True

    def writes_pixels(self, item: Item) -> bool:
        """Whether the files of a bag have its tiles."""
        del item
        return True

    def outputs(self, item: Item, folder: Path) -> list[Path]:
        """Return the file."""
        Places.of(item.bag)  # refuses bags without meaningful coordinates
        if len(item.bag) and np.abs(item.bag.coords).max() > np.iinfo(np.int32).max:
            raise ConfigError("coordinates are beyond int32, which this layout keeps", slide=item.bag.name)
        return [folder / "patches" / f"{item.stem}.h5"]

    def write(self, item: Item, folder: Path) -> None:
        """Write one bag, some tiles at a time."""
        h5py = require("h5py", "hdf5")
        (path,) = self.outputs(item, folder)
        shape = item.bag.shape
        with replacing(path) as partial, h5py.File(partial, "w") as file:
            pixels = file.create_dataset(
                "imgs", shape, np.uint8, maxshape=(None, *shape[1:]), chunks=(1, *shape[1:]), fillvalue=None
            )
            for start, tiles in item.chunks():
                pixels[start : start + len(tiles)] = tiles
            pixels.attrs.update(self._attributes(item))
            coords = item.bag.coords.astype(np.int32)
            file.create_dataset("coords", data=coords, maxshape=(None, 2), chunks=(min(1024, len(coords)), 2))

    def _attributes(self, item: Item) -> dict[str, Any]:
        places = Places.of(item.bag)
        size = [round(side / down) for side, down in zip(places.slide_size, places.downsample, strict=True)]
        return {
            "patch_level": places.level,
            "wsi_name": item.stem,
            "downsample": np.array(places.downsample, np.float64),
            "level_dim": np.array(size, np.int64),
            "downsampled_level_dim": np.array(size, np.int64),
        } | item.patient_attributes

    def finish(self, bags: Sequence[BagRow], folder: Path) -> list[Path]:
        """Write the table of labels, as with coordinates."""
        rows = [{"case_id": bag.case, "slide_id": bag.stem, "label": bag.label} for bag in bags]
        return write_labels(folder / "labels.csv", rows)


class PixelFile(ArrayLikeBag):
    """The tiles of an HDF5 file of pixels as a bag, read on access; pickled by path.

    Raise BagFormatError if it has no such pixels.

    Parameters
    ----------
    path : Path
        The file.
    label : int, float or str, optional
        The slide's label.
    slide_mpp : float, optional
        µm per level-0 px of the slide, which the file does not state.
    patient : str, optional
        Patient of the slide, which the file does not state.
    """

    def __init__(
        self, path: Path, label: Label = None, slide_mpp: float | None = None, patient: str | None = None
    ) -> None:
        if slide_mpp is not None:
            checked_mpp("slide_mpp", slide_mpp)
        self.path, self.label, self._slide_mpp, self.patient = path, label, slide_mpp, patient
        self.coords, attributes = read_coords(path)
        with require("h5py", "hdf5").File(path, "r") as file:
            pixels = file.get("imgs")
            shape: tuple[int, ...] = () if pixels is None else pixels.shape
            dtype = None if pixels is None else pixels.dtype
            attributes |= {} if pixels is None else dict(pixels.attrs)
        if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8 or len(self.coords) != shape[0]:
            reason = f"imgs is {shape} {dtype} for {len(self.coords):,} coordinates, not (N, H, W, 3) uint8"
            raise BagFormatError(reason, slide=str(path), remedy="pass a bag of pixels that CLAM wrote")
        self.shape = (int(shape[0]), int(shape[1]), int(shape[2]), 3)
        self.name = _text(attributes.get("wsi_name")) or path.stem
        down = np.ravel(attributes.get("downsample", 1.0)).astype(float)
        self._downsample = float(down[0]), float(down[-1])
        size = np.ravel(attributes.get("level_dim", (0, 0))).astype(float)
        self._size = Size(*(round(side * d) for side, d in zip(size.tolist(), self._downsample, strict=False)))
        self._level = int(np.ravel(attributes.get("patch_level", 0))[0])
        self.view_mpp = None if slide_mpp is None else Mpp(*(slide_mpp * d for d in self._downsample))
        self.grid_index = self._columns_and_rows()
        self.tissue = np.full(self.shape[0], np.nan, np.float32)

    def _columns_and_rows(self) -> NDArray[np.int32]:
        """Return the column and row of each tile in the nearest grid for its coordinates."""
        if not len(self.coords):
            return np.empty((0, 2), np.int32)
        step = np.array([self.shape[2] * self._downsample[0], self.shape[1] * self._downsample[1]])
        found: NDArray[np.int32] = np.round((self.coords - self.coords.min(axis=0)) / step).astype(np.int32)
        return found

    def read(self, indices: ArrayLike, out: NDArray[np.uint8] | None = None, *, threads: int = 1) -> NDArray[np.uint8]:
        """Return tiles ``indices``, (n, H, W, 3) uint8, in ``out`` if given; HDF5 reads in one thread."""
        del threads
        positions = np.arange(len(self))[np.asarray(indices, np.int64)]
        target = np.empty((len(positions), *self.shape[1:]), np.uint8) if out is None else out
        try:
            with require("h5py", "hdf5").File(self.path, "r") as file:
                for slot, number in zip(target, positions.tolist(), strict=True):
                    file["imgs"].read_direct(slot, np.s_[number])
        except (OSError, KeyError) as error:
            raise BagFormatError(f"tiles cannot be read ({error})", slide=str(self.path), remedy="check it") from error
        return target

    def provenance(self) -> dict[str, Any]:
        """Return the provenance stated in the file, in the form of a slide's bag."""
        sx, sy = self._downsample
        known = {"name": self.name, "dimensions": list(self._size), "fingerprint": file_fingerprint(self.path)}
        mpp = None if self._slide_mpp is None else [self._slide_mpp, self._slide_mpp]
        affine = [sx, 0.0, 0.0, 0.0, sy, 0.0]
        view = {"affine": affine, "level": self._level, "shrink": [1.0, 1.0], "draw": None}
        return {
            "slide": known | {"mpp": mpp},
            "view": view | {"mpp": None if self.view_mpp is None else list(self.view_mpp)},
            "grid": {"tile_size": self.shape[1], "stride": None},
            "tissue": None,
            "tile_draw": None,
            "label": self.label,
            "patient": self.patient,
            "source": {"format": "clam-pixels", "file": self.path.name},
            "packages": package_versions(),
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return PixelFile, (self.path, self.label, self._slide_mpp, self.patient)

    def __repr__(self) -> str:
        count, height, width, _ = self.shape
        return f"PixelFile({self.name}: {count:,} tiles of {width}×{height} px)"


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value or "")
