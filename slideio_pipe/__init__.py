"""Gigapixel pathology slides to normalised float16 tile batches and tile bags, lazily.

Everything public is here and is loaded on first use: ``import slideio_pipe as sp`` itself loads nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slideio_pipe.slide import Slide as Slide
    from slideio_pipe.slide import open_slide as open_slide

__version__ = "0.1.0"

_PUBLIC = {
    "open_slide": "slide",
    "Slide": "slide",
    "SlideView": "view",
    "find_tissue": "tissue",
    "TissueMask": "tissue",
    "TileGrid": "tiling",
    "TileReader": "reader",
    "TileBag": "bag",
    "stream": "streaming",
    "TileBatch": "streaming",
    "Normalize": "device",
    "save_bag": "store",
    "open_bag": "store",
    "StoredBag": "store",
    "write_synthetic_slide": "synthetic",
    "SyntheticSlide": "synthetic",
    "StainJitter": "augment.colour_transforms",
    "StainNormalize": "augment.colour_transforms",
    "RandStainNA": "augment.colour_transforms",
    "ColorJitter": "augment.colour_transforms",
    "GaussianNoise": "augment.colour_transforms",
    "RandomAffine": "augment.geometric_transforms",
    "Rotate90": "augment.geometric_transforms",
    "Flip": "augment.geometric_transforms",
    "RandomResizedCrop": "augment.geometric_transforms",
    "Draw": "augment.draw",
    "draw": "augment.drawing",
    "load_transform": "augment.drawing",
    "explain": "explaining",
    "SlideioPipeError": "errors",
    "SlideioPipeWarning": "errors",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = getattr(importlib.import_module(f"slideio_pipe.{_PUBLIC[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'slideio_pipe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
