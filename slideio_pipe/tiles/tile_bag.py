"""The tiles of one slide as a read-only array (N, H, W, 3) uint8; nothing is decoded until it is indexed."""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slideio_pipe.augment.draws import Draws
from slideio_pipe.errors import ConfigError
from slideio_pipe.files import package_versions
from slideio_pipe.geometry import Affine
from slideio_pipe.slides.view import PyramidSource, SlideView
from slideio_pipe.tiles.bag import Label, TargetSource
from slideio_pipe.tiles.drawn_bag import DrawnBag
from slideio_pipe.tiles.grid import TileGrid
from slideio_pipe.tiles.read_plan import ReadPlan


class PlacedSource(TargetSource, Protocol):
    """Boxes and points that can be placed on a slide: ``Annotations``."""

    def on(self, slide: PyramidSource) -> TargetSource: ...


class TileBag(DrawnBag):
    """The tiles of a grid over a view, decoded on demand; pickles by path.

    Parameters
    ----------
    view : SlideView
    grid : TileGrid
        Made for the same view.
    label : int, float or str, optional
        The slide's label.
    patient : str, optional
        Patient of the slide: slides of one patient must not be split between training and test.
    tile_transform : an albumentationsxl transform, optional
        Drawn once per tile, in addition to the view's draw for the whole slide. Its geometry samples the slide: a
        rotated tile has tissue in its corners, not black, and a tile shown smaller is read from a coarser level.
    seed, epoch : int
        Inputs of the tiles' draws, with the slide's name and the tile's number.
    annotations : Annotations, optional
        Boxes and points of the slide: ``bag.targets`` and the batches of a stream have those of each tile, and
        ``bbox_params`` and ``keypoint_params`` of the transform's ``Compose`` decide which.

    Raises
    ------
    ConfigError
        The grid belongs to another view, or the transform gives tiles of different sizes.

    Examples
    --------
    >>> from slideio_pipe import open_slide
    >>> view = open_slide(np.full((300, 500, 3), 7, np.uint8), slide_mpp=0.5).view()
    >>> bag = TileBag(view, TileGrid(view, tile_size=100), label=1)
    >>> bag
    TileBag(array: 15 tiles of 100×100 px at 0.5 µm from level 0, label 1)
    >>> bag[2:4].shape, int(bag[0].max())
    ((2, 100, 100, 3), 7)
    """

    def __init__(
        self,
        view: SlideView,
        grid: TileGrid,
        *,
        label: Label = None,
        patient: str | None = None,
        tile_transform: Any = None,
        seed: int = 0,
        epoch: int = 0,
        annotations: PlacedSource | None = None,
    ) -> None:
        if not isinstance(view, SlideView) or not isinstance(grid, TileGrid):
            raise ConfigError(
                f"a bag of {type(view).__name__} and {type(grid).__name__}",
                remedy="pass slide.view(mpp=…) and a TileGrid over it",
            )
        if grid.view != view:
            raise ConfigError(
                f"the grid was made over {grid.view!r}, not {view!r}",
                slide=view.slide.name,
                remedy="make the grid over the view of the bag",
            )
        super().__init__(view, grid.tile_size, tile_transform=tile_transform, seed=seed, epoch=epoch)
        self.grid, self.label, self.patient, self.view_mpp = grid, label, patient, view.mpp
        self.shape = (len(grid), self.canvas.height, self.canvas.width, 3)
        self.coords, self.grid_index, self.tissue = grid.coords, grid.index, grid.tissue
        self.annotations = None if annotations is None else _placed(annotations, view)
        if annotations is not None:
            _ = self.target_rules  # impossible parameters raise now, not in the first batch
        self.quality = grid.quality

    @classmethod
    def from_coords(cls, view: SlideView, coords: ArrayLike, tile_size: int = 256, **options: Any) -> TileBag:
        """Return the bag of tiles at given level-0 corners (N, 2), x first, in that order.

        Pixels are sampled exactly at the corners, also between pixels of the view; see ``TileGrid.from_coords``.

        Parameters
        ----------
        view, coords, tile_size
            As for ``TileGrid.from_coords``.
        **options
            ``nearest``, as for ``TileGrid.from_coords``; others as for ``TileBag``.
        """
        nearest = bool(options.pop("nearest", False))
        return cls(view, TileGrid.from_coords(view, coords, tile_size, nearest=nearest), **options)

    def at_epoch(self, epoch: int) -> TileBag:
        """Return the bag with the draws of another epoch."""
        made, given = self.__reduce__()
        bag: TileBag = partial(made, epoch=epoch)(*given)
        return bag

    def storage_order(self, indices: ArrayLike) -> NDArray[np.int64]:
        """Return ``indices`` in the order that decodes every stored tile of the slide once."""
        positions = self._positions(indices)
        return positions[self._reader.storage_order(self.grid.origins[positions])]

    def _plan(self, positions: NDArray[np.int64], draws: Draws | None, *, colours: bool) -> ReadPlan | None:
        return self._reader.plan(self.grid.origins[positions], draws=draws, colours=colours)

    def _read_at(
        self,
        positions: NDArray[np.int64],
        draws: Draws | None,
        out: NDArray[np.uint8] | None,
        *,
        threads: int,
        colours: bool,
    ) -> NDArray[np.uint8]:
        plan = self._plan(positions, draws, colours=colours)
        assert plan is not None, "there is at least one tile"
        return self._reader.read_planned(plan, range(len(positions)), out, threads=threads)

    def affines(self, indices: ArrayLike) -> list[Affine]:
        """Return one affine for each of tiles ``indices`` (n,), from its px to level-0 px."""
        positions = self._positions(indices)
        to_level0 = [self.view.affine @ Affine.translation(x, y) for x, y in self.grid.origins[positions].tolist()]
        return self._drawn_affines(positions, to_level0)

    def provenance(self) -> dict[str, Any]:
        """Return JSON values from which the bag can be made again; stores keep them."""
        slide = self.view.slide
        own, view_mpp = slide.mpp, self.view.mpp
        described: dict[str, Any] = {"name": slide.name, "dimensions": list(slide.pyramid.levels[0])}
        described |= {"mpp": None if own is None else list(own), **slide.provenance()}
        described |= {} if slide.bounds is None else {"bounds": list(slide.bounds)}
        return {
            "slide": described,
            "view": {
                "mpp": None if view_mpp is None else list(view_mpp),
                "affine": list(self.view.affine.as_tuple()),
                "level": self.view.level,
                "shrink": list(self.view.choice.shrink),
                "draw": None if self.view.draw is None else self.view.draw.to_json(),
                "outside": self.view.outside,
            },
            "grid": self.grid.provenance(),
            "tissue": None if self.grid.mask is None else self.grid.mask.provenance(),
            "tile_draw": self._tile_provenance(),
            "label": self.label,
            "patient": self.patient,
            "packages": package_versions(),
        }

    def __reduce__(self) -> tuple[Any, ...]:
        drawn = {"tile_transform": self.tile_transform, "seed": self.seed, "epoch": self.epoch}
        known: dict[str, Any] = {"label": self.label, "patient": self.patient, "annotations": self.annotations}
        return partial(TileBag, **known, **drawn), (self.view, self.grid)

    def __repr__(self) -> str:
        n, h, w, _ = self.shape
        at = "" if self.view_mpp is None else f" at {self.view_mpp.mean:.4g} µm"
        label = "" if self.label is None else f", label {self.label}"
        return f"TileBag({self.name}: {n:,} tiles of {w}×{h} px{at} from level {self.view.level}{label})"


def _placed(annotations: Any, view: SlideView) -> TargetSource:
    if not hasattr(annotations, "on") or not hasattr(annotations, "targets"):
        remedy = "pass Annotations.from_geojson(…) or Annotations.from_cells(…)"
        raise ConfigError(f"annotations are a {type(annotations).__name__}", slide=view.slide.name, remedy=remedy)
    placed: TargetSource = annotations.on(view.slide)
    return placed
