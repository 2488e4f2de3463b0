"""The tiles of a stored bag as a picture, for a bag whose slide is not there.

Tiles of a grid without overlap are shown where they were on the slide, with white between them; others in rows, in the
order of the bag.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.augment.slide_colour import SlideColour
from slideio_pipe.errors import ConfigError, MissingResolutionError
from slideio_pipe.geometry import Affine, LevelChoice, Mpp, Pyramid, Rect, Size
from slideio_pipe.slides.backends.base import OnTiming, SeparateTiles, serials
from slideio_pipe.slides.view import SlideView
from slideio_pipe.store.stored_bag import StoredBag
from slideio_pipe.viewer.tile_source import ViewTiles

# A corner this far from a whole number of tiles is not on the grid, in tiles.
_ON_GRID = 0.01


@dataclass(frozen=True)
class _Cells:
    """Which tile is in which cell."""

    tiles: dict[tuple[int, int], int]
    size: Size
    in_place: bool
    downsample: tuple[float, float]  # level-0 px per px, if in place


def _cells_of(bag: StoredBag) -> _Cells:
    made = (bag.provenance().get("view") or {}).get("affine")
    affine = Affine.from_tuple(tuple(made)) if made else Affine()
    side = bag.shape[1]
    places = affine.inverse().apply(bag.coords) / side if len(bag) else np.zeros((0, 2))
    whole = np.round(places).astype(np.int64)
    straight = affine.b == affine.d == 0 and affine.a > 0 and affine.e > 0
    rounding = 1 / side  # coords are whole level-0 px
    on_grid = bool((np.abs(places - whole) <= _ON_GRID + rounding).all() and (whole >= 0).all())
    if straight and on_grid and len(np.unique(whole, axis=0)) == len(whole):
        cells = {(x, y): number for number, (x, y) in enumerate(whole.tolist())}
        size = Size(*(whole.max(0) + 1).tolist()) if len(whole) else Size(1, 1)
        return _Cells(cells, size, True, (affine.a, affine.e))
    columns = max(1, math.ceil(math.sqrt(len(bag))))
    sheet = {(number % columns, number // columns): number for number in range(len(bag))}
    return _Cells(sheet, Size(columns, max(1, -(-len(bag) // columns))), False, (1.0, 1.0))


class _CellTiles(SeparateTiles):
    """The bag's tiles as stored tiles of a level, which a ``TileReader`` reads; white where there is none."""

    def __init__(self, bag: StoredBag, cells: _Cells) -> None:
        self._bag, self._cells = bag, cells
        self.tile, self.grid = Size(bag.shape[2], bag.shape[1]), cells.size
        self.serial = next(serials)

    def stream(self, column: int, row: int) -> bytes | None:
        """Return the JPEG of a tile; None if there is none."""
        number = self._cells.tiles.get((column, row))
        return None if number is None or not self._bag.holds_jpeg else next(self._bag.encoded([number]))

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
        """Return a tile, ``reduce`` times smaller, (h, w, 3) uint8 RGB."""
        del rows, on_stage
        shape = (self.tile.height // reduce, self.tile.width // reduce, 3)
        pixels = np.empty(shape, np.uint8) if out is None else out
        number = self._cells.tiles.get((column, row))
        if number is None:
            pixels[:] = 255
        else:
            self._bag.decoded(number, pixels, reduce)
        return pixels


class BagSlide:
    """The slide of a view over the tiles of a stored bag.

    Attributes
    ----------
    in_place : bool
        Whether tiles are where they were on the slide.
    downsample : (float, float)
        Level-0 px per px of the picture, if they are.
    """

    bounds: Rect | None = None

    def __init__(self, bag: StoredBag) -> None:
        bag = bag.at(0) if bag.mpps else bag  # the finest of several magnifications
        if bag.shape[1] != bag.shape[2]:
            raise ConfigError("tiles that are not square cannot be shown", slide=bag.name, remedy="show its slide")
        cells = _cells_of(bag)
        self._bag, self.name, self.mpp = bag, bag.name, bag.view_mpp
        self.in_place, self.downsample = cells.in_place, cells.downsample
        self._tiles = _CellTiles(bag, cells)
        self.tile_sizes = (self._tiles.tile,)
        self.pyramid = Pyramid((Size(cells.size.width * bag.shape[2], cells.size.height * bag.shape[1]),))

    def stored_tiles(self, level: int) -> _CellTiles:
        """Return the bag's tiles."""
        return self._tiles

    @property
    def colour(self) -> SlideColour:
        """Raise ConfigError: transforms that start from the slide's own colours need the slide."""
        remedy = "show its slide, or use a transform that does not need it"
        raise ConfigError("the slide's own colours are not known", slide=self.name, remedy=remedy)

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
        raise ConfigError("this transform needs the slide", slide=self.name, remedy="show its slide")

    def thumbnail(self, max_size: int = 1024) -> NDArray[np.uint8]:
        """Return all tiles, the longer side at most ``max_size`` px."""
        size = self.pyramid.levels[0]
        factor = max(1.0, max(size) / max_size)
        small = Size(*(max(1, round(side / factor)) for side in size))
        return ViewTiles(self.view()).region((0, 0), factor, small)

    def view(self) -> SlideView:
        """Return the view of all tiles."""
        return SlideView(self, LevelChoice(0, (1.0, 1.0)))

    def renew(self) -> None:
        """Do nothing: errors are raised each time."""

    def raise_failure(self, level: int, rect: Rect, pixels: NDArray[np.uint8]) -> None:
        """Do nothing: damaged tiles are an error when they are decoded."""
