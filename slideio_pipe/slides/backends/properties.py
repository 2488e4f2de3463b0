"""A slide's properties under OpenSlide's names, with every backend.

If OpenSlide reads the file, its own properties are used, loaded on first access: opening a slide does not wait for
them. Levels are always those that are read, which may be fewer than OpenSlide's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import openslide
import tifffile

from slideio_pipe.geometry import Pyramid, Size
from slideio_pipe.slides.backends.base import Facts
from slideio_pipe.slides.backends.tiff_header import is_tiff

# Tags that OpenSlide returns, for a TIFF that it does not open.
_TEXTS = ("ImageDescription", "Make", "Model", "Software", "DateTime", "Artist", "HostComputer", "Copyright")
_RATIOS = ("XResolution", "YResolution", "XPosition", "YPosition")
_UNITS = {1: "none", 2: "inch", 3: "centimeter"}


def with_openslide_names(facts: Facts, path: Path | None) -> Facts:
    """Return the facts with properties under OpenSlide's names beside the backend's own."""
    return replace(facts, properties=SlideProperties(facts, path))


class SlideProperties(Mapping[str, str]):
    """A slide's properties by name; read on first access."""

    def __init__(self, facts: Facts, path: Path | None) -> None:
        self._facts, self._path = facts, path

    def __getitem__(self, name: str) -> str:
        return self._all[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def __repr__(self) -> str:
        return repr(self._all)

    @cached_property
    def _all(self) -> dict[str, str]:
        facts, own = self._facts, dict(self._facts.properties)
        found = own if facts.backend == "openslide" else {**_of_file(self._path), **own}
        for name, value in _stated(facts).items():
            found.setdefault(name, value)
        if not _has_levels(found, facts.pyramid):
            found = {name: value for name, value in found.items() if not name.startswith("openslide.level[")}
            found |= _sides(facts.tile_sizes, "tile-")
        found |= _levels(facts.pyramid)
        return dict(sorted(found.items()))


def downsample_of(pair: tuple[float, float]) -> float:
    """Return OpenSlide's one number per level: the mean of both axes."""
    return (pair[0] + pair[1]) / 2


def _of_file(path: Path | None) -> dict[str, str]:
    """Return OpenSlide's properties of a file, or those from its TIFF tags."""
    if path is None or not path.is_file():
        return {}
    try:
        with openslide.OpenSlide(str(path)) as slide:
            return dict(slide.properties)
    except openslide.OpenSlideError:
        return _tags(path) if is_tiff(path) else {}


def _tags(path: Path) -> dict[str, str]:
    try:
        with tifffile.TiffFile(path) as tif:
            tags = tif.pages.first.tags
            texts = {name: tags.valueof(name) for name in _TEXTS}
            ratios = {name: tags.valueof(name) for name in _RATIOS}
            unit = int(tags.valueof("ResolutionUnit", default=2))
    except Exception:  # a damaged tag does not affect the levels
        return {}
    found = {f"tiff.{name}": str(text) for name, text in texts.items() if text}
    for name, value in ratios.items():
        if isinstance(value, tuple) and len(value) == 2 and value[1]:
            found[f"tiff.{name}"] = _text(value[0] / value[1])
    found["tiff.ResolutionUnit"] = _UNITS.get(unit, "unknown")
    if texts["ImageDescription"]:
        found["openslide.comment"] = str(texts["ImageDescription"])
    return found


def _stated(facts: Facts) -> dict[str, str]:
    found: dict[str, Any] = {openslide.PROPERTY_NAME_VENDOR: facts.vendor}
    if facts.mpp is not None:
        found |= {openslide.PROPERTY_NAME_MPP_X: facts.mpp.x, openslide.PROPERTY_NAME_MPP_Y: facts.mpp.y}
    if facts.objective_power is not None:
        found[openslide.PROPERTY_NAME_OBJECTIVE_POWER] = facts.objective_power
    return {name: value if isinstance(value, str) else _text(value) for name, value in found.items()}


def _has_levels(properties: Mapping[str, str], pyramid: Pyramid) -> bool:
    """Return whether properties describe the pyramid's levels, so that their tile sizes are valid too."""
    if properties.get("openslide.level-count") != str(len(pyramid.levels)):
        return False
    return all(properties.get(name) == value for name, value in _sides(pyramid.levels).items())


def _sides(sizes: tuple[Size, ...], of: str = "") -> dict[str, str]:
    return {
        f"openslide.level[{index}].{of}{side}": str(getattr(size, side))
        for index, size in enumerate(sizes)
        for side in ("width", "height")
    }


def _levels(pyramid: Pyramid) -> dict[str, str]:
    downs = {
        f"openslide.level[{index}].downsample": _text(downsample_of(down))
        for index, down in enumerate(pyramid.downsamples)
    }
    return {"openslide.level-count": str(len(pyramid.levels)), **_sides(pyramid.levels), **downs}


def _text(number: float) -> str:
    """Return a number in OpenSlide's format."""
    return f"{number:.17g}"
