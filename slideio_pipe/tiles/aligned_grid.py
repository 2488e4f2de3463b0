"""Settings of a grid aligned to the tiles that a file stores."""

from __future__ import annotations

import math
from typing import Any

from slideio_pipe.config import checked
from slideio_pipe.errors import ConfigError
from slideio_pipe.slides.view import SlideView
from slideio_pipe.tiles.config import GridConfig


def aligned(view: SlideView, config: GridConfig) -> tuple[GridConfig, dict[str, tuple[Any, Any]]]:
    """Return the nearest grid on the stored tiles of the view's level, and the changes: {name: (requested, used)}."""
    if view.draw is not None and view.draw.moves:
        reason = "the slide's transform moves pixels, so no tile of the view is a stored one"
        raise ConfigError(
            reason, slide=view.slide.name, remedy="leave out {align=True}, or leave the geometry to a tile transform"
        )
    if view.choice.resampled:
        raise ConfigError(
            f"the view is resampled from level {view.level} ({view.choice.shrink[0]:.4g}×), so no tile of it is stored",
            slide=view.slide.name,
            remedy=f"pass {stored_resolutions(view)}, or leave out {{align=True}}",
        )
    side, height = view.slide.tile_sizes[view.level]
    if side != height:
        reason = f"level {view.level} is stored in tiles of {side}×{height} px, not square ones"
        raise ConfigError(reason, slide=view.slide.name, remedy="leave out {align=True}")
    stride = config.step if config.stride is not None or config.overlap is not None else None
    aligned: dict[str, Any] = {"tile_size": side}
    aligned["stride"] = None if stride is None else side * max(1, math.floor(stride / side + 0.5))
    aligned["edge"] = "drop" if config.edge == "shift" else config.edge
    requested = {"tile_size": config.tile_size, "stride": stride, "edge": config.edge}
    changes = {what: (requested[what], value) for what, value in aligned.items() if value != requested[what]}
    return checked(GridConfig, view.slide.name, **config.model_dump() | aligned | {"overlap": None}), changes


def stored_resolutions(view: SlideView) -> str:
    """Return the values of ``mpp`` for which stored pixels are used unchanged, as text: "{mpp=0.25, 1 or 4}"."""
    own, downsamples = view.slide.mpp, view.slide.pyramid.downsamples
    if own is None:
        return "{mpp=None} for level 0"
    *first, last = [f"{own.mean * (dx + dy) / 2:.4g}" for dx, dy in downsamples]
    return f"{{mpp={', '.join(first)} or {last}}}" if first else f"{{mpp={last}}}"
