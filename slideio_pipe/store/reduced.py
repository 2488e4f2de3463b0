"""Smaller copies of a stored bag's tiles: bags of their own inside the store, ``reduced/2``, ``reduced/4`` or ``8``.

Decoding a JPEG of 1024 px takes 1.7 ms even to a quarter, as all of its bytes are decoded; its copy of 256 px takes
0.3 ms and a sixth of the space. Augmented tiles that are shown smaller are sampled from a copy, as tiles of a slide are
from a coarser level.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slideio_pipe.errors import BagFormatError, ConfigError
from slideio_pipe.geometry import WHOLE_SHRINKS, Mpp
from slideio_pipe.progress import Report
from slideio_pipe.store.save import save_bag
from slideio_pipe.store.stored_bag import StoredBag
from slideio_pipe.tiles.bag import check_one_scale

FOLDER = "reduced"


def add_reduced(
    bag: StoredBag,
    factor: int = 4,
    *,
    pixels: str | None = None,
    threads: int | None = None,
    progress: Report | bool | None = None,
) -> StoredBag:
    """Store copies of a bag's tiles, ``factor`` times smaller, inside its store, and return them as a bag.

    ``AugmentedBag`` samples tiles that are shown at least so much smaller from them: 1024-px tiles shown in 224 px from
    copies of 256 px. Complete or not there: after an interruption, call it again.

    Parameters
    ----------
    bag : StoredBag
        As ``open_bag`` returns it.
    factor : 2, 4 or 8
        Divides the sides of a tile.
    pixels : str, optional
        As for ``save_bag``. By default "jpeg:95" if the tiles are JPEG, else "zstd".
    threads, progress
        As for ``save_bag``.

    Raises
    ------
    ConfigError
        Such copies of the tiles are not possible.
    OutputExistsError
        The store has them.
    BagFormatError
        A tile is damaged.

    Examples
    --------
    >>> import tempfile
    >>> from slideio_pipe import TileBag, TileGrid, open_slide
    >>> view = open_slide(np.full((300, 500, 3), 7, np.uint8), slide_mpp=0.5).view()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     bag = save_bag(TileBag(view, TileGrid(view, tile_size=100)), f"{folder}/a.bag.zarr", progress=False)
    ...     print(add_reduced(bag, 2, progress=False))
    StoredBag(array: 15 tiles of 50×50 px at 1 µm, zstd)
    """
    check_one_scale(bag, "smaller copies")
    _, height, width, _ = bag.shape
    if factor not in WHOLE_SHRINKS[1:] or height % factor or width % factor:
        reason = f"tiles of {width}×{height} px cannot be stored smaller by a factor of {factor!r}"
        raise ConfigError(reason, slide=bag.name, remedy="pass 2, 4 or 8, a divisor of their sides")
    pixels = pixels or ("jpeg:95" if bag.holds_jpeg else "zstd")
    return save_bag(
        _Reduced(bag, factor), bag.path / FOLDER / str(factor), pixels=pixels, threads=threads, progress=progress
    )


def reduced_bags(bag: StoredBag) -> dict[int, StoredBag]:
    """Return the smaller copies in a bag's store by their factor, ascending.

    Raise BagFormatError if one is damaged, or not of this bag's tiles.
    """
    found = {}
    for factor in WHOLE_SHRINKS[1:]:
        path = bag.path / FOLDER / str(factor)
        if path.is_dir():
            copy = StoredBag(path)
            count, height, width, _ = copy.shape
            if (count, height * factor, width * factor) != bag.shape[:3]:
                reason = f"{count:,} tiles of {width}×{height} px are no copies of these"
                raise BagFormatError(reason, slide=str(path), remedy="remove this folder")
            found[factor] = copy
    return found


class _Reduced:
    """The tiles of a stored bag, some times smaller."""

    def __init__(self, bag: StoredBag, factor: int) -> None:
        self._bag, self._factor = bag, factor
        count, height, width, _ = bag.shape
        self.shape = (count, height // factor, width // factor, 3)
        self.name, self.label, self.patient = bag.name, bag.label, bag.patient
        self.coords, self.grid_index, self.tissue = bag.coords, bag.grid_index, bag.tissue
        mpp = bag.view_mpp
        self.view_mpp = None if mpp is None else Mpp(mpp.x * factor, mpp.y * factor)

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, indices: ArrayLike, out: NDArray[np.uint8] | None = None, *, threads: int = 1) -> NDArray[np.uint8]:
        """Return tiles ``indices``, in ``out`` if given."""
        numbers = np.asarray(indices, np.int64).tolist()
        tiles = np.empty((len(numbers), *self.shape[1:]), np.uint8) if out is None else out
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(lambda k: self._bag.decoded(numbers[k], tiles[k], self._factor), range(len(numbers))):
                pass
        return tiles

    def provenance(self) -> dict[str, Any]:
        """Return the provenance of the bag, and the factor."""
        made = self._bag.provenance()
        view = made.get("view") or {}
        mpp = None if self.view_mpp is None else list(self.view_mpp)
        return made | {"view": view | {"mpp": mpp}, "reduced": self._factor}
