"""Find a slide's resolution and check whether a glass slide under a microscope can have it."""

from __future__ import annotations

import math
import warnings

from slideio_pipe.errors import ConfigError, EstimatedResolutionWarning, ImplausibleResolutionWarning, warn_caller
from slideio_pipe.geometry import Mpp, Size, magnification_to_mpp, too_fine
from slideio_pipe.slides.backends.base import MAX_PLAUSIBLE_MPP, Facts

# Values that image software writes when the resolution is unknown: dpi, and 1 px per mm, per cm and per inch.
_DEFAULT_DPI = (72, 75, 96, 100, 120, 144, 150, 180, 200, 240, 250, 300, 350, 360, 400, 600)
_ONE_PER_UNIT_UM = (1_000.0, 10_000.0, 25_400.0)
_UM_PER_INCH = 25_400.0
_SLIDE_SIZED_PX = 2048
# Glass is 76 × 26 mm (ISO 8037-1: 76.2 × 25.4); its edges and a holder add to a scan.
_GLASS_MM = 80.0
# The largest slides for any scanner: whole mounts of 6 × 8 inches.
_LARGEST_GLASS_MM = 205.0
# Scanners' pixels are square within a few percent; a larger ratio means that one of two tags is wrong.
_MAX_PIXEL_ASPECT = 5.0


def resolve_mpp(facts: Facts, given: Mpp | None, name: str, default: Mpp | None = None) -> tuple[Mpp | None, str]:
    """Return the resolution and its source: argument, metadata, default, objective power, or none.

    Raise ConfigError if ``given`` or ``default`` is used and impossible for a slide.

    Warns
    -----
    ImplausibleResolutionWarning
        It makes the slide longer than usual.
    EstimatedResolutionWarning
    """
    size = facts.pyramid.levels[0]
    if given is not None:
        _check_length(given, size, name, "slide_mpp")
        return given, "slide_mpp argument"
    reason = "" if facts.mpp is None else _reason_against(facts.mpp, facts)
    if facts.mpp is not None and not reason:
        return facts.mpp, "file"
    if default is not None:
        _check_length(default, size, name, "default_mpp")
        return default, "default_mpp argument"
    stated = "none stated" if facts.mpp is None else f"{_text(facts.mpp)} µm stated, {reason}"
    if facts.objective_power and 0 < facts.objective_power < math.inf:
        mpp = magnification_to_mpp(facts.objective_power)
        if not _reason_against(Mpp(mpp, mpp), facts):
            reason = f"{name}: {stated}; using {mpp:g} µm, estimated from the {facts.objective_power:g}× objective"
            warnings.warn(EstimatedResolutionWarning(reason), stacklevel=4)
            return Mpp(mpp, mpp), "objective power (estimate)"
    return None, stated


def checked_mpp(name: str, value: float | tuple[float, float]) -> Mpp:
    """Return a valid resolution given for level 0.

    Raise ConfigError if it is not a resolution, or finer than light resolves.
    """
    mpp = Mpp.parse(value)
    if mpp is None:
        raise ConfigError(f"{{{name}={value!r}}} is no resolution", remedy="pass µm per level-0 pixel, such as 0.25")
    reason = too_fine(min(mpp))
    if reason:
        raise ConfigError(f"{{{name}={value!r}}} is {reason}", remedy="pass µm per level-0 pixel, such as 0.25")
    return mpp


def _check_length(mpp: Mpp, size: Size, slide: str, argument: str) -> None:
    length_mm = _length_mm(mpp, size)
    if length_mm > _GLASS_MM:
        reason = f"{{{argument}={_text(mpp)}}} makes the slide {length_mm:.4g} mm long, glass has 76"
        if length_mm > _LARGEST_GLASS_MM:
            raise ConfigError(reason, slide=slide, remedy="pass µm per level-0 pixel, such as 0.25")
        warn_caller(ImplausibleResolutionWarning(f"{slide}: {reason}; is it a whole mount on large glass?"))


def _length_mm(mpp: Mpp, size: Size) -> float:
    return max(size.width * mpp.x, size.height * mpp.y) / 1000


def _reason_against(mpp: Mpp, facts: Facts) -> str:
    """Return why a resolution stated by the file is impossible, or an empty string."""
    size = facts.pyramid.levels[0]
    if not all(math.isfinite(side) and side > 0 for side in mpp):
        return "which is no resolution"
    if too_fine(min(mpp)):
        return too_fine(min(mpp))
    if facts.vendor != "dicom":  # DICOM requires a spacing: it is never a default
        reason = next(filter(None, map(_default_of_software, mpp)), "")
        if reason:
            return reason
        if max(mpp) > MAX_PLAUSIBLE_MPP and max(size) >= _SLIDE_SIZED_PX:
            return "which no scanner has"
    if max(mpp) > _MAX_PIXEL_ASPECT * min(mpp):
        return "which no scanner has: its pixels are nearly square"
    length_mm = _length_mm(mpp, size)
    return f"which makes it {length_mm:.4g} mm long, glass has 76" if length_mm > _GLASS_MM else ""


def _default_of_software(mpp: float) -> str:
    """Return which default of image software a resolution is, if coarser than any objective's; else an empty string."""
    if mpp <= MAX_PLAUSIBLE_MPP:
        return ""
    dpi = next((dpi for dpi in _DEFAULT_DPI if abs(mpp * dpi / _UM_PER_INCH - 1) < 0.002), None)
    if dpi is not None:
        return f"the {dpi} dots per inch of image software"
    one = any(abs(mpp / one - 1) < 0.002 for one in _ONE_PER_UNIT_UM)
    return "one pixel per unit, as image software writes" if one else ""


def _text(mpp: Mpp) -> str:
    x, y = f"{mpp.x:.4g}", f"{mpp.y:.4g}"
    return x if x == y else f"{x} × {y}"
