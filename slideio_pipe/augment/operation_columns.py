"""Colour operations of many tiles as arrays: the kind of each, and its numbers.

The numbers are the fields of the operation's record in their order: brightness, contrast, pivot, gamma; the factor of
a saturation; turn, saturation, value; the matrix row by row, then the offset; gain, then bias; sigma, then seed. Those
that an operation does not have are 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.augment.operations import Hsv, Lab, Noise, Opaque, Operation, Saturation, Stain, Tone
from slideio_pipe.config import Record
from slideio_pipe.errors import ConfigError

NONE, TONE, SATURATION, HSV, STAIN, LAB, NOISE, OPAQUE = range(8)
# Numbers of the longest: a matrix and an offset.
NUMBERS = 12

_RECORDS: dict[int, type[Record]] = {
    TONE: Tone, SATURATION: Saturation, HSV: Hsv, STAIN: Stain, LAB: Lab, NOISE: Noise
}  # fmt: skip
_KINDS: dict[type[Record], int] = {record: kind for kind, record in _RECORDS.items()} | {Opaque: OPAQUE}
_IDENTITY = np.array([1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0], np.float64)


class _Layout:
    """Where the fields of a record are among its numbers, their defaults and their bounds."""

    def __init__(self, record: type[Record]) -> None:
        self.places: dict[str, slice] = {}
        self.widths: dict[str, int] = {}
        self.defaults = np.zeros(NUMBERS)
        self.lowest, self.above = np.full(NUMBERS, -np.inf), np.full(NUMBERS, -np.inf)
        start = 0
        for name, field in record.model_fields.items():
            if name == "kind":
                continue
            default = np.ravel(0.0 if field.is_required() else field.default)
            place = self.places[name] = slice(start, start + len(default))
            start, self.widths[name] = start + len(default), len(default)
            self.defaults[place] = default
            for bound in field.metadata:
                self.lowest[place] = np.maximum(self.lowest[place], getattr(bound, "ge", -np.inf))
                self.above[place] = np.maximum(self.above[place], getattr(bound, "gt", -np.inf))


_LAYOUTS = {record: _Layout(record) for record in _RECORDS.values()}
_NAMES: dict[type[Record], list[str]] = {record: list(layout.places) for record, layout in _LAYOUTS.items()}


class Column(NamedTuple):
    """One operation of each of n tiles."""

    kinds: NDArray[np.int8]  # (n,); ``NONE`` where it changes nothing
    numbers: NDArray[np.float64]  # (n, 12)

    @property
    def is_identity(self) -> bool:
        """Return False: tiles differ."""
        return False


class OperationColumns(NamedTuple):
    """Every operation of each of n tiles, or one row for all tiles of a batch."""

    kinds: NDArray[np.int8]  # (n, m); ``NONE`` where nothing changes
    numbers: NDArray[np.float64]  # (n, m, 12)
    shared: bool = False  # whether the one row is for all tiles

    @classmethod
    def of(cls, rows: Sequence[Sequence[Operation]], *, shared: bool = False) -> OperationColumns:
        """Return the arrays of records, one sequence for each tile; those that change nothing are left out."""
        kept = [[each for each in row if not each.is_identity] for row in rows]
        most = max(map(len, kept), default=0)
        kinds, numbers = np.zeros((len(kept), most), np.int8), np.zeros((len(kept), most, NUMBERS))
        for row, operations in enumerate(kept):
            for place, each in enumerate(operations):
                kinds[row, place], numbers[row, place] = kind_of(each), numbers_of(each)
        return cls(kinds, numbers, shared)

    def after(self, first: OperationColumns) -> OperationColumns:
        """Return these operations of each tile after those of ``first``, which are one row for all."""
        count = len(self.kinds)
        kinds = np.concatenate([np.repeat(first.kinds, count, axis=0), self.kinds], axis=1)
        numbers = np.concatenate([np.repeat(first.numbers, count, axis=0), self.numbers], axis=1)
        return OperationColumns(kinds, numbers)


def operation(record: type[Record], **fields: Any) -> Any:
    """Return the record with these fields, or a ``Column`` if they are arrays with one value per tile.

    Raises
    ------
    ConfigError
        A value of an array is not finite, or out of the field's bounds; ``record`` itself raises pydantic's error.

    Examples
    --------
    >>> operation(Saturation, factor=0.5)
    Saturation(kind='saturation', factor=0.5)
    >>> operation(Saturation, factor=np.array([0.5, 1.0])).kinds.tolist()
    [2, 0]
    """
    count = next((len(value) for value in fields.values() if isinstance(value, np.ndarray)), None)
    if count is None:
        return record(**fields)
    layout = _LAYOUTS[record]
    numbers = np.empty((count, NUMBERS))
    numbers[:] = layout.defaults
    for name, values in fields.items():
        numbers[:, layout.places[name]] = np.reshape(values, (-1, layout.widths[name]))
    if not (np.isfinite(numbers).all() and (numbers >= layout.lowest).all() and (numbers > layout.above).all()):
        raise ConfigError(f"{record.__name__}: a number out of bounds", remedy="pass other limits")
    kind = _KINDS[record]
    return Column(np.where(_changes_nothing(kind, numbers), NONE, kind).astype(np.int8), numbers)


def in_order(order: NDArray[np.int64], *operations: Any) -> tuple[Any, ...]:
    """Return operations in the order of their positions, (k,), or of each tile's own, (n, k)."""
    if order.ndim == 1:
        return tuple(operations[place] for place in order)
    row = np.arange(len(order))
    kinds, numbers = (np.stack(values) for values in zip(*operations, strict=True))
    return tuple(Column(kinds[place, row], numbers[place, row]) for place in order.T)


def repeated(record: Operation, count: int) -> Column:
    """Return the same operation for ``count`` tiles."""
    kinds = np.full(count, NONE if record.is_identity else _KINDS[type(record)], np.int8)
    return Column(kinds, np.tile(numbers_of(record), (count, 1)))


def kind_of(record: Operation) -> int:
    """Return the kind of an operation."""
    return _KINDS[type(record)]


def numbers_of(record: Operation) -> list[float]:
    """Return the 12 numbers of an operation; zeros if it is opaque."""
    numbers: list[Any] = [] if isinstance(record, Opaque) else [getattr(record, name) for name in _NAMES[type(record)]]
    while any(isinstance(number, tuple) for number in numbers):
        numbers = [each for number in numbers for each in (number if isinstance(number, tuple) else (number,))]
    return numbers + [0.0] * (NUMBERS - len(numbers))


def record_of(kind: int, numbers: NDArray[np.float64]) -> Operation:
    """Return the operation of a kind with these (12,) numbers."""
    a, b, c, d, e, f, g, h, i, *offset = numbers.tolist()
    if kind == TONE:
        return Tone(brightness=a, contrast=b, pivot=c, gamma=d)
    if kind == SATURATION:
        return Saturation(factor=a)
    if kind == HSV:
        return Hsv(turn=a, saturation=b, value=c)
    if kind == STAIN:
        return Stain(matrix=((a, b, c), (d, e, f), (g, h, i)), offset=(offset[0], offset[1], offset[2]))
    if kind == LAB:
        return Lab(gain=(a, b, c), bias=(d, e, f))
    return Noise(sigma=a, seed=int(b))


def _changes_nothing(kind: int, numbers: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return (n,) what ``is_identity`` of the records is."""
    if kind == TONE:
        return np.asarray((numbers[:, [0, 1, 3]] == 1).all(1))
    if kind == SATURATION:
        return np.asarray(numbers[:, 0] == 1)
    if kind == HSV:
        return np.asarray((numbers[:, 0] % 1 == 0) & (numbers[:, 1:3] == 0).all(1))
    if kind == STAIN:
        return np.asarray((numbers == _IDENTITY).all(1))
    if kind == LAB:
        return np.asarray((numbers[:, :3] == 1).all(1) & (numbers[:, 3:6] == 0).all(1))
    return np.asarray(numbers[:, 0] == 0)
