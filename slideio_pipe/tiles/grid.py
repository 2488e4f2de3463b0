"""Place the tiles of a view: on a regular grid, filtered by tissue, or at given coordinates."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from slideio_pipe.config import checked
from slideio_pipe.errors import AlignedGridWarning, ConfigError, EmptyTissueWarning
from slideio_pipe.geometry import Size, round_half_up, whole_where_nearly
from slideio_pipe.images import picture
from slideio_pipe.images.explained import Key
from slideio_pipe.slides.view import SlideView
from slideio_pipe.tiles.aligned_grid import aligned
from slideio_pipe.tiles.config import Edge, GridConfig
from slideio_pipe.tiles.quality.refused_tiles import RefusedTiles
from slideio_pipe.tiles.quality.tile_quality import TileQuality
from slideio_pipe.tiles.tissue_fractions import check_mask, tissue_fractions
from slideio_pipe.tiles.tissue_mask import TissueMask


class TileGrid:
    """Tiles of one size over a view, in raster order (left to right, then down).

    Parameters
    ----------
    view : SlideView
        The view to divide into tiles; sizes below are in its pixels.
    tile_size : int
        Side of a square tile in view px.
    stride : int, optional
        Distance between neighbours in view px; ``tile_size`` if neither it nor ``overlap`` is given.
    overlap : int, optional
        ``tile_size - stride``, an alternative to ``stride``.
    edge : {"drop", "shift", "pad"}
        At the right and lower edge: drop tiles that do not fit, shift the last tile inside (it then overlaps its
        neighbour more), or let it extend outside, where it is white.
    tissue : TissueMask, optional
        Keep only tiles with enough tissue.
    min_tissue : float
        Minimum tissue fraction of a kept tile, 0 to 1.
    align : bool
        Align the tiles to those stored in the file: ``tile_size`` becomes that of a stored tile, ``stride`` the nearest
        multiple of it, and edge="shift" becomes "drop". Such tiles are read fastest, and ``save_bag(pixels="source")``
        stores their original bytes. An ``AlignedGridWarning`` lists the changes.

    Attributes
    ----------
    origins : (N, 2) int64 or float64
        Top-left corners (x, y), view px: int64, or float64 if given coordinates are between view px.
    coords : (N, 2) int64
        The same corners in level-0 px.
    index : (N, 2) int32
        Column and row in the full grid.
    tissue : (N,) float32
        Tissue fraction; NaN without a mask.
    quality : TileQuality, optional
        Focus, pen, folds, bubbles and white of each tile, once measured; see ``tile_quality``.
    refused : RefusedTiles, optional
        Tiles that were dropped for their quality, and why; see ``good_tiles``.
    changes : dict
        Changes by ``align``, as {"tile_size": (requested, used)}; empty without changes.

    Raises
    ------
    ConfigError
        Invalid sizes, a tile larger than the view with an edge other than "pad", or ``align`` for a view that is
        resampled or has an affine.

    Examples
    --------
    >>> from slideio_pipe import open_slide
    >>> view = open_slide(np.zeros((300, 500, 3), np.uint8)).view()
    >>> TileGrid(view, tile_size=200).origins.tolist()
    [[0, 0], [200, 0]]
    >>> TileGrid(view, tile_size=200, edge="shift").origins.tolist()
    [[0, 0], [200, 0], [300, 0], [0, 100], [200, 100], [300, 100]]
    """

    quality: TileQuality | None = None
    refused: RefusedTiles | None = None

    def __init__(
        self,
        view: SlideView,
        tile_size: int = 256,
        *,
        stride: int | None = None,
        overlap: int | None = None,
        edge: Edge = "drop",
        tissue: TissueMask | None = None,
        min_tissue: float = 0.5,
        align: bool = False,
    ) -> None:
        name = _check_view(view).slide.name
        check_mask(tissue, view)
        self.config = checked(
            GridConfig,
            name,
            tile_size=tile_size,
            stride=stride,
            overlap=overlap,
            edge=edge,
            min_tissue=min_tissue,
            align=align,
        )
        self.changes: dict[str, tuple[Any, Any]] = {}
        if self.config.align:
            self.config, self.changes = aligned(view, self.config)
        if self.changes:
            changed = ", ".join(f"{what} {now} in place of {before}" for what, (before, now) in self.changes.items())
            warnings.warn(AlignedGridWarning(f"{name}: grid aligned to the stored tiles with {changed}"), stacklevel=2)
        self.view, self.tile_size, self.mask = view, self.config.tile_size, tissue
        _check_fits(view, self.config)
        columns, rows = (_positions(side, self.config) for side in view.size)
        self.shape = Size(len(columns), len(rows))
        x, y = (a.ravel() for a in np.meshgrid(columns, rows))
        c, r = (a.ravel() for a in np.meshgrid(np.arange(len(columns)), np.arange(len(rows))))
        origins, index = np.stack([x, y], axis=1), np.stack([c, r], axis=1)
        fractions = np.full(len(origins), np.nan, np.float32)
        if tissue is not None:
            fractions = tissue_fractions(view, tissue, origins, self.tile_size)
            # A fraction is a ratio of areas in float32: half a pixel of a 4096-px tile is 3e-8 of it.
            kept = np.flatnonzero(fractions >= self.config.min_tissue - 1e-6)
            origins, index, fractions = origins[kept], index[kept], fractions[kept]
            if not origins.size and not tissue.is_empty:
                reason = f"{name}: no tile has {min_tissue:.0%} tissue; lower {{min_tissue=}}"
                warnings.warn(EmptyTissueWarning(reason), stacklevel=2)
        self._set(origins, view.to_level0(origins), index, fractions)

    @classmethod
    def from_coords(
        cls, view: SlideView, coords: ArrayLike, tile_size: int = 256, *, nearest: bool = False
    ) -> TileGrid:
        """Return tiles at given level-0 corners, in the given order.

        Pixels are sampled exactly at the corners. Between the pixels of a level they are interpolated, as in OpenSlide;
        tiles at whole view px are read like those of a grid.

        Parameters
        ----------
        coords : (N, 2) int or float
            Top-left corners (x, y), level-0 px. The grid's ``coords`` are these, rounded. Outside the slide tiles are
            white, or black if the view's ``outside`` is black.
        nearest : bool
            Read each tile at the nearest whole view px. Use it for ``coords`` of a grid over the same view: they are
            rounded if a view px is not a whole number of level-0 px, and ``nearest`` restores the grid.

        Raises
        ------
        ConfigError
            The array is not (N, 2), or a tile is completely outside the slide.

        Examples
        --------
        >>> from slideio_pipe import open_slide
        >>> view = open_slide(np.zeros((300, 500, 3), np.uint8), slide_mpp=0.25).view(mpp=0.5)
        >>> TileGrid.from_coords(view, [[100, 50], [0, 0]], tile_size=32).origins.tolist()
        [[50, 25], [0, 0]]
        >>> TileGrid.from_coords(view, [[101, 50]], tile_size=32).origins.tolist()
        [[50.5, 25.0]]
        """
        name = _check_view(view).slide.name
        tile_size = checked(GridConfig, name, tile_size=tile_size, edge="pad", min_tissue=0.0).tile_size
        given = np.asarray(coords)
        if given.size == 0:
            given = np.zeros((0, 2), np.int64)
        number = given.dtype.kind in "iu" or (given.dtype.kind == "f" and bool(np.isfinite(given).all()))
        if given.ndim != 2 or given.shape[1] != 2 or not number:
            raise ConfigError(
                f"coordinates of shape {given.shape} and type {given.dtype}",
                slide=name,
                remedy="pass (N, 2) finite level-0 pixels, x first",
            )
        level0 = given.astype(np.int64) if given.dtype.kind in "iu" else round_half_up(given)
        origins = view.from_level0(given) if nearest else whole_where_nearly(view.places(given))
        reach = _footprint(view, tile_size)
        low, high = level0 + reach.min(axis=0), level0 + reach.max(axis=0)
        outside = ((high <= 0) | (low >= np.array(view.slide.pyramid.levels[0]))).any(axis=1)
        if outside.any():
            first = int(np.flatnonzero(outside)[0])
            raise ConfigError(
                f"tile {first} at {tuple(level0[first].tolist())} is outside the slide "
                f"({outside.sum()} of {outside.size} do)",
                slide=name,
                remedy="coordinates are level-0 pixels, x first; were they made for another slide or level?",
            )
        return cls._of_corners(view, origins, level0, origins // tile_size, tile_size)

    @classmethod
    def _of_corners(
        cls, view: SlideView, origins: NDArray[Any], coords: NDArray[np.int64], index: NDArray[Any], tile_size: int
    ) -> TileGrid:
        """Return tiles at corners in view px and in level-0 px, with their column and row."""
        grid = cls.__new__(cls)
        grid.config = GridConfig(tile_size=tile_size, edge="pad", min_tissue=0.0)
        grid.view, grid.tile_size, grid.mask, grid.changes = view, tile_size, None, {}
        grid.shape = Size(0, 0)
        grid._set(origins, coords, index, np.full(len(origins), np.nan, np.float32))
        return grid

    def concentric(self, view: SlideView, *, nearest: bool) -> TileGrid:
        """Return tiles of the same size in px, around the centres of these, of another view of the slide.

        Their corners are the nearest whole px of the view, or exact. Columns and rows are those of these tiles.
        """
        middle = np.full(2, self.tile_size / 2)
        exact = view.places(self.view.affine.apply(self.origins + middle)) - middle
        origins = round_half_up(exact) if nearest else whole_where_nearly(exact)
        return self._of_corners(view, origins, view.to_level0(origins), self.index, self.tile_size)

    def _set(
        self, origins: NDArray[Any], coords: NDArray[np.int64], index: NDArray[Any], tissue: NDArray[np.float32]
    ) -> None:
        self.origins = origins
        self.coords = coords
        self.index = index.astype(np.int32)
        self.tissue = tissue
        for array in (self.origins, self.coords, self.index, self.tissue):
            array.flags.writeable = False

    def without(self, bad: NDArray[np.bool_], refused: RefusedTiles) -> TileGrid:
        """Return the grid without some tiles, (N,) bool, and the record of them."""
        grid, kept = copy.copy(self), np.flatnonzero(~bad)
        grid._set(self.origins[kept], self.coords[kept], self.index[kept], self.tissue[kept])
        grid.quality, grid.refused = None if self.quality is None else self.quality[kept], refused
        return grid

    def corners_level0(self) -> NDArray[np.float64]:
        """Return (N, 4, 2) corners of every tile in level-0 px, unrounded, clockwise in the view from its origin."""
        return self.view.affine.apply(self.origins)[:, None, :] + _footprint(self.view, self.tile_size)

    def provenance(self) -> dict[str, Any]:
        """Return the settings of the grid as JSON values; ``between_px`` if tiles begin between pixels of the view."""
        known: dict[str, Any] = {
            "tile_size": self.tile_size,
            "stride": self.config.step,
            "edge": self.config.edge,
            "min_tissue": self.config.min_tissue,
            "shape": list(self.shape) if self.shape.width else None,
            "align": self.config.align,
            "changes": {what: list(values) for what, values in self.changes.items()},
        }
        # Left out otherwise, so that a bag of whole pixels has the same record as in earlier versions.
        known |= {"between_px": True} if self.origins.dtype.kind == "f" else {}
        return known | ({} if self.refused is None else {"quality": self.refused.provenance()})

    def covered(self) -> float:
        """Return the fraction of the tissue that is inside some tile, 0 to 1; 1 without a mask."""
        if self.mask is None or self.mask.is_empty:
            return 1.0
        mask = self.mask.through(self.view)
        sx, sy = mask.affine.scale()
        hit = np.zeros_like(mask.mask)
        for x, y in self.origins:
            rows = slice(max(0, int(y / sy)), math.ceil((y + self.tile_size) / sy))
            hit[rows, max(0, int(x / sx)) : math.ceil((x + self.tile_size) / sx)] = True
        return float((mask.mask & hit).sum() / max(1, mask.mask.sum()))

    def plot(self, max_size: int = 1024, *, titled: bool = True) -> Image.Image:
        """Return the slide with the tissue outlined, every tile as a box, and the tiles that were dropped in grey.

        It has a title, a scale bar and a legend; without title only a scale bar, in its corner.
        """
        image, mpp = self.drawn(max_size), self.view.mpp
        um_per_px, at = (
            (None, "") if mpp is None else (mpp.x * self.view.size.width / image.width, f" of {mpp.mean:.3g} µm")
        )
        title = f"{self.view.slide.name}: {len(self):,} tiles of {self.tile_size} px{at}"
        return picture.finished(image, title, titled=titled, um_per_px=um_per_px, keys=self.legend())

    def drawn(self, max_size: int) -> Image.Image:
        """Return the picture of ``plot`` without title, scale bar and legend."""
        image = picture.fit(self.view.thumbnail(max_size), max_size)
        if self.mask is not None:
            image = picture.tint_mask(image, (self.mask.through(self.view) if self.view.moves else self.mask).mask)
        scale = image.width / self.view.size.width
        refused = self.origins[:0] if self.refused is None else self.refused.origins
        for origins, colour in (
            (self.dropped(), picture.DROPPED),
            (refused, picture.REFUSED),
            (self.origins, picture.TILE),
        ):
            side = np.full_like(origins, self.tile_size)
            image = picture.draw_boxes(image, np.hstack([origins, side]) * scale, colour)
        return image

    def dropped(self) -> NDArray[np.int64]:
        """Return the corners, (n, 2) view px, of tiles without enough tissue; there are none for given corners."""
        if not self.shape.width:
            return np.zeros((0, 2), np.int64)
        columns, rows = (np.asarray(_positions(side, self.config)) for side in self.view.size)
        kept = np.zeros(self.shape, bool)
        for index in (self.index, *(() if self.refused is None else (self.refused.index,))):
            kept[index[:, 0], index[:, 1]] = True
        column, row = np.nonzero(~kept)
        return np.stack([columns[column], rows[row]], axis=1).astype(np.int64)

    def legend(self) -> list[Key]:
        """Return the meaning of the colours of ``plot``."""
        keys = [] if self.mask is None else list(picture.TISSUE_KEYS)
        keys.append(Key(f"{len(self):,} tiles", picture.TILE, "box"))
        if self.refused is not None and len(self.refused):
            keys.append(Key(f"{len(self.refused):,} dropped: {self.refused.short}", picture.REFUSED, "box"))
        dropped = len(self.dropped())
        least = f"under {self.config.min_tissue:.0%} tissue"
        return [*keys, Key(f"{dropped:,} dropped: {least}", picture.DROPPED, "box")] if dropped else keys

    def _repr_html_(self) -> str:
        facts = {
            "tiles": f"{len(self):,}",
            **{k: v for k, v in self.provenance().items() if v not in (None, False, {})},
        }
        return picture.card(
            f"Tile grid of {self.view.slide.name}", facts, [self.plot(420, titled=False)], self.legend()
        )

    def __len__(self) -> int:
        return len(self.origins)

    def __repr__(self) -> str:
        step = "" if self.config.step == self.tile_size else f", stride {self.config.step}"
        full = f" of {self.shape.width}×{self.shape.height}" if self.shape.width else ""
        mpp = self.view.mpp
        at = "" if mpp is None else f" at {mpp.mean:.4g} µm"
        refused = "" if self.refused is None or not len(self.refused) else f", dropped: {self.refused.reasons}"
        return f"TileGrid({self.view.slide.name}: {len(self):,} tiles{full}, {self.tile_size} px{at}{step}{refused})"


def _check_view(view: SlideView) -> SlideView:
    if not isinstance(view, SlideView):
        raise ConfigError(f"a grid over a {type(view).__name__}", remedy="pass slide.view(mpp=…)")
    return view


def _footprint(view: SlideView, tile_size: int) -> NDArray[np.float64]:
    """Return (4, 2): a tile's corners relative to its origin, level-0 px, clockwise in the view."""
    corners = view.affine.apply([(0, 0), (tile_size, 0), (tile_size, tile_size), (0, tile_size)])
    return np.asarray(corners - corners[0])


def _check_fits(view: SlideView, config: GridConfig) -> None:
    if config.edge == "pad" or (config.tile_size <= view.size.width and config.tile_size <= view.size.height):
        return
    width, height = view.size
    raise ConfigError(
        f"a tile of {config.tile_size} px is larger than the slide, {width}×{height} px at this resolution",
        slide=view.slide.name,
        remedy='pass {edge="pad"}, a smaller {tile_size=} or a finer {mpp=}' + _magnification_remedy(view),
    )


def _magnification_remedy(view: SlideView) -> str:
    mpp = None if view.mpp is None else view.mpp.mean
    if mpp is None or mpp < 5:
        return ""
    return f" ({{mpp={mpp:.3g}}} is µm per pixel; {mpp:.3g}× is {{mpp={10 / mpp:.3g}}})"


def _positions(length: int, config: GridConfig) -> NDArray[np.int64]:
    """Return tile starts along one axis of ``length`` px."""
    tile, step = config.tile_size, config.step
    if config.edge == "pad":
        count = 1 if length <= tile else -(-(length - tile) // step) + 1
        return np.arange(count, dtype=np.int64) * step
    starts = np.arange(0, length - tile + 1, step, dtype=np.int64)
    if config.edge == "shift" and starts[-1] + tile < length:
        starts = np.append(starts, length - tile)
    return starts
