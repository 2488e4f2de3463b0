"""A tissue method of a user or of an installed package: a function from an overview to a mask, with its origin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.errors import ConfigError
from slideio_pipe.parts.calls import takes_second
from slideio_pipe.parts.entry_points import part_named, parts_of
from slideio_pipe.parts.import_path import import_object, import_path_of, is_import_path, source_digest
from slideio_pipe.tiles.config import METHODS
from slideio_pipe.tiles.onnx_model import model_fingerprint
from slideio_pipe.tiles.onnx_tissue import file_of, is_onnx
from slideio_pipe.tiles.tissue_methods import Segmentation


class TissueMethod(Protocol):
    """A function that finds tissue in an overview.

    Specks and holes of its mask are then removed as for the methods of the package.

    Examples
    --------
    >>> from slideio_pipe import find_tissue, open_slide
    >>> def darker(rgb: NDArray[np.uint8], mpp: float) -> NDArray[np.bool_]:
    ...     return rgb.mean(axis=2) < 200
    >>> pixels = np.full((800, 1000, 3), 243, np.uint8)
    >>> pixels[200:600, 250:750] = 150, 80, 140
    >>> find_tissue(open_slide(pixels, slide_mpp=2.0), method=darker, mpp=4.0)
    TissueMask(array: 25.0 % tissue, 500x400 at 4.0 µm, darker)
    """

    def __call__(self, rgb: NDArray[np.uint8], mpp: float) -> NDArray[np.bool_]:
        """Return which pixels are tissue.

        Parameters
        ----------
        rgb : (h, w, 3) uint8 RGB
            The whole slide, a copy; parts beyond its file are white.
        mpp : float
            µm per pixel of ``rgb``. A function with one parameter is called without it.

        Returns
        -------
        (h, w) bool
        """


@dataclass(frozen=True)
class OwnMethod:
    """A tissue method with a name and an origin, for the provenance of its masks."""

    function: Callable[..., Any]
    name: str
    origin: dict[str, str]  # JSON values: import path, digest of the source, package

    def segment(self, rgb: NDArray[np.uint8], mpp: float, slide: str) -> Segmentation:
        """Return its mask; raise ConfigError if it fails or returns something else."""
        try:
            found = self.function(rgb.copy(), mpp) if takes_second(self.function, "mpp") else self.function(rgb.copy())
        except Exception as error:  # a user's function may raise anything
            reason = f"the tissue method {self.name} raised {type(error).__name__}: {error}"
            raise ConfigError(reason, slide=slide, remedy="correct it; it gets (h, w, 3) uint8 RGB and mpp") from error
        mask = np.asarray(found)
        if mask.shape != rgb.shape[:2] or not (mask.dtype == bool or np.issubdtype(mask.dtype, np.integer)):
            height, width = rgb.shape[:2]
            what = f"{mask.dtype} of the shape {mask.shape}" if mask.size > 1 else f"a {type(found).__name__}"
            reason = f"the tissue method {self.name} returned {what} for an overview of {width}×{height} px"
            remedy = f"return ({height}, {width}) bool; compare probabilities with a threshold"
            raise ConfigError(reason, slide=slide, remedy=remedy)
        return Segmentation(mask != 0, np.zeros(mask.shape, dtype=bool), dict(self.origin))


def own_method(method: str | Callable[..., Any], slide: str | None = None) -> OwnMethod | None:
    """Return the method of a function, an import path, or an entry point's name; None for a method of the package.

    Raises
    ------
    ConfigError
        There is no such method, or it cannot be imported.
    """
    if not isinstance(method, str):
        if not callable(method):
            raise ConfigError(f"method {method!r}", slide=slide, remedy=f"pass a function, or {_known()}")
        return OwnMethod(method, _name_of(method), _origin(method))
    part = part_named("tissue", method, METHODS)
    if method in METHODS or is_onnx(method):
        return None
    if part is not None:
        return OwnMethod(part.load(), method, {"function": part.value, "package": part.origin})
    if not is_import_path(method):
        raise ConfigError(f"method {method!r}", slide=slide, remedy=f"pass one of {_known()}")
    function = import_object(method)
    if not callable(function):
        raise ConfigError(f"a {type(function).__name__} is no tissue method", slide=method, remedy="name a function")
    return OwnMethod(function, method, _origin(function) | {"function": method})


def method_fingerprint(method: str) -> dict[str, str]:
    """Return what the masks of a method depend on beside its name; nothing for the methods of the package.

    Raise ConfigError if it cannot be found.
    """
    if is_onnx(method):
        return model_fingerprint(file_of(method))
    own = own_method(method)
    return {} if own is None else {"tissue_" + key: value for key, value in own.origin.items()}


def _origin(function: Callable[..., Any]) -> dict[str, str]:
    named = {"function": import_path_of(function), "source": source_digest(function)}
    return {key: value for key, value in named.items() if value is not None}


def _name_of(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _known() -> str:
    brought = [part.name for part in parts_of("tissue") if part.name not in METHODS]
    return ", ".join([*METHODS, *dict.fromkeys(brought), "or a function's import path, my_module:my_function"])
