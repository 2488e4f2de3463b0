"""TRIDENT: ``<mag>x_<ps>px_<ov>px_overlap/patches/<slide>_patches.h5``, and features beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slideio_pipe.errors import MissingResolutionError
from slideio_pipe.export.layouts.hdf5 import (
    grid_downsample,
    number,
    read_coords,
    rounded_corners,
    tiles_at,
    write_hdf5,
    x_major,
)
from slideio_pipe.export.layouts.item import BagRow, Item, Layout
from slideio_pipe.export.layouts.label_table import write_labels
from slideio_pipe.export.layouts.places import Places
from slideio_pipe.geometry import MPP_TIMES_MAGNIFICATION
from slideio_pipe.slides.slide import Slide
from slideio_pipe.tiles.bag import Label
from slideio_pipe.tiles.tile_bag import TileBag

# Powers of objectives: a slide's mpp is named after the nearest one, as 0.2528 µm is 40×.
OBJECTIVES = (80, 60, 40, 20, 10, 5, 2.5, 1.25)
# A magnification within this of a whole one is rounded to it: 20× of a scan whose level is 2.0005 times smaller.
_WHOLE_WITHIN = 0.02
# A magnification within this of an objective's is named after it: 0.5 µm and 0.46 µm are 20×.
_NAMED_WITHIN = 0.1


class Trident(Layout):
    """Coordinates x-major; a slide without tissue has a file of no rows.

    TRIDENT reads ``patch_size`` × level-0 magnification / target magnification pixels of level 0 for a tile. So the
    target is the slide's nominal magnification divided by the exact downsample of the tiles: 20 for the exact half of a
    40× scan, 18.2 for 0.5 µm of a scan of 0.228 µm. The folder is named after the tiles' resolution, as TRIDENT names
    that of a run: 20 for both, so that a cohort of several scanners has one folder.
    """

    packages = ("h5py",)

    def outputs(self, item: Item, folder: Path) -> list[Path]:
        """Return the file of coordinates and, with features, the file of features."""
        places = Places.of(item.bag)
        job = folder / f"{_nominal(places, item.bag.name):g}x_{places.tile_size}px_{places.overlap}px_overlap"
        features = [job / f"features_{item.encoder}" / f"{item.stem}.h5"]
        return [job / "patches" / f"{item.stem}_patches.h5", *(features if item.features is not None else [])]

    def write(self, item: Item, folder: Path) -> None:
        order = x_major(item)
        path, *of_features = self.outputs(item, folder)
        coords = np.ascontiguousarray(item.bag.coords[order], np.int64)
        attributes = self._attributes(item, path.parent.parent)
        if item.features is not None:
            features = np.ascontiguousarray(item.features[order], np.float32)
            feature_attributes = {"name": item.stem, "savetodir": str(of_features[0].parent), "encoder": item.encoder}
            write_hdf5(of_features[0], {"features": (features, feature_attributes), "coords": (coords, attributes)})
        write_hdf5(path, {"coords": (coords, attributes)})

    def finish(self, bags: Sequence[BagRow], folder: Path) -> list[Path]:
        """Write the table of labels, which readers of TRIDENT's folders use with them."""
        rows: list[dict[str, Any]] = [{"wsi": bag.name, "label": bag.label} for bag in bags]
        if any(bag.patient for bag in bags):
            rows = [row | {"patient": bag.case} for row, bag in zip(rows, bags, strict=True)]
        return write_labels(folder / "labels.csv", rows)

    def _attributes(self, item: Item, folder: Path) -> dict[str, Any]:
        places = Places.of(item.bag)
        own, target = magnifications(places, item.bag.name)
        return {
            "patch_size": places.tile_size,
            "patch_size_level0": places.tile_size_level0,
            "level0_magnification": own,
            "target_magnification": target,
            "overlap": places.overlap,
            "name": item.stem,
            "savetodir": str(folder),
            "level0_width": places.slide_size.width,
            "level0_height": places.slide_size.height,
            **rounded_corners(places),
        } | item.patient_attributes


def magnifications(places: Places, name: str) -> tuple[float, float]:
    """Return the magnification of level 0 and of tiles, rounded if nearly whole.

    Raise MissingResolutionError if the slide's mpp is unknown.
    """
    if places.slide_mpp is None:
        reason = "TRIDENT's layout stores magnifications, and the slide's mpp is not known"
        raise MissingResolutionError(reason, slide=name, remedy="export it with {slide_mpp=0.25}")
    really = MPP_TIMES_MAGNIFICATION / places.slide_mpp.mean
    own = min(OBJECTIVES, key=lambda power: abs(np.log(power / really)))
    target = own / places.downsample[0]
    objective = min(OBJECTIVES, key=lambda power: abs(power - target))
    return own, objective if abs(target / objective - 1) <= _WHOLE_WITHIN else target


def _nominal(places: Places, name: str) -> float:
    """Return the magnification for the folder's name: the nearest to the tiles' µm per px.

    Tiles of one resolution may differ by 2 % of it between scans.
    """
    _, target = magnifications(places, name)
    assert places.slide_mpp is not None
    really = MPP_TIMES_MAGNIFICATION / (places.slide_mpp.mean * places.downsample[0])
    objective = min(OBJECTIVES, key=lambda power: abs(np.log(power / really)))
    if abs(target / objective - 1) <= _WHOLE_WITHIN or abs(really / objective - 1) <= _NAMED_WITHIN:
        return objective
    five = 5 * round(really / 5)
    return five if five and abs(really / five - 1) <= _WHOLE_WITHIN * 1.05 else round(really) or really


def from_trident(
    coords_file: str | Path,
    slide: Slide | str | Path,
    *,
    tile_size: int | None = None,
    tile_size_level0: int | None = None,
    label: Label = None,
    outside: str = "white",
) -> TileBag:
    """Return TRIDENT's coordinates as a bag of pixels, in the order of the file; otherwise like ``from_clam``.

    Tiles are those that TRIDENT reads: squares of ``patch_size`` × level-0 magnification / target magnification px of
    level 0, rounded. (``patch_size_level0`` in its files is the same, truncated to a whole number.)

    Parameters
    ----------
    coords_file : str or Path
        ``patches/<slide>_patches.h5``, or a file of features with the same attributes.
    slide, tile_size, tile_size_level0, label, outside
        As for ``from_clam``; the slide is required.

    Examples
    --------
    >>> import tempfile
    >>> from slideio_pipe import TileGrid, convert, open_slide
    >>> slide = open_slide(np.zeros((300, 500, 3), np.uint8), slide_mpp=0.5)
    >>> done = convert(TileBag(slide.view(), TileGrid(slide.view(), tile_size=100)), "trident", tempfile.mkdtemp())
    >>> len(from_trident(done.paths[0], slide))
    15
    """
    coords, attributes = read_coords(coords_file)
    grid = grid_downsample(attributes) if tile_size is None and tile_size_level0 is None else None
    side = tile_size or number(attributes, "patch_size")
    reach = tile_size_level0 or level0_side(attributes)
    down = None if side is None or reach is None else reach / side
    return tiles_at(slide, coords, side, down, source=Path(coords_file), label=label, grid=grid, outside=outside)


def level0_side(attributes: Mapping[str, Any]) -> float | None:
    """Return the side of a tile in level-0 px, as TRIDENT reads it; None if the attributes do not state it.

    >>> level0_side({"patch_size": 256, "level0_magnification": 20, "target_magnification": 13})
    394.0
    """
    side, reach = number(attributes, "patch_size"), number(attributes, "patch_size_level0")
    own, target = number(attributes, "level0_magnification"), number(attributes, "target_magnification")
    if side is None or own is None or target is None:
        return reach
    read = float(round(side * own / target))
    # Another number than its rounding or truncation was not computed from these magnifications.
    return read if reach is None or abs(reach - read) <= 1 else reach
