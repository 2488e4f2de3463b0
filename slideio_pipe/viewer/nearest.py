"""Tiles of a bag that look alike: the nearest by the cosine of their features."""

from __future__ import annotations

from typing import Any

import numpy as np

from slideio_pipe.errors import ConfigError

COUNT = 8


def encoders_of(source: Any) -> tuple[str, ...]:
    """Return the encoders whose features a bag has."""
    return tuple(getattr(source, "encoders", ()))


def nearest_tiles(source: Any, number: int, encoder: str | None = None) -> dict[str, Any]:
    """Return the tiles whose features have the largest cosine with those of a tile, itself left out.

    Raises
    ------
    ConfigError
        The bag has no features, or no such tile.
    """
    known = encoders_of(source)
    if not known:
        remedy = "store them: slideio-pipe features BAG --encoder ENCODER"
        raise ConfigError("the bag has no features", remedy=remedy)
    chosen = encoder or known[0]
    if chosen not in known:
        raise ConfigError(f"no features of {chosen}", remedy=f"there are those of {', '.join(known)}")
    features = np.asarray(source.features(chosen), np.float32)
    if not 0 <= number < len(features):
        raise ConfigError(f"no tile {number}", remedy="click another one")
    lengths = np.linalg.norm(features, axis=1)
    cosines = features @ features[number] / np.maximum(lengths * lengths[number], 1e-12)
    cosines[number] = -np.inf
    best = np.argsort(-cosines, kind="stable")[: min(COUNT, len(features) - 1)]
    return {"encoder": chosen, "tiles": best.tolist(), "cosines": [round(float(cosines[k]), 4) for k in best]}
