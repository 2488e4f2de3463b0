"""Read and write tables of slides: rows of a file (CSV, TSV, Excel, Parquet) or of a DataFrame, as text."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Any

from slideio_pipe.cohort.column_names import (
    ColumnChoice,
    column_choice,
    columns_taken,
    id_text,
    is_id,
    taken_note,
    warn_of_numbers,
)
from slideio_pipe.cohort.excel import EXCEL, OTHER_SHEETS, read_sheet, sheet_bytes, sheet_of
from slideio_pipe.cohort.frames import dictionary_columns, frame_columns, is_frame, is_rows, text_columns
from slideio_pipe.errors import ConfigError, require
from slideio_pipe.files import not_there, write_file

TABLES = (".csv", ".tsv", ".txt", ".parquet", ".xlsx")  # endings of tables that are written
_READ = (*TABLES, *EXCEL, *OTHER_SHEETS)
_SHOWN = 10  # problems in one message


@dataclass(frozen=True, slots=True)
class Table:
    """A manifest as read: every cell as stripped text, "" for an empty cell."""

    header: tuple[str, ...]
    rows: tuple[dict[str, str], ...]
    places: tuple[str, ...]  # location of each row: "line 7"
    numbers: frozenset[str] = frozenset()  # columns that the source stores as numbers
    notes: tuple[str, ...] = ()  # what was chosen while reading: a sheet, columns
    where: str | None = None  # name in messages
    folder: Path = Path()  # paths are relative to it


def is_table(source: Any) -> bool:
    """Return whether a source is a table: a file by its ending, a DataFrame, a list of dictionaries.

    >>> is_table("a.csv"), is_table("a.xlsx#Sheet2"), is_table([{"slide": "a.svs"}]), is_table("a.svs")
    (True, True, True, False)
    """
    if isinstance(source, str | Path):
        return sheet_of(Path(source).expanduser())[0].suffix.lower() in _READ
    return is_frame(source) or (isinstance(source, list | tuple) and is_rows(source))


def read_table(source: Any, *, columns: ColumnChoice = None, sheet: str | None = None) -> Table:
    """Return the rows of a table, with its columns also by our names; empty lines are skipped.

    Raise ConfigError if it cannot be read, is empty, has rows with more cells than the header, or two columns of one
    meaning; MissingExtraError if it is Parquet or Excel and the package that reads these is not installed.

    Parameters
    ----------
    source : path, DataFrame or list of dictionaries
        A path's ending is the format; any other ending is read as CSV.
    columns : dict or list of str, optional
        The table's column for some of ours: ``{"slide": "FILENAME"}`` or ``["slide=FILENAME"]``.
    sheet : str, optional
        Sheet of an Excel file; by default the first one.
    """
    table = raw_table(source, sheet=sheet)
    return with_our_names(table, column_choice(columns))


def raw_table(source: Any, *, sheet: str | None = None) -> Table:
    """Return the rows of a table with its own columns only."""
    if isinstance(source, str | Path):
        return _of_file(Path(source).expanduser(), sheet)
    if sheet is not None:
        raise ConfigError("a sheet is of an Excel file", remedy="leave it out")
    if is_frame(source):
        columns, notes = frame_columns(source)
        where = type(source).__name__
    else:
        columns, notes, where = dictionary_columns(source), [], "the list"
    header, cells, numbers = text_columns(columns)
    places = tuple(f"row {number}" for number in range(1, len(cells) + 1))
    rows = tuple(dict(zip(header, row, strict=True)) for row in cells)
    return Table(tuple(header), rows, places, frozenset(numbers), tuple(notes), where, Path.cwd())


def _of_file(path: Path, sheet: str | None) -> Table:
    file, named = sheet_of(path)
    ending = file.suffix.lower()
    if ending in OTHER_SHEETS:
        raise ConfigError(f"{ending} is not read", slide=str(file), remedy="save it as .xlsx or as CSV, UTF-8")
    if ending not in EXCEL:
        if sheet is not None:
            raise ConfigError("a sheet is of an Excel file", slide=str(file), remedy="leave it out")
        table = _read_parquet(file) if ending == ".parquet" else _read_csv(file)
    else:
        header, cells, places, numbers, notes = read_sheet(file, sheet if sheet is not None else named)
        if "" in header:
            raise ConfigError(
                "a column has cells and no name", slide=str(file), remedy="write its name into the header"
            )
        rows = tuple(dict(zip(header, row, strict=True)) for row in cells)
        table = Table(tuple(header), rows, tuple(places), frozenset(numbers), tuple(notes))
    return replace(table, where=str(file), folder=file.parent)


def with_our_names(table: Table, choice: Mapping[str, str], besides: Iterable[str] = ()) -> Table:
    """Return a table with its columns also by our names, but for some; our name comes first, unless one is chosen."""
    taken = columns_taken(table.header, choice, table.where, besides)
    for ours, theirs in taken.items():
        if is_id(ours) and theirs in table.numbers:
            warn_of_numbers(theirs, [row.get(theirs, "") for row in table.rows], table.where)
    ids = {theirs for ours, theirs in taken.items() if is_id(ours) and theirs in table.numbers}
    added = {ours: theirs for ours, theirs in taken.items() if ours != theirs}
    note = taken_note(taken)
    notes = table.notes if note is None else (*table.notes, f"{table.where}: {note}")
    if not (added or ids):
        return replace(table, notes=notes)
    whole = [row | {name: id_text(row.get(name, "")) for name in ids} for row in table.rows]
    rows = tuple(row | {ours: row.get(theirs, "") for ours, theirs in added.items()} for row in whole)
    header = (*table.header, *(name for name in added if name not in table.header))
    return replace(table, header=header, rows=rows, notes=notes)


def write_table(path: Path, header: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    """Write a table as CSV, TSV, Parquet or Excel by its ending; complete or not, replacing an existing file.

    Raise OutputError if the file cannot be written, MissingExtraError if the package that writes the format is not
    installed.
    """
    write_file(path, _encoded(path, header, rows), overwrite=True)


def file_name(cell: str) -> str:
    """Return the file name of a path in a cell, also of a Windows path.

    >>> file_name("x/a.svs"), file_name(r"C:\\data\\a.svs")
    ('a.svs', 'a.svs')
    """
    if "/" not in cell and "\\" not in cell and cell != ".":  # without a path's cost for each of 50,000 ids
        return cell
    return PureWindowsPath(cell).name if is_windows_path(cell) else Path(cell).name


def is_windows_path(cell: str) -> bool:
    """Return whether a path is separated by backslashes."""
    return "\\" in cell and "/" not in cell


def _read_csv(path: Path) -> Table:
    text = _text_of(path)
    first = re.split("[\r\n]", text, maxsplit=1)[0]
    if not first.strip():
        raise ConfigError("is empty", slide=str(path), remedy='write a column "slide"')
    delimiter = _delimiter(path, first)
    # Strict: otherwise an unclosed quote would read all following lines as one cell.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    lines: list[tuple[int, list[str]]] = []
    try:
        lines += [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as error:
        place = f"line {reader.line_num}: no CSV ({error})"
        raise ConfigError(place, slide=str(path), remedy="look at its quotes, and save it as CSV again") from error
    header = tuple(lines[0][1])
    filled = [(number, cells) for number, cells in lines[1:] if any(cells)]
    _refuse_longer(path, header, filled)
    rows = tuple(dict(zip(header, cells, strict=False)) for _, cells in filled)
    return Table(header, rows, tuple(f"line {number}" for number, _ in filled))


def _delimiter(path: Path, first: str) -> str:
    """Return the delimiter of the header. A spreadsheet writes semicolons where the comma is the decimal sign."""
    unquoted = re.sub('"[^"]*"', "", first)
    if path.suffix.lower() == ".tsv" and ("\t" in unquoted or not re.search("[,;]", unquoted)):
        return "\t"
    return max(",;\t", key=unquoted.count)


def _text_of(path: Path) -> str:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # line ends inside of cells stay
            return file.read()
    except OSError as error:
        raise not_there(ConfigError, f"cannot be read ({error.strerror})", path) from error
    except UnicodeDecodeError as error:
        raise ConfigError("is no CSV in UTF-8", slide=str(path), remedy="save it as CSV, UTF-8") from error


def _refuse_longer(path: Path, header: Sequence[str], lines: Sequence[tuple[int, list[str]]]) -> None:
    """Refuse rows with more cells than the header: their columns are unknown."""
    longer = [(number, len(cells)) for number, cells in lines if any(cells[len(header) :])]
    if not longer:
        return
    if len(longer) == len(lines) and {count for _, count in longer} == {len(header) + 1}:
        reason = "every row has one cell more than the header, as where R writes row names"
        remedy = "write it with write.csv(…, row.names = FALSE)"
        raise ConfigError(reason, slide=str(path), remedy=remedy)
    shown = "; ".join(
        f"line {number}: {count} cells, the header has {len(header)}" for number, count in longer[:_SHOWN]
    )
    more = f"; and {len(longer) - _SHOWN} more" if len(longer) > _SHOWN else ""
    raise ConfigError(shown + more, slide=str(path), remedy="put cells that hold the delimiter in quotes")


def _read_parquet(path: Path) -> Table:
    parquet = require("pyarrow.parquet", "parquet")
    try:
        table = parquet.read_table(path)
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"cannot be read ({reason})", slide=str(path), remedy="check the file") from error
    header, cells, numbers = text_columns(frame_columns(table)[0])
    rows = tuple(dict(zip(header, row, strict=True)) for row in cells)
    return Table(tuple(header), rows, tuple(f"row {k}" for k in range(1, len(rows) + 1)), frozenset(numbers))


def _encoded(path: Path, header: Sequence[str], rows: Sequence[Mapping[str, str]]) -> bytes:
    if path.suffix.lower() == ".parquet":
        columns = {name: [row.get(name) or None for row in rows] for name in header}
        sink = io.BytesIO()
        require("pyarrow.parquet", "parquet").write_table(require("pyarrow", "parquet").table(columns), sink)
        return sink.getvalue()
    if path.suffix.lower() == ".xlsx":
        return sheet_bytes(header, rows)
    return csv_bytes(header, rows, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")


def csv_bytes(header: Iterable[str], rows: Iterable[Mapping[str, Any]], *, delimiter: str = ",") -> bytes:
    """Return rows as CSV in UTF-8, with a header; a missing cell and None are empty.

    >>> csv_bytes(["slide", "tiles"], [{"slide": "a.svs", "tiles": 3}])
    b'slide,tiles\\na.svs,3\\n'
    """
    columns = list(header)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n", delimiter=delimiter)
    writer.writerow(columns)
    writer.writerows([row.get(name, "") for name in columns] for row in rows)
    return text.getvalue().encode()


def columns_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the names of all cells, each once, in the order of their first row."""
    return list(dict.fromkeys(name for row in rows for name in row))
