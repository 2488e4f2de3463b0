"""A stored bag whose tiles are augmented when they are read: prepared offline, random online."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slideio_pipe.augment.draw import Draw
from slideio_pipe.augment.draws import Draws
from slideio_pipe.augment.ending import split_end
from slideio_pipe.augment.slide_colour import SlideColour
from slideio_pipe.errors import BagFormatError, ConfigError
from slideio_pipe.files import Closable
from slideio_pipe.geometry import SAME_RESOLUTION, Affine, LevelChoice
from slideio_pipe.slides.view import SlideView
from slideio_pipe.store.stored_bag import StoredBag
from slideio_pipe.store.stored_slide import StoredSlide
from slideio_pipe.store.tile_layout import REACH, TileLayout, check_beyond, tile_places
from slideio_pipe.tiles.bag import check_one_scale
from slideio_pipe.tiles.drawn_bag import DrawnBag
from slideio_pipe.tiles.label_mask import tile_affines
from slideio_pipe.tiles.read_plan import ReadPlan


class AugmentedBag(DrawnBag, Closable):
    """The tiles of a stored bag, with a transform per tile and the colours of one for the whole bag; pickles by path.

    Draws are those of a ``TileBag`` over the slide, for the same seed, epoch and numbers of tiles. Pixels are the
    stored ones; their colours and geometry when the bag was stored stay. Geometry is sampled once, from the smallest
    decoding of the stored tiles that is fine enough: a 1024-px JPEG tile shown in 224 px is decoded to a quarter, or
    read from its smaller copy, where ``add_reduced`` has stored one.

    Parameters
    ----------
    stored : StoredBag
        As ``open_bag`` returns it; its tiles are square.
    tile_transform : an albumentationsxl transform, optional
        Drawn once per tile. Where its geometry reaches beyond the tile, see ``neighbours`` and ``beyond``.
    slide_transform : an albumentationsxl transform, optional
        Colours, drawn once for all tiles, as ``slide.view(transform=…)`` draws them: the bag stays one plausible slide.
        Transforms that need the slide's own stains (``basis="slide"``) measure them in the bag's own tiles.
    seed, epoch : int
        Inputs of the draws, with the slide's name and the tile's number.
    neighbours : bool
        Sample across the edge of a tile in the tiles that are stored beside it, of the same grid. False: each tile
        alone, which decodes less if few tiles of a bag are read. Tiles without a neighbour there, whose corners are
        between pixels, or that were drawn one by one when they were stored, are alone in any case.
    beyond : {"reflect", "white"}
        What is where no tile is stored: the reflection of the tile, or of its neighbour, at their edge, which adds no
        border and keeps the tile's colours; or white, as beyond a slide's edge. Of tiles alone, the mean colours of
        reflected ones were 1.4 levels from those of the slide's tiles, of white ones 7.1.
    colour : SlideColour, optional
        Stains and colour statistics that were measured before, such as ``view.slide.colour`` of another epoch.

    Attributes
    ----------
    alone : str
        Why no tile has neighbours; empty if some have.

    Raises
    ------
    ConfigError
        An argument is no stored bag, tiles are not square, or ``slide_transform`` has more than colours.

    Examples
    --------
    >>> import tempfile
    >>> from slideio_pipe import Flip, StainJitter, TileBag, TileGrid, open_bag, open_slide, save_bag
    >>> view = open_slide(np.full((300, 500, 3), 90, np.uint8), slide_mpp=0.5).view()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = save_bag(TileBag(view, TileGrid(view, tile_size=100)), f"{folder}/a.bag.zarr", progress=False)
    ...     bag = AugmentedBag(open_bag(f"{folder}/a.bag.zarr"), tile_transform=Flip(), slide_transform=StainJitter())
    ...     print(bag, bag[3:5].shape)
    AugmentedBag(array: 15 tiles of 100×100 px from stored 100×100 px, neighbours, else reflected) (2, 100, 100, 3)
    """

    def __init__(
        self,
        stored: StoredBag,
        *,
        tile_transform: Any = None,
        slide_transform: Any = None,
        seed: int = 0,
        epoch: int = 0,
        neighbours: bool = True,
        beyond: str = "reflect",
        colour: SlideColour | None = None,
    ) -> None:
        if not isinstance(stored, StoredBag):
            reason = f"a {type(stored).__name__} is no stored bag"
            raise ConfigError(reason, remedy="pass open_bag(path); a TileBag takes a tile_transform itself")
        check_one_scale(stored, "draws")
        count, height, width, _ = stored.shape
        if height != width:
            reason = f"tiles of {width}×{height} px cannot be augmented: they are not square"
            raise ConfigError(reason, slide=stored.name, remedy="store square tiles")
        made = stored.provenance()
        places, self.alone = tile_places(made, stored.coords, stored.grid_index)
        if not neighbours:
            places, self.alone = None, "neighbours=False"
        self.stored, self.neighbours, self.beyond = stored, bool(neighbours), check_beyond(beyond, stored.name)
        self._layout = TileLayout(count, width, places, self.beyond)
        if not (self.alone or self._layout.with_neighbours):
            self.alone = "no tile is stored beside another"
        for failure in made.get("failures", []):  # they are white
            self._layout.lose(int(failure["tile"]))
        slide_transform, ending = split_end(slide_transform)
        self.slide_transform = slide_transform
        self._slide = StoredSlide(stored, self._layout, colour)
        drawn = _colours(self._slide, slide_transform, seed, epoch)
        view = SlideView(self._slide, LevelChoice(0, (1.0, 1.0)), drawn, ending=ending)
        super().__init__(view, width, tile_transform=tile_transform, seed=seed, epoch=epoch)
        self.shape = (count, self.canvas.height, self.canvas.width, 3)
        self.label, self.patient, self.view_mpp = stored.label, stored.patient, stored.view_mpp
        self.coords, self.grid_index, self.tissue = stored.coords, stored.grid_index, stored.tissue
        self.quality = stored.quality

    def at_epoch(self, epoch: int) -> AugmentedBag:
        """Return the bag with the draws of another epoch; the stored bag is shared."""
        bag = AugmentedBag(self.stored, **self._settings() | {"epoch": epoch}, colour=self._known_colour)
        bag.annotations = self.annotations
        return bag

    def storage_order(self, indices: ArrayLike) -> NDArray[np.int64]:
        """Return ``indices`` in the order that decodes every stored tile once."""
        positions = self._positions(indices)
        column, row = self._layout.cells[positions].T
        return positions[np.lexsort((column, row))]

    def affines(self, indices: ArrayLike) -> list[Affine]:
        """Return one affine for each of tiles ``indices`` (n,), from its px to level-0 px.

        Raises
        ------
        ConfigError
            The store does not have the affines of its tiles.
        """
        positions = self._positions(indices)
        return self._drawn_affines(positions, list(tile_affines(self.stored, positions)))

    def _plan(self, positions: NDArray[np.int64], draws: Draws | None, *, colours: bool) -> ReadPlan | None:
        if draws is None and (self.view.draw is None or not colours):
            return None
        reached = None if draws is None else reached_cells(draws, self.tile_size, self.name)
        return self._reader.plan(self._layout.origins(positions, reached), draws=draws, colours=colours)

    def _read_at(
        self,
        positions: NDArray[np.int64],
        draws: Draws | None,
        out: NDArray[np.uint8] | None,
        *,
        threads: int,
        colours: bool,
    ) -> NDArray[np.uint8]:
        if draws is None and (self.view.draw is None or not colours):
            return self.stored.read(positions, out, threads=threads)
        reached = None if draws is None else reached_cells(draws, self.tile_size, self.name)
        while True:
            corners = self._layout.origins(positions, reached)
            try:
                return self._reader.read(corners, out, draws=draws, colours=colours, threads=threads)
            except BagFormatError as error:
                # A damaged tile costs that tile: its neighbours are read as if it were not stored.
                if error.tile is None or error.tile in positions:
                    raise
                self._layout.lose(error.tile)
                self._planned.clear()

    def provenance(self) -> dict[str, Any]:
        """Return the provenance of the stored bag, and how its tiles are augmented."""
        made, own = self.stored.provenance(), self._tile_provenance()
        how = {
            "stored": {"tile_draw": made.get("tile_draw"), "augmented": made.get("augmented")},
            "slide_draw": None if self.view.draw is None else self.view.draw.to_json(),
            "tile_draw": own,
            "tile_size": self.tile_size,
            "neighbours": self.neighbours,
            "alone": self.alone,
            "beyond": self.beyond,
        }
        # A store of these tiles says that they were drawn, as one of a TileBag does.
        return made | {"tile_draw": made.get("tile_draw") if own is None else own, "augmented": how}

    def close(self) -> None:
        """Close the file descriptors of the stored bag; a later read opens new ones."""
        self._slide.close()

    @property
    def _known_colour(self) -> SlideColour | None:
        """The stains and colour statistics of the bag, if they were measured: a copy does not measure them again."""
        known: SlideColour | None = vars(self._slide).get("colour")
        return known

    def _settings(self) -> dict[str, Any]:
        return {
            "tile_transform": self.tile_transform,
            "slide_transform": self.slide_transform,
            "seed": self.seed,
            "epoch": self.epoch,
            "neighbours": self.neighbours,
            "beyond": self.beyond,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        made = partial(AugmentedBag, **self._settings(), colour=self._known_colour)
        return made, (self.stored,), {"annotations": self.annotations} if self.annotated else {}

    def __repr__(self) -> str:
        count, height, width, _ = self.shape
        side = self.tile_size
        filled = "reflected" if self.beyond == "reflect" else "white"
        where = f"alone, {filled} beyond" if self.alone else f"neighbours, else {filled}"
        label = "" if self.label is None else f", label {self.label}"
        what = f"{count:,} tiles of {width}×{height} px from stored {side}×{side} px"
        return f"AugmentedBag({self.name}: {what}, {where}{label})"


def check_colours_only(transform: Any, slide: str | None = None) -> None:
    """Raise ConfigError if a transform for a whole stored bag has more than colours, even if rarely drawn."""
    if transform is None:
        return
    import albumentationsxl as A  # takes three seconds to import

    from slideio_pipe.augment.albumentations import verdict
    from slideio_pipe.augment.compose import leaves

    found = tuple(leaves(transform))
    remedy = "pass it as tile_transform, or pass the slide in place of its stored tiles"
    for leaf in found:
        name = type(leaf).__name__
        if isinstance(leaf, A.DualTransform) and not isinstance(leaf, A.NoOp):
            raise ConfigError(f"{name} of slide_transform cannot move stored tiles", slide=slide, remedy=remedy)
        if verdict(leaf).kind == "opaque":
            reason = f"{name} of slide_transform runs only on a whole slide, and stored tiles are no whole one"
            raise ConfigError(reason, slide=slide, remedy=remedy)


def _colours(slide: StoredSlide, transform: Any, seed: int, epoch: int) -> Draw | None:
    """Return the draw of colours for all tiles of a bag."""
    if transform is None:
        return None
    # albumentationsxl takes three seconds to import, so it is imported only for draws.
    from slideio_pipe.augment import compose as drawing

    drawing.check(transform)
    check_colours_only(transform, slide.name)
    colour = drawing.measured(slide, transform)
    size = slide.pyramid.levels[0]
    return drawing.draw(transform, seed=seed, epoch=epoch, slide=slide.name, size=size, colour=colour)


def reached_cells(draws: Draws, tile: int, slide: str) -> NDArray[np.int64]:
    """Return the cells that drawn tiles reach, (n, 4): first column, first row, last column and last row.

    They are relative to the tile, and include what interpolation and blur may need. Raise ConfigError if a draw reaches
    further than a window.
    """
    a, b, c, d, e, f = draws.affines.T
    width, height = draws.canvases.T
    area = a * e - b * d
    # The inverse affine, of the four corners of the canvas.
    x = np.stack([e * (px - c) - b * (py - f) for px, py in ((0, 0), (width, 0), (0, height), (width, height))]) / area
    y = np.stack([a * (py - f) - d * (px - c) for px, py in ((0, 0), (width, 0), (0, height), (width, height))]) / area
    low, high = np.stack([x.min(0), y.min(0)], axis=1), np.stack([x.max(0), y.max(0)], axis=1)
    shrink = np.maximum(1.0, 1 / np.sqrt(np.abs(area)))
    # Tiles that are not resampled, but only turned by quarters or mirrored, need no pixel around them.
    linear = np.abs(np.stack([a, b, d, e]))
    exact = ((linear == 0) | (linear == 1)).all(0) & (np.stack([c, f]) % 1 == 0).all(0)
    margin = np.where(exact, 0.0, 2 + 4 * np.where(shrink > 1 + SAME_RESOLUTION, shrink, 0.0))[:, None]
    first, last = np.floor((low - margin) / tile), np.ceil((high + margin) / tile) - 1
    reached = np.hstack([first, last]).astype(np.int64)
    if np.abs(reached).max() > REACH:
        shown = f"the tile transform shows {REACH} tiles and more beside a stored one"
        raise ConfigError(shown, slide=slide, remedy="limit its scale and shift, or pass the slide in place of the bag")
    return reached
