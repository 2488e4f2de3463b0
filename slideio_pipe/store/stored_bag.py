"""A bag opened from its store: array-like; only coordinates are in memory, tiles are read through the shard index."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slideio_pipe.errors import ConfigError
from slideio_pipe.files import Closable
from slideio_pipe.geometry import Mpp
from slideio_pipe.slides.backends.base import OnTiming
from slideio_pipe.store.feature_arrays import encoder_names, stored_features
from slideio_pipe.store.metadata import read_layout
from slideio_pipe.store.shards import ShardReader
from slideio_pipe.tiles.bag import ArrayLikeBag
from slideio_pipe.tiles.reader import empty_tiles

# Attributes about the file, not about the bag.
STORAGE_KEYS = ("version", "pixels")


class StoredBag(ArrayLikeBag, Closable):
    """The tiles of one slide in a ``.bag.zarr``: ``(N, H, W, 3)`` uint8, with coordinates and label.

    Pickled by path. Safe to read from several threads; keeps at most 16 file descriptors, from the first read until
    ``close`` or until the object is deleted.

    Parameters
    ----------
    path : str or Path
        A folder written by ``save_bag``.

    Raises
    ------
    BagFormatError
        The path is not a bag store, or is a newer or damaged one.

    Examples
    --------
    >>> import tempfile
    >>> from slideio_pipe import TileBag, TileGrid, open_slide, save_bag
    >>> view = open_slide(np.full((300, 500, 3), 90, np.uint8), slide_mpp=0.5).view()
    >>> bag = save_bag(TileBag(view, TileGrid(view, tile_size=100), label=1), f"{tempfile.mkdtemp()}/a.bag.zarr")
    >>> bag[3].shape, bag[:5].shape, bag.label
    ((100, 100, 3), (5, 100, 100, 3), 1)
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        layout = read_layout(self.path)
        self._attributes = layout.attributes
        self._codec = layout.codec.name
        self._reader = ShardReader(layout.grid, layout.codec)
        self.on_stage: OnTiming | None = None  # receives the timing of stages
        self.shape = layout.shape
        self.name = layout.attributes["slide"]["name"]
        self.label = layout.attributes["label"]
        self.patient = layout.attributes.get("patient")  # missing in stores of earlier versions
        mpp = (layout.attributes.get("view") or {}).get("mpp")
        self.view_mpp = None if mpp is None else Mpp.of(mpp)
        self.coords = layout.columns["coords"]
        self.grid_index = layout.columns["grid_index"]
        self.tissue = layout.columns["tissue"]
        self.quality = layout.quality

    @property
    def attributes(self) -> dict[str, Any]:
        """All stored attributes of the bag: provenance, version of the store, encoding of the pixels."""
        return copy.deepcopy(self._attributes)

    @property
    def encoders(self) -> tuple[str, ...]:
        """Names of the encoders whose features are stored beside the tiles."""
        return encoder_names(self.path)

    def features(self, encoder: str) -> NDArray[Any]:
        """Return the (N, D) features of the tiles by an encoder, in the tiles' order, memory-mapped.

        Raises
        ------
        BagFormatError
            There are none, or they are damaged.
        """
        return stored_features(self.path, encoder, len(self))[0]

    def stored_bytes(self) -> int:
        """Return the bytes that the bag takes on disk."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())

    def provenance(self) -> dict[str, Any]:
        """Return the provenance of the tiles, as given by the bag that was stored."""
        return {key: value for key, value in self.attributes.items() if key not in STORAGE_KEYS}

    def read(self, indices: ArrayLike, out: NDArray[np.uint8] | None = None, *, threads: int = 1) -> NDArray[np.uint8]:
        """Fill ``out[k]`` with tile ``indices[k]``, directly from the file; the GIL is released.

        Parameters
        ----------
        indices : (n,) int
            Tiles, 0 to N - 1, in any order, with or without repeats. Neighbours in storage order are read together.
        out : (n, H, W, 3) uint8, optional
            C-contiguous slots; allocated if not given.
        threads : int
            Number of threads.

        Returns
        -------
        (n, H, W, 3) uint8
            ``out``.

        Raises
        ------
        BagFormatError
            The store is damaged.
        IndexError
            There is no such tile; negative numbers are only for ``bag[-1]``.
        """
        numbers = np.asarray(indices, dtype=np.int64)
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(self):
            raise IndexError(f"tiles {numbers.min()} to {numbers.max()} of {len(self)}")
        if threads < 1:
            raise ConfigError(f"threads is {threads}", slide=self.name, remedy="pass threads >= 1")
        shape = (len(numbers), *self.shape[1:])
        if out is None:
            out = empty_tiles(shape, self.name)
        elif out.shape != shape or out.dtype != np.uint8 or not out.flags.c_contiguous or not out.flags.writeable:
            found = f"{out.shape} {out.dtype}"
            remedy = f"pass a writable C-contiguous uint8 array of shape {shape}"
            raise ConfigError(f"out is {found}, or not contiguous or not writable", slide=self.name, remedy=remedy)
        if len(numbers):
            begun = time.perf_counter() if self.on_stage else 0.0
            self._reader.read(numbers, out, threads)
            if self.on_stage:
                self.on_stage("decode", begun, time.perf_counter())
        return out

    def decoded(self, index: int, out: NDArray[np.uint8], reduce: int = 1) -> None:
        """Fill ``out`` with tile ``index``, ``reduce`` times smaller: (H // reduce, W // reduce, 3) uint8.

        ``reduce`` is 1, 2, 4 or 8, and divides H and W. Raise BagFormatError if the store is damaged.
        """
        self._reader.decoded(index, out, reduce)

    @property
    def holds_jpeg(self) -> bool:
        """Whether each tile is stored as a whole JPEG file."""
        return bool(self._attributes["pixels"].get("codec") == "jpeg")

    def encoded(self, indices: ArrayLike) -> Iterator[bytes]:
        """Yield the stored bytes of tiles, one by one; they are not decoded, so damage inside is not detected.

        Raises
        ------
        BagFormatError
            The store is damaged, or bytes are not a JPEG of a tile's size.
        """
        for number in np.asarray(indices, dtype=np.int64).tolist():
            yield self._reader.encoded(number, (self.shape[-3], self.shape[-2]) if self.holds_jpeg else None)

    def close(self) -> None:
        """Close the file descriptors; a later read opens new ones."""
        self._reader.close()

    def __reduce__(self) -> tuple[Callable[[Path], StoredBag], tuple[Path], dict[str, Any]]:
        return type(self), (self.path,), {"annotations": self.annotations} if self.annotated else {}

    def __repr__(self) -> str:
        count, height, width, _ = self.shape
        at = "" if self.view_mpp is None else f" at {self.view_mpp.mean:.4g} µm"
        label = "" if self.label is None else f", label {self.label}"
        return f"StoredBag({self.name}: {count:,} tiles of {width}×{height} px{at}, {self._codec}{label})"
