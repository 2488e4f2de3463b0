"""The protocol of slide backends: levels, resolution, properties and a lazy image per level."""

from __future__ import annotations

import itertools
import threading
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.errors import CorruptSlideError
from slideio_pipe.geometry import Mpp, Pyramid, Rect, Size
from slideio_pipe.images.virtual_tiff import ReadTile, VirtualTiff

# No microscope has a coarser resolution: 352.78 µm is the 72 dpi that image software writes by default.
MAX_PLAUSIBLE_MPP = 20.0

# Called with the stage's name, start and end in seconds of time.perf_counter.
OnTiming = Callable[[str, float, float], None]

# Numbers of ``StoredTiles``, unique in this process.
serials = itertools.count()


class StaleLevelError(CorruptSlideError):
    """The pixels are wrong because others near them could not be decoded; fetched again, they are correct."""


def undecodable(what: str, reason: object, slide: str) -> CorruptSlideError:
    """Return the error of a stored tile, named with its place."""
    remedy = "copy the slide again, or leave this region out"
    return CorruptSlideError(f"{what} cannot be decoded ({reason})", slide=slide, remedy=remedy)


@dataclass(frozen=True)
class Facts:
    """Contents of a slide's header, read without decoding pixels."""

    backend: str  # name for open_slide(backend=…)
    vendor: str  # "aperio", "hamamatsu", "ome", "generic-tiff", …
    pyramid: Pyramid  # sizes of the levels, largest first
    tile_sizes: tuple[Size, ...]  # stored tile per level; storage order is sorted by it
    mpp: Mpp | None = None  # as stated in the header; plausibility is checked in resolution.py
    objective_power: float | None = None  # 20.0 for a 20× objective
    properties: Mapping[str, str] = field(
        default_factory=dict
    )  # vendor metadata, unchanged; an open slide also has OpenSlide's names
    associated: tuple[str, ...] = ()  # names of label, macro, thumbnail
    icc_profile: bytes | None = None


class StoredTiles(Protocol):
    """The JPEG tiles of one level as stored in the file; can be shared by threads."""

    tile: Size  # of a stored tile, level px
    grid: Size  # columns and rows of stored tiles
    serial: int  # unique in this process, for caches

    def stream(self, column: int, row: int) -> bytes | None:
        """Return a complete JPEG with its colour model, or None if nothing is stored.

        ``decode`` draws such a tile from the finer level, or white if that has nothing either.
        """

    def decode(
        self,
        column: int,
        row: int,
        out: NDArray[np.uint8] | None = None,
        *,
        reduce: int = 1,
        rows: int | None = None,
        on_stage: OnTiming | None = None,
    ) -> NDArray[np.uint8]:
        """Return (tile.height // reduce, tile.width // reduce, 3) uint8 RGB; ``reduce`` is 1, 2, 4 or 8.

        With ``rows``, only the first rows are needed, in level px: at least these are returned.
        """

    def decode_at(
        self,
        places: Sequence[tuple[int, int]],
        addresses: Sequence[int],
        *,
        stride: int,
        rows: int | Sequence[int],
        reduce: int = 1,
        on_stage: OnTiming | None = None,
    ) -> list[int]:
        """Decode tiles at ``places`` (column, row) to addresses of memory, together, without the GIL.

        Return the numbers of those that were not decoded: ``decode`` draws them, or says what is wrong.
        """

    def rows_for(self, rows: int) -> int:
        """Return how many rows, level px, are decoded if the first ``rows`` are needed."""


class SeparateTiles:
    """The base class of ``StoredTiles`` that are decoded one by one only."""

    tile: Size

    def decode_at(self, places: Sequence[tuple[int, int]], addresses: Sequence[int], **options: Any) -> list[int]:
        """Decode none of the tiles: return all their numbers."""
        del addresses, options
        return list(range(len(places)))

    def rows_for(self, rows: int) -> int:
        """Return the number of rows of a tile: all are decoded."""
        del rows
        return self.tile.height


class Backend(Protocol):
    """One open slide. Opening is cheap; nothing is decoded until an image's pixels are fetched.

    There is no ``close``: threads may still be reading. Files are closed when no image refers to them.

    Every image is a lazy ``pyvips.Image`` of 3 bands, uchar, sRGB, alpha flattened on white.
    """

    facts: Facts

    def level_image(self, level: int) -> Any:
        """Return the lazy image of a level; always the same object, shared by all threads."""

    def associated_image(self, name: str) -> Any:
        """Return the lazy image of a label, macro or thumbnail page."""

    def stored_tiles(self, level: int) -> StoredTiles | None:
        """Return the level's own JPEG tiles, always the same object; None, the default, if there are none."""
        del level
        return None

    def failure(self, level: int, rect: Rect, pixels: NDArray[np.uint8]) -> BaseException | None:
        """Return why ``pixels``, just fetched from ``rect`` (level px), are wrong, or None if they are correct.

        libvips gets no error from our decoders, and reports its own failures once: afterwards it returns a tile that
        it could not decode as black. So callers check here after every fetch. By default None: every failure is
        reported, every time.
        """
        del level, rect, pixels
        return None


class VirtualBackend(Backend):
    """A backend whose levels are decoded tile by tile, when libvips requests tiles."""

    def __init__(self) -> None:
        self._levels: dict[int, VirtualTiff] = {}
        self._lock = threading.Lock()

    @abstractmethod
    def _tile_reader(self, level: int) -> ReadTile:
        """Return the function that decodes a tile of a level."""

    def level_image(self, level: int) -> Any:
        with self._lock:
            if level not in self._levels:
                size, tile = self.facts.pyramid.levels[level], self.facts.tile_sizes[level]
                self._levels[level] = VirtualTiff(size, tile, self._tile_reader(level))
            return self._levels[level].image

    def failure(self, level: int, rect: Rect, pixels: NDArray[np.uint8]) -> BaseException | None:
        del pixels
        virtual = self._levels.get(level)
        return None if virtual is None else virtual.failure(rect)
