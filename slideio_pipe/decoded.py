"""Decoded stored tiles, kept while there is room: one budget for the whole process, whatever is open."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

import numpy as np
from numpy.typing import NDArray

# Two rows of stored tiles of a level 80,000 px wide: what tiles off the stored grid, read row by row, need.
DEFAULT_BYTES = 128 * 2**20


class DecodedTiles:
    """The most recently used decoded tiles, up to a number of bytes; threads may share it.

    Two threads that want the same tile at the same moment may both decode it: rarer and cheaper than waiting.

    Parameters
    ----------
    max_bytes : int
        What all kept tiles together may take.

    Examples
    --------
    >>> tiles = DecodedTiles(max_bytes=100)
    >>> tiles.get("a", lambda: np.zeros(80, np.uint8)).shape
    (80,)
    >>> tiles.get("b", lambda: np.zeros(60, np.uint8)).shape, tiles.nbytes
    ((60,), 60)
    """

    def __init__(self, max_bytes: int = DEFAULT_BYTES) -> None:
        self.max_bytes, self.nbytes = max_bytes, 0
        self._kept: OrderedDict[Hashable, NDArray[np.uint8]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Return the tile kept under ``key``, made if need be; nobody may write to it."""
        with self._lock:
            known = self._kept.get(key)
            if known is not None:
                self._kept.move_to_end(key)
                return known
        made = make()
        with self._lock:
            if key not in self._kept:
                self._kept[key] = made
                self.nbytes += made.nbytes
            while self.nbytes > self.max_bytes:
                self.nbytes -= self._kept.popitem(last=False)[1].nbytes
        return made


# The one shared object of the package, as libvips' caches are: a cohort holds many slides open, and what they may keep
# together is what counts. Nothing but speed depends on it.
SHARED = DecodedTiles()
