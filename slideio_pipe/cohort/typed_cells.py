"""Convert cells with a type (of Excel, Parquet, a DataFrame, a dictionary) to the text that a CSV has."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from slideio_pipe.errors import ConfigError

# What stands for a missing value in pandas; its packages are not imported here.
_MISSING = ("NAType", "NaTType")
_EXACT = 2**53  # decimals below are exact


def texts_of(cells: Sequence[Any], column: str) -> tuple[list[str], bool]:
    """Return a column as text, "" for a missing value; and whether it has numbers.

    Whole numbers stay whole where the source has them as decimals: pandas does if a cell is empty. Dates are written as
    2024-05-31.

    >>> texts_of([1.0, None, 3.0], "fold"), texts_of([0.5, 1.0], "mpp"), texts_of([" 007", True], "id")
    ((['1', '', '3'], True), (['0.5', '1.0'], True), (['007', 'True'], False))
    """
    plain = [_plain(cell) for cell in cells]
    numbers: list[Any] = [
        cell for cell in plain if isinstance(cell, int | float | Decimal) and not isinstance(cell, bool)
    ]
    if numbers and all(abs(number) < _EXACT and number == int(number) for number in numbers):
        plain = [int(cell) if isinstance(cell, float | Decimal) else cell for cell in plain]
    return [_text(cell, column) for cell in plain], bool(numbers)


def _plain(cell: Any) -> Any:
    """Return a cell as a value of Python, None if it is missing."""
    if type(cell).__module__ == "numpy" and hasattr(cell, "item") and getattr(cell, "ndim", 0) == 0:
        cell = cell.item()
    is_nan = isinstance(cell, float | Decimal) and math.isnan(cell)
    return None if is_nan or type(cell).__name__ in _MISSING else cell


def _text(cell: Any, column: str) -> str:
    if cell is None:
        return ""
    if isinstance(cell, bytes | bytearray | list | tuple | dict | set) or type(cell).__module__ == "numpy":
        reason = f'a cell of the column "{column}" is a {type(cell).__name__}'
        raise ConfigError(reason, remedy="give each cell one value: a text, a number or a date")
    if isinstance(cell, datetime.datetime):
        is_day = cell.time() == datetime.time() and cell.tzinfo is None
        return cell.date().isoformat() if is_day else cell.isoformat(sep=" ")
    return str(cell).strip()
