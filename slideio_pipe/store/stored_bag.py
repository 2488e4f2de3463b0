"""A bag opened from its store: array-like; only coordinates are in memory, tiles are read through the shard index."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slideio_pipe.errors import ConfigError
from slideio_pipe.files import Closable
from slideio_pipe.geometry import Affine, Mpp, round_half_up
from slideio_pipe.slides.backends.base import OnTiming
from slideio_pipe.store.feature_arrays import encoder_names, stored_features
from slideio_pipe.store.metadata import read_layout
from slideio_pipe.store.shards import ShardReader
from slideio_pipe.tiles.bag import ArrayLikeBag, resolutions_text, scale_count
from slideio_pipe.tiles.reader import empty_tiles

# Attributes about the file, not about the bag.
STORAGE_KEYS = ("version", "pixels")


class StoredBag(ArrayLikeBag, Closable):
    """The tiles of one slide in a ``.bag.zarr``: ``(N, H, W, 3)`` uint8, with coordinates and label.

    Of a ``ContextBag`` that was stored, ``(N, S, H, W, 3)``, with ``mpps`` and ``nominal_mpps``.

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
        self.ndim = len(self.shape)
        context = layout.attributes.get("context") or {"mpp": (), "mpps": ()}
        self.nominal_mpps = tuple(float(asked) for asked in context["mpp"])
        self.mpps = tuple(Mpp.of(exact) for exact in context["mpps"])
        self.coords = layout.columns["coords"]
        self.grid_index = layout.columns["grid_index"]
        self.tissue = layout.columns["tissue"]
        self.quality = layout.quality
        self._cell_counts = layout.cell_counts

    @property
    def cell_counts(self) -> dict[str, NDArray[np.int64]] | None:
        """Points of each class in each tile, (N,) per class: as stored, else of ``annotations``; None without any."""
        return super().cell_counts if self._cell_counts is None else dict(self._cell_counts)

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
        out : (n, H, W, 3) uint8, or (n, S, H, W, 3), optional
            C-contiguous slots; allocated if not given.
        threads : int
            Number of threads.

        Returns
        -------
        (n, H, W, 3) uint8, or (n, S, H, W, 3)
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
            self._reader.read(self._chunks(numbers), out.reshape(-1, *self.shape[-3:]), threads)
            if self.on_stage:
                self.on_stage("decode", begun, time.perf_counter())
        return out

    def _chunks(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the chunks of tiles: one of each, or its magnifications one after another."""
        scales = scale_count(self)
        return numbers if scales == 1 else (numbers[:, None] * scales + np.arange(scales)).ravel()

    def at(self, scale: int) -> StoredBag:
        """Return the tiles of one magnification, (N, H, W, 3), as a bag; 0 is the finest.

        Raises
        ------
        ConfigError
            There is no such one.
        """
        return StoredScale(self.path, scale)

    def decoded(self, index: int, out: NDArray[np.uint8], reduce: int = 1) -> None:
        """Fill ``out`` with tile ``index``, ``reduce`` times smaller: (H // reduce, W // reduce, 3) uint8.

        ``reduce`` is 1, 2, 4 or 8, and divides H and W. Raise BagFormatError if the store is damaged.
        """
        self._reader.decoded(int(self._chunks(np.array([index]))[0]), out, reduce)

    @property
    def holds_jpeg(self) -> bool:
        """Whether each tile is stored as a whole JPEG file."""
        return bool(self._attributes["pixels"].get("codec") == "jpeg")

    def encoded(self, indices: ArrayLike) -> Iterator[bytes]:
        """Yield the stored bytes of tiles, one by one; they are not decoded, so damage inside is not detected.

        Of several magnifications, those of each tile one after another.

        Raises
        ------
        BagFormatError
            The store is damaged, or bytes are not a JPEG of a tile's size.
        """
        for number in self._chunks(np.asarray(indices, dtype=np.int64)).tolist():
            yield self._reader.encoded(number, (self.shape[-3], self.shape[-2]) if self.holds_jpeg else None)

    def close(self) -> None:
        """Close the file descriptors; a later read opens new ones."""
        self._reader.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,), {"annotations": self.annotations} if self.annotated else {}

    def __repr__(self) -> str:
        count, *_, height, width, _ = self.shape
        at = "" if self.view_mpp is None else f" at {self.view_mpp.mean:.4g} µm"
        at = f" at {resolutions_text(self.mpps)}" if self.mpps else at
        label = "" if self.label is None else f", label {self.label}"
        return f"StoredBag({self.name}: {count:,} tiles of {width}×{height} px{at}, {self._codec}{label})"


class StoredScale(StoredBag):
    """The tiles of one magnification of a stored ``ContextBag``: (N, H, W, 3) uint8; ``coords`` are their own corners.

    Parameters
    ----------
    path : str or Path
        A folder written by ``save_bag``.
    scale : int
        Number of the magnification; 0 is the finest.
    """

    def __init__(self, path: str | Path, scale: int) -> None:
        super().__init__(path)
        self._scale, self._scales = int(scale), scale_count(self)
        if len(self.shape) != 5 or not 0 <= self._scale < self._scales:
            there = f"it has {self._scales}" if len(self.shape) == 5 else "it has one, the bag itself"
            raise ConfigError(f"no magnification {scale}", slide=self.name, remedy=there)
        height, width = self.shape[2:4]
        self.shape, self.ndim = (self.shape[0], height, width, 3), 4
        self.view_mpp = self.mpps[self._scale]
        self.mpps, self.nominal_mpps = (), ()
        self.coords = self._corners()

    def _corners(self) -> NDArray[np.int64]:
        """Return the corners of the tiles, level-0 px: as ``TileGrid.concentric`` places them."""
        if self._scale == 0:
            return self.coords
        context, middle = self._attributes["context"], self._attributes["grid"]["tile_size"] / 2
        first = Affine.from_tuple(self._attributes["view"]["affine"])
        own = Affine.from_tuple(context["views"][self._scale]["affine"])
        centres = self.coords + first.apply((middle, middle)) - first.apply((0, 0))
        exact = own.inverse().apply(centres) - middle
        return round_half_up(own.apply(round_half_up(exact) if context["nearest"] else exact))

    def _chunks(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        return numbers * self._scales + self._scale

    def provenance(self) -> dict[str, Any]:
        """Return the provenance of the tiles, of this magnification."""
        made = super().provenance()
        context = made.pop("context")
        view = {**made["view"], **context["views"][self._scale], "mpp": context["mpps"][self._scale]}
        # Tiles of further ones overlap: their places are not those of the grid.
        grid = made["grid"] if self._scale == 0 else made["grid"] | {"shape": None}
        return made | {"view": view, "grid": grid, "scale": {"number": self._scale, "mpp": context["mpp"][self._scale]}}

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredScale, (self.path, self._scale)
