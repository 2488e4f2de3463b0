"""The bag protocol, its labels, and the base class that all bags share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, overload, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from slideio_pipe.augment.operation_columns import OperationColumns
from slideio_pipe.augment.operations import Operation
from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import Mpp
from slideio_pipe.images import picture
from slideio_pipe.images.explorable import Explorable
from slideio_pipe.tiles.marks.targets import Targets
from slideio_pipe.tiles.quality.tile_quality import TileQuality

Label = int | float | str | None


class Columns(Protocol):
    """The small arrays of a store: those of a bag, or of a record of one."""

    @property
    def name(self) -> str: ...
    @property
    def coords(self) -> NDArray[np.int64]: ...
    @property
    def grid_index(self) -> NDArray[np.int32]: ...
    @property
    def tissue(self) -> NDArray[np.float32]: ...
    def __len__(self) -> int: ...


class TargetSource(Protocol):
    """Boxes and points of a slide, for its tiles: ``Annotations``."""

    @property
    def has_points(self) -> bool: ...
    def counts(self, bag: Any, indices: ArrayLike | None = None) -> dict[str, NDArray[np.int64]]: ...
    def targets(self, bag: Any, indices: ArrayLike | None = None) -> list[Targets]: ...


@runtime_checkable
class Bag(Columns, Protocol):
    """The parts of a bag that streams and stores use; such as ``TileBag``, ``StoredBag`` and ``AugmentedBag``."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def label(self) -> Label: ...
    @property
    def view_mpp(self) -> Mpp | None: ...
    def read(
        self, indices: ArrayLike, out: NDArray[np.uint8] | None = None, *, threads: int = 1
    ) -> NDArray[np.uint8]: ...
    def provenance(self) -> dict[str, Any]: ...


@runtime_checkable
class UncolouredBag(Protocol):
    """The parts that a stream uses of a bag whose colours are applied on the device: a ``DrawnBag``."""

    @property
    def host_only(self) -> tuple[str, ...]: ...
    def operations(self, index: int) -> tuple[Operation, ...]: ...
    def read_uncoloured(
        self, indices: ArrayLike, out: NDArray[np.uint8] | None = None, *, threads: int = 1
    ) -> NDArray[np.uint8]: ...


@runtime_checkable
class ColourColumnsBag(Protocol):
    """What a stream uses, if an ``UncolouredBag`` has it, in place of one record per operation and tile."""

    def colour_columns(self, indices: ArrayLike) -> OperationColumns: ...


@runtime_checkable
class PlannedBag(Protocol):
    """A bag whose tiles are read faster if those that will be read are known before, and in the order of the file."""

    def storage_order(self, indices: ArrayLike) -> NDArray[np.int64]: ...
    def plan_ahead(self, indices: ArrayLike, *, colours: bool = True) -> None: ...


class ArrayLikeBag(Explorable, ABC):
    """Numpy-style reading on top of ``read``: ``bag[3]``, ``bag[10:20]``, ``bag[[5, 1]]``, ``bag[mask]``, iteration."""

    dtype = np.dtype(np.uint8)
    ndim = 4
    name: str  # the slide's
    shape: tuple[int, ...]  # (N, H, W, 3); (N, S, H, W, 3) with S magnifications
    coords: NDArray[np.int64]  # (N, 2) top-left corners (x, y), level-0 px
    grid_index: NDArray[np.int32]  # (N, 2) column and row
    tissue: NDArray[np.float32]  # (N,) tissue fraction, NaN without a mask
    label: Label
    patient: str | None = None  # patient of the slide, if known
    quality: TileQuality | None = None  # focus, pen, … of the tiles, once measured
    view_mpp: Mpp | None  # µm per tile pixel
    annotations: TargetSource | None = None  # boxes and points of the slide, for ``targets``

    @abstractmethod
    def read(self, indices: ArrayLike, out: NDArray[np.uint8] | None = None, *, threads: int = 1) -> NDArray[np.uint8]:
        """Return tiles ``indices``, (n, H, W, 3) uint8, in ``out`` if given."""

    @overload
    def targets(self, indices: int) -> Targets: ...
    @overload
    def targets(self, indices: ArrayLike | None = None) -> list[Targets]: ...
    def targets(self, indices: ArrayLike | None = None) -> Targets | list[Targets]:
        """Return the boxes and points of one tile, or of each of several, in px of the tile after all its draws.

        Parameters
        ----------
        indices : int or (n,) int array, optional
            Positions in the bag; all by default.

        Raises
        ------
        ConfigError
            The bag has no annotations; ``TileBag(…, annotations=…)`` or ``bag.annotations = …`` gives it some.
        """
        if indices is not None and np.ndim(indices) == 0:
            return self._targets(self._positions(np.reshape(indices, 1)))[0]
        return self._targets(np.arange(len(self)) if indices is None else self._positions(indices))

    @property
    def annotated(self) -> bool:
        """Whether ``targets`` has something to return."""
        return self.annotations is not None

    @property
    def cell_counts(self) -> dict[str, NDArray[np.int64]] | None:
        """Points of each class in each tile, (N,) per class, of the annotations or as stored; None without points."""
        known = self.annotations
        return None if known is None or not known.has_points else known.counts(self)

    def _targets(self, positions: NDArray[np.int64]) -> list[Targets]:
        if self.annotations is None:
            remedy = "pass Annotations.from_geojson(…) to TileBag, or set bag.annotations"
            raise ConfigError("the bag has no annotations", slide=self.name, remedy=remedy)
        return self.annotations.targets(self, positions)

    def __len__(self) -> int:
        return self.shape[0]

    def _positions(self, indices: ArrayLike) -> NDArray[np.int64]:
        """Return positions of tiles, a copy; negative indices count from the end."""
        positions, count = np.array(indices, np.int64), len(self)
        if positions.size:
            least, most = positions.min(), positions.max()
            if least < -count or most >= count:
                raise IndexError(f"tile {most if most >= count else least} of a bag of {count}")
            if least < 0:
                positions[positions < 0] += count
        return positions

    def __getitem__(self, key: Any) -> NDArray[np.uint8]:
        first, *rest = key if isinstance(key, tuple) and key else (key,)
        if isinstance(first, (int, np.integer)) and not isinstance(first, bool):
            k = int(first)
            if not -len(self) <= k < len(self):
                raise IndexError(f"tile {k} of a bag of {len(self)}")
            tile: NDArray[np.uint8] = self.read([k % len(self)])[(0, *rest)]
            return tile
        positions = np.arange(len(self))
        needed, inside = positions, key  # the whole bag, indexed as in numpy, unless the first axis selects fewer
        if isinstance(first, slice):
            needed, inside = positions[first], (slice(None), *rest)
        elif isinstance(first, (list, np.ndarray)):
            picked = positions[first]
            if picked.ndim == 1 and not rest:
                return self.read(picked)
            needed, inverse = np.unique(picked, return_inverse=True)  # each is decoded once
            inside = (inverse.reshape(picked.shape), *rest)
        tiles: NDArray[np.uint8] = self.read(needed)[inside]
        return tiles

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        for start in range(0, len(self), 64):
            yield from self[start : start + 64]

    def plot(self, count: int = 25, tile_px: int = 128, *, titled: bool = True) -> Image.Image:
        """Return a montage of at most ``count`` tiles, evenly spaced over the bag, with a title and a scale bar.

        Without title, it is the montage alone.
        """
        chosen = np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(np.int64))
        image = picture.montage(self.read(chosen), tile_px=tile_px)
        if not titled:
            return image
        side, mpp = self.shape[-2], self.view_mpp
        um_per_px = None if mpp is None else mpp.x * max(1.0, max(self.shape[-3:-1]) / tile_px)
        at = "" if mpp is None else f" of {mpp.mean:.3g} µm"
        some = f"{len(chosen):,} of {len(self):,} tiles" if len(chosen) < len(self) else f"{len(self):,} tiles"
        title = f"{self.name}: {some} of {side} px{at}"
        return picture.finished(image, title, titled=True, um_per_px=um_per_px)

    def _repr_html_(self) -> str:
        coords, mpps = self.coords, [mpp for mpp in getattr(self, "mpps", (self.view_mpp,)) if mpp is not None]
        facts = {
            "tiles": f"{len(self):,} of {self.shape[-2]}×{self.shape[-3]} px",
            "mpp": ", ".join(f"{mpp.mean:.4g} µm" for mpp in mpps) or "unknown",
            "label": "none" if self.label is None else self.label,
            "level-0 x": f"{coords[:, 0].min():,} to {coords[:, 0].max():,}" if len(self) else "none",
            "level-0 y": f"{coords[:, 1].min():,} to {coords[:, 1].max():,}" if len(self) else "none",
        }
        return picture.card(f"Bag of {self.name}", facts, [self.plot(25, 80, titled=False)])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("a bag's tiles are decoded on demand; an array of them is always a copy")
        pixels = self[:]
        return np.asarray(pixels, dtype=dtype)


def scale_count(bag: Bag) -> int:
    """Return the number of magnifications of each tile: 1 for a bag (N, H, W, 3)."""
    return 1 if len(bag.shape) == 4 else bag.shape[1]


def resolutions_text(mpps: Sequence[Mpp]) -> str:
    """Return the resolutions of magnifications as text.

    >>> resolutions_text([Mpp(0.5, 0.5), Mpp(1.0, 1.0), Mpp(2.001, 2.001)])
    '0.5, 1 and 2 µm'
    """
    *others, last = (f"{mpp.mean:.3g}" for mpp in mpps)
    return f"{', '.join(others)} and {last} µm" if others else f"{last} µm"


def check_one_scale(bag: Bag, what: str) -> None:
    """Raise ConfigError for a bag of several magnifications, which ``what``, a noun in the plural, cannot have."""
    if len(bag.shape) == 5:
        remedy = "pass the bag of one of them, bag.at(0), or make the bag without view.context"
        raise ConfigError(f"{what} of tiles at {bag.shape[1]} magnifications", slide=bag.name, remedy=remedy)


def nominal_mpps_of(bag: Bag) -> tuple[float, ...]:
    """Return the resolutions that were asked for, µm per px; none for a bag (N, H, W, 3)."""
    return tuple(getattr(bag, "nominal_mpps", ()))


def check_bag(bag: object) -> None:
    """Raise ConfigError for an object that is not a bag, such as the path of one."""
    if not (hasattr(bag, "name") and hasattr(bag, "coords")):
        remedy = (
            "pass one bag, such as open_bag(path)"
            if isinstance(bag, str | Path)
            else "pass one bag: a TileBag, or open_bag(path)"
        )
        raise ConfigError(f"a {type(bag).__name__} is no bag of tiles", remedy=remedy)


def quality_of(bag: Columns) -> TileQuality | None:
    """Return the quality of a bag's tiles; None if it was not measured, as of bags of other packages."""
    found = getattr(bag, "quality", None)
    return found if isinstance(found, TileQuality) else None


def patient_of(bag: Bag) -> str | None:
    """Return the patient of a bag's slide; None if unknown, as for bags of other packages."""
    patient = getattr(bag, "patient", None)
    return None if patient is None else str(patient)


def cell_counts_of(bag: Any) -> dict[str, NDArray[np.int64]] | None:
    """Return the points of each class in each tile of a bag; None if they are not known."""
    return bag.cell_counts if isinstance(bag, ArrayLikeBag) else None


def targets_of_batch(bag: Bag, positions: NDArray[np.int64]) -> tuple[Targets, ...] | None:
    """Return the boxes and points of some tiles; None if the bag has no annotations."""
    if not isinstance(bag, ArrayLikeBag) or not bag.annotated:
        return None
    return tuple(bag.targets(positions))
