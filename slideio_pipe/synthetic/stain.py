"""Staining of a laboratory and colour of its scanner: stain uptake and optical densities."""

from __future__ import annotations

import math
from typing import NamedTuple

# Ruifrok & Johnston, Anal. Quant. Cytol. Histol. 23 (2001): optical densities of red, green, blue per unit of stain.
HAEMATOXYLIN = (0.65, 0.70, 0.29)
EOSIN = (0.07, 0.99, 0.11)
# Eosin on a scanner is salmon, not magenta: part of its absorbance is along their third, brown vector.
RESIDUAL = (0.27, 0.57, 0.78)
RESIDUAL_OF_EOSIN = 0.36


class Staining(NamedTuple):
    """Staining of a laboratory and colour of its scanner; the defaults are those of a slide without ``stain``."""

    haematoxylin: float = 1.0  # times as strong
    eosin: float = 1.0
    hue: float = 0.0  # rad, rotation of optical densities about grey: > 0 makes pink redder, < 0 more violet

    def densities(self) -> list[tuple[float, float]]:
        """Return the optical density of a unit of haematoxylin and of eosin, for red, green and blue."""
        c, s = math.cos(self.hue), math.sin(self.hue)
        even, turn = (1 - c) / 3, s / math.sqrt(3)
        stains = HAEMATOXYLIN, tuple(e + RESIDUAL_OF_EOSIN * r for e, r in zip(EOSIN, RESIDUAL, strict=True))
        # Rodrigues rotation about (1, 1, 1): c of the channel itself, and parts of its neighbours.
        h, e = ([c * v[i] + even * sum(v) + turn * (v[i - 1] - v[i - 2]) for i in range(3)] for v in stains)
        return [(max(0.0, self.haematoxylin * x), max(0.0, self.eosin * y)) for x, y in zip(h, e, strict=True)]


# The same tissue in other laboratories; `tests/benchmarks/mil.py stain` measures the effect on a model.
LABORATORIES = {
    "usual": Staining(),
    "faded": Staining(haematoxylin=0.6),  # bleached by light, or too short in haematoxylin
    "thick": Staining(haematoxylin=1.4, eosin=1.4),  # sections of 5 µm instead of 3.5
    "violet": Staining(hue=-0.15),  # another eosin, or another scanner
    "far": Staining(haematoxylin=0.55, eosin=1.4, hue=-0.15),  # faded, heavy eosin, another scanner
}
