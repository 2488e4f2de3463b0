"""Measure the quality of a bag's tiles, and keep the tiles of a grid that are good enough."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.config import checked
from slideio_pipe.cores import decoding_threads
from slideio_pipe.errors import ConfigError
from slideio_pipe.slides.slide import Slide
from slideio_pipe.tiles.bag import ArrayLikeBag, Bag, check_bag, quality_of
from slideio_pipe.tiles.config import QualityConfig
from slideio_pipe.tiles.grid import TileGrid
from slideio_pipe.tiles.patient_bag import PatientBag
from slideio_pipe.tiles.quality.cell_map import TilePlaces
from slideio_pipe.tiles.quality.pixel_quality import quality_of_pixels
from slideio_pipe.tiles.quality.refused_tiles import RefusedTiles
from slideio_pipe.tiles.quality.slide_quality import SlideQuality
from slideio_pipe.tiles.quality.tile_quality import FOCUS_MPP, TileQuality, checked_names, joined
from slideio_pipe.tiles.tile_bag import TileBag

_LOG = logging.getLogger(__name__)


def tile_quality(
    bag: Bag, names: Iterable[str] | None = None, *, on_error: str = "raise", threads: int | None = None
) -> TileQuality:
    """Return how good the tiles of a bag are: focus, pen, folds, bubbles and white, (N,) each.

    The bag keeps the numbers as ``bag.quality``, and ``save_bag`` stores them. They describe the slide where the tiles
    are, whatever the view's or the tiles' transforms draw; tiles are not read. Of a stored bag without numbers, they
    are measured in the tiles' own pixels.

    Parameters
    ----------
    bag : TileBag, StoredBag, AugmentedBag or PatientBag
    names : iterable of str, optional
        The numbers to measure, of "focus", "pen", "fold", "bubble" and "white"; all by default. All but "focus" need
        only an overview of the slide.
    on_error : {"raise", "white"}
        "white" treats places that cannot be decoded as glass.
    threads : int, optional
        Number of decoding threads; by default all cores.

    Raises
    ------
    ConfigError
        A name is unknown, or the resolution of the bag is not known.
    CorruptSlideError
        A place of the slide cannot be decoded.

    Examples
    --------
    >>> from slideio_pipe import TileBag, TileGrid, open_slide
    >>> pixels = np.full((512, 512, 3), 243, np.uint8)
    >>> pixels[:, :256] = 150, 80, 140
    >>> view = open_slide(pixels, slide_mpp=1.0).view()
    >>> quality = tile_quality(TileBag(view, TileGrid(view, tile_size=256)))
    >>> quality.white.tolist(), quality.pen.tolist()
    ([0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0])
    """
    check_bag(bag)
    chosen = checked_names(names)
    if isinstance(bag, PatientBag):
        each = [tile_quality(slide, chosen, on_error=on_error, threads=threads) for slide in bag.slides]
        bag.quality = joined(each)
        assert bag.quality is not None  # each slide has one
        return bag.quality
    stored, known = getattr(bag, "stored", None), quality_of(bag)  # an AugmentedBag's tiles are the stored ones
    have = {} if known is None else known.measured
    missing = [name for name in chosen if name not in have]
    if known is not None and not missing:
        return known
    if stored is not None:
        found = tile_quality(stored, chosen, on_error=on_error, threads=threads)
    elif isinstance(bag, TileBag):
        found = grid_quality(bag.grid, chosen, on_error=on_error, threads=threads)
    else:
        threads = decoding_threads() if threads is None else threads
        found = TileQuality.of(**(have | quality_of_pixels(bag, missing, threads=threads)))
    if isinstance(bag, ArrayLikeBag):
        bag.quality = found
    return found


def grid_quality(
    grid: TileGrid,
    names: Iterable[str],
    *,
    source: SlideQuality | None = None,
    on_error: str = "raise",
    threads: int | None = None,
) -> TileQuality:
    """Return the quality of a grid's tiles, which the grid keeps; ``source`` has what was measured of its slide."""
    have = {} if grid.quality is None else grid.quality.measured
    missing = [name for name in names if name not in have]
    if missing or grid.quality is None:
        slide = grid.view.slide
        if not isinstance(slide, Slide):
            raise ConfigError("the quality of a grid is that of its slide", slide=slide.name, remedy="pass the bag")
        measured = source or SlideQuality(slide, on_error=on_error, threads=threads)
        places = TilePlaces.of(grid.view.affine, grid.origins, grid.tile_size)
        grid.quality = TileQuality.of(**(have | measured.of(places, missing)))
    return grid.quality


def good_tiles(
    grid: TileGrid,
    *,
    min_focus: float | None = None,
    max_pen: float | None = None,
    max_fold: float | None = None,
    max_bubble: float | None = None,
    max_white: float | None = None,
    on_error: str = "raise",
    threads: int | None = None,
) -> TileGrid:
    """Return the grid of the tiles that are good enough; the slide is read where it was not measured before.

    Parameters
    ----------
    grid : TileGrid
    min_focus : float, optional
        Least variance of the Laplacian; see ``TileQuality``.
    max_pen, max_fold, max_bubble, max_white : float, optional
        Largest fractions of a tile, 0 to 1.
    on_error, threads
        As for ``tile_quality``.

    Returns
    -------
    TileGrid
        With ``quality``, and in ``refused`` the tiles that were dropped and why; its picture shows them.

    Raises
    ------
    ConfigError
        A limit is out of its range, or ``min_focus`` is given and the slide is too coarse to measure it.

    Examples
    --------
    >>> from slideio_pipe import TileGrid, open_slide
    >>> pixels = np.full((512, 512, 3), 243, np.uint8)
    >>> pixels[:, :256] = 150, 80, 140
    >>> grid = good_tiles(TileGrid(open_slide(pixels, slide_mpp=1.0).view(), tile_size=256), max_white=0.5)
    >>> grid.coords.tolist(), grid.refused.reasons
    ([[0, 0], [0, 256]], '2 over max_white 0.5')
    """
    if not isinstance(grid, TileGrid):
        raise ConfigError(f"a {type(grid).__name__} is no grid", remedy="pass a TileGrid")
    limits = {"min_focus": min_focus, "max_pen": max_pen, "max_fold": max_fold}
    limits |= {"max_bubble": max_bubble, "max_white": max_white}
    config = checked(QualityConfig, grid.view.slide.name, **limits)
    return with_quality(grid, config, on_error=on_error, threads=threads)


def with_quality(grid: TileGrid, config: QualityConfig, **measuring: Any) -> TileGrid:
    """Return a grid with its quality, as configured, and without the tiles beyond a limit.

    ``measuring`` is passed to ``grid_quality``.
    """
    if not config.names:
        return grid
    quality, limits = grid_quality(grid, config.names, **measuring), config.limits
    if "min_focus" in limits and len(grid) and np.isnan(quality.focus).all():
        mpp = grid.view.slide.mpp
        scanned = "" if mpp is None else f", and the slide is scanned at {mpp.mean:.3g} µm"
        reason = f"focus is measured at {FOCUS_MPP:g} µm per px{scanned}"
        raise ConfigError(reason, slide=grid.view.slide.name, remedy="leave out {min_focus=}")
    if not limits:
        return grid
    bad, refused = _beyond(grid, quality, limits)
    if len(refused):
        _LOG.info(
            "%s: %d of %d tiles dropped for their quality: %s",
            grid.view.slide.name,
            len(refused),
            len(grid),
            refused.reasons,
        )
    return grid.without(bad, refused)


def _beyond(grid: TileGrid, quality: TileQuality, limits: dict[str, float]) -> tuple[NDArray[np.bool_], RefusedTiles]:
    """Return which tiles are beyond a limit, and their record."""
    beyond = {}
    for name, limit in limits.items():
        bound, _, what = name.partition("_")
        values = quality.columns[what]
        # A fraction is of float32: half a pixel of a mask is a thousand times more.
        beyond[name] = values < limit if bound == "min" else values > limit + 1e-6
    bad = np.any(list(beyond.values()), axis=0)
    counts = {name: int(values.sum()) for name, values in beyond.items()}
    return bad, RefusedTiles(grid.origins[bad], grid.index[bad], limits, counts, len(grid))
