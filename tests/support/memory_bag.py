"""Bags in memory for tests of stores: no slide, distinct tiles, and one that fails or stops at a tile."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from slideio_pipe.errors import CorruptSlideError
from slideio_pipe.geometry import Mpp

SLOTS = 512  # of a shard of small tiles


class MemoryBag:
    """Tiles in an array that satisfy the bag protocol; every tile differs from every other."""

    name = "a.svs"
    view_mpp = Mpp(0.5, 0.5)

    def __init__(self, count: int = 5, height: int = 4, width: int = 6, label: object = 1) -> None:
        rng = np.random.default_rng(count)
        self.tiles = rng.integers(0, 8, (count, height, width, 3), dtype=np.uint8)
        self.tiles[:, 0, 0] = np.stack([np.arange(count) >> shift & 255 for shift in (0, 8, 16)], axis=-1)
        self.shape = self.tiles.shape
        self.coords = rng.integers(-100, 2**40, (count, 2))
        self.grid_index = rng.integers(0, 1000, (count, 2), dtype=np.int32)
        self.tissue = np.where(np.arange(count) % 3, rng.random(count), np.nan).astype(np.float32)
        self.label = label

    def __len__(self) -> int:
        return len(self.tiles)

    def read(self, indices, out=None, *, threads: int = 1):
        out = np.empty((len(indices), *self.shape[1:]), np.uint8) if out is None else out
        out[:] = self.tiles[indices]
        return out

    def provenance(self) -> dict:
        slide = {"name": self.name, "fingerprint": "0c1e", "dimensions": [4000, 3000], "mpp": [0.25, 0.25]}
        return {"slide": slide, "view": {"mpp": [0.5, 0.5]}, "grid": {"tile_size": 6}, "label": self.label}


class StoppingBag(MemoryBag):
    """Raises an error, or runs ``stop``, when a given tile is read."""

    def __init__(self, at: int, stop, **kwargs) -> None:
        super().__init__(**kwargs)
        self.at, self.stop = at, stop

    def read(self, indices, out=None, *, threads: int = 1):
        if self.at in indices:
            self.stop()
        return super().read(indices, out, threads=threads)


def corrupt() -> None:
    raise CorruptSlideError("tile 3 cannot be decoded", slide="a.svs")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
