"""The end of a transform that makes tensors of bytes: taken off, because the device does that with each batch."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

from slideio_pipe.errors import ConfigError, NormalizationMovedWarning, warn_caller

# Transforms of albumentationsxl that a device can do, as the last steps.
_STEPS = ("ToDtype", "Normalize", "ToTensor")


class Ending(NamedTuple):
    """What the last steps of a transform make of bytes: ``(x · rescale − mean) / std``, or nothing but a tensor."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    rescale: float
    normalises: bool  # False: a tensor of bytes


def split_end(transform: Any) -> tuple[Any, Ending | None]:
    """Return a transform without its last steps ToDtype, Normalize and ToTensor, and what these do.

    The transform is None if nothing is left. It is the same object, and the end is None, if it has no such steps. Steps
    that are random, or followed by others, stay where they are (and are refused when they are drawn). A warning says
    once that they run on the device.

    Raises
    ------
    ConfigError
        It normalises twice.
    """
    kept, steps = _split(transform)
    if not steps:
        return transform, None
    ending = _ending(steps)
    names = ", ".join(type(step).__name__ for step in steps)
    what = "the tiles stay bytes" if not ending.normalises else "tiles are normalised there, tile by tile"
    warn_caller(NormalizationMovedWarning(f"the end of the transform ({names}) runs on the device: {what}"))
    return kept, ending


def ending_steps(transform: Any) -> list[Any]:
    """Return the last steps of a transform that ``split_end`` takes off, in their order."""
    return _split(transform)[1]


def joined(first: Ending | None, second: Ending | None, slide: str) -> Ending | None:
    """Return the end of two transforms that follow each other; raise ConfigError if both normalise, differently."""
    normalising = [end for end in (first, second) if end is not None and end.normalises]
    if len(normalising) == 2 and first != second:
        remedy = "let one of the transforms end in Normalize"
        raise ConfigError("the transforms of slide and tiles normalise, each otherwise", slide=slide, remedy=remedy)
    return normalising[0] if normalising else first or second


def _split(transform: Any) -> tuple[Any, list[Any]]:
    """Return what is left of a transform, or None, and its last steps in their order."""
    parts = getattr(transform, "transforms", None)
    if parts is None or type(transform).__name__ not in ("Compose", "Sequential"):
        sure = getattr(transform, "p", 0) == 1 or getattr(transform, "always_apply", False)
        return (None, [transform]) if type(transform).__name__ in _STEPS and sure else (transform, [])
    if type(transform).__name__ == "Compose" and transform.p != 1:
        return transform, []
    kept, steps = list(parts), list[Any]()
    while kept:
        rest, ends = _split(kept[-1])
        steps[:0] = ends
        if rest is not None:
            kept[-1] = rest
            break
        kept.pop()
    if not steps:
        return transform, []
    shorter = copy.copy(transform)
    shorter.transforms = type(parts)(kept)
    return (shorter if kept else None), steps


def _ending(steps: list[Any]) -> Ending:
    """Return what steps do to bytes, as albumentationsxl does: a cast of bytes to floats divides by 255."""
    rescale, normalize = 1.0, None
    for step in steps:
        name = type(step).__name__
        if name == "ToDtype" and normalize is None and step.dtype in ("float", "double"):
            rescale = 1 / 255
        elif name == "ToDtype" and step.dtype == "uchar":
            raise ConfigError("ToDtype: bytes are needed before the end", remedy='leave it out, or pass "float"')
        elif name == "Normalize":
            if normalize is not None:
                raise ConfigError("Normalize: twice in one transform", remedy="keep one of them")
            normalize = step
    floats = normalize is not None or rescale != 1
    mean = (0.0,) * 3 if normalize is None else _numbers(normalize.mean)
    std = (1.0,) * 3 if normalize is None else _numbers(normalize.std)
    return Ending(mean, std, rescale, floats)


def _numbers(value: Any) -> tuple[float, ...]:
    """Return a number for each channel."""
    return tuple(float(each) for each in value) if hasattr(value, "__iter__") else (float(value),) * 3
