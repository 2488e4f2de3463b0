"""Handle tiles that cannot be decoded: raise the error, make them white, or skip them."""

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
# Allowed fraction of bad tiles in a bag, but always one; a slide with more is treated as broken.
MAX_BAD_FRACTION = 0.1

Read = Callable[[NDArray[np.int64], NDArray[np.uint8]], object]


@dataclass(frozen=True, slots=True)
class TileFailure:
    """A skipped slide or tile, and the error."""

    slide: str
    error: SlideioPipeError | OSError
    tile: int | None = None  # position in the bag; None: the whole slide

    def __str__(self) -> str:
        place = "" if self.tile is None else f"tile {self.tile}: "
        return f"{place}{self.error}"


def check_on_error(value: str) -> OnError:
    """Return a valid way to handle corrupt tiles; raise ConfigError if the value is unknown."""
    for known in get_args(OnError):
        if value == known:
            return known  # type: ignore[no-any-return]
    raise ConfigError(f"{{on_error=}} is {value!r}", remedy='pass "raise", "white" or "skip"')


@dataclass
class TileErrors:
    """Reads the tiles of one bag, from any number of threads; counts undecodable tiles and continues up to a limit."""

    bag: str
    tiles: int  # number of tiles that will be read
    on_error: OnError
    failures: list[TileFailure] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def read(self, read: Read, index: NDArray[np.int64], out: NDArray[np.uint8]) -> list[int]:
        """Fill ``out[k]`` with tile ``index[k]``; return the k of undecodable tiles, which are white.

        Raise CorruptSlideError or BagFormatError if a tile cannot be decoded and ``on_error`` is "raise", or too many
        cannot.
        """
        try:
            read(index, out)
        except TILE_ERRORS:
            if self.on_error == "raise":
                raise
        else:
            return []
        bad = []
        for k in range(len(index)):  # one by one: a failed read does not name the valid tiles
            try:
                read(index[k : k + 1], out[k : k + 1])
            except TILE_ERRORS as error:
                out[k] = 255
                bad.append(k)
                self.record(int(index[k]), error)
        return bad

    def record(self, tile: int, error: SlideioPipeError) -> None:
        """Count a tile that cannot be decoded.

        Raise ``error``, a CorruptSlideError or BagFormatError, if ``on_error`` is "raise"; CorruptSlideError if there
        are too many.
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


def warn_of(failures: Sequence[TileFailure], unit: str = "slide") -> None:
    """Give one warning for everything that was skipped: tiles, and bags, which are slides or patients."""
    slides = sum(failure.tile is None for failure in failures)
    counts = [(slides, unit), (len(failures) - slides, "tile")]
    what = " and ".join(f"{n} {noun}{'s' if n > 1 else ''}" for n, noun in counts if n)
    warn_caller(SkippedWarning(f"{what} could not be read, such as {failures[0]}"))
