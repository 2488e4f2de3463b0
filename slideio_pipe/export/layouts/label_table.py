"""Tables of labels and patients that go with a folder of bags."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slideio_pipe.errors import OutputExistsError
from slideio_pipe.files import replacing


def write_labels(path: Path, rows: Sequence[dict[str, Any]]) -> list[Path]:
    """Write rows whose label is known, after those of other slides that are there already; return what was written."""
    if not rows:
        return []
    key = "slide_id" if "slide_id" in rows[0] else next(iter(rows[0]))
    return write_rows(path, [row for row in rows if row["label"] is not None], key, others=rows)


def write_rows(
    path: Path, rows: Sequence[dict[str, Any]], key: str, *, others: Sequence[dict[str, Any]] = ()
) -> list[Path]:
    """Write rows, after those that are there already; return what was written.

    Parameters
    ----------
    path : Path
    rows : sequence of dict
        All with the same columns. Without one, nothing is written.
    key : str
        The column that tells rows apart: those of ``rows`` and of ``others`` replace what the table had.
    others : sequence of dict
        Rows that are not written, and do not stay either.

    Raises
    ------
    OutputExistsError
        A table without the column is there, which was not written here.
    OutputError
        The disk refuses.
    """
    if not rows:
        return []
    now = {str(row[key]) for row in (*rows, *others)}
    columns, there = _read(path, key)
    kept = [row for row in there if row[key] not in now]
    names = list(rows[0]) if not kept else list(dict.fromkeys([*columns, *rows[0]]))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows([*kept, *rows])
    with replacing(path) as partial:
        partial.write_text(text.getvalue(), encoding="utf-8")
    return [path]


def _read(path: Path, key: str) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the columns and rows of a table that is there."""
    if not path.is_file():
        return [], []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        columns = list(reader.fieldnames or ())
        if columns and key not in columns:
            reason = f'a table without the column "{key}" is there'
            raise OutputExistsError(reason, slide=str(path), remedy="move it, or convert into another folder")
        return columns, list(reader)
