"""Coordinate frames of other tools, and their origin on a slide.

Coordinates of this package are level-0 px, as in OpenSlide, CLAM, TRIDENT and other tools based on OpenSlide. QuPath
crops a slide to the scanned area if the file states it (MIRAX, Leica SCN, Ventana BIF): its (0, 0) is the corner of the
slide's *bounds*. GeoJSON is in QuPath's frame unless the level-0 frame is passed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol, cast, get_args

from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import Affine, Rect, Size

Frame = Literal["qupath", "level0"]
# Aspect ratios within 2 % are equal: the size of a mask of 50 px is rounded by as much.
_MAX_ASPECT_ERROR = 0.02


class Bounded(Protocol):
    """The parts of a slide that this module uses; ``Slide`` has them."""

    @property
    def name(self) -> str: ...
    @property
    def dimensions(self) -> Size: ...
    @property
    def bounds(self) -> Rect | None: ...


def stated_bounds(properties: Mapping[str, str], size: Size) -> Rect | None:
    """Return the scanned area of level 0 from OpenSlide's properties; None if not stated or the whole level.

    >>> names = ("x", "y", "width", "height")
    >>> stated_bounds({f"openslide.bounds-{n}": v for n, v in zip(names, "2345")}, Size(10, 10))
    Rect(x=2, y=3, width=4, height=5)
    """
    try:
        x, y, width, height = (int(float(properties[f"openslide.bounds-{name}"])) for name in Rect._fields)
    except (KeyError, ValueError, OverflowError):
        return None
    whole = Rect(0, 0, *size)
    bounds = Rect(x, y, width, height).intersect(whole)
    return None if not bounds.width or not bounds.height or bounds == whole else bounds


def recorded_bounds(provenance: Mapping[str, Any]) -> Rect | None:
    """Return the slide's bounds from a bag's provenance, or None."""
    try:
        x, y, width, height = (int(value) for value in provenance["slide"]["bounds"])
    except (KeyError, TypeError, ValueError):
        return None
    return Rect(x, y, width, height)


def checked_frame(frame: str) -> Frame:
    """Return a valid frame; raise ConfigError if the frame is unknown."""
    for known in get_args(Frame):
        if frame == known:
            return cast(Frame, frame)
    raise ConfigError(f"no frame {frame!r}", remedy='pass "qupath" or "level0"')


def frame_corner(frame: str, bounds: Rect | None) -> Affine:
    """Return the affine from px of a frame to level-0 px: a shift; raise ConfigError if the frame is unknown."""
    return Affine() if checked_frame(frame) == "level0" or bounds is None else Affine.translation(bounds.x, bounds.y)


def picture_affine(size: tuple[int, int], slide: Bounded, frame: Frame | None, *, what: str, path: str) -> Affine:
    """Return the affine from px of a picture that covers a slide, or its bounds, to level-0 px.

    Without a frame it follows from the picture's shape: with the slide's shape it covers the slide, as pictures written
    by this package do; with the bounds' shape it covers the bounds, as pictures exported by QuPath do. Raise
    ConfigError if it has neither shape.
    """
    if frame is not None:
        frame_corner(frame, None)
    whole = Rect(0, 0, *slide.dimensions)
    scanned = slide.bounds or whole
    width, height = size
    for span in {"level0": (whole,), "qupath": (scanned,), None: (whole, scanned)}[frame]:
        affine = Affine.translation(span.x, span.y) @ Affine.scaling(span.width / width, span.height / height)
        # A side of n px may be rounded by half a pixel.
        if abs(affine.a / affine.e - 1) <= max(_MAX_ASPECT_ERROR, 0.5 / width, 0.5 / height):
            return affine
    shape = f"{slide.dimensions.width}x{slide.dimensions.height} px"
    nor = "" if slide.bounds is None else f", nor of what was scanned, {scanned.width}x{scanned.height} px"
    verb, remedy = ("do", "labels of the whole slide, or LabelMask(array, affine)")
    if what != "labels":
        verb, remedy = "does", "a mask of the whole slide"
    reason = f"{what} of {width}x{height} px {verb} not have the shape of {slide.name}, {shape}{nor}"
    raise ConfigError(reason, slide=path, remedy=f"pass {remedy}")
