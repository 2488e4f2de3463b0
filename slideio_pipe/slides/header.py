"""The header of a slide: levels, resolution, properties; no pixel is decoded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from slideio_pipe.arguments import no_index
from slideio_pipe.errors import MissingResolutionError
from slideio_pipe.geometry import Mpp, Pyramid, Rect, Size
from slideio_pipe.slides.backends.base import Facts
from slideio_pipe.slides.backends.properties import downsample_of
from slideio_pipe.slides.frames import stated_bounds


class SlideHeader:
    """Levels, resolution and properties of a slide; ``Slide`` adds the pixels."""

    path: Path | None
    facts: Facts
    mpp: Mpp | None
    mpp_source: str

    @property
    def name(self) -> str:
        """The file name, "array" for an array."""
        return "array" if self.path is None else self.path.name

    @property
    def dimensions(self) -> Size:
        """Width and height at level 0."""
        return self.pyramid.levels[0]

    @property
    def pyramid(self) -> Pyramid:
        """Sizes and downsamples of all levels."""
        return self.facts.pyramid

    @property
    def bounds(self) -> Rect | None:
        """The scanned part of level 0, the origin of QuPath's coordinates; None if not stated or the whole level."""
        return stated_bounds(self.facts.properties, self.dimensions)

    @property
    def level_count(self) -> int:
        """Number of stored levels."""
        return len(self.pyramid.levels)

    @property
    def level_dimensions(self) -> tuple[Size, ...]:
        """Width and height of every level."""
        return self.pyramid.levels

    @property
    def level_downsamples(self) -> tuple[float, ...]:
        """Level-0 pixels per level pixel of every level, as in OpenSlide: the mean of both axes.

        ``slide.pyramid.downsamples`` has each axis, (x, y).
        """
        return tuple(downsample_of(pair) for pair in self.pyramid.downsamples)

    def get_best_level_for_downsample(self, downsample: float) -> int:
        """Return the coarsest level not coarser than ``downsample``, or level 0, as in OpenSlide.

        Examples
        --------
        >>> import numpy as np
        >>> from slideio_pipe import open_slide
        >>> open_slide(np.zeros((600, 800, 3), np.uint8)).get_best_level_for_downsample(4)
        0
        """
        fine = [level for level, own in enumerate(self.level_downsamples) if own <= downsample]
        return fine[-1] if fine else 0

    @property
    def properties(self) -> Mapping[str, str]:
        """The file's properties under OpenSlide's names (``openslide.mpp-x``, ``aperio.AppMag``) with any backend."""
        return self.facts.properties

    @property
    def tile_sizes(self) -> tuple[Size, ...]:
        """The stored tile of every level."""
        return self.facts.tile_sizes

    @property
    def vendor(self) -> str:
        """Vendor of the scanner or software that wrote the file."""
        return self.facts.vendor

    def require_mpp(self) -> Mpp:
        """Return the resolution.

        Raises
        ------
        MissingResolutionError
            The file states no plausible resolution and none was given.
        """
        if self.mpp is None:
            raise MissingResolutionError(
                f"no mpp ({self.vendor}; {self.mpp_source})",
                slide=self.name,
                remedy="pass {slide_mpp=0.25}: µm per level-0 pixel, 0.25 is usual for a 40× scan, 0.5 for 20×",
            )
        return self.mpp

    def __getitem__(self, key: Any) -> NoReturn:
        """Raise ConfigError: a place has a resolution and a frame, which an index has not."""
        raise no_index("a slide", "slide.region(x, y, mpp=..., size=...)", self.name)

    def describe(self) -> dict[str, str]:
        """Return the main facts of the slide as text."""
        sizes = [f"{w:,} × {h:,}" for w, h in self.level_dimensions]
        power = self.facts.objective_power
        return {
            "size": f"{sizes[0]} px",
            "mpp": "unknown" if self.mpp is None else f"{_one_or_two(self.mpp)} µm ({self.mpp_source})",
            "objective": "unknown" if power is None else f"{power:g}×",
            "levels": "; ".join(sizes),
            "vendor": self.vendor,
            "read by": self.facts.backend,
            "associated": ", ".join(self.facts.associated) or "none",
        }


def _one_or_two(mpp: Mpp) -> str:
    x, y = f"{mpp.x:.4g}", f"{mpp.y:.4g}"
    return x if x == y else f"{x} × {y}"
