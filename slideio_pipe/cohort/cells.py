"""Interpret cells of a manifest: a missing value, a label, a resolution, a fold."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from slideio_pipe.geometry import too_fine
from slideio_pipe.tiles.bag import Label

# Words for a missing value, besides an empty cell: the defaults of pandas.read_csv(na_values=…), which include those
# of R's write.csv ("NA"), pandas' astype(str) ("nan", "None", "<NA>"), SQL and Excel.
MISSING = frozenset(
    {
        "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN",
        "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null", "NaT",
    }
)  # fmt: skip
# The words among these that are never a class name.
_NEVER_A_CLASS = frozenset({word for word in MISSING if "#" in word} | {"NaN", "nan", "-NaN", "-nan", "<NA>", "NaT"})
# Whole numbers and decimals as tables write them. A leading zero ("01") marks a name, and so does "3_4", which Python's
# int() reads as 34.
_WHOLE = re.compile(r"[+-]?(0|[1-9][0-9]*)")
_DECIMAL = re.compile(r"[+-]?(0|[1-9][0-9]*)?(\.[0-9]*)?([eE][+-]?[0-9]+)?")
# A number with the decimal comma of a European spreadsheet.
_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+")


def value_of(cell: str) -> str:
    """Return the text of a cell, "" for a missing value.

    >>> value_of("NA"), value_of("low")
    ('', 'low')
    """
    return "" if cell in MISSING else cell


def is_decimal(cell: str) -> bool:
    """Return whether a cell is a finite number in the notation of tables.

    >>> [is_decimal(cell) for cell in ("1", "-0.5", "1e-3", "3_4", "01", "inf", "0,5", ".")]
    [True, True, True, False, False, False, False, False]
    """
    has_digit = any(character.isdigit() for character in re.split("[eE]", cell)[0])
    return has_digit and _DECIMAL.fullmatch(cell) is not None and math.isfinite(float(cell))


def has_decimal_comma(cell: str) -> bool:
    """Return whether a cell is a number except for its decimal comma.

    >>> has_decimal_comma("12,5"), has_decimal_comma("a,5")
    (True, False)
    """
    return _COMMA.fullmatch(cell) is not None


def labels_of(cells: Sequence[str]) -> list[Label]:
    """Return a column of labels as whole numbers if all of them are, else as numbers, else as text.

    A cell without a value is None, also "NA" and "nan".

    >>> labels_of(["0", "1", "nan"]), labels_of(["0.5", "1", ""]), labels_of(["3_4", "4_3"]), labels_of(["01", "02"])
    ([0, 1, None], [0.5, 1.0, None], ['3_4', '4_3'], ['01', '02'])
    """
    values = [value_of(cell) for cell in cells]
    known = [value for value in values if value]
    if all(_WHOLE.fullmatch(value) for value in known):
        return [int(value) if value else None for value in values]
    if all(is_decimal(value) for value in known):
        return [float(value) if value else None for value in values]
    return [value or None for value in values]


def missing_words(cells: Sequence[str]) -> dict[str, int]:
    """Return the words of a column that count as missing and could be a class name, with their counts.

    A column of numbers has none: there, "NA" is a missing value.

    >>> missing_words(["low", "None", "high", "None", "nan"]), missing_words(["0", "1", "NA"])
    ({'None': 2}, {})
    """
    if all(is_decimal(value) for cell in cells if (value := value_of(cell))):
        return {}
    words = [cell for cell in cells if cell in MISSING - _NEVER_A_CLASS]
    return {word: words.count(word) for word in dict.fromkeys(words)}


def infinite_labels(cells: Sequence[str]) -> list[str]:
    """Return the cells of a numeric column that are not finite: "inf", "1e999".

    >>> infinite_labels(["0", "inf", "NA"]), infinite_labels(["low", "inf"])
    (['inf'], [])
    """
    values = [value for cell in cells if (value := value_of(cell)) and not is_decimal(value)]
    numbers = len([cell for cell in cells if is_decimal(cell)])
    return list(dict.fromkeys(values)) if numbers and all(_is_infinite(value) for value in values) else []


def _is_infinite(cell: str) -> bool:
    return cell.isascii() and "_" not in cell and _parsed(cell) in (math.inf, -math.inf)


def _parsed(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def fold_of(cell: str) -> int | str | None:
    """Return the fold in a cell, or an error message."""
    text = value_of(cell)
    if not text:
        return None
    number = text.removesuffix(".0")  # a column with gaps is float in Parquet
    return int(number) if number.isascii() and number.isdigit() else f"fold {text!r} is no whole number"


def mpp_of(cell: str) -> float | str | None:
    """Return the resolution in a cell, or an error message."""
    text = value_of(cell)
    if not text:
        return None
    number = text.replace(",", ".")
    value = float(number) if is_decimal(number) else math.nan
    if not (math.isfinite(value) and value > 0):
        return f"mpp {text!r} is no resolution in µm per px"
    return f"mpp {text!r} is {too_fine(value)}" if too_fine(value) else value
