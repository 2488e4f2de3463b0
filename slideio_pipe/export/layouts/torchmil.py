"""torchmil: ``features``, ``coords``, ``labels`` and ``inst_labels``, each with one ``<slide>.npy`` per bag."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from slideio_pipe.errors import ConfigError
from slideio_pipe.export.layouts.item import BagRow, Item, Layout
from slideio_pipe.export.layouts.label_table import write_rows
from slideio_pipe.files import replacing


class TorchMil(Layout):
    """Pixels (N, 3, H, W) uint8, or features (N, D) float32 if given.

    Coordinates are column and row times the tile size, not level-0 pixels: torchmil connects tiles within a distance,
    and 20× tiles of a 40× slide, or tiles with a stride, would have no neighbours. Pass ``dist_thr=1.5 * tile_size``.
    """

    version = 2  # 1: labels had the shape (1,), which torchmil's trainer refuses

    def writes_pixels(self, item: Item) -> bool:
        """Whether the files of a bag have its tiles."""
        return item.features is None

    def outputs(self, item: Item, folder: Path) -> list[Path]:
        """Return the files: features and coordinates, and labels of the bag and its tiles if known."""
        label = item.label
        if isinstance(label, str):
            reason = f"the label is the text {label!r}, and torchmil's labels are numbers"
            raise ConfigError(reason, slide=item.bag.name, remedy="export the bag with a number for its label")
        kinds = ["features", "coords", *([] if label is None else ["labels"])]
        kinds += [] if item.instance_labels is None else ["inst_labels"]
        return [folder / kind / f"{item.stem}.npy" for kind in kinds]

    def write(self, item: Item, folder: Path) -> None:
        features, coords, *known = self.outputs(item, folder)
        with replacing(features) as partial:
            self._features(item, partial)
        steps = item.bag.grid_index.astype(np.int64) * item.bag.shape[-3]
        # A label is a scalar, not a row of one: torchmil's losses and metrics need batches of (B,) labels.
        values_of = {"labels": np.array(item.label), "inst_labels": item.instance_labels, "coords": steps}
        for path in (coords, *known):
            values = np.asarray(values_of[path.parent.name])
            with replacing(path) as partial, partial.open("wb") as file:
                np.save(file, values)

    def _features(self, item: Item, path: Path) -> None:
        if item.features is not None:
            with path.open("wb") as file:
                np.save(file, np.ascontiguousarray(item.features, np.float32))
            return
        count, height, width, _ = item.bag.shape
        shape = (count, 3, height, width)
        if not count:
            with path.open("wb") as file:
                np.save(file, np.empty(shape, np.uint8))
            return
        pixels = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
        for start, tiles in item.chunks():
            pixels[start : start + len(tiles)] = tiles.transpose(0, 3, 1, 2)
        pixels.flush()

    def finish(self, bags: Sequence[BagRow], folder: Path) -> list[Path]:
        """Write ``bags.csv`` with the patients of bags, if known: torchmil's data sets use lists of names."""
        if not any(bag.patient for bag in bags):
            return []
        rows = [
            {"bag_name": bag.stem, "patient": bag.case, "label": "" if bag.label is None else bag.label} for bag in bags
        ]
        return write_rows(folder / "bags.csv", rows, "bag_name")
