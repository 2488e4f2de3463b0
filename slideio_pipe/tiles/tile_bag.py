"""The tiles of one slide as a read-only array (N, H, W, 3) uint8; nothing is decoded until it is indexed."""

from __future__ import annotations

import json
import time
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slideio_pipe.augment.draw import Draw
from slideio_pipe.augment.operations import Opaque, Operation
from slideio_pipe.errors import ConfigError
from slideio_pipe.files import package_versions
from slideio_pipe.geometry import Affine, Size
from slideio_pipe.slides.backends.base import OnTiming
from slideio_pipe.slides.view import SlideView
from slideio_pipe.tiles.bag import ArrayLikeBag, Label
from slideio_pipe.tiles.grid import TileGrid
from slideio_pipe.tiles.reader import TileReader

# Drawing takes 0.1 to 0.4 ms, and is needed for a tile's pixels, colours and labels: recent draws are cached.
_DRAWS_KEPT = 1024


class TileBag(ArrayLikeBag):
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
        self.view, self.grid, self.label, self.patient = view, grid, label, patient
        self.name, self.view_mpp = view.slide.name, view.mpp
        self.tile_transform, self.seed, self.epoch = tile_transform, int(seed), int(epoch)
        self.on_stage: OnTiming | None = None  # receives the timing of stages; set it before the first read
        self._drawn: dict[tuple[int, int, int], Draw] = {}
        canvas = Size(grid.tile_size, grid.tile_size) if tile_transform is None else self.draw(0).canvas
        self.shape = (len(grid), canvas.height, canvas.width, 3)
        self.coords, self.grid_index, self.tissue = grid.coords, grid.index, grid.tissue

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

    def draw(self, index: int) -> Draw:
        """Return the draw of the tile transform for tile ``index``; always the same."""
        key = (int(index), self.seed, self.epoch)
        found = self._drawn.get(key)
        if found is None:
            if len(self._drawn) >= _DRAWS_KEPT:
                self._drawn.clear()
            found = self._drawn[key] = self._draw(int(index))
        return found

    def _draw(self, index: int) -> Draw:
        # albumentationsxl takes three seconds to import, so it is imported only for draws.
        from slideio_pipe.augment.compose import draw, measured

        size = Size(self.grid.tile_size, self.grid.tile_size)
        colour = measured(self.view.slide, self.tile_transform)
        return draw(
            self.tile_transform, seed=self.seed, epoch=self.epoch, slide=self.name, tile=index, size=size, colour=colour
        )

    @cached_property
    def _reader(self) -> TileReader:
        return TileReader(self.view, self.grid.tile_size, on_stage=self.on_stage)

    def read(self, indices: ArrayLike, out: NDArray[np.uint8] | None = None, *, threads: int = 1) -> NDArray[np.uint8]:
        """Return tiles ``indices`` (n,), decoded in storage order into ``out`` (n, H, W, 3) uint8.

        Raises
        ------
        CorruptSlideError
            A tile cannot be decoded.
        """
        return self._read(indices, out, threads=threads, colours=True)

    def storage_order(self, indices: ArrayLike) -> NDArray[np.int64]:
        """Return ``indices`` in the order that decodes every stored tile of the slide once."""
        positions = np.arange(len(self), dtype=np.int64)[np.asarray(indices, np.int64)]
        return positions[self._reader.storage_order(self.grid.origins[positions])]

    def operations(self, index: int) -> tuple[Operation, ...]:
        """Return every colour operation of tile ``index``, the view's first: those that ``read_uncoloured`` skips."""
        view = () if self.view.draw is None else self.view.draw.operations
        return view if self.tile_transform is None else view + self.draw(index).operations

    @property
    def host_only(self) -> tuple[str, ...]:
        """Names of the transforms, of the view or of the tiles, that run only as libvips graphs, not on a device."""
        drawn = () if self.view.draw is None else self.view.draw.operations
        names = [operation.name for operation in drawn if isinstance(operation, Opaque)]
        if self.tile_transform is not None:
            from slideio_pipe.augment.albumentations import verdict  # imports albumentationsxl
            from slideio_pipe.augment.compose import leaves

            names += [type(leaf).__name__ for leaf in leaves(self.tile_transform) if verdict(leaf).kind == "opaque"]
        return tuple(dict.fromkeys(names))

    def read_uncoloured(
        self, indices: ArrayLike, out: NDArray[np.uint8] | None = None, *, threads: int = 1
    ) -> NDArray[np.uint8]:
        """Return tiles as ``read`` does, with geometry but with the slide's own colours, to be coloured on a device."""
        return self._read(indices, out, threads=threads, colours=False)

    def _read(
        self, indices: ArrayLike, out: NDArray[np.uint8] | None, *, threads: int, colours: bool
    ) -> NDArray[np.uint8]:
        positions = np.arange(len(self))[np.asarray(indices, np.int64)]  # negative indices count from the end
        begun = time.perf_counter() if self.on_stage else 0.0
        draws = self._draws(positions)
        if self.on_stage and draws:
            self.on_stage("augment", begun, time.perf_counter())
        if not positions.size:
            return np.empty((0, *self.shape[1:]), np.uint8) if out is None else out
        return self._reader.read(self.grid.origins[positions], out, draws=draws, colours=colours, threads=threads)

    def _draws(self, positions: NDArray[np.int64]) -> list[Draw] | None:
        if self.tile_transform is None:
            return None
        draws = [self.draw(int(k)) for k in positions]
        height, width = self.shape[1:3]
        if any(draw.canvas != (width, height) for draw in draws):
            raise ConfigError(
                "the tile transform draws tiles of different sizes",
                slide=self.name,
                remedy="end it with Resize(height, width) or RandomResizedCrop(size)",
            )
        return draws

    def affines(self, indices: ArrayLike) -> list[Affine]:
        """Return one affine for each of tiles ``indices`` (n,), from its px to level-0 px."""
        positions = np.arange(len(self))[np.asarray(indices, np.int64)]
        draws = self._draws(positions)
        to_level0 = [self.view.affine @ Affine.translation(x, y) for x, y in self.grid.origins[positions].tolist()]
        if draws is None:
            return to_level0
        return [
            affine @ Affine.from_tuple(draw.affine).inverse() for affine, draw in zip(to_level0, draws, strict=True)
        ]

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

    def _tile_provenance(self) -> dict[str, Any] | None:
        """Return the tile transform as serialised by albumentationsxl, and the inputs of its draws."""
        if self.tile_transform is None:
            return None
        written = self.tile_transform.to_dict()["transform"]
        return {"transform": json.loads(json.dumps(written)), "seed": self.seed, "epoch": self.epoch}

    def __reduce__(self) -> tuple[Any, ...]:
        drawn = {"tile_transform": self.tile_transform, "seed": self.seed, "epoch": self.epoch}
        return partial(TileBag, label=self.label, patient=self.patient, **drawn), (self.view, self.grid)

    def __repr__(self) -> str:
        n, h, w, _ = self.shape
        at = "" if self.view_mpp is None else f" at {self.view_mpp.mean:.4g} µm"
        label = "" if self.label is None else f", label {self.label}"
        return f"TileBag({self.name}: {n:,} tiles of {w}×{h} px{at} from level {self.view.level}{label})"
