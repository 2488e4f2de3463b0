"""Where a slide's resolution comes from: the argument, the header, the objective, or nowhere."""

from __future__ import annotations

import math
import warnings

from slideio_pipe.backends.base import MAX_PLAUSIBLE_MPP, Facts
from slideio_pipe.errors import EstimatedResolutionWarning
from slideio_pipe.geometry import Mpp, magnification_to_mpp

# 72 dots per inch, what image software writes when nobody said anything.
_MPP_OF_72_DPI = 25_400 / 72
_SLIDE_SIZED_PX = 2048


def resolve_mpp(facts: Facts, given: Mpp | None, name: str, default: Mpp | None = None) -> tuple[Mpp | None, str]:
    """Return the resolution and where it came from: argument, metadata, default, objective power, nowhere."""
    if given is not None:
        return given, "slide_mpp argument"
    if facts.mpp is not None and _plausible(facts.mpp, facts):
        return facts.mpp, "file"
    if default is not None:
        return default, "default_mpp argument"
    stated = "none stated" if facts.mpp is None else f"{facts.mpp.mean:.4g} µm stated, which no scanner has"
    if facts.objective_power and 0 < facts.objective_power < math.inf:
        mpp = magnification_to_mpp(facts.objective_power)
        warnings.warn(
            EstimatedResolutionWarning(
                f"{name}: {stated}; using {mpp:g} µm, estimated from the {facts.objective_power:g}× objective"
            ),
            stacklevel=4,
        )
        return Mpp(mpp, mpp), "objective power (estimate)"
    return None, stated


def _plausible(mpp: Mpp, facts: Facts) -> bool:
    if not all(math.isfinite(side) and side > 0 for side in mpp):
        return False
    if facts.vendor == "dicom":
        return True
    if any(abs(side - _MPP_OF_72_DPI) < 0.01 * _MPP_OF_72_DPI for side in mpp):
        return False
    return max(mpp) <= MAX_PLAUSIBLE_MPP or max(facts.pyramid.levels[0]) < _SLIDE_SIZED_PX
