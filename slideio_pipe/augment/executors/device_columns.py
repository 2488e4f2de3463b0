"""The colour operations of a batch as arrays for the device, and the order in which it runs them.

Tiles may have their operations in any order. A batch takes one pass per slot of ``slots``: the tiles whose next
operation is of the slot's kind, gathered. Cheap kinds come first, so that an expensive one waits until as many tiles
as possible need it: the number of slots depends on the kinds, not on the number of different orders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.augment.executors.device_steps import HSV_SHAPE, LOG2_E
from slideio_pipe.augment.operation_columns import (
    HSV,
    LAB,
    NOISE,
    NONE,
    NUMBERS,
    OPAQUE,
    SATURATION,
    STAIN,
    TONE,
    OperationColumns,
)
from slideio_pipe.augment.operations import LUMA, Lab
from slideio_pipe.errors import ConfigError

Floats = NDArray[np.float64]

# Kinds on the device, cheap ones first; 0 is none. ``device_steps.STEPS`` has what they do.
KINDS = ("", "mix", "tone", "noise", "stain", "hsv", "lab")
_MIX, _TONE, _NOISE, _STAIN, _HSV, _LAB = range(1, len(KINDS))
_CHEAP = _TONE  # and those below it


class Slot(NamedTuple):
    """One pass over some tiles of a batch."""

    kind: int  # position in ``KINDS``
    tiles: NDArray[np.int64]  # (k,) ascending
    steps: NDArray[np.int64]  # (k,) the column of each in ``DeviceColumns``


class DeviceColumns(NamedTuple):
    """Operations of n tiles, or one row for all tiles of a batch."""

    kinds: NDArray[np.int8]  # (n, m + 1) positions in ``KINDS``; the last column is 0
    numbers: NDArray[np.float32]  # (n, m, 12)

    @classmethod
    def of(cls, columns: OperationColumns) -> DeviceColumns:
        """Return operations as the device computes them; raise ConfigError if one of them is opaque."""
        if (columns.kinds == OPAQUE).any():
            raise ConfigError("an opaque operation cannot run on a batch", remedy="use it in the slide's transform")
        count, most = columns.kinds.shape
        padded = np.zeros((count, most + 1), np.int8)
        kinds, numbers = padded[:, :most], np.zeros((count, most, NUMBERS), np.float32)
        for kind, made, lowered in _LOWERED:
            chosen = columns.kinds == kind
            if kind == TONE:
                chosen &= (columns.numbers[:, :, 3] == 1) == (made == _MIX)
            if chosen.any():
                kinds[chosen], numbers[chosen] = made, lowered(columns.numbers[chosen])
        return cls(padded, numbers)

    def slots(self, rows: slice = slice(None)) -> list[Slot]:
        """Return the passes that run every operation of some tiles, each tile's in its own order."""
        kinds = self.kinds[rows]
        tiles, step = np.arange(len(kinds)), np.zeros(len(kinds), np.int64)
        most, slots = kinds.shape[1] - 1, list[Slot]()
        while True:
            while (idle := (kinds[tiles, step] == NONE) & (step < most)).any():
                step[idle] += 1
            counts = np.bincount(kinds[tiles, step], minlength=len(KINDS))
            counts[0] = 0
            if not counts.any():
                return slots
            cheap = np.flatnonzero(counts[: _CHEAP + 1])
            kind = int(cheap[0]) if len(cheap) else int(counts.argmax())
            chosen = np.flatnonzero(kinds[tiles, step] == kind)
            slots.append(Slot(kind, chosen, step[chosen].copy()))
            step[chosen] += 1


def _line(numbers: Floats) -> Floats:
    """Return tones whose gamma is 1 as matrices with offsets."""
    brightness, contrast, pivot = numbers[:, :3].T
    matrix = (brightness * contrast)[:, None] * np.eye(3).ravel()
    return np.concatenate([matrix, np.repeat((255 * pivot * (1 - contrast))[:, None], 3, axis=1)], axis=1)


def _tone(numbers: Floats) -> Floats:
    brightness, contrast, pivot, gamma = numbers[:, :4].T
    return _filled(brightness * contrast / 255, pivot * (1 - contrast), gamma)


def _saturation(numbers: Floats) -> Floats:
    factor, grey = numbers[:, :1], np.tile(LUMA, 3)
    return np.concatenate([factor * np.eye(3).ravel() + (1 - factor) * grey, np.zeros((len(numbers), 3))], axis=1)


def _hsv(numbers: Floats) -> Floats:
    values = _filled(6 * (numbers[:, 0] % 1), numbers[:, 1], 255 * numbers[:, 2])
    values[:, 3:] = HSV_SHAPE
    return values


def _stain(numbers: Floats) -> Floats:
    return np.concatenate([numbers[:, :9], -LOG2_E * numbers[:, 9:]], axis=1)


def _lab(numbers: Floats) -> Floats:
    mixes = [Lab(gain=tuple(row[:3]), bias=tuple(row[3:6])).mix() for row in numbers.tolist()]
    return np.array([[*mix[:, :3].ravel(), *mix[:, 3]] for mix in mixes])


def _noise(numbers: Floats) -> Floats:
    # Two keys of 24 bits, which float32 holds exactly.
    keys = [np.random.SeedSequence(int(seed)).generate_state(2, np.uint32) >> 8 for seed in numbers[:, 1]]
    return _filled(numbers[:, 0], *np.array(keys, np.float64).T)


def _filled(*columns: NDArray[np.float64]) -> Floats:
    values = np.zeros((len(columns[0]), NUMBERS))
    values[:, : len(columns)] = np.stack(columns, axis=1)
    return values


_LOWERED: Sequence[tuple[int, int, Callable[[Floats], Floats]]] = (
    (TONE, _MIX, _line),
    (TONE, _TONE, _tone),
    (SATURATION, _MIX, _saturation),
    (HSV, _HSV, _hsv),
    (STAIN, _STAIN, _stain),
    (LAB, _LAB, _lab),
    (NOISE, _NOISE, _noise),
)
