"""What every backend answers about a slide: levels, resolution, properties and a lazy image per level."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.errors import CorruptSlideError
from slideio_pipe.geometry import Mpp, Pyramid, Rect, Size

# Above this a resolution is no microscope's: 352.78 µm is the 72 dpi that image software writes by default.
MAX_PLAUSIBLE_MPP = 20.0

# Told what was done, from when and until when, in seconds of time.perf_counter.
OnTiming = Callable[[str, float, float], None]


class StaleLevelError(CorruptSlideError):
    """Pixels that are not the slide's, because others near them could not be decoded: fetched again, they are."""


@dataclass(frozen=True)
class Facts:
    """What a slide's header says, decoded from nothing but the header."""

    backend: str  # the name open_slide(backend=…) takes
    vendor: str  # "aperio", "hamamatsu", "ome", "generic-tiff", …
    pyramid: Pyramid  # sizes of the levels, largest first
    tile_sizes: tuple[Size, ...]  # stored tile per level; what storage order is sorted by
    mpp: Mpp | None = None  # as the header states it; plausibility is judged in slide.py
    objective_power: float | None = None  # 20.0 for a 20× objective
    properties: Mapping[str, str] = field(
        default_factory=dict
    )  # vendor metadata, untouched; an open slide has OpenSlide's names, too
    associated: tuple[str, ...] = ()  # names of label, macro, thumbnail
    icc_profile: bytes | None = None


class StoredTiles(Protocol):
    """The JPEG tiles of one level as they lie in the file; threads may share them."""

    @property
    def tile(self) -> Size:
        """Of a stored tile, level px."""
        ...

    @property
    def grid(self) -> Size:
        """Columns and rows of stored tiles."""
        ...

    @property
    def serial(self) -> int:
        """Nothing else in this process has it: what caches know the tiles by."""
        ...

    def stream(self, column: int, row: int) -> bytes | None:
        """Return a complete JPEG that says its colour model, or None where nothing is stored.

        ``decode`` draws such a tile from the finer level, or white where that has nothing, either.
        """
        ...

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

        With ``rows``, only so many of the first rows are needed, in level px: fewer may be returned, but not less.
        """
        ...


class Backend(Protocol):
    """One open slide. Cheap to open, decodes nothing until an image's pixels are fetched.

    There is no ``close``: threads may still be reading. Files are closed when nothing refers to the images any more.

    Every image it hands out is a lazy ``pyvips.Image`` of 3 bands, uchar, sRGB, alpha flattened on white.
    """

    facts: Facts

    def level_image(self, level: int) -> Any:
        """Return the lazy image of a level; the same object every time, shared by all threads."""
        ...

    def associated_image(self, name: str) -> Any:
        """Return the lazy image of a label, macro or thumbnail page."""
        ...

    def stored_tiles(self, level: int) -> StoredTiles | None:
        """Return the level's own JPEG tiles, None when it has none; the same object every time."""
        ...

    def failure(self, level: int, rect: Rect, pixels: NDArray[np.uint8]) -> BaseException | None:
        """Return why ``pixels``, just fetched from ``rect`` (level px), are not the slide's, or None when they are.

        libvips is not told when a decoder of ours fails, and reports a failure of its own once: afterwards it gives the
        tile that it could not decode as black. So whoever fetches asks here, every time.
        """
        ...
