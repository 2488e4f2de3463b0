"""Tables of slides on disk: rows of a CSV or Parquet file as text, slides of a folder or pattern, and tables back."""

from __future__ import annotations

import csv
import glob
import importlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slideio_pipe.errors import ConfigError, MissingExtraError
from slideio_pipe.mask_files import write_file

TABLES = (".csv", ".tsv", ".txt", ".parquet")
# What a folder is searched for. Pictures are left out: masks and thumbnails lie beside slides.
SLIDES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".dcm")
_FOLDER_SLIDES = (".zarr",)


@dataclass(frozen=True, slots=True)
class Table:
    """A manifest as it was found: every cell as stripped text, "" where there is none."""

    header: tuple[str, ...]
    rows: tuple[dict[str, str], ...]
    places: tuple[str, ...]  # where each row stands: "line 7"


def read_table(path: Path) -> Table:
    """Return the rows of a CSV (or of a Parquet file, by its ending); empty lines are passed over.

    Raises
    ------
    ConfigError
        It cannot be read, or is empty.
    MissingExtraError
        It is Parquet and pyarrow is not installed.
    """
    return _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)


def write_table(path: Path, header: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    """Write a table as CSV, or as Parquet by its ending; whole or not at all, in place of what was there.

    Raises
    ------
    OutputError
        The disk refuses.
    MissingExtraError
        It is to be Parquet and pyarrow is not installed.
    """
    write_file(path, _encoded(path, header, rows), overwrite=True)


def slides_in(source: Path) -> list[Path] | None:
    """Return the slides of a folder or of a pattern such as ``raw/*.svs``, in order; None for anything else.

    A folder that is a slide itself, DICOM or OME-Zarr, is anything else.
    """
    if source.is_dir():
        if _is_folder_slide(source):
            return None
        return sorted(path.absolute() for path in source.iterdir() if _looks_like_slide(path))
    if not source.exists() and glob.has_magic(str(source)):
        return sorted(Path(path).absolute() for path in glob.glob(str(source), recursive=True))
    return None


def _looks_like_slide(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    endings = _FOLDER_SLIDES if path.is_dir() else SLIDES
    return path.suffix.lower() in endings


def _is_folder_slide(folder: Path) -> bool:
    if folder.suffix.lower() in _FOLDER_SLIDES:
        return True
    return any(p.name in ("zarr.json", ".zgroup", ".zarray") or p.suffix.lower() == ".dcm" for p in folder.iterdir())


def _read_csv(path: Path) -> Table:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", slide=str(path), remedy="check the path") from error
    except UnicodeDecodeError as error:
        raise ConfigError("is no CSV in UTF-8", slide=str(path), remedy="save it as CSV, UTF-8") from error
    if not lines or not lines[0].strip():
        raise ConfigError("is empty", slide=str(path), remedy='write a column "slide"')
    # A spreadsheet writes semicolons where the comma is for decimals.
    delimiter = max(",;\t", key=lines[0].count)
    reader = csv.reader(lines, delimiter=delimiter)
    header = tuple(name.strip() for name in next(reader))
    rows, places = [], []
    for row in reader:
        cells = [cell.strip() for cell in row]
        if any(cells):
            rows.append(dict(zip(header, cells, strict=False)))
            places.append(f"line {reader.line_num}")
    return Table(header, tuple(rows), tuple(places))


def _read_parquet(path: Path) -> Table:
    parquet = _pyarrow("pyarrow.parquet", path)
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
        _pyarrow("pyarrow.parquet", path).write_table(_pyarrow("pyarrow", path).table(columns), sink)
        return sink.getvalue()
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([[row.get(name, "") for name in header] for row in rows])
    return text.getvalue().encode("utf-8")


def _pyarrow(module: str, path: Path) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        remedy = 'pip install "slideio-pipe[parquet]", or save it as CSV'
        raise MissingExtraError("Parquet needs pyarrow", slide=str(path), remedy=remedy) from error
