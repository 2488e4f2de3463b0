"""The tissue fraction of tiles of a view."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.errors import ConfigError
from slideio_pipe.slides.view import SlideView
from slideio_pipe.tiles.tissue_mask import TissueMask


def check_mask(tissue: TissueMask | None, view: SlideView) -> None:
    """Refuse the mask of another slide: it would silently select wrong tiles."""
    if tissue is None:
        return
    if not isinstance(tissue, TissueMask):
        raise ConfigError(
            f"tissue is a {type(tissue).__name__}", slide=view.slide.name, remedy="pass find_tissue(slide)"
        )
    size, name = view.slide.pyramid.levels[0], view.slide.name
    if tissue.slide_size != size or tissue.slide_name not in ("", name):
        raise ConfigError(
            f"the tissue mask is of {tissue.slide_name or 'another slide'}, {tissue.slide_size.width}×"
            f"{tissue.slide_size.height} px",
            slide=name,
            remedy="find tissue in the slide that is tiled",
        )


def tissue_fractions(
    view: SlideView, tissue: TissueMask, origins: NDArray[np.int64], tile_size: int
) -> NDArray[np.float32]:
    """Return the tissue fraction of every tile; if the view rotates the slide, the mask is rotated too."""
    if not view.moves:
        return tissue.fractions(_rects_level0(view, origins, tile_size))
    return tissue.through(view).fractions(np.hstack([origins, np.full_like(origins, tile_size)]))


def _rects_level0(view: SlideView, origins: NDArray[np.int64], tile_size: int) -> NDArray[np.float64]:
    corners = view.affine.apply(origins)
    far = view.affine.apply(origins + tile_size)
    return np.concatenate([corners, far - corners], axis=1)
