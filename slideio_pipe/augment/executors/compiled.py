"""Colour operations as the compiled programs take them, for one chain or for many tiles at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.augment.operation_columns import (
    HSV,
    LAB,
    NONE,
    NUMBERS,
    OPAQUE,
    SATURATION,
    STAIN,
    TONE,
    kind_of,
    numbers_of,
)
from slideio_pipe.augment.operations import LUMA, Lab, Operation
from slideio_pipe.compiled.records import OP

Floats = NDArray[np.float64]


def compiled_chain(operations: Sequence[Operation]) -> NDArray[Any] | None:
    """Return a chain as (m,) ``records.OP``; None if one of them has no compiled form: noise, ``Opaque``.

    >>> from slideio_pipe.augment.operations import Noise, Tone
    >>> compiled_chain([Tone(contrast=0.5)])["p"][0, :3].tolist(), compiled_chain([Noise(sigma=1, seed=0)])
    ([0.5, 63.75, 1.0], None)
    """
    kinds = np.array([[kind_of(operation) for operation in operations]], np.int8)
    numbers = np.array([numbers_of(operation) for operation in operations]).reshape(1, len(operations), NUMBERS)
    return compiled(kinds, numbers)[0] if have_compiled_form(kinds).all() else None


def have_compiled_form(kinds: NDArray[np.int8]) -> NDArray[np.bool_]:
    """Return (n,) whether all operations of a tile do, from their kinds (n, m)."""
    return np.asarray(_COMPILED[kinds].all(axis=1))


def compiled(kinds: NDArray[np.int8], numbers: Floats) -> NDArray[Any]:
    """Return the operations of n tiles, (n, m) ``records.OP``, from kinds (n, m) and their numbers (n, m, 12)."""
    ops = np.zeros(kinds.shape, OP)
    ops["kind"] = kinds
    for kind, prepare in _PREPARED.items():
        found = kinds == kind
        if found.any():
            values = prepare(numbers[found])
            parameters = np.zeros((len(values), ops["p"].shape[-1]))
            parameters[:, : values.shape[1]] = values
            ops["p"][found] = parameters
    return ops


def _tone(values: Floats) -> Floats:
    brightness, contrast, pivot, gamma = values[:, :4].T
    return np.column_stack([brightness * contrast, 255 * pivot * (1 - contrast), gamma])


def _saturation(values: Floats) -> Floats:
    factor = values[:, :1]
    return np.asarray(factor * np.eye(3).reshape(-1) + (1 - factor) * np.tile(LUMA, 3))


def _hsv(values: Floats) -> Floats:
    return np.column_stack([6 * (values[:, 0] % 1), values[:, 1], 255 * values[:, 2]])


def _stain(values: Floats) -> Floats:
    # od = ln 2 · (8 − log2(x + 1)), see operations.Stain, so log2(x′ + 1) = 8 − M·(8 − log2(x + 1)) − offset / ln 2.
    matrix, offset = values[:, :9], values[:, 9:12]
    lift = 8 - 8 * matrix.reshape(-1, 3, 3).sum(axis=2) - offset / math.log(2)
    return np.column_stack([matrix, lift])


def _lab(values: Floats) -> Floats:
    triples = [(tuple(row[:3]), tuple(row[3:6])) for row in values.tolist()]
    return np.stack([Lab(gain=gain, bias=bias).mix().reshape(-1) for gain, bias in triples])


_PREPARED = {TONE: _tone, SATURATION: _saturation, HSV: _hsv, STAIN: _stain, LAB: _lab}
# By kind, whether it has a compiled form.
_COMPILED = np.array([kind in (NONE, *_PREPARED) for kind in range(OPAQUE + 1)])
