"""TensorDict: a folder ``<slide>`` per bag, memory-mapped by ``TensorDict.load_memmap``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from slideio_pipe.errors import require
from slideio_pipe.export.layouts.item import Item, Layout
from slideio_pipe.files import replacing_folder


class MemoryMapped(Layout):
    """Pixels ``tiles`` (N, 3, H, W) uint8, ``coords``, ``grid_index``, ``tissue``, the ``label`` and the ``patient``.

    With ``features`` if given.
    """

    packages = ("tensordict",)
    leaves_out_empty = True  # an empty file cannot be memory-mapped

    def outputs(self, item: Item, folder: Path) -> list[Path]:
        """Return the folder."""
        return [folder / item.stem]

    def write(self, item: Item, folder: Path) -> None:
        import torch

        tensordict = require("tensordict", "memmap")
        count, height, width, _ = item.bag.shape
        small = {
            name: torch.from_numpy(np.array(getattr(item.bag, name))) for name in ("coords", "grid_index", "tissue")
        }
        if item.features is not None:
            small["features"] = torch.from_numpy(np.array(item.features))
        (path,) = self.outputs(item, folder)
        with replacing_folder(path) as partial:
            mapped = tensordict.TensorDict(small, batch_size=[count])
            if item.label is not None:
                mapped.set_non_tensor("label", item.label)
            if item.patient is not None:
                mapped.set_non_tensor("patient", item.patient)
            mapped = mapped.memmap(partial)
            pixels = mapped.make_memmap("tiles", shape=(count, 3, height, width), dtype=torch.uint8)
            for start, tiles in item.chunks():
                pixels[start : start + len(tiles)] = torch.from_numpy(tiles).permute(0, 3, 1, 2)
