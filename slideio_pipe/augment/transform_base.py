"""Base classes of our transforms: they draw their parameters as numbers and also work in an albumentationsxl Compose.

A transform returns ``Steps``: an affine, a canvas, colour operations. ``compose.draw`` passes its own generator; a call
inside ``A.Compose`` uses a seed from Python's ``random``, as albumentationsxl's transforms do, and applies the steps
lazily to the pyvips image.
"""

from __future__ import annotations

import inspect
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import albumentationsxl as A
import numpy as np
import pyvips
from numpy.typing import NDArray

from slideio_pipe.augment.draw import Draw
from slideio_pipe.augment.elementwise import Number
from slideio_pipe.augment.operations import Matrix
from slideio_pipe.augment.slide_colour import SlideColour
from slideio_pipe.augment.steps import Steps
from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import Affine, Size

Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Context:
    """What a transform gets beside the size of the image."""

    slide_wide: bool = False  # a whole slide, whose canvas grows to hold rotated content
    basis: Matrix | None = None  # the slide's own stains, if known
    colour: SlideColour | None = None  # all measured colours of the slide, if known


class OurTransform:
    """Draws, executes and serialises; mixed into albumentationsxl's base classes."""

    p: float
    always_apply: bool
    lowered = True  # whether it draws no opaque operation
    opaque_because = ""  # why it draws one
    needs_slide = False  # whether the slide's own colours must be measured first
    without_slide = ""  # the argument with which they need not be

    def __init__(self, *, always_apply: bool = False, p: float = 1.0) -> None:
        checked = number(type(self).__name__, "p", p, low=0, high=1)
        super().__init__(always_apply, checked)  # type: ignore[call-arg]  # albumentationsxl's

    @property
    def label(self) -> str:
        """Its name in messages and tables."""
        return type(self).__name__

    @abstractmethod
    def draw_steps(self, rng: np.random.Generator, size: Size, context: Context) -> Steps:
        """Return what to do to an image of ``size``, with all randomness from ``rng``.

        Ours are also called with ``streams.Streams``, for many tiles at once: numbers, sides of ``size`` and results
        are arrays then. A class of a user is called for one tile at a time.
        """

    # -- inside A.Compose ----------------------------------------------------------------------------------------

    def get_params(self) -> dict[str, Any]:
        """Return the parameter of one call: a seed from Python's ``random``."""
        return {"draw_seed": random.getrandbits(63)}

    def update_params(self, params: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Add the size of the image; raise if it is not 8-bit RGB."""
        _check_image(kwargs["image"], type(self).__name__)
        updated: dict[str, Any] = super().update_params(params, **kwargs)  # type: ignore[misc]  # albumentationsxl's
        return updated

    def apply(self, img: Any, draw_seed: int = 0, **params: Any) -> Any:
        """Return the augmented image, lazily."""
        from slideio_pipe.augment.executors.lazy import apply_lazy  # an executor: only calls need one

        size = Size(img.width, img.height)
        steps = self._called(draw_seed, size)
        affine = Affine() if steps.affine is None else steps.affine
        canvas = size if steps.canvas is None else steps.canvas
        return apply_lazy(img, Draw(size=size, canvas=canvas, affine=affine.as_tuple(), operations=steps.operations))

    def _called(self, draw_seed: int, size: Size) -> Steps:
        rng = np.random.Generator(np.random.Philox(draw_seed))
        return self.draw_steps(rng, size, Context())

    # -- serialisation -------------------------------------------------------------------------------------------

    @classmethod
    def get_class_fullname(cls) -> str:
        """Return the serialised name; for our classes it does not depend on the module."""
        return f"{cls.__module__.split('.')[0] if _is_ours(cls) else cls.__module__}.{cls.__name__}"

    def get_transform_init_args_names(self) -> tuple[str, ...]:
        """Return the names of the constructor's own arguments, each an attribute of the same name."""
        return tuple(name for name in inspect.signature(type(self)).parameters if name not in ("always_apply", "p"))


class ColourTransform(OurTransform, A.ImageOnlyTransform, ABC):  # type: ignore[misc]  # albumentationsxl has no types
    """Changes colours and leaves masks unchanged."""


class GeometricTransform(OurTransform, A.DualTransform, ABC):  # type: ignore[misc]  # albumentationsxl has no types
    """Moves pixels, of a mask with nearest neighbour; outside the image is white, outside the mask 0."""

    def apply_to_mask(self, img: Any, draw_seed: int = 0, **params: Any) -> Any:
        """Return the mask, of any format and number of bands, moved like the image."""
        size = Size(img.width, img.height)
        steps = self._called(draw_seed, size)
        canvas = size if steps.canvas is None else steps.canvas
        return img if steps.affine is None else move_mask(img, steps.affine, canvas)


def _is_ours(made: type) -> bool:
    return made.__module__.startswith("slideio_pipe.")


def move_mask(mask: Any, affine: Affine, canvas: Size) -> Any:
    """Return a pyvips image of ``canvas`` whose pixels are the nearest of ``mask``, 0 outside it."""
    a, b, c, d, e, f = affine.as_tuple()
    # libvips uses pixel centres and its "nearest" truncates: half a pixel turns that into rounding.
    return mask.affine(
        [a, b, d, e],
        idx=-0.5,
        idy=-0.5,
        odx=c + (a + b) / 2 - 0.5,
        ody=f + (d + e) / 2 - 0.5,
        oarea=[0, 0, *canvas],
        interpolate=pyvips.Interpolate.new("nearest"),
        background=[0],
        extend="background",
    )


def _check_image(image: Any, owner: str) -> None:
    if not isinstance(image, pyvips.Image):
        raise ConfigError(
            f"{owner}: an image of type {type(image).__name__}", remedy="pass pyvips.Image.new_from_array(pixels)"
        )
    if image.bands != 3 or image.format != "uchar":
        raise ConfigError(
            f"{owner}: an image of {image.bands} bands of {image.format}",
            remedy="pass 8-bit RGB (3 bands of uchar), alpha flattened on white",
        )


# -- arguments -----------------------------------------------------------------------------------------------------


def span(
    owner: str, name: str, value: Any, *, about: float | None = None, low: float = -math.inf, high: float = math.inf
) -> Range:
    """Return the range given by a number or a (low, high) pair.

    Raise ConfigError if the values are not numbers, in the wrong order, or out of bounds.

    Parameters
    ----------
    owner, name : str
        The transform and its argument, for errors.
    value : number or (number, number)
        A number v means (about − v, about + v), or always v if ``about`` is None.
    low, high : float
        Bounds of the range.

    Examples
    --------
    >>> span("RandomAffine", "scale", 0.25, about=1), span("RandomAffine", "scale", (0.5, 2))
    ((0.75, 1.25), (0.5, 2.0))
    """
    if _is_number(value):
        pair = (value, value) if about is None else (about - value, about + value)
    elif isinstance(value, Sequence) and len(value) == 2 and all(map(_is_number, value)):
        pair = (value[0], value[1])
    else:
        raise ConfigError(f"{owner}: {name}={value!r}", remedy="pass a number or a pair (low, high)")
    first, last = float(pair[0]), float(pair[1])
    if not low <= first <= last <= high:
        bounds = f" between {low:g} and {high:g}" if (low, high) != (-math.inf, math.inf) else ""
        raise ConfigError(
            f"{owner}: {name}={value!r} means {first:g} to {last:g}", remedy=f"pass a range that rises{bounds}"
        )
    return first, last


def number(owner: str, name: str, value: Any, *, low: float = -math.inf, high: float = math.inf) -> float:
    """Return the number if it is between ``low`` and ``high``."""
    if not _is_number(value) or not low <= value <= high:
        raise ConfigError(f"{owner}: {name}={value!r}", remedy=f"pass a number between {low:g} and {high:g}")
    return float(value)


def uniform(rng: np.random.Generator, values: Range, count: int | None = None) -> Number:
    """Return a uniform random number from the range, or ``count``; as ``rng.uniform``, on every processor."""
    low, high = float(values[0]), float(values[1])
    if not 0 <= high - low < math.inf:
        raise ConfigError(f"a range from {low:g} to {high:g}", remedy="pass finite limits that rise")
    return low + (high - low) * rng.random(count)


def whole(rng: np.random.Generator, count: int) -> Number:
    """Return a whole number from 0 to ``count``, exclusive, each equally likely."""
    number = rng.integers(count)
    return number if isinstance(number, np.ndarray) else int(number)


def triples(owner: str, name: str, values: Any) -> NDArray[np.float64]:
    """Return three finite numbers."""
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.shape != (3,) or not np.isfinite(array).all():
        raise ConfigError(f"{owner}: {name}={values!r}", remedy="pass three numbers")
    return array


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
