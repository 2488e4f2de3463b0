"""Read and write sheets of Excel files (.xlsx)."""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slideio_pipe.cohort.cells import is_decimal
from slideio_pipe.cohort.typed_cells import texts_of
from slideio_pipe.errors import ConfigError, require
from slideio_pipe.files import not_there

EXCEL = (".xlsx", ".xlsm")
# Formats that are not read, with the usual endings of spreadsheets.
OTHER_SHEETS = (".xls", ".xlsb", ".ods", ".numbers")
_SHEET = re.compile(r"(.+\.xls[xm])#(.+)", re.IGNORECASE)
# A number format that shows leading zeros: 0000.
_ZEROS = re.compile("0{2,}")
_ERRORS = ("#REF!", "#DIV/0!", "#VALUE!", "#NAME?", "#NULL!", "#NUM!")
_LONGEST = 32_767  # characters of a cell, by Excel's specification
_SHOWN = 10
# Columns of ours that are written as text although they look like numbers: Excel would drop zeros of ids typed later.
_TEXT = ("slide", "name", "mask", "patient", "split", "cell_file")

Cells = list[list[Any]]


def sheet_of(path: Path) -> tuple[Path, str | None]:
    """Return the file and the sheet of a path such as ``table.xlsx#Sheet2``.

    >>> sheet_of(Path("x/table.xlsx#Sheet2"))[1], sheet_of(Path("table.xlsx"))[1]
    ('Sheet2', None)
    """
    found = _SHEET.fullmatch(path.name)
    return (path, None) if found is None or path.exists() else (path.with_name(found[1]), found[2])


def read_sheet(path: Path, sheet: str | None) -> tuple[list[str], list[list[str]], list[str], set[str], list[str]]:
    """Return header, rows, places, columns with numbers, and notes of a sheet; by default the first visible one.

    The header is the first row that is not empty. Raise ConfigError if cells are merged, are errors, or are formulas
    whose result the file does not have.
    """
    book = _opened(path)
    chosen, notes = _chosen(path, book, sheet)
    lines = [(number, row) for number, row in enumerate(chosen.iter_rows(), 1) if any(c.value is not None for c in row)]
    if not lines:
        raise ConfigError(f'sheet "{chosen.title}" is empty', slide=str(path), remedy='write a column "slide"')
    first, filled = lines[0][0], lines[1:]
    _refuse_merged(path, chosen, first)
    values = _values(path, chosen, filled)
    header = ["" if cell.value is None else str(cell.value).strip() for cell in lines[0][1]]
    columns = [texts_of(column, name) for name, column in zip(header, zip(*values, strict=True), strict=False)]
    columns = columns or [([], False) for _ in header]
    kept = [k for k, name in enumerate(header) if name or any(columns[k][0])]
    rows = [list(row) for row in zip(*(columns[k][0] for k in kept), strict=True)]
    places = [f"row {number}" for number, _ in filled]
    hidden = sum(chosen.row_dimensions[number].hidden for number, _ in filled)
    if hidden:
        notes.append(f'{hidden} of {len(filled)} rows of the sheet "{chosen.title}" are hidden, and are read as well')
    return [header[k] for k in kept], rows, places, {header[k] for k in kept if columns[k][1]}, notes


def sheet_bytes(header: Sequence[str], rows: Sequence[Mapping[str, str]]) -> bytes:
    """Return rows as an Excel file of one sheet; a column is of numbers if Excel keeps each of them as it is written.

    Raise ConfigError if Excel cannot have a cell: longer than 32,767 characters, or with a control character.
    """
    openpyxl = require("openpyxl", "excel")
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "cohort"
    for column, name in enumerate(header, 1):
        cells = [row.get(name) or "" for row in rows]
        as_numbers = name not in _TEXT and all(cell == "" or _is_kept(cell) for cell in cells)
        for line, cell in enumerate([name, *cells], 1):
            if cell != "":
                _write(sheet.cell(line, column), cell, as_number=as_numbers and line > 1)
    sheet.freeze_panes = "A2"
    target = io.BytesIO()
    book.save(target)
    return target.getvalue()


def _write(place: Any, cell: str, *, as_number: bool) -> None:
    from openpyxl.utils.exceptions import IllegalCharacterError

    if len(cell) > _LONGEST:
        reason = f"a cell of {len(cell):,} characters, and Excel has {_LONGEST:,} at most"
        raise ConfigError(reason, remedy="write it as .csv or .parquet")
    if as_number:
        place.value = float(cell) if "." in cell else int(cell)
        return
    try:
        place.value = cell
        place.data_type = "s"  # text, also "=1+1" and "#N/A"
    except IllegalCharacterError:
        reason = f"{cell!r} has a character that Excel cannot have"
        raise ConfigError(reason, remedy="write it as .csv or .parquet") from None


def _is_kept(cell: str) -> bool:
    """Return whether a cell is the same text after Excel had it as a number; 1.0 becomes 1."""
    if not is_decimal(cell) or "e" in cell.lower():
        return False
    number = float(cell)
    return cell == (str(int(number)) if number.is_integer() else repr(number))


def _opened(path: Path, **how: Any) -> Any:
    openpyxl = require("openpyxl", "excel")
    try:
        with warnings.catch_warnings(action="ignore"):  # of parts that openpyxl does not read, such as drop-down lists
            return openpyxl.load_workbook(path, **how)
    except FileNotFoundError as error:
        raise not_there(ConfigError, "cannot be read (no such file)", path) from error
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, SyntaxError, TypeError, AttributeError) as error:
        reason = f"cannot be read as Excel ({' '.join(str(error).split())[:200] or type(error).__name__})"
        remedy = "open it in Excel and save it as .xlsx, without a password"
        raise ConfigError(reason, slide=str(path), remedy=remedy) from error


def _chosen(path: Path, book: Any, name: str | None) -> tuple[Any, list[str]]:
    """Return the sheet of a name, or the first visible one with a note if there are several."""
    sheets = {sheet.title: sheet for sheet in book.worksheets}
    if name is not None:
        if name not in sheets:
            listed = ", ".join(f'"{title}"' for title in sheets)
            raise ConfigError(f'no sheet "{name}"', slide=str(path), remedy=f"there are: {listed}")
        return sheets[name], []
    visible = [sheet for sheet in sheets.values() if sheet.sheet_state == "visible"] or list(sheets.values())
    if not visible:
        raise ConfigError("has no sheet of cells", slide=str(path), remedy="check the file")
    others = ", ".join(f'"{title}"' for title in sheets if title != visible[0].title)
    title = visible[0].title
    note = f'{path.name}: the sheet "{title}" is read; {path.name}#NAME is another one, of {others}'
    return visible[0], [note] if others else []


def _refuse_merged(path: Path, sheet: Any, header_row: int) -> None:
    """Refuse merged cells below the header: a merged patient would belong to the first of its rows only."""
    merged = [str(cells) for cells in sheet.merged_cells.ranges if cells.max_row > header_row]
    if merged:
        more = f" and {len(merged) - _SHOWN} more" if len(merged) > _SHOWN else ""
        reason = f"cells {', '.join(merged[:_SHOWN])}{more} are merged"
        raise ConfigError(reason, slide=str(path), remedy="unmerge them in Excel, and fill each row")


def _values(path: Path, sheet: Any, lines: Sequence[tuple[int, Sequence[Any]]]) -> Cells:
    """Return the values of cells, of formulas their result."""
    values = [[_value(cell) for cell in row] for _, row in lines]
    formulas = [
        (line, column, cell)
        for line, (_, row) in enumerate(lines)
        for column, cell in enumerate(row)
        if cell.data_type == "f"
    ]
    problems = []
    if formulas:
        results = _opened(path, data_only=True)[sheet.title]
        for line, column, cell in formulas:
            result = results[cell.coordinate]
            values[line][column] = _value(result)
            if result.value is None:
                problems.append(f"{cell.coordinate} is a formula without a result")
    errors = [
        f"{row[column].coordinate} is {value}"
        for (_, row), found in zip(lines, values, strict=True)
        for column, value in enumerate(found)
        if value in _ERRORS
    ]
    if problems or errors:
        listed = [*problems, *errors]
        more = f"; and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
        remedy = "correct these cells, and save the file in Excel"
        raise ConfigError("; ".join(listed[:_SHOWN]) + more, slide=str(path), remedy=remedy)
    return values


def _value(cell: Any) -> Any:
    """Return the value of a cell; a whole number whose format shows leading zeros is the text that Excel shows."""
    value = cell.value
    if isinstance(value, int) and not isinstance(value, bool) and _ZEROS.fullmatch(cell.number_format or ""):
        return f"{value:0{len(cell.number_format)}d}"
    return value
