"""A slide's label, macro and thumbnail, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.slides.backends.base import Facts


class Pictured(Protocol):
    """The parts of a slide that this module uses; ``Slide`` has them."""

    @property
    def facts(self) -> Facts: ...
    def associated_image(self, name: str) -> NDArray[np.uint8]: ...


class AssociatedImages(Mapping[str, NDArray[np.uint8]]):
    """A slide's label, macro and thumbnail by name; each is decoded at every access."""

    def __init__(self, slide: Pictured) -> None:
        self._slide = slide

    def __getitem__(self, name: str) -> NDArray[np.uint8]:
        if name not in self._slide.facts.associated:
            raise KeyError(name)
        return self._slide.associated_image(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._slide.facts.associated)

    def __len__(self) -> int:
        return len(self._slide.facts.associated)

    def __repr__(self) -> str:
        return f"AssociatedImages({', '.join(self) or 'none'})"
