"""The tiles of one slide at several magnifications: each with concentric tiles that show a larger field."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from slideio_pipe.augment.draws import Draws
from slideio_pipe.augment.operation_columns import OperationColumns
from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import SAME_RESOLUTION, Mpp
from slideio_pipe.images import picture
from slideio_pipe.slides.backends.base import OnTiming
from slideio_pipe.slides.config import ViewConfig
from slideio_pipe.slides.rescaled_view import rescaled
from slideio_pipe.slides.sampling import Sampler
from slideio_pipe.slides.view import SlideView
from slideio_pipe.tiles.bag import Label, resolutions_text
from slideio_pipe.tiles.grid import TileGrid
from slideio_pipe.tiles.reader import empty_tiles
from slideio_pipe.tiles.tile_bag import PlacedSource, TileBag

# A tile's centre moves by at least this, px of the tile, if its draw shifts it; less are rounding errors.
_SHIFTED_PX = 1e-9


class ContextBag(TileBag):
    """The tiles of a grid at several magnifications, (N, S, H, W, 3) uint8, decoded on demand; pickles by path.

    Tile (k, 0) is that of ``TileBag``; (k, 1) and further show a larger field around its centre at a coarser
    resolution, in as many px. One draw is for all of them: the slide's and the tile's geometry turn about the common
    centre, a shift is the same distance in the slide, and the colours are equal. Beyond the slide's edge is the view's
    colour outside, white by default. Each is read from its own level; scales that are read from one level with the same
    shrink of the decoder share its decoded tiles.

    Parameters
    ----------
    view : SlideView
    grid : TileGrid
        Made for the same view.
    mpp : sequence of float
        µm per px of the scales, ascending. The first is the view's own, before its draw; each further one shows a field
        that is as many times larger as it is coarser.
    nearest : bool
        Read the tiles of further scales at the nearest whole px of their view, as those of a grid: their centres are
        within half a px of the scale. False: at exactly the same centre; pixels between those stored are interpolated,
        which blurs and takes five times as long at 0.5 and 2 µm (``tests/benchmarks/context.py``).
    upsample : bool
        Whether further scales may be finer than the slide, and are then interpolated, with an ``UpsamplingWarning``.
    label, patient, tile_transform, seed, epoch, annotations
        As for ``TileBag``; boxes and points are in px of the first scale.

    Attributes
    ----------
    mpps : tuple of Mpp
        The exact resolution of each scale, µm per tile px; ``view_mpp`` is the first.
    nominal_mpps : tuple of float
        ``mpp`` as given: the same for all slides of a cohort.

    Raises
    ------
    ConfigError
        The resolutions are not ascending numbers that begin with the view's, one is finer than the slide, or as for
        ``TileBag``.
    MissingResolutionError
        The resolution of the slide is not known.

    Examples
    --------
    >>> from slideio_pipe import open_slide
    >>> view = open_slide(np.full((300, 500, 3), 7, np.uint8), slide_mpp=0.5).view(mpp=0.5)
    >>> bag = ContextBag(view, TileGrid(view, tile_size=100), mpp=[0.5, 2.0], label=1)
    >>> bag
    ContextBag(array: 15 tiles of 100×100 px at 0.5 and 2 µm, label 1)
    >>> bag[2:4].shape, bag.at(1)
    ((2, 2, 100, 100, 3), TileBag(array: 15 tiles of 100×100 px at 2 µm from level 0, label 1))
    """

    ndim = 5

    def __init__(
        self,
        view: SlideView,
        grid: TileGrid,
        *,
        mpp: Sequence[float],
        nearest: bool = True,
        upsample: bool = False,
        label: Label = None,
        patient: str | None = None,
        tile_transform: Any = None,
        seed: int = 0,
        epoch: int = 0,
        annotations: PlacedSource | None = None,
    ) -> None:
        drawn: dict[str, Any] = {"tile_transform": tile_transform, "seed": seed, "epoch": epoch}
        self._scales: tuple[TileBag, ...] = ()
        first = TileBag(view, grid, label=label, patient=patient, **drawn)
        self.nominal_mpps, self.nearest, self.upsample = _checked(mpp, view, upsample), nearest, upsample
        further = (rescaled(view, coarse) for coarse in self.nominal_mpps[1:])
        self._scales = (first, *(_FurtherScale(first, coarser, nearest) for coarser in further))
        _share_stored_tiles(self._scales)
        super().__init__(view, grid, label=label, patient=patient, annotations=annotations, **drawn)
        self.shape = (len(grid), len(self._scales), *first.shape[1:])
        self.mpps = tuple(scale.view_mpp for scale in self._scales if scale.view_mpp is not None)

    def at(self, scale: int) -> TileBag:
        """Return the tiles of one scale, (N, H, W, 3), as a bag; 0 is the finest."""
        return self._current()[scale]

    def plan_ahead(self, indices: ArrayLike, *, colours: bool = True) -> None:
        """Draw tiles (n,) that will be read, and plan their reading, at all scales."""
        for scale in self._current():
            scale.plan_ahead(indices, colours=colours)

    def _current(self) -> tuple[TileBag, ...]:
        """Return the scales, with the seed and the epoch that the bag has now."""
        for scale in self._scales:
            scale.seed, scale.epoch = self.seed, self.epoch
        return self._scales

    def _read(
        self, indices: ArrayLike, out: NDArray[np.uint8] | None, *, threads: int, colours: bool
    ) -> NDArray[np.uint8]:
        positions = self._positions(indices)
        shape = (len(positions), *self.shape[1:])
        if out is None:
            out = empty_tiles(shape, self.name)
        elif out.shape != shape or out.dtype != np.uint8 or not (out.flags.c_contiguous and out.flags.writeable):
            raise ConfigError(
                f"out has shape {out.shape} and type {out.dtype}, or is not C-contiguous and writeable",
                slide=self.name,
                remedy=f"pass uint8 {shape}",
            )
        for number, scale in enumerate(self._current()):
            scale._read(positions, out[:, number], threads=threads, colours=colours)
        return out

    def colour_columns(self, indices: ArrayLike) -> OperationColumns:
        """Return the operations of tiles (n,), one row for each scale of each tile, or one row for all of them."""
        columns, scales = super().colour_columns(indices), len(self._scales)
        if columns.shared:
            return columns
        return OperationColumns(np.repeat(columns.kinds, scales, axis=0), np.repeat(columns.numbers, scales, axis=0))

    def _place(self, tile: int) -> tuple[Draws, int]:
        return self._current()[0]._place(tile)

    def _run(self, tiles: list[int]) -> Draws:
        return self._current()[0]._run(tiles)

    @property
    def on_stage(self) -> OnTiming | None:
        """What receives the timing of stages, of all scales."""
        return self._scales[0].on_stage if self._scales else None

    @on_stage.setter
    def on_stage(self, on_stage: OnTiming | None) -> None:
        for scale in self._scales:
            scale.on_stage = on_stage

    def plot(self, count: int = 8, tile_px: int = 128, *, titled: bool = True) -> Image.Image:
        """Return a montage of at most ``count`` tiles, the scales of each side by side, and a title.

        In further scales a box marks the field of the first one. Without title, it is the montage alone.
        """
        chosen = np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(np.int64))
        rows = [self._row(tile, tile_px) for tile in self.read(chosen)]
        if not rows:
            return picture.montage(np.empty((0, *self.shape[2:]), np.uint8), tile_px=tile_px)
        columns = math.ceil(math.sqrt(len(rows) / len(self._scales)))
        lines = [picture.beside(rows[k : k + columns]) for k in range(0, len(rows), columns)]
        image = picture.above(lines, gap=6)
        if not titled:
            return image
        some = f"{len(chosen):,} of {len(self):,} tiles" if len(chosen) < len(self) else f"{len(self):,} tiles"
        return picture.finished(image, f"{self.name}: {some} at {resolutions_text(self.mpps)}", titled=True)

    def _row(self, tile: NDArray[np.uint8], tile_px: int) -> Image.Image:
        """Return the scales of one tile side by side."""
        shown = [picture.fit(pixels, tile_px) for pixels in tile]
        (fine_x, fine_y), (width, height) = self.mpps[0], shown[0].size
        for number, mpp in enumerate(self.mpps[1:], 1):
            box = (width * fine_x / mpp.x, height * fine_y / mpp.y)
            corner = ((width - box[0]) / 2, (height - box[1]) / 2)
            shown[number] = picture.draw_boxes(shown[number], [[*corner, *box]])
        return picture.beside(shown, gap=3)

    def provenance(self) -> dict[str, Any]:
        """Return JSON values from which the bag can be made again; stores keep them."""
        views = [
            {"level": scale.view.level, "shrink": list(scale.view.choice.shrink), "affine": list(scale.view.affine)}
            for scale in self._scales
        ]
        context = {"mpp": list(self.nominal_mpps), "mpps": [list(mpp) for mpp in self.mpps], "nearest": self.nearest}
        context |= {"views": views}
        return super().provenance() | {"context": context}

    def __reduce__(self) -> tuple[Any, ...]:
        drawn: dict[str, Any] = {"tile_transform": self.tile_transform, "seed": self.seed, "epoch": self.epoch}
        scales: dict[str, Any] = {"mpp": self.nominal_mpps, "nearest": self.nearest, "upsample": self.upsample}
        about: dict[str, Any] = {"label": self.label, "patient": self.patient, "annotations": self.annotations}
        return partial(ContextBag, **scales, **about, **drawn), (self.view, self.grid)

    def __repr__(self) -> str:
        height, width = self.shape[2:4]
        label = "" if self.label is None else f", label {self.label}"
        at = resolutions_text(self.mpps)
        return f"ContextBag({self.name}: {len(self):,} tiles of {width}×{height} px at {at}{label})"


def bag_of(view: SlideView, grid: TileGrid, config: ViewConfig, **options: Any) -> TileBag:
    """Return the bag of a grid over a view of these settings: a ``ContextBag`` if they have further magnifications.

    Parameters
    ----------
    view, grid, options
        As for ``TileBag``.
    config : ViewConfig
    """
    if not config.context:
        return TileBag(view, grid, **options)
    first = plain_mpp(view).mean if config.mpp is None else config.mpp
    return ContextBag(view, grid, mpp=[first, *config.context], **options)


def plain_mpp(view: SlideView) -> Mpp:
    """Return the resolution of a view before its draw, whose zoom changes it."""
    own, (across, down) = view.slide.require_mpp(), view.downsample
    return Mpp(own.x * across, own.y * down)


class _FurtherScale(TileBag):
    """The tiles around those of ``first`` in a view of the same slide, with the draws of ``first``."""

    def __init__(self, first: TileBag, view: SlideView, nearest: bool) -> None:
        self._first, self._nearest = first, nearest
        across, down = (fine / coarse for fine, coarse in zip(first.view.downsample, view.downsample, strict=True))
        self._per_first = (across, down)  # px of this scale per px of the first
        drawn: dict[str, Any] = {"tile_transform": first.tile_transform, "seed": first.seed, "epoch": first.epoch}
        grid = first.grid.concentric(view, nearest=nearest)
        super().__init__(view, grid, label=first.label, patient=first.patient, **drawn)

    def _place(self, tile: int) -> tuple[Draws, int]:
        return self._run([tile]), 0

    def _run(self, tiles: list[int]) -> Draws:
        draws = self._first._run(tiles)
        a, b, c, d, e, f = draws.affines.T
        middle = self.tile_size / 2
        shifts = np.stack([(a + b) * middle + c, (d + e) * middle + f], axis=1) - draws.canvases / 2
        if (np.abs(shifts) < _SHIFTED_PX).all():
            return draws
        affines = draws.affines.copy()
        affines[:, (2, 5)] += shifts * (np.array(self._per_first) - 1)
        return draws.with_affines(affines)

    def __reduce__(self) -> tuple[Any, ...]:
        return _FurtherScale, (self._first, self.view, self._nearest)


def _share_stored_tiles(scales: Sequence[TileBag]) -> None:
    """Keep decoded stored tiles: of further scales, whose tiles overlap, and of the first where one shares its level.

    Scales share decoded tiles if they read a level with the same shrink of the decoder.
    """
    levels = [(scale.view.level, Sampler(scale.view.slide).decoder_shrink(scale.view.choice)) for scale in scales]
    for number, scale in enumerate(scales):
        scale.keep_stored_tiles = number > 0 or levels.count(levels[0]) > 1


def _checked(mpp: Sequence[float], view: SlideView, upsample: bool) -> tuple[float, ...]:
    """Return the resolutions of a bag; raise ConfigError if they are impossible for a view."""
    name = view.slide.name if isinstance(view, SlideView) else None
    remedy = "pass ascending µm per px that begin with the view's, such as [0.5, 2.0]"
    listed = isinstance(mpp, Sequence | np.ndarray) and not isinstance(mpp, str)
    values = list(mpp) if listed else []
    if not values or not all(
        isinstance(value, Real) and value is not True and math.isfinite(value) and value > 0 for value in values
    ):
        raise ConfigError(f"the magnifications of a bag are {mpp!r}", slide=name, remedy=remedy)
    mpps = tuple(float(value) for value in values)
    for finer, coarser in pairwise(mpps):
        if coarser <= finer * (1 + SAME_RESOLUTION):
            what = "is the same as" if coarser >= finer * (1 - SAME_RESOLUTION) else "is finer than"
            raise ConfigError(f"{coarser:g} µm {what} the {finer:g} µm before it", slide=name, remedy=remedy)
    own, plain = view.slide.require_mpp(), plain_mpp(view).mean
    if abs(mpps[0] / plain - 1) > SAME_RESOLUTION:
        reason = f"the tiles of the grid are at {plain:.4g} µm, and the first of the magnifications is {mpps[0]:g} µm"
        raise ConfigError(reason, slide=name, remedy=remedy)
    for further in mpps[1:]:
        if further * (1 + SAME_RESOLUTION) < own.mean and not upsample:
            raise ConfigError(
                f"{further:g} µm is finer than the slide, which was scanned at {own.mean:.4g} µm",
                slide=name,
                remedy=f"pass {own.mean:.3g} µm or more, or upsample=True to interpolate",
            )
    return mpps
