"""STAMP: ``<extractor>/<slide>.h5`` with features and corners in µm; ``slide.csv`` and ``clini.csv``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from slideio_pipe.errors import ConfigError, MissingResolutionError, SkippedWarning, warn_caller
from slideio_pipe.export.layouts.hdf5 import write_hdf5
from slideio_pipe.export.layouts.item import BagRow, Item, Layout
from slideio_pipe.export.layouts.label_table import write_labels, write_rows
from slideio_pipe.export.layouts.places import Places
from slideio_pipe.tiles.bag import Label
from slideio_pipe.version import __version__

# STAMP refuses files of a version newer than itself.
STAMP_VERSION = "2.1.0"


class Stamp(Layout):
    """Features in float16, in the bag's order; STAMP has no files without features."""

    packages = ("h5py",)

    def outputs(self, item: Item, folder: Path) -> list[Path]:
        """Return the file of features."""
        if item.features is None:
            remedy = "pass {features=…}, or convert to another layout"
            raise ConfigError("STAMP's layout holds features, and none are given", slide=item.bag.name, remedy=remedy)
        if Places.of(item.bag).slide_mpp is None:
            reason = "STAMP's coordinates are µm, and the slide's mpp is not known"
            raise MissingResolutionError(reason, slide=item.bag.name, remedy="export it with {slide_mpp=0.25}")
        if np.abs(item.features[np.isfinite(item.features)]).max(initial=0) > np.finfo(np.float16).max:
            raise ConfigError(
                "features are beyond float16, which STAMP keeps", slide=item.bag.name, remedy="scale them"
            )
        return [folder / item.encoder / f"{item.stem}.h5"]

    def write(self, item: Item, folder: Path) -> None:
        (path,) = self.outputs(item, folder)
        places = Places.of(item.bag)
        assert places.slide_mpp is not None
        assert item.features is not None
        coords = (item.bag.coords * np.array(places.slide_mpp)).astype(np.float32)
        write_hdf5(
            path,
            {"coords": (coords, {}), "feats": (item.features.astype(np.float16), {})},
            {
                "stamp_version": STAMP_VERSION,
                "extractor": item.encoder,
                "unit": "um",
                "tile_size_um": places.tile_size * places.downsample[0] * places.slide_mpp.x,
                "tile_size_px": places.tile_size,
                "code_hash": f"slideio-pipe-{__version__}",
                "feat_type": "tile",
            }
            | item.patient_attributes,
        )

    def finish(self, bags: Sequence[BagRow], folder: Path) -> list[Path]:
        """Write the tables for STAMP: files per patient, and labels per patient.

        Without a patient the slide's name is used. A patient whose slides have different labels has no label.
        """
        slides = [{"PATIENT": bag.case, "FILENAME": f"{bag.stem}.h5"} for bag in bags]
        labels: dict[str, set[Label]] = defaultdict(set)
        for bag in bags:
            labels[bag.case] |= set() if bag.label is None else {bag.label}
        unclear = sorted(case for case, found in labels.items() if len(found) > 1)
        if unclear:
            what = f"{len(unclear)} patients are left out of {folder / 'clini.csv'}: their slides have different labels"
            warn_caller(SkippedWarning(f"{what} ({', '.join(unclear[:5])})"))
        rows = [
            {"PATIENT": case, "label": next(iter(found)) if len(found) == 1 else None} for case, found in labels.items()
        ]
        return [*write_rows(folder / "slide.csv", slides, "FILENAME"), *write_labels(folder / "clini.csv", rows)]
