"""Read and write tables of slides: rows of a CSV or Parquet file as text."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Any

from slideio_pipe.errors import ConfigError, require
from slideio_pipe.files import not_there, write_file

TABLES = (".csv", ".tsv", ".txt", ".parquet")
# Column names of CLAM and other tools.
ALIASES = {"slide_id": "slide", "case_id": "patient"}
_SHOWN = 10  # problems in one message


@dataclass(frozen=True, slots=True)
class Table:
    """A manifest as read: every cell as stripped text, "" for an empty cell."""

    header: tuple[str, ...]
    rows: tuple[dict[str, str], ...]
    places: tuple[str, ...]  # location of each row: "line 7"


def read_table(path: Path) -> Table:
    """Return the rows of a CSV, or of a Parquet file by its ending; empty lines are skipped.

    CLAM's columns ``slide_id`` and ``case_id`` are also returned as "slide" and "patient", unless the table has columns
    of these names. Raise ConfigError if it cannot be read, is empty, or has rows with more cells than the header;
    MissingExtraError if it is Parquet and pyarrow is not installed.
    """
    return _with_our_names(_read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path))


def write_table(path: Path, header: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    """Write a table as CSV, or as Parquet by its ending; complete or not at all, replacing an existing file.

    Raise OutputError if the file cannot be written, MissingExtraError if the ending is Parquet's and pyarrow is not
    installed.
    """
    write_file(path, _encoded(path, header, rows), overwrite=True)


def file_name(cell: str) -> str:
    """Return the file name of a path in a cell, also of a Windows path.

    >>> file_name("x/a.svs"), file_name(r"C:\\data\\a.svs")
    ('a.svs', 'a.svs')
    """
    return PureWindowsPath(cell).name if is_windows_path(cell) else Path(cell).name


def is_windows_path(cell: str) -> bool:
    """Return whether a path is separated by backslashes."""
    return "\\" in cell and "/" not in cell


def _with_our_names(table: Table) -> Table:
    aliases = {theirs: ours for theirs, ours in ALIASES.items() if theirs in table.header and ours not in table.header}
    if not aliases:
        return table
    header = (*table.header, *aliases.values())
    rows = [row | {ours: row.get(theirs, "") for theirs, ours in aliases.items()} for row in table.rows]
    return replace(table, header=header, rows=tuple(rows))


def _read_csv(path: Path) -> Table:
    text = _text_of(path)
    first = text.partition("\n")[0]
    if not first.strip():
        raise ConfigError("is empty", slide=str(path), remedy='write a column "slide"')
    # A spreadsheet writes semicolons where the comma is the decimal sign.
    delimiter = max(",;\t", key=first.count)
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


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
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
    rows = tuple({str(name).strip(): _text(cell) for name, cell in row.items()} for row in table.to_pylist())
    header = tuple(str(name).strip() for name in table.column_names)
    return Table(header, rows, tuple(f"row {number}" for number in range(1, len(rows) + 1)))


def _text(cell: Any) -> str:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    return str(cell).strip()


def _encoded(path: Path, header: Sequence[str], rows: Sequence[Mapping[str, str]]) -> bytes:
    if path.suffix.lower() == ".parquet":
        columns = {name: [row.get(name) or None for row in rows] for name in header}
        sink = io.BytesIO()
        require("pyarrow.parquet", "parquet").write_table(require("pyarrow", "parquet").table(columns), sink)
        return sink.getvalue()
    return csv_bytes(header, rows)


def csv_bytes(header: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Return rows as CSV in UTF-8, with a header; a missing cell and None are empty.

    >>> csv_bytes(["slide", "tiles"], [{"slide": "a.svs", "tiles": 3}])
    b'slide,tiles\\na.svs,3\\n'
    """
    columns = list(header)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([row.get(name, "") for name in columns] for row in rows)
    return text.getvalue().encode()


def columns_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the names of all cells, each once, in the order of their first row."""
    return list(dict.fromkeys(name for row in rows for name in row))
