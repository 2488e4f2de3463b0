"""Where the tiles of one slide are, as a prediction records it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.features.feature_bag import FeatureBag
from slideio_pipe.geometry import Affine, Mpp, Rect
from slideio_pipe.slides.frames import recorded_bounds
from slideio_pipe.tiles.bag import Bag
from slideio_pipe.tiles.tile_bag import TileBag
from slideio_pipe.tiles.tissue_mask import TissueMask


@dataclass(frozen=True, slots=True, eq=False)
class SlideTiles:
    """The tiles of one slide: the fields of a ``Prediction`` that differ between the slides of a patient."""

    slide: str  # its name
    count: int
    coords: NDArray[np.int64] | None  # (count, 2) top-left corners (x, y), level-0 px; None if unknown
    tile_size: float | None  # view px
    affine: Affine  # view px to level-0 px
    view_mpp: Mpp | None
    tissue: TissueMask | None = field(default=None, repr=False)
    content: str | None = field(default=None, repr=False)  # fingerprint of its file or features
    bounds: Rect | None = None

    @classmethod
    def of_bag(cls, bag: Bag, content: str | None, name: str | None = None) -> SlideTiles:
        """Return the tiles of an open bag."""
        made = bag.provenance()
        tissue = bag.grid.mask if isinstance(bag, TileBag) else None
        affine, bounds = _affine(made.get("view") or {}), recorded_bounds(made)
        side = float(bag.shape[-2])
        coords = np.asarray(bag.coords)
        return cls(name or bag.name, len(bag), coords, side, affine, bag.view_mpp, tissue, content, bounds)

    @classmethod
    def of_features(cls, bag: FeatureBag, content: str | None, name: str) -> SlideTiles:
        """Return the tiles of features."""
        # Positions of rotated tiles are known if their view is; else tiles are squares of level 0.
        view = bag.provenance.get("view") or {}
        known = "affine" in view and "grid" in bag.provenance
        side = float(bag.provenance["grid"]["tile_size"]) if known else bag.tile_size_level0
        affine, bounds = _affine(view) if known else Affine(), recorded_bounds(bag.provenance)
        return cls(name, len(bag), bag.coords, side, affine, bag.view_mpp, None, content, bounds)

    def fields(self) -> dict[str, Any]:
        """Return the fields of a ``Prediction``."""
        names = ("slide", "coords", "tile_size", "affine", "view_mpp", "tissue", "content", "bounds")
        return {name: getattr(self, name) for name in names}


def _affine(view: Mapping[str, Any]) -> Affine:
    return Affine.from_tuple(view["affine"]) if view.get("affine") else Affine()
