"""A stored bag as the slide of a view: one level, whose stored tiles are those of the bag, and one per smaller copy."""

from __future__ import annotations

import time
from contextlib import suppress
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.augment.slide_colour import TILE_PX, TILES, SlideColour, colour_of
from slideio_pipe.errors import BagFormatError, ConfigError, MissingResolutionError, NoTissueError
from slideio_pipe.geometry import Mpp, Pyramid, Rect, Size
from slideio_pipe.slides.backends.base import OnTiming, SeparateTiles, serials
from slideio_pipe.slides.pixel_memory import PIXELS
from slideio_pipe.slides.tile_cache import SHARED
from slideio_pipe.store.reduced import reduced_bags
from slideio_pipe.store.stored_bag import StoredBag
from slideio_pipe.store.tile_layout import Shown, TileLayout


class BagTiles(SeparateTiles):
    """The tiles of a bag, or their smaller copies, as ``StoredTiles`` of a level that has the bag's layout.

    Can be shared by threads. JPEG tiles are decoded at a half, a quarter or an eighth by their DCT, others are shrunk
    by means.
    """

    def __init__(self, bag: StoredBag, layout: TileLayout) -> None:
        self._bag, self._layout = bag, layout
        self.tile, self.grid = Size(bag.shape[2], bag.shape[1]), layout.size
        self.serial = next(serials)

    def stream(self, column: int, row: int) -> bytes | None:
        """Return the JPEG of the tile that a cell shows; None if it shows none, or a mirrored one."""
        shown = self._layout.shown(column, row)
        if shown is None or shown.across or shown.down or not self._bag.holds_jpeg:
            return None
        return next(self._bag.encoded([shown.tile]))

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
        """Return what a cell shows, (tile // reduce, tile // reduce, 3) uint8 RGB; white where nothing is.

        Raise BagFormatError if the tile is damaged.
        """
        del rows  # all of them
        side = self.tile.width // reduce
        pixels = PIXELS.empty((side, side, 3)) if out is None else out
        shown = self._layout.shown(column, row)
        if shown is None:
            pixels[:] = 255
            return pixels
        own = (column, row) == tuple(self._layout.cells[shown.tile].tolist())
        if own:
            return self._decode(shown, pixels, reduce, on_stage)
        # A tile is decoded once for its block and for all windows that show it.
        key = (reduce, *self._layout.cells[shown.tile].tolist())
        make = partial(self._decode, shown, PIXELS.empty((side, side, 3)), reduce, on_stage)
        pixels[:] = SHARED.get(self, key, make)[:: -1 if shown.down else 1, :: -1 if shown.across else 1]
        return pixels

    def _decode(
        self, shown: Shown, pixels: NDArray[np.uint8], reduce: int, on_stage: OnTiming | None
    ) -> NDArray[np.uint8]:
        begun = time.perf_counter() if on_stage else 0.0
        self._bag.decoded(shown.tile, pixels, reduce)
        if on_stage:
            on_stage("decode", begun, time.perf_counter())
        return pixels


class StoredSlide:
    """The slide of a view over the tiles of a stored bag; ``TileReader`` reads it like a slide's file.

    Parameters
    ----------
    bag : StoredBag
        With square tiles.
    layout : TileLayout
        Where its tiles are on each level.
    colour : SlideColour, optional
        The stains and colour statistics of the bag, if they are known; else they are measured when needed.
    """

    bounds: Rect | None = None

    def __init__(self, bag: StoredBag, layout: TileLayout, colour: SlideColour | None = None) -> None:
        self._bag, self.name, self.mpp = bag, bag.name, bag.view_mpp
        self._bags = (bag, *reduced_bags(bag).values())
        self._levels = tuple(BagTiles(each, layout) for each in self._bags)
        self.tile_sizes = tuple(tiles.tile for tiles in self._levels)
        columns, rows = layout.size
        self.pyramid = Pyramid(tuple(Size(columns * side, rows * side) for side, _ in self.tile_sizes))
        if colour is not None:
            self.colour = colour

    def stored_tiles(self, level: int) -> BagTiles:
        """Return the bag's tiles, or from level 1 their smaller copies."""
        return self._levels[level]

    @cached_property
    def colour(self) -> SlideColour:
        """The bag's own stains and colour statistics, measured once in up to 64 of its tiles.

        Those of the pixels as stored: at the bag's resolution, and with the colours that it was stored with.
        """
        return colour_of(self._sampled(), self.name, owner="the bag's own colours")

    def _sampled(self) -> list[NDArray[np.uint8]]:
        """Return a piece of up to 64 tiles; damaged ones are left out, as they are found when they are read."""
        rng = np.random.Generator(np.random.Philox(0))
        count, side = len(self._bag), self.tile_sizes[0].width
        pieces: list[NDArray[np.uint8]] = []
        for number in np.sort(rng.choice(count, min(TILES, count), replace=False)).tolist():
            pixels = np.empty((side, side, 3), np.uint8)
            x, y = (int(corner) for corner in rng.random(2) * max(1, side - TILE_PX + 1))
            with suppress(BagFormatError):
                self._bag.decoded(number, pixels)
                pieces.append(pixels[y : y + TILE_PX, x : x + TILE_PX])
        if not pieces:
            raise NoTissueError("no tile to measure colours in", slide=self.name, remedy="leave the bag out")
        return pieces

    def require_mpp(self) -> Mpp:
        """Return the resolution of the tiles."""
        if self.mpp is None:
            raise MissingResolutionError("the bag states no mpp", slide=self.name, remedy="store it from a slide")
        return self.mpp

    def provenance(self) -> dict[str, Any]:
        """Return the provenance of the bag."""
        return self._bag.provenance()

    def level_image(self, level: int) -> Any:
        """Raise ConfigError: the tiles are no whole picture."""
        raise self._no_picture()

    def thumbnail(self, max_size: int = 1024) -> NDArray[np.uint8]:
        """Raise ConfigError: the tiles are no whole picture."""
        raise self._no_picture()

    def _no_picture(self) -> ConfigError:
        return ConfigError("a stored bag has tiles and no whole picture", slide=self.name, remedy="open its slide")

    def raise_failure(self, level: int, rect: Rect, pixels: NDArray[np.uint8]) -> None:
        """Do nothing: every failure is raised where the tile is decoded."""

    def close(self) -> None:
        """Close the file descriptors of the bag and of its copies; a later read opens new ones."""
        for bag in self._bags:
            bag.close()

    def renew(self) -> None:
        """Do nothing: a damaged tile is read again whenever it is needed."""
