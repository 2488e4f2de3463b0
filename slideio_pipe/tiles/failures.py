"""What becomes of tiles that cannot be decoded: the error is raised, or they are white, or left out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.errors import (
    BagFormatError,
    ConfigError,
    CorruptSlideError,
    SkippedWarning,
    SlideioPipeError,
    warn_caller,
)

OnError = Literal["raise", "white", "skip"]
TILE_ERRORS = (CorruptSlideError, BagFormatError)
# Of a bag's tiles, this part may be bad, and always one; a slide with more of them is broken as a whole.
MAX_BAD_FRACTION = 0.1

Read = Callable[[NDArray[np.int64], NDArray[np.uint8]], object]


@dataclass(frozen=True, slots=True)
class TileFailure:
    """A slide, or one tile of it, that was left out, and why."""

    slide: str
    error: SlideioPipeError | OSError
    tile: int | None = None  # position in the bag; None is the whole slide

    def __str__(self) -> str:
        place = "" if self.tile is None else f"tile {self.tile}: "
        return f"{place}{self.error}"


def check_on_error(value: str) -> OnError:
    """Return a known way to deal with corrupt tiles.

    Raises
    ------
    ConfigError
        If there is no such way.
    """
    for known in get_args(OnError):
        if value == known:
            return known  # type: ignore[no-any-return]
    raise ConfigError(f"on_error is {value!r}", remedy='pass "raise", "white" or "skip"')


@dataclass
class TileErrors:
    """Reads tiles of one bag, from any number of threads, and bears with some that cannot be decoded."""

    bag: str
    tiles: int  # that will be read in all
    on_error: OnError
    failures: list[TileFailure] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def read(self, read: Read, index: NDArray[np.int64], out: NDArray[np.uint8]) -> list[int]:
        """Fill ``out[k]`` with tile ``index[k]`` and return the k of those that could not be; they are white.

        Raises
        ------
        CorruptSlideError, BagFormatError
            A tile cannot be decoded and ``on_error`` is "raise", or too many cannot.
        """
        try:
            read(index, out)
        except TILE_ERRORS:
            if self.on_error == "raise":
                raise
        else:
            return []
        bad = []
        for k in range(len(index)):  # one after the other: a read that failed does not say which others are good
            try:
                read(index[k : k + 1], out[k : k + 1])
            except TILE_ERRORS as error:
                out[k] = 255
                bad.append(k)
                self.record(int(index[k]), error)
        return bad

    def record(self, tile: int, error: SlideioPipeError) -> None:
        """Count a tile that cannot be decoded.

        Raises
        ------
        CorruptSlideError, BagFormatError
            ``error``, when ``on_error`` is "raise"; or there are too many.
        """
        if self.on_error == "raise":
            raise error
        with self._lock:
            self.failures.append(TileFailure(self.bag, error.with_traceback(None), tile))
            count = len(self.failures)
        if count > max(1, self.tiles * MAX_BAD_FRACTION):
            raise CorruptSlideError(
                f"{count} of {self.tiles} tiles cannot be decoded, the last one because: {error.reason}",
                slide=self.bag,
                remedy="copy the slide again, or leave it out",
            ) from error


def warn_of(failures: Sequence[TileFailure]) -> None:
    """Warn once of all that was left out."""
    slides = sum(failure.tile is None for failure in failures)
    counts = [(slides, "slide"), (len(failures) - slides, "tile")]
    what = " and ".join(f"{n} {noun}{'s' if n > 1 else ''}" for n, noun in counts if n)
    warn_caller(SkippedWarning(f"{what} could not be read, such as {failures[0]}"))
