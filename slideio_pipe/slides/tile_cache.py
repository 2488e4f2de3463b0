"""Cache of decoded stored tiles, with one memory limit for the whole process."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.compiled.library import address
from slideio_pipe.slides.byte_cache import ByteCache

# Two rows of stored tiles of a level 80,000 px wide: needed by tiles off the stored grid, read row by row.
DEFAULT_BYTES = 128 * 2**20


class Owner(Protocol):
    """The source of decoded tiles."""

    @property
    def serial(self) -> int:
        """A number that is unique in this process."""


# A decoded tile, and where its memory begins; a plain tuple, because there are thousands a second.
Block = tuple[NDArray[np.uint8], int]


class DecodedTiles:
    """The most recently used decoded tiles, up to a number of bytes; can be shared by threads.

    Two threads that need the same tile at the same moment may both decode it: rarer and cheaper than waiting. Tiles of
    a deleted owner, such as a closed slide's, are dropped at the next access.

    Parameters
    ----------
    max_bytes : int
        Memory limit of all cached tiles.

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
        self._tiles: ByteCache[tuple[int, object], Block] = ByteCache(max_bytes)
        self._owners: set[int] = set()
        # A finaliser can run at any moment, even while this thread holds the lock: it only appends here.
        self._deleted_owners: deque[int] = deque()
        self._lock = threading.Lock()

    @property
    def max_bytes(self) -> int:
        """Memory limit of all cached tiles."""
        return self._tiles.max_bytes

    @property
    def nbytes(self) -> int:
        """Memory of the cached tiles."""
        return self._tiles.nbytes

    def limit(self, max_bytes: int) -> None:
        """Set the memory limit; what is above it is dropped when the next tile is kept."""
        self._tiles.max_bytes = max_bytes

    def known(self, owner: Owner, tile: object) -> NDArray[np.uint8] | None:
        """Return the owner's ``tile`` if it is cached; callers must not write to it."""
        found = self.known_run([(owner.serial, tile)])[0]
        return None if found is None else found[0]

    def known_run(self, keys: Iterable[tuple[int, object]]) -> list[Block | None]:
        """Return those tiles, (owner's serial number, tile), that are cached, else None."""
        if self._deleted_owners:
            self._drop_deleted()
        return self._tiles.get_all(keys)

    def get(self, owner: Owner, tile: object, make: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Return the owner's ``tile``, computed if needed; callers must not write to it."""
        known = self.known(owner, tile)
        if known is not None:
            return known
        made = make()
        self.keep(owner, [tile], [(made, address(made))])
        return made

    def keep(self, owner: Owner, tiles: Iterable[object], blocks: Sequence[Block]) -> None:
        """Keep some of the owner's tiles, those that are not kept already."""
        serial = owner.serial
        if serial not in self._owners:
            with self._lock:
                if serial not in self._owners:
                    self._owners.add(serial)
                    weakref.finalize(owner, self._deleted_owners.append, serial).atexit = False
        sizes = [pixels.nbytes for pixels, _ in blocks]
        self._tiles.keep_all([(serial, tile) for tile in tiles], blocks, sizes)

    def _drop_deleted(self) -> None:
        with self._lock:
            deleted = {self._deleted_owners.popleft() for _ in range(len(self._deleted_owners))}
            self._owners -= deleted
        self._tiles.drop(lambda key: key[0] in deleted)


# The package's one shared object, like libvips' caches: a cohort has many slides open, and their total memory is what
# must be limited. It affects only speed.
SHARED = DecodedTiles()
