"""The cells of a bag's slide: an open one, or the one that a stored bag records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from slideio_pipe.errors import BagFormatError, MissingResolutionError
from slideio_pipe.geometry import Mpp, Pyramid, Rect, Size
from slideio_pipe.slides.frames import recorded_bounds
from slideio_pipe.tiles.annotations import Annotations
from slideio_pipe.tiles.bag import Bag
from slideio_pipe.tiles.tile_bag import TileBag


@dataclass(frozen=True)
class RecordedSlide:
    """What a stored bag records of its slide, without opening it.

    Parameters
    ----------
    name : str
    pyramid : Pyramid
        Level 0 alone.
    bounds : Rect, optional
    mpp : Mpp, optional
    """

    name: str
    pyramid: Pyramid
    bounds: Rect | None
    mpp: Mpp | None

    @classmethod
    def of(cls, bag: Bag) -> Self:
        """Return the slide of a bag; raise BagFormatError if the bag does not record it."""
        made = bag.provenance()
        try:
            slide: Mapping[str, Any] = made["slide"]
            width, height = (int(side) for side in slide["dimensions"])
            mpp = slide.get("mpp")
        except (KeyError, TypeError, ValueError):
            remedy = "write the bag again, or pass the slide"
            raise BagFormatError("the bag does not record its slide's size", slide=bag.name, remedy=remedy) from None
        pyramid = Pyramid((Size(width, height),))
        return cls(bag.name, pyramid, recorded_bounds(made), None if mpp is None else Mpp.of(mpp))

    def require_mpp(self) -> Mpp:
        """Return the resolution; raise MissingResolutionError if it is not recorded."""
        if self.mpp is None:
            reason, remedy = "the bag does not record its slide's mpp", "pass cells in px, or the slide"
            raise MissingResolutionError(reason, slide=self.name, remedy=remedy)
        return self.mpp


def read_cells_of(path: Path, bag: Bag, classes: Sequence[str] | Mapping[str, int] | None) -> Annotations:
    """Return the cells in a file, on the slide of a bag: an open one, or the one that a stored bag records."""
    slide = bag.view.slide if isinstance(bag, TileBag) else RecordedSlide.of(bag)
    return Annotations.from_cells(path, classes, slide=slide)
