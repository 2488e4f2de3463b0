"""What every backend answers about a slide: levels, resolution, properties and a lazy image per level."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from slideio_pipe.geometry import Mpp, Pyramid, Rect, Size

# Above this a resolution is no microscope's: 352.78 µm is the 72 dpi that image software writes by default.
MAX_PLAUSIBLE_MPP = 20.0


@dataclass(frozen=True)
class Facts:
    """What a slide's header says, decoded from nothing but the header."""

    backend: str  # the name open_slide(backend=…) takes
    vendor: str  # "aperio", "hamamatsu", "ome", "generic-tiff", …
    pyramid: Pyramid  # sizes of the levels, largest first
    tile_sizes: tuple[Size, ...]  # stored tile per level; what storage order is sorted by
    mpp: Mpp | None = None  # as the header states it; plausibility is judged in slide.py
    objective_power: float | None = None  # 20.0 for a 20× objective
    properties: Mapping[str, str] = field(default_factory=dict)  # vendor metadata, untouched
    associated: tuple[str, ...] = ()  # names of label, macro, thumbnail
    icc_profile: bytes | None = None


class Backend(Protocol):
    """One open slide. Cheap to open, decodes nothing until an image's pixels are fetched.

    Every image it hands out is a lazy ``pyvips.Image`` of 3 bands, uchar, sRGB, alpha flattened on white.
    """

    facts: Facts

    def level_image(self, level: int) -> Any:
        """Return the lazy image of a level; the same object every time, shared by all threads."""
        ...

    def associated_image(self, name: str) -> Any:
        """Return the lazy image of a label, macro or thumbnail page."""
        ...

    def failure(self, level: int, rect: Rect) -> BaseException | None:
        """Return why fetched pixels of ``rect`` (level px) could not be decoded, when libvips was not told."""
        ...

    def close(self) -> None:
        """Release the file."""
        ...


Opener = Callable[[Path], Backend]
