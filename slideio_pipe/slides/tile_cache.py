"""Decoded stored tiles, kept while there is room: one budget for the whole process, whatever is open."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

# Two rows of stored tiles of a level 80,000 px wide: what tiles off the stored grid, read row by row, need.
DEFAULT_BYTES = 128 * 2**20


class Owner(Protocol):
    """What tiles are decoded from."""

    @property
    def serial(self) -> int:
        """Nothing else in this process has it."""
        ...


class DecodedTiles:
    """The most recently used decoded tiles, up to a number of bytes; threads may share it.

    Two threads that want the same tile at the same moment may both decode it: rarer and cheaper than waiting. Tiles of
    an owner that is gone, as those of a slide that was closed, are dropped when the next tile is asked for.

    Parameters
    ----------
    max_bytes : int
        What all kept tiles together may take.

    Examples
    --------
    >>> class Level:
    ...     serial = 1
    >>> tiles, slide = DecodedTiles(max_bytes=100), Level()
    >>> tiles.get(slide, "a", lambda: np.zeros(80, np.uint8)).shape
    (80,)
    >>> tiles.get(slide, "b", lambda: np.zeros(60, np.uint8)).shape, tiles.nbytes
    ((60,), 60)
    """

    def __init__(self, max_bytes: int = DEFAULT_BYTES) -> None:
        self.max_bytes, self.nbytes = max_bytes, 0
        self._kept: OrderedDict[tuple[int, object], NDArray[np.uint8]] = OrderedDict()
        self._owners: set[int] = set()
        # A finaliser runs at any moment, even while this thread holds the lock: it only leaves a note.
        self._gone: deque[int] = deque()
        self._lock = threading.Lock()

    def known(self, owner: Owner, tile: object) -> NDArray[np.uint8] | None:
        """Return the owner's ``tile`` if it is kept; nobody may write to it."""
        key = (owner.serial, tile)
        with self._lock:
            if self._gone:
                self._forget()
            known = self._kept.get(key)
            if known is not None:
                self._kept.move_to_end(key)
            return known

    def get(self, owner: Owner, tile: object, make: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Return the owner's ``tile``, made if need be; nobody may write to it."""
        known = self.known(owner, tile)
        if known is not None:
            return known
        key, made = (owner.serial, tile), make()
        with self._lock:
            if owner.serial not in self._owners:
                self._owners.add(owner.serial)
                weakref.finalize(owner, self._gone.append, owner.serial).atexit = False
            if key not in self._kept:
                self._kept[key] = made
                self.nbytes += made.nbytes
            while self.nbytes > self.max_bytes:
                self.nbytes -= self._kept.popitem(last=False)[1].nbytes
        return made

    def _forget(self) -> None:
        gone = {self._gone.popleft() for _ in range(len(self._gone))}
        self._owners -= gone
        for key in [key for key in self._kept if key[0] in gone]:
            self.nbytes -= self._kept.pop(key).nbytes


# The one shared object of the package, as libvips' caches are: a cohort holds many slides open, and what they may keep
# together is what counts. Nothing but speed depends on it.
SHARED = DecodedTiles()
