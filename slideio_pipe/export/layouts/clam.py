"""CLAM: ``patches/<slide>.h5`` with coordinates, ``h5_files`` and ``pt_files`` with features, and tables.

``labels.csv`` has the patient as ``case_id``, by which CLAM splits; ``process_list_autogen.csv`` is the ``--csv_path``
of its ``extract_features_fp.py``.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from slideio_pipe.errors import ConfigError
from slideio_pipe.export.layouts.clam_pixels import PixelFile
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
from slideio_pipe.export.layouts.label_table import write_labels, write_rows
from slideio_pipe.export.layouts.places import Places
from slideio_pipe.files import replacing
from slideio_pipe.slides.slide import Slide, open_slide
from slideio_pipe.tiles.bag import Label
from slideio_pipe.tiles.tile_bag import TileBag


class Clam(Layout):
    """Coordinates at the level that tiles are read from, x-major; a slide without tissue has no file.

    Tiles of a stored level are ``patch_size`` px of ``patch_level``. Resampled ones, such as 20× tiles of a slide with
    40× and 10× levels, are squares of level 0 that are larger by ``custom_downsample``: pass the tile size as
    ``--target_patch_size`` to CLAM's feature extraction.
    """

    packages = ("h5py",)
    leaves_out_empty = True

    def outputs(self, item: Item, folder: Path) -> list[Path]:
        """Return the file of coordinates and, with features, the files of features."""
        features = [folder / "h5_files" / f"{item.stem}.h5", folder / "pt_files" / f"{item.stem}.pt"]
        return [folder / "patches" / f"{item.stem}.h5", *(features if item.features is not None else [])]

    def write(self, item: Item, folder: Path) -> None:
        order = x_major(item)
        coords = item.bag.coords[order]
        path, *of_features = self.outputs(item, folder)
        if item.features is not None:
            import torch

            features = np.ascontiguousarray(item.features[order], np.float32)
            write_hdf5(of_features[0], {"features": (features, {}), "coords": (coords.astype(np.int32), {})})
            saved = io.BytesIO()
            torch.save(torch.from_numpy(features), saved)
            with replacing(of_features[1]) as partial:
                partial.write_bytes(saved.getvalue())
        write_hdf5(path, {"coords": (coords, self._attributes(item, path.parent))})

    def finish(self, bags: Sequence[BagRow], folder: Path) -> list[Path]:
        """Write the table of labels, and the list of slides for CLAM's feature extraction.

        CLAM fills in the list's missing columns, which are the settings of its own tissue detection.
        """
        rows = [{"case_id": bag.case, "slide_id": bag.stem, "label": bag.label} for bag in bags]
        slides = [{"slide_id": bag.name, "process": 0, "status": "processed"} for bag in bags]
        return [
            *write_rows(folder / "process_list_autogen.csv", slides, "slide_id"),
            *write_labels(folder / "labels.csv", rows),
        ]

    def _attributes(self, item: Item, folder: Path) -> dict[str, Any]:
        places = Places.of(item.bag)
        level, down, side = places.level, places.downsample, places.tile_size
        if places.resampled:  # no level contains these pixels
            level, down, side = 0, (1.0, 1.0), places.tile_size_level0
        size = np.array([round(length / d) for length, d in zip(places.slide_size, down, strict=True)], np.int64)
        attributes = {
            "patch_size": side,
            "patch_level": level,
            "downsample": np.array(down, np.float64),
            "downsampled_level_dim": size,
            "level_dim": size,
            "name": item.stem,
            "save_path": str(folder),
        } | item.patient_attributes
        if places.resampled:
            ratio = places.downsample[0]
            attributes["custom_downsample"] = int(ratio) if ratio.is_integer() else ratio
        return attributes | rounded_corners(places)


@overload
def from_clam(
    coords_file: str | Path,
    slide: Slide | str | Path,
    *,
    tile_size: int | None = None,
    tile_size_level0: int | None = None,
    label: Label = None,
    outside: str = "white",
) -> TileBag: ...
@overload
def from_clam(coords_file: str | Path, slide: None = None, *, label: Label = None) -> PixelFile: ...
def from_clam(
    coords_file: str | Path,
    slide: Slide | str | Path | None = None,
    *,
    tile_size: int | None = None,
    tile_size_level0: int | None = None,
    label: Label = None,
    outside: str = "white",
) -> TileBag | PixelFile:
    """Return CLAM's coordinates as a bag of pixels, in the order of the file.

    Pixels are sampled exactly at the corners, also between pixels of the resolution that is read.

    Parameters
    ----------
    coords_file : str or Path
        ``patches/<slide>.h5``, or any HDF5 file with level-0 corners (x, y) in ``coords``.
    slide : Slide, str or Path, optional
        The slide of the coordinates. Without it the file must contain the pixels (``imgs``), as files of older versions
        of CLAM do.
    tile_size : int, optional
        Side of a tile as read, px; by default ``patch_size``, divided by ``custom_downsample``.
    tile_size_level0 : int, optional
        Side of a tile at level 0, px; by default from the file.
    label : int, float or str, optional
        The slide's label.
    outside : {"white", "black"}
        Colour beyond the slide's edge; CLAM uses black.

    Raises
    ------
    BagFormatError
        It is not such a file.
    ConfigError
        The file does not state the tile size, or belongs to another slide.

    Examples
    --------
    >>> import tempfile
    >>> from slideio_pipe import TileGrid, convert, open_slide
    >>> slide = open_slide(np.zeros((300, 500, 3), np.uint8), slide_mpp=0.5)
    >>> bag = TileBag(slide.view(), TileGrid(slide.view(), tile_size=100))
    >>> folder = tempfile.mkdtemp()
    >>> done = convert(bag, "clam", folder)
    >>> from_clam(done.paths[0], slide)
    TileBag(array: 15 tiles of 100×100 px at 0.5 µm from level 0)
    """
    if slide is None:
        return PixelFile(Path(coords_file).expanduser(), label)
    coords, attributes = read_coords(coords_file)
    opened = slide if isinstance(slide, Slide) else open_slide(slide)
    patch, level = number(attributes, "patch_size"), int(np.ravel(attributes.get("patch_level", 0))[0])
    if not 0 <= level < len(opened.pyramid.levels):
        reason = f"the coordinates are of level {level}, and the slide has {len(opened.pyramid.levels)}"
        raise ConfigError(reason, slide=opened.name, remedy="were they made of another slide?")
    across, ratio = opened.pyramid.downsamples[level][0], number(attributes, "custom_downsample") or 1.0
    side = tile_size if tile_size is not None or patch is None else round(patch / ratio)
    if tile_size_level0 is not None:
        down = None if side is None else tile_size_level0 / side
    elif side is None or patch is None:
        down = None
    else:  # patch_size is the tile's side times the ratio, rounded
        down = across * (ratio if round(side * ratio) == round(patch) else patch / side)
    given = tile_size is not None or tile_size_level0 is not None
    grid = None if given else grid_downsample(attributes)
    return tiles_at(opened, coords, side, down, source=Path(coords_file), label=label, grid=grid, outside=outside)
