"""The cases of the benchmark: tiles of a slide, their resolution, and the required speed-up over other readers."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.errors import ConfigError, EmptyTissueWarning
from slideio_pipe.slides.slide import Slide
from slideio_pipe.tiles.find_tissue import find_tissue
from slideio_pipe.tiles.tissue_mask import TissueMask

TILE = 256  # px
# 0.6 µm of a scan at 0.25 µm: 600 px of level 0 become 250.
FRACTIONAL_TILE, FRACTION = 250, 2.4
OFF_GRID = (100, 60)  # px from the stored grid, x and y: every tile overlaps four stored ones


@dataclass(frozen=True)
class Case:
    """One comparison; ``wanted`` is the required ratio of each reader's CPU-seconds to ours."""

    name: str
    title: str
    wanted: dict[str, float] = field(default_factory=dict)


CASES = {
    case.name: case
    for case in (
        Case(
            "aligned",
            "stored tiles at native resolution, in raster order",
            {"cucim": 1.05, "openslide": 8.0, "simplejpeg": 0.95},
        ),
        Case("half", f"{TILE} px at half the stored resolution", {"cucim": 1.6, "openslide": 15.0}),
        Case("fractional", f"{FRACTIONAL_TILE} px at {FRACTION} times the stored mpp, side by side", {"cucim": 3.0}),
        Case("off-grid", f"{TILE} px off the stored grid, side by side, in raster order", {"cucim": 1.8}),
        Case("sparse", f"a tenth of the tiles off the stored grid, {TILE} px, in random order", {"cucim": 1.0}),
        Case("threads", "two threads over one: stored tiles, wall time", {"slideio_pipe": 1.8}),
        Case("memory", "resident memory of streaming a bag of 20,000 tiles of 1024 px"),
        Case("slides", "resident memory over 200 slides opened, read and closed"),
    )
}
READING = ("aligned", "half", "fractional", "off-grid", "sparse")


@dataclass(frozen=True)
class Tiles:
    """The tiles of a reading case."""

    tile: int  # px
    shrink: float  # level-0 px per tile px
    origins: NDArray[np.int64]  # (n, 2) top-left corners, level-0 px, in reading order


def tiles_of(case: str, slide: Slide, tissue: TissueMask, count: int) -> Tiles:
    """Return at most ``count`` tiles of tissue for a case; equal arguments give equal tiles.

    Dense cases use neighbours from the middle of the raster order; "sparse" draws from the whole slide. Raise
    ConfigError if no such tile fits into the slide.
    """
    stored = slide.tile_sizes[0].width
    tile = stored if case in ("aligned", "threads") else FRACTIONAL_TILE if case == "fractional" else TILE
    shrink = {"half": 2.0, "fractional": FRACTION}.get(case, 1.0)
    first = OFF_GRID if case in ("off-grid", "sparse") else (0, 0)
    side = round(tile * shrink)
    starts = [np.arange(start, length - side + 1, side) for start, length in zip(first, slide.dimensions, strict=True)]
    origins = np.stack([axis.ravel() for axis in np.meshgrid(*starts)], axis=1).astype(np.int64)
    if len(origins):
        rects = np.hstack([origins, np.full_like(origins, side)]).astype(np.float64)
        origins = origins[tissue.fractions(rects) >= 0.5]
    if not len(origins):
        raise ConfigError(
            f'no tissue tile of {side} px for the case "{case}"',
            slide=slide.name,
            remedy="take a slide with more tissue, or leave the case out",
        )
    if case == "sparse":
        chosen = np.random.default_rng(0).permutation(len(origins))[: max(1, len(origins) // 10)]
        return Tiles(tile, shrink, origins[chosen[:count]])
    start = max(0, (len(origins) - count) // 2)
    return Tiles(tile, shrink, origins[start : start + count])


def tissue_of(slide: Slide) -> TissueMask:
    """Return the tissue of a slide; the whole slide if none is found, because tiles are needed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EmptyTissueWarning)
        mask = find_tissue(slide)
    return find_tissue(slide, method="none") if mask.is_empty else mask
