"""TensorDict: a folder ``<slide>`` per bag, memory-mapped by ``TensorDict.load_memmap``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from slideio_pipe.errors import require
from slideio_pipe.export.layouts.item import Item, Layout, described
from slideio_pipe.files import replacing_folder
from slideio_pipe.tiles.bag import quality_of


class MemoryMapped(Layout):
    """Pixels ``tiles`` (N, 3, H, W) uint8, ``coords``, ``grid_index``, ``tissue``, the ``label`` and the ``patient``.

    With ``features`` if given, and with the numbers of the tiles' quality if they were measured. Normalised pixels are
    float16, and ``normalize.json`` has their shape, mean and deviation, so that ``np.memmap`` and ``torch.from_file``
    can open ``tiles.memmap`` as well.
    """

    packages = ("tensordict",)
    leaves_out_empty = True  # an empty file cannot be memory-mapped

    def writes_pixels(self, item: Item) -> bool:
        """Whether the files of a bag have its tiles."""
        del item
        return True

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
        quality = quality_of(item.bag)
        small |= (
            {} if quality is None else {name: torch.from_numpy(np.array(v)) for name, v in quality.measured.items()}
        )
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
            shape, normalize = (count, 3, height, width), item.normalize
            dtype = torch.uint8 if normalize is None else torch.float16
            pixels = mapped.make_memmap("tiles", shape=shape, dtype=dtype)
            for start, tiles in item.chunks():
                planes = torch.from_numpy(tiles).permute(0, 3, 1, 2)
                pixels[start : start + len(tiles)] = planes if normalize is None else normalize.convert(planes, dtype)
            if normalize is not None:
                known: dict[str, Any] = {"file": "tiles.memmap", "shape": shape, "dtype": "float16"}
                written = json.dumps(known | described(normalize))
                (partial / "normalize.json").write_text(written + "\n", encoding="utf-8")
