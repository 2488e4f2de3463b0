"""Arithmetic for one tile, on plain numbers, and for many tiles, on arrays: one formula, equal bits.

A transform computes with what its generator returns: floats of ``np.random.Generator``, (n,) arrays of
``streams.Streams``. Sine, cosine, tangent and exponential are Python's for arrays as well, as NumPy's may differ in the
last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

# One tile's number, or (n,) numbers of many tiles.
Number = Any


def where(condition: Any, chosen: Number, other: Number) -> Number:
    """Return ``chosen`` where the condition holds, else ``other``."""
    if isinstance(condition, np.ndarray):
        return np.where(condition, chosen, other)
    return chosen if condition else other


def every(condition: Any) -> bool:
    """Return whether the condition holds for all tiles."""
    return bool(condition.all()) if isinstance(condition, np.ndarray) else bool(condition)


def minimum(one: Number, other: Number) -> Number:
    """Return the smaller number."""
    return np.minimum(one, other) if _is_array(one, other) else min(one, other)


def maximum(one: Number, other: Number) -> Number:
    """Return the larger number."""
    return np.maximum(one, other) if _is_array(one, other) else max(one, other)


def floor(value: Number) -> Number:
    """Return the largest whole number that is not above the value."""
    return np.floor(value).astype(np.int64) if isinstance(value, np.ndarray) else math.floor(value)


def trunc(value: Number) -> Number:
    """Return the value without its fraction."""
    return np.trunc(value).astype(np.int64) if isinstance(value, np.ndarray) else math.trunc(value)


def sqrt(value: Number) -> Number:
    """Return the square root."""
    return np.sqrt(value) if isinstance(value, np.ndarray) else math.sqrt(value)


def exp(value: Number) -> Number:
    """Return e to the power of the value."""
    return _each(math.exp, value)


def sine(degrees: Number) -> Number:
    """Return the sine of an angle."""
    return _each(_sine, degrees)


def cosine(degrees: Number) -> Number:
    """Return the cosine of an angle."""
    return _each(_cosine, degrees)


def tangent(degrees: Number) -> Number:
    """Return the tangent of an angle."""
    return _each(_tangent, degrees)


def _sine(degrees: float) -> float:
    return math.sin(math.radians(degrees))


def _cosine(degrees: float) -> float:
    return math.cos(math.radians(degrees))


def _tangent(degrees: float) -> float:
    return math.tan(math.radians(degrees))


def _each(function: Callable[[float], float], value: Number) -> Number:
    if not isinstance(value, np.ndarray):
        return function(value)
    found: NDArray[np.float64] = np.array([function(each) for each in value.tolist()], np.float64)
    return found


def _is_array(one: Number, other: Number) -> bool:
    return isinstance(one, np.ndarray) or isinstance(other, np.ndarray)
