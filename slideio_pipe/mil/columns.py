"""Convert cells of a cohort's columns to targets: a class, a number, or an event."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from slideio_pipe.cohort.cells import has_decimal_comma, is_decimal, labels_of
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.cohort.patients import counted, unit_of
from slideio_pipe.errors import ConfigError

_SHOWN = 5
# cBioPortal's overall survival status: "1:DECEASED", "0:LIVING".
_CODED = re.compile(r"([01]):.+")
_TRUTH = {"true": 1.0, "false": 0.0}


def class_of(value: Any) -> str | None:
    """Return a label as a class name: 1, 1.0 and "1.0" are one class; None for an empty cell.

    >>> class_of(1.0), class_of("1.0"), class_of("01"), class_of("low"), class_of("")
    ('1', '1', '01', 'low', None)
    """
    if isinstance(value, str):  # handled apart: the same column may be numeric in one cohort and text in another
        value = labels_of([value])[0]
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def number_of(value: Any) -> float:
    """Return a number, NaN for an empty cell or one without a number.

    >>> number_of("2.5"), number_of("3_4"), number_of(None)
    (2.5, nan, nan)
    """
    if isinstance(value, str) and not is_decimal(value.strip()):  # float() reads "3_4" as 34
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def event_of(value: Any) -> float:
    """Return 1 if the event happened, 0 if not, NaN for any other cell.

    >>> [event_of(cell) for cell in ("1", "False", "1:DECEASED", "0:LIVING", "dead")]
    [1.0, 0.0, 1.0, 0.0, nan]
    """
    if isinstance(value, str):
        text = value.strip()
        coded = _CODED.fullmatch(text)
        return float(coded[1]) if coded else _TRUTH.get(text.casefold(), number_of(text))
    return number_of(value)


def read_column(
    slides: Sequence[CohortSlide],
    cells: Sequence[Any],
    column: str,
    read: Callable[[Any], float],
    *,
    wrong: Callable[[float], bool] = math.isnan,
    wanted: str = "a number",
) -> list[float]:
    """Return the values of a column, NaN for empty cells.

    Raise ConfigError, which names the slides, if cells are invalid and not empty.
    """
    values = [read(cell) for cell in cells]
    found = [
        (slide.name, cell)
        for slide, cell, value in zip(slides, cells, values, strict=True)
        if cell is not None and cell != "" and wrong(value)
    ]
    if found:
        shown = ", ".join(f"{name} ({cell})" for name, cell in found[:_SHOWN]) + (", …" if len(found) > _SHOWN else "")
        reason = f"{column} of {counted(len(found), slides)} is not {wanted}: {shown}"
        raise ConfigError(reason, remedy=_remedy([cell for _, cell in found]))
    return values


def _remedy(cells: Sequence[Any]) -> str:
    if all(isinstance(cell, str) and has_decimal_comma(cell) for cell in cells):
        return "write it with a decimal point"
    if {number_of(cell) for cell in cells} == {2.0}:
        return "write 1 where it happened and 0 where it did not (in R's coding 2 is the event, 1 is none)"
    return "correct the cohort, or leave these slides out"


def refuse_missing(slides: Sequence[CohortSlide], missing: Sequence[bool], column: str) -> None:
    """Refuse to train on slides with an empty cell in a column; raise ConfigError if there are such slides."""
    names = [slide.name for slide, is_missing in zip(slides, missing, strict=True) if is_missing]
    if names:
        shown = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
        raise ConfigError(
            f"{len(names)} of {len(slides)} training {unit_of(slides)}s have no {column}: {shown}",
            remedy=f"fill it in, or leave these {unit_of(slides)}s out",
        )
